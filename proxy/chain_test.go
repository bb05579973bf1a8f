package proxy

import (
	"bytes"
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/coaptest"
)

// TestGroupChain: a group behind two proxies (draft-ietf-core-groupcomm-proxy-07,
// Section 8): the time gets shorter on the way, who a response is from is what the
// last proxy said, early ends and observations go through, and what the next proxy
// says for itself is not taken for a member's response.
func TestGroupChain(t *testing.T) {
	lit := light(t, func(n int, m *coap.Message) *coap.Message {
		number := -1
		if m.Options.Has(coap.ObserveOption) {
			number = 10 + n
		}
		return state(n, uint16(n), m.Token, number, "on")
	})
	last := house(t, Config{Name: "last", Rules: []Rule{groupRule(lit.port)}}, nil)
	var instead atomic.Pointer[coap.HandlerFunc] // of the last proxy
	key := []byte("0123456789abcdef")
	keys := &psk{identity: "edge", key: key}
	next := serving(t, keys, func(ctx context.Context, req *coap.Request) (*coap.Response, error) {
		if f := instead.Load(); f != nil {
			return (*f)(ctx, req)
		}
		return last.p.ServeCoAP(ctx, req)
	})
	rule := groupRule(lit.port)
	rule.Addresses, rule.Interface, rule.Next = nil, "", next.target()
	rule.Credential = &Credential{Identity: []byte("edge"), Key: func() []byte { return key }}
	s := house(t, Config{Rules: []Rule{rule}}, nil)
	responses := make(chan *coap.Message, 16)
	l, newest := asking(t, s, responses)

	do(t, l, groupRequest(lit.port, 30))
	for range 2 {
		m := receive(t, responses)
		if v, _ := m.Options.Get(replyFrom); m.Code != coap.Content || !bytes.HasPrefix(v, []byte{0x82, 0x20, 0x82, 0x44, 127, 0, 0, m.Payload[0] - '0' + 1}) {
			t.Errorf("%v %q %+v", m.Code, m.Payload, m.Options)
		}
	}
	first := lit.requests()[0]
	if v, _ := next.request().Options.Uint(MulticastTimeout); v > 28 || v < 20 || first.Options.Has(MulticastTimeout) || first.Options.Has(coap.ProxyScheme) {
		t.Errorf("%d s at the next proxy, the group got %+v", v, first.Options)
	}
	if hops, _ := first.Options.Uint(coap.HopLimit); hops != defaultHops-1 {
		t.Errorf("Hop-Limit %d", hops)
	}
	early := coap.WithExchange(t.Context(), coap.Exchange{Token: newest()}, time.Now().Add(patience))
	stop := &coap.Request{Code: coap.GET, Peer: coap.Peer{Link: "a", Via: coap.DTLSPSK}}
	stop.Options.SetUint(MulticastTimeout, 0)
	if _, err := s.p.ServeCoAP(early, stop); !errors.Is(err, coap.ErrSilent) {
		t.Error(err)
	}
	eventually(t, "an Early Stop goes through", func() bool {
		return s.asked() == 0 && last.asked() == 0 && s.p.waiting.Load() == 0 && last.p.waiting.Load() == 0
	})

	// The time is too short for the way, here and further on.
	for asked, least := range map[uint32]uint32{1: 3, 2: 3, 5: 9} {
		if asked == 5 {
			f := coap.HandlerFunc(func(context.Context, *coap.Request) (*coap.Response, error) { return nil, tooShort(7) })
			instead.Store(&f)
		} else {
			instead.Store(nil)
		}
		r := do(t, l, groupRequest(lit.port, asked))
		receive(t, responses)
		if v, _ := r.Options.Uint(MulticastTimeout); r.Code != coap.ProxyingNotSupported || v != least {
			t.Errorf("%d s: %v, %d s would do", asked, r.Code, v)
		}
	}
	for code, want := range map[coap.Code]coap.Code{
		coap.Unauthorized: coap.BadGateway, coap.Content: coap.BadGateway, coap.ServiceUnavailable: coap.ServiceUnavailable, coap.HopLimitReached: coap.HopLimitReached,
	} {
		f := coap.HandlerFunc(func(context.Context, *coap.Request) (*coap.Response, error) { return &coap.Response{Code: code}, nil })
		instead.Store(&f)
		if r := do(t, l, groupRequest(lit.port, 30)); r.Code != want {
			t.Errorf("the next proxy answers %v: %v", code, r.Code)
		}
		receive(t, responses)
	}
	instead.Store(nil)

	// Nobody waits: the group is asked nevertheless.
	before := len(lit.requests())
	mute := groupRequest(lit.port, 0)
	mute.Peer = stop.Peer
	if _, err := s.p.ServeCoAP(t.Context(), mute); !errors.Is(err, coap.ErrSilent) {
		t.Error(err)
	}
	eventually(t, "the group is asked", func() bool { return len(lit.requests()) == before+1 })

	// Observed: notifications follow, until the client is gone.
	watch := groupRequest(lit.port, 30)
	watch.Options.SetUint(coap.ObserveOption, 0)
	do(t, l, watch)
	for range 2 {
		m := receive(t, responses)
		if v, ok := m.Options.Uint(coap.ObserveOption); !ok || v != uint32(10+m.Payload[0]-'0') || !m.Options.Has(replyFrom) {
			t.Errorf("%q %+v", m.Payload, m.Options)
		}
	}
	l.Close()
	eventually(t, "the group is told", func() bool {
		all := lit.requests()
		v, ok := all[len(all)-1].Options.Uint(coap.ObserveOption)
		return ok && v == 1 && s.asked() == 0 && last.asked() == 0
	})

	// The next proxy ends: who observes is told.
	l, _ = asking(t, s, responses)
	do(t, l, watch)
	receive(t, responses)
	receive(t, responses)
	s.p.mu.Lock()
	for _, u := range s.p.upstreams {
		u.mu.Lock()
		u.link.close()
		u.mu.Unlock()
	}
	s.p.mu.Unlock()
	if m := receive(t, responses); m.Code != coap.BadGateway || m.Options.Has(coap.ObserveOption) {
		t.Errorf("%v %+v", m.Code, m.Options)
	}
	l.Close()

	// The next proxy starts again: a request that comes then is asked once, over a
	// session of its own; as long as it is there the session stays.
	shakes := keys.shakes.Load()
	before = len(lit.requests())
	l, _ = asking(t, s, responses)
	for range 2 {
		do(t, l, groupRequest(lit.port, 30))
		receive(t, responses)
		receive(t, responses)
	}
	if keys.shakes.Load() != shakes+1 || len(lit.requests()) != before+2 {
		t.Errorf("%d handshakes, %d requests", keys.shakes.Load()-shakes, len(lit.requests())-before)
	}
	next.stop()
	next.run(next.at.String())
	s.p.patience = 100 * time.Millisecond
	if r := do(t, l, groupRequest(lit.port, 30)); r.Code != coap.Content {
		t.Errorf("after the start: %v %q", r.Code, r.Payload)
	}
	receive(t, responses)
	receive(t, responses)
	if keys.shakes.Load() != shakes+2 || len(lit.requests()) != before+3 {
		t.Errorf("after the start: %d handshakes, %d requests", keys.shakes.Load()-shakes, len(lit.requests())-before)
	}
	l.Close()

	// Nobody is there.
	dead, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	rule.Next, rule.Credential = Target{Scheme: CoAP, Host: "127.0.0.1", Port: uint16(dead.LocalAddr().(*net.UDPAddr).Port)}, nil
	_ = dead.Close()
	gone := house(t, Config{Rules: []Rule{rule}}, nil)
	if r := do(t, gone.client("a", coaptest.Options{}), groupRequest(lit.port, 30)); r.Code != coap.BadGateway {
		t.Errorf("nobody is there: %v", r.Code)
	}
}

