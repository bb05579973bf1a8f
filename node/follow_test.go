package node

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// followed runs Follow and tells its error.
func followed(t *testing.T, m *Member) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- m.Follow(ctx) }()
	synctest.Wait()
	return func() error {
		cancel()
		return <-over
	}
}

func TestFollow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newFakeGM(t)
		g.peer(0x52, groupcomm.Requester)
		m, events := joinedMember(t, g, nil)
		stop := followed(t, m)

		g.rekey(6)
		if s := state(t, m); s.Version != 6 { // installed before the notification is acknowledged
			t.Errorf("version %d", s.Version)
		}
		g.rekey(6) // a repeated one
		g.rekey(7, sids(0x52)...)
		synctest.Wait()
		if s := state(t, m); s.Version != 7 || len(s.Peers) != 0 {
			t.Errorf("state %+v", s)
		}
		g.rekey(11) // 8 to 10 were lost
		synctest.Wait()
		if s := state(t, m); s.Version != 11 || !s.Installed {
			t.Errorf("state %+v", s)
		}
		if err := stop(); !errors.Is(err, context.Canceled) {
			t.Errorf("Follow: %v", err)
		}
		var got []groupcomm.Version
		for _, e := range *events {
			if e.Kind == Rekeyed {
				got = append(got, e.Version)
			}
		}
		if !slices.Equal(got, []groupcomm.Version{6, 7, 11}) {
			t.Errorf("rekeyed to %v", got)
		}
	})
}

// A registration shows by its ETag which version is held, and its first
// response brings what was missed.
func TestFollowCatchesUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newFakeGM(t)
		m, _ := joinedMember(t, g, nil)
		g.num = 6
		stop := followed(t, m)
		if s := state(t, m); s.Version != 6 {
			t.Errorf("version %d", s.Version)
		}
		i := slices.IndexFunc(g.requests, func(r *coap.Request) bool {
			_, observe := r.Observe()
			return observe && len(r.Path()) == 2
		})
		if tag, ok := g.requests[i].Options.Get(coap.ETag); !ok || versionOf(tag) != 5 {
			t.Errorf("ETag %x", tag)
		}
		_ = stop()
	})
}

func TestFollowEnds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		tell func(*fakeGM)
		want error
		kind string
		kept bool
	}{
		{"evicted", func(g *fakeGM) { g.node(coap.ErrorResponse(groupcomm.ErrTerminated)) }, ErrEvicted, Evicted, false},
		{"group deleted", func(g *fakeGM) { g.notify(coap.ErrorResponse(groupcomm.ErrGroupDeleted)) }, ErrGroupDeleted, Deleted, false},
		{"not a member", func(g *fakeGM) { g.notify(coap.ErrorResponse(groupcomm.ErrNotMember)) }, ErrNotMember, Evicted, false},
		{"token expired", func(g *fakeGM) { g.notify(reply(coap.Unauthorized, 0, nil)) }, ErrUnauthorized, Refused, true},
		{"token expired, told at the node resource", func(g *fakeGM) { g.node(reply(coap.Unauthorized, 0, nil)) }, ErrUnauthorized, Refused, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newFakeGM(t)
				m, events := joinedMember(t, g, nil)
				stop := followed(t, m)
				c.tell(g)
				synctest.Wait()
				if err := stop(); !errors.Is(err, c.want) {
					t.Errorf("Follow: %v, want %v", err, c.want)
				}
				if _, ok := m.State(); ok != c.kept {
					t.Errorf("state kept: %v", ok)
				}
				if !c.kept {
					if last := (*events)[len(*events)-1]; last.Kind != c.kind {
						t.Errorf("event %+v", last)
					}
					if _, err := m.Num(t.Context()); !errors.Is(err, c.want) {
						t.Errorf("later request: %v", err)
					}
				}
			})
		})
	}
}

func TestFollowLeave(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newFakeGM(t)
		m, _ := joinedMember(t, g, nil)
		stop := followed(t, m)
		if err := m.Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := stop(); err != nil {
			t.Errorf("Follow: %v", err)
		}
		if err := m.Leave(t.Context()); !errors.Is(err, ErrNotJoined) {
			t.Errorf("second Leave: %v", err)
		}
		// A node that left may come back.
		if err := m.Join(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// After the association is lost the node dials again with the same key, and
// registers anew.
func TestFollowRedials(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newFakeGM(t)
		next := newFakeGM(t)
		next.num, next.member = 9, true
		fails := 3
		m, _ := joinedMember(t, g, func(c *Config) {
			c.Redial = func(context.Context) (Transport, error) {
				if fails--; fails >= 0 {
					return nil, ErrLost
				}
				return next, nil
			}
		})
		stop := followed(t, m)
		start := time.Now()
		g.lose()
		<-next.want
		synctest.Wait()
		if s := state(t, m); s.Version != 9 {
			t.Errorf("version %d", s.Version)
		}
		if !g.closed {
			t.Error("the lost association was not closed")
		}
		if d := time.Since(start); d < 8*time.Second || d > 25*time.Second { // 1+2+4+8 s
			t.Errorf("back after %v", d)
		}
		_ = stop()
	})
}

