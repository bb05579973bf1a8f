package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/serve"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/endpoint"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/plugin/host"
)

// Of the benchmark of the proxy.
const (
	proxyClients = 16 // at once, each with one request outstanding
	proxyRounds  = 5  // ours and the peer take turns
)

// Proxy measures GETs through the gateway's proxy, over UDP on both legs, to an
// origin in this process: from the cache, and not; beside the proxy of libcoap
// where its coap-server is installed.
func Proxy(ctx context.Context, dir string, n int, progress func(string)) ([]Result, error) {
	o, stop, err := startOrigin(ctx)
	if err != nil {
		return nil, err
	}
	defer stop()
	cfg := func(c *config.Config) {
		c.Limits.PerPeerRPS = 1e6
		c.Proxy.UDPRPS = 1e6
		c.Proxy.Allow = []config.ProxyTarget{{Target: "coap://" + o.String(), ProxyVia: config.ProxyVia{
			OpenToUDP: true, Timeout: 30 * time.Second, Parallel: 256, BlockSize: 1024,
		}}}
	}
	peer, stopPeer, err := startLibcoap(ctx)
	if err != nil {
		return nil, err
	}
	defer stopPeer()
	if !peer.IsValid() {
		progress("coap-server of libcoap is not installed (Debian: libcoap3-bin): figures without it")
	}
	return withGatewayOf(ctx, filepath.Join(dir, "proxy"), []string{"sensors"}, cfg, func(ctx context.Context, _ *config.Config, at host.Addrs) ([]Result, error) {
		ours, err := netip.ParseAddrPort(at.CoAP)
		if err != nil {
			return nil, err
		}
		return measureProxy(ctx, o, ours, peer, n, progress)
	})
}

func measureProxy(ctx context.Context, o, ours, peer netip.AddrPort, n int, progress func(string)) ([]Result, error) {
	var out []Result
	rate := func(metric, path string) error {
		progress(metric)
		var best [2]float64 // of ours and the peer
		for range proxyRounds {
			for i, at := range []netip.AddrPort{ours, peer} {
				if !at.IsValid() {
					continue
				}
				r, err := getRate(ctx, at, o, path, n/proxyRounds)
				if err != nil {
					return fmt.Errorf("%s at %v: %w", metric, at, err)
				}
				best[i] = max(best[i], r)
			}
		}
		r := Result{Bench: "proxy", Metric: metric, Unit: "1/s", N: n, Ours: best[0]}
		if peer.IsValid() {
			r = r.against("libcoap", best[1])
		}
		out = append(out, r)
		return nil
	}
	if err := rate("cached_gets_per_second", "cached"); err != nil {
		return nil, err
	}
	if err := rate("uncached_gets_per_second", "fresh"); err != nil {
		return nil, err
	}
	progress("added_latency_us")
	var direct, through, theirs []time.Duration
	for range proxyRounds {
		for _, x := range []struct {
			at netip.AddrPort
			to *[]time.Duration
		}{{o, &direct}, {ours, &through}, {peer, &theirs}} {
			if !x.at.IsValid() {
				continue
			}
			s, err := latencies(ctx, x.at, o, n/proxyRounds/10)
			if err != nil {
				return nil, err
			}
			*x.to = append(*x.to, s...)
		}
	}
	base := percentile(direct, 50)
	r := Result{Bench: "proxy", Metric: "added_latency_us", Unit: "us", N: len(through), Ours: microseconds(percentile(through, 50) - base)}
	if peer.IsValid() {
		r = r.below("libcoap", microseconds(percentile(theirs, 50)-base))
	}
	out = append(out, r)

	progress("latency_us")
	// The same client, go-coap's, directly and through the proxy.
	d, err := nodeLatency(ctx, o, o, n/20)
	if err != nil {
		return nil, err
	}
	p, err := nodeLatency(ctx, ours, o, n/20)
	if err != nil {
		return nil, err
	}
	return append(out, Result{Bench: "proxy", Metric: "latency_us", Unit: "us", N: n / 20, Ours: p}.below("direct, go-coap", d)), nil
}

func microseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

// startOrigin serves two resources: one that may be cached, one that may not.
func startOrigin(ctx context.Context) (netip.AddrPort, func(), error) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return netip.AddrPort{}, nil, err
	}
	core := serve.New(coap.HandlerFunc(func(_ context.Context, req *coap.Request) (*coap.Response, error) {
		r := &coap.Response{Code: coap.Content, Payload: []byte("21.5")}
		age := uint32(0)
		if path := req.Path(); len(path) == 1 && path[0] == "cached" {
			age = 3600
		}
		r.Options.SetUint(coap.MaxAge, age)
		return r, nil
	}), serve.Config{PerPeerRPS: 1e9, PerPeerBurst: 1e9, MaxPeerRequests: 4096})
	e := endpoint.New(endpoint.UDP(conn), endpoint.Config{Server: core})
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { _ = e.Run(ctx) })
	wg.Go(func() { _ = core.Run(ctx) })
	return conn.LocalAddr().(*net.UDPAddr).AddrPort(), func() { cancel(); wg.Wait() }, nil
}

