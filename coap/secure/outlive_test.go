package secure_test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/secure"
	"github.com/seed4911071e/groupgate/coap/serve"
)

// shore is a link that keeps what is sent, which nobody acknowledges.
type shore struct {
	peer coap.Peer
	home netip.Addr // of this machine

	mu   sync.Mutex
	sent []*coap.Message
}

func (s *shore) Peer() coap.Peer { return s.peer }

func (s *shore) Home() netip.Addr { return s.home }

func (s *shore) Send(m *coap.Message, done func(error)) {
	s.mu.Lock()
	s.sent = append(s.sent, m.Clone())
	s.mu.Unlock()
	done(nil)
}

func (s *shore) take() []*coap.Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.sent
	s.sent = nil
	return out
}

// notebook keeps the records of a layer or of a server core.
type notebook struct {
	mu   sync.Mutex
	recs [][]byte
}

func (n *notebook) Append(b []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.recs = append(n.recs, bytes.Clone(b))
}

func (*notebook) Commit(context.Context) error { return nil }
func (*notebook) Keeps(string) bool            { return true }

// life is one run of a gateway, with what it keeps.
type life struct {
	*gateway
	layer, core notebook
}

func (l *life) keep() {
	l.gateway.layer.Keep(&l.layer)
	l.srv.Keep(&l.core)
}

// restart begins the next life with what is kept of this one; dumped, with a snapshot
// of it.
func (l *life) restart(s *shelf, inner coap.HandlerFunc, dumped bool, carrier func(secure.Carrier) coap.Link) (next *life, links int) {
	l.t.Helper()
	if dumped {
		l.layer.recs, l.core.recs = nil, nil
		l.gateway.layer.Dump(l.layer.Append)
		l.srv.Dump(l.core.Append)
	}
	l.gateway.layer.Freeze()
	l.srv.Freeze()
	l.stop()
	var protected secure.Recovery
	var observers serve.Recovery
	for _, b := range l.layer.recs {
		if err := protected.Apply(b); err != nil {
			l.t.Fatal(err)
		}
	}
	for _, b := range l.core.recs {
		if err := observers.Apply(b); err != nil {
			l.t.Fatal(err)
		}
	}
	next = &life{gateway: start(l.t, s, inner)}
	all, err := next.gateway.layer.Restore(l.t.Context(), &protected, carrier)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, c := range all {
		next.srv.Restore(&observers, c)
	}
	next.keep()
	next.gateway.layer.Dump(next.layer.Append)
	next.srv.Dump(next.core.Append)
	return next, len(all)
}

// TestOutlive: what is observed with OSCORE goes on after a restart, over plain UDP and
// inside of an association that outlives it: the client, which knows of nothing, takes
// each notification, and no nonce is used twice. A request that was served before is not
// served again. What ended does not go on, and neither does a context that somebody else
// took meanwhile, or that may not be used any more.
func TestOutlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(1, 2, 3, 4)
		version := uint64(1)
		served := 0
		resource := topic(&version)
		inner := func(ctx context.Context, req *coap.Request) (*coap.Response, error) {
			served++
			return resource(ctx, req)
		}
		plain := &shore{
			peer: coap.Peer{Link: "p1", Via: coap.Plain, Addr: netip.MustParseAddrPort("192.0.2.1:5683")},
			home: netip.MustParseAddr("198.51.100.1"),
		}
		inside := &shore{peer: coap.Peer{Link: "d1", Via: coap.DTLSPSK}}
		foreign := &shore{peer: coap.Peer{Link: "t1", Via: coap.OSCORE}} // of a kind that does not outlive
		found := func(c secure.Carrier) coap.Link {
			switch {
			case c.Addr == plain.peer.Addr:
				if c.Home != plain.home {
					t.Errorf("reached from %v, not %v", c.Home, plain.home)
				}
				return plain
			case c.Link == "d1":
				return inside
			}
			return nil
		}
		l := &life{gateway: start(t, s, inner)}
		l.keep()
		register := func(id, token byte, over *shore) (c *client, open func(*coap.Message) string) {
			t.Helper()
			c = newClient(t, s, id)
			seen := nonces{t, map[string][]byte{}}
			m := get("t")
			m.Options.SetUint(coap.ObserveOption, 0)
			p, ex := c.protect(m)
			p.Token = []byte{token}
			r := l.srv.Handle(t.Context(), over, p)
			seen.add(p, r)
			if got := c.open(ex, r); !got.Options.Has(coap.ObserveOption) {
				t.Fatalf("not registered: %v", got.Code)
			}
			return c, func(n *coap.Message) string {
				seen.add(p, n)
				return string(c.open(ex, n).Payload)
			}
		}
		first, openPlain := register(1, 7, plain)
		_, openInside := register(2, 8, inside)
		register(3, 9, foreign)
		fourth, _ := register(4, 10, plain)
		plain.home = netip.MustParseAddr("2001:db8::1") // they use another address of this machine
		for _, c := range []*client{first, fourth} {
			p, ex := c.protect(get("t"))
			if r := c.open(ex, l.srv.Handle(t.Context(), plain, p)); r.Code != coap.Content {
				t.Fatal(r.Code)
			}
		}
		check := func(what string) {
			t.Helper()
			version++
			l.srv.Publish("t", coap.Notification{Version: version, Confirm: true, Body: &coap.Response{Code: coap.Content, Payload: fmt.Appendf(nil, "v%d", version)}})
			settle(time.Second)
			want := fmt.Sprint("v", version)
			for _, c := range []struct {
				over *shore
				open func(*coap.Message) string
			}{{plain, openPlain}, {inside, openInside}} {
				n := 0
				for _, m := range c.over.take() {
					if string(m.Token) == "\x0a" {
						continue
					}
					if n++; c.open(m) != want {
						t.Errorf("%s: another notification", what)
					}
				}
				if n != 1 {
					t.Errorf("%s: %d notifications, want one of %s", what, n, want)
				}
			}
		}
		check("before")
		links := 0
		for round := range 4 {
			l, links = l.restart(s, inner, round%2 == 1, found)
			if want := map[bool]int{true: 3, false: 2}[round == 0]; links != want {
				t.Errorf("round %d: %d contexts, want %d", round, links, want)
			}
			check(fmt.Sprint("round ", round))
			if round == 0 { // another gateway takes it
				s.mu.Lock()
				s.rows["\x04"].Epoch++
				s.mu.Unlock()
			}
		}
		// What was served before is not served again, though it is not known: it has to
		// be fresh.
		before := served
		replay, _ := first.protect(get("t"))
		l.srv.Handle(t.Context(), plain, replay)
		if served != before {
			t.Error("a request is served that has not proven to be fresh")
		}

		// An end is an end: by the client, of the token.
		l.srv.Cancel("oscore-2", []byte{8})
		s.end(1)
		l, links = l.restart(s, inner, false, found)
		if links != 1 { // the context of 2, with nothing to say
			t.Errorf("%d contexts at the end", links)
		}
		version++
		l.srv.Publish("t", coap.Notification{Version: version, Confirm: true, Body: &coap.Response{Code: coap.Content}})
		settle(time.Second)
		if a, b := plain.take(), inside.take(); len(a)+len(b) != 0 {
			t.Errorf("%d and %d notifications after the end", len(a), len(b))
		}
	})
}
