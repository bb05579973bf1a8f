// Package relay passes DTLS datagrams between nodes and a Group Manager elsewhere: the
// node's association ends there, and nobody between reads it.
//
// Each node's address is a flow with a socket of its own towards the server, so the
// server sees every node as another peer. A flow is opened by a ClientHello, or by a
// record with a Connection ID (RFC 9146), of a node that has a new address: whether it
// is that node's only the server can tell, and does, because the datagram reaches it
// from a new address as well. The table is bounded; addresses that proved nothing go
// first. Datagrams that are no DTLS records go nowhere.
package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
)

// Config says where datagrams go, and what bounds them.
type Config struct {
	Server string        // host:port
	Flows  int           // at one time; 0: 1024
	Idle   time.Duration // ends a flow that nobody used for that long; 0: an hour
	Rate   float64       // datagrams per second of one flow, in each direction; 0: 50
	Opens  float64       // flows opened per second; 0: 100

	Log        *slog.Logger
	Registerer prometheus.Registerer
}

const (
	defaultFlows = 1024
	defaultIdle  = time.Hour
	defaultRate  = 50
	defaultOpens = 100
	// unprovenIdle ends a flow whose node did not answer anything that the server sent.
	unprovenIdle = 30 * time.Second
	maxDatagram  = 65535
	dialTimeout  = 5 * time.Second
	sweepEvery   = 5 * time.Second
)

// Relay serves one socket.
type Relay struct {
	cfg   Config
	conn  *net.UDPConn
	opens *rate.Limiter

	passed  *prometheus.CounterVec
	dropped *prometheus.CounterVec

	mu    sync.Mutex
	flows map[netip.AddrPort]*flow // guarded by mu
	work  sync.WaitGroup
}

// flow is one address of a node.
type flow struct {
	at       netip.AddrPort
	up       *net.UDPConn
	in, out  *rate.Limiter
	used     time.Time // guarded by the relay's lock
	answered bool      // guarded by it: the server sent something
	proven   bool      // guarded by it: and the node sent something after that
}

// New makes a relay on a socket, which it takes over.
func New(conn *net.UDPConn, cfg Config) *Relay {
	if cfg.Flows <= 0 {
		cfg.Flows = defaultFlows
	}
	if cfg.Idle <= 0 {
		cfg.Idle = defaultIdle
	}
	if cfg.Rate <= 0 {
		cfg.Rate = defaultRate
	}
	if cfg.Opens <= 0 {
		cfg.Opens = defaultOpens
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Registerer == nil {
		cfg.Registerer = prometheus.NewRegistry()
	}
	r := &Relay{
		cfg: cfg, conn: conn, flows: map[netip.AddrPort]*flow{},
		opens: rate.NewLimiter(rate.Limit(cfg.Opens), max(1, int(2*cfg.Opens))),
		passed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "groupgate_relay_datagrams_total", Help: "Datagrams passed on: to the server, to nodes.",
		}, []string{"to"}),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "groupgate_relay_dropped_total", Help: "Datagrams dropped: no DTLS record, no flow, beyond a rate, no room, not reachable.",
		}, []string{"why"}),
	}
	cfg.Registerer.MustRegister(r.passed, r.dropped, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "groupgate_relay_flows", Help: "Addresses of nodes that have a flow now.",
	}, func() float64 { return float64(r.Flows()) }))
	return r
}

// LocalAddr is the address that nodes send to.
func (r *Relay) LocalAddr() net.Addr { return r.conn.LocalAddr() }

// Flows is how many there are.
func (r *Relay) Flows() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.flows)
}

// Run passes datagrams on until ctx ends; then every flow ends.
func (r *Relay) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		_ = r.conn.Close()
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, f := range r.flows {
			_ = f.up.Close()
		}
	})
	defer stop()
	r.work.Go(func() { r.sweep(ctx) })
	defer r.work.Wait()
	defer cancel()
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := r.conn.ReadFromUDPAddrPort(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("relay: %w", err)
		}
		r.upward(ctx, buf[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
	}
}

// upward passes a datagram of a node on.
func (r *Relay) upward(ctx context.Context, b []byte, from netip.AddrPort) {
	first := classify(b)
	if first == notDTLS {
		r.drop("record")
		return
	}
	f := r.flow(ctx, from, first)
	if f == nil {
		return
	}
	if !f.in.Allow() {
		r.drop("rate")
		return
	}
	if _, err := f.up.Write(b); err != nil {
		r.drop("unreachable") // ICMP told of the datagram before, or the flow ended
		return
	}
	r.passed.WithLabelValues("server").Inc()
}

