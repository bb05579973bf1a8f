package proxy

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// gate knows the addresses on plain UDP. Anybody can write one into a packet, so
// each has to show that it receives before anything is forwarded for it (RFC
// 9175, Section 2.4, item 3), and gets little until it shows it again.
type gate struct {
	rate float64

	mu     sync.Mutex
	budget map[netip.Addr]*budget
	proven map[netip.AddrPort]*proof
}

// proof is an address that returned an Echo value.
type proof struct {
	at     time.Time
	credit int // bytes that it may get without another
}

type budget struct {
	left float64
	at   time.Time
}

func newGate(rate float64) *gate {
	return &gate{rate: rate, budget: map[netip.Addr]*budget{}, proven: map[netip.AddrPort]*proof{}}
}

// subnet is what shares one rate: an IPv4 address, or an IPv6 /64.
func subnet(a netip.Addr) netip.Addr {
	a = a.Unmap()
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

// take books one request of an address.
func (g *gate) take(a netip.Addr, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	a = subnet(a)
	b := g.budget[a]
	most := max(2*g.rate, 1)
	if b == nil {
		if len(g.budget) >= maxAddresses {
			return false
		}
		b = &budget{left: most, at: now}
		g.budget[a] = b
	}
	if d := now.Sub(b.at).Seconds(); d > 0 {
		b.left = min(b.left+d*g.rate, most)
	}
	b.at = now
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}

// asks says whether a request of an address may be forwarded, and credits what it
// brought. proves: it came with an Echo value of ours.
func (g *gate) asks(a netip.AddrPort, size int, proves bool, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.proven[a]
	if proves && (p != nil || len(g.proven) < maxAddresses) {
		p = &proof{at: now, credit: proofCredit}
		g.proven[a] = p
	}
	if p == nil || now.Sub(p.at) >= provenFor {
		return false
	}
	p.credit = min(p.credit+amplification*size, proofCredit)
	return true
}

// gets says whether an address may be sent a response.
func (g *gate) gets(a netip.AddrPort, size int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.proven[a]
	if p == nil || p.credit < size {
		return false
	}
	p.credit -= size
	return true
}

func (g *gate) sweep(now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for a, p := range g.proven {
		if now.Sub(p.at) >= provenFor {
			delete(g.proven, a)
		}
	}
	for a, b := range g.budget {
		if b.left+now.Sub(b.at).Seconds()*g.rate >= max(2*g.rate, 1) {
			delete(g.budget, a) // full again
		}
	}
}

// echoSize is that of our Echo values: four bytes of time, and who it was for.
const echoSize = 4 + 12

// echo makes the value that an address has to return.
func (p *Proxy) echo(a netip.AddrPort, now time.Time) []byte {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, echoSize), uint32(now.Unix()))
	return append(b, p.echoTag(a, b)...)
}

func (p *Proxy) echoTag(a netip.AddrPort, at []byte) []byte {
	h := hmac.New(sha256.New, p.secret[:])
	ip := a.Addr().As16()
	h.Write(ip[:])
	h.Write([]byte{byte(a.Port() >> 8), byte(a.Port())})
	h.Write(at)
	return h.Sum(nil)[:echoSize-4]
}

// returned says whether an Echo value is one of ours for the address, and whether
// it is new enough.
func (p *Proxy) returned(a netip.AddrPort, v []byte, now time.Time) (ours, good bool) {
	if len(v) != echoSize || !hmac.Equal(v[4:], p.echoTag(a, v[:4])) {
		return false, false
	}
	age := now.Sub(time.Unix(int64(binary.BigEndian.Uint32(v)), 0))
	return true, age >= -time.Second && age < echoFor
}

// challenge is 4.01 with an Echo option and nothing else: no more bytes than a
// request of this kind has.
func (p *Proxy) challenge(a netip.AddrPort, now time.Time) error {
	r := &coap.Response{Code: coap.Unauthorized}
	r.Options.Add(coap.Echo, p.echo(a, now))
	setMaxAge(r, 0)
	p.metrics.refused.WithLabelValues("echo").Inc()
	return coap.Respond(r, nil)
}

// Screen answers a message of a peer on plain UDP that begins or goes on with a
// body in blocks: whether the address receives is asked before the body is taken.
func (p *Proxy) Screen(req *coap.Request) error {
	if req.Peer.Via != coap.Plain || !req.Options.Has(coap.Block1) || !p.Takes(req.Options) {
		return nil
	}
	if !slices.ContainsFunc(p.rules, func(r *Rule) bool { return r.OpenToUDP }) {
		return coap.Errorf(coap.Unauthorized, textPlain)
	}
	now, good := time.Now(), false
	if v, ok := req.Options.Get(coap.Echo); ok {
		_, good = p.returned(req.Peer.Addr, v, now)
	}
	if !p.gate.asks(req.Peer.Addr, sizeOf(req.Options, req.Payload), good, now) {
		return p.challenge(req.Peer.Addr, now)
	}
	return nil
}

// forwardPlain forwards for a peer on plain UDP.
func (p *Proxy) forwardPlain(ctx context.Context, f *forwarded) (*coap.Response, error) {
	now := time.Now()
	at := f.req.Peer.Addr
	if !p.gate.take(at.Addr(), now) {
		p.metrics.refused.WithLabelValues("rate").Inc()
		r := &coap.Response{Code: coap.TooManyRequests}
		setMaxAge(r, busyFor*time.Second)
		return nil, coap.Respond(r, nil)
	}
	good := false
	if v, ok := f.req.Options.Get(coap.Echo); ok {
		var ours bool
		if ours, good = p.returned(at, v, now); ours {
			// Nobody else's business.
			req := *f.req
			req.Options.Remove(coap.Echo)
			f.req = &req
			f.opts.Remove(coap.Echo)
		}
	}
	if !p.gate.asks(at, sizeOf(f.req.Options, f.req.Payload), good, now) {
		return nil, p.challenge(at, now)
	}
	if a, isAddr := f.target.addr(); isAddr && a.IsMulticast() {
		// docs/protocol.md, Section 8: for an authenticated client only.
		return nil, coap.Errorf(coap.Unauthorized, textPlain)
	}
	r, err := p.forwardProven(ctx, f)
	if err == nil && !p.gate.gets(at, sizeOf(r.Options, r.Payload)) {
		return nil, p.challenge(at, now)
	}
	return r, err
}

// sizeOf is about how many bytes a message takes.
func sizeOf(o coap.Options, payload []byte) int {
	n := 12 + len(payload)
	for _, x := range o {
		n += 2 + len(x.Value)
	}
	return n
}
