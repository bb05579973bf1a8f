package endpoint

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// both runs a test over plain UDP and over DTLS, in a bubble.
func both(t *testing.T, f func(t *testing.T, o *world, p *peer)) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("secure %v", secure), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := begin(t, newWire(1), secure)
				defer o.stop()
				p := o.plain
				if secure {
					p = func() *peer { return o.dial("node1", withCID) }
				}
				c := p()
				defer c.close()
				f(t, o, c)
			})
		})
	}
}

// TestRequest: RFC 7252, Section 5.2.1: the response goes with the
// acknowledgement; Section 4.5: a copy is answered the same and not handled
// again, until EXCHANGE_LIFETIME is over.
func TestRequest(t *testing.T) {
	both(t, func(t *testing.T, o *world, p *peer) {
		m := p.request(coap.POST, "tok", "body")
		p.send(m)
		r := p.want()
		if r.Type != coap.Acknowledgement || r.ID != m.ID || r.Code != coap.Changed || string(r.Token) != "tok" || string(r.Payload) != "1:body" {
			t.Fatalf("%+v", r)
		}
		for range 3 {
			time.Sleep(time.Minute)
			p.send(m)
			if again := p.want(); string(again.Payload) != "1:body" || again.Type != coap.Acknowledgement {
				t.Fatalf("%+v", again)
			}
		}
		if n := o.handled(); n != 1 {
			t.Fatalf("handled %d times", n)
		}
		time.Sleep(exchangeLifetime)
		p.send(m)
		if r := p.want(); string(r.Payload) != "2:body" {
			t.Errorf("after EXCHANGE_LIFETIME: %q", r.Payload)
		}
	})
}

// TestSafe: a copy of a request without effects is answered the same until
// MAX_TRANSMIT_SPAN is over; after that it is served anew over DTLS, where only the
// peer makes copies (RFC 7252, Section 4.5).
func TestSafe(t *testing.T) {
	both(t, func(t *testing.T, o *world, p *peer) {
		m := p.request(coap.GET, "tok", "")
		p.send(m)
		p.want()
		for range 3 {
			time.Sleep(14 * time.Second)
			p.send(m)
			p.want()
		}
		if n := o.handled(); n != 1 {
			t.Fatalf("handled %d times", n)
		}
		time.Sleep(maxTransmitSpan)
		p.send(m)
		p.want()
		if n, want := o.handled(), map[bool]int{false: 1, true: 2}[p.conn != nil]; n != want {
			t.Errorf("handled %d times, not %d", n, want)
		}
	})
}

// TestNonConfirmable: a request that is not confirmable gets a response that is
// not, and a copy of it nothing.
func TestNonConfirmable(t *testing.T) {
	both(t, func(t *testing.T, o *world, p *peer) {
		m := p.request(coap.POST, "tok", "x")
		m.Type = coap.NonConfirmable
		p.send(m)
		if r := p.want(); r.Type != coap.NonConfirmable || r.Code != coap.Changed || string(r.Token) != "tok" {
			t.Fatalf("%+v", r)
		}
		p.send(m)
		if r := p.next(10 * time.Second); r != nil || o.handled() != 1 {
			t.Errorf("a copy: %+v, handled %d times", r, o.handled())
		}
	})
}

// TestSeparate: RFC 7252, Section 5.2.2: the acknowledgement goes ahead of a
// response that takes long; that is confirmable and sent again until it is
// acknowledged.
func TestSeparate(t *testing.T) {
	both(t, func(t *testing.T, o *world, p *peer) {
		o.set(func() { o.slow = 10 * time.Second })
		m := p.request(coap.POST, "tok", "x")
		began := time.Now()
		p.send(m)
		r := p.want()
		if after := time.Since(began); r.Type != coap.Acknowledgement || r.Code != coap.Empty || r.ID != m.ID || after > ackTimeout {
			t.Fatalf("after %v: %+v", after, r)
		}
		p.send(m) // a copy while it is worked on
		if r := p.want(); r.Type != coap.Acknowledgement || r.Code != coap.Empty {
			t.Fatalf("for a copy: %+v", r)
		}
		r = p.want()
		if r.Type != coap.Confirmable || r.Code != coap.Changed || string(r.Token) != "tok" || r.ID == m.ID {
			t.Fatalf("%+v", r)
		}
		if again := p.want(); again.ID != r.ID || again.Type != coap.Confirmable {
			t.Fatalf("sent again: %+v", again)
		}
		p.send(&coap.Message{Type: coap.Acknowledgement, ID: r.ID})
		if r := p.next(2 * time.Minute); r != nil {
			t.Errorf("after its acknowledgement: %+v", r)
		}
		if o.handled() != 1 {
			t.Errorf("handled %d times", o.handled())
		}
	})
}

