package plugin

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/pool"
	"github.com/plgd-dev/go-coap/v3/mux"

	"github.com/seed4911071e/groupgate/ace"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/node"
)

// Spec constants.
const (
	// maxTransmitWait is MAX_TRANSMIT_WAIT of RFC 7252, Section 4.8.2, for the
	// default transmission parameters: after that long no acknowledgement is
	// expected any more.
	maxTransmitWait = 93 * time.Second
)

// Implementation constants.
const (
	// resetGrace is how long a confirmation waits for a Reset that may follow
	// it. go-coap reports a Reset to the writer as if it were an
	// acknowledgement; the Reset itself reaches the handler a moment later.
	// Only hosts without [Gateway.Monitor] need the wait.
	resetGrace = 250 * time.Millisecond
	// keptIDs bounds the message IDs remembered per link, of either kind.
	keptIDs = 8
)

// hostLink is a [coap.Link] over a connection of a host's go-coap server.
type hostLink struct {
	conn      mux.Conn
	id        coap.LinkID
	via       coap.Security
	subject   coap.Subject
	blockwise bool // the host's go-coap does blockwise transfer
	exporter  func(label string, context []byte, n int) ([]byte, error)

	monitored atomic.Bool // the host passes incoming messages to Gateway.Monitor

	cancel  func(id coap.LinkID, token []byte) // a Reset answered a NON notification
	awaited *awaited

	mu     sync.Mutex
	resets []int32                  // message IDs of CONs that the peer rejected; guarded by mu
	nons   []sentToken              // the last NONs sent; guarded by mu
	holds  map[string]chan struct{} // by token; guarded by mu
}

// sentToken remembers whose notification a message ID was.
type sentToken struct {
	mid   int32
	token []byte
}

var _ coap.Link = (*hostLink)(nil)
var _ coap.Requester = (*hostLink)(nil)

// dtlsConn is what this package needs of a pion connection; a host may wrap it.
type dtlsConn interface {
	ConnectionState() (dtls.State, bool)
}

// newHostLink names the link over conn; secure tells who is at its other end.
func newHostLink(conn mux.Conn, blockwise bool, cancel func(coap.LinkID, []byte), a *awaited) *hostLink {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails (crypto/rand)
	return &hostLink{conn: conn, id: coap.LinkID(hex.EncodeToString(id[:])), blockwise: blockwise, cancel: cancel, awaited: a}
}

// state returns the DTLS state of the connection, false for plain transports.
func (l *hostLink) state() (*dtls.State, bool) {
	nc, ok := l.conn.NetConn().(dtlsConn)
	if !ok {
		return nil, false
	}
	st, ok := nc.ConnectionState()
	if !ok {
		return nil, false
	}
	return &st, true
}

// secure fills in what the handshake proved. pskSubject resolves a PSK
// identity; it may commit a token that the identity carried.
func (l *hostLink) secure(pskSubject func(identity []byte, exporter func(string, []byte, int) ([]byte, error)) (coap.Subject, error)) error {
	st, ok := l.state()
	if !ok {
		l.via = coap.Plain
		return nil
	}
	l.exporter = func(label string, ctx []byte, n int) ([]byte, error) {
		if ctx == nil {
			return st.ExportKeyingMaterial(label, nil, n)
		}
		if len(ctx) != 0 {
			return nil, errors.New("plugin: exporter contexts other than the empty one are not supported")
		}
		return node.ExportEmptyContext(st, label, n)
	}
	if len(st.PeerCertificates) > 0 {
		subject, err := certificateSubject(st.PeerCertificates[0])
		l.via, l.subject = coap.DTLSCert, subject
		return err
	}
	l.via = coap.DTLSPSK
	subject, err := pskSubject(st.IdentityHint, l.exporter)
	if err != nil {
		return err
	}
	l.subject = subject
	return nil
}

// certificateSubject is who a certificate is of: its key.
func certificateSubject(der []byte) (coap.Subject, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return coap.Subject{}, fmt.Errorf("plugin: peer certificate: %w", err)
	}
	return ace.KeySubject(cert.RawSubjectPublicKeyInfo), nil
}

// Peer describes the other end. The address is read anew: a connection ID lets
// it change.
func (l *hostLink) Peer() coap.Peer {
	return coap.Peer{Link: l.id, Addr: addrPort(l.conn.RemoteAddr()), Via: l.via, Subject: l.subject, Exporter: l.exporter}
}

func (l *hostLink) owner() coap.Subject { return l.subject }
func (l *hostLink) survived() bool      { return false }       // a host keeps none
func (l *hostLink) end()                { _ = l.conn.Close() } // gone already is as good

// OwnsBlockwise says whether the host slices and assembles bodies itself.
func (l *hostLink) OwnsBlockwise() bool { return l.blockwise }

// Send hands m to go-coap. A confirmable message costs a goroutine until it is
// acknowledged: go-coap's WriteMessage blocks that long.
func (l *hostLink) Send(m *coap.Message, done func(error)) {
	if m.Type != coap.Confirmable && l.held(m.Token) == nil {
		done(l.write(m))
		return
	}
	go func() { done(l.write(m)) }()
}

