package serve_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/coaptest"
	"github.com/seed4911071e/groupgate/coap/serve"
)

// RFC 7641, Sections 3.1, 3.6 and 4.2.
func TestObserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &room{version: 1}
		s := start(t, r, serve.Config{})
		l := link(t, s, coaptest.Options{})
		box, cancel := observe(t, l, get("/t"))
		want(t, "observers", s.Observers("t"), "[client]")
		var out outcomes
		n := r.set(2)
		n.Done = out.done
		s.Publish("t", n)
		settle(time.Second)
		want(t, "inbox", box, "[2.05 v1 2.05 v2]")
		want(t, "outcomes", &out, "[client 2 <nil>]")

		s.Publish("t", n) // again: known already
		n = r.set(1)
		s.Publish("t", n) // older
		settle(time.Second)
		want(t, "inbox", box, "[2.05 v1 2.05 v2]")

		if err := cancel(t.Context()); err != nil {
			t.Fatal(err)
		}
		want(t, "observers", s.Observers("t"), "[]")
		s.Publish("t", r.set(3))
		settle(time.Second)
		want(t, "inbox", box, "[2.05 v1 2.05 v2]")
	})
}

// A version that is replaced while another is in flight is never sent, and
// Done is silent about it.
func TestNewestWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &room{version: 1}
		s := start(t, r, serve.Config{})
		l := link(t, s, coaptest.Options{Delay: 100 * time.Millisecond})
		box, _ := observe(t, l, get("/t"))
		var out outcomes
		for v := range uint64(5) {
			n := r.set(v + 2)
			n.Done = out.done
			s.Publish("t", n)
		}
		settle(time.Second)
		want(t, "inbox", box, "[2.05 v1 2.05 v2 2.05 v6]")
		want(t, "outcomes", &out, "[client 2 <nil> client 6 <nil>]")
	})
}

// RFC 7252, Section 4.7: one confirmable message at a time, over all topics.
func TestOneInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := coap.HandlerFunc(func(_ context.Context, req *coap.Request) (*coap.Response, error) {
			return &coap.Response{Code: coap.Content, Observe: &coap.Observation{Topic: req.Path()[0]}}, nil
		})
		s := start(t, h, serve.Config{})
		var flying, most atomic.Int32
		l := link(t, s, coaptest.Options{Delay: 50 * time.Millisecond, Trace: func(toServer bool, m *coap.Message) {
			switch {
			case toServer && m.Type == coap.Acknowledgement:
				flying.Add(-1)
			case !toServer && m.Type == coap.Confirmable:
				most.Store(max(most.Load(), flying.Add(1)))
			}
		}})
		a, _ := observe(t, l, get("/a"))
		b, _ := observe(t, l, get("/b"))
		c, _ := observe(t, l, get("/c"))
		for _, topic := range []string{"a", "b", "c"} {
			s.Publish(topic, coap.Notification{Version: 1, Confirm: true, Body: &coap.Response{Code: coap.Content, Payload: []byte(topic)}})
		}
		settle(time.Second)
		want(t, "a", a, "[2.05  2.05 a]")
		want(t, "b", b, "[2.05  2.05 b]")
		want(t, "c", c, "[2.05  2.05 c]")
		want(t, "in flight at a time", most.Load(), "1")
	})
}

// RFC 7641, Section 3.6: a Reset ends the observation, of confirmable and of
// other notifications.
func TestReset(t *testing.T) {
	for _, confirm := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			r := &room{version: 1}
			s := start(t, r, serve.Config{})
			l := link(t, s, coaptest.Options{})
			observe(t, l, get("/t"))
			l.Forget()
			var out outcomes
			n := r.set(2)
			n.Confirm, n.Done = confirm, out.done
			s.Publish("t", n)
			settle(time.Second)
			want(t, "observers", s.Observers("t"), "[]")
			if confirm {
				want(t, "outcomes", &out, "[client 2 "+coap.ErrReset.Error()+"]")
			} else {
				want(t, "outcomes", &out, "[client 2 <nil>]")
			}
		})
	}
}

func TestNotificationsUnderLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &room{version: 1}
		s := start(t, r, serve.Config{})
		for seed := range uint64(20) {
			r.set(1)
			l := coaptest.NewLink(s, coap.Peer{}, coaptest.Options{Seed: seed, Drop: 0.3, Duplicate: 0.2, Reorder: 0.3})
			box := new(inbox)
			if _, err := l.Observe(t.Context(), get("/t"), box.add); err != nil {
				l.Close()
				continue // lost five times
			}
			var out outcomes
			n := r.set(2)
			n.Done = out.done
			s.Publish("t", n)
			settle(2 * time.Minute)
			if s := out.String(); s == "[client 2 <nil>]" {
				want(t, "inbox", box, "[2.05 v1 2.05 v2]")
			} else if s != "[client 2 "+coap.ErrTimeout.Error()+"]" {
				t.Errorf("seed %d: outcomes %s", seed, s)
			}
			l.Close()
			want(t, "observers", s.Observers("t"), "[]")
		}
	})
}

// A node that sleeps through a notification gets the newest at its first sign
// of life, and is given up only when it wakes without ever acknowledging.
func TestSleeper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &room{version: 1}
		s := start(t, r, serve.Config{})
		l := link(t, s, coaptest.Options{})
		box, _ := observe(t, l, get("/t"))
		l.Cut(true, true)
		var out outcomes
		n := r.set(2)
		n.Done = out.done
		s.Publish("t", n)
		settle(3 * time.Minute)
		want(t, "outcomes", &out, "[client 2 "+coap.ErrTimeout.Error()+"]")
		want(t, "observers", s.Observers("t"), "[client]")
		l.Cut(false, false)
		settle(time.Hour)
		want(t, "inbox", box, "[2.05 v1]")
		if _, err := l.Do(t.Context(), get("/other")); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		want(t, "inbox", box, "[2.05 v1 2.05 v2]")
		want(t, "outcomes", &out, "[client 2 "+coap.ErrTimeout.Error()+" client 2 <nil>]")

		// It hears nothing, but is heard.
		l.Cut(true, false)
		for v := uint64(3); v < 7; v++ {
			s.Publish("t", r.set(v))
			settle(3 * time.Minute)
		}
		want(t, "observers", s.Observers("t"), "[]")
	})
}

// Published while a handler stands between reading its state and registration,
// with no observer at the time.
func TestPublishDuringRegistration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &room{version: 1, hold: make(chan struct{}), reading: make(chan struct{})}
		s := start(t, r, serve.Config{})
		l := link(t, s, coaptest.Options{})
		box := new(inbox)
		registered := make(chan error)
		go func() {
			_, err := l.Observe(t.Context(), get("/t"), box.add)
			registered <- err
		}()
		<-r.reading
		s.Publish("t", r.set(2))
		close(r.hold)
		if err := <-registered; err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		want(t, "inbox", box, "[2.05 v1 2.05 v2]")
	})
}

// The same for Drop: the answer is the last response, and nobody observes.
func TestDropDuringRegistration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &room{version: 1, hold: make(chan struct{}), reading: make(chan struct{})}
		s := start(t, r, serve.Config{})
		l := link(t, s, coaptest.Options{})
		box := new(inbox)
		registered := make(chan error)
		go func() {
			_, err := l.Observe(t.Context(), get("/t"), box.add)
			registered <- err
		}()
		<-r.reading
		s.Drop("t", "client", &coap.Response{Code: coap.NotFound, Payload: []byte("evicted")})
		close(r.hold)
		if err := <-registered; !errors.Is(err, coaptest.ErrNotObserved) {
			t.Fatal(err)
		}
		want(t, "inbox", box, "[4.04 evicted]")
		want(t, "observers", s.Observers("t"), "[]")
	})
}

