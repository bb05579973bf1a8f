package serve

import (
	"errors"

	"github.com/seed4911071e/groupgate/coap"
)

// RFC 7641, Section 4.5.2: where the retransmission of a notification is due and the state
// is a newer one by then, that is sent in its place. It keeps the peer's turn, and the
// counter and the time-out of what it replaces, so that no peer gets more messages, or
// gets them faster, than one that nothing changed for.

// transmit hands the message to the link.
func (d *delivery) transmit() {
	y, ok := d.link.(coap.Yielder)
	if !ok || !d.confirm {
		d.link.Send(&d.m, d.told)
		return
	}
	after := d.after
	d.after = coap.Attempt{} // the next token has an attempt of its own
	y.SendYielding(&d.m, coap.Yielding{After: after, Overtaken: d.note.overtaken, Yield: d.gave}, d.told)
}

// giveWay has what is newest take the place of the message; nothing, when the peer
// stopped observing or was shown it in a response. What it returns is told what became of
// the message: the peer may answer it late.
func (d *delivery) giveWay(s *Server, after coap.Attempt) (late func(error)) {
	sub, n, o, confirm := d.sub, d.note, d.to, d.confirm
	reached := d.ok || d.relayed // over another token
	var err error
	if !d.ok {
		err = coap.ErrRelayed
	}
	s.mu.Lock()
	if reached {
		sub.reachedLocked(s, n, confirm && !d.relayed)
	}
	s.freeLocked(d)
	s.mu.Unlock()
	if reached && n.Done != nil {
		n.Done(sub.peer.id, n.Version, err)
	}
	sub.send(s, after)
	return func(err error) { s.late(o, n, confirm, reached, err) }
}

// late is told what became of a notification that gave way: it may be acknowledged or
// rejected after all. reached says that Done knows of it.
func (s *Server) late(o *observation, n *note, confirm, reached bool, err error) {
	s.metrics.notification(confirm, err)
	s.mu.Lock()
	switch {
	case err == nil, errors.Is(err, coap.ErrRelayed):
		o.sub.reachedLocked(s, n, confirm && err == nil)
	case errors.Is(err, coap.ErrReset):
		s.rejectedLocked(o)
	default:
		reached = true // what took its place tells more
	}
	s.mu.Unlock()
	if !reached && n.Done != nil {
		n.Done(o.sub.peer.id, n.Version, err)
	}
}