// TestEmptyAndMalformed: RFC 7252, Sections 3, 4.2 and 4.3.
func TestEmptyAndMalformed(t *testing.T) {
	both(t, func(t *testing.T, o *world, p *peer) {
		if p.conn == nil {
			p.ask(p.request(coap.PUT, "t", "")) // an address that is known
		}
		for name, c := range map[string]struct {
			b   []byte
			rst bool
		}{
			"ping":                      {[]byte{0x40, 0, 1, 2}, true},
			"empty NON":                 {[]byte{0x50, 0, 1, 3}, false},
			"empty with a token":        {[]byte{0x41, 0, 1, 4, 9}, true},
			"token of nine":             {[]byte{0x49, 1, 1, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0}, true},
			"the same in a NON":         {[]byte{0x59, 1, 1, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0}, false},
			"marker without payload":    {[]byte{0x40, 1, 1, 7, 0xff}, true},
			"another version":           {[]byte{0x80, 1, 1, 8}, false},
			"short":                     {[]byte{0x40, 1, 1}, false},
			"reserved class":            {[]byte{0x40, 0xc0, 1, 9}, true},
			"a response to nothing":     {[]byte{0x40, 0x45, 1, 10}, true},
			"the same in a NON ":        {[]byte{0x50, 0x45, 1, 11}, false},
			"acknowledgement of none":   {[]byte{0x60, 0, 1, 12}, false},
			"reset of none":             {[]byte{0x70, 0, 1, 13}, false},
			"a request in an ACK":       {[]byte{0x60, 1, 1, 14}, false},
			"a malformed reset":         {[]byte{0x70, 1, 1, 15, 0xff}, false},
			"piggybacked for nobody":    {[]byte{0x61, 0x45, 1, 16, 1}, false},
			"option beyond the end":     {[]byte{0x40, 1, 1, 17, 0xdd}, true},
			"a reset that is not empty": {[]byte{0x70, 0x45, 1, 18}, false},
		} {
			p.write(c.b)
			r := p.next(30 * time.Second)
			switch {
			case !c.rst && r != nil:
				t.Errorf("%s: answered with %+v", name, r)
			case c.rst && (r == nil || r.Type != coap.Reset || r.Code != coap.Empty || r.ID != uint16(c.b[2])<<8|uint16(c.b[3])):
				t.Errorf("%s: %+v", name, r)
			}
		}
	})
}

// TestConfirmable: RFC 7252, Section 4.2: when a notification is sent again,
// and when it is given up.
func TestConfirmable(t *testing.T) {
	both(t, func(t *testing.T, o *world, p *peer) {
		m := p.request(coap.GET, "obs", "")
		m.Options.SetUint(coap.ObserveOption, 0)
		p.ask(m)
		began := time.Now()
		done := o.publish(2, true)
		var at []time.Duration
		var id uint16
		for {
			r := p.next(100 * time.Second)
			if r == nil {
				break
			}
			if len(at) > 0 && r.ID != id {
				t.Errorf("another message identifier")
			}
			id = r.ID
			at = append(at, time.Since(began))
		}
		if len(at) != 1+maxRetransmit {
			t.Fatalf("sent at %v", at)
		}
		first := at[1] - at[0]
		if first < ackTimeout || first > 3*time.Second+200*time.Millisecond {
			t.Errorf("the first time-out is %v", first)
		}
		for i := 2; i < len(at); i++ {
			if d := at[i] - at[i-1] - first<<(i-1); d < -time.Second || d > time.Second {
				t.Errorf("sent at %v", at)
			}
		}
		if err := <-done; !errors.Is(err, coap.ErrTimeout) {
			t.Errorf("outcome %v", err)
		}
		// The next sign of life has it sent again.
		p.ask(p.request(coap.PUT, "t2", ""))
		r := p.want()
		if string(r.Token) != "obs" || string(r.Payload) != "2" || r.Type != coap.Confirmable {
			t.Fatalf("%+v", r)
		}
		p.send(&coap.Message{Type: coap.Acknowledgement, ID: r.ID})
		if err := <-done; err != nil {
			t.Errorf("outcome %v", err)
		}
	})
}

// TestReset: RFC 7641, Section 3.6, for both kinds of notifications.
func TestReset(t *testing.T) {
	both(t, func(t *testing.T, o *world, p *peer) {
		version := uint64(1)
		for _, confirm := range []bool{true, false} {
			m := p.request(coap.GET, "obs", "")
			m.Options.SetUint(coap.ObserveOption, 0)
			p.ask(m)
			version++
			done := o.publish(version, confirm)
			r := p.want()
			p.send(&coap.Message{Type: coap.Reset, ID: r.ID})
			if err := <-done; confirm && !errors.Is(err, coap.ErrReset) {
				t.Errorf("outcome %v", err)
			}
			synctest.Wait()
			time.Sleep(time.Second)
			if n := len(o.core.Observers(topic)); n != 0 {
				t.Errorf("confirm %v: %d observers", confirm, n)
			}
		}
	})
}

