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
		p.queue(j)
		return false
	}
	p.busy = true
	return true
}

// release passes the turn on.
func (s *Server) release(p *peer) {
	s.mu.Lock()
	s.releaseLocked(p)
}

// releaseLocked is release with mu held. It unlocks.
func (s *Server) releaseLocked(p *peer) { s.passLocked(p, coap.Attempt{}) }

// passLocked is releaseLocked to who goes on where something that gave way had come: the
// peer has not answered since. It unlocks.
func (s *Server) passLocked(p *peer, after coap.Attempt) {
	if len(p.outbox) == 0 {
		p.busy = false
		s.mu.Unlock()
		return
	}
	j := p.outbox[0]
	p.outbox[0] = nil
	if p.outbox = p.outbox[1:]; len(p.outbox) == 0 {
		p.outbox = nil
	}
	s.mu.Unlock()
	switch j := j.(type) {
	case *subscription:
		j.send(s, after)
	case *farewell:
		j.after = after
		j.run(s)
	default:
		j.run(s)
	}
}

// abandon: Closed has removed the subscription already.
func (sub *subscription) abandon() {}

// run sends what the mailbox holds to every token of the link.
func (sub *subscription) run(s *Server) { sub.send(s, coap.Attempt{}) }

// send is run, after something that gave way.
func (sub *subscription) send(s *Server, after coap.Attempt) {
	p := sub.peer
	s.mu.Lock()
	n := sub.pending
	if n == nil || sub.gone || p.gone {
		sub.sending, sub.queued = nil, false
		s.passLocked(p, after)
		return
	}
	sub.pending, sub.sending = nil, n
	link := p.link
	if n.Allow != nil || n.Wait != nil {
		s.mu.Unlock()
		if n.Allow != nil {
			if last, ok := n.Allow(link.Peer()); !ok {
				s.metrics.notifications.WithLabelValues("refused").Inc()
				s.refuse(sub, n, last, after)
				return
			}
		}
		if n.Wait != nil && n.Wait(link.Peer()) {
			s.holdBack(sub, n)
			return
		}
		s.mu.Lock()
	}
	d := s.deliveryLocked()
	d.sub, d.note, d.link, d.next, d.after = sub, n, link, sub.obs, after
	now := time.Now()
	// RFC 7641, Section 4.5: a confirmable one at least every 24 hours; Section 4.5.2: what
	// takes the place of one is.
	d.confirm = n.Confirm || after.Tries > 0 || s.since(sub.heard) >= confirmEvery
	d.stepLocked(s, now)
}

// holdEarly keeps a notification that has its turn with the peer, but not yet with the
// pacer, for the next sign of life; false when another took its place meanwhile.
func (sub *subscription) holdEarly(s *Server, n *note) bool {
	s.mu.Lock()
	if sub.pending != n {
		s.mu.Unlock()
		return false // run finds out, also when the subscription is over
	}
	sub.pending, sub.sending = nil, n
	s.mu.Unlock()
	s.holdBack(sub, n)
	return true
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
		p.queue(sub)
	}
	s.mu.Unlock()
	s.metrics.notifications.WithLabelValues("held").Inc()
	s.release(p)
	if !n.Wait(link.Peer()) {
		s.resend(p) // its time came between the question and now
	}
}

// delivery is one version on its way to the tokens of a link, one after the
// other. Links are done with the message when they say so, so that it, and the
// delivery, serve again.
type delivery struct {
	sub     *subscription
	note    *note
	link    coap.Link
	next    *observation
	confirm bool
	sent    bool         // to one token at least
	ok      bool         // one of them got it
	relayed bool         // or one was taken on the way to it
	err     error        // the last failure
	after   coap.Attempt // of what gave way to it; see yield.go

	to   *observation // of the message under way
	view *sharedView  // how that observes
	m    coap.Message
	opts coap.Options // memory of those of m
	seq  [3]byte
	told func(error)                           // is d.done
	gave func(coap.Attempt) (late func(error)) // is d.giveWay
}

