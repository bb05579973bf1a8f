package endpoint

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// patient serves POSTs that wait, when it says so, until it is let go.
type patient struct {
	waits  func(*coap.Request) bool
	let    chan struct{}
	served atomic.Int32
}

func (p *patient) serve(ctx context.Context, r *coap.Request) (*coap.Response, error) {
	if r.Code == coap.POST {
		p.served.Add(1)
		if p.waits(r) {
			coap.Waiting(ctx)
			coap.Waiting(ctx) // again is nothing
			select {
			case <-p.let:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			coap.Waiting(ctx)
		}
	}
	return echo(ctx, r)
}

// heard is what came to the nodes, in its order.
type heard struct {
	mu    sync.Mutex
	nodes []int
	heads [][4]byte // of the messages
}

func (h *heard) note(i int, b []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.nodes, h.heads = append(h.nodes, i), append(h.heads, [4]byte(b))
}

func (h *heard) take() (nodes []int, heads [][4]byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	nodes, heads = h.nodes, h.heads
	h.nodes, h.heads = nil, nil
	return nodes, heads
}

// TestWaiting: handlers that say that they wait hold nobody up, not for a moment and
// wherever in a batch they are. Others are answered in their order; copies of requests
// that wait are not served again; who waits is acknowledged in time and answered then.
func TestWaiting(t *testing.T) {
	for name, waits := range map[string]func(i int) bool{
		"first":   func(i int) bool { return i < 3 },
		"last":    func(i int) bool { return i >= 37 },
		"between": func(i int) bool { return i%3 == 0 },
		"most":    func(i int) bool { return i != 20 },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testWaiting(t, waits) })
		})
	}
}

func testWaiting(t *testing.T, waits func(i int) bool) {
	const nodes = 40
	h := &patient{let: make(chan struct{}), waits: func(r *coap.Request) bool { return waits(int(r.Peer.Addr.Port())) }}
	m, _ := mirrored(t, nodes, h.serve)
	var heard heard
	m.tap = heard.note
	var who, others []int
	for i := range nodes {
		if waits(i) {
			who = append(who, i)
		} else {
			others = append(others, i)
		}
	}
	ask := func(again bool, who ...int) {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, i := range who {
			if again {
				m.nodes[i].mid--
			}
			m.ask(i)
		}
	}
	began := time.Now()
	m.expect(len(others), 0)
	all := append(slices.Clone(who), others...)
	slices.Sort(all)
	ask(false, all...)
	<-m.done
	if d := time.Since(began); d != 0 {
		t.Errorf("who does not wait was held up for %v", d)
	}
	if got, _ := heard.take(); !slices.Equal(got, others) {
		t.Errorf("answered in the order %v", got)
	}

	ask(true, who...)
	synctest.Wait()
	if got, _ := heard.take(); len(got) > 0 || int(h.served.Load()) != nodes {
		t.Errorf("%d were served, copies answered: %v", h.served.Load(), got)
	}

	m.expect(len(who), 0)
	<-m.done
	if d := time.Since(began); d < processingDelay || d > processingDelay+3*wheelTick {
		t.Errorf("acknowledged after %v", d)
	}
	for _, head := range second(heard.take()) {
		if head[0]>>4&3 != byte(coap.Acknowledgement) || head[1] != 0 {
			t.Errorf("in time came % x", head)
		}
	}

	m.expect(len(who), 0)
	close(h.let)
	<-m.done
	got, heads := heard.take()
	slices.Sort(got)
	if !slices.Equal(got, who) {
		t.Errorf("%v were answered at last", got)
	}
	for _, head := range heads {
		if head[0]>>4&3 != byte(coap.Confirmable) || coap.Code(head[1]) != coap.Changed {
			t.Errorf("at last came % x", head)
		}
	}

	began = time.Now()
	m.expect(nodes, 0)
	ask(false, all...)
	<-m.done
	if d := time.Since(began); d != 0 || int(h.served.Load()) != 2*nodes {
		t.Errorf("afterwards %d were served within %v", h.served.Load(), d)
	}
}

func second(_ []int, heads [][4]byte) [][4]byte { return heads }

// TestWaitingBound: what waits is bounded as before, and ends with the endpoint.
func TestWaitingBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &patient{waits: func(r *coap.Request) bool { return r.Peer.Addr.Port() == 0 }}
		m, _ := mirrored(t, 2, h.serve)
		var heard heard
		m.tap = heard.note
		const most = 16 // requests of one peer
		began := time.Now()
		m.expect(5, 0)
		m.mu.Lock()
		for range most + 4 {
			m.ask(0)
		}
		m.ask(1)
		m.mu.Unlock()
		<-m.done
		if d := time.Since(began); d != 0 || h.served.Load() != most+1 {
			t.Errorf("%d were served within %v", h.served.Load(), d)
		}
		refused := 0
		for _, head := range second(heard.take()) {
			if coap.Code(head[1]) == coap.TooManyRequests {
				refused++
			}
		}
		if refused != 4 {
			t.Errorf("%d were refused", refused)
		}
	})
}

// TestContext: handlers end with the context that the endpoint was given, also while
// it runs.
func TestContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		h := &patient{waits: func(*coap.Request) bool { return true }}
		m, _ := mirrored(t, 1, h.serve, func(c *Config) { c.Context = ctx })
		var heard heard
		m.tap = heard.note
		m.expect(1, 0)
		m.mu.Lock()
		m.ask(0)
		m.mu.Unlock()
		synctest.Wait()
		if _, heads := heard.take(); len(heads) > 0 {
			t.Fatalf("answered % x", heads)
		}
		stop()
		<-m.done
		if _, heads := heard.take(); coap.Code(heads[0][1]).IsSuccess() {
			t.Errorf("answered % x", heads)
		}
	})
}
