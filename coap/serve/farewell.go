package serve

import (
	"slices"

	"github.com/seed4911071e/groupgate/coap"
)

// refuse ends a subscription that Allow was against.
func (s *Server) refuse(sub *subscription, n *note, last *coap.Response, after coap.Attempt) {
	s.mu.Lock()
	sub.sending, sub.queued = nil, false
	obs := sub.obs
	gone := sub.gone
	if !gone {
		s.loseLocked(sub.peer, obs.count(), "refused")
	}
	s.removeLocked(sub)
	s.mu.Unlock()
	if last == nil || gone {
		s.mu.Lock()
		s.passLocked(sub.peer, after)
		return
	}
	f := &farewell{peer: sub.peer, next: obs, last: last, confirm: n.Confirm, after: after}
	f.run(s)
}

// farewell is the last response to the observations of a link.
type farewell struct {
	peer    *peer
	next    *observation
	last    *coap.Response
	confirm bool
	after   coap.Attempt // of what gave way to it
}

func (f *farewell) abandon() {}

func (f *farewell) run(s *Server) {
	for f.next != nil {
		o := f.next
		f.next = o.next
		s.mu.Lock()
		link, gone, v := f.peer.link, f.peer.gone, o.view
		s.mu.Unlock()
		if gone {
			break
		}
		if suppressed(v.noResponse, f.last.Code) {
			continue
		}
		r := s.cut(f.peer, v, o.tokenBytes(), f.last)
		m := &coap.Message{Type: coap.NonConfirmable, Code: r.Code, Token: o.tokenBytes(), Payload: r.Payload}
		if f.confirm {
			m.Type = coap.Confirmable
		}
		m.Options = slices.Clone(r.Options)
		m.Options.Remove(coap.ObserveOption)
		done := func(err error) {
			s.metrics.notification(f.confirm, err)
			f.run(s)
		}
		y, ok := link.(coap.Yielder)
		if !ok || !f.confirm {
			link.Send(m, done)
			return
		}
		after := f.after
		f.after = coap.Attempt{}
		y.SendYielding(m, coap.Yielding{After: after}, done)
		return
	}
	s.release(f.peer)
}
