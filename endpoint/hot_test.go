package endpoint

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/serve"
	"github.com/seed4911071e/groupgate/record"
)

// mirror is a socket at whose other end are nodes that acknowledge what is
// confirmable, and ask again once they are answered.
type mirror struct {
	mu    sync.Mutex
	some  *sync.Cond
	over  bool
	in    []Datagram
	spare [][]byte
	nodes []mirrorNode

	asks   int // requests still to be sent
	got    int // notifications and answers
	want   int
	done   chan struct{}
	plain  []byte
	cid    [8]byte
	errors int
	tap    func(i int, b []byte) // is told of each message to a node; nil: nobody is
}

type mirrorNode struct {
	in, out *record.Cipher
	seq     uint64
	mid     uint16
}

func newMirror() *mirror {
	m := &mirror{done: make(chan struct{}, 1)}
	m.some = sync.NewCond(&m.mu)
	return m
}

func (m *mirror) LocalAddr() net.Addr { return &net.UDPAddr{} }

func (m *mirror) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.over = true
	m.some.Broadcast()
	return nil
}

func (m *mirror) Read(ds []Datagram) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(m.in) == 0 && !m.over {
		m.some.Wait()
	}
	if m.over {
		return 0, net.ErrClosed
	}
	n := min(len(ds), len(m.in))
	for i, d := range m.in[:n] {
		ds[i].Addr, ds[i].B = d.Addr, ds[i].B[:copy(ds[i].B, d.B)]
		m.spare = append(m.spare, d.B[:0])
	}
	m.in = m.in[:copy(m.in, m.in[n:])]
	return n, nil
}

func (m *mirror) Write(ds []Datagram) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range ds {
		i := int(d.Addr.Port())
		n := &m.nodes[i]
		r, _, err := record.Next(d.B, 0)
		if err != nil {
			m.errors++
			continue
		}
		kind, b, err := n.in.Open(m.plain[:0], &r)
		if err != nil {
			m.errors++
			continue
		}
		if kind != record.ApplicationData {
			continue // goodbye
		}
		m.plain = b[:0:cap(b)]
		if m.tap != nil {
			m.tap(i, b)
		}
		if b[0]>>4&3 == byte(coap.Confirmable) {
			m.send(i, []byte{1<<6 | byte(coap.Acknowledgement)<<4, 0, b[2], b[3]})
		}
		if m.got++; m.got == m.want {
			m.done <- struct{}{}
		}
		if m.asks > 0 {
			m.asks--
			m.ask(i)
		}
	}
	return len(ds), nil
}

func (m *mirror) send(i int, b []byte) {
	var buf []byte
	if k := len(m.spare); k > 0 {
		buf, m.spare = m.spare[k-1], m.spare[:k-1]
	}
	n := &m.nodes[i]
	n.seq++
	binary.BigEndian.PutUint64(m.cid[:], uint64(i)+1)
	m.in = append(m.in, Datagram{Addr: mirrorAddr(i), B: n.out.Seal(buf, record.ApplicationData, epoch, n.seq, m.cid[:], b)})
	m.some.Signal()
}

// ask sends POST /echo with 40 bytes.
func (m *mirror) ask(i int) {
	n := &m.nodes[i]
	n.mid++
	b := []byte{1<<6 | 8, byte(coap.POST), byte(n.mid >> 8), byte(n.mid), 1, 2, 3, 4, 5, 6, 7, 8, 0xb4, 'e', 'c', 'h', 'o', 0xff}
	m.send(i, append(b, make([]byte, 40)...))
}

func mirrorAddr(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), uint16(i))
}

func echo(_ context.Context, r *coap.Request) (*coap.Response, error) {
	if r.Code == coap.POST {
		return &coap.Response{Code: coap.Changed, Payload: append([]byte(nil), r.Payload...)}, nil
	}
	return &coap.Response{Code: coap.Content, Observe: &coap.Observation{Topic: "t"}}, nil
}

// mirrored is an endpoint under a server core, with n nodes that observe.
func mirrored(b testing.TB, n int, h coap.HandlerFunc, edit ...func(*Config)) (*mirror, *serve.Server) {
	m := newMirror()
	core := serve.New(h, serve.Config{PerPeerRPS: 1e9, PerPeerBurst: 1e9})
	cfg := Config{Server: core, Keys: nobody{}}
	for _, f := range edit {
		f(&cfg)
	}
	e := New(m, cfg)
	get := &coap.Message{Code: coap.GET, Token: []byte{1, 2, 3, 4}}
	get.Options.SetUint(coap.ObserveOption, 0)
	for i := range n {
		e.mu.Lock()
		s := e.newSession(coap.DTLSPSK, mirrorAddr(i))
		s.suite, s.cid = record.PSKCCM8, uint64(i)+1
		s.read.Key, s.write.Key = [16]byte{1, byte(i), byte(i >> 8)}, [16]byte{2, byte(i), byte(i >> 8)}
		e.register(s)
		e.mu.Unlock()
		in, _ := record.NewCipher(s.suite, &s.write)
		out, _ := record.NewCipher(s.suite, &s.read)
		m.nodes = append(m.nodes, mirrorNode{in: in, out: out})
		core.Handle(b.Context(), s, get)
	}
	ctx, cancel := context.WithCancel(b.Context())
	over := make(chan error, 1)
	go func() { over <- e.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-over; err != nil || m.errors > 0 {
			b.Errorf("%v, %d records that do not open", err, m.errors)
		}
	})
	return m, core
}

