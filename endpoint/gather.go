package endpoint

import (
	"net/netip"
	"time"

	"github.com/seed4911071e/groupgate/dtls12"
	"github.com/seed4911071e/groupgate/record"
)

// gathering is a ClientHello in fragments of a client that returned its cookie with
// the first (dtls12/parts.go). There is one of an address at most; it counts among
// the handshakes under way, of which it is the first to give way, and ends when
// they would.
type gathering struct {
	*dtls12.Gathering
	addr  netip.AddrPort
	began time.Time
}

// gather is told of a record that is no ClientHello in one piece. It returns the
// ClientHello that the record completes, and whether the record was for one at all.
func (e *Endpoint) gather(r *record.Record, from netip.AddrPort, h *half) (hello *dtls12.ClientHello, taken bool) {
	parts := dtls12.ReadParts(r)
	for i := range parts {
		p, g := &parts[i], e.own.hellos[from]
		if front := p.Front(); front != nil && (g == nil || !g.Of(p, front)) {
			if h != nil && front.Random == h.random {
				return nil, false // it repeats what began the handshake that is under way
			}
			ok, answer := e.own.cookies.Verify(e.out.buffer(), front, from, time.Now())
			if !ok {
				e.metrics.cookies.Inc()
				e.out.push(from, e.came, answer)
				return nil, true
			}
			g = e.beginGathering(p, front, from)
		}
		switch {
		case g != nil && g.Add(p):
		case h != nil:
			return nil, false
		default:
			e.metrics.dropped.WithLabelValues("fragment").Inc()
			continue
		}
		if hello, ok := g.Hello(); ok {
			e.endGathering(g, "whole")
			return hello, true
		}
	}
	return nil, len(parts) > 0
}

// beginGathering makes room for one; nil: there is none.
func (e *Endpoint) beginGathering(p *dtls12.Part, front *dtls12.ClientHello, from netip.AddrPort) *gathering {
	now := time.Now()
	if old := e.own.hellos[from]; old != nil {
		e.endGathering(old, "given-up")
	}
	if !e.roomToBegin(from, now) {
		return nil
	}
	g := &gathering{dtls12.Gather(p, front), from, now}
	e.own.hellos[from] = g
	e.metrics.halfOpen.Inc()
	e.wheel.add(g, handshakeTimeout)
	return g
}

// due is called by the wheel.
func (g *gathering) due(e *Endpoint) { e.endGathering(g, "timeout") }

// endGathering forgets one, unless it is over.
func (e *Endpoint) endGathering(g *gathering, result string) {
	if e.own.hellos[g.addr] == g {
		delete(e.own.hellos, g.addr)
		e.metrics.halfOpen.Dec()
		e.metrics.gathered.WithLabelValues(result).Inc()
		g.Gathering = nil // the wheel has g for a while
	}
}

// underWay is how many handshakes are, and ClientHellos that are not whole.
func (e *Endpoint) underWay() int {
	return len(e.handshakes) + len(e.own.byAddr) + len(e.own.hellos)
}

// roomToBegin says whether another handshake may begin, for which another is given
// up if need be.
func (e *Endpoint) roomToBegin(from netip.AddrPort, now time.Time) bool {
	if e.underWay() < e.cfg.MaxHandshakes || e.giveUp(now) {
		return true
	}
	e.refuse(from, now)
	return false
}

// leastGathered gives up the oldest ClientHello that is not whole: its fragments
// come within moments of each other, or not at all.
func (e *Endpoint) leastGathered() bool {
	var victim *gathering
	for _, g := range e.own.hellos {
		if victim == nil || g.began.Before(victim.began) {
			victim = g
		}
	}
	if victim != nil {
		e.endGathering(victim, "given-up")
	}
	return victim != nil
}
