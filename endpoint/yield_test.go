package endpoint

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// loseNext has the network lose the next n datagrams of the endpoint.
func (o *world) loseNext(n int) {
	defer o.w.lock()()
	o.w.tap = func(from, _ netip.AddrPort, _ []byte) bool {
		n--
		return from == o.at && n >= 0
	}
}

// isNote checks a notification.
func isNote(t *testing.T, m *coap.Message, payload string) {
	t.Helper()
	if m == nil || m.Type != coap.Confirmable || string(m.Token) != "obs" || string(m.Payload) != payload {
		t.Fatalf("%+v, not %s", m, payload)
	}
}

// quiet says that nothing is under way with any peer.
func (o *world) quiet() bool {
	for _, e := range o.all.all {
		e.mu.Lock()
		busy := e.room.sending > 0 || slices.ContainsFunc(e.sessions, func(s *session) bool { return s.act != nil })
		e.mu.Unlock()
		if busy {
			return false
		}
	}
	return true
}

// outcomes are those that were told.
func outcomes(done <-chan error) (all []error) {
	synctest.Wait()
	for {
		select {
		case err := <-done:
			all = append(all, err)
		default:
			return all
		}
	}
}

// TestOvertaken: RFC 7641, Section 4.5.2: where the state changes while a notification is
// under way, its next transmission is one of the newest state, with a message identifier
// and a number of its own; states between are skipped. The counter and the time-out go on:
// both together are given up after MAX_RETRANSMIT, and sent again, the newest only, at the
// next sign of life.
func TestOvertaken(t *testing.T) {
	both(t, func(t *testing.T, o *world, p *peer) {
		number, _ := p.observe("obs").Options.Uint(coap.ObserveOption)
		o.loseNext(1)
		began := time.Now()
		first := o.publish(2, true)
		time.Sleep(time.Second)
		between := o.publish(3, true)
		newest := o.publish(4, true)
		if r := p.next(900 * time.Millisecond); r != nil {
			t.Fatalf("before the time-out: %+v", r)
		}
		var at []time.Duration
		var id uint16
		for {
			r := p.next(100 * time.Second)
			if r == nil {
				break
			}
			isNote(t, r, "4")
			if len(at) > 0 && r.ID != id {
				t.Error("a retransmission has another message identifier")
			}
			n, _ := r.Options.Uint(coap.ObserveOption)
			if d := (n - number) & (1<<24 - 1); d == 0 || d >= 1<<23 {
				t.Errorf("number %d after %d", n, number)
			}
			id = r.ID
			at = append(at, time.Since(began))
		}
		if len(at) != maxRetransmit || at[0] < ackTimeout || at[0] > 3*time.Second+200*time.Millisecond {
			t.Fatalf("sent again at %v", at)
		}
		for i := 1; i < len(at); i++ {
			if d := at[i] - at[i-1] - at[0]<<i; d < -time.Second || d > time.Second {
				t.Errorf("sent again at %v", at)
			}
		}
		if got := fmt.Sprint(outcomes(first), outcomes(between), outcomes(newest)); got != fmt.Sprint([]error{}, []error{}, []error{coap.ErrTimeout}) {
			t.Errorf("outcomes %s", got)
		}
		if !o.quiet() {
			t.Error("something is under way")
		}
		p.ask(p.request(coap.PUT, "t2", ""))
		r := p.want()
		isNote(t, r, "4")
		p.send(&coap.Message{Type: coap.Acknowledgement, ID: r.ID})
		if r := p.next(100 * time.Second); r != nil {
			t.Errorf("then %+v", r)
		}
		if got := outcomes(newest); len(got) != 1 || got[0] != nil {
			t.Errorf("outcome %v", got)
		}
	})
}

// TestOvertakenEach: a state that changes before each retransmission is sent once each, and
// given up as one notification would be.
func TestOvertakenEach(t *testing.T) {
	both(t, func(t *testing.T, o *world, p *peer) {
		p.observe("obs")
		var done []<-chan error
		var ids []uint16
		version := uint64(2)
		for ; ; version++ {
			done = append(done, o.publish(version, true))
			r := p.next(100 * time.Second)
			if r == nil || len(ids) > maxRetransmit {
				break
			}
			isNote(t, r, fmt.Sprint(version))
			if slices.Contains(ids, r.ID) {
				t.Error("a message identifier occurs twice")
			}
			ids = append(ids, r.ID)
		}
		if len(ids) != 1+maxRetransmit {
			t.Fatalf("%d were sent before it was given up", len(ids))
		}
		// The last is over by its time-out, and what came meanwhile begins anew.
		if got := outcomes(done[maxRetransmit]); len(got) != 1 || !errors.Is(got[0], coap.ErrTimeout) {
			t.Errorf("outcome of the last %v", got)
		}
		for i := range maxRetransmit {
			if got := outcomes(done[i]); len(got) != 0 {
				t.Errorf("outcome of %d: %v", i+2, got)
			}
		}
	})
}

