package swarm_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/bench/peer"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/node/swarm"
)

// served starts a server that the swarm's code has no part in.
func served(t *testing.T, kind string) (netip.AddrPort, func(confirm bool)) {
	t.Helper()
	s, err := peer.New(t.Context(), kind, peer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s.Addr(), func(confirm bool) { s.Publish(confirm, 100) }
}

func newSwarm(t *testing.T, cfg swarm.Config) *swarm.Swarm {
	t.Helper()
	s, err := swarm.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-over; err != nil {
			t.Error(err)
		}
	})
	return s
}

func open(ctx context.Context, s *swarm.Swarm, i int) error {
	return s.Open(ctx, i, swarm.Credential{Identity: fmt.Appendf(nil, "node-%d", i), Key: peer.Key, Keep: i == 0})
}

func get(observe bool) *coap.Message {
	m := &coap.Message{Code: coap.GET}
	m.Options.SetPath("state")
	if observe {
		m.Options.SetUint(coap.ObserveOption, 0)
	}
	return m
}

func post(b []byte) *coap.Message {
	m := &coap.Message{Code: coap.POST, Payload: b}
	m.Options.SetPath("echo")
	return m
}

// TestSwarm: handshakes, requests and notifications at both kinds of servers,
// with and without Connection ID.
func TestSwarm(t *testing.T) {
	for _, kind := range []string{peer.Own, peer.Stock} {
		for _, noCID := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/noCID=%v", kind, noCID), func(t *testing.T) {
				at, publish := served(t, kind)
				const nodes = 50
				came := make(chan int, 4*nodes)
				s := newSwarm(t, swarm.Config{Gateway: at, Nodes: nodes, NoCID: noCID, Notified: func(i int, m *coap.Message) {
					if len(m.Payload) == 100 && m.Code == coap.Content {
						came <- i
					}
				}})
				if failed, err := swarm.Each(t.Context(), 0, nodes, 8, nil, func(ctx context.Context, i int) error { return open(ctx, s, i) }); failed > 0 || err != nil {
					t.Fatalf("%d handshakes failed: %v", failed, err)
				}
				out, err := s.Load(t.Context(), swarm.Load{Message: func(int) *coap.Message { return get(true) }})
				if err != nil || out.Answered != nodes {
					t.Fatalf("registrations: %+v, %v", out, err)
				}
				for _, confirm := range []bool{false, true} {
					publish(confirm)
					seen := map[int]bool{}
					for len(seen) < nodes {
						select {
						case i := <-came:
							seen[i] = true
						case <-time.After(20 * time.Second):
							t.Fatalf("confirmable %v: %d nodes of %d", confirm, len(seen), nodes)
						}
					}
				}
				var answered atomic.Int64
				out, err = s.Load(t.Context(), swarm.Load{Requests: 500, AtOnce: nodes, Latencies: true, Message: func(i int) *coap.Message {
					answered.Add(1)
					return post([]byte{1, 2})
				}})
				if err != nil || out.Answered != 500 || len(out.Latencies) != 500 || answered.Load() != 500 {
					t.Fatalf("requests: %+v, %v", out, err)
				}
				st := s.Stats()
				if st.Open != nodes || st.Handshakes != nodes || st.Failed != 0 || st.Acknowledged < nodes || st.Notifications < 2*nodes || st.Undecipherable != 0 {
					t.Errorf("%+v", st)
				}
			})
		}
	}
}

// TestMove: after all nodes changed their port, their requests are served where
// there are Connection IDs.
func TestMove(t *testing.T) {
	at, _ := served(t, peer.Own)
	const nodes = 20
	s := newSwarm(t, swarm.Config{Gateway: at, Nodes: nodes})
	if _, err := swarm.Each(t.Context(), 0, nodes, 8, nil, func(ctx context.Context, i int) error { return open(ctx, s, i) }); err != nil {
		t.Fatal(err)
	}
	load := swarm.Load{Message: func(int) *coap.Message { return post([]byte("moved")) }}
	if out, err := s.Load(t.Context(), load); err != nil || out.Answered != nodes {
		t.Fatalf("%+v, %v", out, err)
	}
	for range 3 { // also to where they were, as another port
		if err := s.Move(t.Context()); err != nil {
			t.Fatal(err)
		}
		if out, err := s.Load(t.Context(), load); err != nil || out.Answered != nodes {
			t.Fatalf("after the move: %+v, %v", out, err)
		}
	}
}