// TestOvertaken: a further response of the next proxy that is here before the
// acknowledgement with the first one: both are taken, once.
func TestOvertaken(t *testing.T) {
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = pc.Close() }()
	s := house(t, Config{}, nil)
	conn, err := dialUDP(pc.LocalAddr().(*net.UDPAddr).AddrPort())
	if err != nil {
		t.Fatal(err)
	}
	d := newDatagrams(s.p, conn)
	defer d.close()
	later, first := make(chan string, 8), make(chan string, 1)
	go func() {
		m, err := d.observe(t.Context(), &coap.Message{Code: coap.GET}, "token", func(m *coap.Message) { later <- string(m.Payload) })
		if err != nil {
			first <- err.Error()
			return
		}
		first <- string(m.Payload)
	}()
	buf := make([]byte, 2048)
	n, from, err := pc.ReadFrom(buf)
	if err != nil {
		t.Fatal(err)
	}
	asked, err := coap.DecodeMessage(buf[:n])
	if err != nil {
		t.Fatal(err)
	}
	say := func(kind coap.Type, id uint16, body string, more ...coap.Option) {
		m := &coap.Message{Type: kind, ID: id, Code: coap.Content, Token: []byte("token"), Payload: []byte(body), Options: more}
		b, err := m.MarshalBinary()
		if err == nil {
			_, err = pc.WriteTo(b, from)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	who := opt(replyFrom, "12345")
	say(coap.NonConfirmable, 1, "second", who)
	say(coap.Acknowledgement, asked.ID, "no member's") // an old state of a resource that is observed
	say(coap.Acknowledgement, asked.ID, "first", who)
	say(coap.Acknowledgement, asked.ID, "first", who)
	say(coap.NonConfirmable, 2, "third", who)
	if a, b, c := <-first, <-later, <-later; a != "second" || b != "first" || c != "third" {
		t.Errorf("%q, %q, %q", a, b, c)
	}
}
