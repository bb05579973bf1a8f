package gm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/gm/gmtest"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
)

// link is an association of a node with the Group Manager, without a network.
type link struct {
	m    *Manager
	peer coap.Peer
}

func (l link) Do(ctx context.Context, req *coap.Request) (*coap.Response, error) {
	req = req.Clone()
	req.Peer = l.peer
	return gmtest.Serve(ctx, l.m, req), nil
}

func (link) Observe(context.Context, *coap.Request, func(*coap.Response)) (func(context.Context) error, error) {
	return nil, errors.New("no observation here")
}

func (link) Close() error { return nil }

// node makes a joining node with nothing but a token, so that it learns all
// about the group from a first, empty Join Request and a challenge.
func (f *fixture) node(name string, cfg node.Config) *node.Member {
	f.t.Helper()
	peer := coap.Peer{Link: coap.LinkID("test/" + name), Via: coap.DTLSPSK, Subject: coap.Subject{Kind: coap.SubjectPoP, ID: name}}
	f.auth.Allow(peer.Subject, groupcomm.Scope{{Group: cfg.Group, Roles: cfg.Roles}}, time.Time{})
	ns, err := f.auth.NewChallenge(f.t.Context(), peer.Subject)
	if err != nil {
		f.t.Fatal(err)
	}
	cfg.Subject = name
	cfg.Transfer = &groupcomm.TokenTransferResponse{KDCChallenge: ns}
	m, err := node.New(cfg, link{f.m, peer})
	if err != nil {
		f.t.Fatal(err)
	}
	return m
}

// kinds are groups with every signature algorithm, every curve, every pair of
// AEADs and both hashes, in every mode.
func kinds() []groupcomm.GroupConfig {
	aeads := []int64{cose.AlgAESCCM16_64_128, cose.AlgAESCCM16_128_128, cose.AlgA128GCM, cose.AlgA256GCM, cose.AlgChaCha20Poly1305}
	curves := map[int64]int64{
		cose.AlgEdDSA: cose.CrvX25519, cose.AlgES256: cose.CrvP256, cose.AlgES384: cose.CrvP384, cose.AlgES512: cose.CrvP521,
	}
	var list []groupcomm.GroupConfig
	add := func(edit func(*groupcomm.GroupConfig)) {
		c := groupcomm.DefaultGroupConfig(fmt.Sprintf("g%d", len(list)))
		edit(&c)
		c.ECDHAlg = groupcomm.ECDHAlgFor(c.HKDF)
		if c.Alg == 0 {
			c.ECDHAlg, c.ECDHCrv = 0, 0
		}
		c.GidPrefix, c.GidEpochBytes = []byte{0xb1, byte(len(list) >> 8), byte(len(list))}, 2
		list = append(list, c)
	}
	for sign, crv := range curves { // CWTs as credentials
		add(func(c *groupcomm.GroupConfig) { c.SignAlg, c.ECDHCrv, c.CredFmt = sign, crv, cose.HeaderKCWT })
		if crv != cose.CrvX25519 { // with which nobody signs a CWT
			add(func(c *groupcomm.GroupConfig) {
				c.SignAlg, c.GpEncAlg, c.ECDHCrv, c.CredFmt = 0, 0, crv, cose.HeaderKCWT
			})
		}
	}
	for _, crv := range curves { // pairwise-only
		for _, hkdf := range []int64{cose.AlgHMAC256, cose.AlgHMAC512} {
			for _, alg := range aeads {
				add(func(c *groupcomm.GroupConfig) {
					c.SignAlg, c.GpEncAlg, c.ECDHCrv, c.HKDF, c.Alg = 0, 0, crv, hkdf, alg
				})
			}
		}
	}
	for sign, crv := range curves {
		for _, hkdf := range []int64{cose.AlgHMAC256, cose.AlgHMAC512} {
			for _, gpEnc := range []int64{cose.AlgA128CTR, cose.AlgA192CTR, cose.AlgA256CTR} {
				add(func(c *groupcomm.GroupConfig) {
					c.SignAlg, c.ECDHCrv, c.HKDF, c.GpEncAlg = sign, crv, hkdf, gpEnc
				})
			}
			for i, gpEnc := range aeads {
				add(func(c *groupcomm.GroupConfig) { // signature-only
					c.SignAlg, c.HKDF, c.GpEncAlg, c.Alg = sign, hkdf, gpEnc, 0
				})
				for j, alg := range aeads {
					// All pairs of AEADs once, each alone with every curve.
					if i != j && sign != cose.AlgEdDSA {
						continue
					}
					add(func(c *groupcomm.GroupConfig) {
						c.SignAlg, c.ECDHCrv, c.HKDF, c.GpEncAlg, c.Alg = sign, crv, hkdf, gpEnc, alg
					})
				}
			}
		}
	}
	return list
}

