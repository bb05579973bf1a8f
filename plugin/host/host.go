// Package host runs a [plugin.Gateway] on sockets of its own, as cmd/gateway, the
// demo and the benchmarks use it: by the gateway's own endpoint, or by go-coap's
// servers over plain UDP and over DTLS by pion. The latter is also the worked
// example of everything that a host can tune; examples/host is the smallest one.
package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	coapnet "github.com/plgd-dev/go-coap/v3/net"
	"github.com/plgd-dev/go-coap/v3/options"
	"github.com/plgd-dev/go-coap/v3/udp"
	udpclient "github.com/plgd-dev/go-coap/v3/udp/client"

	coapdtls "github.com/plgd-dev/go-coap/v3/dtls"
	"golang.org/x/sync/errgroup"

	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/endpoint"
	"github.com/seed4911071e/groupgate/plugin"
)

// Implementation constants.
const (
	// plainIdle ends the state that go-coap keeps for a plain UDP address:
	// such peers only discover and post tokens, but for those that OSCORE protects,
	// which keep it.
	plainIdle = 30 * time.Second
	// sessionIdle ends a DTLS association that nobody used for that long. A
	// member that checks for new keys as often as group_policies ask, hourly by
	// default, keeps its association; longer would lock out a node that
	// restarted on its old port, whose ClientHello pion does not take while it
	// holds the old association.
	sessionIdle = 2 * time.Hour
	// maxPlain bounds the addresses of which go-coap keeps state on plain UDP,
	// some 8 kB each: anybody can invent addresses.
	maxPlain = 8192
	// maxDatagram is the largest CoAP message we read: one block and options.
	maxDatagram = 2048
)

// Addrs are the addresses really listened on; empty where there is none.
type Addrs struct {
	CoAPS, CoAP, HTTP, MQTT string
}

// Sockets are the bound sockets of a host.
type Sockets struct {
	coaps net.Listener // DTLS
	coap  *coapnet.UDPConn
	http  net.Listener
	mqtt  net.Listener

	own []*endpoint.Shards // in the place of coaps and coap
}

// Serve binds every listener of cfg, runs a gateway behind them and calls ready
// once everything serves; more options are the gateway's. It returns when all is over: nil after ctx ended. A
// port that is taken is an error that names the key to change.
func Serve(ctx context.Context, cfg *config.Config, log *slog.Logger, ready func(*plugin.Gateway, Addrs), more ...plugin.Option) error {
	var s Sockets
	defer s.close()
	opts := slices.Clone(more)
	var addrs Addrs
	var err error
	stock := cfg.Endpoint.Kind == config.EndpointStock
	if cfg.Listen.CoAP != "" && stock {
		if s.coap, err = coapnet.NewListenUDP("udp", cfg.Listen.CoAP); err != nil {
			return busy("listen.coap", cfg.Listen.CoAP, err)
		}
		addrs.CoAP = s.coap.LocalAddr().String()
	}
	if cfg.Listen.HTTP != "" {
		if s.http, err = net.Listen("tcp", cfg.Listen.HTTP); err != nil {
			return busy("listen.http", cfg.Listen.HTTP, err)
		}
		addrs.HTTP = s.http.Addr().String()
		opts = append(opts, plugin.WithHTTP(s.http))
	}
	if cfg.Listen.MQTT != "" && cfg.MQTT.Broker == "" {
		if s.mqtt, err = net.Listen("tcp", cfg.Listen.MQTT); err != nil {
			return busy("listen.mqtt", cfg.Listen.MQTT, err)
		}
		addrs.MQTT = s.mqtt.Addr().String()
		opts = append(opts, plugin.WithMQTT(s.mqtt))
	}
	listeners := map[string]string{}
	opts = append(opts, plugin.WithListeners(listeners))
	gg, err := plugin.New(cfg, log, append(opts, plugin.WithoutHostBlockwise())...)
	if err != nil {
		return err
	}
	if !stock {
		if err := s.listenOwn(ctx, cfg, gg, &addrs); err != nil {
			return err
		}
	}
	var admission *admission
	if cfg.Listen.CoAPS != "" && stock {
		admission = newAdmission(cfg.Limits.Handshakes, cfg.Limits.Sessions)
		if s.coaps, err = listenDTLS(cfg.Listen.CoAPS, gg, admission, log); err != nil {
			return busy("listen.coaps", cfg.Listen.CoAPS, err)
		}
		addrs.CoAPS = s.coaps.Addr().String()
	}

	for name, addr := range map[string]string{"coaps": addrs.CoAPS, "coap": addrs.CoAP, "http": addrs.HTTP, "mqtt": addrs.MQTT} {
		if addr != "" {
			listeners[name] = addr
		}
	}

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return gg.Run(ctx) })
	g.Go(func() error {
		select {
		case <-gg.Ready():
		case <-ctx.Done():
			return nil
		}
		if ready != nil {
			ready(gg, addrs)
		}
		return nil
	})
	for _, e := range s.own {
		g.Go(func() error { return e.Run(ctx) })
	}
	s.own = nil // Run closes them
	handler := gg.Handler(nil)
	errorsOf := func(what string) func(error) {
		return func(err error) { log.DebugContext(ctx, what, "err", err) }
	}
	if s.coaps != nil {
		srv := coapdtls.NewServer(
			options.WithContext(ctx), options.WithMux(handler), options.WithErrors(errorsOf("coaps")),
			options.WithBlockwise(false, 0, 0), options.WithMaxMessageSize(maxDatagram),
			options.WithPeriodicRunner(paced(ctx, g, gg.Awaiting)),
			options.WithDTLSHandshakeTimeout(handshakeTimeout),
			options.WithRequestMonitor(gg.Monitor), options.WithOnNewConn(gg.Connected),
			options.WithInactivityMonitor(sessionIdle, closeIdle),
		)
		l := &dtlsListener{listener: s.coaps, admission: admission}
		serveUntil(ctx, g, "coaps", func() { srv.Stop(); _ = s.coaps.Close() }, func() error { return srv.Serve(l) })
	}
	if s.coap != nil {
		plain := plainPeers{max: maxPlain}
		srv := udp.NewServer(
			options.WithContext(ctx), options.WithMux(handler), options.WithErrors(errorsOf("coap")),
			options.WithBlockwise(false, 0, 0), options.WithMaxMessageSize(maxDatagram),
			options.WithPeriodicRunner(paced(ctx, g, gg.Awaiting)),
			options.WithRequestMonitor(gg.Monitor), options.WithOnNewConn(plain.connected),
			options.WithInactivityMonitor(plainIdle, func(cc *udpclient.Conn) {
				if !gg.Carries(cc) {
					closeIdle(cc)
				}
			}),
		)
		serveUntil(ctx, g, "coap", func() { srv.Stop(); _ = s.coap.Close() }, func() error { return srv.Serve(s.coap) })
	}
	return g.Wait()
}