// TestOvertakenLate: an acknowledgement of what was overtaken counts as one of that version;
// the newest goes on as it was until its own comes.
func TestOvertakenLate(t *testing.T) {
	both(t, func(t *testing.T, o *world, p *peer) {
		p.observe("obs")
		before := o.publish(2, true)
		old := p.want()
		isNote(t, old, "2")
		newest := o.publish(3, true)
		began := time.Now()
		r := p.want()
		isNote(t, r, "3")
		wait := time.Since(began)
		p.send(&coap.Message{Type: coap.Acknowledgement, ID: old.ID})
		time.Sleep(100 * time.Millisecond)
		if got := outcomes(before); len(got) != 1 || got[0] != nil {
			t.Errorf("outcome of the old %v", got)
		}
		if got := outcomes(newest); len(got) != 0 {
			t.Errorf("outcome of the newest %v", got)
		}
		began = time.Now()
		again := p.want()
		isNote(t, again, "3")
		if d := time.Since(began) - 2*wait; again.ID != r.ID || d < -time.Second || d > time.Second {
			t.Errorf("again after %v, the first time-out was %v", time.Since(began), wait)
		}
		p.send(&coap.Message{Type: coap.Acknowledgement, ID: r.ID})
		time.Sleep(100 * time.Millisecond)
		if got := outcomes(newest); len(got) != 1 || got[0] != nil {
			t.Errorf("outcome of the newest %v", got)
		}
		p.send(&coap.Message{Type: coap.Acknowledgement, ID: old.ID}) // a copy
		if r := p.next(100 * time.Second); r != nil {
			t.Errorf("then %+v", r)
		}
		if got := append(outcomes(before), outcomes(newest)...); len(got) != 0 || !o.quiet() {
			t.Errorf("told again: %v", got)
		}
	})
}

// TestOvertakenAcknowledged: who acknowledges the newest need not answer what it overtook;
// nothing of that is kept then.
func TestOvertakenAcknowledged(t *testing.T) {
	both(t, func(t *testing.T, o *world, p *peer) {
		p.observe("obs")
		before := o.publish(2, true)
		p.want()
		newest := o.publish(3, true)
		r := p.want()
		isNote(t, r, "3")
		p.send(&coap.Message{Type: coap.Acknowledgement, ID: r.ID})
		time.Sleep(100 * time.Millisecond)
		if got := outcomes(newest); len(got) != 1 || got[0] != nil {
			t.Errorf("outcome %v", got)
		}
		if got := outcomes(before); len(got) != 0 || !o.quiet() {
			t.Errorf("of the old: %v; quiet %v", got, o.quiet())
		}
		// What comes after that has an attempt of its own.
		last := o.publish(4, true)
		isNote(t, p.want(), "4")
		began := time.Now()
		isNote(t, p.want(), "4")
		if d := time.Since(began); d > 3200*time.Millisecond {
			t.Errorf("a new transmission waits %v", d)
		}
		if got := outcomes(last); len(got) != 0 {
			t.Errorf("outcome %v", got)
		}
	})
}

// TestOvertakenReset: a Reset of what was overtaken, or of what overtook it, ends the
// observation (RFC 7641, Section 3.6) and all of its messages.
func TestOvertakenReset(t *testing.T) {
	for _, late := range []bool{true, false} {
		both(t, func(t *testing.T, o *world, p *peer) {
			p.observe("obs")
			before := o.publish(2, true)
			old := p.want()
			newest := o.publish(3, true)
			r := p.want()
			isNote(t, r, "3")
			if late {
				r = old
			}
			p.send(&coap.Message{Type: coap.Reset, ID: r.ID})
			time.Sleep(100 * time.Millisecond)
			for _, done := range []<-chan error{before, newest} {
				if got := outcomes(done); len(got) != 1 || !errors.Is(got[0], coap.ErrReset) {
					t.Errorf("late %v: outcome %v", late, got)
				}
			}
			if n := len(o.core.Observers(topic)); n != 0 || !o.quiet() {
				t.Errorf("late %v: %d observers, quiet %v", late, n, o.quiet())
			}
			if r := p.next(100 * time.Second); r != nil {
				t.Errorf("late %v: then %+v", late, r)
			}
		})
	}
}