// deliveryLocked finds or makes an empty one; freeLocked takes it back.
func (s *Server) deliveryLocked() *delivery {
	if n := len(s.deliveries); n > 0 {
		d := s.deliveries[n-1]
		s.deliveries = s.deliveries[:n-1]
		return d
	}
	d := &delivery{}
	d.told = func(err error) { d.done(s, err) }
	d.gave = func(after coap.Attempt) func(error) { return d.giveWay(s, after) }
	return d
}

func (s *Server) freeLocked(d *delivery) {
	if len(s.deliveries) < maxSpareDeliveries {
		clear(d.opts)
		*d = delivery{opts: d.opts[:0], told: d.told, gave: d.gave}
		s.deliveries = append(s.deliveries, d)
	}
}

// stepLocked sends to the next token that still observes, or finishes. It
// unlocks.
func (d *delivery) stepLocked(s *Server, now time.Time) {
	for d.next != nil {
		o := d.next
		d.next = o.next
		if o.gone || suppressed(o.view.noResponse, d.note.Body.Code) {
			continue
		}
		d.sent, d.to, d.view = true, o, o.view
		seq := o.nextSeq(now)
		s.mu.Unlock()
		d.render(s, seq)
		d.transmit()
		return
	}
	d.finishLocked(s)
}

// done is told what became of the message.
func (d *delivery) done(s *Server, err error) {
	o := d.to
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
		s.rejectedLocked(o)
		s.mu.Unlock()
	case errors.Is(err, coap.ErrGone):
		s.Closed(d.sub.peer.id)
		d.next = nil
	case err != nil:
		d.next = nil // who does not answer to one token does not to another
	}
	s.mu.Lock()
	var now time.Time
	if d.next != nil {
		now = time.Now()
	}
	d.stepLocked(s, now)
}

// finishLocked reports the outcome and passes the turn on; when a newer version
// came meanwhile the mailbox goes to the end of the queue. It unlocks.
func (d *delivery) finishLocked(s *Server) {
	sub, n := d.sub, d.note
	p := sub.peer
	err := d.err
	if d.ok || d.relayed {
		err = nil
	}
	sent, relayed := d.sent, d.relayed && !d.ok
	sub.sending = nil
	switch {
	case err == nil:
		sub.reachedLocked(s, n, d.confirm && !d.relayed)
		if !n.Body.Code.IsSuccess() {
			s.removeLocked(sub) // RFC 7641, Section 4.2
		}
	case !sub.gone:
		if !sub.retried && !errors.Is(err, coap.ErrWithheld) {
			sub.misses++
		}
		if sub.misses >= maxMisses {
			s.loseLocked(p, sub.obs.count(), "silent")
			s.removeLocked(sub)
		} else if sub.pending == nil {
			sub.missed = n
		}
	}
	sub.retried = false
	sub.queued = sub.pending != nil && !sub.gone && !p.gone
	if sub.queued {
		p.queue(sub) // busy is ours until release
	}
	s.freeLocked(d)
	if n.Done == nil || !sent {
		s.releaseLocked(p)
		return
	}
	s.mu.Unlock()
	if err == nil && relayed {
		err = coap.ErrRelayed
	}
	n.Done(p.id, n.Version, err)
	s.release(p)
}

// reachedLocked notes that the peer was shown a version; proven: by an acknowledgement of
// its own.
func (sub *subscription) reachedLocked(s *Server, n *note, proven bool) {
	sub.shown, sub.hasShown = max(sub.shown, n.Version), true
	sub.misses = 0
	if proven {
		sub.heard = s.seconds(time.Now())
	}
	s.keepShownLocked(sub)
}

// rejectedLocked ends an observation of which the peer rejected a notification.
func (s *Server) rejectedLocked(o *observation) {
	if p := o.sub.peer; !o.gone {
		s.loseLocked(p, 1, "reset")
		s.deregisterLocked(p, string(o.tokenBytes()))
	}
}

