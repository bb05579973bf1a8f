package coaptest

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// Transmission parameters of RFC 7252, Section 4.8.
const (
	ackTimeout       = 2 * time.Second
	ackRandomFactor  = 1.5
	maxRetransmit    = 4
	processingDelay  = 2 * time.Second
	exchangeLifetime = 247 * time.Second
)

// end is one end of the message layer (RFC 7252, Section 4): retransmission,
// deduplication, piggybacked and separate responses.
type end struct {
	l      *Link
	server bool // which end this is

	serve       func(context.Context, *coap.Message) *coap.Message // requests
	unsolicited func(*coap.Message) bool                           // responses nobody waits for; false rejects
	rejected    func(token []byte)                                 // Reset of a non-confirmable message

	mu      sync.Mutex
	closed  bool
	nextID  uint16
	pending map[uint16]*transmission
	sentNON map[uint16][]byte   // tokens, for resets
	seen    map[uint16]*receipt // by message id of the peer
	waiting map[string]chan *coap.Message
	serving map[string]*later // by token
}

// later is what is sent with the token of a request that is being answered: it goes
// out after the answer ([coap.Link]).
type later struct {
	requests int
	sends    []func()
}

// transmission is a confirmable message that awaits its acknowledgement.
type transmission struct {
	b     []byte
	tries int
	wait  time.Duration
	timer *time.Timer
	done  func(error)
}

// receipt remembers a message of the peer, so that a copy gets the same answer
// and no second treatment.
type receipt struct {
	at    time.Time
	reply []byte // nil while there is none
	acked bool   // an empty acknowledgement has gone out
}

func newEnd(l *Link, server bool) *end {
	return &end{
		l: l, server: server,
		pending: make(map[uint16]*transmission),
		sentNON: make(map[uint16][]byte),
		seen:    make(map[uint16]*receipt),
		waiting: make(map[string]chan *coap.Message),
		serving: make(map[string]*later),
	}
}

func (e *end) close() {
	e.mu.Lock()
	e.closed = true
	var done []func(error)
	for _, t := range e.pending {
		t.timer.Stop()
		done = append(done, t.done)
	}
	clear(e.pending)
	e.mu.Unlock()
	for _, f := range done {
		f(errClosed)
	}
}

// after transmits m, once a request with its token is answered.
func (e *end) after(m *coap.Message, done func(error)) {
	e.mu.Lock()
	if l := e.serving[string(m.Token)]; l != nil {
		l.sends = append(l.sends, func() { e.send(m, done) })
		e.mu.Unlock()
		return
	}
	e.mu.Unlock()
	e.send(m, done)
}

// send transmits m under a new message identifier; done is called once.
func (e *end) send(m *coap.Message, done func(error)) (id uint16) {
	c := *m
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		done(errClosed)
		return 0
	}
	e.nextID++
	c.ID = e.nextID
	b, err := c.MarshalBinary()
	if err != nil {
		e.mu.Unlock()
		panic("coaptest: message cannot be sent: " + err.Error())
	}
	if c.Type != coap.Confirmable {
		e.sentNON[c.ID] = bytes.Clone(c.Token)
		e.mu.Unlock()
		e.l.carry(!e.server, b)
		done(nil)
		return c.ID
	}
	t := &transmission{b: b, done: done}
	t.wait = time.Duration(float64(ackTimeout) * (1 + e.l.float()*(ackRandomFactor-1)))
	t.timer = time.AfterFunc(t.wait, func() { e.retransmit(c.ID, t) })
	e.pending[c.ID] = t
	e.mu.Unlock()
	e.l.carry(!e.server, b)
	return c.ID
}

// retransmit: RFC 7252, Section 4.2.
func (e *end) retransmit(id uint16, t *transmission) {
	e.mu.Lock()
	if e.pending[id] != t {
		e.mu.Unlock()
		return
	}
	if t.tries == maxRetransmit {
		delete(e.pending, id)
		e.mu.Unlock()
		t.done(coap.ErrTimeout)
		return
	}
	t.tries++
	t.wait *= 2
	t.timer.Reset(t.wait)
	e.mu.Unlock()
	e.l.carry(!e.server, t.b)
}

// settle ends a transmission.
func (e *end) settle(id uint16, err error) (known bool) {
	e.mu.Lock()
	t := e.pending[id]
	delete(e.pending, id)
	e.mu.Unlock()
	if t == nil {
		return false
	}
	t.timer.Stop()
	t.done(err)
	return true
}

