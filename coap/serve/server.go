// Package serve is the server core of the gateway, written once over the port
// that every transport offers, [coap.Link].
//
// Handlers return responses; all that is between a handler and a datagram is
// here: critical options, budgets of each peer, blockwise transfer in both
// directions (RFC 7959), observation (RFC 7641), the conversion of errors,
// No-Response (RFC 7967) and responses after the first. What is below stays
// with the link: message identifiers, retransmission, deduplication and the
// choice between piggybacked and separate responses.
//
// Start at [New] and [Server.Handle]. A link calls Handle for each request,
// in a goroutine that may wait for the handler, sends what it returns, and
// says [Server.Closed] when it is gone. Rooms reach peers through the
// [coap.Hub] that a Server is.
//
// # Notifications
//
// Each (link, topic) has a mailbox of one slot, and each link one confirmable
// notification or request in flight at a time over all its topics (NSTART,
// RFC 7252, Section 4.7). While one is in flight a newer version replaces what
// waits; a version that was replaced is never sent, and Done is not called for
// it. Nor is it called where Allow refused. For a version that was sent Done is
// called once with the outcome. A notification that nobody acknowledged stays
// in the mailbox and is sent again after the next request of the peer, its
// first sign of life; Done then reports the outcome of that too, so that a
// coap.ErrTimeout may be followed by a nil. A version that a peer has been
// shown is not sent to it again, so that Publish may be repeated.
//
// Nothing is lost between a handler's reading of its state and the registration
// of the observer as long as the room changes its state first and publishes
// then.
package serve

import (
	"context"
	"crypto/rand"
	"fmt"
	"hash/maphash"
	"log/slog"
	"maps"
	"math/bits"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/table"
)

// Config has the knobs of a [Server]. The zero value is usable.
type Config struct {
	// BlockSize is the largest block sent, in bytes: a power of two from 16 to
	// 1024. 0 means 1024.
	BlockSize int
	// MaxBody is the largest body taken, in bytes. 0 means 64 KiB.
	MaxBody int
	// MaxPeerRequests is how many requests of one peer may be in work. 0 means
	// 16.
	MaxPeerRequests int
	// PerPeerRPS and PerPeerBurst bound the requests of one peer per second.
	// 0 means 50 and 100.
	PerPeerRPS   float64
	PerPeerBurst int
	// MaxObservations bounds the observations of all peers together: beyond it
	// requests are answered without registration. 0 means 400,000.
	MaxObservations int
	// NotifyRate bounds the notifications of all topics together per second, and
	// SubnetRate those to one subnet, an IPv4 /24 or an IPv6 /64. Topics take
	// turns. What a sign of life brings is not held back. 0 means no limit.
	NotifyRate float64
	SubnetRate float64
	// Critical lists critical options that handlers understand besides those
	// that package coap knows.
	Critical []coap.OptionID
	// Forwards says whether a request is passed on to another server, so that
	// critical options that nobody here knows are passed on as well where their
	// numbers allow it. nil: it has a proxy option.
	Forwards func(coap.Options) bool
	// Screen is asked about each message before anything is kept for it: an error
	// answers it. A body in blocks is refused at its first block that way. nil: all
	// are taken.
	Screen func(*coap.Request) error
	// Link finds the link of a peer that has not sent a request since the start;
	// it returns nil when there is none. nil means that only peers that were
	// heard can be reached by Do.
	Link func(coap.LinkID) coap.Link
	// Failed is told every error reply, and the request without its body; it
	// does not wait and keeps neither. nil means that nobody is told.
	Failed func(req *coap.Request, resp *coap.Response)
	// Log gets request failures, once each. nil discards them.
	Log *slog.Logger
	// Registerer gets the metrics groupgate_serve_…. nil means a private one.
	Registerer prometheus.Registerer
}

