// Package proxy forwards CoAP requests to other servers (RFC 7252, Section 5.7):
// as a forward proxy for requests with Proxy-Uri or Proxy-Scheme, and as a
// reverse proxy for the host names and paths that the configuration leads to an
// upstream.
//
// It is closed: a request goes where a [Rule] lets its peer go, and nowhere else.
// Both legs are independent of each other: message layer, tokens, blockwise
// transfer and observation of the one end here, and begin anew on the other.
//
// What is where:
//
//	proxy.go     what a Proxy needs, and its life
//	target.go    from Proxy-Uri and Uri options to a target
//	rule.go      who may go where
//	forward.go   the way of one request
//	options.go   which options cross, and which do not
//	cache.go     responses that serve again; flight.go: requests that share one
//	relay.go     observations of public resources, merged
//	protected.go observations that OSCORE protects, one for each
//	group.go     requests to groups; chain.go: through another proxy; standin.go: in the
//	             place of their members
//	gate.go      peers on plain UDP: Echo, rates, amplification
//	upstream.go  the pool of associations, and what breaks the circuit
//	dial.go      names, addresses that are refused, handshakes
//	datagram.go  the message layer over UDP and DTLS
//	stream.go    that over TCP and TLS
//	links.go     discovery
//
// Start at [New] and [Proxy.ServeCoAP].
package proxy

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed4911071e/groupgate/coap"
)

// Config is what a [Proxy] does. The zero value forwards nothing.
type Config struct {
	Rules []Rule
	// Name tells this proxy from others in diagnostics (RFC 8768, Section 3). ""
	// means the name of the machine.
	Name string
	// CacheBytes is the memory of the cache; 0: nothing is cached.
	CacheBytes int
	// UDPRate is how many requests per second an address on plain UDP has
	// forwarded. 0 means 5.
	UDPRate float64
	// GroupTimeout is the longest time in which responses of a group are relayed. 0
	// means a minute.
	GroupTimeout time.Duration
	// StandIn is where clients reach this gateway, by coap or coaps and an address, in the
	// place of members of groups that they asked by a path or a host, and that they cannot
	// reach themselves. Zero: they can.
	StandIn Target
}

// Listener is a socket of the gateway itself.
type Listener struct {
	Scheme string // coap, coaps; "" for what is no CoAP
	TCP    bool
	Addr   netip.AddrPort // unspecified: all addresses of the machine
}

// Deps are what a Proxy works with.
type Deps struct {
	// Hub relays notifications; Observers lists who waits for those of a topic.
	Hub       coap.Hub
	Observers func(topic string) []coap.LinkID
	// Local serves requests whose target is this gateway.
	Local coap.Handler
	// May says whether a protected peer may use the proxy at all, Token whether it
	// holds a token that is valid here.
	May   func(context.Context, coap.Peer) error
	Token func(context.Context, coap.Peer) error
	// Listeners are the gateway's own sockets. nil: none.
	Listeners func() []Listener
	// Resolve finds the addresses of a name. nil means the system's resolver.
	Resolve    func(ctx context.Context, host string) ([]netip.Addr, error)
	Log        *slog.Logger          // nil: discards
	Registerer prometheus.Registerer // nil: a private one
}

// Proxy forwards requests. Its methods may be called from any goroutine.
type Proxy struct {
	cfg     Config
	deps    Deps
	rules   []*Rule
	names   map[string]*Rule // by Uri-Host
	metrics *metrics
	cache   *cache
	gate    *gate
	links   *links
	secret  [16]byte
	dialer  func(ctx context.Context, r *Rule, t Target, try int) (link, error)

	shaking  time.Duration // longest handshake
	patience time.Duration // with a session that has to answer a ping: time for a second one

	ctx     context.Context // of what outlives a request; ends with Run
	stop    context.CancelFunc
	work    sync.WaitGroup
	waiting atomic.Int64
	own     atomic.Pointer[ownAddrs]

	mu        sync.Mutex
	closing   bool
	upstreams map[upstreamKey]*upstream
	flights   map[cacheKey]*flight
	changes   uint64 // of resources, counted
	relays    map[cacheKey]*relay
	protected map[protectedKey]*protected
	asked     map[askedKey]*asked // requests to groups

	groupsObserved int // of them
}

