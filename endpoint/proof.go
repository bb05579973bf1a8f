package endpoint

import (
	"net/netip"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// A peer with a connection ID may send from a new address (RFC 9146, Section
// 6). The record that does so is authentic and newer than all before it; but
// somebody on the way may have taken it and sent it on from elsewhere. Until
// the new address has answered a ping of ours, at most three times as much is
// sent there as came from it.

// probe is what is known of an address that has not shown that it receives.
type probe struct {
	ping   uint16    // the message identifier of the question
	asked  time.Time // zero: not yet
	budget int       // bytes that may be sent there
}

// probing is what is known of the peer's address until it is proven; nil: it is.
func (s *session) probing() *probe {
	if s.more == nil {
		return nil
	}
	return s.more.probe
}

// moved notes that an authentic record, newer than all before it, came from
// another address than the last.
func (s *session) moved(to netip.AddrPort, size int) {
	e := s.e
	e.leaveAddr(s)
	s.setAddr(to)
	s.moves = min(s.moves, maxMoves-1) + 1
	if e.byAddr.Get(to) == nil {
		e.byAddr.Put(s)
	}
	s.rare().probe = &probe{budget: proofFactor * size}
	e.metrics.moves.Inc()
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

// proven notes that the peer answered the ping from the address that it went
// to; what was held back goes out.
func (s *session) proven() {
	if s.more != nil {
		s.more.probe = nil
	}
	s.fresh()
	if s.shelf == nil {
		return
	}
	for _, r := range s.shelf.receipts {
		if r.withheld {
			r.withheld = false
			s.emit(r.reply)
		}
	}
}
