package secure_test

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/coaptest"
	"github.com/seed4911071e/groupgate/coap/secure"
	"github.com/seed4911071e/groupgate/coap/serve"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/oscore"
)

// shelf keeps contexts as a database would: several layers may use one.
type shelf struct {
	mu    sync.Mutex
	rows  map[string]*secure.Stored
	ended map[coap.LinkID]bool
	fails error // of Reserve
}

func newShelf(ids ...byte) *shelf {
	s := &shelf{rows: map[string]*secure.Stored{}, ended: map[coap.LinkID]bool{}}
	for _, id := range ids {
		s.rows[string([]byte{id})] = &secure.Stored{
			Setup: oscore.Setup{
				Material: oscore.Material{ID: []byte{id}, MasterSecret: cose.NewSecret(bytes.Repeat([]byte{id}, 16)), Salt: []byte("salt")},
				Nonce1:   []byte("nonce one"), Nonce2: []byte("nonce two"), ID1: []byte{0xc0, id}, ID2: []byte{id},
			},
			Link: coap.LinkID(fmt.Sprintf("oscore-%d", id)), Subject: coap.Subject{Kind: coap.SubjectOSCORE, ID: string(rune('a' + id))},
		}
	}
	return s
}

func (s *shelf) Context(_ context.Context, kid []byte) (*secure.Stored, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.rows[string(kid)]
	if r == nil || s.ended[r.Link] {
		return nil, secure.ErrNone
	}
	c := *r
	return &c, nil
}

func (s *shelf) Many(ctx context.Context, kids [][]byte) (map[string]*secure.Stored, error) {
	out := map[string]*secure.Stored{}
	for _, kid := range kids {
		if c, err := s.Context(ctx, kid); err == nil {
			out[string(kid)] = c
		}
	}
	return out, nil
}

func (s *shelf) Take(_ context.Context, c *secure.Stored, held bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.rows[string(c.ID2)]
	switch {
	case s.ended[r.Link]:
		return secure.ErrNone
	case c.Epoch != r.Epoch, !held && c.Reserved != r.Reserved:
		return secure.ErrTaken
	case held:
		return nil
	}
	r.Epoch++
	c.Epoch++
	return nil
}

func (s *shelf) Reserve(_ context.Context, c *secure.Stored, upTo uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.rows[string(c.ID2)]
	switch {
	case s.fails != nil:
		return s.fails
	case c.Epoch != r.Epoch || upTo < r.Reserved:
		return secure.ErrTaken
	}
	r.Reserved = upTo
	return nil
}

func (s *shelf) end(id byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended[s.rows[string([]byte{id})].Link] = true
}

// gateway is a layer in its place.
type gateway struct {
	t     testing.TB
	srv   *serve.Server
	layer *secure.Layer
	seen  *prometheus.Registry
	stop  func()
}

// answering is the gauge of requests with responses to come.
func (g *gateway) answering() int {
	g.t.Helper()
	families, err := g.seen.Gather()
	if err != nil {
		g.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "groupgate_oscore_answering" {
			return int(f.GetMetric()[0].GetGauge().GetValue())
		}
	}
	g.t.Fatal("no gauge")
	return 0
}

// start runs a gateway; inner serves what comes out of the layer.
func start(t testing.TB, s *shelf, inner coap.HandlerFunc) *gateway {
	t.Helper()
	g := &gateway{t: t, seen: prometheus.NewRegistry()}
	g.srv = serve.New(coap.HandlerFunc(func(ctx context.Context, req *coap.Request) (*coap.Response, error) {
		if req.Options.Has(coap.OSCOREOption) {
			return g.layer.ServeCoAP(ctx, req)
		}
		return inner(ctx, req)
	}), serve.Config{PerPeerRPS: 1e6})
	g.layer = secure.New(secure.Config{Server: g.srv, Contexts: s, MaxContexts: 4, Registerer: g.seen})
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() { _ = g.srv.Run(ctx) })
	work.Go(func() { _ = g.layer.Run(ctx) })
	g.stop = sync.OnceFunc(func() { cancel(); work.Wait() })
	t.Cleanup(g.stop)
	return g
}

