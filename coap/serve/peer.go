package serve

import (
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// peer is what the server knows about one link. All fields are guarded by
// Server.mu. There are very many: what few have is behind a pointer.
type peer struct {
	id     coap.LinkID
	link   coap.Link     // the newest: a link that slept may come back as another value
	subs   *subscription // the first of few
	filled stamp         // when it was heard last

	*transfers // read-only while it is &noTransfers

	budget  float32 // requests allowed at the time filled
	working int32   // requests in handlers
	lost    uint32  // observations that ended because the peer rejected or did not answer
	plain   bool    // unauthenticated
	durable bool    // its observations outlive the process
	gone    bool    // closed or forgotten: nothing may be attached any more
	busy    bool    // a confirmable message or a request is in flight
}

// transfers is what a peer has only while it sends or fetches something large, or
// several things are to be sent to it.
type transfers struct {
	outbox []job // waiting for their turn

	assemblies []*assembly // least recently used first
	snapshots  []*snapshot // least recently used first

	more   map[uint64]production
	moreID uint64
}

var noTransfers transfers

// transfer makes p's own transfers, to be changed.
func (p *peer) transfer() *transfers {
	if p.transfers == &noTransfers {
		p.transfers = &transfers{}
	}
	return p.transfers
}

// newPeer makes a peer that has done nothing yet.
func (s *Server) newPeer(id coap.LinkID, now time.Time) *peer {
	return &peer{id: id, budget: float32(s.cfg.PerPeerBurst), filled: s.stamp(now), transfers: &noTransfers}
}

// stamp is a time in nanoseconds since the server was made: a third of a
// time.Time.
type stamp int64

func (s *Server) stamp(t time.Time) stamp { return stamp(t.Sub(s.base)) }

// seconds is one in as many.
type seconds int32

func (s *Server) seconds(t time.Time) seconds { return seconds(t.Sub(s.base) / time.Second) }

// since is how long ago that was.
func (s *Server) since(t seconds) time.Duration {
	return time.Since(s.base) - time.Duration(t)*time.Second
}

// unix is the time in seconds of the clock as it is now, to be written.
func (s *Server) unix(t seconds) int64 {
	return max(0, time.Now().Add(-s.since(t)).Unix())
}

// subscription finds the mailbox of p for a topic; nil: there is none.
func (p *peer) subscription(t *topic) *subscription {
	for sub := p.subs; sub != nil; sub = sub.next {
		if sub.topic == t {
			return sub
		}
	}
	return nil
}

// queue has j wait for its turn.
func (p *peer) queue(j job) {
	t := p.transfer()
	t.outbox = append(t.outbox, j)
}

// observation finds the entry with the token among the observations of p; n is
// how many there are.
func (p *peer) observation(token string) (o *observation, n int) {
	for sub := p.subs; sub != nil; sub = sub.next {
		for have := sub.obs; have != nil; have = have.next {
			if n++; string(have.tokenBytes()) == token {
				o = have
			}
		}
	}
	return o, n
}

// idle says that nothing would be lost with p.
func (p *peer) idle() bool {
	return p.working == 0 && !p.busy && len(p.outbox) == 0 && p.subs == nil &&
		len(p.assemblies) == 0 && len(p.snapshots) == 0 && len(p.more) == 0
}

// admit finds the peer and books one request on its budgets; refused is the bound
// that keeps it out, "" for none.
func (s *Server) admit(x *exchange, now time.Time) (p *peer, refused string) {
	from, id := &x.request.Peer, x.request.Peer.Link
	s.mu.Lock()
	defer s.mu.Unlock()
	p = s.peers.Get(id)
	if p == nil {
		if s.peers.Len() >= maxPeers {
			return nil, overPeers
		}
		p = s.newPeer(id, now)
		s.peers.Put(p)
	}
	p.link = x.link
	p.plain, p.durable = from.Via == coap.Plain, durable(from.Via)
	at := s.stamp(now)
	if d := time.Duration(at - p.filled); d > 0 {
		p.budget = float32(min(float64(p.budget)+d.Seconds()*s.cfg.PerPeerRPS, float64(s.cfg.PerPeerBurst)))
	}
	p.filled = at
	switch {
	case p.budget < 1:
		return nil, overRate
	case int(p.working) >= s.cfg.MaxPeerRequests:
		return nil, overWorking
	}
	p.budget--
	p.working++
	return p, ""
}

// lookup finds the peer of a link that has perhaps not been heard yet.
func (s *Server) lookup(id coap.LinkID) *peer {
	s.mu.Lock()
	p := s.peers.Get(id)
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
	if p := s.peers.Get(id); p != nil {
		return p
	}
	p = s.newPeer(id, now)
	p.link, p.plain, p.durable = link, plain, durable(via)
	s.peers.Put(p)
	return p
}

// busy is a refusal that says when to come again (RFC 8516, Section 3; RFC
// 7252, Section 5.9.3.4).
func busy(code coap.Code) *coap.Response {
	r := &coap.Response{Code: code}
	r.Options.SetUint(coap.MaxAge, busyMaxAge)
	return r
}