// TestOvertakenByResponse: who was shown the newest state in a response is not sent the old
// one again.
func TestOvertakenByResponse(t *testing.T) {
	both(t, func(t *testing.T, o *world, p *peer) {
		p.observe("obs")
		o.publish(2, true)
		isNote(t, p.want(), "2")
		o.set(func() { o.version = 3 })
		m := p.request(coap.GET, "obs", "")
		m.Options.SetUint(coap.ObserveOption, 0)
		p.send(m)
		if r := p.want(); string(r.Payload) != "3" || r.Type != coap.Acknowledgement {
			t.Fatalf("%+v", r)
		}
		o.publish(3, true)
		if r := p.next(100 * time.Second); r != nil {
			t.Errorf("then %+v", r)
		}
		if n := len(o.core.Observers(topic)); n != 1 || !o.quiet() {
			t.Errorf("%d observers, quiet %v", n, o.quiet())
		}
	})
}

// TestOvertakenByEnd: the end of what is observed takes the place of a notification.
func TestOvertakenByEnd(t *testing.T) {
	both(t, func(t *testing.T, o *world, p *peer) {
		p.observe("obs")
		o.publish(2, true)
		isNote(t, p.want(), "2")
		began := time.Now()
		o.core.Drop(topic, "", &coap.Response{Code: coap.NotFound})
		r := p.want()
		wait := time.Since(began)
		if r.Code != coap.NotFound || r.Type != coap.Confirmable || r.Options.Has(coap.ObserveOption) {
			t.Fatalf("%+v", r)
		}
		began = time.Now()
		if again := p.want(); again.ID != r.ID {
			t.Errorf("%+v", again)
		}
		if d := time.Since(began) - 2*wait; d < -time.Second || d > time.Second {
			t.Errorf("again after %v, the first time-out was %v", time.Since(began), wait)
		}
		p.send(&coap.Message{Type: coap.Acknowledgement, ID: r.ID})
		time.Sleep(100 * time.Second)
		if !o.quiet() {
			t.Error("something is under way")
		}
	})
}

// TestOvertakenGone: with the association all that is under way is over, once each.
func TestOvertakenGone(t *testing.T) {
	both(t, func(t *testing.T, o *world, p *peer) {
		p.observe("obs")
		before := o.publish(2, true)
		p.want()
		newest := o.publish(3, true)
		isNote(t, p.want(), "3")
		for _, e := range o.all.all {
			e.mu.Lock()
			for _, s := range slices.Clone(e.sessions) {
				e.end(s, true)
			}
			e.mu.Unlock()
		}
		time.Sleep(time.Second)
		if got := outcomes(newest); len(got) != 1 || !errors.Is(got[0], coap.ErrGone) {
			t.Errorf("outcome %v", got)
		}
		if got := outcomes(before); len(got) != 0 || !o.quiet() || o.sessions() != 0 {
			t.Errorf("of the old: %v", got)
		}
	})
}

// TestOvertakenHeld: where the newest is to wait for the peer's next sign of life the old
// one is not sent again either.
func TestOvertakenHeld(t *testing.T) {
	both(t, func(t *testing.T, o *world, p *peer) {
		p.observe("obs")
		o.publish(2, true)
		isNote(t, p.want(), "2")
		asleep := true
		o.core.Publish(topic, coap.Notification{
			Version: 3, Confirm: true, Body: &coap.Response{Code: coap.Content, Payload: []byte("3")},
			Wait: func(coap.Peer) bool { o.mu.Lock(); defer o.mu.Unlock(); return asleep },
		})
		if r := p.next(200 * time.Second); r != nil {
			t.Fatalf("to who sleeps: %+v", r)
		}
		if !o.quiet() {
			t.Error("something is under way")
		}
		o.set(func() { asleep = false })
		p.ask(p.request(coap.PUT, "t2", ""))
		isNote(t, p.want(), "3")
	})
}

