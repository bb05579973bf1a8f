// Package endpoint serves CoAP over DTLS 1.2 and over UDP to very many peers
// that mostly sleep.
//
// It is a second kind of [coap.Link] under the server core, beside that over a
// host's go-coap server. A handshake is pion's business, over a packet
// connection in memory. At the first application record of the peer the session
// is taken over: what stays is a plain struct with the keys, and from then on
// the record layer of package record and the message layer in here serve it. An
// idle session has no goroutine, no buffer and no expanded key.
//
// What is where:
//
//	endpoint.go   what an Endpoint needs, and its life
//	shift.go      who reads the socket, and does what came with it
//	receive.go    from a datagram to a session or a handshake
//	handshake.go  handshakes by pion, and the taking over
//	half.go       handshakes of our own
//	gather.go     ClientHellos of them that come in fragments
//	session.go    one peer: keys, counters, address
//	message.go    the message layer of RFC 7252, incoming
//	send.go       the message layer, outgoing: the link as the server core has it
//	outbox.go     what waits to be sent, in batches
//	wheel.go      everything that is due at a time
//	room.go       who goes when room is short
//	local.go      the address of this machine that a peer uses
//	shards.go     several endpoints on one address
//	pool.go       the bounds that they share
//
// One mutex guards the state of all sessions of an endpoint, of which an address may
// have several; it is held for a batch of records at a time, never while a handler or
// the server core works. Start at [New], or at [NewShards].
package endpoint

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/dtls12"
	"github.com/seed4911071e/groupgate/table"
)

// Server is who answers: the server core of the gateway.
type Server interface {
	// Handle answers one request; nil: nothing is to be sent. It may wait.
	Handle(ctx context.Context, link coap.Link, m *coap.Message) *coap.Message
	// Closed tells that a link is gone.
	Closed(id coap.LinkID)
	// Cancel ends the observation of a peer that rejected a notification.
	Cancel(id coap.LinkID, token []byte)
}

// Proof is what a finished handshake shows about the peer.
type Proof struct {
	// Identity is the psk_identity; nil with public keys.
	Identity []byte
	// Certificates are those of the peer, DER, its own first; nil without.
	Certificates [][]byte
	// PublicKey is the public key of the peer, a SubjectPublicKeyInfo in DER, raw or
	// that of its certificate; nil with a pre-shared key.
	PublicKey []byte
	// Exporter is the keying material exporter of RFC 5705. A nil context is
	// absent, an empty one is present and empty.
	Exporter func(label string, context []byte, n int) ([]byte, error)
}

// Keys knows the peers.
type Keys interface {
	// PSK returns the pre-shared key of a psk_identity. An error that wraps
	// [ErrUnknown] is told to the peer as illegal_parameter (RFC 9202, Section
	// 3.3.2), any other as internal_error.
	PSK(ctx context.Context, identity []byte) ([]byte, error)
	// Admit says who the peer of a finished handshake is: the client's Finished
	// was verified. An error answers each request until Admit, asked again,
	// succeeds.
	Admit(ctx context.Context, p Proof) (coap.Subject, error)
}

// RawKeys is what [Keys] are as well when peers with raw public keys may come in
// (RFC 7250; RFC 9202, Section 3.2).
type RawKeys interface {
	// Known says whether the owner of a public key, a SubjectPublicKeyInfo in DER,
	// may have an association. An error that wraps [ErrUnknown] is told to the peer
	// as certificate_unknown, any other as internal_error.
	Known(ctx context.Context, spki []byte) error
}

// Certificates is what [Keys] are as well when peers with certificates may come
// in.
type Certificates interface {
	// Certified says whether the owner of a certificate, the first of those that it
	// showed, may have an association. An error that wraps [ErrUnknown] is told to
	// the peer: what package crypto/x509 found as what it is, else as
	// certificate_unknown. Any other is told as internal_error.
	Certified(ctx context.Context, chain []*x509.Certificate) error
}

// ErrUnknown is the error of a psk_identity for which there is no key, and of a
// public key that nobody vouches for.
var ErrUnknown = errors.New("endpoint: unknown psk_identity or public key")