// TestDivert: what a server answers to a record that somebody sent on from elsewhere
// comes there; the next one of the node is answered at its own address.
func TestDivert(t *testing.T) {
	at, _ := served(t, peer.Own)
	const nodes = 20
	s := newSwarm(t, swarm.Config{Gateway: at, Nodes: nodes})
	if _, err := swarm.Each(t.Context(), 1, nodes, 8, nil, func(ctx context.Context, i int) error { return open(ctx, s, i) }); err != nil {
		t.Fatal(err)
	}
	load := swarm.Load{Message: func(int) *coap.Message { return post(nil) }}
	if out, err := s.Load(t.Context(), load); err != nil || out.Answered != nodes-1 || out.Failed != 1 {
		t.Fatalf("%+v, %v", out, err)
	}
	if came := s.Diverted(); came != (swarm.Traffic{}) {
		t.Errorf("%+v before anything was sent", came)
	}
	sent, err := s.Divert(0, nodes, post([]byte("stolen")))
	if err != nil || sent.Datagrams != nodes-1 || sent.Bytes < 40*sent.Datagrams {
		t.Fatalf("%+v, %v", sent, err)
	}
	for until := time.Now().Add(20 * time.Second); s.Diverted().Datagrams < nodes-1; {
		if time.Now().After(until) {
			t.Fatalf("%+v came, for %+v", s.Diverted(), sent)
		}
		time.Sleep(time.Millisecond)
	}
	if out, err := s.Load(t.Context(), load); err != nil || out.Answered != nodes-1 {
		t.Fatalf("afterwards: %+v, %v", out, err)
	}
}

// TestNode: a node as a transport sends bodies of many blocks, observes, and has
// the exporter of its handshake.
func TestNode(t *testing.T) {
	at, publish := served(t, peer.Own)
	s := newSwarm(t, swarm.Config{Gateway: at, Nodes: 2})
	for i := range 2 {
		if err := open(t.Context(), s, i); err != nil {
			t.Fatal(err)
		}
	}
	n := s.Node(0)
	body := make([]byte, 3000)
	for i := range body {
		body[i] = byte(i)
	}
	req := &coap.Request{Code: coap.POST, Payload: body}
	req.Options.SetPath("echo")
	r, err := n.Do(t.Context(), req)
	if err != nil || string(r.Payload) != string(body) {
		t.Fatalf("%d bytes, %v", len(r.Payload), err)
	}
	watch := &coap.Request{Code: coap.GET}
	watch.Options.SetPath("state")
	came := make(chan string, 8)
	cancel, err := n.Observe(t.Context(), watch, func(r *coap.Response) { came <- fmt.Sprint(len(r.Payload)) })
	if err != nil {
		t.Fatal(err)
	}
	publish(true)
	for _, want := range []string{"5", "100"} {
		if got := <-came; got != want {
			t.Errorf("%s bytes, not %s", got, want)
		}
	}
	if err := cancel(t.Context()); err != nil {
		t.Error(err)
	}
	if b, err := n.ExportEmptyContext("EXPORTER-x", 32); err != nil || len(b) != 32 {
		t.Errorf("exporter: %d bytes, %v", len(b), err)
	}
	if _, err := s.Node(1).ExportEmptyContext("EXPORTER-x", 32); err == nil {
		t.Error("secrets were kept that nobody asked for")
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if _, err := s.Do(t.Context(), 0, get(false)); err == nil {
		t.Error("a node without an association gets an answer")
	}
}

// TestNobody: at an address where nobody listens handshakes fail, and nothing
// hangs.
func TestNobody(t *testing.T) {
	s := newSwarm(t, swarm.Config{Gateway: netip.MustParseAddrPort("127.0.0.1:9"), Nodes: 3})
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- open(ctx, s, 1) }()
	cancel()
	if err := <-over; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	out, err := s.Load(t.Context(), swarm.Load{Message: func(int) *coap.Message { return get(false) }})
	if err != nil || out.Failed != 3 {
		t.Errorf("%+v, %v", out, err)
	}
	for _, c := range []swarm.Config{{}, {Nodes: swarm.MaxNodes + 1}, {Nodes: 1, Network: 64}} {
		if _, err := swarm.New(c); err == nil {
			t.Errorf("%+v is taken", c)
		}
	}
}

// TestFlood: ClientHellos from invented addresses do not keep honest nodes out.
func TestFlood(t *testing.T) {
	at, _ := served(t, peer.Own)
	s := newSwarm(t, swarm.Config{Gateway: at, Nodes: 20})
	ctx, stop := context.WithCancel(t.Context())
	sent := make(chan int, 1)
	go func() {
		n, err := s.Flood(ctx, 1000)
		if err != nil {
			t.Error(err)
		}
		sent <- n
	}()
	for s.Stats().Flooded == 0 {
		time.Sleep(time.Millisecond) // until it has begun
	}
	if failed, err := swarm.Each(t.Context(), 0, 20, 5, nil, func(ctx context.Context, i int) error { return open(ctx, s, i) }); failed > 0 {
		t.Errorf("%d failed: %v", failed, err)
	}
	stop()
	if n := <-sent; n == 0 || s.Stats().Flooded != uint64(n) {
		t.Errorf("%d sent, %+v", n, s.Stats())
	}
}