func TestAllow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &room{version: 1}
		s := start(t, r, serve.Config{})
		good := namedLink(t, s, "good", coaptest.Options{})
		bad := namedLink(t, s, "bad", coaptest.Options{})
		mute := namedLink(t, s, "mute", coaptest.Options{})
		g, _ := observe(t, good, get("/t"))
		b, _ := observe(t, bad, get("/t"))
		m, _ := observe(t, mute, get("/t"))
		var out outcomes
		n := r.set(2)
		n.Done = out.done
		n.Allow = func(p coap.Peer) (*coap.Response, bool) {
			switch p.Link {
			case "bad":
				return &coap.Response{Code: coap.Unauthorized}, false
			case "mute":
				return nil, false
			}
			return nil, true
		}
		s.Publish("t", n)
		settle(time.Second)
		want(t, "good", g, "[2.05 v1 2.05 v2]")
		want(t, "bad", b, "[2.05 v1 4.01 ]")
		want(t, "mute", m, "[2.05 v1]")
		want(t, "observers", s.Observers("t"), "[good]")
		want(t, "outcomes", &out, "[good 2 <nil>]")
	})
}

// A zero link drops all; versions of the topic may begin anew then.
func TestDrop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &room{version: 7}
		s := start(t, r, serve.Config{})
		a := namedLink(t, s, "a", coaptest.Options{})
		b := namedLink(t, s, "b", coaptest.Options{})
		boxA, _ := observe(t, a, get("/t"))
		boxB, _ := observe(t, b, get("/t"))
		s.Drop("t", "a", &coap.Response{Code: coap.NotFound})
		settle(time.Second)
		want(t, "observers", s.Observers("t"), "[b]")
		s.Drop("t", "", &coap.Response{Code: coap.NotFound})
		settle(time.Second)
		want(t, "a", boxA, "[2.05 v7 4.04 ]")
		want(t, "b", boxB, "[2.05 v7 4.04 ]")
		r.set(1)
		boxA, _ = observe(t, a, get("/t"))
		s.Publish("t", r.set(2))
		settle(time.Second)
		want(t, "a", boxA, "[2.05 v1 2.05 v2]")
	})
}

func TestClosedInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &room{version: 1}
		s := start(t, r, serve.Config{})
		l := link(t, s, coaptest.Options{})
		observe(t, l, get("/t"))
		l.Cut(true, true)
		var out outcomes
		n := r.set(2)
		n.Done = out.done
		s.Publish("t", n)
		n = r.set(3) // waits
		n.Done = out.done
		s.Publish("t", n)
		asked := make(chan error)
		go func() {
			_, err := s.Do(t.Context(), "client", get("/x"))
			asked <- err
		}()
		synctest.Wait()
		l.Close()
		if err := <-asked; !errors.Is(err, coap.ErrGone) {
			t.Errorf("Do: %v", err)
		}
		want(t, "observers", s.Observers("t"), "[]")
		want(t, "outcomes", &out, "[client 2 coaptest: link closed: "+coap.ErrGone.Error()+"]")
	})
}

// Two tokens of a link on one topic get every version, and Done is called once.
func TestTwoTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &room{version: 1}
		s := start(t, r, serve.Config{})
		l := link(t, s, coaptest.Options{})
		a, cancel := observe(t, l, get("/t"))
		b, _ := observe(t, l, get("/t?x"))
		var out outcomes
		n := r.set(2)
		n.Done = out.done
		s.Publish("t", n)
		settle(time.Second)
		want(t, "outcomes", &out, "[client 2 <nil>]")
		if err := cancel(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.Publish("t", r.set(3))
		settle(time.Second)
		want(t, "a", a, "[2.05 v1 2.05 v2]")
		want(t, "b", b, "[2.05 v1 2.05 v2 2.05 v3]")
	})
}