func (e *end) receive(b []byte) {
	m, err := coap.DecodeMessage(b)
	if err != nil {
		// RFC 7252, Section 4.2: a malformed confirmable message is rejected.
		if len(b) >= 4 && b[0]>>4 == 4 {
			e.empty(coap.Reset, uint16(b[2])<<8|uint16(b[3]))
		}
		return
	}
	switch m.Type {
	case coap.Acknowledgement:
		e.settle(m.ID, nil)
		if m.Code.IsResponse() {
			e.respond(m)
		}
		return
	case coap.Reset:
		if !e.settle(m.ID, coap.ErrReset) {
			e.mu.Lock()
			token, ok := e.sentNON[m.ID]
			e.mu.Unlock()
			if ok && e.rejected != nil {
				e.rejected(token)
			}
		}
		return
	}
	e.mu.Lock()
	if old := e.seen[m.ID]; old != nil && time.Since(old.at) < exchangeLifetime {
		reply, acked := old.reply, old.acked
		e.mu.Unlock()
		switch {
		case m.Type != coap.Confirmable:
		case reply != nil:
			e.l.carry(!e.server, reply)
		case acked:
			e.empty(coap.Acknowledgement, m.ID)
		}
		return
	}
	rc := &receipt{at: time.Now()}
	e.seen[m.ID] = rc
	e.mu.Unlock()
	switch {
	case m.Code == coap.Empty: // ping: RFC 7252, Section 4.3
		e.settleReceipt(rc, coap.Reset, m.ID)
	case m.Code.IsRequest():
		e.request(m.Clone(), rc)
	default:
		ok := e.respond(m)
		if m.Type == coap.Confirmable && ok {
			e.settleReceipt(rc, coap.Acknowledgement, m.ID)
		} else if !ok {
			e.settleReceipt(rc, coap.Reset, m.ID)
		}
	}
}

// settleReceipt answers with an empty message, now and to copies.
func (e *end) settleReceipt(rc *receipt, t coap.Type, id uint16) {
	b, _ := (&coap.Message{Type: t, ID: id}).MarshalBinary()
	e.mu.Lock()
	rc.reply = b
	e.mu.Unlock()
	e.l.carry(!e.server, b)
}

func (e *end) empty(t coap.Type, id uint16) {
	b, _ := (&coap.Message{Type: t, ID: id}).MarshalBinary()
	e.l.carry(!e.server, b)
}

// request runs the server in a goroutine of its own. When it takes longer than
// processingDelay the acknowledgement goes ahead and the response follows in a
// message of its own (RFC 7252, Section 5.2.2).
func (e *end) request(m *coap.Message, rc *receipt) {
	e.l.goroutine(func() {
		var early *time.Timer
		if m.Type == coap.Confirmable {
			early = time.AfterFunc(processingDelay, func() {
				e.mu.Lock()
				send := rc.reply == nil && !rc.acked && !e.closed
				rc.acked = rc.acked || send
				e.mu.Unlock()
				if send {
					e.empty(coap.Acknowledgement, m.ID)
				}
			})
		}
		answered := e.answering(string(m.Token))
		defer answered()
		reply := e.serve(e.l.ctx, m)
		if early != nil {
			early.Stop()
		}
		e.mu.Lock()
		acked := rc.acked
		var b []byte
		if m.Type == coap.Confirmable && !acked {
			ack := &coap.Message{Type: coap.Acknowledgement, ID: m.ID}
			if reply != nil {
				c := *reply
				c.Type, c.ID = coap.Acknowledgement, m.ID
				ack = &c
			}
			var err error
			if b, err = ack.MarshalBinary(); err != nil {
				panic("coaptest: reply cannot be sent: " + err.Error())
			}
			rc.reply = b
		}
		e.mu.Unlock()
		switch {
		case b != nil:
			e.l.carry(!e.server, b)
		case reply != nil:
			c := *reply
			c.Type = m.Type // separate response, or NON for NON
			e.send(&c, func(error) {})
		}
	})
}

// answering notes that a request is answered, until the function is called.
func (e *end) answering(token string) (answered func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	l := e.serving[token]
	if l == nil {
		l = &later{}
		e.serving[token] = l
	}
	l.requests++
	return func() {
		e.mu.Lock()
		if l.requests--; l.requests > 0 {
			e.mu.Unlock()
			return
		}
		delete(e.serving, token)
		e.mu.Unlock()
		for _, send := range l.sends {
			send()
		}
	}
}

// respond hands a response to who waits for it, and the next ones with the
// same token to the observer; false when nobody knows it.
func (e *end) respond(m *coap.Message) bool {
	m = m.Clone()
	e.mu.Lock()
	ch := e.waiting[string(m.Token)]
	delete(e.waiting, string(m.Token))
	e.mu.Unlock()
	if ch != nil {
		ch <- m // has room for the one
		return true
	}
	return e.unsolicited != nil && e.unsolicited(m)
}

// exchange sends a request and waits for its response. A message without a
// token gets one; its type stays.
func (e *end) exchange(ctx context.Context, m *coap.Message) (*coap.Message, error) {
	c := *m
	if len(c.Token) == 0 {
		c.Token = e.l.newToken(e.server)
	}
	ch := make(chan *coap.Message, 1)
	e.mu.Lock()
	e.waiting[string(c.Token)] = ch
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		if e.waiting[string(c.Token)] == ch {
			delete(e.waiting, string(c.Token))
		}
		e.mu.Unlock()
	}()
	c.Options = slices.Clone(c.Options)
	failed := make(chan error, 1)
	id := e.send(&c, func(err error) {
		if err != nil {
			failed <- err
		}
	})
	select {
	case r := <-ch:
		return r, nil
	case err := <-failed:
		return nil, err
	case <-ctx.Done():
		if c.Type == coap.Confirmable {
			e.settle(id, nil) // nobody asks for it
		}
		return nil, ctx.Err()
	case <-e.l.ctx.Done():
		return nil, errClosed
	}
}
