package soak

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/seed4911071e/groupgate/datagram"
	"github.com/seed4911071e/groupgate/record"
)

// tap stands between the nodes of a swarm and their server, as a NAT: it has a
// port of its own for each node, gives it another when told to, and lets nothing
// through that comes to the old one. It looks at every record of the server: a
// record number that occurs twice in a session is a nonce that was used twice.
type tap struct {
	front  *datagram.Conn // the nodes take it for the server
	backs  [4]*datagram.Conn
	server atomic.Pointer[netip.AddrPort]
	wg     sync.WaitGroup
	fmu    sync.Mutex // guards writing to front

	mu    sync.Mutex
	flows map[netip.Addr]*flow // by the address of the node
	bad   []string             // what must not be; the first few
	moves int
	seen  int // records with protection
}

// flow is a node. Its address tells it from others on either side.
type flow struct {
	from  netip.AddrPort // of the node
	side  int            // in backs
	shake bool           // there was no protected record since its handshake began
	runs  []run          // numbers of the server's records, in order
	first []byte         // the record 0, the end of the handshake, which may be repeated
}

// run is numbers without a gap.
type run struct{ from, to uint64 }

func newTap(t *testing.T) *tap {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	x := &tap{front: datagram.New(c), flows: map[netip.Addr]*flow{}}
	for i := range x.backs {
		if x.backs[i], err = datagram.ListenLocal(0); err != nil {
			t.Fatal(err)
		}
	}
	x.wg.Go(x.up)
	for i := range x.backs {
		x.wg.Go(func() { x.down(i) })
	}
	t.Cleanup(func() {
		_ = x.front.Close()
		for _, b := range x.backs {
			_ = b.Close()
		}
		x.wg.Wait()
	})
	return x
}

func (x *tap) addr() netip.AddrPort { return x.front.LocalAddr().(*net.UDPAddr).AddrPort() }

// read has f take datagrams until the socket is closed.
func read(c *datagram.Conn, f func([]datagram.Datagram)) {
	ds := make([]datagram.Datagram, datagram.Batch)
	buffers := make([]byte, 2048*len(ds))
	for {
		for i := range ds {
			ds[i] = datagram.Datagram{B: buffers[2048*i : 2048*(i+1)]}
		}
		n, err := c.Read(ds)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			f(ds[:n])
		} // else: nobody is at the port of a server that died
	}
}

// write sends all; what the system does not take is lost, as on a network.
func write(c *datagram.Conn, ds []datagram.Datagram) {
	for len(ds) > 0 {
		n, err := c.Write(ds)
		if err != nil {
			n++
		}
		ds = ds[min(max(n, 1), len(ds)):]
	}
}

// up carries what nodes send.
func (x *tap) up() {
	var out [len(x.backs)][]datagram.Datagram
	read(x.front, func(ds []datagram.Datagram) {
		to := x.server.Load()
		if to == nil {
			return
		}
		x.mu.Lock()
		for _, d := range ds {
			f := x.flows[d.Addr.Addr()]
			if f == nil {
				f = &flow{}
				x.flows[d.Addr.Addr()] = f
			}
			f.from = d.Addr
			out[f.side] = append(out[f.side], datagram.Datagram{Addr: *to, Local: d.Addr.Addr(), B: d.B})
		}
		x.mu.Unlock()
		for i := range out {
			write(x.backs[i], out[i])
			out[i] = out[i][:0]
		}
	})
}

// down carries what the server sends to one of the ports.
func (x *tap) down(side int) {
	var out []datagram.Datagram
	read(x.backs[side], func(ds []datagram.Datagram) {
		out = out[:0]
		x.mu.Lock()
		for _, d := range ds {
			f := x.flows[d.Local]
			if f == nil {
				continue
			}
			x.look(d.Local, f, d.B)
			if f.side == side {
				out = append(out, datagram.Datagram{Addr: f.from, B: d.B})
			}
		}
		x.mu.Unlock()
		x.fmu.Lock()
		write(x.front, out)
		x.fmu.Unlock()
	})
}

// look notes the numbers of the records in a datagram of the server.
func (x *tap) look(who netip.Addr, f *flow, b []byte) {
	for len(b) > 0 {
		r, rest, err := record.Next(b, 0)
		if err != nil {
			x.fail("%v: the server sent what is no record", who)
			return
		}
		raw := b[:len(b)-len(rest)]
		b = rest
		switch {
		case r.Epoch == 0:
			if !f.shake { // a session of its own begins
				f.shake, f.runs, f.first = true, nil, nil
			}
		case r.Seq == 0 && f.first != nil:
			if !slices.Equal(f.first, raw) {
				x.fail("%v: record 0 was sent twice, with different bytes", who)
			}
		default:
			if f.shake = false; r.Seq == 0 {
				f.first = slices.Clone(raw)
			}
			x.seen++
			if !f.add(r.Seq) {
				x.fail("%v: record %d of epoch %d was sent twice", who, r.Seq, r.Epoch)
			}
		}
	}
}

// add notes a number, and says whether it is new.
func (f *flow) add(seq uint64) bool {
	// The run that begins at seq or after it.
	i, _ := slices.BinarySearchFunc(f.runs, seq, func(r run, seq uint64) int {
		if r.from < seq {
			return -1
		}
		return 1
	})
	if i < len(f.runs) && f.runs[i].from == seq || i > 0 && f.runs[i-1].to >= seq {
		return false
	}
	below, above := i > 0 && f.runs[i-1].to == seq-1, i < len(f.runs) && f.runs[i].from == seq+1
	switch {
	case below && above:
		f.runs[i-1].to = f.runs[i].to
		f.runs = slices.Delete(f.runs, i, i+1)
	case below:
		f.runs[i-1].to = seq
	case above:
		f.runs[i].from = seq
	default:
		f.runs = slices.Insert(f.runs, i, run{seq, seq})
	}
	return true
}

func (x *tap) fail(format string, args ...any) {
	if len(x.bad) < 10 {
		x.bad = append(x.bad, fmt.Sprintf(format, args...))
	}
}

// move gives another port to one node in every.
func (x *tap) move(every int, pick func(n int) int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	all := slices.SortedFunc(maps.Keys(x.flows), netip.Addr.Compare)
	for range max(1, len(all)/every) {
		f := x.flows[all[pick(len(all))]]
		f.side = (f.side + 1 + pick(len(x.backs)-1)) % len(x.backs)
		x.moves++
	}
}

// TestNumbers: the tap finds every number that comes twice, in any order.
func TestNumbers(t *testing.T) {
	var f flow
	seen := map[uint64]bool{}
	for i := range uint64(2000) {
		seq := i * 7919 % 1499 // all, and some of them again
		if f.add(seq) == seen[seq] {
			t.Fatalf("%d of %v", seq, f.runs)
		}
		seen[seq] = true
	}
	if len(f.runs) != 1 || f.runs[0] != (run{0, 1498}) {
		t.Errorf("%v", f.runs)
	}
}
