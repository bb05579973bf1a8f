package proxy

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/coaptest"
)

// seen collects what a client is told.
type seen struct {
	mu   sync.Mutex
	list []string
}

func (s *seen) take(r *coap.Response) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, fmt.Sprintf("%v %s", r.Code, r.Payload))
}

func (s *seen) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.list
}

func number(n uint32) coap.Option {
	var o coap.Options
	o.SetUint(coap.ObserveOption, n)
	return o[0]
}

// TestMerged: many observers, one observation at the upstream (RFC 7641, Section
// 5); order; re-registration when a notification is late; the end.
func TestMerged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		observable := func(state string, seq uint32) func(*coap.Message, int) *coap.Message {
			return func(m *coap.Message, _ int) *coap.Message {
				r := message(coap.Content, state, maxAge(60))
				if v, ok := m.Options.Uint(coap.ObserveOption); ok && v == 0 {
					r.Options.Add(coap.ObserveOption, number(seq).Value)
				}
				return r
			}
		}
		s, up := bubble(t, Rule{}, observable("one", 10))
		var links []*coaptest.Link
		var told []*seen
		var cancels []func(context.Context) error
		for i := range 5 {
			l := s.client(fmt.Sprint(i), coaptest.Options{})
			links, told = append(links, l), append(told, &seen{})
			cancel, err := l.Observe(t.Context(), proxied(coap.GET, there+"/a", nil), told[i].take)
			if err != nil {
				t.Fatal(err)
			}
			cancels = append(cancels, cancel)
		}
		if up.count() != 1 {
			t.Fatalf("%d registrations for five observers", up.count())
		}
		time.Sleep(time.Second)
		up.notify(message(coap.Content, "two", maxAge(60), number(12)))
		time.Sleep(time.Second)
		up.notify(message(coap.Content, "late one", maxAge(60), number(11))) // overtaken (Section 3.4)
		time.Sleep(time.Second)
		for i := range told {
			if got := fmt.Sprint(told[i].all()); got != "[2.05 one 2.05 two]" {
				t.Errorf("observer %d: %s", i, got)
			}
		}
		// A GET is served from the state that is known.
		if r := do(t, links[0], proxied(coap.GET, there+"/a", nil)); string(r.Payload) != "two" || up.count() != 1 {
			t.Errorf("GET: %s after %d requests", r.Payload, up.count())
		}
		// The upstream is started anew: it forgot everybody, and tells nothing.
		up.answers(observable("three", 3))
		time.Sleep(80 * time.Second)
		if up.count() != 2 {
			t.Errorf("%d requests: it was not registered anew after Max-Age", up.count())
		}
		for i := range told {
			if got := told[i].all(); got[len(got)-1] != "2.05 three" {
				t.Errorf("observer %d: %v", i, got)
			}
		}
		if a, b := up.at(0), up.at(1); !a.Options.Has(coap.ObserveOption) || !b.Options.Has(coap.ObserveOption) {
			t.Error("no registrations")
		}
		// Nobody is left: the upstream is told.
		for i := range cancels {
			if err := cancels[i](t.Context()); err != nil {
				t.Error(err)
			}
		}
		before := up.count()
		time.Sleep(linger + 2*sweepEvery)
		if v, ok := up.newest().Options.Uint(coap.ObserveOption); up.count() != before+1 || !ok || v != 1 {
			t.Errorf("%d requests, the last %+v: no deregistration", up.count()-before, up.newest().Options)
		}
		if up.observed() != 0 || s.relays() != 0 {
			t.Errorf("%d observations, %d relays are left", up.observed(), s.relays())
		}
		for _, l := range links {
			l.Close()
		}
		s.stop()
	})
}