// Config is what an [Endpoint] is made of.
type Config struct {
	Server Server
	// Context is that of handlers and handshakes, which end with it as with Run. nil:
	// they end with Run.
	Context context.Context
	// Keys is nil for plain UDP: then there is no DTLS.
	Keys Keys
	// RawKey gives the raw public key of the gateway, and nil as long as there is
	// none: handshakes wait for it. nil: there are no raw public keys. With it Keys
	// are RawKeys.
	RawKey func() *dtls12.Key
	// Certificate gives the gateway's, for clients without raw public keys, once RawKey
	// has one; nil: there is none. With one Keys are Certificates, and such handshakes
	// are done by package dtls12.
	Certificate func() *dtls12.Key
	// OwnPSK has the handshakes with pre-shared keys done as those with raw public
	// keys are, by package dtls12 in place of pion.
	OwnPSK bool
	// Options are given to pion for each handshake, after our own: further
	// cipher suites and certificates.
	Options []dtls.ServerOption
	// Opened is told of each peer that Admit let in, before its first request;
	// nil: nobody is.
	Opened func(Peer)
	// Ready is closed when requests can be served; Run does not read before. nil:
	// at once.
	Ready <-chan struct{}
	// Ending is called when Run is about to end, before anything is given up; nil:
	// nobody is.
	Ending func()
	// Keep is asked about peers on plain UDP that were silent for long: true keeps
	// one that is reached by other means than its own requests, with OSCORE. nil
	// keeps nobody.
	Keep func(id coap.LinkID) bool
	// MaxSessions bounds the associations. 0 means 200,000. Who goes beyond it says
	// room.go.
	MaxSessions int
	// MaxBytes bounds what associations, handshakes under way, remembered answers
	// and unacknowledged messages are reckoned to take, with what Memory says. 0: no
	// bound.
	MaxBytes int
	// Memory says what others hold for the peers; nil: nothing.
	Memory Memory
	// Standing says who the peer of a DTLS association is; it may wait, and is asked
	// only while room is short. The zero value says that it cannot be told now. nil:
	// whoever proved a key that a token may confirm is a Guest, others are Strangers.
	Standing func(context.Context, coap.Peer) Standing
	// MaxHandshakes bounds the handshakes under way. 0 means 256.
	MaxHandshakes int
	// Idle ends an association that nobody used for that long. 0 means a week.
	Idle time.Duration
	// HibernateAfter is how long a session is silent before it is compacted. 0
	// means a minute.
	HibernateAfter time.Duration
	// Log gets what matters to an operator; nil discards it.
	Log *slog.Logger
	// Registerer gets the metrics groupgate_endpoint_…. nil means a private one.
	Registerer prometheus.Registerer
}

// Peer is an association as its owner sees it.
type Peer interface {
	coap.Link
	coap.Requester
	// Close ends the association and tells the peer so.
	Close()
	// Status tells how the association stands.
	Status() Status
}

// Status is how an association stands, for operators.
type Status struct {
	Began, Heard time.Time // the end of its handshake, and the newest authentic record
	Moves        uint32    // to other addresses
	Hibernated   bool      // compacted until it is heard or sent to
	Restored     bool      // it outlived a restart
	Stale        bool      // and the peer has not shown since then that it is there
}

