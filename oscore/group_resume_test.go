package oscore

import (
	"bytes"
	"context"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
)

// marks is a ledger as a member that resumes has it: a name that was opened is never
// new again.
type marks struct{ ledger }

func (l *marks) Open(name string) (uint64, Reserver, error) {
	upTo, r, err := l.ledger.Open(name)
	if err == nil && upTo == 0 {
		err = r.Reserve(context.Background(), 1)
	}
	return upTo, r, err
}

// TestGroupResume: a member that goes on after a crash uses no sequence number twice,
// though it never reserved one before, and believes no request of before: the client
// has to prove that it is a new one. What it answered before cannot be asked again.
//
// draft-ietf-core-oscore-groupcomm-28, Sections 2.6.1.2 and 9.
func TestGroupResume(t *testing.T) {
	s := newSite(t, bothModes)
	client := s.member("a", GroupConfig{})
	l := &marks{ledger{upTo: map[string]uint64{}}}
	start := func(id string) *Group {
		t.Helper()
		g := must(NewGroup(GroupConfig{Creds: s.creds, Sequences: l, Resume: true}))
		if err := g.Install(s.material, s.sender(id), nil, false); err != nil {
			t.Fatal(err)
		}
		return g
	}
	g := start("b")
	before, _ := ask(t, client, GroupMode, "", get("/x"))
	if _, _, err := g.UnprotectRequest(nil, before); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"b", "c"} { // with another Sender ID as well
		g = start(id)
		_, x, err := g.UnprotectRequest(nil, before)
		wantErr(t, "replayed after a crash as "+id, err, ErrNotFresh)
		challenge := must(x.Challenge(t.Context(), nil))
		if value, _ := challenge.Options.Get(coap.OSCOREOption); must(DecodeOption(value)).PIV == nil {
			t.Error("the challenge has the nonce of the request, which was used")
		}
	}
	seen := map[string]bool{}
	for range 3 {
		g = start("b")
		for range 3 {
			m, _, err := g.ProtectRequest(t.Context(), nil, get("/x"))
			if err != nil {
				t.Fatal(err)
			}
			value, _ := m.Options.Get(coap.OSCOREOption)
			piv := must(DecodeOption(value)).PIV
			if seen[string(piv)] || bytes.Equal(piv, []byte{0}) {
				t.Errorf("Partial IV %x again", piv)
			}
			seen[string(piv)] = true
		}
	}
	if _, err := NewGroup(GroupConfig{Creds: s.creds, Resume: true}); err == nil {
		t.Error("resumed without a store")
	}
}
