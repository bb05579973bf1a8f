package endpoint

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	mrand "math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/record"
)

var (
	_ coap.Link      = (*session)(nil)
	_ coap.Requester = (*session)(nil)
	_ coap.Batcher   = (*session)(nil)
	_ coap.Homed     = (*session)(nil)
	_ coap.Yielder   = (*session)(nil)
)

// transmission is a confirmable message of ours that nobody acknowledged yet.
type transmission struct {
	s        *session
	id       uint16
	b        []byte
	tries    int
	wait     time.Duration
	over     bool
	withheld bool        // the peer's address did not get it yet
	probe    *probe      // of the address that alone got it, if that was to be proven
	ping     bool        // an empty message, to be rejected
	done     func(error) // nil: nobody asks
	waiter   *waiter     // of a request; nil for other messages

	// See yield.go.
	overtaken *atomic.Bool // nil: never
	yield     func(coap.Attempt) (late func(error))
	token     [8]byte // of one that is silent
	size      uint8   // of the token
	silent    bool    // it gave way: it is not sent again
	yielding  bool    // who asked is being told so, and of the end not before
	err       error   // of the end, meanwhile

	tick uint64 // in the wheel; 0: it is not there
	at   int    // in its bucket
}

// waiter waits for the response to a request of ours.
type waiter struct {
	token []byte
	ch    chan outcome // has room for one
}

type outcome struct {
	m   *coap.Message
	err error
}

func (w *waiter) deliver(m *coap.Message) { w.put(outcome{m: m}) }
func (w *waiter) fail(err error)          { w.put(outcome{err: err}) }

func (w *waiter) put(o outcome) {
	select {
	case w.ch <- o:
	default: // there is an outcome already
	}
}

// Peer describes the other end. Its exporter was used up by Admit.
func (s *session) Peer() coap.Peer {
	s.e.mu.Lock()
	defer s.e.mu.Unlock()
	return coap.Peer{Link: s.id, Addr: s.addr(), Via: s.via, Subject: s.subject()}
}

// Outlet: what is sent by one socket goes together.
func (s *session) Outlet() coap.Outlet { return s.e.out }

// OwnsBlockwise: bodies are cut and put together by the server core.
func (s *session) OwnsBlockwise() bool { return false }

// Send transmits m. It may wait until the socket has taken what was sent before.
func (s *session) Send(m *coap.Message, done func(error)) {
	s.SendYielding(m, coap.Yielding{}, done)
}

// SendYielding is Send of a notification that gives way to a newer one; see yield.go.
func (s *session) SendYielding(m *coap.Message, y coap.Yielding, done func(error)) {
	s.e.out.throttle()
	s.e.mu.Lock()
	t := s.send(m, y, done)
	s.e.mu.Unlock()
	t.tell()
}

// send is Send with the lock held; what it returns is to be told without.
func (s *session) send(m *coap.Message, y coap.Yielding, done func(error)) told {
	if s.gone {
		return told{done, coap.ErrGone}
	}
	if s.act != nil {
		for _, x := range s.act.work {
			if bytes.Equal(x.token, m.Token) {
				x.held = append(x.held, held{m, y, done})
				return told{}
			}
		}
	}
	c := *m
	c.ID = s.newID()
	if m.Type == coap.Confirmable {
		b, err := c.AppendBinary(s.e.spareRoom())
		if err != nil {
			return told{done, fmt.Errorf("endpoint: %w", err)}
		}
		t := s.confirmable(c.ID, b, y.After)
		t.done, t.overtaken, t.yield = done, y.Overtaken, y.Yield
		return told{}
	}
	b, err := c.AppendBinary(s.e.message[:0])
	if err != nil {
		return told{done, fmt.Errorf("endpoint: %w", err)}
	}
	s.e.message = b
	if !s.emit(b) {
		// The server core sends it again at the next sign of life.
		return told{done, coap.ErrWithheld}
	}
	s.rememberNON(c.ID, c.Token)
	return told{done, nil}
}