// client is the other end of a context.
type client struct {
	t   testing.TB
	ctx *oscore.Context
}

func newClient(t testing.TB, s *shelf, id byte) *client {
	t.Helper()
	c, err := oscore.New(s.rows[string([]byte{id})].ClientParams())
	if err != nil {
		t.Fatal(err)
	}
	return &client{t, c}
}

// newHopClient is newClient for one that uses the gateway as a proxy.
func newHopClient(t testing.TB, s *shelf, id byte) *client {
	t.Helper()
	p := s.rows[string([]byte{id})].ClientParams()
	p.Hop = true
	c, err := oscore.New(p)
	if err != nil {
		t.Fatal(err)
	}
	return &client{t, c}
}

// over opens a plain link to a gateway.
func (g *gateway) over(name coap.LinkID, opts coaptest.Options) *coaptest.Link {
	g.t.Helper()
	l := coaptest.NewLink(g.srv, coap.Peer{Link: name, Via: coap.Plain}, opts)
	g.t.Cleanup(l.Close)
	return l
}

func get(path ...string) *coap.Message {
	m := &coap.Message{Code: coap.GET}
	m.Options.SetPath(path...)
	return m
}

// protect makes the outer message of a request.
func (c *client) protect(m *coap.Message) (*coap.Message, *oscore.Exchange) {
	c.t.Helper()
	p, ex, err := c.ctx.ProtectRequest(c.t.Context(), nil, m)
	if err != nil {
		c.t.Fatal(err)
	}
	p = p.Clone()
	p.Type = coap.Confirmable
	return p, &ex
}

// send sends a message as it is.
func send(t testing.TB, l *coaptest.Link, m *coap.Message) *coap.Message {
	t.Helper()
	r, err := l.Exchange(t.Context(), m.Clone())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// ask protects a request, sends it, and opens the answer.
func (c *client) ask(l *coaptest.Link, m *coap.Message) *coap.Message {
	c.t.Helper()
	p, ex := c.protect(m)
	return c.open(ex, send(c.t, l, p))
}

func (c *client) open(ex *oscore.Exchange, r *coap.Message) *coap.Message {
	c.t.Helper()
	inner, err := c.ctx.UnprotectResponse(nil, ex, r)
	if err != nil {
		c.t.Fatalf("%v: %v %q", err, r.Code, r.Payload)
	}
	return inner.Clone()
}

// askFresh is ask, and again with Echo when the gateway wants that.
func (c *client) askFresh(l *coaptest.Link, m *coap.Message) (r *coap.Message, challenged bool) {
	c.t.Helper()
	r = c.ask(l, m)
	echo, ok := r.Options.Get(coap.Echo)
	if !ok || r.Code != coap.Unauthorized {
		return r, false
	}
	again := m.Clone()
	again.Options.Set(coap.Echo, echo)
	return c.ask(l, again), true
}

// simple checks an error of the protection: not protected, and not to be kept (RFC
// 8613, Section 8.2).
func simple(t testing.TB, what string, r *coap.Message, code coap.Code) {
	t.Helper()
	age, ok := r.Options.Uint(coap.MaxAge)
	if r.Code != code || r.Options.Has(coap.OSCOREOption) || !ok || age != 0 {
		t.Errorf("%s: %v with Max-Age %d, protected %v; want %v", what, r.Code, age, r.Options.Has(coap.OSCOREOption), code)
	}
}

func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// hello answers with the path and who asks.
func hello(_ context.Context, req *coap.Request) (*coap.Response, error) {
	return &coap.Response{Code: coap.Content, Payload: fmt.Appendf(nil, "%v %s %d", req.Path(), req.Peer.Link, req.Peer.Via)}, nil
}
