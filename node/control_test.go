package node

import (
	"errors"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// takingGM is a fakeGM over which requests can come.
type takingGM struct {
	*fakeGM
	take func(*coap.Request) *coap.Response
}

func (g *takingGM) Take(fn func(*coap.Request) *coap.Response) { g.take = fn }

func (g *takingGM) ask(code coap.Code, body []byte, path ...string) coap.Code {
	req := &coap.Request{Code: code, Payload: body}
	req.Options.SetPath(path...)
	return g.take(req).Code
}

// RFC 9594, Section 6.1; draft-ietf-ace-key-groupcomm-oscore-21, Section 10: what
// a control_uri takes, and what it refuses.
func TestControlURI(t *testing.T) {
	g := &takingGM{fakeGM: newFakeGM(t)}
	var kinds []string
	m, err := New(Config{
		Group: "g1", Roles: 6, Transfer: g.transfer(), ControlURI: "coap://n/rek%2Fey/x",
		OnEvent: func(e Event) { kinds = append(kinds, e.Kind+" "+e.Via) },
	}, g)
	if err != nil {
		t.Fatal(err)
	}
	path := []string{"rek/ey", "x"}
	if got := g.ask(coap.POST, rekeyOf(6), path...); got != coap.NotFound {
		t.Errorf("before the join: %v", got)
	}
	if err := m.Join(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		code coap.Code
		body []byte
		path []string
		want coap.Code
	}{
		{coap.POST, rekeyOf(6), []string{"rek", "ey", "x"}, coap.NotFound},
		{coap.GET, nil, path, coap.MethodNotAllowed},
		{coap.POST, nil, path, coap.BadRequest},
		{coap.POST, []byte{0xa0}, path, coap.BadRequest},
	} {
		if got := g.ask(tc.code, tc.body, tc.path...); got != tc.want {
			t.Errorf("%v %v: %v, want %v", tc.code, tc.path, got, tc.want)
		}
	}
	if s := state(t, m); s.Version != 5 {
		t.Errorf("version %d after what was refused", s.Version)
	}
	if got := g.ask(coap.POST, rekeyOf(6), path...); got != coap.Changed {
		t.Errorf("a rekey: %v", got)
	}
	if s := state(t, m); s.Version != 6 || !s.Installed || kinds[len(kinds)-1] != "rekeyed control" {
		t.Errorf("version %d, events %q", s.Version, kinds)
	}
	if got := g.ask(coap.POST, rekeyOf(6), path...); got != coap.Changed {
		t.Errorf("the same again: %v", got)
	}
	if got := g.ask(coap.DELETE, nil, path...); got != coap.Deleted {
		t.Errorf("the notice of an eviction: %v", got)
	}
	if _, err := m.Num(t.Context()); !errors.Is(err, ErrEvicted) {
		t.Errorf("after the eviction: %v", err)
	}
	if _, err := New(Config{Group: "g1", Roles: 6, ControlURI: "://"}, g); err == nil {
		t.Error("a control_uri that is none")
	}
}

// A group that was deleted ends the membership with error 6.
func TestDeletionAtControlURI(t *testing.T) {
	g := &takingGM{fakeGM: newFakeGM(t)}
	m, err := New(Config{Group: "g1", Roles: 6, Transfer: g.transfer(), ControlURI: "coap://n/rek"}, g)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Join(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := g.ask(coap.POST, groupcomm.EncodeDeletionNotice(), "rek"); got != coap.Changed {
		t.Errorf("the notice: %v", got)
	}
	if _, err := m.Num(t.Context()); !errors.Is(err, ErrGroupDeleted) {
		t.Errorf("after it: %v", err)
	}
}
