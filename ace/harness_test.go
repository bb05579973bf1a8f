package ace

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/ace/cwt"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
	"github.com/seed4911071e/groupgate/store/storetest"
)

var (
	encKey = bytes.Repeat([]byte{0xe0}, 16)
	macKey = bytes.Repeat([]byte{0xac}, 32)
	kekKey = bytes.Repeat([]byte{0xce}, 16)
	kdkKey = bytes.Repeat([]byte{0xdd}, 16)
	popKey = bytes.Repeat([]byte{0x42}, 16)
	popKID = []byte("kid-0001")
)

// bench is a server with all kinds of issuers.
type bench struct {
	*Server
	t      testing.TB
	signer *cose.Key
}

type groupTable map[string]groupcomm.GroupConfig

func (g groupTable) GroupConfigs(_ context.Context, names []string) (out []groupcomm.GroupConfig, _ error) {
	for _, n := range names {
		if c, ok := g[n]; ok {
			out = append(out, c)
		}
	}
	return out, nil
}

func (g groupTable) KDCDHCreds(_ context.Context, names []string) (out []groupcomm.KDCDHCred, _ error) {
	for _, n := range names {
		if c, ok := g[n]; ok && c.PairwiseOnly() {
			out = append(out, groupcomm.KDCDHCred{Groups: []string{n}, CredFmt: c.CredFmt, Cred: []byte("dh credential of " + n)})
		}
	}
	return out, nil
}

func testGroups() groupTable {
	full := groupcomm.GroupConfig{
		SignAlg: cose.AlgEdDSA, GpEncAlg: 10, Alg: 10, ECDHAlg: cose.AlgECDHSSHKDF256, ECDHCrv: cose.CrvX25519, HKDF: 5, CredFmt: 14,
	}
	signOnly, pairwise := full, full
	signOnly.Alg, signOnly.ECDHAlg, signOnly.ECDHCrv = 0, 0, 0
	pairwise.SignAlg, pairwise.GpEncAlg = 0, 0
	old, older, two := full, full, full
	old.Interface, older.Interface, two.Interface = groupcomm.Hackathon109, groupcomm.Draft03, groupcomm.Both
	t := groupTable{"g1": full, "g2": full, "signed": signOnly, "pairs": pairwise, "2019": older, "2020": old, "two": two}
	for name, c := range t {
		c.Name = name
		t[name] = c
	}
	return t
}

