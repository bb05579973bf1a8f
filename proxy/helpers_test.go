package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/coaptest"
	"github.com/seed4911071e/groupgate/coap/serve"
	"github.com/seed4911071e/groupgate/endpoint"
)

const patience = 30 * time.Second

// origin is a CoAP server behind the proxy, on a real socket.
type origin struct {
	t    testing.TB
	core *serve.Server
	at   netip.AddrPort
	keys endpoint.Keys
	stop func()

	asked   atomic.Int64 // requests that reached the handler
	mu      sync.Mutex
	newest  *coap.Request // guarded by mu
	handler coap.HandlerFunc
}

// psk lets one identity in.
type psk struct {
	identity string
	key      []byte
	shakes   atomic.Int64
}

func (k *psk) PSK(_ context.Context, identity []byte) ([]byte, error) {
	if string(identity) != k.identity {
		return nil, endpoint.ErrUnknown
	}
	return k.key, nil
}

func (k *psk) Admit(_ context.Context, p endpoint.Proof) (coap.Subject, error) {
	k.shakes.Add(1)
	return coap.Subject{Kind: coap.SubjectPSK, ID: string(p.Identity)}, nil
}

// serving runs an origin; keys nil: plain UDP.
func serving(t testing.TB, keys endpoint.Keys, h coap.HandlerFunc) *origin {
	t.Helper()
	o := &origin{t: t, keys: keys, handler: h}
	o.run("127.0.0.1:0")
	t.Cleanup(func() { o.stop() })
	return o
}

func (o *origin) run(addr string) {
	o.t.Helper()
	ua, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		o.t.Fatal(err)
	}
	conn, err := net.ListenUDP("udp", ua)
	if err != nil {
		o.t.Fatal(err)
	}
	o.at = conn.LocalAddr().(*net.UDPAddr).AddrPort()
	o.core = serve.New(coap.HandlerFunc(func(ctx context.Context, req *coap.Request) (*coap.Response, error) {
		o.asked.Add(1)
		o.mu.Lock()
		o.newest = req.Clone()
		o.mu.Unlock()
		return o.handler(ctx, req)
	}), serve.Config{PerPeerRPS: 1e6, PerPeerBurst: 1e6, MaxPeerRequests: 1024, BlockSize: 64, Critical: []coap.OptionID{4093}})
	e := endpoint.New(endpoint.UDP(conn), endpoint.Config{Server: o.core, Keys: o.keys})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = e.Run(ctx) })
	wg.Go(func() { _ = o.core.Run(ctx) })
	o.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
}

func (o *origin) request() *coap.Request {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.newest
}

func (o *origin) target() Target {
	t := Target{Scheme: CoAP, Host: o.at.Addr().String(), Port: o.at.Port()}
	if o.keys != nil {
		t.Scheme = CoAPS
	}
	return t
}

// forwardTo is a rule for exactly an origin.
func forwardTo(t Target) Rule { return Rule{Host: t.Host + "/32", Scheme: t.Scheme, Port: t.Port} }

// site is a proxy under the server core.
type site struct {
	t    testing.TB
	p    *Proxy
	core *serve.Server
	stop func()
}

var errNobody = errors.New("nobody")

// house makes a proxy; change may adapt what it works with.
func house(t testing.TB, cfg Config, change func(*Deps)) *site {
	t.Helper()
	s := &site{t: t}
	deps := Deps{
		May:   func(_ context.Context, p coap.Peer) error { return nil },
		Token: func(context.Context, coap.Peer) error { return errNobody },
		Local: coap.HandlerFunc(func(context.Context, *coap.Request) (*coap.Response, error) {
			return &coap.Response{Code: coap.Content, Payload: []byte("local")}, nil
		}),
	}
	if change != nil {
		change(&deps)
	}
	if cfg.CacheBytes == 0 {
		cfg.CacheBytes = 1 << 20
	}
	if cfg.Name == "" {
		cfg.Name = "edge"
	}
	s.core = serve.New(coap.HandlerFunc(func(ctx context.Context, req *coap.Request) (*coap.Response, error) {
		if !s.p.Takes(req.Options) {
			return deps.Local.ServeCoAP(ctx, req)
		}
		return s.p.ServeCoAP(ctx, req)
	}), serve.Config{
		PerPeerRPS: 1e6, PerPeerBurst: 1e6, MaxPeerRequests: 4096, BlockSize: 256,
		Forwards: func(o coap.Options) bool { return s.p.Takes(o) },
	})
	deps.Hub, deps.Observers = s.core, s.core.Observers
	s.p = New(cfg, deps)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.p.Run(ctx) })
	wg.Go(func() { _ = s.core.Run(ctx) })
	s.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(s.stop)
	return s
}

// client is a peer with a key.
func (s *site) client(name string, opts coaptest.Options) *coaptest.Link {
	s.t.Helper()
	l := coaptest.NewLink(s.core, coap.Peer{
		Link: coap.LinkID(name), Via: coap.DTLSPSK, Subject: coap.Subject{Kind: coap.SubjectPSK, ID: name}, Addr: netip.MustParseAddrPort("192.0.2.1:4000"),
	}, opts)
	s.t.Cleanup(l.Close)
	return l
}

// proxied is a request with Proxy-Uri.
func proxied(code coap.Code, uri string, payload []byte) *coap.Request {
	r := &coap.Request{Code: code, Payload: payload}
	r.Options.AddString(coap.ProxyUri, uri)
	return r
}

func do(t testing.TB, l *coaptest.Link, req *coap.Request) *coap.Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := l.Do(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// text is a 2.05 with a Max-Age.
func text(body string, maxAge uint32) *coap.Response {
	r := &coap.Response{Code: coap.Content, Payload: []byte(body)}
	r.Options.SetUint(coap.MaxAge, maxAge)
	return r
}

// eventually looks again and again until what should come true does.
func eventually(t testing.TB, what string, look func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(patience)
	defer late.Stop()
	for !look() {
		select {
		case <-tick.C:
		case <-late.C:
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// relays, protected and flights count what the proxy keeps.
func (s *site) relays() int {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	return len(s.p.relays)
}

func (s *site) protected() int {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	return len(s.p.protected)
}

func (s *site) flights() int {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	return len(s.p.flights)
}
