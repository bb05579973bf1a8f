package coaptest

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/serve"
)

// Options are the knobs of a [Link]. The zero value is a perfect network with
// 1 ms of delay in each direction.
type Options struct {
	Seed uint64 // of the one source of randomness

	Drop      float64       // probability that a datagram is lost
	Duplicate float64       // probability that it arrives twice
	Reorder   float64       // probability that later ones overtake it
	Delay     time.Duration // one way; 0 means 1 ms

	// Lose is asked for each datagram before Drop: true loses it.
	Lose func(toServer bool, m *coap.Message) bool
	// Trace sees each message that arrives. It and Lose are called one at a
	// time, and must not call the Link.
	Trace func(toServer bool, m *coap.Message)

	BlockSize int  // of the client, in bytes; 0 means 1024
	MaxBody   int  // of responses, in bytes; 0 means 1 MiB
	NonConf   bool // the client sends its requests non-confirmable
	Patient   bool // the client takes all responses with its tokens; otherwise it rejects those after the first
	Whole     bool // the server side says OwnsBlockwise, and bodies travel whole

	// Handler answers requests of the server side; nil: 4.04.
	Handler coap.Handler
}

// Link is an association in memory, held by the client's end. [Link.Port] is
// the server's. Close it at the end.
type Link struct {
	srv    *serve.Server
	peer   coap.Peer
	opts   Options
	server *end // our server's end
	client *end

	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup

	hooks sync.Mutex // held while Lose and Trace run

	mu      sync.Mutex
	rng     *rand.Rand // guarded by mu
	closed  bool       // guarded by mu
	token   uint64     // guarded by mu
	flights map[*time.Timer]struct{}

	observed map[string]*observation // by token; guarded by mu
	down     [2]bool                 // to the client, to the server; guarded by mu
}

var (
	_ coap.Link      = port{}
	_ coap.Requester = port{}
)

// NewLink joins srv with a new client that srv knows as peer. An empty
// peer.Link becomes "client".
func NewLink(srv *serve.Server, peer coap.Peer, opts Options) *Link {
	if opts.Delay == 0 {
		opts.Delay = time.Millisecond
	}
	if opts.BlockSize == 0 {
		opts.BlockSize = 1024
	}
	if opts.MaxBody == 0 {
		opts.MaxBody = 1 << 20
	}
	if peer.Link == "" {
		peer.Link = "client"
	}
	l := &Link{
		srv: srv, peer: peer, opts: opts,
		rng:      rand.New(rand.NewPCG(opts.Seed, 0x636f6170)),
		flights:  make(map[*time.Timer]struct{}),
		observed: make(map[string]*observation),
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.server = newEnd(l, true)
	l.client = newEnd(l, false)
	l.server.serve = func(ctx context.Context, m *coap.Message) *coap.Message { return srv.Handle(ctx, port{l}, m) }
	l.server.rejected = func(token []byte) { srv.Cancel(peer.Link, token) }
	h := opts.Handler
	if h == nil {
		h = coap.HandlerFunc(func(context.Context, *coap.Request) (*coap.Response, error) {
			return nil, coap.Errorf(coap.NotFound, "")
		})
	}
	back := serve.New(h, serve.Config{BlockSize: opts.BlockSize, MaxBody: opts.MaxBody})
	l.client.serve = func(ctx context.Context, m *coap.Message) *coap.Message {
		return back.Handle(ctx, clientLink{l}, m)
	}
	l.client.unsolicited = l.notified
	return l
}

// Close ends the association: what is under way is lost, waiting calls return
// coap.ErrGone, and the server is told. It returns when no goroutine is left.
func (l *Link) Close() {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return
	}
	l.closed = true
	for t := range l.flights {
		t.Stop()
	}
	clear(l.flights)
	l.mu.Unlock()
	l.cancel()
	l.server.close()
	l.client.close()
	l.srv.Closed(l.peer.Link)
	l.work.Wait()
}

// Cut makes the network lose everything in a direction, or stop losing it: a
// node that sleeps is Cut(true, true).
func (l *Link) Cut(toClient, toServer bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = [2]bool{toClient, toServer}
}

// Port is the link as the server has it.
func (l *Link) Port() coap.Link { return port{l} }

// port is the server's end.
type port struct{ l *Link }

func (p port) Peer() coap.Peer                        { return p.l.peer }
func (p port) OwnsBlockwise() bool                    { return p.l.opts.Whole }
func (p port) Send(m *coap.Message, done func(error)) { p.l.server.after(m, done) }
func (p port) Do(ctx context.Context, m *coap.Message) (*coap.Message, error) {
	return p.l.server.exchange(ctx, m)
}

// goroutine runs f, and Close waits for it. It does nothing after Close.
func (l *Link) goroutine(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.work.Go(f)
}

// newToken gives tokens that differ between the two ends, for whoever reads a
// trace.
func (l *Link) newToken(server bool) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.token++
	side := byte('c')
	if server {
		side = 's'
	}
	return binary.BigEndian.AppendUint32([]byte{side}, uint32(l.token))
}

// float gives the next random number in [0, 1).
func (l *Link) float() float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rng.Float64()
}

// carry takes a datagram into the network.
func (l *Link) carry(toServer bool, b []byte) {
	m, err := coap.DecodeMessage(b)
	l.hooks.Lock()
	lose := err == nil && l.opts.Lose != nil && l.opts.Lose(toServer, m)
	l.hooks.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	way := 0
	if toServer {
		way = 1
	}
	if l.closed || lose || l.down[way] || l.rng.Float64() < l.opts.Drop {
		return
	}
	copies := 1
	if l.rng.Float64() < l.opts.Duplicate {
		copies = 2
	}
	for i := range copies {
		delay := l.opts.Delay * time.Duration(i+1)
		if l.rng.Float64() < l.opts.Reorder {
			delay += l.opts.Delay*5 + time.Duration(l.rng.Int64N(int64(l.opts.Delay)*20))
		}
		var t *time.Timer
		t = time.AfterFunc(delay, func() {
			l.mu.Lock()
			_, ok := l.flights[t]
			delete(l.flights, t)
			if ok {
				l.work.Add(1)
			}
			l.mu.Unlock()
			if ok {
				defer l.work.Done()
				l.arrive(toServer, b)
			}
		})
		l.flights[t] = struct{}{}
	}
}

func (l *Link) arrive(toServer bool, b []byte) {
	b = slices.Clone(b)
	if l.opts.Trace != nil {
		if m, err := coap.DecodeMessage(b); err == nil {
			l.hooks.Lock()
			l.opts.Trace(toServer, m)
			l.hooks.Unlock()
		}
	}
	if toServer {
		l.server.receive(b)
	} else {
		l.client.receive(b)
	}
}

// clientLink is the link as the client's own server sees it.
type clientLink struct{ l *Link }

func (c clientLink) Peer() coap.Peer                        { return coap.Peer{Link: "server"} }
func (c clientLink) Send(m *coap.Message, done func(error)) { c.l.client.after(m, done) }
func (c clientLink) OwnsBlockwise() bool                    { return c.l.opts.Whole }

// errClosed is what waits end with.
var errClosed = fmt.Errorf("coaptest: link closed: %w", coap.ErrGone)
