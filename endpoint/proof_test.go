package endpoint

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// TestRebind: a node with a connection ID goes on from a new address, with its
// observation; without one it meets silence there.
func TestRebind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(1)
		o := begin(t, w, true)
		defer o.stop()
		p := o.dial("node1", withCID)
		defer p.close()
		m := p.request(coap.GET, "obs", "")
		m.Options.SetUint(coap.ObserveOption, 0)
		p.ask(m)
		for i := range uint64(3) {
			p.c.rebind()
			p.ask(p.request(coap.PUT, fmt.Sprint(i), "x"))
			done := o.publish(i+2, true)
			r := p.want()
			for r.Code == coap.Empty { // the address is asked
				p.send(&coap.Message{Type: coap.Reset, ID: r.ID})
				r = p.want()
			}
			p.send(&coap.Message{Type: coap.Acknowledgement, ID: r.ID})
			if err := <-done; err != nil {
				t.Error(err)
			}
			o.e.mu.Lock()
			for _, s := range o.e.sessions {
				if s.probing() != nil {
					t.Error("who acknowledges what only its new address got has to show more")
				}
			}
			o.e.mu.Unlock()
		}
		if o.ended() != 0 || len(o.began()) != 1 {
			t.Error("another association")
		}

		q := o.dial("node2")
		defer q.close()
		q.ask(q.request(coap.PUT, "t", ""))
		q.c.rebind()
		q.send(q.request(coap.PUT, "u", ""))
		if r := q.next(time.Minute); r != nil {
			t.Errorf("%+v", r)
		}
	})
}

// TestSteering: RFC 9146, Section 6: a record that somebody took and sent on
// from elsewhere steers nothing there: not when it came before, and when it
// comes first at most three times its size until the address answers.
func TestSteering(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(1)
		o := begin(t, w, true)
		defer o.stop()
		p := o.dial("node1", withCID)
		defer p.close()
		m := p.request(coap.GET, "obs", "")
		m.Options.SetUint(coap.ObserveOption, 0)
		p.ask(m)

		elsewhere := w.open("203.0.113.9:999")
		var got int
		var taken [][]byte
		race := false
		w.mu.Lock()
		w.tap = func(from, to netip.AddrPort, b []byte) bool {
			if to == elsewhere.addr {
				got += len(b)
			}
			if to == o.at && from != elsewhere.addr {
				taken = append(taken, bytes.Clone(b))
				return race
			}
			return false
		}
		w.mu.Unlock()
		p.ask(p.request(coap.PUT, "a", "x"))
		unlock := w.lock()
		before := taken
		unlock()
		for _, b := range before { // all of them came before
			w.carry(elsewhere.addr, o.at, b)
		}
		time.Sleep(time.Second)
		unlock = w.lock()
		if got != 0 {
			t.Fatalf("%d bytes went elsewhere", got)
		}
		unlock()

		// Now it overtakes.
		w.mu.Lock()
		race, taken = true, nil
		w.mu.Unlock()
		p.send(p.request(coap.PUT, "b", "x"))
		sent := 0
		w.mu.Lock()
		stolen := taken
		w.mu.Unlock()
		for _, b := range stolen {
			sent += len(b)
			w.carry(elsewhere.addr, o.at, b)
		}
		time.Sleep(time.Second)
		o.core.Publish(topic, coap.Notification{Version: 2, Confirm: true, Body: &coap.Response{Code: coap.Content, Payload: make([]byte, 900)}})
		time.Sleep(2 * time.Minute)
		const pings = 10 * 64
		unlock = w.lock()
		if got == 0 || got > 3*sent+pings {
			t.Errorf("%d bytes went elsewhere for %d", got, sent)
		}
		unlock()
		// The node goes on, and has it all again.
		w.mu.Lock()
		race = false
		w.mu.Unlock()
		p.send(p.request(coap.PUT, "c", "x"))
		var answer, note bool
		for !answer || !note {
			r := p.want()
			switch {
			case r.Code == coap.Empty && r.Type == coap.Confirmable:
				p.send(&coap.Message{Type: coap.Reset, ID: r.ID})
			case string(r.Token) == "c":
				answer = true
			case string(r.Token) == "obs":
				note = len(r.Payload) == 900
				if r.Type == coap.Confirmable {
					p.send(&coap.Message{Type: coap.Acknowledgement, ID: r.ID})
				}
			}
		}
	})
}

// TestDiverted: who sends a record on from elsewhere does not keep notifications from
// the node, nor ends its observation; with its next record all is as before.
func TestDiverted(t *testing.T) {
	for _, confirm := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWire(1)
			o := begin(t, w, true)
			defer o.stop()
			p := o.dial("node1", withCID)
			defer p.close()
			m := p.request(coap.GET, "obs", "")
			m.Options.SetUint(coap.ObserveOption, 0)
			p.ask(m)
			elsewhere := w.open("203.0.113.9:999")
			var taken []byte
			w.mu.Lock()
			w.tap = func(from, to netip.AddrPort, b []byte) bool {
				if to != o.at || from == elsewhere.addr || taken != nil {
					return false
				}
				taken = bytes.Clone(b)
				return true
			}
			w.mu.Unlock()
			p.send(p.request(coap.PUT, "b", "x"))
			unlock := w.lock()
			stolen := taken
			unlock()
			w.carry(elsewhere.addr, o.at, stolen)
			synctest.Wait()
			for i := range 10 { // more than may be missed
				done := make(chan error, 1)
				o.core.Publish(topic, coap.Notification{
					Version: uint64(i + 2), Confirm: confirm, Body: &coap.Response{Code: coap.Content, Payload: make([]byte, 900)},
					Done: func(_ coap.LinkID, _ uint64, err error) { done <- err },
				})
				for {
					r := p.want()
					if r.Type == coap.Confirmable {
						p.send(&coap.Message{Type: coap.Acknowledgement, ID: r.ID})
					}
					if string(r.Token) == "obs" {
						break
					}
				}
				if err := <-done; err != nil && (confirm || !errors.Is(err, coap.ErrWithheld)) {
					t.Fatal(err)
				}
			}
			if p.ask(p.request(coap.PUT, "c", "x")); o.ended() != 0 {
				t.Error("the association ended")
			}
			o.e.mu.Lock()
			for _, s := range o.e.sessions {
				if s.probing() != nil {
					t.Error("the node has to show that it is where it was all the time")
				}
			}
			o.e.mu.Unlock()
		})
	}
}

// TestLargeAnswer: what a new address may not get yet it gets as soon as it has
// answered.
func TestLargeAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := begin(t, newWire(1), true)
		defer o.stop()
		p := o.dial("node1", withCID)
		defer p.close()
		p.ask(p.request(coap.PUT, "a", "x"))
		p.c.rebind()
		p.ask(p.request(coap.PUT, "c", "x"))
		m := p.request(coap.PUT, "b", "")
		m.Payload = bytes.Repeat([]byte("x"), 500)
		o.e.mu.Lock()
		for _, s := range o.e.sessions {
			s.more.probe.budget = -10000
		}
		o.e.mu.Unlock()
		p.send(m)
		r := p.want()
		if r.Type != coap.Confirmable || r.Code != coap.Empty {
			t.Fatalf("%+v", r)
		}
		began := time.Now()
		p.send(&coap.Message{Type: coap.Reset, ID: r.ID})
		if r := p.want(); r.ID != m.ID || len(r.Payload) != 500 || time.Since(began) > time.Second {
			t.Errorf("after %v: %+v", time.Since(began), r)
		}
	})
}
