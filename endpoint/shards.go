package endpoint

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed4911071e/groupgate/record"
)

// Several endpoints may serve one address, each by a socket of its own on it
// (SO_REUSEPORT): with a table, a lock, a goroutine that reads and one that sends
// each, they use several cores. They are shards: a session is in one of them for as
// long as the process lives.
//
// The system gives a datagram to one of the sockets by a hash of both addresses. So
// a peer meets the same shard as long as its address stays, which is all that plain
// UDP and handshakes need. A session with a connection ID is in the shard that the
// ID names, which the system looks at where it can (package datagram); one that comes
// to another shard all the same is handed over. A session without one, and a peer on
// plain UDP, may after a start be in a shard that the system does not choose: whoever
// gets what belongs to nobody asks the others.
//
// The name of a shard is the remainder of the first byte of the connection ID by
// the number of shards: sessions of before fit any number, and the byte tells an
// observer no more than what is different for each session anyway.

// MaxShards bounds the shards: an ID has one byte for them.
const MaxShards = 64

// shardOf is the shard that a connection ID names.
func shardOf(cid uint64, n int) int { return int(cid>>56) % n }

// shardByAddr is where a session without connection ID is brought back.
func shardByAddr(a netip.AddrPort, n int) int {
	h := uint32(a.Port())
	for _, b := range a.Addr().As16() {
		h = h*16777619 ^ uint32(b)
	}
	return int(h % uint32(n))
}

// Shards is one endpoint or several on one address.
type Shards struct{ all []*Endpoint }

// NewShards makes one shard of each socket, which it takes over. The bounds of cfg are
// for all together.
func NewShards(socks []Socket, cfg Config) *Shards {
	n := len(socks)
	if cfg.Registerer == nil {
		cfg.Registerer = prometheus.NewRegistry() // theirs together
	}
	if n > 1 {
		// A flood at one of them is bounded there.
		if cfg.MaxHandshakes <= 0 {
			cfg.MaxHandshakes = defaultHandshakes
		}
		cfg.MaxHandshakes = (cfg.MaxHandshakes + n - 1) / n
	}
	s := &Shards{make([]*Endpoint, n)}
	shared := &pool{}
	for i, sock := range socks {
		e := New(sock, cfg)
		s.all[i], e.pool, e.shard = e, shared, i
		if n > 1 {
			e.kin = s.all
		}
		cfg.Memory = nil // the first counts what others hold
	}
	return s
}

// LocalAddr is the address of the sockets.
func (s *Shards) LocalAddr() net.Addr { return s.all[0].LocalAddr() }

