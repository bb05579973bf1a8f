package node

import (
	"context"
	"errors"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// verifierGM is a Group Manager as a signature verifier meets it.
type verifierGM struct {
	*fakeGM
	moves int // how often a rekey comes between verif-data and creds
	alter func(name string, r *coap.Response)
}

func (g *verifierGM) Do(_ context.Context, req *coap.Request) (*coap.Response, error) {
	name := req.Path()[2]
	var r *coap.Response
	switch {
	case name == "verif-data" && req.Code == coap.GET:
		v := &groupcomm.VerifData{Key: g.cfg.VerifParams(), Num: g.num, Exi: 3600, SignEncKey: secretOf(g.num)}
		v.Key.ContextID = gidOf(g.num)
		r = reply(coap.Content, coap.ACEGroupcomm, v.Encode())
	case name == "kdc-cred" && req.Code == coap.FETCH:
		nc, err := groupcomm.DecodeKDCCredRequest(req.Payload)
		if err != nil {
			return nil, err
		}
		k := &groupcomm.KDCCred{Cred: g.cred, Nonce: []byte("12345678")}
		if k.Verify, err = g.key.Sign(groupcomm.KDCPoPInput(nc, k.Nonce)); err != nil {
			return nil, err
		}
		r = reply(coap.Content, coap.ACEGroupcomm, k.Encode())
	case name == "creds" && req.Code == coap.GET:
		if g.moves > 0 {
			g.moves--
			g.num++
		}
		c := &groupcomm.CredsResponse{Num: g.num}
		for _, p := range g.peers {
			c.Creds, c.PeerRoles, c.PeerIdentifiers = append(c.Creds, p.Cred), append(c.PeerRoles, p.Roles), append(c.PeerIdentifiers, p.SenderID)
		}
		r = reply(coap.Content, coap.ACEGroupcomm, c.Encode())
	default:
		r = reply(coap.NotFound, 0, nil)
	}
	if g.alter != nil {
		g.alter(name, r)
	}
	return r, nil
}

func newVerifier(t *testing.T) (*verifierGM, *Verifier) {
	t.Helper()
	g := &verifierGM{fakeGM: newFakeGM(t)}
	v, err := NewVerifier("g1", g)
	if err != nil {
		t.Fatal(err)
	}
	return g, v
}

func TestVerifier(t *testing.T) {
	g, v := newVerifier(t)
	got, err := v.Fetch(t.Context())
	if err != nil || len(got.Peers) != 0 || got.Version != 5 {
		t.Fatal(got, err)
	}
	peer := g.peer(0x25, groupcomm.Requester)
	g.moves = 2
	if got, err = v.Fetch(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got.Version != 7 || got.Gid.String() != gidOf(7).String() || string(got.SignEncKey.Bytes()) != string(secretOf(7)) ||
		string(got.KDCCred) != string(g.cred) || len(got.Peers) != 1 || string(got.Peers[0].Cred) != string(peer.Cred) {
		t.Error("not what the Group Manager gave for one version")
	}
	g.moves = 2 * maxRounds
	if _, err := v.Fetch(t.Context()); !errors.Is(err, ErrBadAnswer) {
		t.Errorf("a group that never stands still: %v", err)
	}
}

func TestVerifierRefuses(t *testing.T) {
	g, v := newVerifier(t)
	g.peer(0x25, groupcomm.Requester)
	other, err := cose.GenerateKey(cose.AlgEdDSA)
	if err != nil {
		t.Fatal(err)
	}
	verif := func(change func(*groupcomm.VerifData)) []byte {
		d := &groupcomm.VerifData{Key: g.cfg.VerifParams(), Num: 5, Exi: 3600, SignEncKey: secretOf(5)}
		d.Key.ContextID = gidOf(5)
		change(d)
		return d.Encode()
	}
	for _, tc := range []struct {
		what, at string
		body     []byte
		want     error
	}{
		{"a proof of somebody else", "kdc-cred", (&groupcomm.KDCCred{
			Cred: cose.EncodeCCS("gm", other.Public()), Nonce: []byte("12345678"), Verify: make([]byte, 64)}).Encode(), ErrProof},
		{"a short nonce", "kdc-cred", (&groupcomm.KDCCred{Cred: g.cred, Nonce: []byte("1"), Verify: make([]byte, 64)}).Encode(), ErrBadAnswer},
		{"no credential", "kdc-cred", []byte{0xa0}, ErrBadAnswer},
		{"nothing", "verif-data", nil, ErrBadAnswer},
		{"a short key", "verif-data", verif(func(d *groupcomm.VerifData) { d.SignEncKey = []byte{1} }), ErrBadAnswer},
		{"a Master Secret", "verif-data", verif(func(d *groupcomm.VerifData) { d.Key.MasterSecret = secretOf(1) }), ErrBadAnswer},
		{"an empty Gid", "verif-data", verif(func(d *groupcomm.VerifData) { d.Key.ContextID = groupcomm.Gid{} }), ErrBadAnswer},
		{"another format", "verif-data", verif(func(d *groupcomm.VerifData) { d.Key.CredFmt = 34 }), ErrUnsupported},
		{"creds without ids", "creds", []byte{0xa1, 9, 5}, ErrBadAnswer},
	} {
		g.alter = func(name string, r *coap.Response) {
			if name == tc.at {
				r.Payload = tc.body
			}
		}
		if _, err := v.Fetch(t.Context()); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", tc.what, err)
		}
	}
	for _, p := range []*coap.Problem{groupcomm.ErrVerifiersOnly, groupcomm.ErrNoSignatures} {
		g.alter = func(_ string, r *coap.Response) { *r = *coap.ErrorResponse(p) }
		if _, err := v.Fetch(t.Context()); !errors.Is(err, p) {
			t.Errorf("%s: %v", p.Title, err)
		}
	}
	if _, err := NewVerifier("", g); err == nil {
		t.Error("no group")
	}
	if _, err := NewVerifier("g1", nil); err == nil {
		t.Error("no transport")
	}
}
