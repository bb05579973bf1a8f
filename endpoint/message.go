package endpoint

import (
	"bytes"
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// exchange is one request of the peer that is worked on.
type exchange struct {
	s       *session
	m       *coap.Message
	con     bool
	id      uint16
	token   []byte
	effects bool // it may change something
	tells   bool // see room.go: the peer may be somebody else after it
	stale   bool // the session was
	pending bool // Admit had not succeeded
	receipt *receipt
	over    bool
	apart   bool // nobody who reads waits for it: it sends its answer itself
	held    []held
	ctx     handling

	// Memory of m, enough for most.
	letter coap.Message
	opts   [5]coap.Option
	data   [80]byte
}

// handling is the context of the handler of a request: that of all, and its
// [coap.Waiter].
type handling struct {
	context.Context
	x *exchange
}

// Value is that of all but for who is told that the handler waits.
func (c *handling) Value(key any) any {
	if key == (coap.WaiterKey{}) {
		return c
	}
	return c.Context.Value(key)
}

// Waits is told by a handler that is about to wait ([coap.Waiting]).
func (c *handling) Waits() { c.x.s.e.handOver(c.x) }

// held is a message of ours that must not overtake the answer to the request
// with its token: a notification, or a further response of a group.
type held struct {
	m    *coap.Message
	y    coap.Yielding
	done func(error)
}

// message reads one message of the peer. b is valid during the call.
func (s *session) message(b []byte, from netip.AddrPort, now time.Time) {
	m := &s.e.incoming
	err := m.Decode(b)
	if err != nil {
		s.e.metrics.dropped.WithLabelValues("message").Inc()
		if rst, ok := rejection(b, nil, err); ok {
			s.emit(rst[:])
		}
		return
	}
	switch {
	case m.Type == coap.Acknowledgement:
		s.acknowledged(m, from)
	case m.Type == coap.Reset:
		s.rejected(m, from)
	case m.Code.IsRequest():
		s.request(m, now)
	case m.Code.IsResponse():
		s.response(m, now)
	case m.Type == coap.Confirmable: // RFC 7252, Section 4.3: a ping
		s.empty(coap.Reset, m.ID)
	}
}

// empty sends an empty message.
func (s *session) empty(t coap.Type, id uint16) {
	b := [4]byte{1<<6 | byte(t)<<4, 0, byte(id >> 8), byte(id)}
	s.emit(b[:])
}

// request has a request served, or answers a copy of one as before (RFC 7252,
// Section 4.5).
func (s *session) request(m *coap.Message, now time.Time) {
	e := s.e
	if r := s.receipt(m.ID, m.Token, now); r != nil {
		e.metrics.duplicates.Inc()
		switch {
		case m.Type != coap.Confirmable:
		case r.reply != nil:
			r.set(withheld, !s.emit(r.reply))
		case r.has(acked):
			s.empty(coap.Acknowledgement, m.ID)
		}
		return
	}
	if e.working >= maxWorking {
		e.metrics.dropped.WithLabelValues("busy").Inc()
		return
	}
	x := &exchange{s: s, con: m.Type == coap.Confirmable, id: m.ID, effects: effects(m), tells: tells(m), stale: s.stale, pending: s.pending() != nil}
	m.CopyTo(&x.letter, x.opts[:0], x.data[:0])
	m = &x.letter
	x.m, x.token, x.ctx = m, m.Token, handling{e.ctx, x}
	is := served
	if s.safe(m, x.effects) {
		is |= safe
	}
	x.receipt = s.remember(m.ID, m.Token, is, now)
	a := s.activity()
	a.work = append(a.work, x)
	e.working++
	e.soon(task{x: x})
}

// leave is the end of a request's being served by who reads: it may take long, and is
// acknowledged in time. nil is none.
func (x *exchange) leave() {
	if x == nil || x.over {
		return
	}
	x.apart = true
	if x.con {
		x.s.e.wheel.add(x, processingDelay)
	}
}

// due sends the acknowledgement ahead of a response that takes long (RFC 7252,
// Section 5.2.2).
func (x *exchange) due(*Endpoint) {
	if x.over || x.s.gone {
		return
	}
	x.receipt.set(acked, true)
	x.s.empty(coap.Acknowledgement, x.id)
}

// serve asks the server core, which may take its time.
func (x *exchange) serve() {
	s, m := x.s, x.m
	e := s.e
	var reply *coap.Message
	if err := x.admitted(); err != nil {
		r := coap.ErrorResponse(err)
		reply = &coap.Message{Code: r.Code, Token: m.Token, Options: r.Options, Payload: r.Payload}
	} else if reply = x.challenge(m); reply == nil {
		reply = e.cfg.Server.Handle(&x.ctx, s, m)
	}
	kept := s.via == coap.Plain && x.tells && e.cfg.Keep != nil && e.cfg.Keep(s.id)
	e.mu.Lock()
	if kept {
		s.stay(true)
	}
	apart := x.apart
	if apart {
		e.out.Hold()
	}
	after := x.finish(reply)
	gone := s.gone
	e.mu.Unlock()
	if apart {
		e.out.Release() // waking who sends takes as long
	}
	for _, t := range after {
		t.tell()
	}
	if gone {
		e.cfg.Server.Closed(s.id) // it was told before; the request came after that
	}
}

// admitted asks again who the peer is, when that could not be told at the end
// of the handshake.
func (x *exchange) admitted() error {
	if !x.pending {
		return nil
	}
	s := x.s
	e := s.e
	e.mu.Lock()
	p := s.pending()
	e.mu.Unlock()
	if p == nil {
		return nil
	}
	subject, err := e.cfg.Keys.Admit(e.ctx, *p)
	if err != nil {
		return err
	}
	e.mu.Lock()
	first := s.pending() == p
	if first {
		s.more.pending = nil
		s.setSubject(subject)
		s.doubt()
		s.keep()
	}
	e.mu.Unlock()
	if first {
		s.opened()
	}
	return nil
}

// finish sends what the server core answered: with the acknowledgement, or,
// where that has gone ahead, in a message of its own.
func (x *exchange) finish(reply *coap.Message) (after []told) {
	s := x.s
	e := s.e
	x.over = true
	x.receipt.set(served, false)
	e.working--
	if s.gone {
		return nil
	}
	if x.tells && s.via != coap.Plain {
		s.doubt()
	}
	a := s.activity()
	if i := slices.Index(a.work, x); i >= 0 {
		a.work = slices.Delete(a.work, i, i+1)
	}
	switch {
	case x.con && !x.receipt.has(acked):
		b := s.encode(coap.Acknowledgement, x.id, x.token, reply)
		x.receipt.answer(b)
		x.keepReply(b)
		x.receipt.set(withheld, !s.emit(b))
	case reply == nil:
	case x.con:
		id := s.newID()
		s.confirmable(id, append(e.spareRoom(), s.encode(coap.Confirmable, id, x.token, reply)...), coap.Attempt{})
	default:
		id := s.newID()
		s.rememberNON(id, x.token)
		s.emit(s.encode(coap.NonConfirmable, id, x.token, reply))
	}
	for _, h := range x.held {
		if t := s.send(h.m, h.y, h.done); t.done != nil {
			after = append(after, t)
		}
	}
	x.held = nil
	s.settle()
	return after
}

// encode writes a reply, into memory that is used for the next; nil is an empty message.
func (s *session) encode(t coap.Type, id uint16, token []byte, reply *coap.Message) []byte {
	m := coap.Message{Type: t, ID: id}
	if reply != nil {
		m.Code, m.Token, m.Options, m.Payload = reply.Code, token, reply.Options, reply.Payload
	}
	b, err := m.AppendBinary(s.e.message[:0])
	if err != nil {
		s.e.log.Error("a response cannot be sent", "err", err)
		m.Code, m.Token, m.Options, m.Payload = coap.InternalServerError, token, nil, nil
		b, _ = m.AppendBinary(s.e.message[:0]) // a token that was received can be sent
	}
	s.e.message = b
	return b
}

// acknowledged ends a transmission of ours; the response to a request of ours
// may come with it (RFC 7252, Section 5.2.1).
func (s *session) acknowledged(m *coap.Message, from netip.AddrPort) {
	t := s.transmission(m.ID)
	if t == nil || m.Code.IsRequest() {
		return
	}
	s.fresh()
	if t.probe != nil && t.probe == s.probing() && from == s.addr() {
		s.unhold() // it went nowhere else
	}
	w := t.waiter
	if m.Code.IsResponse() && (w == nil || !bytes.Equal(w.token, m.Token)) {
		return // RFC 7252, Section 5.3.2: it answers nothing of ours
	}
	s.forgetOvertaken(t)
	s.e.soon(task{t: t.end(nil)})
	if m.Code.IsResponse() {
		w.deliver(m.Clone())
	}
}

// rejected reads a Reset.
func (s *session) rejected(m *coap.Message, from netip.AddrPort) {
	if m.Code != coap.Empty {
		return // RFC 7252, Section 4.2: a Reset is empty
	}
	if p := s.probing(); p != nil && !p.asked.IsZero() && m.ID == p.ping && from == s.addr() {
		s.proven()
		return
	}
	e := s.e
	if t := s.transmission(m.ID); t != nil {
		s.fresh()
		s.rejectKin(t)
		e.soon(task{t: t.end(coap.ErrReset)})
		return
	}
	if token, ok := s.nonToken(m.ID); ok {
		id := s.id
		e.crew.do(func() { e.cfg.Server.Cancel(id, token) })
	}
}

// response is a response in a message of its own.
func (s *session) response(m *coap.Message, now time.Time) {
	con := m.Type == coap.Confirmable
	if r := s.receipt(m.ID, m.Token, now); r != nil {
		if con && r.reply != nil {
			s.emit(r.reply)
		}
		return
	}
	i := -1
	if s.act != nil {
		i = slices.IndexFunc(s.act.waiters, func(w *waiter) bool { return bytes.Equal(w.token, m.Token) })
	}
	if i < 0 {
		if con {
			s.empty(coap.Reset, m.ID) // RFC 7252, Section 4.2
		}
		return
	}
	w := s.act.waiters[i]
	s.fresh() // it has the token of a request of ours
	if con {
		r := s.remember(m.ID, m.Token, 0, now)
		r.answer(s.encode(coap.Acknowledgement, m.ID, nil, nil))
		s.empty(coap.Acknowledgement, m.ID)
	}
	// RFC 7252, Section 5.2.2: it acknowledges the request as well.
	for _, t := range slices.Clone(s.act.sent) {
		if t.waiter == w {
			s.e.soon(task{t: t.end(nil)})
		}
	}
	w.deliver(m.Clone())
}
