package endpoint

import (
	"context"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// shards is how many serve the worlds that begin makes; 0: one.
var shards int

// split makes n sockets of a port, as a system with SO_REUSEPORT does: what comes
// goes to one of them by a hash of its sender. The hash is another each time.
func (w *wire) split(p *port, n int) []Socket {
	if n == 1 {
		return []Socket{p}
	}
	w.mu.Lock()
	salt := w.rng.Uint32()
	w.mu.Unlock()
	f := &fork{port: p, left: n}
	socks := make([]Socket, n)
	prongs := make([]*prong, n)
	for i := range prongs {
		prongs[i] = &prong{f: f, in: make(chan Datagram, 4096), over: make(chan struct{})}
		socks[i] = prongs[i]
	}
	go func() {
		for {
			d, err := p.receive()
			if err != nil {
				return
			}
			h := fnv.New32a()
			_, _ = fmt.Fprint(h, d.Addr, salt)
			select {
			case prongs[h.Sum32()%uint32(n)].in <- d:
			default:
			}
		}
	}()
	return socks
}

// fork is a port that several sockets share.
type fork struct {
	*port
	mu   sync.Mutex
	left int
}

// prong is one of them.
type prong struct {
	f    *fork
	in   chan Datagram
	over chan struct{}
	once sync.Once
}

func (p *prong) Read(ds []Datagram) (int, error) {
	select {
	case d := <-p.in:
		ds[0].Addr, ds[0].B = d.Addr, ds[0].B[:copy(ds[0].B, d.B)]
		return 1, nil
	case <-p.over:
		return 0, net.ErrClosed
	}
}
func (p *prong) Write(ds []Datagram) (int, error) { return p.f.port.Write(ds) }
func (p *prong) LocalAddr() net.Addr              { return p.f.LocalAddr() }
func (p *prong) Close() error {
	p.once.Do(func() {
		close(p.over)
		p.f.mu.Lock()
		defer p.f.mu.Unlock()
		if p.f.left--; p.f.left == 0 {
			_ = p.f.port.Close()
		}
	})
	return nil
}

// shardCounts are those that TestSharded tries.
var shardCounts = []int{2}

// TestSharded runs what other tests show of one endpoint with several.
func TestSharded(t *testing.T) {
	for _, n := range shardCounts {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			shards = n
			defer func() { shards = 0 }()
			for name, f := range map[string]func(*testing.T){
				"Request": TestRequest, "Safe": TestSafe, "NonConfirmable": TestNonConfirmable, "Separate": TestSeparate,
				"EmptyAndMalformed": TestEmptyAndMalformed, "Confirmable": TestConfirmable, "Reset": TestReset,
				"AnswerFirst": TestAnswerFirst, "Blockwise": TestBlockwise,
				"Handover": TestHandover, "Lossy": TestLossy, "LastFlightLost": TestLastFlightLost, "Goodbye": TestGoodbye,
				"UnknownIdentity": TestUnknownIdentity, "BeginsAnew": TestBeginsAnew,
				"RawKey": TestRawKey, "OwnPSK": TestOwnPSK, "Rebind": TestRebind, "Steering": TestSteering,
				"Restart": TestRestart, "Stale": TestStale, "AnsweredBefore": TestAnsweredBefore, "NotKept": TestNotKept,
				"FloodOfStrangers": TestFloodOfStrangers, "JoinCounts": TestJoinCounts,
			} {
				t.Run(name, f)
			}
		})
	}
}

