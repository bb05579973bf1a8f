package bridge

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/seed4911071e/groupgate/bridge/packetid"
)

const (
	internalListener = "internal"
	internalUser     = "gateway"
)

// brokerHooks is what the embedded broker asks the bridge.
type brokerHooks struct {
	// secretHash returns what is stored of a member's password, or
	// store.ErrNotFound.
	secretHash func(ctx context.Context, user string) ([]byte, error)
	// branch returns where a member is in a key tree; nil: in none.
	branch func(ctx context.Context, user string) (*branch, error)
	// ack takes an acknowledgement; see Bridge.takeAck.
	ack func(ctx context.Context, topic string, payload []byte, done func(ok bool)) bool
	// present says that a member's session began or ended.
	present func(ctx context.Context, rid string, here bool)
	// sensors are peers that are no members.
	sensors *sensors
}

// broker is the embedded MQTT broker. It keeps nothing on disk: the store has
// every message, and the publisher republishes after a start.
//
// A member may read its own rekey topic and write its own acknowledgement
// topic, nothing else. The gateway itself connects in process, under a
// credential that lives as long as the process.
type broker struct {
	cfg    Config
	log    *slog.Logger
	server *mqtt.Server
	hook   *gate
	ready  chan struct{}  // closed when serving
	own    sync.WaitGroup // connections of the gateway's own client, and sessions being ended

	mu        sync.Mutex
	listeners []net.Listener
	advertise string
	conns     map[net.Conn]struct{}
	closed    bool
}

func newBroker(cfg Config, log *slog.Logger, hooks brokerHooks) *broker {
	caps := mqtt.NewDefaultServerCapabilities()
	caps.MaximumClients = int64(cfg.MaxClients) + 16 // members are counted in track; this one must not shut the gateway out
	caps.MaximumMessageExpiryInterval = 0            // else retained messages go after a day
	caps.MaximumClientWritesPending = writesPending
	caps.MaximumSessionExpiryInterval = 0 // the newest retained message is all a sleeper needs
	caps.MaximumPacketSize = maxPacket
	caps.MaximumInflight = maxInflight
	caps.TopicAliasMaximum = 0
	caps.SharedSubAvailable = 0
	caps.MinimumProtocolVersion = mqttVersion
	b := &broker{cfg: cfg, log: log, ready: make(chan struct{}), conns: map[net.Conn]struct{}{}}
	b.server = mqtt.New(&mqtt.Options{
		Capabilities: caps,
		Logger:       slog.New(quietHandler{log.Handler()}),
		// Nobody may read $SYS, and producing it stops the world to count
		// memory: practically never.
		SysTopicResendInterval: int64((10 * 365 * 24 * time.Hour).Seconds()),
	})
	b.hook = newGate(cfg.Prefix, hooks, log)
	b.hook.server = b.server
	return b
}

// secret is the credential of the gateway's own client.
func (b *broker) secret() string { return base64.RawURLEncoding.EncodeToString(b.hook.secret) }

// listen binds what is configured.
func (b *broker) listen(ctx context.Context) error {
	plain := append([]net.Listener(nil), b.cfg.Listeners...)
	var lc net.ListenConfig
	if b.cfg.Listen != "" {
		l, err := lc.Listen(ctx, "tcp", b.cfg.Listen)
		if err != nil {
			return fmt.Errorf("bridge: listen.mqtt: %w", err)
		}
		plain = append(plain, l)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range plain {
		b.listeners = append(b.listeners, l)
		if b.advertise == "" {
			b.advertise = "mqtt://" + l.Addr().String()
		}
	}
	if b.cfg.ListenTLS == "" {
		return nil
	}
	cert, err := tls.LoadX509KeyPair(b.cfg.TLSCertFile, b.cfg.TLSKeyFile)
	if err != nil {
		b.closeListenersLocked()
		return fmt.Errorf("bridge: listen.mqtts: %w", err)
	}
	l, err := lc.Listen(ctx, "tcp", b.cfg.ListenTLS)
	if err != nil {
		b.closeListenersLocked()
		return fmt.Errorf("bridge: listen.mqtts: %w", err)
	}
	b.listeners = append(b.listeners, tls.NewListener(l, &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{cert},
	}))
	b.advertise = "mqtts://" + l.Addr().String()
	return nil
}

// unlisten closes what listen bound, when run will not.
func (b *broker) unlisten() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closeListenersLocked()
}

func (b *broker) closeListenersLocked() {
	for _, l := range b.listeners {
		_ = l.Close()
	}
	b.listeners = nil
}

// uri is where members find the broker, as far as its addresses tell.
func (b *broker) uri() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.advertise
}

// run serves until ctx ends and closes every connection.
func (b *broker) run(ctx context.Context) error {
	defer b.unlisten() // again after the server did: harmless
	b.hook.start(ctx)
	for _, h := range []mqtt.Hook{b.hook, new(packetid.Hook)} {
		if err := b.server.AddHook(h, nil); err != nil {
			return fmt.Errorf("bridge: embedded broker: %w", err)
		}
	}
	b.mu.Lock()
	for i, l := range b.listeners {
		door := listeners.NewNet(fmt.Sprintf("members-%d", i), &guarded{Listener: l, b: b})
		if err := b.server.AddListener(&members{Net: door, log: b.log}); err != nil {
			b.mu.Unlock()
			return fmt.Errorf("bridge: embedded broker: %w", err)
		}
	}
	b.mu.Unlock()
	if err := b.server.Serve(); err != nil {
		return fmt.Errorf("bridge: embedded broker: %w", err)
	}
	close(b.ready)
	<-ctx.Done()

	b.mu.Lock()
	b.closed = true
	conns := slices.Collect(maps.Keys(b.conns))
	b.mu.Unlock()
	for _, c := range conns {
		// A connection that has not logged in yet is unknown to the server,
		// which would wait for it.
		_ = c.Close()
	}
	b.own.Wait()
	if err := b.server.Close(); err != nil {
		return fmt.Errorf("bridge: embedded broker: %w", err)
	}
	return ctx.Err()
}

