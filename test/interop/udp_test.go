//go:build interop

package interop

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/serve"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/oscore"
)

// The Security Context of RFC 8613, Appendix C.1; the server has the empty
// Recipient ID.
var (
	masterSecret = []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	masterSalt   = []byte{0x9e, 0x7c, 0xa9, 0x22, 0x23, 0x78, 0x63, 0x40}
	clientID     = []byte{}
	serverID     = []byte{1}
)

func newContext(t *testing.T, sender, recipient []byte) *oscore.Context {
	t.Helper()
	c, err := oscore.New(oscore.Params{
		MasterSecret: cose.NewSecret(masterSecret), MasterSalt: masterSalt, SenderID: sender, RecipientID: recipient,
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// client asks one server over UDP, under a Security Context. It does no more of
// RFC 7252 than loopback needs.
type client struct {
	t    *testing.T
	conn net.Conn
	ctx  *oscore.Context
	mid  uint16
	// echoed counts requests that were sent again with Echo.
	echoed int
}

func newClient(t *testing.T, addr string) *client {
	t.Helper()
	return newClientIn(t, addr, newContext(t, clientID, serverID))
}

func newClientIn(t *testing.T, addr string, ctx *oscore.Context) *client {
	t.Helper()
	conn, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &client{t: t, conn: conn, ctx: ctx}
}

// send protects a request and sends it confirmably.
func (c *client) send(ctx context.Context, m *coap.Message) (*oscore.Exchange, []byte, error) {
	out, ex, err := c.ctx.ProtectRequest(ctx, nil, m)
	if err != nil {
		return nil, nil, err
	}
	c.mid++
	token := make([]byte, 4)
	rand.Read(token)
	out.Type, out.ID, out.Token = coap.Confirmable, c.mid, token
	b, err := out.MarshalBinary()
	if err != nil {
		return nil, nil, err
	}
	_, err = c.conn.Write(b)
	return &ex, token, err
}

// next is the next response to the exchange; what comes for others is dropped.
func (c *client) next(ex *oscore.Exchange, token []byte) (*coap.Message, error) {
	if err := c.conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return nil, err
	}
	for {
		b := make([]byte, 2048)
		n, err := c.conn.Read(b)
		if err != nil {
			return nil, err
		}
		m, err := coap.DecodeMessage(b[:n])
		if err != nil {
			return nil, err
		}
		if m.Type == coap.Confirmable {
			ack, _ := (&coap.Message{Type: coap.Acknowledgement, ID: m.ID}).MarshalBinary()
			if _, err := c.conn.Write(ack); err != nil {
				return nil, err
			}
		}
		if m.Code.IsResponse() && bytes.Equal(m.Token, token) {
			return c.ctx.UnprotectResponse(nil, ex, m)
		}
	}
}

// Do is one request and its response: what blockwise transfer is made of. A server
// that wants proof of freshness gets it.
func (c *client) Do(ctx context.Context, m *coap.Message) (*coap.Message, error) {
	for {
		ex, token, err := c.send(ctx, m)
		if err != nil {
			return nil, err
		}
		r, err := c.next(ex, token)
		if err != nil {
			return nil, err
		}
		echo, ok := r.Options.Get(coap.Echo)
		if r.Code != coap.Unauthorized || !ok || m.Options.Has(coap.Echo) {
			return r, nil
		}
		m = m.Clone()
		m.Options.Set(coap.Echo, echo)
		c.echoed++
	}
}

func (c *client) ask(code coap.Code, path string, payload []byte) *coap.Response {
	c.t.Helper()
	req := &coap.Request{Code: code, Payload: payload}
	req.Options.SetPath(path)
	r, err := serve.RoundTrip(c.t.Context(), c, req, 256, 1<<16)
	if err != nil {
		c.t.Fatalf("%s %s: %v", code, path, err)
	}
	return r
}

// startServer serves h under a Security Context until the test is over. It returns
// the address.
func startServer(t *testing.T, h coap.Handler) string {
	t.Helper()
	return startServerIn(t, newContext(t, serverID, clientID), h).conn.LocalAddr().String()
}

func startServerIn(t *testing.T, ctx *oscore.Context, h coap.Handler) *server {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, conn: conn, ctx: ctx, exchanges: map[string]oscore.Exchange{}}
	s.core = serve.New(h, serve.Config{BlockSize: 512})
	var work sync.WaitGroup
	work.Go(func() { s.listen(&work) })
	t.Cleanup(func() {
		_ = conn.Close()
		work.Wait()
	})
	return s
}

type server struct {
	t    *testing.T
	conn *net.UDPConn
	ctx  *oscore.Context
	core *serve.Server

	mu        sync.Mutex
	mid       uint16
	exchanges map[string]oscore.Exchange // of observations, by token
	challenge int                        // requests that had to prove their freshness
}

func (s *server) listen(work *sync.WaitGroup) {
	for {
		b := make([]byte, 2048)
		n, from, err := s.conn.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.t.Errorf("read: %v", err)
			return
		}
		m, err := coap.DecodeMessage(b[:n])
		if err != nil {
			s.t.Errorf("a datagram of the peer: %v", err)
			continue
		}
		if m.Code.IsRequest() {
			work.Go(func() { s.answer(&link{s, net.UDPAddrFromAddrPort(from)}, m) })
		}
	}
}