// Run serves until ctx ends, or a socket fails, and closes the sockets, as
// [Endpoint.Run] does.
func (s *Shards) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, len(s.all))
	var wg sync.WaitGroup
	for i, e := range s.all {
		wg.Go(func() {
			defer cancel()
			errs[i] = e.Run(ctx)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Close gives up what is not run.
func (s *Shards) Close() error {
	var errs []error
	for _, e := range s.all {
		errs = append(errs, e.Close())
	}
	return errors.Join(errs...)
}

// Restore begins to keep sessions in a journal, which all shards share, and brings
// back those of r, whatever number of shards wrote them; see [Endpoint.Restore].
func (s *Shards) Restore(j Journal, start uint32, r *Recovery) (peers []Peer) {
	n := len(s.all)
	parts := make([]Recovery, n)
	for i := range parts {
		parts[i].sessions = map[[linkSize]byte]*recovered{}
	}
	for id, k := range r.sessions {
		i := shardByAddr(k.addr, n)
		if k.cid != 0 {
			i = shardOf(k.cid, n)
		}
		parts[i].sessions[id] = k
	}
	r.sessions = nil
	for i, e := range s.all {
		peers = append(peers, e.Restore(j, start, &parts[i])...)
	}
	return peers
}

// Reach brings back a peer on plain UDP, as [Endpoint.Reach] does.
func (s *Shards) Reach(addr netip.AddrPort, home netip.Addr) Peer {
	return s.all[shardByAddr(addr, len(s.all))].Reach(addr, home)
}

// ClockSet is to be told when somebody set the clock; see [Endpoint.ClockSet].
func (s *Shards) ClockSet() {
	for _, e := range s.all {
		e.ClockSet()
	}
}

// Keep has everything written that moved on.
func (s *Shards) Keep() {
	for _, e := range s.all {
		e.Keep()
	}
}

// Dump gives every record of the present state to emit, as [Endpoint.Dump] does.
func (s *Shards) Dump(emit func(rec []byte)) (whole bool) {
	whole = true
	for _, e := range s.all {
		whole = e.Dump(emit) && whole
	}
	return whole
}

// Held is what peers are reckoned to take here, in bytes.
func (s *Shards) Held() (n int) {
	for _, e := range s.all {
		n += e.Held()
	}
	return n
}

// freeCID is a connection ID by which nobody is known, and that names this shard.
func (e *Endpoint) freeCID() uint64 {
	for {
		id := randomUint64()
		if n := len(e.kin); n > 1 {
			first := int(id >> 56)
			if first += e.shard - first%n; first > 255 {
				continue
			}
			id = id<<8>>8 | uint64(first)<<56
		}
		if id != 0 && e.byCID.Get(id) == nil && e.halfByCID[id] == nil && e.own.byCID[id] == nil {
			return id
		}
	}
}

// cidAt is where a connection ID begins in a record (RFC 9146, Section 4), and
// headerSize how long the header of another record is (RFC 6347, Section 4.1).
const (
	cidAt      = 11
	headerSize = 13
)

// whose is the shard that a datagram names by the connection ID of its first record;
// nil: it names none.
func (e *Endpoint) whose(b []byte) *Endpoint {
	if e.cfg.Keys == nil || len(b) < cidAt+cidSize || b[0] != record.ConnectionID {
		return nil
	}
	return e.kin[shardOf(binary.BigEndian.Uint64(b[cidAt:]), len(e.kin))]
}

// astray says that a datagram belongs to nobody here, but perhaps to a session
// without connection ID of another shard. Endpoint.mu is not held.
func (e *Endpoint) astray(d Datagram) bool {
	if e.cfg.Keys != nil && (len(d.B) < headerSize || d.B[0] == record.ConnectionID || binary.BigEndian.Uint16(d.B[3:]) == 0) {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.byAddr.Get(d.Addr) == nil && e.handshakes[d.Addr] == nil && e.own.byAddr[d.Addr] == nil
}

// sortOut hands over what is not for this shard, and leaves nothing of it in ds.
// Endpoint.mu is not held.
func (e *Endpoint) sortOut(ds []Datagram) {
	for i := range ds {
		d := &ds[i]
		o := e.whose(d.B)
		switch {
		case o == e:
			continue
		case o != nil:
			e.metrics.handed.Inc()
			o.handed(*d, true)
		case !e.astray(*d):
			continue
		case e.askOthers(*d):
		case e.cfg.Keys == nil:
			continue // a new peer
		default:
			e.metrics.dropped.WithLabelValues("unknown").Inc()
		}
		d.B = d.B[:0]
	}
}

// askOthers looks for the shard that has a session at the address of a datagram.
func (e *Endpoint) askOthers(d Datagram) bool {
	for _, o := range e.kin {
		if o != e && o.handed(d, false) {
			e.metrics.handed.Inc()
			return true
		}
	}
	return false
}

// handed reads a datagram that came to another shard; sure says that it is for this
// one, otherwise it is if there is a session without connection ID at its address.
func (e *Endpoint) handed(d Datagram, sure bool) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !sure {
		if s := e.byAddr.Get(d.Addr); s == nil || s.cid != 0 {
			return false
		}
	}
	e.lately = time.Now()
	e.datagram(d, e.lately)
	return true
}

// tellOthers ends what other shards have at the address of a new session (RFC 6347,
// Section 4.2.8).
func (e *Endpoint) tellOthers(s *session) {
	if len(e.kin) < 2 || e.cfg.Keys == nil {
		return
	}
	at, subject := s.addr(), s.subject()
	e.crew.do(func() {
		for _, o := range e.kin {
			if o == e {
				continue
			}
			o.mu.Lock()
			if old := o.byAddr.Get(at); old != nil && (old.cid == 0 || old.subject() == subject) && !o.closed {
				o.end(old, false)
			}
			o.mu.Unlock()
		}
	})
}