// TestAnswerFirst: what is published while a registration is answered comes
// after that answer.
func TestAnswerFirst(t *testing.T) {
	both(t, func(t *testing.T, o *world, p *peer) {
		m := p.request(coap.GET, "obs", "")
		m.Options.SetUint(coap.ObserveOption, 0)
		p.ask(m)
		o.set(func() { o.wait = make(chan struct{}) })
		m = p.request(coap.GET, "obs", "") // renews the registration
		m.Options.SetUint(coap.ObserveOption, 0)
		p.send(m)
		synctest.Wait()
		time.Sleep(10 * time.Millisecond)
		done := o.publish(7, true)
		synctest.Wait()
		if r := p.next(100 * time.Millisecond); r != nil {
			t.Errorf("before the answer: %+v", r)
		}
		close(o.wait)
		if r := p.want(); r.ID != m.ID || string(r.Payload) != "1" {
			t.Errorf("first %+v", r)
		}
		r := p.want()
		if string(r.Payload) != "7" {
			t.Errorf("then %+v", r)
		}
		p.send(&coap.Message{Type: coap.Acknowledgement, ID: r.ID})
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// late serves as the core does, but hands the answer over only after the first of the
// further responses was sent.
type late struct{ front }

func (f late) Handle(ctx context.Context, l coap.Link, m *coap.Message) *coap.Message {
	sent := make(chan struct{})
	reply := f.front.Handle(ctx, &watched{session: l.(*session), sent: sync.OnceFunc(func() { close(sent) })}, m)
	<-sent
	return reply
}

// watched tells that something was sent.
type watched struct {
	*session
	sent func()
}

func (w *watched) Send(m *coap.Message, done func(error)) {
	w.session.Send(m, done)
	w.sent()
}

// TestFurtherResponses: they come after the first, in their order, however late that
// is: with the acknowledgement, after it, or to a request that wants none.
func TestFurtherResponses(t *testing.T) {
	for _, c := range []struct {
		name       string
		kind, want coap.Type
		slow       time.Duration
	}{
		{"piggybacked", coap.Confirmable, coap.Acknowledgement, 0},
		{"separate", coap.Confirmable, coap.Confirmable, 2 * processingDelay},
		{"non-confirmable", coap.NonConfirmable, coap.NonConfirmable, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := begin(t, newWire(1), true, func(cfg *Config) { cfg.Server = late{cfg.Server.(front)} })
				defer o.stop()
				p := o.dial("node1", withCID)
				defer p.close()
				o.set(func() { o.slow = c.slow })
				m := p.request(coap.FETCH, "tok", "")
				m.Type = c.kind
				p.send(m)
				if c.want == coap.Confirmable {
					if ack := p.want(); ack.Code != coap.Empty || ack.Type != coap.Acknowledgement {
						t.Fatalf("%+v", ack)
					}
				}
				for i, body := range []string{"first", "second", "third"} {
					r := p.want()
					if i == 0 && r.Type == coap.Confirmable {
						p.send(&coap.Message{Type: coap.Acknowledgement, ID: r.ID})
					}
					if want := []coap.Type{c.want, coap.NonConfirmable}[min(i, 1)]; string(r.Payload) != body || string(r.Token) != "tok" || r.Type != want {
						t.Errorf("%d: %v %q", i, r.Type, r.Payload)
					}
				}
			})
		})
	}
}