// hold keeps back what is sent with token until release is called: neither a
// notification (docs/protocol.md, Section 4: the first response is the full map) nor a
// further response of a group must overtake the answer to its request, which
// go-coap writes after the handler returned.
func (l *hostLink) hold(token []byte) (release func()) {
	ch := make(chan struct{})
	l.mu.Lock()
	if l.holds == nil {
		l.holds = map[string]chan struct{}{}
	}
	l.holds[string(token)] = ch
	l.mu.Unlock()
	return sync.OnceFunc(func() {
		l.mu.Lock()
		if l.holds[string(token)] == ch {
			delete(l.holds, string(token))
		}
		l.mu.Unlock()
		close(ch)
	})
}

// held returns what ends the hold on a token, nil when there is none.
func (l *hostLink) held(token []byte) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ch, ok := l.holds[string(token)]; ok {
		return ch
	}
	return nil
}

func (l *hostLink) write(m *coap.Message) error {
	if ch := l.held(m.Token); ch != nil {
		select {
		case <-ch:
		case <-l.conn.Done():
			return coap.ErrGone
		}
	}
	// go-coap does not tell the writer when it gives up retransmitting: the
	// deadline does.
	ctx, cancel := context.WithTimeout(l.conn.Context(), maxTransmitWait)
	defer cancel()
	out := l.conn.AcquireMessage(ctx)
	defer l.conn.ReleaseMessage(out)
	fill(out, m)
	out.SetToken(m.Token)
	out.SetType(message.Type(m.Type))
	mid := l.nextID()
	out.SetMessageID(mid)
	if m.Type == coap.Confirmable {
		defer l.awaited.begin()()
	}
	if m.Type == coap.NonConfirmable {
		l.mu.Lock()
		l.nons = lastOf(append(l.nons, sentToken{mid, bytes.Clone(m.Token)}))
		l.mu.Unlock()
	}
	err := l.conn.WriteMessage(out)
	switch {
	case err == nil && m.Type == coap.Confirmable:
		return l.acknowledged(mid)
	case err == nil:
		return nil
	case l.conn.Context().Err() != nil:
		return coap.ErrGone
	case errors.Is(err, context.DeadlineExceeded):
		return coap.ErrTimeout
	}
	return fmt.Errorf("%w: %w", coap.ErrGone, err)
}

// nextID returns the message ID that the next message will have. go-coap's
// blockwise transfer throws ours away and takes the next of the connection's
// counter. Should another message of this connection come between, a Reset is
// not recognised, and the next notification is rejected again.
func (l *hostLink) nextID() int32 {
	c, ok := l.conn.(interface{ GetMessageID() int32 })
	if !ok {
		return message.GetMID()
	}
	mid := c.GetMessageID()
	if l.blockwise {
		mid = int32(uint16(mid + 1))
	}
	return mid
}

// acknowledged tells an acknowledgement of mid from a Reset.
func (l *hostLink) acknowledged(mid int32) error {
	if !l.monitored.Load() {
		select {
		case <-time.After(resetGrace):
		case <-l.conn.Done():
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.resets, mid); i >= 0 {
		l.resets = append(l.resets[:i], l.resets[i+1:]...)
		return coap.ErrReset
	}
	return nil
}

// reset notes that the peer rejected the message with this ID. It may be told
// twice, by the monitor and by the handler.
func (l *hostLink) reset(mid int32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, n := range l.nons {
		if n.mid == mid {
			l.nons = append(l.nons[:i], l.nons[i+1:]...)
			go l.cancel(l.id, n.token) // not under the lock, nor in go-coap's reader
			return
		}
	}
	if !slices.Contains(l.resets, mid) {
		l.resets = lastOf(append(l.resets, mid))
	}
}

// lastOf keeps the newest keptIDs entries.
func lastOf[T any](s []T) []T {
	if len(s) > keptIDs {
		return append(s[:0], s[len(s)-keptIDs:]...)
	}
	return s
}

// Do sends a request to the peer and waits for its response.
func (l *hostLink) Do(ctx context.Context, m *coap.Message) (*coap.Message, error) {
	ctx, cancel := context.WithTimeout(ctx, maxTransmitWait)
	defer cancel()
	req := l.conn.AcquireMessage(ctx)
	defer l.conn.ReleaseMessage(req)
	fill(req, m)
	token := m.Token
	if len(token) == 0 {
		t, err := message.GetToken()
		if err != nil {
			return nil, fmt.Errorf("plugin: token: %w", err)
		}
		token = t
	}
	req.SetToken(token)
	req.SetType(message.Confirmable)
	defer l.awaited.begin()()
	resp, err := l.conn.Do(req)
	if err != nil {
		return nil, fmt.Errorf("plugin: request to the peer: %w", err)
	}
	defer l.conn.ReleaseMessage(resp)
	return fromPool(resp)
}

// addrPort reads the address of either kind of net.Addr that hosts have.
func addrPort(a net.Addr) netip.AddrPort {
	switch a := a.(type) {
	case *net.UDPAddr:
		ap := a.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	case *net.TCPAddr:
		ap := a.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	case nil:
		return netip.AddrPort{}
	}
	ap, _ := netip.ParseAddrPort(a.String())
	return ap
}

// isReset reports whether a message that reached the handler is a Reset.
func isReset(r *pool.Message) bool { return r.Type() == message.Reset }
