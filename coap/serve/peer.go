package serve

import (
	"context"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// peer is what the server knows about one link. All fields are guarded by
// Server.mu.
type peer struct {
	id    coap.LinkID
	link  coap.Link // the newest: a link that slept may come back as another value
	heard time.Time
	plain bool // unauthenticated
	// durable: its observations outlive the process.
	durable bool
	gone    bool // closed or forgotten: nothing may be attached any more

	working int     // requests in handlers
	budget  float64 // requests allowed at the time filled
	filled  time.Time

	busy   bool  // a confirmable message or a request is in flight
	outbox []job // waiting for their turn

	subs       []*subscription // few: a slice is a quarter of a map of one
	assemblies []*assembly     // least recently used first
	snapshots  []*snapshot     // least recently used first

	more   map[uint64]context.CancelFunc
	moreID uint64
}

// observation finds the entry with the token among the observations of p; n is
// how many there are.
func (p *peer) observation(token string) (o *observation, n int) {
	for _, sub := range p.subs {
		n += len(sub.obs)
		for _, have := range sub.obs {
			if have.token == token {
				o = have
			}
		}
	}
	return o, n
}

// idle says that nothing would be lost with p.
func (p *peer) idle() bool {
	return p.working == 0 && !p.busy && len(p.outbox) == 0 && len(p.subs) == 0 &&
		len(p.assemblies) == 0 && len(p.snapshots) == 0 && len(p.more) == 0
}

// admit finds the peer and books one request on its budgets. When it refuses,
// the response says so.
func (s *Server) admit(link coap.Link) (*peer, *coap.Response) {
	now := time.Now()
	from := link.Peer() // not under mu: links have locks of their own
	id := from.Link
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.peers[id]
	if p == nil {
		if len(s.peers) >= maxPeers {
			return nil, busy(coap.ServiceUnavailable)
		}
		p = &peer{id: id, budget: float64(s.cfg.PerPeerBurst), filled: now}
		s.peers[id] = p
	}
	p.link = link
	p.plain, p.durable = from.Via == coap.Plain, durable(from.Via)
	p.heard = now
	if d := now.Sub(p.filled); d > 0 {
		p.budget = min(p.budget+d.Seconds()*s.cfg.PerPeerRPS, float64(s.cfg.PerPeerBurst))
	}
	p.filled = now
	if p.budget < 1 || p.working >= s.cfg.MaxPeerRequests {
		return nil, busy(coap.TooManyRequests)
	}
	p.budget--
	p.working++
	return p, nil
}

// lookup finds the peer of a link that has perhaps not been heard yet.
func (s *Server) lookup(id coap.LinkID) *peer {
	s.mu.Lock()
	p := s.peers[id]
	s.mu.Unlock()
	if p != nil || s.cfg.Link == nil {
		return p
	}
	link := s.cfg.Link(id)
	if link == nil {
		return nil
	}
	now := time.Now()
	via := link.Peer().Via
	plain := via == coap.Plain
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.peers[id]; p != nil {
		return p
	}
	p = &peer{id: id, link: link, plain: plain, durable: durable(via), heard: now, budget: float64(s.cfg.PerPeerBurst), filled: now}
	s.peers[id] = p
	return p
}

// busy is a refusal that says when to come again (RFC 8516, Section 3; RFC
// 7252, Section 5.9.3.4).
func busy(code coap.Code) *coap.Response {
	r := &coap.Response{Code: code}
	r.Options.SetUint(coap.MaxAge, busyMaxAge)
	return r
}
