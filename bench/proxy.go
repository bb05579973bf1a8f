package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
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
// where its coap-server is installed, a relay that only copies datagrams, and no
// proxy at all. delay is how far away the origin is where distance counts: the
// round trip to it.
func Proxy(ctx context.Context, dir string, n int, delay time.Duration, progress func(string)) ([]Result, error) {
	o, stop, err := startOrigin(ctx, delay)
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
	relay, stop, err := startRelay(o)
	if err != nil {
		return nil, err
	}
	defer stop()
	added, err := addedLatency(ctx, o, ours, relay, peer, n, progress)
	if err != nil {
		return nil, err
	}
	out = append(out, added...)
	// The same client, go-coap's, directly, through the proxy and through the relay: at
	// an origin on this machine, and at one that is some way off.
	for _, x := range []struct {
		metric, path string
		n            int
	}{{"latency_us", "fresh", n / 20}, {"far_latency_us", "far", n / 200}} {
		progress(x.metric)
		median, count, err := inTurns([]way{{o, true}, {ours, false}, {relay, true}}, func(w way) ([]time.Duration, error) {
			return nodeLatencies(ctx, w.at, o, w.direct, x.path, x.n/proxyRounds)
		})
		if err != nil {
			return nil, err
		}
		r := Result{Bench: "proxy", Metric: x.metric, Unit: "us", N: count, Ours: median[1]}
		out = append(out, r.below("direct, go-coap", median[0]), r.below(floorRelay, median[2]))
	}
	return out, nil
}

// addedLatency is what a request that is not cached takes longer than the same
// request to the origin: with our proxy, libcoap's, and a relay that does nothing
// but copy datagrams between two sockets, which no proxy can beat.
func addedLatency(ctx context.Context, o, ours, relay, peer netip.AddrPort, n int, progress func(string)) ([]Result, error) {
	progress("added_latency_us")
	median, count, err := inTurns([]way{{o, true}, {ours, false}, {relay, true}, {peer, false}}, func(w way) ([]time.Duration, error) {
		return latencies(ctx, w.at, o, w.direct, n/proxyRounds/10)
	})
	if err != nil {
		return nil, err
	}
	r := Result{Bench: "proxy", Metric: "added_latency_us", Unit: "us", N: count, Ours: median[1] - median[0]}
	floor := r.below(floorRelay, median[2]-median[0])
	if peer.IsValid() {
		r = r.below("libcoap", median[3]-median[0])
	}
	return []Result{r, floor}, nil
}

const floorRelay = "floor: a bare relay"

// way is one to the origin.
type way struct {
	at     netip.AddrPort // invalid: there is none, and 0 is its median
	direct bool           // without a proxy option
}

// inTurns measures each way in every round, and gives the medians in microseconds; count
// is of how many requests the second's is.
func inTurns(ways []way, measure func(way) ([]time.Duration, error)) (median []float64, count int, err error) {
	took := make([][]time.Duration, len(ways))
	for range proxyRounds {
		for i, w := range ways {
			if !w.at.IsValid() {
				continue
			}
			d, err := measure(w)
			if err != nil {
				return nil, 0, err
			}
			took[i] = append(took[i], d...)
		}
	}
	median = make([]float64, len(ways))
	for i := range took {
		median[i] = microseconds(percentile(took[i], 50))
	}
	return median, len(took[1]), nil
}

// startRelay copies datagrams between a client and the origin.
func startRelay(origin netip.AddrPort) (netip.AddrPort, func(), error) {
	front, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return netip.AddrPort{}, nil, err
	}
	back, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(origin))
	if err != nil {
		_ = front.Close()
		return netip.AddrPort{}, nil, err
	}
	var client atomic.Pointer[netip.AddrPort]
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 2048)
		for {
			n, from, err := front.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if c := client.Load(); c == nil || *c != from {
				client.Store(&from)
			}
			if _, err := back.Write(b[:n]); err != nil {
				return
			}
		}
	})
	wg.Go(func() {
		b := make([]byte, 2048)
		for {
			n, err := back.Read(b)
			if err != nil {
				return
			}
			if _, err := front.WriteToUDPAddrPort(b[:n], *client.Load()); err != nil {
				return
			}
		}
	})
	return front.LocalAddr().(*net.UDPAddr).AddrPort(), func() {
		_, _ = front.Close(), back.Close()
		wg.Wait()
	}, nil
}

func microseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

