package swarm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/record"
)

// Errors of a request.
var (
	ErrTimeout = errors.New("swarm: no answer")
	errClosed  = errors.New("swarm: the association is over")
	errNotHere = errors.New("swarm: only at a gateway on this machine")
	errBusy    = errors.New("swarm: the node has a request under way")
)

// call is a request of a node that is under way.
type call struct {
	node    int
	id      uint16
	token   [8]byte
	b       []byte // the message
	tries   int
	wait    time.Duration
	at      time.Time // when it is sent again
	acked   bool      // the response comes in a message of its own
	silent  bool      // nothing comes back on success (RFC 7967)
	observe bool
	done    func(m *coap.Message, err error) // with mu held; m is valid during the call
}

// epoch of every session.
const epoch = 1

// datagram is told of each datagram for node i.
func (s *Swarm) datagram(i int, b []byte) {
	n := &s.nodes[i]
	for len(b) > 0 {
		r, rest, err := record.Next(b, 0)
		if err != nil {
			return
		}
		raw := b[:len(b)-len(rest)]
		b = rest
		if n.live && r.Epoch == epoch && s.record(i, &r) {
			continue
		}
		if n.shake != nil {
			n.shake.Deliver(raw)
		}
	}
}

// record reads a record of the session; false when it is none of it.
func (s *Swarm) record(i int, r *record.Record) bool {
	n := &s.nodes[i]
	c := n.in
	if c == nil {
		c, _ = record.NewCipher(n.suite, &n.read) // the suite was accepted
		if len(s.nodes) <= expandedKeys {
			n.in = c
		}
	}
	kind, content, err := c.Open(s.plain[:0], r)
	if err != nil || !n.window.Fresh(r.Seq) {
		if n.shake == nil {
			s.stats.Undecipherable++
		}
		return false
	}
	n.window.Accept(r.Seq)
	switch kind {
	case record.ApplicationData:
		s.message(i, content)
	case record.Alert:
		if len(content) == 2 && (content[0] == 2 || content[1] == 0) {
			s.stats.Closed++
			s.shut(n)
		}
	}
	return true
}

// shut ends an association.
func (s *Swarm) shut(n *node) {
	if n.live {
		s.open.Add(-1)
	}
	n.live, n.watches = false, nil
	if c := n.call; c != nil {
		s.end(c, nil, errClosed)
	}
}

// message reads one message of the server.
func (s *Swarm) message(i int, b []byte) {
	n := &s.nodes[i]
	m, err := coap.DecodeMessage(b)
	if err != nil {
		return
	}
	if m.Type == coap.Confirmable {
		if m.Code.IsRequest() || m.Code == coap.Empty {
			s.empty(i, coap.Reset, m.ID) // a ping, or what no node here serves
			return
		}
		again := n.hasCON && n.lastCON == m.ID
		n.lastCON, n.hasCON = m.ID, true
		known := n.watch(m.Token) >= 0 || n.call != nil && bytes.Equal(m.Token, n.call.token[:])
		if !known && !again {
			s.empty(i, coap.Reset, m.ID)
			return
		}
		s.empty(i, coap.Acknowledgement, m.ID)
		if again {
			s.stats.Repeated++
			return
		}
	}
	c := n.call
	if c != nil && (m.Type == coap.Acknowledgement || m.Type == coap.Reset) && m.ID == c.id {
		switch {
		case m.Type == coap.Reset:
			s.end(c, nil, errClosed)
			return
		case m.Code == coap.Empty && c.silent:
			s.end(c, &coap.Message{}, nil)
			return
		case m.Code == coap.Empty:
			c.acked = true
			c.at = time.Now().Add(handshakeTimeout)
			return
		}
	}
	if !m.Code.IsResponse() {
		return
	}
	if c != nil && bytes.Equal(m.Token, c.token[:]) {
		s.stats.Responses++
		if !m.Code.IsSuccess() {
			s.stats.Refused++
		}
		if c.observe && !m.Options.Has(coap.ObserveOption) {
			n.unwatch(c.token[:])
		}
		s.end(c, m, nil)
		return
	}
	w := n.watch(m.Token)
	if w < 0 {
		return
	}
	fn := n.watches[w].fn
	s.stats.Notifications++
	if m.Type == coap.Confirmable {
		s.stats.Acknowledged++
	}
	if !m.Options.Has(coap.ObserveOption) {
		n.unwatch(m.Token) // RFC 7641, Section 4.2: the last
	}
	if fn != nil {
		fn(m)
	}
	if s.cfg.Notified != nil {
		s.cfg.Notified(i, m)
	}
}

