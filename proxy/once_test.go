package proxy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/coaptest"
)

// between carries datagrams to a server and, unless deaf is set, back.
func between(t *testing.T, to netip.AddrPort) (at netip.AddrPort, deaf *atomic.Bool) {
	t.Helper()
	front, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	deaf = &atomic.Bool{}
	var work sync.WaitGroup
	var mu sync.Mutex
	legs := map[netip.AddrPort]*net.UDPConn{}
	back := func(leg *net.UDPConn, client netip.AddrPort) {
		b := make([]byte, maxMessage)
		for {
			n, err := leg.Read(b)
			if err != nil {
				return
			}
			if !deaf.Load() {
				_, _ = front.WriteToUDPAddrPort(b[:n], client)
			}
		}
	}
	work.Go(func() {
		b := make([]byte, maxMessage)
		for {
			n, client, err := front.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			mu.Lock()
			leg := legs[client]
			if leg == nil {
				if leg, err = dialUDP(to); err != nil {
					mu.Unlock()
					t.Error(err)
					return
				}
				legs[client] = leg
				work.Go(func() { back(leg, client) })
			}
			mu.Unlock()
			_, _ = leg.Write(b[:n])
		}
	})
	t.Cleanup(func() {
		_ = front.Close()
		mu.Lock()
		for _, leg := range legs {
			_ = leg.Close()
		}
		mu.Unlock()
		work.Wait()
	})
	return front.LocalAddr().(*net.UDPAddr).AddrPort(), deaf
}

// TestSentOnce: a POST reaches the upstream once at most, whatever is lost: when its
// answers are, it is not sent over a second session; when the session is, which a
// ping tells, it goes over a new one. A PUT may come twice.
func TestSentOnce(t *testing.T) {
	key := []byte("0123456789abcdef")
	keys := &psk{identity: "edge", key: key}
	o := serving(t, keys, func(context.Context, *coap.Request) (*coap.Response, error) {
		return &coap.Response{Code: coap.Changed}, nil
	})
	at, deaf := between(t, o.at)
	to := Target{Scheme: CoAPS, Host: at.Addr().String(), Port: at.Port()}
	rule := forwardTo(to)
	rule.Credential = &Credential{Identity: []byte("edge"), Key: func() []byte { return key }}
	rule.Timeout = patience
	s := house(t, Config{Rules: []Rule{rule}}, nil)
	l := s.client("a", coaptest.Options{})
	ask := func(code, want coap.Code, asked, shakes int64) {
		t.Helper()
		o.asked.Store(0)
		keys.shakes.Store(0)
		if r := do(t, l, proxied(code, to.String()+"/x", []byte("body"))); r.Code != want {
			t.Errorf("%v %q", r.Code, r.Payload)
		}
		eventually(t, "the upstream is asked", func() bool { return o.asked.Load() >= asked })
		if o.asked.Load() != asked || keys.shakes.Load() != shakes {
			t.Errorf("asked %d times, %d handshakes", o.asked.Load(), keys.shakes.Load())
		}
	}
	ask(coap.POST, coap.Changed, 1, 1)
	ask(coap.POST, coap.Changed, 1, 0)

	deaf.Store(true)
	s.p.rules[0].Timeout = time.Second
	ask(coap.POST, coap.GatewayTimeout, 1, 0)
	deaf.Store(false)
	s.p.rules[0].Timeout = patience
	ask(coap.POST, coap.Changed, 1, 1)

	quiet := func() {
		for _, u := range s.p.upstreams {
			u.link.(*datagrams).heard.Store(int64(-time.Hour))
		}
	}
	quiet()
	ask(coap.POST, coap.Changed, 1, 0) // the ping is answered
	o.stop()
	o.run(o.at.String())
	quiet()
	s.p.patience = 100 * time.Millisecond
	ask(coap.POST, coap.Changed, 1, 1)

	for code, want := range map[coap.Code]bool{coap.GET: false, coap.PUT: false, coap.POST: true, coap.PATCH: true, coap.FETCH: false, coap.IPATCH: false, coap.DELETE: false} {
		if once(code, nil) != want {
			t.Errorf("%v once: %v", code, !want)
		}
	}
	if once(coap.POST, coap.Options{{ID: coap.OSCOREOption}}) {
		t.Error("the replay window of OSCORE refuses a second one")
	}
}