// New makes a proxy. It starts nothing.
func New(cfg Config, deps Deps) *Proxy {
	if cfg.Name == "" {
		if cfg.Name, _ = os.Hostname(); cfg.Name == "" {
			cfg.Name = "groupgate"
		}
	}
	if cfg.UDPRate <= 0 {
		cfg.UDPRate = 5
	}
	if cfg.GroupTimeout <= 0 {
		cfg.GroupTimeout = time.Minute
	}
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	if deps.Resolve == nil {
		deps.Resolve = resolve
	}
	p := &Proxy{
		cfg: cfg, deps: deps, names: map[string]*Rule{},
		upstreams: map[upstreamKey]*upstream{}, flights: map[cacheKey]*flight{},
		relays: map[cacheKey]*relay{}, protected: map[protectedKey]*protected{},
		asked: map[askedKey]*asked{}, shaking: dialTimeout, patience: 2 * ackTimeout,
	}
	_, _ = rand.Read(p.secret[:]) // never fails (crypto/rand)
	p.cache = newCache(cfg.CacheBytes)
	p.gate = newGate(cfg.UDPRate)
	p.metrics = newMetrics(deps.Registerer, p)
	p.cache.count = func(result string) { p.metrics.cache.WithLabelValues(result).Inc() }
	p.links = newLinks(p)
	p.dialer = p.dial
	for _, r := range cfg.Rules {
		r = r.withDefaults()
		r.owner = r.account(p.secret[:])
		p.rules = append(p.rules, &r)
		if r.Name != "" {
			p.names[r.Name] = &r
		}
	}
	// The longest path goes first.
	slices.SortStableFunc(p.rules, func(a, b *Rule) int { return len(b.Prefix) - len(a.Prefix) })
	p.ctx, p.stop = context.WithCancel(context.Background())
	return p
}

// Takes says whether a request is the proxy's: it has a proxy option, the name
// of one of the hosts or the address of a member of a group, a path that leads to an
// upstream, or asks for the end of a request to a group.
func (p *Proxy) Takes(o coap.Options) bool {
	return Proxied(o) || earlyStop(o) || p.reverse(o) != nil || p.standsIn(o)
}

// Proxied says whether a request asks for forwarding.
func Proxied(o coap.Options) bool { return o.Has(coap.ProxyUri) || o.Has(coap.ProxyScheme) }

// reverse finds the rule by host name or path, nil: there is none.
func (p *Proxy) reverse(o coap.Options) *Rule {
	if len(p.names) > 0 {
		if host, ok := o.Get(coap.UriHost); ok {
			if r := p.names[strings.ToLower(string(host))]; r != nil {
				return r
			}
		}
	}
	var path []string
	for _, r := range p.rules {
		if len(r.Prefix) == 0 {
			break // sorted: no more paths
		}
		if path == nil {
			if path = o.Path(); len(path) == 0 {
				return nil
			}
		}
		if hasPrefix(path, r.Prefix) {
			return r
		}
	}
	return nil
}

// Run looks after associations and observations until ctx ends, and returns when
// all is over.
func (p *Proxy) Run(ctx context.Context) error {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for done := false; !done; {
		select {
		case <-ctx.Done():
			done = true
		case now := <-t.C:
			p.sweep(now)
		}
	}
	p.mu.Lock()
	p.closing = true
	all := make([]*upstream, 0, len(p.upstreams))
	for _, u := range p.upstreams {
		all = append(all, u)
	}
	p.mu.Unlock()
	p.stop()
	p.work.Wait()
	for _, u := range all {
		u.close()
	}
	return nil
}

// go runs f until it is over; false: the proxy ends.
func (p *Proxy) spawn(f func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closing {
		return false
	}
	p.work.Go(f)
	return true
}

func (p *Proxy) sweep(now time.Time) {
	p.sweepRelays(now)
	p.sweepProtected(now)
	p.sweepUpstreams(now)
	p.gate.sweep(now)
}

func resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
}