func (c Config) withDefaults() Config {
	if c.BlockSize == 0 {
		c.BlockSize = maxBlock
	}
	// A size between two powers is rounded down: no larger block is sent.
	c.BlockSize = 1 << (bits.Len(uint(min(max(c.BlockSize, minBlock), maxBlock))) - 1)
	if c.MaxBody <= 0 {
		c.MaxBody = defaultMaxBody
	}
	if c.MaxPeerRequests <= 0 {
		c.MaxPeerRequests = defaultPeerRequests
	}
	if c.PerPeerRPS <= 0 {
		c.PerPeerRPS = defaultRPS
	}
	if c.PerPeerBurst <= 0 {
		c.PerPeerBurst = max(defaultBurst, int(2*c.PerPeerRPS))
	}
	if c.MaxObservations <= 0 {
		c.MaxObservations = defaultObservations
	}
	if c.Forwards == nil {
		c.Forwards = func(o coap.Options) bool { return o.Has(coap.ProxyUri) || o.Has(coap.ProxyScheme) }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Registerer == nil {
		c.Registerer = prometheus.NewRegistry()
	}
	c.Critical = slices.Clone(c.Critical)
	return c
}

// Server is the core. It implements [coap.Hub]. Its methods may be called from
// any goroutine.
type Server struct {
	handler coap.Handler
	cfg     Config
	szx     uint8     // of cfg.BlockSize
	base    time.Time // that stamps count from
	etagKey [16]byte  // keys the entity tags that the server makes
	metrics *metrics
	pacer   *pacer

	refusals *refusals

	stop    context.CancelFunc // ends further responses
	stopped context.Context    // its only use: done when Run is over
	work    sync.WaitGroup     // productions of further responses

	mu      sync.Mutex
	peers   *table.Map[coap.LinkID, peer]
	keeper  Keeper // guarded by mu; nil: observations end with the process
	closing bool   // Run is over: no further goroutines

	// Blockwise state, guarded by mu.
	assemblyBytes int // in all
	plainBytes    int // of unauthenticated peers
	snapshots     snapshotLRU

	// Observation, guarded by mu.
	topics       map[string]*topic
	deliveries   []*delivery // for the next
	views        map[view]*sharedView
	observations int
	registering  int               // requests in work that may register
	events       uint64            // counts Drop, to order it against registrations
	retained     int               // topics without observers
	unsettled    map[string]*topic // to be looked at when no registration is under way
}

var _ coap.Hub = (*Server)(nil)

// New makes a server core around h. It starts nothing.
func New(h coap.Handler, cfg Config) *Server {
	cfg = cfg.withDefaults()
	s := &Server{
		handler:   h,
		cfg:       cfg,
		szx:       szxOf(cfg.BlockSize),
		metrics:   newMetrics(cfg.Registerer),
		refusals:  newRefusals(cfg.Registerer),
		pacer:     newPacer(cfg.NotifyRate, cfg.SubnetRate),
		base:      time.Now(),
		views:     make(map[view]*sharedView),
		topics:    make(map[string]*topic),
		unsettled: make(map[string]*topic),
	}
	seed := maphash.MakeSeed()
	s.peers = table.New(func(p *peer) coap.LinkID { return p.id }, func(id coap.LinkID) uint64 { return maphash.String(seed, string(id)) })
	s.stopped, s.stop = context.WithCancel(context.Background())
	rand.Read(s.etagKey[:])
	return s
}

// Run forgets what has expired until ctx ends, then stops the production of
// further responses and returns when that is over.
func (s *Server) Run(ctx context.Context) error {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			s.mu.Lock()
			s.closing = true
			s.mu.Unlock()
			s.stop()
			s.pacer.close()
			s.work.Wait()
			return nil
		case now := <-t.C:
			s.sweep(now)
		}
	}
}

// Held is what peers are reckoned to take here, in bytes: themselves, their
// observations, bodies under way.
func (s *Server) Held() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.peers.Len()*peerSize + s.observations*observationSize + s.assemblyBytes + s.snapshots.bytes
}

// Closed tells that a link is gone: its observations, transfers and waiting
// requests are forgotten.
func (s *Server) Closed(id coap.LinkID) {
	s.mu.Lock()
	p := s.peers.Get(id)
	if p == nil {
		s.mu.Unlock()
		return
	}
	s.peers.Delete(id)
	p.gone = true
	for p.subs != nil {
		s.removeLocked(p.subs)
	}
	for _, a := range p.assemblies {
		s.forgetAssemblyLocked(p, a)
	}
	for _, snap := range p.snapshots {
		s.snapshots.remove(snap)
	}
	if len(p.snapshots) > 0 {
		p.snapshots = nil
	}
	jobs := p.outbox
	if len(jobs) > 0 {
		p.outbox = nil
	}
	mores := slices.Collect(maps.Values(p.more))
	s.mu.Unlock()
	for _, j := range jobs {
		j.abandon()
	}
	for _, m := range mores {
		m.end()
	}
}

// sweep forgets expired transfers and idle peers.
func (s *Server) sweep(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range s.peers.All() {
		for _, a := range slices.Clone(p.assemblies) {
			if now.Sub(a.used) >= exchangeLifetime {
				s.forgetAssemblyLocked(p, a)
			}
		}
		for _, snap := range slices.Clone(p.snapshots) {
			if now.Sub(snap.used) >= exchangeLifetime {
				s.forgetSnapshotLocked(snap)
			}
		}
		if len(p.assemblies)+len(p.snapshots)+len(p.more)+len(p.outbox) == 0 {
			p.transfers = &noTransfers
		}
		// Without Config.Link only this entry can find the link, so it stays
		// until the link is closed; unauthenticated addresses are many and are
		// never asked anything.
		if p.idle() && time.Duration(s.stamp(now)-p.filled) >= peerIdle && (s.cfg.Link != nil || p.plain) {
			p.gone = true
			s.peers.Delete(p.id)
		}
	}
}

// szxOf is the size exponent of a block size (RFC 7959, Section 2.2).
func szxOf(size int) uint8 { return uint8(bits.Len(uint(size)) - 5) }

// errLink is the error of an operation that a link does not offer.
var errLink = fmt.Errorf("serve: the link carries no requests: %w", coap.ErrGone)
