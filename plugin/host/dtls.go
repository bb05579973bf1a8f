package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/logging"
	coapnet "github.com/plgd-dev/go-coap/v3/net"

	"github.com/seed4911071e/groupgate/plugin"
)

// Implementation constants.
const (
	// handshakeTimeout bounds a half-open handshake: a client with a wrong key
	// meets silence, and its state must not live longer than an honest
	// handshake takes on a slow link.
	handshakeTimeout = 5 * time.Second
	// cidLength is the length of the connection IDs we choose (RFC 9146).
	cidLength = 8
)

var (
	errTooManyHandshakes = errors.New("too many handshakes under way")
	errTooManySessions   = errors.New("too many associations")
)

// admission bounds half-open handshakes and established associations.
type admission struct {
	handshakes, sessions       atomic.Int64
	maxHandshakes, maxSessions int64
}

func newAdmission(handshakes, sessions int) *admission {
	return &admission{maxHandshakes: int64(handshakes), maxSessions: int64(sessions)}
}

// attempt is asked before any state is kept for a new peer.
func (a *admission) attempt(net.Addr) error {
	switch {
	case a.handshakes.Load() >= a.maxHandshakes:
		return errTooManyHandshakes
	case a.sessions.Load() >= a.maxSessions:
		return errTooManySessions
	}
	return nil
}

// listenDTLS opens the CoAPS socket. PSK with 8-byte tags first, then its kin
// (RFC 9202, Section 3.3; RFC 7252, Section 9.1.3.1), cookies before state,
// extended master secret, connection IDs for peers behind NAT.
func listenDTLS(addr string, gg *plugin.Gateway, a *admission, log *slog.Logger) (net.Listener, error) {
	ua, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return nil, err
	}
	return dtls.ListenWithOptions("udp", ua,
		dtls.WithPSK(gg.PSK(nil)),
		dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_CCM_8, dtls.TLS_PSK_WITH_AES_128_CCM, dtls.TLS_PSK_WITH_AES_128_GCM_SHA256),
		dtls.WithExtendedMasterSecret(dtls.RequestExtendedMasterSecret),
		dtls.WithConnectionIDGenerator(dtls.RandomCIDGenerator(cidLength)),
		dtls.WithOnConnectionAttempt(a.attempt),
		dtls.WithLoggerFactory(slogFactory{log.With("part", "dtls")}),
	)
}

// dtlsListener adapts pion's listener to go-coap and counts what it admits.
type dtlsListener struct {
	listener  net.Listener
	admission *admission
}

// AcceptWithContext waits for the next peer; its handshake is still to come.
//
// go-coap tries again after any error but those that say that all is over.
func (l *dtlsListener) AcceptWithContext(ctx context.Context) (net.Conn, error) {
	c, err := l.listener.Accept()
	switch {
	case ctx.Err() != nil:
		if c != nil {
			_ = c.Close()
		}
		return nil, ctx.Err()
	case errors.Is(err, net.ErrClosed):
		return nil, coapnet.ErrListenerIsClosed
	case err != nil:
		return nil, err
	}
	conn, ok := c.(*dtls.Conn)
	if !ok {
		return nil, fmt.Errorf("host: listener gave a %T", c)
	}
	l.admission.handshakes.Add(1)
	return &dtlsConn{Conn: conn, admission: l.admission}, nil
}

func (l *dtlsListener) Close() error { return l.listener.Close() }

// dtlsConn is one association, counted from its first datagram to its end.
type dtlsConn struct {
	*dtls.Conn
	admission *admission
	shook     sync.Once
	open      atomic.Bool
}

// HandshakeContext completes the handshake within handshakeTimeout.
func (c *dtlsConn) HandshakeContext(ctx context.Context) error {
	defer c.shook.Do(func() { c.admission.handshakes.Add(-1) })
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if err := c.Conn.HandshakeContext(ctx); err != nil {
		return err
	}
	c.admission.sessions.Add(1)
	c.open.Store(true)
	return nil
}

// Close ends the association.
func (c *dtlsConn) Close() error {
	c.shook.Do(func() { c.admission.handshakes.Add(-1) })
	if c.open.CompareAndSwap(true, false) {
		c.admission.sessions.Add(-1)
	}
	return c.Conn.Close()
}

// slogFactory gives pion a logger: what a peer does wrong is debug to us.
type slogFactory struct{ log *slog.Logger }

// NewLogger returns a logger for one scope of pion.
func (f slogFactory) NewLogger(scope string) logging.LeveledLogger {
	return slogLogger{f.log.With("scope", scope)}
}

type slogLogger struct{ log *slog.Logger }

func (l slogLogger) Trace(string)          {}
func (l slogLogger) Tracef(string, ...any) {}
func (l slogLogger) Debug(string)          {}
func (l slogLogger) Debugf(string, ...any) {}
func (l slogLogger) Info(string)           {}
func (l slogLogger) Infof(string, ...any)  {}
func (l slogLogger) Warn(msg string)       { l.log.Debug("dtls", "detail", msg) }
func (l slogLogger) Warnf(format string, args ...any) {
	l.log.Debug("dtls", "detail", fmt.Sprintf(format, args...))
}
func (l slogLogger) Error(msg string) { l.log.Debug("dtls", "detail", msg) }
func (l slogLogger) Errorf(format string, args ...any) {
	l.log.Debug("dtls", "detail", fmt.Sprintf(format, args...))
}