// dial makes an in-process connection of the gateway's own client: a pair of
// TCP sockets, because the buffers of the kernel keep the two sides from
// blocking each other, as a synchronous pipe would not.
func (b *broker) dial(ctx context.Context) (net.Conn, error) {
	select {
	case <-b.ready:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	near, far, err := tcpPair(ctx)
	if err != nil {
		return nil, err
	}
	far, ok := b.track(far, true)
	if !ok {
		_ = near.Close()
		return nil, net.ErrClosed
	}
	b.own.Go(func() {
		if err := b.server.EstablishConnection(internalListener, far); err != nil {
			b.log.Debug("internal connection ended", "err", err)
		}
	})
	return near, nil
}

// tcpPair connects a loopback socket to itself.
func tcpPair(ctx context.Context) (near, far net.Conn, err error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	var d net.Dialer
	near, err = d.DialContext(ctx, "tcp", l.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	// Another process could have been quicker; its connection is not ours.
	for range 8 {
		if far, err = l.Accept(); err != nil {
			break
		}
		if far.RemoteAddr().String() == near.LocalAddr().String() {
			return near, far, nil
		}
		_ = far.Close()
		err = errors.New("bridge: a stranger connected")
	}
	_ = near.Close()
	return nil, nil, err
}

// disconnect ends the session of a member whose credential was revoked. It
// does not wait: it runs after a commit, before the next, and the goodbye of
// TLS waits for a peer that does not read.
func (b *broker) disconnect(user string) {
	cl, ok := b.server.Clients.Get(memberID(user))
	if !ok {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return // run closes every connection
	}
	b.own.Go(func() { cl.Stop(packets.ErrNotAuthorized) })
}

// members is a listener for members. What one of them sends must not end the
// gateway: a panic in the library ends that connection only.
type members struct {
	*listeners.Net
	log *slog.Logger
}

// Serve implements listeners.Listener.
func (l *members) Serve(establish listeners.EstablishFn) {
	l.Net.Serve(func(id string, c net.Conn) (err error) {
		defer func() {
			if v := recover(); v != nil {
				_ = c.Close()
				l.log.Error("mqtt connection ended by a panic", "peer", c.RemoteAddr(), "panic", v, "stack", string(debug.Stack()))
				err = errPanic
			}
		}()
		return establish(id, c)
	})
}

var errPanic = errors.New("bridge: panic in the embedded broker")

// track registers a connection, so that it can be closed at the end. Members
// are limited, the gateway's own client is not.
func (b *broker) track(c net.Conn, own bool) (net.Conn, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || !own && len(b.conns) >= b.cfg.MaxClients {
		_ = c.Close()
		return nil, false
	}
	t := &tracked{Conn: c, b: b}
	b.conns[t] = struct{}{}
	// The server sets deadlines only after CONNECT.
	_ = c.SetDeadline(time.Now().Add(firstPacket))
	return t, true
}

// guarded limits and tracks the connections that a listener accepts.
type guarded struct {
	net.Listener
	b *broker
}

func (l *guarded) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil, err
		}
		if err != nil {
			// Out of descriptors, for instance: the server would take any
			// error for the end.
			l.b.log.Warn("accept mqtt connection", "err", err)
			time.Sleep(backoffMin)
			continue
		}
		if t, ok := l.b.track(c, false); ok {
			return t, nil
		}
	}
}

type tracked struct {
	net.Conn
	b *broker
}

func (t *tracked) Close() error {
	t.b.mu.Lock()
	delete(t.b.conns, t)
	t.b.mu.Unlock()
	return t.Conn.Close()
}

// memberID is the session of a member at the broker. The client identifier
// that a member sends is not used: with another's it could take over the
// session of another.
func memberID(user string) string { return "member/" + user }

// quietHandler passes the broker's log on at debug level, without the packets
// that it likes to print: a CONNECT holds a password.
type quietHandler struct{ slog.Handler }

func (h quietHandler) Enabled(ctx context.Context, _ slog.Level) bool {
	return h.Handler.Enabled(ctx, slog.LevelDebug)
}

func (h quietHandler) Handle(ctx context.Context, r slog.Record) error {
	out := slog.NewRecord(r.Time, slog.LevelDebug, "mqtt broker", r.PC)
	out.AddAttrs(slog.String("event", r.Message))
	r.Attrs(func(a slog.Attr) bool {
		if k := a.Value.Kind(); k != slog.KindAny || isError(a.Value.Any()) {
			out.AddAttrs(a)
		}
		return true
	})
	return h.Handler.Handle(ctx, out)
}

func (h quietHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return quietHandler{h.Handler.WithAttrs(attrs)}
}

func (h quietHandler) WithGroup(name string) slog.Handler {
	return quietHandler{h.Handler.WithGroup(name)}
}

func isError(v any) bool { _, ok := v.(error); return ok }

var _ mqtt.Hook = (*gate)(nil)

// provides is the set of hook methods that the gate has.
var provides = []byte{mqtt.OnConnect, mqtt.OnConnectAuthenticate, mqtt.OnACLCheck, mqtt.OnSessionEstablished, mqtt.OnPublish, mqtt.OnDisconnect}

// Provides implements mqtt.Hook.
func (g *gate) Provides(b byte) bool { return bytes.IndexByte(provides, b) >= 0 }
