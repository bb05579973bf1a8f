package node

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
)

func sids(b ...byte) (ids []groupcomm.SenderID) {
	for _, x := range b {
		ids = append(ids, groupcomm.SenderID{x})
	}
	return ids
}

func peerIDs(s State) (ids []byte) {
	for _, p := range s.Peers {
		ids = append(ids, p.SenderID[0])
	}
	return ids
}

// draft-ietf-ace-key-groupcomm-oscore-21, Section 11.3: what a member that holds
// version 5 does with an offer.
func TestRekeyRules(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		offer groupcomm.Version
		full  bool
		want  verdict
		after groupcomm.Version // version after take
		peers string
	}{
		{"next", 6, false, installed, 6, "\x52"},
		{"same", 5, false, ignored, 5, "\x52\x77"},
		{"older", 4, false, ignored, 5, "\x52\x77"},
		{"zero", 0, false, ignored, 5, "\x52\x77"},
		{"one missed", 7, false, waiting, 5, "\x52\x77"},
		{"many missed", 1 << 40, false, waiting, 5, "\x52\x77"},
		{"the last number", ^uint64(0), false, waiting, 5, "\x52\x77"},
		{"same, whole map", 5, true, ignored, 5, "\x52\x77"},
		{"next, whole map", 6, true, waiting, 5, "\x52\x77"}, // it lacks the stale Sender IDs
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newFakeGM(t)
			g.peer(0x52, groupcomm.Requester)
			g.peer(0x77, groupcomm.Responder)
			m, _ := joinedMember(t, g, nil)
			body, decode := rekeyOf(c.offer, sids(0x77, 0x99)...), offerRekey
			if c.full {
				body, decode = g.full(c.offer).Encode(), offerFull
			}
			o, err := decode(body, ViaObserve)
			if err != nil {
				t.Fatal(err)
			}
			if got := m.take(o); got != c.want {
				t.Errorf("verdict %d, want %d", got, c.want)
			}
			s := state(t, m)
			if s.Version != c.after || string(peerIDs(s)) != c.peers || !s.Installed {
				t.Errorf("version %d, peers %x", s.Version, peerIDs(s))
			}
			if c.want == installed && (string(s.MasterSecret.Bytes()) != string(secretOf(6)) || s.MasterSalt != nil || s.SenderID.String() != "25") {
				t.Errorf("material %+v", s)
			}
		})
	}
}

// draft-ietf-ace-key-groupcomm-oscore-21, Section 11.3: the old material is
// deleted, the new one not used before stale-sids answered.
func TestMissedRekey(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		stale []groupcomm.SenderID
		peers string
	}{
		{"some stale", sids(0x52), "\x77"},
		{"none stale", []groupcomm.SenderID{}, "\x52\x77"},
		{"further back than the Group Manager remembers", nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newFakeGM(t)
			g.peer(0x52, groupcomm.Requester)
			g.peer(0x77, groupcomm.Responder)
			m, events := joinedMember(t, g, nil)
			g.num, g.stale = 8, c.stale
			// While stale-sids is asked for nothing is usable.
			g.spoil = func(req *coap.Request, _ *coap.Response) {
				if req.Code == coap.FETCH {
					if s := m.state; s.Installed || !s.MasterSecret.IsZero() || s.Version != 5 {
						t.Errorf("during the procedure: %+v", s)
					}
				}
			}
			if err := m.Poll(t.Context()); err != nil {
				t.Fatal(err)
			}
			s := state(t, m)
			if s.Version != 8 || !s.Installed || string(s.MasterSecret.Bytes()) != string(secretOf(8)) || string(peerIDs(s)) != c.peers {
				t.Errorf("state %+v", s)
			}
			var kinds []string
			for _, e := range *events {
				kinds = append(kinds, e.Kind)
			}
			if !slices.Equal(kinds, []string{Joined, Missed, Rekeyed}) {
				t.Errorf("events %v", kinds)
			}
			// The Group Manager learns that version 8 is held.
			if g.held[len(g.held)-1] != 8 {
				t.Errorf("versions shown %v", g.held)
			}
		})
	}
}

// A failed stale-sids leaves the member without usable material, and the next
// poll completes.
func TestMissedRekeyRetries(t *testing.T) {
	t.Parallel()
	g := newFakeGM(t)
	m, _ := joinedMember(t, g, nil)
	g.num = 8
	for _, spoiled := range []*coap.Response{
		reply(coap.ServiceUnavailable, 0, nil),
		reply(coap.Content, coap.CBOR, []byte{0x81}),
		reply(coap.Content, coap.CBOR, []byte{0x81, 0x01}),
		reply(coap.Content, coap.CBOR, []byte{0xa0}),
	} {
		g.spoil = func(req *coap.Request, r *coap.Response) {
			if req.Code == coap.FETCH {
				*r = *spoiled
			}
		}
		if err := m.Poll(t.Context()); err == nil {
			t.Fatal("no error")
		}
		if s := state(t, m); s.Installed || s.Version != 5 || !s.MasterSecret.IsZero() {
			t.Errorf("state %+v", s)
		}
	}
	g.spoil = nil
	if err := m.Poll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := state(t, m); !s.Installed || s.Version != 8 {
		t.Errorf("state %+v", s)
	}
}

// Every bad answer to a poll is refused with the state as it was.
func TestPollRefuses(t *testing.T) {
	t.Parallel()
	g := newFakeGM(t)
	good := g.full(6).Encode()
	for name, body := range map[string][]byte{
		"empty": nil, "truncated": good[:len(good)-1], "trailing": append(slices.Clone(good), 0), "rekey message": rekeyOf(6)[:20],
		"short secret": func() []byte { kd := g.full(6); kd.Key.MasterSecret = []byte("x"); return kd.Encode() }(),
	} {
		m, _ := joinedMember(t, g, nil)
		g.spoil = func(req *coap.Request, r *coap.Response) {
			if req.Code == coap.GET {
				*r = *reply(coap.Content, coap.ACEGroupcomm, body)
			}
		}
		if err := m.Poll(t.Context()); !errors.Is(err, ErrBadAnswer) {
			t.Errorf("%s: %v", name, err)
		}
		g.spoil = nil
		if s := state(t, m); s.Version != 5 || !s.Installed {
			t.Errorf("%s: state %+v", name, s)
		}
	}
}

func TestETag(t *testing.T) {
	t.Parallel()
	for v, want := range map[groupcomm.Version]string{0: "\x00", 1: "\x01", 255: "\xff", 256: "\x01\x00", 1 << 56: "\x01\x00\x00\x00\x00\x00\x00\x00"} {
		if got := string(etag(v)); got != want {
			t.Errorf("etag(%d) = %x, want %x", v, got, want)
		}
	}
}

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

// A bad notification is dropped and the registration made anew.
func TestFollowBadNotification(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]*coap.Response{
		"truncated":    reply(coap.Content, coap.ACEGroupcomm, rekeyOf(6)[:30]),
		"no stale ids": reply(coap.Content, coap.ACEGroupcomm, newFakeGM(t).full(6).Encode()),
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