// TestForgottenForEver: a server that says that its state lasts for ever, and is started
// anew, is asked again after the 24 hours in which it would have looked for its observer.
func TestForgottenForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, up := bubble(t, Rule{}, func(m *coap.Message, _ int) *coap.Message {
			r := message(coap.Content, "for ever", maxAge(1<<32-1))
			if m.Options.Has(coap.ObserveOption) {
				r.Options.Add(coap.ObserveOption, number(1).Value)
			}
			return r
		})
		l := s.client("a", coaptest.Options{})
		var told seen
		if _, err := l.Observe(t.Context(), proxied(coap.GET, there+"/a", nil), told.take); err != nil {
			t.Fatal(err)
		}
		time.Sleep(maxSilence)
		if n := up.count(); n != 1 {
			t.Errorf("%d requests in a day", n)
		}
		time.Sleep(lateMax)
		if n := up.count(); n != 2 {
			t.Errorf("%d requests after a day", n)
		}
		l.Close()
		s.stop()
	})
}

// TestObserveRefused: an upstream that does not register, or fails, or ends it.
func TestObserveRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, up := bubble(t, Rule{}, func(*coap.Message, int) *coap.Message { return message(coap.Content, "x", maxAge(0)) })
		l := s.client("a", coaptest.Options{})
		told := &seen{}
		if _, err := l.Observe(t.Context(), proxied(coap.GET, there+"/a", nil), told.take); err != coaptest.ErrNotObserved || len(told.all()) != 1 {
			t.Errorf("%v, %v", err, told.all())
		}
		up.answers(func(*coap.Message, int) *coap.Message { return message(coap.Content, "x", maxAge(0), number(1)) })
		if _, err := l.Observe(t.Context(), proxied(coap.GET, there+"/a", nil), told.take); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		up.notify(message(coap.NotFound, "gone"))
		time.Sleep(time.Second)
		if got := told.all(); got[len(got)-1] != "4.04 gone" || s.relays() != 0 || up.observed() != 0 {
			t.Errorf("%v, %d relays", got, s.relays())
		}
		// And one that is silent for long: the observers learn it.
		if _, err := l.Observe(t.Context(), proxied(coap.GET, there+"/b", nil), told.take); err != nil {
			t.Fatal(err)
		}
		up.answers(func(*coap.Message, int) *coap.Message { return nil })
		time.Sleep(2 * giveUp)
		if got := told.all(); got[len(got)-1][:4] != "5.03" && got[len(got)-1][:4] != "5.04" {
			t.Errorf("%v", got)
		}
		l.Close()
		s.stop()
	})
}

// TestProtected: an observation under OSCORE is one client's own, is passed on as
// it is, and its newest notification waits for the client to wake.
func TestProtected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, up := bubble(t, Rule{}, func(m *coap.Message, n int) *coap.Message {
			r := message(coap.Content, fmt.Sprintf("sealed %d", n), opt(coap.OSCOREOption, ""))
			if v, ok := m.Options.Uint(coap.ObserveOption); ok && v == 0 {
				r.Options.Add(coap.ObserveOption, []byte{1})
			}
			return r
		})
		a, b := s.client("a", coaptest.Options{}), s.client("b", coaptest.Options{})
		told := map[*coaptest.Link]*seen{a: {}, b: {}}
		var cancel func(context.Context) error
		for _, l := range []*coaptest.Link{a, b} {
			c, err := l.Observe(t.Context(), oscoreRequest(), told[l].take)
			if err != nil {
				t.Fatal(err)
			}
			cancel = c
		}
		if up.count() != 2 || up.observed() != 2 || s.protected() != 2 {
			t.Fatalf("%d requests, %d observations", up.count(), up.observed())
		}
		if m := up.newest(); !m.Options.Has(coap.OSCOREOption) || string(m.Payload) != "ciphertext" || len(m.Options.Path()) != 0 {
			t.Errorf("%+v %q", m.Options, m.Payload)
		}
		// a sleeps while three notifications come: it gets the newest when it wakes.
		a.Cut(true, true)
		for i := range 3 {
			up.notify(&coap.Message{Type: coap.Confirmable, Code: coap.Content, Payload: fmt.Appendf(nil, "note %d", i), Options: coap.Options{number(uint32(i + 2)), opt(coap.OSCOREOption, "")}})
			time.Sleep(3 * time.Minute)
		}
		if got := told[a].all(); len(got) != 1 {
			t.Fatalf("%v", got)
		}
		if got := told[b].all(); len(got) != 4 || got[3] != "2.05 note 2" {
			t.Fatalf("awake: %v", got)
		}
		a.Cut(false, false)
		do(t, a, proxied(coap.GET, there+"/sign-of-life", nil))
		time.Sleep(time.Second)
		if got := told[a].all(); got[len(got)-1] != "2.05 note 2" {
			t.Errorf("awake again: %v", got)
		}
		// b deregisters: protected, so it is passed on with the same token.
		before := up.count()
		if err := cancel(t.Context()); err != nil {
			t.Fatal(err)
		}
		if v, _ := up.newest().Options.Uint(coap.ObserveOption); up.count() != before+1 || v != 1 || up.observed() != 1 {
			t.Errorf("%d requests, Observe %d, %d observations", up.count()-before, v, up.observed())
		}
		// a is gone: its token is forgotten, so that the next notification is
		// rejected.
		s.core.Closed("a")
		time.Sleep(linger + 2*sweepEvery)
		if up.observed() != 0 || s.protected() != 0 {
			t.Errorf("%d observations, %d relays are left", up.observed(), s.protected())
		}
		a.Close()
		b.Close()
		s.stop()
	})
}

