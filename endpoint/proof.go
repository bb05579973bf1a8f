package endpoint

import (
	"net/netip"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// A peer with a connection ID may send from a new address (RFC 9146, Section
// 6). The record that does so is authentic and newer than all before it; but
// somebody on the way may have taken it and sent it on from elsewhere. Until
// the new address has answered a ping of ours, or acknowledged what only it got,
// at most three times as much is sent there as came from it. What is more goes to
// the last address that has: if the peer is still there, it misses little, and its
// next record ends the matter.

// probe is what is known of an address that has not shown that it receives.
type probe struct {
	ping   uint16         // the message identifier of the question
	asked  time.Time      // zero: not yet
	budget int            // bytes that may be sent there
	before netip.AddrPort // the last that has shown that it receives
	local  uint8          // where the peer was heard from there
}

// probing is what is known of the peer's address until it is proven; nil: it is.
func (s *session) probing() *probe {
	if s.more == nil {
		return nil
	}
	return s.more.probe
}

// moved notes that an authentic record, newer than all before it, came from
// another address than the last; local is where the peer was heard until then.
func (s *session) moved(to netip.AddrPort, size int, local uint8) {
	e := s.e
	before := s.addr()
	if p := s.probing(); p != nil {
		before, local = p.before, p.local
	}
	e.leaveAddr(s)
	s.setAddr(to)
	s.moves = min(s.moves, maxMoves-1) + 1
	if e.byAddr.Get(to) == nil {
		e.byAddr.Put(s)
	}
	e.metrics.moves.Inc()
	if to == before { // it never left
		s.unhold()
		return
	}
	s.rare().probe = &probe{budget: proofFactor * size, before: before, local: local}
}

// afford says whether n bytes may be sent to the peer's address now. If not,
// the address is asked to show that it receives.
func (s *session) afford(n int) bool {
	p := s.probing()
	if p == nil {
		return true
	}
	if n <= p.budget {
		p.budget -= n
		return true
	}
	s.e.metrics.withheld.Inc()
	if now := time.Now(); now.Sub(p.asked) >= proofEvery {
		p.asked = now
		p.ping = s.newID()
		b, _ := (&coap.Message{Type: coap.Confirmable, ID: p.ping}).MarshalBinary() // cannot fail: it is empty
		s.transmit(b)
	}
	return false
}

// astray sends what the peer's address must not get yet to the one before.
func (s *session) astray(b []byte) {
	p := s.probing()
	at, local := s.addr(), s.local
	s.setAddr(p.before)
	s.local = p.local
	s.transmit(b)
	s.setAddr(at)
	s.local = local
}

// proven notes that the peer answered the ping from the address that it went to.
func (s *session) proven() {
	s.unhold()
	s.fresh()
}

// unhold has the peer's address get everything, at first what was held back.
func (s *session) unhold() {
	if s.more != nil {
		s.more.probe = nil
	}
	if s.act != nil {
		for _, t := range s.act.sent {
			if t.withheld {
				t.withheld = false
				s.emit(t.b)
			}
		}
	}
	for _, r := range s.shelf.all() {
		if r.has(withheld) {
			r.set(withheld, false)
			s.emit(r.reply)
		}
	}
}