func (r *Relay) drop(why string) { r.dropped.WithLabelValues(why).Inc() }

// flow finds or opens the flow of an address.
func (r *Relay) flow(ctx context.Context, from netip.AddrPort, first kind) *flow {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if f := r.flows[from]; f != nil {
		f.used = now
		f.proven = f.proven || f.answered
		return f
	}
	if first != opening {
		r.drop("flow")
		return nil
	}
	if !r.opens.Allow() {
		r.drop("rate")
		return nil
	}
	if len(r.flows) >= r.cfg.Flows && !r.makeRoomLocked(now) {
		r.drop("room")
		return nil
	}
	f, err := r.open(ctx, from)
	if err != nil {
		r.cfg.Log.WarnContext(ctx, "the server of the relay is not reachable", "server", r.cfg.Server, "err", err)
		r.drop("unreachable")
		return nil
	}
	f.used = now
	r.flows[from] = f
	r.work.Go(func() { r.downward(ctx, f) })
	return f
}

func (r *Relay) open(ctx context.Context, from netip.AddrPort) (*flow, error) {
	d := net.Dialer{Timeout: dialTimeout}
	c, err := d.DialContext(ctx, "udp", r.cfg.Server)
	if err != nil {
		return nil, err
	}
	burst := max(1, int(2*r.cfg.Rate))
	return &flow{
		at: from, up: c.(*net.UDPConn),
		in: rate.NewLimiter(rate.Limit(r.cfg.Rate), burst), out: rate.NewLimiter(rate.Limit(r.cfg.Rate), burst),
	}, nil
}

// makeRoomLocked ends the flow that was used longest ago: one that proved nothing, else
// one that is silent for a minute at least.
func (r *Relay) makeRoomLocked(now time.Time) bool {
	var oldest *flow
	for _, f := range r.flows {
		switch {
		case oldest == nil, oldest.proven && !f.proven, oldest.proven == f.proven && f.used.Before(oldest.used):
			oldest = f
		}
	}
	if oldest == nil || oldest.proven && now.Sub(oldest.used) < time.Minute {
		return false
	}
	r.endLocked(oldest)
	return true
}

func (r *Relay) endLocked(f *flow) {
	delete(r.flows, f.at)
	_ = f.up.Close()
}

// downward passes what the server sends to one node until the flow ends.
func (r *Relay) downward(ctx context.Context, f *flow) {
	buf := make([]byte, maxRecord)
	for {
		n, err := f.up.Read(buf)
		if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
			return
		}
		if err != nil {
			r.drop("unreachable") // refused: the server is down for now
			continue
		}
		r.mu.Lock()
		f.answered = true
		f.used = time.Now()
		r.mu.Unlock()
		if !f.out.Allow() {
			r.drop("rate")
			continue
		}
		if _, err := r.conn.WriteToUDPAddrPort(buf[:n], f.at); err != nil {
			r.drop("unreachable")
			continue
		}
		r.passed.WithLabelValues("node").Inc()
	}
}

// maxRecord is the largest datagram of a server: a DTLS record and its header, or
// several small ones.
const maxRecord = 16<<10 + 256

// sweep ends flows that nobody uses.
func (r *Relay) sweep(ctx context.Context) {
	t := time.NewTicker(min(sweepEvery, r.cfg.Idle))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			r.mu.Lock()
			for _, f := range r.flows {
				idle := r.cfg.Idle
				if !f.proven {
					idle = min(idle, unprovenIdle)
				}
				if now.Sub(f.used) > idle {
					r.endLocked(f)
				}
			}
			r.mu.Unlock()
		}
	}
}

// kind is what a datagram of a node may do.
type kind int

const (
	notDTLS kind = iota
	passing      // a record for a flow that is there
	opening      // may open one
)

// Content types of records (RFC 6347, Section 4.1; RFC 9146, Section 4).
const (
	typeFirst     = 20 // change_cipher_spec
	typeHandshake = 22
	typeCID       = 25
	headerSize    = 13
	clientHello   = 1
)

// classify reads the first record of a datagram: a handshake message ClientHello in
// clear, or a record with a Connection ID, may open a flow.
func classify(b []byte) kind {
	if len(b) < headerSize || b[0] < typeFirst || b[0] > typeCID || b[1] != 0xfe || b[2] != 0xfd && b[2] != 0xff {
		return notDTLS
	}
	epoch := uint16(b[3])<<8 | uint16(b[4])
	switch {
	case b[0] == typeCID && epoch > 0:
		return opening
	case b[0] == typeHandshake && epoch == 0 && len(b) > headerSize && b[headerSize] == clientHello:
		return opening
	}
	return passing
}
