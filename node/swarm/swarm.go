// Package swarm plays very many nodes from one process: real DTLS handshakes,
// then a few hundred bytes for each, without a goroutine or, at a gateway on
// this machine, a socket of its own. It loads gateways, ours or others, and is
// what the benchmarks drive every server with.
//
// It shares the record layer (package record) with the gateway's endpoint and
// nothing else; its message layer is a node's: one request under way at a time
// (NSTART, RFC 7252, Section 4.7), retransmission, acknowledgement of what is
// confirmable.
//
// Start at [New], [Swarm.Run] and [Swarm.Open].
//
// At a gateway on a loopback address each node has an address 127.x.y.z of its
// own, all on one socket, so 100,000 nodes need one descriptor. Elsewhere each
// node has a socket: the descriptor limit of the process bounds them.
package swarm

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/datagram"
	"github.com/seed4911071e/groupgate/record"
)

// Config is what a [Swarm] is made of.
type Config struct {
	// Gateway is where the server listens for CoAP over DTLS.
	Gateway netip.AddrPort
	// Nodes is how many nodes there are, 1 to MaxNodes.
	Nodes int
	// NoCID has the nodes offer no Connection ID (RFC 9146).
	NoCID bool
	// Network is which block of addresses the nodes have on loopback, so that
	// several swarms at one server do not meet: 0 to 63.
	Network uint8
	// Notified is told of each notification; nil: nobody is. It must not wait,
	// nor call the Swarm.
	Notified func(node int, m *coap.Message)
}

// MaxNodes bounds a swarm.
const MaxNodes = 1 << 17

// Our own bounds, and values of RFC 7252, Section 4.8.
const (
	handshakeTimeout = 20 * time.Second
	ackTimeout       = 2 * time.Second
	maxRetransmit    = 4
	lookEvery        = 100 * time.Millisecond // for what is to be sent again
	maxMessage       = 2048
	// expandedKeys is up to how many nodes keep their expanded keys, 1.5 kB each.
	expandedKeys = 1 << 15
)

// Stats counts what the nodes saw so far.
type Stats struct {
	Open            int    `json:"open"`             // associations now
	Handshakes      uint64 `json:"handshakes"`       // finished
	Failed          uint64 `json:"failed"`           // handshakes that came to nothing
	Requests        uint64 `json:"requests"`         // sent, without repetitions
	Responses       uint64 `json:"responses"`        // to them
	Refused         uint64 `json:"refused"`          // responses with an error code
	Timeouts        uint64 `json:"timeouts"`         // requests that nobody answered
	Retransmissions uint64 `json:"retransmissions"`  // of requests
	Notifications   uint64 `json:"notifications"`    // new ones
	Acknowledged    uint64 `json:"acknowledged"`     // confirmable ones among them
	Repeated        uint64 `json:"repeated"`         // confirmable ones that came again
	Undecipherable  uint64 `json:"undecipherable"`   // records that did not open, or came twice
	Closed          uint64 `json:"closed_by_server"` // associations ended by an alert
	Flooded         uint64 `json:"flooded"`          // ClientHellos from invented addresses
}

// Swarm is many nodes. Its methods may be called from any goroutine.
type Swarm struct {
	cfg  Config
	lone bool              // a socket for each node
	port [2]*datagram.Conn // of all nodes, who move from one to the other

	conns []*net.UDPConn // one for each node; nil on loopback
	wmu   [2]sync.Mutex  // guard port, and writing to it
	wg    sync.WaitGroup // who receives

	mu    sync.Mutex // guards all below, and the nodes
	side  uint8      // in port
	ended bool       // the sockets are closed
	thief *thief     // see Divert
	nodes []node
	calls map[*call]struct{}
	plain []byte
	out   []datagram.Datagram // collected while mu is held
	spare [][]byte
	stats Stats

	open atomic.Int64
}

// node is one node; guarded by Swarm.mu.
type node struct {
	shake *datagram.Pipe // while a handshake is under way

	live        bool
	suite       record.Suite
	read, write record.Keys
	in, out     *record.Cipher // nil: to be expanded
	window      record.Window
	seq         uint64
	cid         []byte // that the server wants to see
	mid         uint16
	lastCON     uint16 // the last confirmable message of the server
	hasCON      bool
	call        *call // the request under way
	waiting     []func()
	watches     []watch
	state       *record.State // kept for exporters, where asked for
}

// watch is an observation of a node.
type watch struct {
	token [8]byte
	fn    func(*coap.Message) // with mu held; nil: only counted
}

// watch finds an observation by its token, -1: none.
func (n *node) watch(token []byte) int {
	return slices.IndexFunc(n.watches, func(w watch) bool { return bytes.Equal(w.token[:], token) })
}

