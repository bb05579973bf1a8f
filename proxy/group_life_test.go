package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/coaptest"
)

// lamps are two members of a group that keep what came, and can speak unasked.
type lamps struct {
	mu    sync.Mutex
	asked []*coap.Message
	reply func(n int, m *coap.Message) *coap.Message // nil: silence
	port  uint16
}

func light(t *testing.T, reply func(n int, m *coap.Message) *coap.Message) *lamps {
	t.Helper()
	l := &lamps{reply: reply}
	l.port = members(t, 2, func(n int, m *coap.Message) []*coap.Message {
		l.mu.Lock()
		defer l.mu.Unlock()
		if n == 0 {
			l.asked = append(l.asked, m)
		}
		if r := l.reply(n, m); r != nil {
			return []*coap.Message{r}
		}
		return nil
	})
	return l
}

func (l *lamps) requests() []*coap.Message {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*coap.Message(nil), l.asked...)
}

// state is a response of a lamp; observe below 0: without the option.
func state(n int, id uint16, tok []byte, observe int, body string) *coap.Message {
	m := &coap.Message{Type: coap.NonConfirmable, ID: id, Code: coap.Content, Token: tok, Payload: fmt.Appendf(nil, "%d %s", n, body)}
	if observe >= 0 {
		m.Options.SetUint(coap.ObserveOption, uint32(observe))
	}
	return m
}

func groupRule(port uint16) Rule {
	return Rule{Host: testGroup + "/32", Scheme: CoAP, Port: port, Interface: "lo", Addresses: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
}

// asking is a client of the group; what it gets comes by responses.
func asking(t *testing.T, s *site, responses chan *coap.Message) (l *coaptest.Link, newest func() []byte) {
	var mu sync.Mutex
	var tok []byte
	l = s.client("a", coaptest.Options{Patient: true, Trace: func(toServer bool, m *coap.Message) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case toServer && m.Code.IsRequest():
			tok = bytes.Clone(m.Token)
		case !toServer && m.Code != coap.Empty:
			responses <- m.Clone()
		}
	}})
	return l, func() []byte { mu.Lock(); defer mu.Unlock(); return tok }
}

func receive(t *testing.T, responses chan *coap.Message) *coap.Message {
	t.Helper()
	select {
	case m := <-responses:
		return m
	case <-time.After(patience):
		t.Fatal("no response")
		return nil
	}
}

func (s *site) asked() int {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	return len(s.p.asked)
}

func groupRequest(port uint16, timeout uint32) *coap.Request {
	req := proxied(coap.GET, fmt.Sprintf("coap://%s:%d/lamp", testGroup, port), nil)
	req.Options.SetUint(MulticastTimeout, timeout)
	return req
}

// TestGroupEarlyEnd: relaying ends before its time by an Early Stop Request, by a
// Reset, by another request with the token, and with the client
// (draft-ietf-core-groupcomm-proxy, Sections 5.1.3 and 5.2.3).
func TestGroupEarlyEnd(t *testing.T) {
	lit := light(t, func(n int, m *coap.Message) *coap.Message { return state(n, uint16(n), m.Token, -1, "on") })
	s := house(t, Config{Rules: []Rule{groupRule(lit.port)}}, nil)
	stop := &coap.Request{Code: coap.GET, Peer: coap.Peer{Link: "a", Via: coap.DTLSPSK}}
	stop.Options.SetUint(MulticastTimeout, 0)
	if !s.p.Takes(stop.Options) {
		t.Error("an Early Stop Request is the proxy's")
	}
	if added := append(stop.Options.Clone(), coap.Option{ID: coap.OSCOREOption, Value: []byte{9, 1, 1}}); s.p.Takes(added) {
		t.Error("what anybody may have added to a protected request ends one to a group")
	}
	for _, c := range []struct {
		name string
		end  func(l *coaptest.Link, tok []byte)
	}{
		{"Early Stop Request", func(_ *coaptest.Link, tok []byte) {
			other := coap.WithExchange(t.Context(), coap.Exchange{Token: []byte("other")}, time.Now().Add(patience))
			if _, err := s.p.ServeCoAP(other, stop); !errors.Is(err, coap.ErrSilent) || s.asked() != 1 {
				t.Errorf("another token: %v, %d", err, s.asked())
			}
			ctx := coap.WithExchange(t.Context(), coap.Exchange{Token: tok}, time.Now().Add(patience))
			if _, err := s.p.ServeCoAP(ctx, stop); !errors.Is(err, coap.ErrSilent) {
				t.Error(err)
			}
		}},
		{"Reset", func(_ *coaptest.Link, tok []byte) { s.core.Cancel("a", tok) }}, // as links do that got one
		{"the token for another request", func(_ *coaptest.Link, tok []byte) {
			ctx := coap.WithExchange(t.Context(), coap.Exchange{Token: tok}, time.Now().Add(patience))
			again := groupRequest(lit.port, 0)
			again.Peer = stop.Peer
			if _, err := s.p.ServeCoAP(ctx, again); !errors.Is(err, coap.ErrSilent) {
				t.Error(err)
			}
		}},
		{"the client is gone", func(l *coaptest.Link, _ []byte) { l.Close() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			responses := make(chan *coap.Message, 16)
			l, newest := asking(t, s, responses)
			defer l.Close()
			do(t, l, groupRequest(lit.port, 200))
			receive(t, responses)
			receive(t, responses)
			if s.asked() != 1 {
				t.Fatalf("%d requests to the group", s.asked())
			}
			c.end(l, newest())
			eventually(t, "it is over", func() bool { return s.asked() == 0 && s.p.waiting.Load() == 0 })
		})
	}
	bad := *stop
	bad.Code = coap.POST
	if r := s.ask(&bad); r.Code != coap.BadRequest {
		t.Errorf("an Early Stop Request that is no GET: %v", r.Code)
	}
}