// serveUntil runs one go-coap server until ctx ends. stop closes its socket as
// well: a server that is stopped before it began to serve does not, and would
// then wait for peers for ever.
func serveUntil(ctx context.Context, g *errgroup.Group, name string, stop func(), serve func() error) {
	unhook := context.AfterFunc(ctx, stop)
	g.Go(func() error {
		defer unhook()
		if err := serve(); err != nil && ctx.Err() == nil {
			return fmt.Errorf("serving %s: %w", name, err)
		}
		return nil
	})
}

// plainPeers counts the addresses of which go-coap keeps state on plain UDP.
// It makes that state for every source of a datagram and has no bound itself;
// what is closed when it is new goes before its datagram is looked at.
type plainPeers struct {
	n   atomic.Int64
	max int64
}

func (p *plainPeers) connected(cc *udpclient.Conn) {
	n := p.n.Add(1)
	cc.AddOnClose(func() { p.n.Add(-1) })
	if n > p.max {
		_ = cc.Close()
	}
}

func closeIdle(cc *udpclient.Conn) { _ = cc.Close() }

func (s *Sockets) close() {
	for _, e := range s.own {
		_ = e.Close()
	}
	for _, c := range []interface{ Close() error }{s.http, s.mqtt, s.coaps} {
		if c != nil && !isNil(c) {
			_ = c.Close()
		}
	}
	if s.coap != nil {
		_ = s.coap.Close()
	}
}

func isNil(c interface{ Close() error }) bool {
	l, ok := c.(net.Listener)
	return ok && l == nil
}

// busy explains why a listener could not be opened.
func busy(key, addr string, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%s: %s is in use by another program (is a gateway already running?); stop it or set %s to a free port: %w", key, addr, key, err)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%s: no permission to listen on %s; choose a port above 1023 or grant CAP_NET_BIND_SERVICE: %w", key, addr, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL), strings.Contains(err.Error(), "no such host"):
		return fmt.Errorf("%s: %s is not an address of this machine: %w", key, addr, err)
	}
	return fmt.Errorf("%s: cannot listen on %s: %w", key, addr, err)
}