// answer is the OSCORE of one request; its response rides on the acknowledgement.
func (s *server) answer(l *link, m *coap.Message) {
	inner, ex, err := s.ctx.UnprotectRequest(nil, m)
	var out *coap.Message
	if err != nil {
		if errors.Is(err, oscore.ErrNotFresh) {
			s.mu.Lock()
			s.challenge++
			s.mu.Unlock()
		}
		out, err = s.ctx.Refuse(s.t.Context(), nil, ex, err)
	} else {
		s.mu.Lock()
		if ex.Observes() {
			s.exchanges[string(m.Token)] = ex
		}
		s.mu.Unlock()
		inner.Token = m.Token
		if reply := s.core.Handle(s.t.Context(), l, inner); reply != nil {
			out, err = s.ctx.ProtectResponse(s.t.Context(), nil, ex, reply)
		}
	}
	if err != nil {
		s.t.Errorf("response: %v", err)
		return
	}
	if out == nil {
		out = &coap.Message{}
	}
	out.Type, out.ID, out.Token = coap.Acknowledgement, m.ID, m.Token
	if out.Code == coap.Empty {
		out.Token = nil
	}
	l.write(out)
}

// link is the port for notifications.
type link struct {
	s    *server
	addr *net.UDPAddr
}

func (l *link) Peer() coap.Peer {
	return coap.Peer{Link: coap.LinkID(l.addr.String()), Addr: l.addr.AddrPort(), Via: coap.OSCORE,
		Subject: coap.Subject{Kind: coap.SubjectOSCORE, ID: "C.1"}}
}

func (l *link) Send(m *coap.Message, done func(error)) {
	l.s.mu.Lock()
	ex, ok := l.s.exchanges[string(m.Token)]
	l.s.mid++
	id := l.s.mid
	l.s.mu.Unlock()
	if !ok {
		done(fmt.Errorf("no exchange of token %x", m.Token))
		return
	}
	out, err := l.s.ctx.ProtectResponse(l.s.t.Context(), nil, ex, m)
	if err == nil {
		out.Type, out.ID, out.Token = coap.NonConfirmable, id, m.Token
		l.write(out)
	}
	done(err)
}

func (l *link) write(m *coap.Message) {
	b, err := m.MarshalBinary()
	if err != nil {
		l.s.t.Errorf("write: %v", err)
		return
	}
	if _, err := l.s.conn.WriteToUDP(b, l.addr); err != nil && !errors.Is(err, net.ErrClosed) {
		l.s.t.Errorf("write: %v", err)
	}
}
