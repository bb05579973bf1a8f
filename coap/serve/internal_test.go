package serve

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// wire is a link that hands everything to the network at once.
type wire struct {
	id   coap.LinkID
	sent int
}

func (w *wire) Peer() coap.Peer { return coap.Peer{Link: w.id, Via: coap.Plain} }
func (w *wire) Send(m *coap.Message, done func(error)) {
	w.sent++
	done(nil)
}

func observed(context.Context, *coap.Request) (*coap.Response, error) {
	return &coap.Response{Code: coap.Content, Payload: []byte("x"), Observe: &coap.Observation{Topic: "t"}}, nil
}

// Whatever comes and goes, nothing is left behind.
func TestNothingLeft(t *testing.T) {
	s := New(coap.HandlerFunc(func(_ context.Context, req *coap.Request) (*coap.Response, error) {
		return &coap.Response{Code: coap.Content, Payload: make([]byte, 3000), Observe: &coap.Observation{Topic: string(req.Payload)}}, nil
	}), Config{})
	for i := range 100 {
		w := &wire{id: coap.LinkID(fmt.Sprint(i))}
		for j := range 10 {
			m := &coap.Message{Code: coap.FETCH, Token: []byte{byte(j)}, Payload: []byte{byte('a' + j%3)}}
			m.Options.SetUint(coap.ObserveOption, 0)
			s.Handle(t.Context(), w, m)
			m = &coap.Message{Code: coap.POST, Payload: make([]byte, 16)}
			m.Options.SetPath(fmt.Sprint(j))
			m.Options.SetBlock(coap.Block1, coap.Block{More: true})
			s.Handle(t.Context(), w, m)
		}
	}
	if s.observations != 1000 || len(s.topics) != 3 || s.assemblyBytes != 100*maxPeerTransfers*16 || s.plainBytes != s.assemblyBytes {
		t.Errorf("%d observations, %d topics, %d bytes", s.observations, len(s.topics), s.assemblyBytes)
	}
	s.sweep(time.Now().Add(exchangeLifetime))
	if s.assemblyBytes != 0 || s.snapshots.bytes != 0 || s.snapshots.order.Len() != 0 {
		t.Errorf("after the sweep: %d and %d bytes", s.assemblyBytes, s.snapshots.bytes)
	}
	for i := range 50 {
		s.Closed(coap.LinkID(fmt.Sprint(i)))
	}
	s.Drop("a", "", nil)
	s.Drop("b", "", nil)
	s.Drop("c", "", nil)
	s.sweep(time.Now().Add(exchangeLifetime))
	if s.observations != 0 || len(s.topics) != 0 || len(s.unsettled) != 0 || s.retained != 0 || s.registering != 0 || s.peers.Len() != 0 || len(s.views) != 0 || s.plainBytes != 0 {
		t.Errorf("left: %d observations, %d topics, %d unsettled, %d retained, %d peers", s.observations, len(s.topics), len(s.unsettled), s.retained, s.peers.Len())
	}
}

// RFC 7641, Section 4.4: newer by the rule of Section 3.4, also over the wrap
// and after a restart.
func TestNextSeq(t *testing.T) {
	newer := func(a, b uint32) bool { d := (b - a) & (1<<24 - 1); return d != 0 && d < 1<<23 }
	for _, seq := range []uint32{0, 1<<24 - 1, uint32(time.Now().Unix()) & (1<<24 - 1), uint32(time.Now().Unix()+1000) & (1<<24 - 1)} {
		o := &observation{seq: seq}
		last := o.nextSeq(time.Now())
		for range 1000 {
			next := o.nextSeq(time.Now())
			if !newer(last, next) {
				t.Fatalf("%d after %d", next, last)
			}
			last = next
		}
	}
}

func TestConfigDefaults(t *testing.T) {
	for size, want := range map[int]int{0: 1024, 1: 16, 16: 16, 63: 32, 64: 64, 1000: 512, 5000: 1024} {
		if c := (Config{BlockSize: size}).withDefaults(); c.BlockSize != want || 16<<szxOf(c.BlockSize) != want {
			t.Errorf("%d: %d, exponent %d", size, c.BlockSize, szxOf(c.BlockSize))
		}
	}
}

// No request that parses makes the core panic, lose the token, or send what
// cannot be encoded.
func FuzzHandle(f *testing.F) {
	m := &coap.Message{Code: coap.FETCH, Token: []byte{1}, Payload: []byte("abcdefghijklmnop")}
	m.Options.SetUint(coap.ObserveOption, 0)
	m.Options.SetBlock(coap.Block1, coap.Block{})
	m.Options.SetBlock(coap.Block2, coap.Block{Num: 1, SZX: 2})
	b, err := m.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, b)
	f.Fuzz(func(t *testing.T, a, b []byte) {
		s := New(coap.HandlerFunc(func(_ context.Context, req *coap.Request) (*coap.Response, error) {
			return &coap.Response{Code: coap.Content, Payload: make([]byte, 100+len(req.Payload)), Observe: &coap.Observation{Topic: "t"}}, nil
		}), Config{BlockSize: 64, MaxBody: 256})
		w := &wire{id: "w"}
		for v, raw := range [][]byte{a, b, a} {
			m, err := coap.DecodeMessage(raw)
			if err != nil {
				return
			}
			r := s.Handle(t.Context(), w, m)
			if r != nil {
				if !bytes.Equal(r.Token, m.Token) {
					t.Fatal("token lost")
				}
				if _, err := r.MarshalBinary(); err != nil {
					t.Fatal(err)
				}
			}
			s.Publish("t", coap.Notification{Version: uint64(v), Body: &coap.Response{Code: coap.Content, Payload: make([]byte, 100)}})
		}
		if s.metrics == nil || s.registering != 0 {
			t.Fatal("a registration did not end")
		}
		s.Closed("w")
		if s.observations != 0 || s.assemblyBytes != 0 || s.snapshots.bytes != 0 {
			t.Fatal("something is left behind")
		}
	})
}

// BenchmarkPublish is the cost of the core for one notification, and of one
// observer in memory.
func BenchmarkPublish(b *testing.B) {
	const n = 10_000
	s := New(coap.HandlerFunc(observed), Config{})
	links := make([]wire, n)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range links {
		links[i].id = coap.LinkID(fmt.Sprintf("link-%06d", i))
		m := &coap.Message{Code: coap.GET, Token: []byte{1, 2, 3, 4}}
		m.Options.SetUint(coap.ObserveOption, 0)
		s.Handle(b.Context(), &links[i], m)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	body := &coap.Response{Code: coap.Content, Payload: make([]byte, 120)}
	body.Options.SetContentFormat(coap.ACEGroupcomm)
	version := uint64(0)
	b.ReportAllocs()
	for b.Loop() {
		version++
		s.Publish("t", coap.Notification{Version: version, Confirm: true, Body: body})
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/notification")
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "B/observer")
}
