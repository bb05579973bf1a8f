package oscore

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// Two phases: at every moment of the switch each pair of members reads each other,
// wherever each of the two is: before it, prepared, or begun.
func TestTwoPhases(t *testing.T) {
	for _, algs := range []GroupAlgorithms{bothModes, {AEAD: bothModes.AEAD, KeyAgreement: bothModes.KeyAgreement}} {
		synctest.Test(t, func(t *testing.T) {
			const prepared, begun = 1, 2
			for client := range 3 {
				for server := range 3 {
					s := newSite(t, algs)
					c, v := s.member("c", GroupConfig{Grace: time.Minute}), s.member("s", GroupConfig{Grace: time.Minute})
					s.rekey(nil)
					for id, at := range map[string]int{"c": client, "s": server} {
						g := map[string]*Group{"c": c, "s": v}[id]
						if at >= prepared {
							if err := g.Prepare(s.material, s.sender(id)); err != nil {
								t.Fatal(err)
							}
						}
						if at == begun {
							if err := g.Activate(); err != nil {
								t.Fatal(err)
							}
						}
					}
					// What cannot work: one begun where the other knows nothing. That is what
					// the Group Manager waits for.
					hopeless := client == begun && server == 0 || server == begun && client == 0
					err := speak(t, c, v, "s", algs)
					if hopeless != (err != nil) {
						t.Errorf("client %d, server %d: %v", client, server, err)
					}
				}
			}
		})
	}
}

// speak sends a request and reads the response.
func speak(t *testing.T, client, server *Group, id string, algs GroupAlgorithms) error {
	t.Helper()
	protect := func() (*coap.Message, *GroupExchange, error) {
		return client.ProtectRequest(t.Context(), nil, get("/a"))
	}
	if algs.GroupEnc == 0 {
		protect = func() (*coap.Message, *GroupExchange, error) {
			return client.ProtectRequestTo(t.Context(), nil, []byte(id), get("/a"))
		}
	}
	m, x, err := protect()
	if err != nil {
		return err
	}
	_, r, err := server.UnprotectRequest(nil, m)
	if err != nil {
		return err
	}
	out, err := r.Protect(t.Context(), nil, &coap.Message{Code: coap.Content, Payload: []byte("b")})
	if err != nil {
		return err
	}
	_, _, err = x.Unprotect(nil, out)
	return err
}

// What was in use is read for the grace and not longer; another rekey discards what
// is prepared; nothing is prepared twice or without material in use.
func TestPreparedMaterial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, bothModes)
		a, b := s.member("a", GroupConfig{Grace: time.Minute}), s.member("b", GroupConfig{Grace: time.Minute})
		none := must(NewGroup(GroupConfig{Creds: s.creds}))
		if err := none.Prepare(s.material, s.sender("n")); !errors.Is(err, ErrNoMaterial) {
			t.Errorf("beside nothing: %v", err)
		}
		if err := a.Activate(); err == nil {
			t.Error("began with nothing")
		}
		old, _, err := b.ProtectRequest(t.Context(), nil, get("/old"))
		if err != nil {
			t.Fatal(err)
		}
		late, _, err := b.ProtectRequest(t.Context(), nil, get("/late"))
		if err != nil {
			t.Fatal(err)
		}
		s.rekey(nil)
		if err := a.Prepare(s.material, s.sender("a")); err != nil || a.Prepared() == nil {
			t.Fatal(err)
		}
		if err := a.Prepare(s.material, s.sender("a")); err == nil {
			t.Error("prepared twice")
		}
		if err := a.Activate(); err != nil || a.Prepared() != nil || string(a.Gid()) != string(s.material.Gid) {
			t.Fatalf("%v, %x", err, a.Gid())
		}
		time.Sleep(59 * time.Second)
		if _, _, err := a.UnprotectRequest(nil, old); err != nil {
			t.Errorf("within the grace: %v", err)
		}
		time.Sleep(time.Second)
		if _, _, err := a.UnprotectRequest(nil, late); !errors.Is(err, ErrContext) {
			t.Errorf("after the grace: %v", err)
		}
		// A leave while something is prepared: that is not begun with any more.
		s.rekey(nil)
		if err := a.Prepare(s.material, s.sender("a")); err != nil {
			t.Fatal(err)
		}
		s.rekey(map[string]*Group{"a": a})
		if a.Prepared() != nil || a.Activate() == nil {
			t.Error("what was prepared outlived another rekey")
		}
	})
}