// TestSlowSession: over a session or connection that was there already a server may take
// all of a request's time when it shows that it is there; when it does not, another takes
// its place after half of the time.
func TestSlowSession(t *testing.T) {
	for _, scheme := range []string{CoAPS, CoAPTCP} {
		synctest.Test(t, func(t *testing.T) {
			rule := Rule{Host: "192.0.2.9/32", Scheme: scheme, Port: 5684, Timeout: 28 * time.Second}
			silent := false
			s, up := bubble(t, rule, func(m *coap.Message, _ int) *coap.Message {
				switch m.Options.Path()[0] {
				case "slow":
					time.Sleep(25 * time.Second)
				case "silent":
					if silent = !silent; silent {
						return nil
					}
				}
				return message(coap.Content, "x", maxAge(0))
			})
			dials := 0
			s.p.dialer = func(context.Context, *Rule, Target, int) (link, error) { dials++; return up, nil }
			l := s.client("a", coaptest.Options{})
			ask := func(path string, dialled int, want time.Duration) {
				t.Helper()
				began := time.Now()
				r := do(t, l, proxied(coap.GET, scheme+"://192.0.2.9:5684/"+path, nil))
				if took := time.Since(began).Round(time.Second); r.Code != coap.Content || took != want || dials != dialled {
					t.Errorf("%s, %s: %v %q after %v, %d associations", scheme, path, r.Code, r.Payload, took, dials)
				}
			}
			ask("fast", 1, 0)
			ask("slow", 1, 25*time.Second)
			up.mu.Lock()
			up.deaf = true
			up.mu.Unlock()
			ask("silent", 2, 14*time.Second)
			l.Close()
			s.stop()
		})
	}
}

// TestSilentConnection: a TCP connection to a server that is gone without a word, as behind
// a NAT or after a power cut, costs half of a request's time; another takes its place.
func TestSilentConnection(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	var conns atomic.Int64
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = c.Close() })
			k := conns.Add(1)
			go func() {
				s := &stream{conn: c, gone: make(chan struct{}), byToken: map[string]*waiter{}}
				for n := 0; ; {
					m, err := readFrame(c)
					if err != nil {
						return
					}
					if m.Code.IsRequest() {
						n++
					}
					if !m.Code.IsRequest() || k == 1 && n > 1 {
						continue
					}
					if err := s.send(t.Context(), &coap.Message{Code: coap.Content, Token: m.Token, Payload: fmt.Append(nil, k)}); err != nil {
						return
					}
				}
			}()
		}
	}()
	at := Target{Scheme: CoAPTCP, Host: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).AddrPort().Port()}
	rule := forwardTo(at)
	rule.Timeout = 4 * time.Second
	client := house(t, Config{Rules: []Rule{rule}}, nil).client("a", coaptest.Options{})
	for i, want := range []string{"1", "2", "2"} {
		if r := do(t, client, proxied(coap.GET, fmt.Sprintf("%s/%d", at, i), nil)); r.Code != coap.Content || string(r.Payload) != want {
			t.Errorf("request %d: %v %q, want %s", i, r.Code, r.Payload, want)
		}
	}
}

// TestPingOverTCP: a Pong with the token answers (RFC 8323, Section 5.4), a response
// does not, and a Pong answers no request.
func TestPingOverTCP(t *testing.T) {
	here, there := net.Pipe()
	s := &stream{conn: here, gone: make(chan struct{}), byToken: map[string]*waiter{}, hook: func() bool { return true }}
	var work sync.WaitGroup
	work.Go(s.read)
	other := &stream{conn: there}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	work.Go(func() {
		for _, codes := range [][]coap.Code{{coap.Content, codePong}, {codePong, coap.Content}} {
			m, err := readFrame(there)
			for _, code := range codes {
				if err == nil {
					err = other.send(ctx, &coap.Message{Code: code, Token: m.Token})
				}
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	if err := s.ping(ctx, 0); err != nil {
		t.Error(err)
	}
	if m, err := s.Do(ctx, &coap.Message{Code: coap.GET}); err != nil || m.Code != coap.Content {
		t.Errorf("%+v, %v", m, err)
	}
	s.close()
	if err := s.ping(ctx, 0); err == nil {
		t.Error("a connection that ended answers")
	}
	_ = there.Close()
	work.Wait()
}