// TestGroupObserved: the members' notifications are relayed after the time of the
// request as well, each with its own number and who it is from, until none has the
// observation any more (Sections 5.2.2 and 5.4.2).
func TestGroupObserved(t *testing.T) {
	lit := light(t, func(n int, m *coap.Message) *coap.Message { return state(n, uint16(n), m.Token, 10+n, "on") })
	s := house(t, Config{Rules: []Rule{groupRule(lit.port)}, GroupTimeout: 100 * time.Millisecond}, nil)
	responses := make(chan *coap.Message, 16)
	l, _ := asking(t, s, responses)
	req := groupRequest(lit.port, 30)
	req.Options.SetUint(coap.ObserveOption, 0)
	do(t, l, req)
	receive(t, responses)
	receive(t, responses)
	first := lit.requests()[0]
	if v, ok := first.Options.Uint(coap.ObserveOption); !ok || v != 0 || first.Type != coap.NonConfirmable {
		t.Fatalf("%v %+v", first.Type, first.Options)
	}
	s.p.mu.Lock()
	var g *asked
	for _, g = range s.p.asked {
	}
	s.p.mu.Unlock()
	eventually(t, "the time of the request is over", func() bool { return s.p.waiting.Load() == 0 })
	to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), g.conn.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	speak := func(n int, m *coap.Message) {
		t.Helper()
		// From a port of its own: a member the proxy has not heard yet.
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, byte(n+1))})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		b, err := m.MarshalBinary()
		if err == nil {
			_, err = c.WriteToUDPAddrPort(b, to)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	speak(5, state(5, 500, first.Token, -1, "late and no notification"))
	speak(6, state(6, 501, []byte("12345678"), 1, "of nobody"))
	speak(7, state(7, 502, first.Token, 77, "new"))
	m := receive(t, responses)
	number, ok := m.Options.Uint(coap.ObserveOption)
	if v, _ := m.Options.Get(replyFrom); string(m.Payload) != "7 new" || !ok || number != 77 || !bytes.Contains(v, []byte{127, 0, 0, 8}) || m.Type != coap.NonConfirmable {
		t.Errorf("%v %q %+v", m.Type, m.Payload, m.Options)
	}
	l.Close()
	eventually(t, "the group is told", func() bool {
		all := lit.requests()
		v, ok := all[len(all)-1].Options.Uint(coap.ObserveOption)
		return ok && v == 1 && bytes.Equal(all[len(all)-1].Token, first.Token) && s.asked() == 0
	})
}