// startLibcoap runs the example server of libcoap as a proxy that connects
// directly; no address where it is not installed.
func startLibcoap(ctx context.Context) (at netip.AddrPort, stop func(), err error) {
	none := func() {}
	for _, name := range []string{"coap-server", "coap-server-notls", "coap-server-openssl", "coap-server-gnutls"} {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		probe, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			return at, none, err
		}
		port := probe.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		if err := probe.Close(); err != nil {
			return at, none, err
		}
		ctx, cancel := context.WithCancel(ctx)
		cmd := exec.CommandContext(ctx, path, "-A", "127.0.0.1", "-p", strconv.Itoa(int(port)), "-P", ",none.invalid", "-v", "2")
		if err := cmd.Start(); err != nil {
			cancel()
			return at, none, err
		}
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port), func() { cancel(); _ = cmd.Wait() }, nil
	}
	return at, none, nil
}

// getter is a client with one request outstanding.
type getter struct {
	conn *net.UDPConn
	m    coap.Message
	b    []byte
	echo []byte
}

func newGetter(at, origin netip.AddrPort, path string) (*getter, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	g := &getter{conn: conn, b: make([]byte, 2048)}
	g.m = coap.Message{Type: coap.Confirmable, Code: coap.GET, Token: make([]byte, 4)}
	if at == origin {
		g.m.Options.AddString(coap.UriPath, path)
	} else {
		g.m.Options.AddString(coap.ProxyUri, "coap://"+origin.String()+"/"+path)
	}
	return g, nil
}

var errAnswer = errors.New("bench: an unexpected answer")

// get asks once, with the Echo value that it was given.
func (g *getter) get() error {
	for {
		g.m.ID++
		g.m.Token[0], g.m.Token[1] = byte(g.m.ID>>8), byte(g.m.ID)
		out := g.m
		if g.echo != nil {
			out.Options.Add(coap.Echo, g.echo)
		}
		b, err := out.AppendBinary(g.b[:0])
		if err != nil {
			return err
		}
		if _, err := g.conn.Write(b); err != nil {
			return err
		}
		if err := g.conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return err
		}
		for {
			n, err := g.conn.Read(g.b)
			if err != nil {
				return err
			}
			m, err := coap.DecodeMessage(g.b[:n])
			if err != nil || m.Code == coap.Empty || string(m.Token) != string(g.m.Token) {
				continue
			}
			if m.Type == coap.Confirmable {
				if _, err := g.conn.Write([]byte{0x60, 0, byte(m.ID >> 8), byte(m.ID)}); err != nil {
					return err
				}
			}
			if v, ok := m.Options.Get(coap.Echo); ok && m.Code == coap.Unauthorized {
				g.echo = append([]byte(nil), v...)
				break // once more, with it
			}
			g.echo = nil
			if m.Code != coap.Content || string(m.Payload) != "21.5" {
				return fmt.Errorf("%w: %v %q", errAnswer, m.Code, m.Payload)
			}
			return nil
		}
	}
}

// getRate is how many GETs per second the clients together get through.
func getRate(ctx context.Context, at, origin netip.AddrPort, path string, n int) (float64, error) {
	var left atomic.Int64
	left.Store(int64(n))
	g, ctx := errgroup.WithContext(ctx)
	var ready sync.WaitGroup
	ready.Add(proxyClients)
	start := make(chan struct{})
	for range proxyClients {
		g.Go(func() error {
			c, err := newGetter(at, origin, path)
			if err == nil {
				defer func() { _ = c.conn.Close() }()
				err = c.get() // warms up, and shows that the address receives
			}
			ready.Done()
			if err != nil {
				return err
			}
			<-start
			for left.Add(-1) >= 0 && ctx.Err() == nil {
				if err := c.get(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	ready.Wait()
	began := time.Now()
	close(start)
	err := g.Wait()
	return float64(n) / time.Since(began).Seconds(), err
}

// latencies are those of single requests that are not cached.
func latencies(ctx context.Context, at, origin netip.AddrPort, n int) ([]time.Duration, error) {
	c, err := newGetter(at, origin, "fresh")
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.conn.Close() }()
	if err := c.get(); err != nil {
		return nil, err
	}
	out := make([]time.Duration, 0, n)
	for range max(n, 1) {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		began := time.Now()
		if err := c.get(); err != nil {
			return nil, err
		}
		out = append(out, time.Since(began))
	}
	return out, nil
}

// nodeLatency is the median in microseconds of requests of a node's transport,
// which is go-coap's.
func nodeLatency(ctx context.Context, at, origin netip.AddrPort, n int) (float64, error) {
	t, err := node.DialUDP(ctx, at.String())
	if err != nil {
		return 0, err
	}
	defer func() { _ = t.Close() }()
	req := &coap.Request{Code: coap.GET}
	if at == origin {
		req.Options.AddString(coap.UriPath, "fresh")
	} else {
		req.Options.AddString(coap.ProxyUri, "coap://"+origin.String()+"/fresh")
	}
	var out []time.Duration
	for i := 0; i <= max(n, 1); i++ {
		began := time.Now()
		r, err := t.Do(ctx, req)
		if err != nil {
			return 0, err
		}
		if v, ok := r.Options.Get(coap.Echo); ok && r.Code == coap.Unauthorized {
			again := req.Clone()
			again.Options.Add(coap.Echo, v)
			if r, err = t.Do(ctx, again); err != nil {
				return 0, err
			}
		}
		if r.Code != coap.Content {
			return 0, fmt.Errorf("%w: %v %q", errAnswer, r.Code, r.Payload)
		}
		if i > 0 {
			out = append(out, time.Since(began))
		}
	}
	return microseconds(percentile(out, 50)), nil
}