func (n *node) unwatch(token []byte) {
	if w := n.watch(token); w >= 0 {
		n.watches = slices.Delete(n.watches, w, w+1)
	}
}

// empty sends an empty message.
func (s *Swarm) empty(i int, t coap.Type, id uint16) {
	s.seal(i, []byte{1<<6 | byte(t)<<4, 0, byte(id >> 8), byte(id)})
}

// seal sends one message.
func (s *Swarm) seal(i int, b []byte) { s.push(i, s.sealed(i, b)) }

// sealed is the record of one message.
func (s *Swarm) sealed(i int, b []byte) []byte {
	n := &s.nodes[i]
	c := n.out
	if c == nil {
		c, _ = record.NewCipher(n.suite, &n.write)
		if len(s.nodes) <= expandedKeys {
			n.out = c
		}
	}
	seq := n.seq
	n.seq++
	return c.Seal(s.buffer(), record.ApplicationData, epoch, seq, n.cid, b)
}

// begin sends a request. done is called once, with mu held, and fn for each
// notification where m asks for them.
func (s *Swarm) begin(i int, m *coap.Message, fn func(*coap.Message), done func(*coap.Message, error)) error {
	n := &s.nodes[i]
	if !n.live {
		return errClosed
	}
	if n.call != nil {
		return errBusy
	}
	c := &call{node: i, done: done}
	binary.BigEndian.PutUint64(c.token[:], mrand.Uint64())
	copy(c.token[:], m.Token) // of an observation that ends (RFC 7641, Section 3.6)
	if v, ok := m.Options.Uint(coap.ObserveOption); ok && v == 0 {
		c.observe = true
		n.watches = append(n.watches, watch{c.token, fn})
	}
	if v, ok := m.Options.Uint(coap.NoResponse); ok && v&2 != 0 {
		c.silent = true
	}
	x := *m
	x.Type = coap.Confirmable
	n.mid++
	x.ID = n.mid
	x.Token = c.token[:]
	b, err := x.MarshalBinary()
	if err != nil {
		return fmt.Errorf("swarm: %w", err)
	}
	c.id, c.b = x.ID, b
	c.wait = time.Duration(float64(ackTimeout) * (1 + mrand.Float64()/2))
	c.at = time.Now().Add(c.wait)
	n.call = c
	s.calls[c] = struct{}{}
	s.stats.Requests++
	s.seal(i, b)
	return nil
}

// end tells who asked.
func (s *Swarm) end(c *call, m *coap.Message, err error) {
	n := &s.nodes[c.node]
	if n.call == c {
		n.call = nil
	}
	if err != nil && c.observe {
		n.unwatch(c.token[:])
	}
	delete(s.calls, c)
	c.done(m, err)
	// Who waited for its turn has it now, unless done took it.
	if n.call == nil && len(n.waiting) > 0 {
		next := n.waiting[0]
		n.waiting = n.waiting[1:]
		next()
	}
}

// look sends again what nobody acknowledged (RFC 7252, Section 4.2).
func (s *Swarm) look(now time.Time) {
	s.mu.Lock()
	for c := range s.calls {
		if now.Before(c.at) {
			continue
		}
		if c.acked || c.tries == maxRetransmit {
			s.stats.Timeouts++
			s.end(c, nil, ErrTimeout)
			continue
		}
		c.tries++
		c.wait *= 2
		c.at = now.Add(c.wait)
		s.stats.Retransmissions++
		s.seal(c.node, c.b)
	}
	s.flush()
}

// abandon ends all requests.
func (s *Swarm) abandon() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.calls {
		s.end(c, nil, errClosed)
	}
}

// Do has a node send one request, in its turn, and waits for the response. With
// an Observe option of 0 its notifications are counted. To end an observation m
// has its token.
func (s *Swarm) Do(ctx context.Context, i int, m *coap.Message) (*coap.Message, error) {
	return s.do(ctx, i, m, nil)
}

func (s *Swarm) do(ctx context.Context, i int, m *coap.Message, fn func(*coap.Message)) (*coap.Message, error) {
	type outcome struct {
		m   *coap.Message
		err error
	}
	ch := make(chan outcome, 1)
	var begin func()
	begin = func() {
		err := s.begin(i, m, fn, func(m *coap.Message, err error) {
			if m != nil {
				m = m.Clone()
			}
			ch <- outcome{m, err}
		})
		switch {
		case errors.Is(err, errBusy):
			s.nodes[i].waiting = append(s.nodes[i].waiting, begin)
		case err != nil:
			ch <- outcome{nil, err}
		}
	}
	s.mu.Lock()
	begin()
	s.flush()
	select {
	case o := <-ch:
		return o.m, o.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