// RFC 7967: with No-Response 2 an observer hears of errors alone.
func TestObserveNoResponse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &room{version: 1}
		s := start(t, r, serve.Config{})
		var codes []coap.Code
		l := link(t, s, coaptest.Options{Trace: func(toServer bool, m *coap.Message) {
			if !toServer && m.Code != coap.Empty {
				codes = append(codes, m.Code)
			}
		}})
		req := get("/t")
		req.Options.SetUint(coap.NoResponse, 2)
		req.Options.SetUint(coap.ObserveOption, 0)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := l.Do(ctx, req); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got a response: %v", err)
		}
		var out outcomes
		n := r.set(2)
		n.Done = out.done
		s.Publish("t", n)
		settle(time.Second)
		want(t, "outcomes", &out, "[]")
		s.Drop("t", "client", &coap.Response{Code: coap.NotFound})
		settle(time.Second)
		want(t, "codes", codes, "[4.04]")
	})
}

// RFC 7641, Section 4.5: a confirmable notification every 24 hours.
func TestConfirmDaily(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &room{version: 1}
		s := start(t, r, serve.Config{})
		var types []coap.Type
		l := link(t, s, coaptest.Options{Trace: func(toServer bool, m *coap.Message) {
			if !toServer && m.Options.Has(coap.ObserveOption) && m.Type != coap.Acknowledgement {
				types = append(types, m.Type)
			}
		}})
		observe(t, l, get("/t"))
		for v := uint64(2); v < 6; v++ {
			n := r.set(v)
			n.Confirm = false
			s.Publish("t", n)
			settle(13 * time.Hour)
		}
		want(t, "types", types, "[NON NON CON NON]")
	})
}

// A server that is full answers without registering (RFC 7641, Section 4.1).
func TestMaxObservations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &room{version: 1}
		s := start(t, r, serve.Config{MaxObservations: 1})
		observe(t, namedLink(t, s, "a", coaptest.Options{}), get("/t"))
		_, err := namedLink(t, s, "b", coaptest.Options{}).Observe(t.Context(), get("/t"), func(*coap.Response) {})
		if !errors.Is(err, coaptest.ErrNotObserved) {
			t.Fatal(err)
		}
	})
}

// gate is a [coap.Readier] that wants to know of all before it is asked about one.
type gate struct {
	mu    sync.Mutex
	told  map[coap.LinkID]int
	calls int
	early int // asked about, and not told of
}

func (g *gate) Ready(peers []coap.Peer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.calls++
	for _, p := range peers {
		g.told[p.Link]++
	}
}

func (g *gate) allow(p coap.Peer) (*coap.Response, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.told[p.Link] == 0 {
		g.early++
	}
	return nil, true
}

// TestReady: who is asked about was told of before, together with others, also those
// of another topic, whether a budget spreads them or not.
func TestReady(t *testing.T) {
	for name, x := range map[string]struct {
		rate  float64
		calls int
	}{
		"free":         {0, 4},         // two portions of each topic
		"a large one":  {1_000_000, 3}, // of the 600 of both
		"a narrow one": {1000, 60},     // ten at a time
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &room{version: 1}
				s := start(t, coap.HandlerFunc(func(ctx context.Context, req *coap.Request) (*coap.Response, error) {
					resp, err := r.ServeCoAP(ctx, req)
					resp.Observe.Topic = req.Path()[0]
					return resp, err
				}), serve.Config{NotifyRate: x.rate})
				const peers = 300
				for i := range peers {
					for _, topic := range []string{"a", "b"} {
						observe(t, namedLink(t, s, coap.LinkID(fmt.Sprint(topic, i)), coaptest.Options{}), get("/"+topic))
					}
				}
				g := &gate{told: map[coap.LinkID]int{}}
				var out outcomes
				n := r.set(2)
				n.Ready, n.Allow, n.Done = g, g.allow, out.done
				s.Publish("a", n)
				s.Publish("b", n)
				settle(10 * time.Second)
				if len(g.told) != 2*peers || g.early != 0 || len(out.got) != 2*peers {
					t.Errorf("told of %d peers, %d not before, %d notified", len(g.told), g.early, len(out.got))
				}
				if g.calls < x.calls/2 || g.calls > 2*x.calls {
					t.Errorf("told %d times, want some %d", g.calls, x.calls)
				}
			})
		})
	}
}