// Do sends a request to the peer and waits for its response.
func (s *session) Do(ctx context.Context, m *coap.Message) (*coap.Message, error) {
	ctx, cancel := context.WithTimeout(ctx, maxTransmitWait)
	defer cancel()
	c := *m
	c.Type = coap.Confirmable
	if len(c.Token) == 0 {
		c.Token = make([]byte, 8)
		_, _ = rand.Read(c.Token) // never fails (crypto/rand)
	}
	w := &waiter{token: c.Token, ch: make(chan outcome, 1)}
	e := s.e
	e.mu.Lock()
	if s.gone {
		e.mu.Unlock()
		return nil, coap.ErrGone
	}
	c.ID = s.newID()
	b, err := c.MarshalBinary()
	if err != nil {
		e.mu.Unlock()
		return nil, fmt.Errorf("endpoint: request: %w", err)
	}
	a := s.activity()
	a.waiters = append(a.waiters, w)
	t := s.confirmable(c.ID, b, coap.Attempt{})
	t.waiter = w
	e.mu.Unlock()

	var o outcome
	select {
	case o = <-w.ch:
	case <-ctx.Done():
		o.err = ctx.Err()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !t.over {
		t.end(nil) // nobody asks for it
	}
	if a := s.act; a != nil {
		if i := slices.Index(a.waiters, w); i >= 0 {
			a.waiters = slices.Delete(a.waiters, i, i+1)
		}
		s.settle()
	}
	if o.err != nil {
		return nil, fmt.Errorf("endpoint: request to the peer: %w", o.err)
	}
	return o.m, nil
}

// confirmable sends a message until it is acknowledged (RFC 7252, Section 4.2); after
// another that gave way to it, as the retransmission that was due.
func (s *session) confirmable(id uint16, b []byte, after coap.Attempt) *transmission {
	e := s.e
	var t *transmission
	if n := len(e.spareSent); n > 0 {
		t, e.spareSent = e.spareSent[n-1], e.spareSent[:n-1]
	} else {
		t = &transmission{}
	}
	*t = transmission{s: s, id: id, b: b, tries: after.Tries, wait: after.Wait}
	if t.tries == 0 {
		t.wait = time.Duration(float64(ackTimeout) * (1 + mrand.Float64()*(ackRandomFactor-1)))
	} else {
		e.metrics.retransmissions.Inc()
	}
	a := s.activity()
	a.sent = append(a.sent, t)
	e.room.sending += transmissionSize + len(b)
	e.wheel.add(t, t.wait)
	if t.withheld = !s.emit(b); !t.withheld {
		t.probe = s.probing()
	}
	return t
}

// due sends it again, or gives up.
func (t *transmission) due(e *Endpoint) {
	if t.over || t.tick != 0 { // it serves again meanwhile
		return
	}
	if t.tries == maxRetransmit {
		err := coap.ErrOvertaken
		if !t.silent {
			err = coap.ErrTimeout
			e.metrics.timeouts.Inc()
		}
		if told := t.end(err); told.done != nil {
			e.crew.do(told.tell)
		}
		return
	}
	t.tries++
	t.wait *= 2
	e.wheel.add(t, t.wait)
	if t.silent {
		return
	}
	if t.overtaken != nil && t.overtaken.Load() {
		t.giveWay()
		return
	}
	e.metrics.retransmissions.Inc()
	if t.withheld = !t.s.emit(t.b); t.withheld {
		t.probe = nil
	}
}

// end is the end of a transmission; what it returns tells who asked, and is to
// be called without the lock. But for those with a waiter t is of no use any more.
func (t *transmission) end(err error) told {
	if t.over {
		return told{}
	}
	s := t.s
	e := s.e
	e.room.sending -= transmissionSize
	e.wheel.remove(t)
	t.forgetMessage()
	t.over = true
	if a := s.act; a != nil {
		if i := slices.Index(a.sent, t); i >= 0 {
			a.sent = slices.Delete(a.sent, i, i+1)
		}
		s.settle()
	}
	if t.waiter != nil && err != nil {
		t.waiter.fail(err)
	}
	if t.yielding {
		t.err = err // giveWay tells it
		return told{}
	}
	return t.outcome(e, err)
}

// forgetMessage gives up what would be sent again.
func (t *transmission) forgetMessage() {
	if t.b == nil {
		return
	}
	e := t.s.e
	e.room.sending -= len(t.b)
	clear(t.b) // it may have held keys
	if len(e.spareBytes) < maxSpareSent && cap(t.b) <= maxSpareBytes {
		e.spareBytes = append(e.spareBytes, t.b[:0])
	}
	t.b = nil
}

// outcome is what tells who asked. But for those with a waiter t serves again.
func (t *transmission) outcome(e *Endpoint, err error) told {
	done := t.done
	t.done = nil
	if t.waiter == nil && len(e.spareSent) < maxSpareSent {
		t.s, t.overtaken, t.yield = nil, nil, nil
		e.spareSent = append(e.spareSent, t)
	}
	return told{done, err}
}

// spareRoom is an empty buffer for a message that is kept until it is
// acknowledged.
func (e *Endpoint) spareRoom() []byte {
	n := len(e.spareBytes)
	if n == 0 {
		return make([]byte, 0, 192)
	}
	b := e.spareBytes[n-1]
	e.spareBytes = e.spareBytes[:n-1]
	return b
}

// transmission finds the message of ours with this identifier.
func (s *session) transmission(id uint16) *transmission {
	if s.act == nil {
		return nil
	}
	for _, t := range s.act.sent {
		if t.id == id {
			return t
		}
	}
	return nil
}

// newID is an identifier that none of our messages under way has.
func (s *session) newID() uint16 {
	for {
		s.nextID++
		if s.nextID-s.keptID >= idReserve {
			s.touched()
		}
		if s.transmission(s.nextID) == nil {
			return s.nextID
		}
	}
}

// emit sends one message; false: not to the peer's address, which must not get so
// much yet.
func (s *session) emit(b []byte) bool {
	if s.gone {
		return false
	}
	s.wake()
	if !s.afford(len(b)) {
		s.astray(b)
		return false
	}
	s.transmit(b)
	return true
}

// transmit sends one message.
func (s *session) transmit(b []byte) {
	if s.via == coap.Plain {
		s.push(append(s.e.out.buffer(), b...))
		return
	}
	s.seal(record.ApplicationData, b)
}
