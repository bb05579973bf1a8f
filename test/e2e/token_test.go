package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/ace/cwt"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
)

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// claims are those of a token that is accepted.
func claims() *cwt.Claims {
	now := time.Now()
	return &cwt.Claims{
		Issuer: "as1", Audience: []string{"groupgate"}, IssuedAt: now.Unix(), Expires: now.Add(time.Hour).Unix(), ID: random(8),
		Scope: groupcomm.EncodeTokenScope(groupcomm.Scope{{Group: group, Roles: both}}, false),
		Cnf:   &cwt.Confirmation{Key: &cose.Key{Kty: cose.KtySymmetric, KID: random(8), K: random(16)}},
	}
}

func seal(t testing.TB, p cwt.Protection, c *cwt.Claims) []byte {
	t.Helper()
	b, err := cwt.Seal(p, c.Encode())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestTokensRefused: the exact code for each fault (docs/protocol.md, Section 2),
// and nothing stored.
func TestTokensRefused(t *testing.T) {
	t.Parallel()
	const hmac256, aesCCM = 5, cose.AlgAESCCM16_64_128
	macKey, signKey := random(32), ecKey(t)
	dir := t.TempDir()
	g := serve(t, func(c *config.Config) {
		c.Tokens = append(c.Tokens,
			config.Token{Issuer: "as2", Audience: "groupgate", Alg: "HMAC-256/256", SymmetricKeyFile: filepath.Join(dir, "mac.key")},
			config.Token{Issuer: "as3", Audience: "groupgate", PublicKeyFile: filepath.Join(dir, "as.pem")})
		writeFile(t, filepath.Join(dir, "mac.key"), []byte(hex.EncodeToString(macKey)))
		der, err := x509.MarshalPKIXPublicKey(signKey.Public())
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(dir, "as.pem"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	})
	enc := cwt.Protection{Alg: aesCCM, Key: g.cfg.Tokens[0].SymmetricKey.Bytes()}
	mac := cwt.Protection{Alg: hmac256, Key: macKey}
	point, err := signKey.PublicKey.Bytes() // 04 | x | y
	if err != nil {
		t.Fatal(err)
	}
	secret, err := signKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	sign := cwt.Protection{Alg: -7, Signer: &cose.Key{Kty: cose.KtyEC2, Crv: cose.CrvP256, X: point[1:33], Y: point[33:], D: secret}}
	past, future := time.Now().Add(-time.Minute).Unix(), time.Now().Add(time.Hour).Unix()

	before := g.picture()
	plain := g.plain()
	for name, c := range map[string]struct {
		with cwt.Protection
		edit func(*cwt.Claims)
		want coap.Code
	}{
		"accepted":           {enc, func(*cwt.Claims) {}, coap.Created},
		"expired":            {enc, func(c *cwt.Claims) { c.Expires = past }, coap.Unauthorized},
		"not valid yet":      {enc, func(c *cwt.Claims) { c.NotBefore = future }, coap.Unauthorized},
		"forged":             {cwt.Protection{Alg: aesCCM, Key: random(16)}, func(*cwt.Claims) {}, coap.Unauthorized},
		"another issuer":     {enc, func(c *cwt.Claims) { c.Issuer = "as9" }, coap.Unauthorized},
		"another audience":   {enc, func(c *cwt.Claims) { c.Audience = []string{"rs9"} }, coap.Forbidden},
		"scope of another":   {enc, func(c *cwt.Claims) { c.Scope = cose.MustMarshal("read") }, coap.BadRequest},
		"no key":             {enc, func(c *cwt.Claims) { c.Cnf = nil }, coap.BadRequest},
		"MACed, clear key":   {mac, func(c *cwt.Claims) { c.Issuer = "as2" }, coap.BadRequest},
		"signed, clear key":  {sign, func(c *cwt.Claims) { c.Issuer = "as3" }, coap.BadRequest},
		"MACed by forger":    {cwt.Protection{Alg: hmac256, Key: random(32)}, func(c *cwt.Claims) { c.Issuer = "as2" }, coap.Unauthorized},
		"expired and forged": {cwt.Protection{Alg: aesCCM, Key: random(16)}, func(c *cwt.Claims) { c.Expires = past }, coap.Unauthorized},
	} {
		cl := claims()
		c.edit(cl)
		token := seal(t, c.with, cl)
		r := ask(t, plain, coap.POST, []string{"authz-info"}, coap.ACE, (&groupcomm.TokenTransfer{AccessToken: token}).Encode())
		if r.Code != c.want {
			t.Errorf("%s: %v %s, want %v", name, r.Code, r.Payload, c.want)
		}
		if c.want == coap.Created || cl.Cnf == nil {
			continue
		}
		// Nothing is stored: its key opens no association.
		a := node.Access{KID: cl.Cnf.Key.KID}
		if tr, err := node.DialDTLS(soon(t), g.coaps, a.Identity(), cl.Cnf.Key.K); err == nil {
			t.Errorf("%s: its key is known", name)
			_ = tr.Close()
		}
	}
	for name, payload := range map[string][]byte{"no token": random(40), "nothing": {}, "a map without token": {0xa0}} {
		if r := ask(t, plain, coap.POST, []string{"authz-info"}, coap.ACE, payload); r.Code != coap.BadRequest {
			t.Errorf("%s: %v %s", name, r.Code, r.Payload)
		}
	}
	if after := g.picture(); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
}

func ecKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func writeFile(t testing.TB, name string, content []byte) {
	t.Helper()
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestReposted: /authz-info is open to everybody, so whoever overhears a token
// can post it again. That harms its owner in no way.
func TestReposted(t *testing.T) {
	t.Parallel()
	g := serve(t)
	a := g.token()
	cfg := g.config(a)
	cfg.Transfer = g.post(a)
	seen := map[string]bool{string(cfg.Transfer.KDCChallenge): true}
	for range 3 {
		r := g.post(a)
		if seen[string(r.KDCChallenge)] {
			t.Error("a challenge is given twice")
		}
		seen[string(r.KDCChallenge)] = true
	}
	owner := g.enter(a, cfg, g.as(a))
	if owner.wire.tries != 1 {
		t.Errorf("%d join requests: the challenge given first was lost", owner.wire.tries)
	}

	// Only the last four challenges stay (docs/protocol.md, Section 2). Who lost its
	// own to more posts than that is refused, posts once more, and is in.
	b := g.token()
	cfg = g.config(b)
	cfg.Transfer = g.post(b)
	for range 4 {
		g.post(b)
	}
	tr := g.as(b)
	late, err := node.New(cfg, tr)
	if err != nil {
		t.Fatal(err)
	}
	if err := late.Join(soon(t)); !errors.Is(err, groupcomm.ErrPoP) {
		t.Errorf("join by a challenge that was pushed out: %v", err)
	}
	cfg.Transfer = g.post(b)
	g.enter(b, cfg, tr)

	// The first is a member as before, its association included.
	g.post(a)
	if num, err := owner.Num(soon(t)); err != nil || num != owner.state().Version {
		t.Errorf("the owner: version %d, %v", num, err)
	}
}

// TestTokenInIdentity: the token goes in psk_identity, and N_S comes from the
// exporter (draft-ietf-ace-key-groupcomm-oscore-21, Section 6.1.1).
func TestTokenInIdentity(t *testing.T) { onEach(t, tokenInIdentity) }

func tokenInIdentity(t *testing.T, kind func(*config.Config)) {
	g := serve(t, kind)
	a := g.token()
	m := g.enter(a, g.config(a), g.dial(a.Token, a.Key.Bytes()))
	// The token is stored now: the next session names its key.
	if err := m.Reconnect(soon(t)); err != nil {
		t.Fatal(err)
	}
	v := g.rekey()
	if err := m.Poll(soon(t)); err != nil {
		t.Fatal(err)
	}
	if m.state().Version != v {
		t.Errorf("version %d, want %d", m.state().Version, v)
	}
}

// TestForeignResources: a member reaches its own node resource and no other's.
func TestForeignResources(t *testing.T) {
	t.Parallel()
	g := serve(t)
	owner, other := g.join(), g.join()
	before := g.picture()
	for _, code := range []coap.Code{coap.GET, coap.DELETE, coap.POST} {
		r := ask(t, other.wire, code, []string{"ace-group", group, "nodes", owner.state().Node}, 0, nil)
		if r.Code != coap.Forbidden {
			t.Errorf("%v: %v %s", code, r.Code, r.Payload)
		}
	}
	// A node that is no member, with a token for the group.
	a := g.token()
	g.post(a)
	stranger := g.as(a)
	for _, code := range []coap.Code{coap.GET, coap.DELETE} {
		if r := ask(t, stranger, code, []string{"ace-group", group, "nodes", owner.state().Node}, 0, nil); r.Code != coap.Forbidden {
			t.Errorf("%v by a stranger: %v %s", code, r.Code, r.Payload)
		}
	}
	if after := g.picture(); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
	if _, err := owner.Num(soon(t)); err != nil {
		t.Error(err)
	}
}

// TestUnprotected: without DTLS there is discovery and /authz-info, and
// everything else says where tokens come from.
func TestUnprotected(t *testing.T) {
	t.Parallel()
	g := serve(t)
	m := g.join()
	plain := g.plain()
	for _, path := range [][]string{
		{"ace-group", group}, {"ace-group", group, "num"}, {"ace-group", group, "nodes", m.state().Node}, {"ace-group", "nowhere"}, {"ace-group"},
	} {
		for _, code := range []coap.Code{coap.GET, coap.POST, coap.DELETE, coap.FETCH} {
			r := ask(t, plain, code, path, 0, nil)
			if f, _ := r.Options.ContentFormat(); r.Code != coap.Unauthorized || f != coap.ACE {
				t.Fatalf("%v %v: %v, Content-Format %d, %s", code, path, r.Code, f, r.Payload)
			}
			// RFC 9200, Section 5.3: AS is key 1, audience 5.
			hints, err := cose.DecodeMap(r.Payload)
			if err != nil {
				t.Fatal(err)
			}
			if as, err := cose.AsText(hints[1]); err != nil || as == "" {
				t.Errorf("%v %v: no AS in the hints %x", code, path, r.Payload)
			}
		}
	}
	for _, path := range [][]string{{"token"}, {}, {"unknown"}} {
		if r := ask(t, plain, coap.POST, path, coap.ACE, []byte{0xa0}); r.Code != coap.Unauthorized {
			t.Errorf("POST %v: %v %s", path, r.Code, r.Payload)
		}
	}
	if r := ask(t, plain, coap.GET, []string{".well-known", "core"}, 0, nil); !bytes.Contains(r.Payload, []byte("</ace-group/sensors>")) {
		t.Errorf("discovery: %v %s", r.Code, r.Payload)
	}
	// A member's association may not ask for tokens: it is no AS client.
	if r := ask(t, m.wire, coap.POST, []string{"token"}, coap.ACE, []byte{0xa0}); r.Code.IsSuccess() {
		t.Errorf("POST /token by a member: %v", r.Code)
	}
}

// TestOutsideScope: whether a group exists is not told to those whose token
// does not name it.
func TestOutsideScope(t *testing.T) {
	t.Parallel()
	g := serve(t, func(c *config.Config) {
		other := config.DefaultGroup()
		other.Name = "secret"
		c.Groups = append(c.Groups, other)
	})
	m := g.join()
	for _, code := range []coap.Code{coap.GET, coap.POST, coap.DELETE} {
		known := ask(t, m.wire, code, []string{"ace-group", "secret"}, coap.ACEGroupcomm, []byte{0xa0})
		unknown := ask(t, m.wire, code, []string{"ace-group", "absent"}, coap.ACEGroupcomm, []byte{0xa0})
		if known.Code != coap.Forbidden || unknown.Code != coap.Forbidden {
			t.Errorf("%v: %v for a group that is there, %v for one that is not", code, known.Code, unknown.Code)
		}
		if !bytes.Equal(known.Payload, unknown.Payload) || len(known.Options) != len(unknown.Options) {
			t.Errorf("%v: the answers differ: %q %q", code, known.Payload, unknown.Payload)
		}
	}
}
