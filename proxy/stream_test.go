package proxy

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/coaptest"
)

// tcpServer is one for coap+tcp: first is what it sends when a connection begins, answer
// what it sends for each message that came. It gives the largest message that came, with
// what is before the options.
func tcpServer(t *testing.T, first *coap.Message, answer func(*coap.Message) *coap.Message) (Target, func() int) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var conns []net.Conn
	largest := 0
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			wg.Go(func() {
				out := &stream{conn: c, gone: make(chan struct{}), most: maxFrame}
				if first != nil && out.send(context.Background(), first) != nil {
					return
				}
				for {
					m, err := readFrame(c)
					if err != nil {
						return
					}
					b, _ := (&coap.Message{Options: m.Options, Payload: m.Payload}).MarshalBinary()
					mu.Lock()
					largest = max(largest, len(b)-4+framing)
					mu.Unlock()
					if r := answer(m); r != nil {
						r.Token = m.Token
						if out.send(context.Background(), r) != nil {
							return
						}
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	at := netip.MustParseAddrPort(l.Addr().String())
	return Target{Scheme: CoAPTCP, Host: at.Addr().String(), Port: at.Port()}, func() int { mu.Lock(); defer mu.Unlock(); return largest }
}

// TestMaxMessageSize: blocks fit into the messages that the server takes; what does not,
// with its options alone, is not sent (RFC 8323, Section 5.3.1).
func TestMaxMessageSize(t *testing.T) {
	t.Parallel()
	const most = 200
	csm := &coap.Message{Code: codeCSM}
	csm.Options.SetUint(optMaxMessage, most)
	var mu sync.Mutex
	var body []byte
	to, largest := tcpServer(t, csm, func(m *coap.Message) *coap.Message {
		if !m.Code.IsRequest() {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		body = append(body, m.Payload...)
		r := &coap.Message{Code: coap.Changed}
		if b, err := m.Options.Block(coap.Block1); err == nil && b != nil {
			if b.More {
				r.Code = coap.Continue
			}
			r.Options.SetBlock(coap.Block1, *b)
		}
		return r
	})
	l := house(t, Config{Rules: []Rule{forwardTo(to)}}, nil).client("a", coaptest.Options{})
	want := bytes.Repeat([]byte("0123456789"), 100)
	if r := do(t, l, proxied(coap.PUT, to.String()+"/x", want)); r.Code != coap.Changed || !bytes.Equal(body, want) || largest() > most {
		t.Errorf("%v, %d bytes, in messages of up to %d", r.Code, len(body), largest())
	}
	before := len(body)
	r := do(t, l, proxied(coap.PUT, to.String()+"/"+strings.Repeat("x", most), nil))
	if r.Code != coap.BadGateway || !strings.Contains(string(r.Payload), errLarge.Error()) || len(body) != before || largest() > most {
		t.Errorf("%v %q", r.Code, r.Payload)
	}
}

// TestSignals: a critical option in a message of the connection ends it, for none is known
// (RFC 8323, Section 5.2); why a server aborts is for the log, not for the client.
func TestSignals(t *testing.T) {
	t.Parallel()
	critical := &coap.Message{Code: codeCSM}
	critical.Options.Add(1, []byte{1})
	for name, c := range map[string]struct {
		first, second *coap.Message
		log           string
	}{
		"critical": {critical, nil, ""},
		"abort":    {&coap.Message{Code: codeCSM}, &coap.Message{Code: codeAbort, Payload: []byte("going away")}, "going away"},
	} {
		aborted := make(chan struct{})
		once := sync.OnceFunc(func() { close(aborted) })
		to, _ := tcpServer(t, c.first, func(m *coap.Message) *coap.Message {
			switch {
			case m.Code == codeAbort:
				once()
			case m.Code.IsRequest():
				return c.second
			}
			return nil
		})
		s := house(t, Config{Rules: []Rule{forwardTo(to)}}, nil)
		req := proxied(coap.POST, to.String()+"/x", nil)
		req.Peer = coap.Peer{Via: coap.Internal}
		_, err := s.p.ServeCoAP(t.Context(), req)
		r := coap.ErrorResponse(err)
		if r.Code != coap.BadGateway || !strings.HasSuffix(string(r.Payload), errEnded.Error()) || !errors.Is(err, errEnded) || !strings.Contains(err.Error(), c.log) {
			t.Errorf("%s: %v %q: %v", name, r.Code, r.Payload, err)
		}
		if c.second == nil {
			<-aborted
		}
	}
}