// TestProtectedUpstreamGone: nobody but the client can register anew, so it is
// told.
func TestProtectedUpstreamGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, up := bubble(t, Rule{}, func(*coap.Message, int) *coap.Message {
			return message(coap.Content, "sealed", opt(coap.OSCOREOption, ""), number(1))
		})
		l := s.client("a", coaptest.Options{})
		told := &seen{}
		if _, err := l.Observe(t.Context(), oscoreRequest(), told.take); err != nil {
			t.Fatal(err)
		}
		close(up.gone)
		time.Sleep(2 * sweepEvery)
		if got := told.all(); len(got) != 2 || got[1][:4] != "5.02" {
			t.Errorf("%v", got)
		}
		l.Close()
		s.stop()
	})
}

// TestObserveBlocks: over real sockets notifications in blocks arrive whole.
func TestObserveBlocks(t *testing.T) {
	state := make([]byte, 1000)
	var mu sync.Mutex
	version := uint64(1)
	o := serving(t, nil, func(_ context.Context, req *coap.Request) (*coap.Response, error) {
		mu.Lock()
		defer mu.Unlock()
		r := &coap.Response{Code: coap.Content, Payload: append([]byte(nil), state...)}
		r.Observe = &coap.Observation{Topic: "t", Version: version}
		return r, nil
	})
	s := house(t, Config{Rules: []Rule{forwardTo(o.target())}}, nil)
	l := s.client("a", coaptest.Options{BlockSize: 32})
	got := make(chan *coap.Response, 16)
	if _, err := l.Observe(t.Context(), proxied(coap.GET, o.target().String()+"/a", nil), func(r *coap.Response) { got <- r }); err != nil {
		t.Fatal(err)
	}
	for i := range uint64(3) {
		select {
		case r := <-got:
			if len(r.Payload) != 1000 || binary.BigEndian.Uint64(r.Payload) != i {
				t.Errorf("%d: %d bytes, %x", i, len(r.Payload), r.Payload[:8])
			}
		case <-time.After(patience):
			t.Fatal("no notification")
		}
		mu.Lock()
		version++
		binary.BigEndian.PutUint64(state, i+1)
		n := coap.Notification{Version: version, Body: &coap.Response{Code: coap.Content, Payload: append([]byte(nil), state...)}, Confirm: true}
		mu.Unlock()
		o.core.Publish("t", n)
	}
}