func testSigner(t testing.TB) *cose.Key {
	t.Helper()
	k, err := cose.GenerateKey(cose.AlgEdDSA)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func testConfig(signer *cose.Key) Config {
	return Config{
		Entries: []TokenEntry{
			{Issuer: "as1", Audience: "rs2", Alg: cose.AlgAESCCM16_64_128, Key: cose.NewSecret(encKey), DerivationKey: cose.NewSecret(kdkKey)},
			{Issuer: "as2", Audience: "rs2", Alg: cose.AlgHMAC256, Key: cose.NewSecret(macKey), EncryptionKey: cose.NewSecret(kekKey)},
			{Issuer: "as3", Audience: "rs2", Alg: cose.AlgEdDSA, PublicKey: signer.Public(), DerivationKey: cose.NewSecret(kdkKey)},
		},
		PSK: []PSKPeer{
			{Identity: []byte("clientF"), Key: cose.NewSecret(popKey), MayToken: true},
			{Identity: []byte("clientG"), Key: cose.NewSecret(popKey), MayToken: true},
			{Identity: []byte("proxied"), Key: cose.NewSecret(popKey), MayProxy: true},
		},
		AS: &ASConfig{Issuer: "as1", Policies: []Policy{{
			Client: "clientF", Audience: "rs2", Lifetime: time.Hour,
			Scope: groupcomm.Scope{{Group: "g1", Roles: 6}, {Group: "g2", Roles: 8}},
		}}},
		ASURI:      "coaps://as.example.com/token",
		RISELabels: true,
		Limits:     Limits{PeerRate: 1e6, PostRate: 1e6},
	}
}

func newBench(t testing.TB, change ...func(*Config)) *bench {
	t.Helper()
	signer := testSigner(t)
	cfg := testConfig(signer)
	for _, f := range change {
		f(&cfg)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	s := New(cfg, Deps{Store: storetest.Open(t, Migrations()), Groups: testGroups()})
	if err := s.Setup(t.Context()); err != nil {
		t.Fatal(err)
	}
	return &bench{Server: s, t: t, signer: signer}
}

// reopen is the server after a power cut.
func (b *bench) reopen() *bench {
	b.t.Helper()
	s := New(b.cfg, Deps{Store: storetest.Crash(b.t, b.store, Migrations()), Groups: testGroups()})
	if err := s.Setup(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	return &bench{Server: s, t: b.t, signer: b.signer}
}

func scopeOf(entries ...groupcomm.ScopeEntry) []byte {
	return groupcomm.EncodeTokenScope(entries, false)
}

// claims of a good token, with changes.
func claims(change ...func(*cwt.Claims)) *cwt.Claims {
	now := time.Now().Unix()
	c := &cwt.Claims{
		Issuer: "as1", Audience: []string{"rs2"}, Expires: now + 3600, IssuedAt: now,
		Scope: scopeOf(groupcomm.ScopeEntry{Group: "g1", Roles: 6}),
		Cnf:   &cwt.Confirmation{Key: &cose.Key{Kty: cose.KtySymmetric, KID: popKID, K: popKey}},
	}
	for _, f := range change {
		f(c)
	}
	return c
}

func (b *bench) seal(alg int64, c *cwt.Claims) []byte {
	b.t.Helper()
	p := cwt.Protection{Alg: alg}
	switch cwt.KindOf(alg) {
	case cwt.Encrypt0:
		p.Key = encKey
	case cwt.Mac0:
		p.Key = macKey
	default:
		p.Signer = b.signer
	}
	token, err := cwt.Seal(p, c.Encode())
	if err != nil {
		b.t.Fatal(err)
	}
	return token
}

func (b *bench) token(change ...func(*cwt.Claims)) []byte {
	b.t.Helper()
	return b.seal(cose.AlgAESCCM16_64_128, claims(change...))
}

func outside() coap.Peer {
	return coap.Peer{Link: "plain", Addr: netip.MustParseAddrPort("192.0.2.1:5683"), Via: coap.Plain}
}

func inside(s coap.Subject) coap.Peer {
	return coap.Peer{Link: "dtls", Addr: netip.MustParseAddrPort("192.0.2.2:5684"), Via: coap.DTLSPSK, Subject: s}
}

// post posts a bare token.
func (b *bench) post(peer coap.Peer, token []byte) (*groupcomm.TokenTransferResponse, error) {
	b.t.Helper()
	req := &coap.Request{Code: coap.POST, Payload: token, Peer: peer}
	req.Options.SetContentFormat(coap.CWT)
	return b.send(req)
}

func (b *bench) send(req *coap.Request) (*groupcomm.TokenTransferResponse, error) {
	b.t.Helper()
	resp, err := b.AuthzInfo().ServeCoAP(b.t.Context(), req)
	if err != nil {
		return nil, err
	}
	if f, _ := resp.Options.ContentFormat(); resp.Code != coap.Created || f != coap.ACE {
		b.t.Fatalf("answer is %v in format %d", resp.Code, f)
	}
	answer, err := groupcomm.DecodeTokenTransferResponse(resp.Payload)
	if err != nil {
		b.t.Fatal(err)
	}
	return answer, nil
}

// mustPost returns N_S.
func (b *bench) mustPost(peer coap.Peer, token []byte) []byte {
	b.t.Helper()
	answer, err := b.post(peer, token)
	if err != nil {
		b.t.Fatalf("post: %v", err)
	}
	return answer.KDCChallenge
}

// handshake does what a link does with a kid identity.
func (b *bench) handshake(kid []byte) coap.Subject {
	b.t.Helper()
	if _, err := b.PSK(b.t.Context(), KIDIdentity(kid)); err != nil {
		b.t.Fatalf("PSK: %v", err)
	}
	subject, conveyed := b.Subject(KIDIdentity(kid))
	if conveyed || subject.Kind != coap.SubjectPoP {
		b.t.Fatalf("subject %v, conveyed %v", subject.Kind, conveyed)
	}
	return subject
}

func (b *bench) grant(s coap.Subject) *groupcomm.Grant {
	b.t.Helper()
	g, err := b.Grant(b.t.Context(), inside(s))
	if err != nil {
		b.t.Fatalf("grant: %v", err)
	}
	return g
}

func (b *bench) use(s coap.Subject, ns []byte) {
	b.t.Helper()
	err := b.store.Update(b.t.Context(), func(tx *store.Tx) error { return b.UsedChallenge(tx, s, ns) })
	if err != nil {
		b.t.Fatal(err)
	}
}

// dump is all state of the room, to show that something changed nothing.
func (b *bench) dump() string {
	b.t.Helper()
	var out bytes.Buffer
	err := b.store.View(b.t.Context(), func(tx *store.Tx) error {
		out.Reset()
		for _, q := range []string{
			`SELECT hex(subject) || hex(challenges) || used || stored || gone FROM ace_keys ORDER BY subject`,
			`SELECT hex(subject) || slot || hex(core) || hex(scope) || expires FROM ace_tokens ORDER BY subject, slot`,
			`SELECT origin || seq || expires FROM ace_exi ORDER BY origin, seq`,
			`SELECT hex(kid) || expires FROM ace_issued ORDER BY kid`,
			`SELECT hex(id2) || hex(subject) || hex(nonce2) || proved || reserved || epoch FROM ace_contexts ORDER BY id2`,
		} {
			rows, err := tx.Query(q)
			if err != nil {
				return err
			}
			for rows.Next() {
				var line string
				if err := rows.Scan(&line); err != nil {
					return err
				}
				out.WriteString(line + "\n")
			}
			if err := rows.Close(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return out.String()
}

func code(err error) coap.Code {
	if err == nil {
		return coap.Created
	}
	return coap.ErrorResponse(err).Code
}

func has(list [][]byte, v []byte) bool {
	for _, l := range list {
		if bytes.Equal(l, v) {
			return true
		}
	}
	return false
}

func vector(t testing.TB, name string) map[string]string {
	t.Helper()
	raw, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	var v map[string]any
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for k, x := range v {
		if s, ok := x.(string); ok {
			out[k] = s
		}
	}
	return out
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
