package oscore

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
)

// A member with a store goes on after a restart with the keying material that it had:
// no number is used twice, what it accepted before is refused, and what is new is served
// without a challenge; a replay under a context that was deleted is refused as well.
//
// draft-ietf-core-oscore-groupcomm-28, Sections 2.6.1 and 5.3.
func TestGroupStore(t *testing.T) {
	s := newSite(t, bothModes)
	dir := t.TempDir()
	client, server := s.member("a", GroupConfig{}), (*Group)(nil)
	var file *GroupFile
	restart := func() {
		t.Helper()
		if file != nil {
			if err := file.Close(); err != nil {
				t.Fatal(err)
			}
		}
		file = openState(t, filepath.Join(dir, "b"))
		server = s.member("b", GroupConfig{Store: file, MaxRecipients: 1})
	}
	restart()
	other := s.member("c", GroupConfig{})
	used := map[string]bool{}
	number := func(m *coap.Message) {
		t.Helper()
		value, _ := m.Options.Get(coap.OSCOREOption)
		o := must(DecodeOption(value))
		if o.PIV != nil && used[string(o.PIV)] {
			t.Fatalf("number %x is used twice", o.PIV)
		}
		used[string(o.PIV)] = true
	}
	var seen []*coap.Message
	for round := range 4 {
		for _, mode := range []Mode{GroupMode, PairwiseMode} {
			req, x := ask(t, client, mode, "b", get("/x"))
			_, sx, err := server.UnprotectRequest(nil, req)
			if err != nil {
				t.Fatalf("round %d, %v mode: %v", round, mode, err)
			}
			seen = append(seen, req)
			if _, _, err := x.Unprotect(nil, wire(t, must(sx.Protect(t.Context(), nil, content("x"))))); err != nil {
				t.Fatal(err)
			}
			number(must(sx.Protect(t.Context(), nil, content("y")))) // has a number of its own
			own, _ := ask(t, server, mode, "a", get("/y"))
			number(own)
		}
		if round == 2 { // another member's context takes its place
			req, _ := ask(t, other, GroupMode, "", get("/z"))
			if _, _, err := server.UnprotectRequest(nil, req); err != nil {
				t.Fatal(err)
			}
		}
		if round%2 == 0 {
			restart()
		}
		for _, m := range seen {
			_, _, err := server.UnprotectRequest(nil, m)
			wantErr(t, "a replay", err, ErrReplay)
		}
	}
	if len(used) != 16 {
		t.Errorf("%d numbers, want 16", len(used))
	}

	// Without the store, what it knew is lost.
	_, err := NewGroup(GroupConfig{Creds: s.creds, Sequences: file, Store: file})
	if err == nil {
		t.Error("two places for sequence numbers")
	}
	g := must(NewGroup(GroupConfig{Creds: s.creds, Sequences: file}))
	wantErr(t, "without windows", g.Install(s.material, s.sender("b"), nil, false), ErrContextLost)
}

// A request that was received before a restart is answered after it, under a number that
// was never used, and not told again; one that was not received is not answered so.
func TestReopen(t *testing.T) {
	s := newSite(t, bothModes)
	name := filepath.Join(t.TempDir(), "b")
	client := s.member("a", GroupConfig{})
	for _, mode := range []Mode{GroupMode, PairwiseMode} {
		file := openState(t, name)
		server := s.member("b", GroupConfig{Store: file})
		req, x := ask(t, client, mode, "b", get("/x"))
		_, sx, err := server.UnprotectRequest(nil, req)
		if err != nil {
			t.Fatal(err)
		}
		must(sx.Protect(t.Context(), nil, content("done"))) // lost
		other, _ := ask(t, client, mode, "b", get("/x"))
		if err := file.Close(); err != nil {
			t.Fatal(err)
		}
		file = openState(t, name)
		server = s.member("b", GroupConfig{Store: file})
		if x, err := server.Reopen(other); err == nil || x != nil {
			t.Errorf("%v mode: a request that never came: %v", mode, x)
		}
		damaged := req.Clone()
		damaged.Payload[0] ^= 1
		if x, err := server.Reopen(damaged); err == nil || x != nil {
			t.Errorf("%v mode: a request of nobody: %v", mode, x)
		}
		again, err := server.Reopen(req)
		if err != nil {
			t.Fatal(err)
		}
		m := must(again.Protect(t.Context(), nil, content("later")))
		value, _ := m.Options.Get(coap.OSCOREOption)
		if o := must(DecodeOption(value)); o.PIV == nil {
			t.Errorf("%v mode: two responses may have the number of the request", mode)
		}
		got, _, err := x.Unprotect(nil, wire(t, m))
		if err != nil || string(got.Payload) != "later" {
			t.Errorf("%v mode: %v, %v", mode, got, err)
		}
		_, _, err = server.UnprotectRequest(nil, req)
		wantErr(t, "a replay", err, ErrReplay)
		if _, _, err := server.UnprotectRequest(nil, other); err != nil { // asked for in vain before
			t.Errorf("%v mode: %v", mode, err)
		}
		if err := file.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// badStore fails to keep windows.
type badStore struct {
	GroupStore
	bad error
}

func (b *badStore) Keep(name string, kid []byte, w WindowState) error {
	if b.bad != nil {
		return b.bad
	}
	return b.GroupStore.Keep(name, kid, w)
}

// What cannot be kept is not served, and not served later either.
func TestGroupStoreFails(t *testing.T) {
	s := newSite(t, bothModes)
	full := errors.New("the disk is full")
	store := &badStore{GroupStore: openState(t, filepath.Join(t.TempDir(), "b")), bad: full}
	client, server := s.member("a", GroupConfig{}), s.member("b", GroupConfig{Store: store})
	req, _ := ask(t, client, GroupMode, "", get("/x"))
	_, x, err := server.UnprotectRequest(nil, req)
	if wantErr(t, "a full disk", err, full); x != nil {
		t.Error("a request that was not kept")
	}
	store.bad = nil
	_, _, err = server.UnprotectRequest(nil, req)
	wantErr(t, "the same again", err, ErrReplay)
	req, _ = ask(t, client, GroupMode, "", get("/x"))
	if _, _, err = server.UnprotectRequest(nil, req); err != nil {
		t.Error(err)
	}
}

func TestWindowMerge(t *testing.T) {
	accept := func(numbers ...uint64) WindowState {
		var w Window
		w.Reset()
		for _, n := range numbers {
			w.Accept(n)
		}
		return w.State()
	}
	for _, c := range []struct{ a, b, want []uint64 }{
		{nil, nil, nil},
		{[]uint64{3}, nil, []uint64{3}},
		{[]uint64{3, 5}, []uint64{4}, []uint64{3, 4, 5}},
		{[]uint64{1}, []uint64{40}, []uint64{1, 40}},
		{[]uint64{1}, []uint64{1000}, []uint64{1000}},
	} {
		got, other := accept(c.a...).Merge(accept(c.b...)), accept(c.b...).Merge(accept(c.a...))
		if want := accept(c.want...); got != want || other != want {
			t.Errorf("%v and %v: %+v and %+v, want %+v", c.a, c.b, got, other, want)
		}
	}
}
