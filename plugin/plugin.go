// Package plugin is the composition root: it builds every room of the gateway
// and mounts them into a host that is built on go-coap.
//
//	gg, err := plugin.New(cfg, log)       // no I/O
//	handler := gg.Handler(hostRouter)     // our paths; the rest is the host's
//	psk := gg.PSK(hostPSK)                // falls through to the host's own
//	err = gg.Run(ctx)                     // works until ctx ends
//
// The host keeps its sockets, its DTLS configuration and its router. What the
// host must grant: pre-shared keys come from [Gateway.PSK], and requests reach
// [Gateway.Handler]. Package host is such a host, complete; examples/host is
// the smallest one.
package plugin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed4911071e/groupgate/audit"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/serve"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/endpoint"
)

// goodbye bounds what a stopping gateway still waits for.
const goodbye = 5 * time.Second

// Gateway is the whole gateway but for its sockets.
type Gateway struct {
	cfg          *config.Config
	log          *slog.Logger
	registry     *prometheus.Registry
	server       *serve.Server
	ownBlockwise bool
	mqtt         net.Listener
	http         net.Listener
	listeners    map[string]string

	acceptRollback bool

	audit atomic.Pointer[audit.Log]
	rooms atomic.Pointer[rooms] // nil until the rooms are up
	ready chan struct{}         // closed when they are
	links sync.Map              // connKey → *linkEntry
	own   sync.Map              // coap.LinkID → *ownLink
	plain *endpoint.Shards      // over UDP; nil: there is none
	coaps *endpoint.Shards      // whose sessions are kept; nil: there is none
	crowd crowd

	refusals refusals
	trouble  trouble
	tries    tries
	receives receives
	awaited  awaited
	gate     gate
	stopped  context.Context // ends with Run; requests end with it
	stop     context.CancelFunc
}

// Option changes how a Gateway is mounted.
type Option func(*Gateway)

// WithoutHostBlockwise says that the host runs its go-coap servers with
// blockwise transfer switched off, so that the gateway does it: better, because
// go-coap's confuses concurrent FETCH requests that differ in their payload
// only.
func WithoutHostBlockwise() Option { return func(g *Gateway) { g.ownBlockwise = true } }

// WithHTTP has the admin API, health and metrics served on l instead of on
// listen.http of the configuration. Run closes it.
func WithHTTP(l net.Listener) Option { return func(g *Gateway) { g.http = l } }

// WithMQTT has the embedded broker serve plain MQTT on l instead of on
// listen.mqtt of the configuration. Run closes it.
func WithMQTT(l net.Listener) Option { return func(g *Gateway) { g.mqtt = l } }

// WithListeners names the addresses that the host serves, for the status page.
func WithListeners(addrs map[string]string) Option {
	return func(g *Gateway) { g.listeners = addrs }
}

// WithAcceptedRollback has Run start on a database that is older than its
// high-water mark, and rekey every group before anything is served. Without it
// that is [store.ErrRolledBack].
func WithAcceptedRollback() Option { return func(g *Gateway) { g.acceptRollback = true } }

// New returns a gateway for cfg. It does no I/O and starts nothing: Run creates
// the data folder and reads the keys.
func New(cfg *config.Config, log *slog.Logger, opts ...Option) (*Gateway, error) {
	if cfg == nil {
		return nil, errors.New("plugin: no configuration")
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	g := &Gateway{cfg: cfg, log: log, registry: prometheus.NewRegistry(), receives: newReceives(), ready: make(chan struct{})}
	g.stopped, g.stop = context.WithCancel(context.Background())
	for _, o := range opts {
		o(g)
	}
	g.server = serve.New(g, serve.Config{
		Failed: func(req *coap.Request, resp *coap.Response) {
			g.refusals.note(req, resp)
			if l := g.audit.Load(); l != nil {
				l.Refused(req, resp)
			}
		},
		PerPeerRPS: cfg.Limits.PerPeerRPS,
		NotifyRate: cfg.Limits.NotifyRPS,
		SubnetRate: cfg.Limits.SubnetRPS,
		Forwards:   g.takes,
		Screen:     g.screen,
		Log:        log.With("part", "coap"),
		Registerer: g.registry,
	})
	return g, nil
}

// Ready is closed when every room is up: tokens, groups and deliveries are
// served from then on. Requests before that are answered 5.03.
func (g *Gateway) Ready() <-chan struct{} { return g.ready }

// PSK returns a callback for the host's DTLS configuration: pre-shared keys by
// psk_identity as RFC 9202, Section 3.3 has them (a stored token's key id, a
// configured identity, or an access token itself). An identity that is none of
// ours is asked of host, when that is not nil.
func (g *Gateway) PSK(host func(identity []byte) ([]byte, error)) func(identity []byte) ([]byte, error) {
	return func(identity []byte) ([]byte, error) {
		key, err := g.psk(identity)
		if err == nil {
			return key, nil
		}
		if host != nil {
			if key, hostErr := host(identity); hostErr == nil {
				return key, nil
			}
		}
		return nil, fmt.Errorf("plugin: psk identity: %w", err)
	}
}

// psk finds a key that the gateway knows; none while it starts, when the host's
// own peers are served already.
func (g *Gateway) psk(identity []byte) ([]byte, error) {
	r := g.rooms.Load()
	if r == nil {
		return nil, errStarting
	}
	ctx, cancel := context.WithTimeout(g.stopped, goodbye)
	defer cancel()
	key, err := r.access.PSK(ctx, identity)
	g.tries.asked(identity, err)
	return key, err
}

// requestContext ends with the connection and with Run.
func (g *Gateway) requestContext(conn context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(conn)
	stop := context.AfterFunc(g.stopped, cancel)
	return ctx, func() { stop(); cancel() }
}