func kindName(c groupcomm.GroupConfig) string {
	return fmt.Sprintf("%s,%s,%s,%s,%s,%s", groupcomm.CredFmtName(c.CredFmt), groupcomm.AlgName(c.SignAlg), groupcomm.AlgName(c.GpEncAlg),
		groupcomm.AlgName(c.Alg), groupcomm.CurveName(c.ECDHCrv), groupcomm.AlgName(c.HKDF))
}

// TestKinds has two nodes live a membership in every kind of group: they learn
// the parameters, make keys, join, know each other, replace a key, join
// again, ask for credentials, follow a rekey and leave.
func TestKinds(t *testing.T) {
	t.Parallel()
	list := kinds()
	f := newFixture(t, list...)
	for _, c := range list {
		t.Run(kindName(c), func(t *testing.T) {
			f := &fixture{t: t, st: f.st, auth: f.auth, m: f.m, cfg: f.cfg, deps: f.deps}
			f.liveIn(c)
		})
	}
}

// liveIn is the life of two members of the group c.
func (f *fixture) liveIn(c groupcomm.GroupConfig) {
	t := f.t
	t.Helper()
	ctx := t.Context()
	cfg := node.Config{Group: c.Name, Roles: both, WantCreds: true}
	a, b := f.node(c.Name+"-a", cfg), f.node(c.Name+"-b", cfg)
	for _, m := range []*node.Member{a, b} {
		if err := m.Join(ctx); err != nil {
			t.Fatal(err)
		}
	}
	sa, _ := a.State()
	sb, _ := b.State()
	want := c.KeyParams()
	if got := sb.Params; !bytes.Equal(got.Encode(), want.Encode()) {
		t.Errorf("parameters %x, want %x", got.Encode(), want.Encode())
	}
	if len(sb.Peers) != 1 || !sb.Peers[0].Key.SamePublic(a.Key()) || !bytes.Equal(sb.Peers[0].SenderID, sa.SenderID) {
		t.Errorf("peers %+v", sb.Peers)
	}
	if !bytes.Equal(sa.KDCCred, sb.KDCCred) || !sa.MasterSecret.Equal(sb.MasterSecret) {
		t.Error("two members hold different material")
	}
	// The longest Sender ID is what the shortest nonce leaves: RFC 8613, Section 3.3.
	g, _ := f.m.group(c.Name)
	longest := 7
	for _, alg := range []int64{c.Alg, c.GpEncAlg} {
		if groupcomm.NonceLen(alg) == 12 {
			longest = 6
		}
	}
	if g.sids != places(longest) {
		t.Errorf("%d Sender IDs, want those of up to %d bytes", g.sids, longest)
	}
	key, err := makeKDCKey(&c) // of the same kind
	if err != nil {
		t.Fatal(err)
	}
	if err := a.ReplaceCred(ctx, key); err != nil {
		t.Fatal(err)
	}
	if err := a.Rejoin(ctx); err != nil {
		t.Fatal(err)
	}
	if s, _ := a.State(); bytes.Equal(s.SenderID, sa.SenderID) || len(s.Peers) != 1 {
		t.Errorf("after the second join: Sender ID %v, %d peers", s.SenderID, len(s.Peers))
	}
	if peers, err := b.Creds(ctx); err != nil || len(peers) != 1 || !peers[0].Key.SamePublic(key) {
		t.Errorf("credentials %+v, %v", peers, err)
	}
	f.rekey(c.Name)
	if err := a.Poll(ctx); err != nil {
		t.Fatal(err)
	}
	if s, _ := a.State(); s.Version != 1 || !s.Installed {
		t.Errorf("after the rekey: version %d", s.Version)
	}
	if err := a.Leave(ctx); err != nil {
		t.Fatal(err)
	}
}