// Endpoint serves one socket.
type Endpoint struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	sock    Socket
	out     *outbox
	crew    *crew
	later   later
	shift   shift
	ctx     context.Context // of handlers and handshakes; ends with Run
	stop    context.CancelFunc
	kin     []*Endpoint   // all shards of the address; nil: it is alone
	pool    *pool         // of them
	shard   int           // its place there
	seed    uint64        // keys hashes of addresses
	base    time.Time     // that stamps count from
	pressed atomic.Bool   // room is short
	short   chan struct{} // has one place: it became so

	mu         sync.Mutex // guards everything below, and all sessions
	closed     bool
	sessions   []*session // each knows its place
	byAddr     *table.Map[netip.AddrPort, session]
	byCID      *table.Map[uint64, session]
	handshakes map[netip.AddrPort]*handshake
	halfByCID  map[uint64]*handshake
	own        halves
	seen       [greySlots]sighting
	working    int // requests in handlers
	wheel      *wheel
	ciphers    [cipherSlots]ciphers
	locals     locals
	came       netip.Addr   // where the datagram being read came to; invalid: anywhere
	plain      []byte       // the record being read
	lately     time.Time    // of the newest datagrams, or a little ago
	reading    bool         // a batch of datagrams is being read
	ready      []task       // of it
	apart      stamp        // until when tasks go to the crew
	message    []byte       // the message being sent, of those that are not kept
	incoming   coap.Message // the message being read
	spareActs  []*activity
	spareSent  []*transmission
	spareBytes [][]byte    // of messages that were acknowledged
	receipts   receiptList // of requests with effects, and all over plain UDP
	safe       receiptList // of the others
	room       room

	spareReceipts []*receipt
	spareReplies  [][]byte // of receipts

	// See persist.go.
	journal Journal       // nil: sessions end with the process
	start   uint32        // the number of this start
	starts  uint32        // the last number of a start that is taken for this one, on disk
	away    time.Duration // from when the newest of the restored sessions was heard until they were
	taking  bool          // more of them are being taken
	takeAt  time.Time     // not before this time: the disk refused
	dirty   []*session
	scratch []byte
	echoKey [16]byte
}

// New makes an endpoint on a socket, which it takes over. Run serves it.
func New(sock Socket, cfg Config) *Endpoint {
	if cfg.MaxSessions <= 0 {
		cfg.MaxSessions = defaultSessions
	}
	if cfg.MaxHandshakes <= 0 {
		cfg.MaxHandshakes = defaultHandshakes
	}
	if cfg.Idle <= 0 {
		cfg.Idle = defaultIdle
	}
	if cfg.HibernateAfter <= 0 {
		cfg.HibernateAfter = defaultHibernate
	}
	if cfg.Keys == nil {
		cfg.MaxSessions = min(cfg.MaxSessions, maxPlain)
		cfg.Idle = min(cfg.Idle, plainIdle)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Registerer == nil {
		cfg.Registerer = prometheus.NewRegistry()
	}
	e := &Endpoint{
		starts: 1<<24 - 1,
		cfg:    cfg, log: cfg.Log, metrics: newMetrics(cfg.Registerer), sock: sock,
		crew: newCrew(), wheel: newWheel(), lately: time.Now(),
		handshakes: make(map[netip.AddrPort]*handshake),
		halfByCID:  make(map[uint64]*handshake),
		seed:       randomUint64(),
		base:       time.Now(),
		short:      make(chan struct{}, 1),
		pool:       &pool{},
	}
	e.byAddr = table.New((*session).addr, func(a netip.AddrPort) uint64 { return table.Mix(e.hash(a, nil)) })
	e.byCID = table.New(func(s *session) uint64 { return s.cid }, func(id uint64) uint64 { return table.Mix(id ^ e.seed) })
	if cfg.Keys != nil && (cfg.RawKey != nil || cfg.Certificate != nil || cfg.OwnPSK) {
		e.own = halves{dtls12.NewCookies(), make(map[netip.AddrPort]*half), make(map[uint64]*half), make(map[netip.AddrPort]*gathering)}
	}
	_, _ = rand.Read(e.echoKey[:]) // never fails (crypto/rand)
	e.out = newOutbox(sock, e.metrics.unsent.Inc)
	e.crew.after = e.out.kick
	e.later.crew = e.crew
	e.shift.wake, e.shift.readers = make(chan struct{}, 1), newCrew()
	if cfg.Context == nil {
		cfg.Context = context.Background()
	}
	e.ctx, e.stop = context.WithCancel(cfg.Context)
	return e
}

// LocalAddr is the address of the socket.
func (e *Endpoint) LocalAddr() net.Addr { return e.sock.LocalAddr() }

// Run serves until ctx ends and closes the socket. Sessions that a journal keeps
// go on after the next start; other peers are told goodbye. It returns when all is
// over.
func (e *Endpoint) Run(ctx context.Context) error {
	if e.cfg.Ready != nil {
		select {
		case <-e.cfg.Ready:
		case <-ctx.Done():
			e.stop()
			return e.sock.Close()
		}
	}
	var writer, work sync.WaitGroup
	writer.Go(e.out.run)
	background, quiet := context.WithCancel(ctx)
	work.Go(func() { e.runWheel(background) })
	work.Go(func() { e.runSweep(background) })
	work.Go(func() { e.runKeep(background) })
	work.Go(func() { e.runRoom(background) })
	var failed error
	read := make(chan struct{})
	in := newInbox() // of one shift after the other
	over := func(err error) {
		failed = err
		close(read)
	}
	e.shift.start = func(turn uint64) {
		e.shift.readers.do(func() { e.follow(in, turn, over) })
	}
	e.shift.readers.do(func() { e.read(in, 0, over) })
	work.Go(func() { e.runShift(background) })
	select {
	case <-ctx.Done():
	case <-read:
	}
	// Requests end with the gateway, and what they answer is still sent. What
	// comes meanwhile is not looked at any more.
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	quiet()
	work.Wait()
	e.Keep()
	if e.cfg.Ending != nil {
		e.cfg.Ending()
	}
	e.stop()
	e.endHandshakes()
	e.shift.tasksWG.Wait()
	e.crew.end()
	e.goodbye()
	e.out.close()
	writer.Wait()
	err := e.sock.Close()
	e.shift.readers.end()
	if ctx.Err() != nil {
		return nil
	}
	return errors.Join(failed, err)
}

// Close gives up an endpoint that is not run.
func (e *Endpoint) Close() error { return e.sock.Close() }

// goodbye ends every association; one that is kept only here, not for the peer.
func (e *Endpoint) goodbye() {
	e.mu.Lock()
	e.journal = nil // what ends now goes on after the next start
	all := slices.Clone(e.sessions)
	e.mu.Unlock()
	for _, s := range all {
		e.out.throttle()
		e.mu.Lock()
		done := s.closeLocked(!s.written)
		e.mu.Unlock()
		for _, f := range done {
			f()
		}
	}
}

// runSweep looks for what is old until ctx ends.
func (e *Endpoint) runSweep(ctx context.Context) {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			e.sweep(now)
		}
	}
}