// TestAcrossShards: clients that change their address all the time, and a gateway
// that starts again and again with another number of shards: each is served, and
// observes, with the one handshake that it made.
func TestAcrossShards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		defer func() { shards = 0 }()
		w := newWire(3)
		var nums numbers
		w.tap = nums.watch(netip.MustParseAddrPort("198.51.100.1:5684"), 0)
		d := &disk{}
		shards = 3
		o := resume(t, w, d, 1)
		var ps []*peer
		for i := range 24 {
			p := o.dial(fmt.Sprintf("node%d", i))
			if i%2 == 0 {
				p.close()
				p = o.dial(fmt.Sprintf("node%d", i), withCID)
			}
			ps = append(ps, p)
			defer p.close()
			if r := p.observe("o"); !r.Options.Has(coap.ObserveOption) {
				t.Fatal("not registered")
			}
		}
		used := 0
		for i, e := range o.all.all {
			e.mu.Lock()
			if len(e.sessions) > 0 {
				used++
			}
			for _, s := range e.sessions {
				if s.cid != 0 && shardOf(s.cid, 3) != i {
					t.Errorf("shard %d gave out an ID of %d", i, shardOf(s.cid, 3))
				}
			}
			e.mu.Unlock()
		}
		if used != 3 {
			t.Errorf("%d shards are used", used)
		}
		version := uint64(10)
		for round, n := range []int{3, 1, 4, 4, 2} {
			if round > 0 {
				time.Sleep(2 * keepEvery)
				if round%2 == 0 {
					o.kill()
				} else {
					o.stop()
				}
				shards = n
				o = resume(t, w, d, uint32(1+round))
			}
			version++
			done := o.publish(version, true)
			for i, p := range ps {
				p.o = o
				p.acknowledge(fmt.Sprint(version))
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				for range 3 {
					if i%2 == 0 {
						p.c.rebind()
					}
					if r := p.ask(p.request(coap.POST, "t", "x")); r.Code != coap.Changed {
						t.Fatalf("%d shards: %v", n, r.Code)
					}
				}
			}
			if got := len(o.core.Observers(topic)); got != len(ps) || round > 0 && len(o.admittedNow()) > 0 {
				t.Errorf("%d shards: %d observers, %d handshakes", n, got, len(o.admittedNow()))
			}
			handed := value(t, o.e.metrics.handed)
			if (handed == 0) != (n == 1) {
				t.Errorf("%d shards: %v datagrams were handed over", n, handed)
			}
		}
		o.stop()
		unlock := w.lock()
		defer unlock()
		if len(nums.bad) > 0 {
			t.Errorf("record numbers twice: %v", nums.bad)
		}
	})
}

// TestShares: the bounds are for all shards together, but for that of handshakes.
func TestShares(t *testing.T) {
	socks := make([]Socket, 4)
	for i := range socks {
		socks[i] = sink{make(chan struct{})}
	}
	s := NewShards(socks, Config{Server: nobody{}, Keys: nobody{}, MaxSessions: 10, MaxHandshakes: 2, MaxBytes: 1 << 20})
	for _, e := range s.all {
		if e.cfg.MaxSessions != 10 || e.cfg.MaxHandshakes != 1 || e.cfg.MaxBytes != 1<<20 || e.pool != s.all[0].pool {
			t.Errorf("%+v", e.cfg)
		}
	}
	if one := NewShards(socks[:1], Config{Server: nobody{}}); one.all[0].kin != nil || one.all[0].cfg.MaxSessions != maxPlain {
		t.Error("one shard is not as one endpoint")
	}
	if four := NewShards(socks, Config{Server: nobody{}}); four.all[0].cfg.MaxSessions != maxPlain {
		t.Error(four.all[0].cfg.MaxSessions)
	}
	for range 1000 {
		for _, e := range s.all {
			if id := e.freeCID(); shardOf(id, 4) != e.shard {
				t.Fatalf("shard %d gives out %x", e.shard, id)
			}
		}
	}
}

// TestReusePort: several sockets of the system on one address serve many clients,
// each of which comes back from new ports.
func TestReusePort(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux spreads datagrams among sockets")
	}
	socks, err := UDPShards(t.Context(), "127.0.0.1:0", 3)
	if err != nil {
		t.Fatal(err)
	}
	s := NewShards(socks, Config{Server: nobody{}})
	at := s.LocalAddr().(*net.UDPAddr).AddrPort()
	if taken, err := UDPShards(t.Context(), at.String(), 2); err == nil {
		t.Error("a port that is taken was shared")
		for _, s := range taken {
			_ = s.Close()
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- s.Run(ctx) }()
	for i := range byte(64) {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte{0x41, 2, 0, i, i, 0xff, i}); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		b := make([]byte, 64)
		if n, err := c.Read(b); err != nil || n != 7 || b[3] != i {
			t.Fatalf("%x, %v", b[:n], err)
		}
		_ = c.Close()
	}
	used := 0
	for _, e := range s.all {
		e.mu.Lock()
		if len(e.sessions) > 0 {
			used++
		}
		e.mu.Unlock()
	}
	if used != 3 {
		t.Errorf("%d shards are used", used)
	}
	cancel()
	if err := <-over; err != nil {
		t.Error(err)
	}
}