// New opens the sockets of a swarm.
func New(cfg Config) (*Swarm, error) {
	if cfg.Nodes < 1 || cfg.Nodes > MaxNodes {
		return nil, fmt.Errorf("swarm: %d nodes: 1 to %d are possible", cfg.Nodes, MaxNodes)
	}
	if cfg.Network > 63 {
		return nil, errors.New("swarm: Network is 0 to 63")
	}
	cfg.Gateway = netip.AddrPortFrom(cfg.Gateway.Addr().Unmap(), cfg.Gateway.Port())
	s := &Swarm{cfg: cfg, nodes: make([]node, cfg.Nodes), calls: make(map[*call]struct{}), plain: make([]byte, 0, maxMessage)}
	if a := cfg.Gateway.Addr(); a.IsLoopback() && a.Is4() {
		conn, err := datagram.ListenLocal(0)
		if err == nil {
			s.port[0] = conn
			return s, nil // elsewhere than on Linux each has a socket
		}
	}
	s.lone, s.conns = true, make([]*net.UDPConn, cfg.Nodes)
	for i := range s.conns {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(cfg.Gateway))
		if err != nil {
			s.closeSockets()
			return nil, fmt.Errorf("swarm: socket of node %d: %w (raise the limit of open files, or have fewer nodes)", i, err)
		}
		s.conns[i] = c
	}
	return s, nil
}

func (s *Swarm) closeSockets() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for i := range s.port {
		s.wmu[i].Lock()
		if p := s.port[i]; p != nil {
			_ = p.Close()
		}
		s.wmu[i].Unlock()
	}
	if s.thief != nil {
		_ = s.thief.conn.Close()
	}
	for _, c := range s.conns {
		if c != nil {
			_ = c.Close()
		}
	}
}

// Run receives until ctx ends, then closes the sockets. It says no goodbye:
// sleeping nodes do not.
func (s *Swarm) Run(ctx context.Context) error {
	if s.lone {
		for i := range s.nodes {
			s.wg.Go(func() { s.receiveLone(i) })
		}
	} else {
		first := s.port[0]
		s.wg.Go(func() { s.receive(first) })
	}
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	for {
		select {
		case now := <-t.C:
			s.look(now)
			continue
		case <-ctx.Done():
		}
		s.closeSockets()
		s.wg.Wait()
		s.abandon()
		return nil
	}
}

// Stats counts.
func (s *Swarm) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	st.Open = int(s.open.Load())
	return st
}

// address of a node on loopback: 127.n.x.y, where x.y is never 0.0.
func (s *Swarm) address(i int) netip.Addr {
	at := uint32(i) + 1
	return netip.AddrFrom4([4]byte{127, 64 + s.cfg.Network*3 + byte(at>>16), byte(at >> 8), byte(at)})
}

// nodeAt is the node with a local address, -1 when it is none of ours.
func (s *Swarm) nodeAt(a netip.Addr) int {
	if !a.Is4() {
		return -1
	}
	b := a.As4()
	i := int(b[1]-64-s.cfg.Network*3)<<16 | int(b[2])<<8 | int(b[3])
	if i--; b[0] != 127 || i < 0 || i >= len(s.nodes) {
		return -1
	}
	return i
}

// receive reads what comes for all nodes.
func (s *Swarm) receive(c *datagram.Conn) {
	read(c, func(ds []datagram.Datagram) {
		s.mu.Lock()
		for _, d := range ds {
			if i := s.nodeAt(d.Local); i >= 0 && d.Addr == s.cfg.Gateway {
				s.datagram(i, d.B)
			}
		}
		s.flush()
	})
}

// receiveLone reads what comes for one node.
func (s *Swarm) receiveLone(i int) {
	b := make([]byte, maxMessage)
	for {
		n, err := s.conns[i].Read(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		s.mu.Lock()
		s.datagram(i, b[:n])
		s.flush()
	}
}

// flush sends what was collected, and unlocks mu.
func (s *Swarm) flush() {
	out := s.out
	s.out = nil
	s.mu.Unlock()
	if len(out) == 0 {
		return
	}
	s.transmit(out)
	s.mu.Lock()
	for _, d := range out {
		if len(s.spare) < 4*datagram.Batch {
			s.spare = append(s.spare, d.B[:0])
		}
	}
	if s.out == nil {
		s.out = out[:0]
	}
	s.mu.Unlock()
}

// transmit sends datagrams in runs of one port.
func (s *Swarm) transmit(out []datagram.Datagram) {
	if s.lone {
		for _, d := range out {
			// The node is found by what its local address would be.
			_, _ = s.conns[s.nodeAt(d.Local)].Write(d.B)
		}
		return
	}
	for len(out) > 0 {
		side := out[0].Addr == s.cfg.Gateway // see push
		n := 1
		for n < len(out) && (out[n].Addr == s.cfg.Gateway) == side {
			n++
		}
		p := 0
		if !side {
			p = 1
			for i := range out[:n] {
				out[i].Addr = s.cfg.Gateway
			}
		}
		s.wmu[p].Lock()
		writeAll(s.port[p], out[:n])
		s.wmu[p].Unlock()
		out = out[n:]
	}
}

// buffer is an empty buffer for a datagram.
func (s *Swarm) buffer() []byte {
	if n := len(s.spare); n > 0 {
		b := s.spare[n-1]
		s.spare = s.spare[:n-1]
		return b
	}
	return make([]byte, 0, 256)
}

// push takes a datagram of node i. One without an address goes by the second port.
func (s *Swarm) push(i int, b []byte) {
	s.out = append(s.out, s.outgoing(i, s.side, b))
}

func (s *Swarm) outgoing(i int, side uint8, b []byte) datagram.Datagram {
	d := datagram.Datagram{Local: s.address(i), B: b}
	if side == 0 {
		d.Addr = s.cfg.Gateway
	}
	return d
}

// randomBytes are from the system's source.
func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return b
}