func (e *Endpoint) sweep(now time.Time) {
	e.askWhomToKeep()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lately = now
	e.receipts.expire(e.stamp(now), exchangeLifetime)
	e.safe.expire(e.stamp(now), maxTransmitSpan)
	for i := range e.ciphers {
		if c := &e.ciphers[i]; c.of != nil && now.Sub(c.used) > cipherIdle {
			*c = ciphers{}
		}
	}
	for i := len(e.sessions) - 1; i >= 0; i-- { // from behind: whoever ends leaves the list
		s := e.sessions[i]
		silence := time.Duration(e.stamp(now) - s.heard)
		quiet := silence
		if s.stale {
			quiet -= e.away
		}
		switch {
		case quiet > e.cfg.Idle && s.idle() && !s.stays():
			e.end(s, e.cfg.Keys != nil)
		case silence > e.cfg.HibernateAfter:
			s.hibernate()
		}
	}
}

// askWhomToKeep marks the peers on plain UDP that are to stay. The answer is
// asked for without the lock.
func (e *Endpoint) askWhomToKeep() {
	if e.cfg.Keep == nil || e.cfg.Keys != nil {
		return
	}
	e.mu.Lock()
	all := slices.Clone(e.sessions)
	e.mu.Unlock()
	kept := make([]bool, len(all))
	for i, s := range all {
		kept[i] = e.cfg.Keep(s.id)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for i, s := range all {
		s.stay(kept[i])
	}
}

// end closes a session; who waited for something is told soon.
func (e *Endpoint) end(s *session, tell bool) {
	for _, f := range s.closeLocked(tell) {
		e.crew.do(f)
	}
}

// randomUint64 is from the system's source.
func randomUint64() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	var v uint64
	for _, x := range b {
		v = v<<8 | uint64(x)
	}
	return v
}

// hash of an address and some bytes, keyed so that nobody can aim at a place.
func (e *Endpoint) hash(a netip.AddrPort, b []byte) uint64 {
	const prime = 0x100000001b3
	h := e.seed
	ip := a.Addr().As16()
	for _, part := range [][]byte{ip[:], {byte(a.Port() >> 8), byte(a.Port())}, b} {
		for _, x := range part {
			h = (h ^ uint64(x)) * prime
			h ^= h >> 29
		}
	}
	return h
}
