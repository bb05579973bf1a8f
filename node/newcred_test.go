package node

import (
	"errors"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

func TestReplaceCred(t *testing.T) {
	for _, lost := range []bool{false, true} {
		g := newFakeGM(t)
		m, _ := joinedMember(t, g, nil)
		if lost {
			g.renew = []byte("another challenge")
		}
		key, err := cose.GenerateKey(cose.AlgEdDSA)
		if err != nil {
			t.Fatal(err)
		}
		before := state(t, m)
		if err := m.ReplaceCred(t.Context(), key); err != nil {
			t.Fatalf("N_S lost %v: %v", lost, err)
		}
		pub, err := cose.DecodeCCS(g.clientCred)
		if err != nil || string(pub.X) != string(key.X) || m.Key() != key {
			t.Errorf("N_S lost %v: not the new key, %v", lost, err)
		}
		if after := state(t, m); after.SenderID.String() != before.SenderID.String() || after.Version != before.Version {
			t.Error("the membership changed")
		}
		// The next join proves the new key.
		if err := m.Join(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestReplaceCredRefused(t *testing.T) {
	g := newFakeGM(t)
	m, events := joinedMember(t, g, nil)
	old := m.Key()
	key, err := cose.GenerateKey(cose.AlgEdDSA)
	if err != nil {
		t.Fatal(err)
	}
	p256, err := cose.GenerateKey(cose.AlgES256)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.ReplaceCred(t.Context(), p256); !errors.Is(err, ErrUnsupported) {
		t.Errorf("a key for another algorithm: %v", err)
	}
	for _, k := range []*cose.Key{nil, key.Public()} {
		if err := m.ReplaceCred(t.Context(), k); err == nil {
			t.Error("a key that cannot sign was taken")
		}
	}
	for _, p := range []*coap.Problem{groupcomm.ErrInactive, groupcomm.ErrRoles, groupcomm.ErrCredential, groupcomm.ErrPoP} {
		g.spoil = func(_ *coap.Request, r *coap.Response) { *r = *coap.ErrorResponse(p) }
		if err := m.ReplaceCred(t.Context(), key); !errors.Is(err, p) {
			t.Errorf("%s: %v", p.Title, err)
		}
	}
	// A Group Manager that loses N_S again and again.
	g.spoil = func(_ *coap.Request, r *coap.Response) {
		*r = *reply(coap.BadRequest, coap.ACEGroupcomm, (&groupcomm.InfoBody{KDCChallenge: []byte("12345678")}).Encode())
	}
	if err := m.ReplaceCred(t.Context(), key); err == nil {
		t.Error("taken for a success")
	}
	if m.Key() != old {
		t.Error("the key changed")
	}
	g.spoil = func(_ *coap.Request, r *coap.Response) { *r = *coap.ErrorResponse(groupcomm.ErrNotMember) }
	if err := m.ReplaceCred(t.Context(), key); !errors.Is(err, ErrNotMember) {
		t.Error(err)
	}
	if err := m.ReplaceCred(t.Context(), key); !errors.Is(err, ErrNotMember) || (*events)[len(*events)-1].Kind != Evicted {
		t.Errorf("after the membership ended: %v", err)
	}
}

func TestActive(t *testing.T) {
	g := newFakeGM(t)
	m, _ := joinedMember(t, g, nil)
	if active, err := m.Active(t.Context()); err != nil || !active {
		t.Error(active, err)
	}
	g.spoil = func(_ *coap.Request, r *coap.Response) { r.Payload = []byte{0} }
	if _, err := m.Active(t.Context()); !errors.Is(err, ErrBadAnswer) {
		t.Error(err)
	}
}
