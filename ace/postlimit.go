package ace

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// postLimiter bounds token posts: every one costs a verification, and most a
// commit. RFC 9200, Section 5.10.1 asks for it, because anybody may post.
type postLimiter struct {
	all      *rate.Limiter
	peerRate float64

	mu    sync.Mutex
	peers map[netip.Prefix]*rate.Limiter // guarded by mu
}

func newPostLimiter(l Limits) *postLimiter {
	return &postLimiter{
		all:      rate.NewLimiter(rate.Limit(l.PostRate), max(1, int(2*l.PostRate))),
		peerRate: l.PeerRate,
		peers:    map[netip.Prefix]*rate.Limiter{},
	}
}

// allow takes one post of an address. An address that has no room left does not
// use up that of all.
func (p *postLimiter) allow(addr netip.AddrPort, now time.Time) bool {
	if addr.IsValid() && !p.peer(addr.Addr().Unmap(), now).AllowN(now, 1) {
		return false
	}
	return p.all.AllowN(now, 1)
}

func (p *postLimiter) peer(addr netip.Addr, now time.Time) *rate.Limiter {
	bits := 32
	if addr.Is6() {
		bits = 64 // one site can have every address of it
	}
	prefix, err := addr.WithZone("").Prefix(bits)
	if err != nil {
		return p.all
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.peers[prefix]; l != nil {
		return l
	}
	burst := max(1, int(4*p.peerRate))
	if len(p.peers) >= maxRatedPeers {
		// Whoever has its whole burst again loses nothing by being forgotten.
		for k, l := range p.peers {
			if l.TokensAt(now) >= float64(burst) {
				delete(p.peers, k)
			}
		}
		for k := range p.peers {
			if len(p.peers) < maxRatedPeers {
				break
			}
			delete(p.peers, k)
		}
	}
	l := rate.NewLimiter(rate.Limit(p.peerRate), burst)
	p.peers[prefix] = l
	return l
}
