package serve

import (
	"errors"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// job is something that uses the one interaction that may be outstanding with a
// peer (NSTART, RFC 7252, Section 4.7). A job that has run calls release.
type job interface {
	run(s *Server)
	abandon() // the link is gone
}

// enqueueLocked gives j its turn: true when the caller is to run it at once,
// after unlocking.
func (s *Server) enqueueLocked(p *peer, j job) bool {
	if p.gone {
		return false
	}
	if p.busy {
		p.outbox = append(p.outbox, j)
		return false
	}
	p.busy = true
	return true
}

// release passes the turn on.
func (s *Server) release(p *peer) {
	s.mu.Lock()
	if len(p.outbox) == 0 {
		p.busy = false
		p.outbox = nil
		s.mu.Unlock()
		return
	}
	j := p.outbox[0]
	p.outbox = p.outbox[1:]
	s.mu.Unlock()
	j.run(s)
}

// abandon: Closed has removed the subscription already.
func (sub *subscription) abandon() {}

// run sends what the mailbox holds to every token of the link.
func (sub *subscription) run(s *Server) {
	p := sub.peer
	s.mu.Lock()
	n := sub.pending
	if n == nil || sub.gone || p.gone {
		sub.queued = false
		s.mu.Unlock()
		s.release(p)
		return
	}
	sub.pending, sub.sending = nil, n
	link := p.link
	s.mu.Unlock()

	if n.Allow != nil {
		if last, ok := n.Allow(link.Peer()); !ok {
			s.metrics.notifications.WithLabelValues("refused").Inc()
			s.refuse(sub, n, last)
			return
		}
	}
	if n.Wait != nil && n.Wait(link.Peer()) {
		s.holdBack(sub, n)
		return
	}
	s.mu.Lock()
	d := &delivery{sub: sub, note: n, link: link, obs: sub.obs}
	// RFC 7641, Section 4.5: a confirmable one at least every 24 hours.
	d.confirm = n.Confirm || time.Since(sub.heard) >= confirmEvery
	s.mu.Unlock()
	d.step(s)
}

// holdBack keeps a notification for the next sign of life, unless a newer one
// came meanwhile, which is asked about in its turn.
func (s *Server) holdBack(sub *subscription, n *note) {
	s.mu.Lock()
	p := sub.peer
	link := p.link
	sub.sending, sub.retried = nil, false
	if sub.pending == nil && !sub.gone {
		sub.missed = n
	}
	sub.queued = sub.pending != nil && !sub.gone && !p.gone
	if sub.queued {
		p.outbox = append(p.outbox, sub)
	}
	s.mu.Unlock()
	s.metrics.notifications.WithLabelValues("held").Inc()
	s.release(p)
	if !n.Wait(link.Peer()) {
		s.resend(p) // its time came between the question and now
	}
}

// refuse ends a subscription that Allow was against.
func (s *Server) refuse(sub *subscription, n *note, last *coap.Response) {
	s.mu.Lock()
	sub.sending, sub.queued = nil, false
	obs := sub.obs
	gone := sub.gone
	if !gone {
		s.loseLocked(sub.peer, len(obs), "refused")
	}
	s.removeLocked(sub)
	s.mu.Unlock()
	if last == nil || gone {
		s.release(sub.peer)
		return
	}
	f := &farewell{peer: sub.peer, obs: obs, last: last, confirm: n.Confirm}
	f.run(s)
}

// delivery is one version on its way to the tokens of a link, one after the
// other.
type delivery struct {
	sub     *subscription
	note    *note
	link    coap.Link
	obs     []*observation
	confirm bool
	next    int
	sent    bool  // to one token at least
	ok      bool  // one of them got it
	relayed bool  // or one was taken on the way to it
	err     error // the last failure
}

// step sends to the next token that still observes, or finishes.
func (d *delivery) step(s *Server) {
	for d.next < len(d.obs) {
		o := d.obs[d.next]
		d.next++
		m := s.render(o, d.note.Body, d.confirm)
		if m == nil {
			continue
		}
		d.sent = true
		d.link.Send(m, func(err error) { d.done(s, o, err) })
		return
	}
	d.finish(s)
}

func (d *delivery) done(s *Server, o *observation, err error) {
	s.metrics.notification(d.confirm, err)
	switch {
	case err == nil:
		d.ok = true
	case errors.Is(err, coap.ErrRelayed):
		d.relayed = true
	default:
		d.err = err
	}
	switch {
	case errors.Is(err, coap.ErrRelayed):
	case errors.Is(err, coap.ErrReset):
		// RFC 7641, Section 3.6: a rejected notification ends the observation.
		s.mu.Lock()
		if !o.gone {
			s.loseLocked(d.sub.peer, 1, "reset")
			s.deregisterLocked(d.sub.peer, o.token)
		}
		s.mu.Unlock()
	case errors.Is(err, coap.ErrGone):
		s.Closed(d.sub.peer.id)
		d.next = len(d.obs)
	case err != nil:
		d.next = len(d.obs) // who does not answer to one token does not to another
	}
	d.step(s)
}

// finish reports the outcome and passes the turn on; when a newer version came
// meanwhile the mailbox goes to the end of the queue.
func (d *delivery) finish(s *Server) {
	sub, n := d.sub, d.note
	p := sub.peer
	err := d.err
	if d.ok || d.relayed {
		err = nil
	}
	s.mu.Lock()
	sub.sending = nil
	switch {
	case err == nil:
		sub.shown, sub.hasShown = max(sub.shown, n.Version), true
		sub.misses = 0
		if d.confirm && !d.relayed {
			sub.heard = time.Now()
		}
		s.keepShownLocked(sub)
		if !n.Body.Code.IsSuccess() {
			s.removeLocked(sub) // RFC 7641, Section 4.2
		}
	case !sub.gone:
		if !sub.retried {
			sub.misses++
		}
		if sub.misses >= maxMisses {
			s.loseLocked(p, len(sub.obs), "silent")
			s.removeLocked(sub)
		} else if sub.pending == nil {
			sub.missed = n
		}
	}
	sub.retried = false
	sub.queued = sub.pending != nil && !sub.gone && !p.gone
	if sub.queued {
		p.outbox = append(p.outbox, sub) // busy is ours until release
	}
	s.mu.Unlock()
	if err == nil && d.relayed && !d.ok {
		err = coap.ErrRelayed
	}
	if n.Done != nil && d.sent {
		n.Done(p.id, n.Version, err)
	}
	s.release(p)
}

// render makes the message for one observation: nil when it is over or the
// client does not want such responses. The body is shared by all observers.
func (s *Server) render(o *observation, body *coap.Response, confirm bool) *coap.Message {
	s.mu.Lock()
	if o.gone || suppressed(o.noResponse, body.Code) {
		s.mu.Unlock()
		return nil
	}
	seq := o.nextSeq()
	p := o.sub.peer
	s.mu.Unlock()
	r := s.cut(p, o, body)
	m := &coap.Message{Type: coap.NonConfirmable, Code: r.Code, Token: []byte(o.token), Payload: r.Payload}
	if confirm {
		m.Type = coap.Confirmable
	}
	m.Options = r.Options
	m.Options.Remove(coap.ObserveOption)
	if r.Code.IsSuccess() { // RFC 7641, Section 4.2
		m.Options.SetUint(coap.ObserveOption, seq)
	}
	return m
}

// cut is the first block of a body larger than one (RFC 7959, Section 2.6); the
// client fetches the others.
func (s *Server) cut(p *peer, o *observation, body *coap.Response) *coap.Response {
	b := coap.Block{SZX: o.szx}
	if o.whole || len(body.Payload) <= b.Size() {
		return body
	}
	r, err := s.slice(s.keep(p, o.key, []byte(o.token), body), b)
	if err != nil {
		panic("serve: internal error: " + err.Error()) // block 0 of a body that is not empty
	}
	return r
}

// farewell is the last response to the observations of a link.
type farewell struct {
	peer    *peer
	obs     []*observation
	last    *coap.Response
	confirm bool
	next    int
}

func (f *farewell) abandon() {}

func (f *farewell) run(s *Server) {
	for f.next < len(f.obs) {
		o := f.obs[f.next]
		f.next++
		if suppressed(o.noResponse, f.last.Code) {
			continue
		}
		s.mu.Lock()
		link, gone := f.peer.link, f.peer.gone
		s.mu.Unlock()
		if gone {
			break
		}
		r := s.cut(f.peer, o, f.last)
		m := &coap.Message{Type: coap.NonConfirmable, Code: r.Code, Token: []byte(o.token), Payload: r.Payload}
		if f.confirm {
			m.Type = coap.Confirmable
		}
		m.Options = slices.Clone(r.Options)
		m.Options.Remove(coap.ObserveOption)
		link.Send(m, func(err error) {
			s.metrics.notification(f.confirm, err)
			f.run(s)
		})
		return
	}
	s.release(f.peer)
}

// revive sends again, after a request of the peer was answered, what nobody
// acknowledged, and what became known while it registered.
func (s *Server) revive(p *peer) {
	s.mu.Lock()
	waiting := false
	for _, sub := range p.subs {
		waiting = waiting || sub.missed != nil
	}
	s.mu.Unlock()
	if waiting {
		time.AfterFunc(headStart, func() { s.resend(p) })
	}
}

// Resend sends again what the peer at a link did not acknowledge, without a
// sign of life: what it misses then does not bring its observations nearer to
// their end. Who knows when a peer is awake calls it.
func (s *Server) Resend(id coap.LinkID) {
	p := s.lookup(id)
	if p == nil {
		return
	}
	s.mu.Lock()
	for _, sub := range p.subs {
		sub.retried = sub.missed != nil
	}
	s.mu.Unlock()
	s.resend(p)
}

// Resume is Resend for what Wait held back, as one of many: in its turn, in which the
// topic shares the budget with others.
func (s *Server) Resume(topic string, id coap.LinkID) {
	p := s.lookup(id)
	if p == nil {
		return
	}
	s.mu.Lock()
	at := p.link.Peer().Addr.Addr()
	s.mu.Unlock()
	s.pacer.add(paceKey(topic), at, func() { s.Resend(id) })
}

func (s *Server) resend(p *peer) {
	var start []*subscription
	s.mu.Lock()
	for _, sub := range p.subs {
		if sub.missed == nil || s.closing {
			continue
		}
		sub.pending, sub.missed = sub.missed, nil
		if !sub.queued {
			sub.queued = true
			if s.enqueueLocked(p, sub) {
				start = append(start, sub)
			}
		}
	}
	s.mu.Unlock()
	for _, sub := range start {
		sub.run(s)
	}
}