// TestOvertakenRefused: a peer that may not have the newest state is told the end of its
// observation in the place of the old one.
func TestOvertakenRefused(t *testing.T) {
	both(t, func(t *testing.T, o *world, p *peer) {
		p.observe("obs")
		o.publish(2, true)
		isNote(t, p.want(), "2")
		o.core.Publish(topic, coap.Notification{
			Version: 3, Confirm: true, Body: &coap.Response{Code: coap.Content, Payload: []byte("3")},
			Allow: func(coap.Peer) (*coap.Response, bool) { return &coap.Response{Code: coap.Unauthorized}, false },
		})
		n := 0
		for r := p.next(200 * time.Second); r != nil; r = p.next(200 * time.Second) {
			if n++; r.Code != coap.Unauthorized {
				t.Fatalf("%+v", r)
			}
		}
		if n != maxRetransmit || !o.quiet() {
			t.Errorf("sent %d times", n)
		}
	})
}

// TestOvertakenTokens: of two observations of the state both are told the newest, one after
// the other (NSTART is 1); a version that one of them acknowledged counts.
func TestOvertakenTokens(t *testing.T) {
	both(t, func(t *testing.T, o *world, p *peer) {
		p.observe("one")
		p.observe("two")
		before := o.publish(2, true)
		r := p.want()
		first := string(r.Token)
		p.send(&coap.Message{Type: coap.Acknowledgement, ID: r.ID})
		second := p.want()
		if string(second.Payload) != "2" || string(second.Token) == first {
			t.Fatalf("%+v", second)
		}
		newest := o.publish(3, true)
		var tokens []string
		for range 2 {
			r = p.want()
			if string(r.Payload) != "3" {
				t.Fatalf("%+v", r)
			}
			tokens = append(tokens, string(r.Token))
			p.send(&coap.Message{Type: coap.Acknowledgement, ID: r.ID})
		}
		slices.Sort(tokens)
		if !slices.Equal(tokens, []string{"one", "two"}) {
			t.Errorf("told %v", tokens)
		}
		time.Sleep(time.Second)
		for _, done := range []<-chan error{before, newest} {
			if got := outcomes(done); len(got) != 1 || got[0] != nil {
				t.Errorf("outcome %v", got)
			}
		}
		if r := p.next(200 * time.Second); r != nil || !o.quiet() {
			t.Errorf("then %+v", r)
		}
	})
}

// TestOvertakenDaily: what takes the place of the confirmable notification that RFC 7641,
// Section 4.5, wants once in 24 hours is confirmable too; the next is not.
func TestOvertakenDaily(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := begin(t, newWire(1), true)
		defer o.stop()
		p := o.dial("node1", withCID)
		defer p.close()
		p.observe("obs")
		time.Sleep(25 * time.Hour)
		o.publish(2, false)
		isNote(t, p.want(), "2")
		o.publish(3, false)
		r := p.want()
		isNote(t, r, "3")
		p.send(&coap.Message{Type: coap.Acknowledgement, ID: r.ID})
		time.Sleep(time.Second)
		o.publish(4, false)
		if r := p.want(); string(r.Payload) != "4" || r.Type != coap.NonConfirmable {
			t.Errorf("%+v", r)
		}
		if !o.quiet() {
			t.Error("something is under way")
		}
	})
}

// TestOvertakenKilled: who was sent the old state before a crash, and perhaps the newest,
// gets the newest only after the next start, with a number and a message identifier that it
// has not seen.
func TestOvertakenKilled(t *testing.T) {
	for _, replaced := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w, d := newWire(1), &disk{}
			o := resume(t, w, d, 7)
			p := o.dial("node1", withCID)
			defer p.close()
			p.observe("obs")
			o.publish(2, true)
			last := p.want()
			isNote(t, last, "2")
			o.publish(3, true)
			if replaced {
				last = p.want()
				isNote(t, last, "3")
			}
			o.kill()
			o = resume(t, w, d, 8)
			defer o.stop()
			p.o = o
			done := o.publish(3, true)
			r := p.want()
			isNote(t, r, "3")
			a, _ := last.Options.Uint(coap.ObserveOption)
			b, _ := r.Options.Uint(coap.ObserveOption)
			if d := (b - a) & (1<<24 - 1); r.ID == last.ID || d == 0 || d >= 1<<23 {
				t.Errorf("replaced %v: number %d after %d, identifier %d after %d", replaced, b, a, r.ID, last.ID)
			}
			p.send(&coap.Message{Type: coap.Acknowledgement, ID: last.ID}) // of a life before
			p.send(&coap.Message{Type: coap.Acknowledgement, ID: r.ID})
			if r := p.next(100 * time.Second); r != nil {
				t.Errorf("replaced %v: then %+v", replaced, r)
			}
			if got := outcomes(done); len(got) != 1 || got[0] != nil {
				t.Errorf("replaced %v: outcome %v", replaced, got)
			}
		})
	}
}