// startOrigin serves three resources: one that may be cached, one that may not,
// and one that answers as if it were far away.
func startOrigin(ctx context.Context, delay time.Duration) (netip.AddrPort, func(), error) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return netip.AddrPort{}, nil, err
	}
	core := serve.New(coap.HandlerFunc(func(_ context.Context, req *coap.Request) (*coap.Response, error) {
		r := &coap.Response{Code: coap.Content, Payload: []byte("21.5")}
		age := uint32(0)
		switch strings.Join(req.Path(), "/") {
		case "cached":
			age = 3600
		case "far":
			time.Sleep(delay)
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
		for range libcoapTries {
			at = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), libcoapFirst+rand.N[uint16](libcoapPorts))
			if stop, err = runLibcoap(ctx, path, at); err == nil || ctx.Err() != nil {
				return at, stop, err
			}
		}
		return netip.AddrPort{}, none, fmt.Errorf("bench: %s does not start: %w", name, err)
	}
	return netip.AddrPort{}, none, nil
}

// The server of libcoap has to be told its port. These are none that the system
// gives to others meanwhile.
const (
	libcoapFirst = 20000
	libcoapPorts = 12000
	libcoapTries = 10
	libcoapWait  = 5 * time.Second
)

// runLibcoap has the server run at an address, and waits until it answers a ping
// (RFC 7252, Section 4.3).
func runLibcoap(ctx context.Context, path string, at netip.AddrPort) (stop func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, path, "-A", at.Addr().String(), "-p", strconv.Itoa(int(at.Port())), "-P", ",none.invalid", "-v", "2")
	if err := cmd.Start(); err != nil {
		cancel()
		return nil, err
	}
	over := make(chan struct{}) // it cannot have the port
	go func() {
		_ = cmd.Wait()
		close(over)
	}()
	stop = func() { cancel(); <-over }
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(at))
	if err != nil {
		stop()
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	b := make([]byte, 16)
	for end := time.Now().Add(libcoapWait); time.Now().Before(end); {
		select {
		case <-over:
			return nil, fmt.Errorf("it ended at once: is %v in use?", at)
		case <-time.After(10 * time.Millisecond):
		}
		// Errors are those of a port where nobody is yet.
		_, _ = conn.Write([]byte{1 << 6, 0, 0x12, 0x34})
		_ = conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if n, err := conn.Read(b); err == nil && n == 4 && b[0]>>4&3 == byte(coap.Reset) {
			return stop, nil
		}
	}
	stop()
	return nil, fmt.Errorf("no answer from %v within %v", at, libcoapWait)
}

// getter is a client with one request outstanding.
type getter struct {
	conn *net.UDPConn
	m    coap.Message
	b    []byte
	echo []byte
}

// newGetter asks directly, or with a proxy option.
func newGetter(at, origin netip.AddrPort, direct bool, path string) (*getter, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	g := &getter{conn: conn, b: make([]byte, 2048)}
	g.m = coap.Message{Type: coap.Confirmable, Code: coap.GET, Token: make([]byte, 4)}
	if direct {
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
			c, err := newGetter(at, origin, false, path)
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
func latencies(ctx context.Context, at, origin netip.AddrPort, direct bool, n int) ([]time.Duration, error) {
	c, err := newGetter(at, origin, direct, "fresh")
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

// nodeLatencies are those of requests of a node's transport, which is go-coap's.
func nodeLatencies(ctx context.Context, at, origin netip.AddrPort, direct bool, path string, n int) ([]time.Duration, error) {
	t, err := node.DialUDP(ctx, at.String())
	if err != nil {
		return nil, err
	}
	defer func() { _ = t.Close() }()
	req := &coap.Request{Code: coap.GET}
	if direct {
		req.Options.AddString(coap.UriPath, path)
	} else {
		req.Options.AddString(coap.ProxyUri, "coap://"+origin.String()+"/"+path)
	}
	var out []time.Duration
	for i := 0; i <= max(n, 1); i++ {
		began := time.Now()
		r, err := t.Do(ctx, req)
		if err != nil {
			return nil, err
		}
		if v, ok := r.Options.Get(coap.Echo); ok && r.Code == coap.Unauthorized {
			again := req.Clone()
			again.Options.Add(coap.Echo, v)
			if r, err = t.Do(ctx, again); err != nil {
				return nil, err
			}
		}
		if r.Code != coap.Content {
			return nil, fmt.Errorf("%w: %v %q", errAnswer, r.Code, r.Payload)
		}
		if i > 0 {
			out = append(out, time.Since(began))
		}
	}
	return out, nil
}