// render makes the message for one observation. The body is shared by all
// observers.
func (d *delivery) render(s *Server, seq uint32) {
	o := d.to
	r := s.cut(o.sub.peer, d.view, o.tokenBytes(), d.note.Body)
	opts := d.opts[:0]
	placed := !r.Code.IsSuccess() // RFC 7641, Section 4.2
	for _, have := range r.Options {
		if have.ID == coap.ObserveOption {
			continue
		}
		if !placed && have.ID > coap.ObserveOption {
			opts, placed = append(opts, d.observe(seq)), true
		}
		opts = append(opts, have)
	}
	if !placed {
		opts = append(opts, d.observe(seq))
	}
	d.opts = opts
	d.m = coap.Message{Type: coap.NonConfirmable, Code: r.Code, Token: o.tokenBytes(), Options: opts, Payload: r.Payload}
	if d.confirm {
		d.m.Type = coap.Confirmable
	}
}

// observe is the Observe option with a number, in its shortest form (RFC 7252,
// Section 3.2).
func (d *delivery) observe(seq uint32) coap.Option {
	d.seq = [3]byte{byte(seq >> 16), byte(seq >> 8), byte(seq)}
	b := d.seq[:]
	for len(b) > 0 && b[0] == 0 {
		b = b[1:]
	}
	return coap.Option{ID: coap.ObserveOption, Value: b}
}

// outlets are those of the links that one publication goes to.
type outlets []coap.Outlet

func (o *outlets) hold(link coap.Link) {
	b, ok := link.(coap.Batcher)
	if !ok {
		return
	}
	out := b.Outlet()
	if out == nil || slices.Contains(*o, out) {
		return
	}
	out.Hold()
	*o = append(*o, out)
}

func (o *outlets) release() {
	for _, out := range *o {
		out.Release()
	}
}

// cut is the first block of a body larger than one (RFC 7959, Section 2.6); the
// client fetches the others.
func (s *Server) cut(p *peer, v *sharedView, token []byte, body *coap.Response) *coap.Response {
	b := coap.Block{SZX: v.szx}
	if v.whole || len(body.Payload) <= b.Size() {
		return body
	}
	r, err := s.slice(s.keep(p, v.key, token, body), b)
	if err != nil {
		panic("serve: internal error: " + err.Error()) // block 0 of a body that is not empty
	}
	return r
}

// finish is the end of a request. What nobody acknowledged is sent again now that
// it was answered, and so is what became known while the peer registered.
func (s *Server) finish(p *peer) {
	s.mu.Lock()
	p.working--
	waiting := false
	for sub := p.subs; sub != nil; sub = sub.next {
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
	for sub := p.subs; sub != nil; sub = sub.next {
		sub.retried = sub.missed != nil
	}
	s.mu.Unlock()
	s.resend(p)
}

// Resume is Resend for what Wait held back, as one of many: in its turn, in which the
// topic shares the budget with others. Who is to wait still takes no turn.
func (s *Server) Resume(topic string, id coap.LinkID) {
	p := s.lookup(id)
	if p == nil {
		return
	}
	var held []*note
	s.mu.Lock()
	for sub := p.subs; sub != nil; sub = sub.next {
		if sub.missed != nil {
			held = append(held, sub.missed)
		}
	}
	link := p.link
	s.mu.Unlock()
	peer := link.Peer()
	if !slices.ContainsFunc(held, func(n *note) bool { return n.Wait == nil || !n.Wait(peer) }) {
		return
	}
	s.pacer.add(paceKey(topic), peer.Addr.Addr(), pacedJob{link, held[0], func() { s.Resend(id) }})
}

func (s *Server) resend(p *peer) {
	var start []*subscription
	s.mu.Lock()
	for sub := p.subs; sub != nil; sub = sub.next {
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