func TestFollowLostForGood(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newFakeGM(t)
		m, _ := joinedMember(t, g, nil)
		stop := followed(t, m)
		g.lose()
		synctest.Wait()
		if err := stop(); !errors.Is(err, ErrLost) {
			t.Errorf("Follow: %v", err)
		}
	})
}

// withoutStale takes stale_node_ids (34) out of a rekey message.
func withoutStale(t *testing.T, body []byte) []byte {
	t.Helper()
	var m map[int64]any
	if err := cose.Unmarshal(body, &m); err != nil || m[34] == nil {
		t.Fatal(m, err)
	}
	delete(m, 34)
	return cose.MustMarshal(m)
}

// A bad notification is dropped and the registration made anew.
func TestFollowBadNotification(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]*coap.Response{
		"truncated":    reply(coap.Content, coap.ACEGroupcomm, rekeyOf(6)[:30]),
		"no stale ids": reply(coap.Content, coap.ACEGroupcomm, withoutStale(t, rekeyOf(6))),
		"5.00":         reply(coap.InternalServerError, 0, nil),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newFakeGM(t)
				m, _ := joinedMember(t, g, nil)
				stop := followed(t, m)
				<-g.want
				g.num = 6
				g.notify(r)
				if s := state(t, m); s.Version != 5 || !s.Installed {
					t.Errorf("state %+v", s)
				}
				<-g.want
				synctest.Wait()
				if s := state(t, m); s.Version != 6 {
					t.Errorf("version %d", s.Version)
				}
				_ = stop()
			})
		})
	}
}

// Polling finds what no notification told.
func TestFollowPolls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newFakeGM(t)
		m, _ := joinedMember(t, g, func(c *Config) { c.PollEvery = time.Minute })
		stop := followed(t, m)
		g.mu.Lock()
		g.num = 6
		g.mu.Unlock()
		time.Sleep(61 * time.Second)
		synctest.Wait()
		if s := state(t, m); s.Version != 6 {
			t.Errorf("version %d", s.Version)
		}
		_ = stop()
	})
}

func TestFollowTwice(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newFakeGM(t)
		m, err := New(Config{Group: "g1", Roles: groupcomm.Requester, Transfer: g.transfer()}, g)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Follow(t.Context()); !errors.Is(err, ErrNotJoined) {
			t.Errorf("before the join: %v", err)
		}
		m, _ = joinedMember(t, g, nil)
		stop := followed(t, m)
		if err := m.Follow(t.Context()); err == nil {
			t.Error("two at a time")
		}
		_ = stop()
	})
}

func TestResources(t *testing.T) {
	t.Parallel()
	g := newFakeGM(t)
	m, _ := joinedMember(t, g, nil)
	if v, err := m.Num(t.Context()); err != nil || v != 5 {
		t.Errorf("Num %d, %v", v, err)
	}
	g.peer(0x52, groupcomm.Requester)
	g.peer(0x25, groupcomm.Requester) // the node itself
	peers, err := m.Creds(t.Context())
	if err != nil || len(peers) != 1 || string(peerIDs(state(t, m))) != "\x52" {
		t.Errorf("Creds %v, %v", peers, err)
	}
	g.num, g.stale = 7, sids(1, 2)
	if ids, all, err := m.StaleSIDs(t.Context()); err != nil || all || len(ids) != 2 {
		t.Errorf("StaleSIDs %v, %v, %v", ids, all, err)
	}
	if err := m.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, call := range map[string]func() error{
		"Num":       func() error { _, err := m.Num(t.Context()); return err },
		"Creds":     func() error { _, err := m.Creds(t.Context()); return err },
		"StaleSIDs": func() error { _, _, err := m.StaleSIDs(t.Context()); return err },
		"Poll":      func() error { return m.Poll(t.Context()) },
		"Rejoin":    func() error { return m.Rejoin(t.Context()) },
	} {
		if err := call(); !errors.Is(err, ErrNotJoined) {
			t.Errorf("%s after leaving: %v", name, err)
		}
	}
}