func (m *mirror) expect(n, asks int) {
	m.mu.Lock()
	m.got, m.want, m.asks = 0, n, asks
	m.mu.Unlock()
}

// TestShift: a handler that waits holds up neither what came in the same batch nor
// what comes after; what it answers at last is sent.
func TestShift(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wait := make(chan struct{})
		var waiting atomic.Int32
		m, _ := mirrored(t, 8, func(ctx context.Context, r *coap.Request) (*coap.Response, error) {
			if r.Code == coap.POST && waiting.Add(1) <= 3 {
				<-wait
			}
			return echo(ctx, r)
		})
		ask := func(from, to int) {
			m.mu.Lock()
			for i := from; i < to; i++ {
				m.ask(i)
			}
			m.mu.Unlock()
		}
		began := time.Now()
		m.expect(2, 0)
		ask(0, 5) // the first three wait
		<-m.done
		m.expect(3, 0)
		ask(5, 8)
		<-m.done
		if d := time.Since(began); d > 10*shiftTick {
			t.Errorf("five requests were held up for %v", d)
		}
		m.expect(3, 0)
		close(wait)
		<-m.done
		m.expect(8, 0)
		ask(0, 8)
		<-m.done
		time.Sleep(time.Minute) // nobody looks any more
	})
}

// BenchmarkNotification: what a notification of 120 bytes takes, the nodes' part
// included and that of the system's network not.
func BenchmarkNotification(b *testing.B) {
	for _, confirm := range []bool{false, true} {
		name := "NON"
		if confirm {
			name = "CON"
		}
		b.Run(name, func(b *testing.B) {
			const nodes = 1000
			m, core := mirrored(b, nodes, echo)
			body := &coap.Response{Code: coap.Content, Payload: make([]byte, 120)}
			version := uint64(0)
			b.ReportAllocs()
			for left := b.N; left > 0; left -= nodes {
				version++
				m.expect(nodes, 0)
				core.Publish("t", coap.Notification{Version: version, Body: body, Confirm: confirm})
				<-m.done
			}
		})
	}
}

// BenchmarkRequest: POST with 40 bytes both ways, 128 at a time.
func BenchmarkRequest(b *testing.B) {
	const nodes = 200
	m, _ := mirrored(b, nodes, echo)
	b.ReportAllocs()
	b.ResetTimer()
	n := max(b.N, 128)
	m.expect(n, n-128)
	m.mu.Lock()
	for i := range 128 {
		m.ask(i)
	}
	m.mu.Unlock()
	<-m.done
}

// TestWheelRemove: what is taken out of the wheel is not told, and everything else
// is, whatever took its place.
func TestWheelRemove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := New(newMirror(), Config{Server: nobody{}, Keys: nobody{}})
		defer func() { _ = e.Close() }()
		s := e.newSession(coap.DTLSPSK, mirrorAddr(1))
		w := e.wheel
		var all []*transmission
		for i := range 200 {
			x := &transmission{s: s, over: true, id: uint16(i)}
			all = append(all, x)
			w.add(x, time.Duration(i%7)*time.Second)
			if i%3 == 0 {
				w.add(counted{&s.nextID}, time.Duration(i%7)*time.Second)
			}
		}
		before := s.nextID
		for i, x := range all {
			if i%2 == 0 {
				w.remove(x)
				w.remove(x) // nothing
			}
		}
		if w.n != 100+67 {
			t.Fatalf("%d are left", w.n)
		}
		time.Sleep(3 * time.Second)
		w.turn(e)
		for i, x := range all {
			if waits := i%2 == 1 && i%7 >= 3; waits != (x.tick != 0) {
				t.Errorf("%d: waits until %d", i, x.tick)
			}
		}
		time.Sleep(time.Minute)
		w.turn(e)
		if w.n != 0 || s.nextID-before != 67 {
			t.Errorf("%d are left, %d were told", w.n, s.nextID-before)
		}
	})
}

// counted counts that it was told.
type counted struct{ n *uint16 }

func (c counted) due(*Endpoint) { *c.n++ }