// TestDo: requests of ours: with the response in the acknowledgement, in a
// message of its own, ahead of a lost acknowledgement, rejected, and unanswered.
func TestDo(t *testing.T) {
	both(t, func(t *testing.T, o *world, p *peer) {
		p.ask(p.request(coap.PUT, "t", ""))
		o.e.mu.Lock()
		id := o.e.sessions[0].id
		o.e.mu.Unlock()
		type outcome struct {
			r   *coap.Response
			err error
		}
		do := func() <-chan outcome {
			p.ask(p.request(coap.PUT, "t", "")) // the server core forgets who is silent for a minute
			ch := make(chan outcome, 1)
			go func() {
				req := &coap.Request{Code: coap.POST, Payload: []byte("q")}
				r, err := o.core.Do(context.Background(), id, req)
				ch <- outcome{r, err}
			}()
			return ch
		}
		answer := func(typ coap.Type, id uint16, token []byte) {
			p.send(&coap.Message{Type: typ, Code: coap.Changed, ID: id, Token: token, Payload: []byte("a")})
		}
		good := func(what string, ch <-chan outcome) {
			t.Helper()
			if x := <-ch; x.err != nil || string(x.r.Payload) != "a" {
				t.Errorf("%s: %+v, %v", what, x.r, x.err)
			}
		}
		ch := do()
		q := p.want()
		if q.Type != coap.Confirmable || q.Code != coap.POST || len(q.Token) == 0 {
			t.Fatalf("%+v", q)
		}
		answer(coap.Acknowledgement, q.ID, []byte("other")) // answers something else
		answer(coap.Acknowledgement, q.ID, q.Token)
		good("piggybacked", ch)

		ch = do()
		q = p.want()
		p.send(&coap.Message{Type: coap.Acknowledgement, ID: q.ID})
		time.Sleep(30 * time.Second)
		answer(coap.Confirmable, 900, q.Token)
		if r := p.want(); r.Type != coap.Acknowledgement || r.ID != 900 {
			t.Errorf("%+v", r)
		}
		good("separate", ch)
		answer(coap.Confirmable, 900, q.Token) // our acknowledgement was lost
		if r := p.want(); r.Type != coap.Acknowledgement || r.ID != 900 {
			t.Errorf("for a copy: %+v", r)
		}

		ch = do()
		q = p.want()
		answer(coap.NonConfirmable, 901, q.Token)
		good("without acknowledgement", ch)
		if r := p.next(40 * time.Second); r != nil {
			t.Errorf("sent again although it was answered: %+v", r)
		}

		ch = do()
		q = p.want()
		p.send(&coap.Message{Type: coap.Reset, ID: q.ID})
		if x := <-ch; !errors.Is(x.err, coap.ErrReset) {
			t.Errorf("rejected: %v", x.err)
		}

		ch = do()
		if x := <-ch; !errors.Is(x.err, coap.ErrTimeout) && !errors.Is(x.err, context.DeadlineExceeded) {
			t.Errorf("unanswered: %v", x.err)
		}
		for p.next(time.Second) != nil {
		}
		o.e.mu.Lock()
		defer o.e.mu.Unlock()
		for _, s := range o.e.sessions {
			if a := s.act; a != nil && len(a.sent)+len(a.waiters)+len(a.work) != 0 {
				t.Errorf("left behind: %+v", a)
			}
		}
	})
}

// TestBlockwise: a body of many blocks each way.
func TestBlockwise(t *testing.T) {
	both(t, func(t *testing.T, o *world, p *peer) {
		body := bytes.Repeat([]byte("0123456789abcdef"), 300)
		const size = 1024
		var r *coap.Message
		for off := 0; off < len(body); off += size {
			end := min(off+size, len(body))
			m := p.request(coap.PUT, "b", string(body[off:end]))
			m.Options.SetBlock(coap.Block1, coap.Block{Num: uint32(off / size), More: end < len(body), SZX: 6})
			r = p.ask(m)
			if end < len(body) && r.Code != coap.Continue {
				t.Fatalf("%v", r.Code)
			}
		}
		var got []byte
		for num := uint32(0); ; {
			b, err := r.Options.Block(coap.Block2)
			if err != nil || b == nil || b.Num != num {
				t.Fatalf("%+v, %v", b, err)
			}
			got = append(got, r.Payload...)
			if !b.More {
				break
			}
			num++
			m := p.request(coap.PUT, "b", "")
			m.Options.SetBlock(coap.Block2, coap.Block{Num: num, SZX: 6})
			r = p.ask(m)
		}
		if !bytes.Equal(got, body) {
			t.Errorf("%d bytes of %d", len(got), len(body))
		}
	})
}

// TestForgotten: nothing of a peer is left in the end but the session.
func TestForgotten(t *testing.T) {
	both(t, func(t *testing.T, o *world, p *peer) {
		for i := range 200 {
			p.ask(p.request(coap.POST, fmt.Sprint(i), "x"))
		}
		o.e.mu.Lock()
		for _, s := range o.e.sessions {
			if n := len(s.shelf.all()); n != maxReceipts {
				t.Errorf("%d receipts", n)
			}
		}
		o.e.mu.Unlock()
		time.Sleep(exchangeLifetime + 2*sweepEvery)
		o.e.mu.Lock()
		defer o.e.mu.Unlock()
		for _, s := range o.e.sessions {
			if s.act != nil || s.shelf != nil {
				t.Errorf("left: %+v, %+v", s.act, s.shelf)
			}
		}
		if o.e.receipts != (receiptList{}) || o.e.safe != (receiptList{}) {
			t.Errorf("receipts: %+v, %+v", o.e.receipts, o.e.safe)
		}
		for i := range o.e.ciphers {
			if o.e.ciphers[i].of != nil {
				t.Error("expanded keys are left")
			}
		}
		if want := map[bool]int{false: 0, true: 1}[p.conn != nil]; len(o.e.sessions) != want {
			t.Errorf("%d sessions", len(o.e.sessions))
		}
	})
}