// TestGroupMembers: what a registration does with the members' messages, and when it
// is made anew.
func TestGroupMembers(t *testing.T) {
	lit := light(t, func(int, *coap.Message) *coap.Message { return nil })
	s := house(t, Config{Rules: []Rule{groupRule(lit.port)}}, nil)
	req := groupRequest(lit.port, 30)
	req.Options.SetUint(coap.ObserveOption, 0)
	req.Peer = coap.Peer{Link: "a", Via: coap.DTLSPSK}
	f, _, err := s.p.classify(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	g, err := s.p.askGroup(t.Context(), f, netip.MustParseAddr(testGroup), true, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer g.finish()
	g.end = time.Now().Add(patience)
	at := netip.MustParseAddrPort("192.0.2.50:5683")
	relayed := func(m *coap.Message) bool {
		m.Token = []byte(g.token)
		b, err := m.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		return g.response(t.Context(), b, at) != nil
	}
	for _, c := range []struct {
		name  string
		m     *coap.Message
		want  bool
		known int
	}{
		{"a response", state(1, 1, nil, -1, "x"), true, 0},
		{"its copy", state(1, 1, nil, -1, "x"), false, 0},
		{"a registration", state(1, 2, nil, 5, "x"), true, 1},
		{"an older number", state(1, 3, nil, 4, "x"), false, 1},
		{"a newer number", state(1, 4, nil, 6, "x"), true, 1},
		{"the end", state(1, 5, nil, -1, "x"), true, 0},
		{"anew", state(1, 6, nil, 7, "x"), true, 1},
	} {
		if got := relayed(c.m); got != c.want || len(g.members) != c.known {
			t.Errorf("%s: relayed %v, %d members", c.name, got, len(g.members))
		}
	}
	now := time.Now()
	if d := g.again.Sub(now); d < defaultMaxAge+lateMin-time.Second || d > defaultMaxAge+lateMax {
		t.Errorf("the registration is made anew after %v", d)
	}
	for i := range maxRetransmit + 1 {
		now = g.members[at].late
		g.registerAgain(now)
		if gone := i == maxRetransmit; gone != (len(g.members) == 0) || gone != g.again.IsZero() {
			t.Fatalf("after %d times: %d members, again %v", i+1, len(g.members), g.again)
		}
	}
	eventually(t, "the group was asked again", func() bool { return len(lit.requests()) == 1+maxRetransmit })
	for _, m := range lit.requests() {
		if v, ok := m.Options.Uint(coap.ObserveOption); !ok || v != 0 || string(m.Token) != g.token {
			t.Errorf("%+v", m.Options)
		}
	}
	g.end = time.Now().Add(-time.Second)
	if _, err := g.next(t.Context()); !errors.Is(err, errSilent) {
		t.Errorf("nobody is observed, and the time is over: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	g.end = time.Now().Add(patience)
	if _, err := g.next(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestGroupByPath: a path leads to a group (Section 6): without Multicast-Timeout the
// proxy shows what it is; who may not is told 4.01.
func TestGroupByPath(t *testing.T) {
	lit := light(t, func(n int, m *coap.Message) *coap.Message { return state(n, uint16(n), m.Token, -1, "on") })
	rule := groupRule(lit.port)
	rule.Host, rule.Prefix, rule.Upstream, rule.Path, rule.List = "", []string{"lamps"}, Target{CoAP, testGroup, lit.port}, []string{"lamp"}, true
	s := house(t, Config{Rules: []Rule{rule, {Host: testGroup + "/32", Scheme: CoAP, Port: lit.port, Peers: []string{"psk:other"}}}}, nil)
	responses := make(chan *coap.Message, 16)
	l, _ := asking(t, s, responses)
	req := &coap.Request{Code: coap.GET}
	req.Options.SetPath("lamps", "hall")
	r := do(t, l, req)
	if v, ok := r.Options.Get(MulticastTimeout); r.Code != coap.BadRequest || !ok || len(v) != 0 {
		t.Errorf("%v %+v", r.Code, r.Options)
	}
	receive(t, responses)
	req.Options.SetUint(MulticastTimeout, 30)
	do(t, l, req)
	for range 2 {
		if m := receive(t, responses); m.Code != coap.Content || !m.Options.Has(replyFrom) {
			t.Errorf("%v %+v", m.Code, m.Options)
		}
	}
	if path := lit.requests()[0].Options.Path(); len(path) != 2 || path[0] != "lamp" || path[1] != "hall" {
		t.Errorf("%q", path)
	}
	if links := s.p.Links(t.Context(), coap.Peer{Via: coap.DTLSPSK}); len(links) != 1 || links[0].Target != "/lamps" {
		t.Errorf("%+v", links)
	}
	if r := do(t, l, groupRequest(lit.port, 5)); r.Code != coap.Unauthorized {
		t.Errorf("no rule: %v", r.Code)
	}
}
