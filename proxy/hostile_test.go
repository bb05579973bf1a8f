package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/dtls/v3"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/coaptest"
	"github.com/seed4911071e/groupgate/test/ports"
)

// plainRequest is what an address on plain UDP sends.
func plainRequest(addr, uri string) *coap.Request {
	r := proxied(coap.GET, uri, nil)
	r.Peer = coap.Peer{Link: coap.LinkID(addr), Via: coap.Plain, Addr: netip.MustParseAddrPort(addr)}
	return r
}

// ask hands a request to the proxy.
func (s *site) ask(req *coap.Request) *coap.Response {
	r, err := s.p.ServeCoAP(s.t.Context(), req)
	if err != nil {
		return coap.ErrorResponse(err)
	}
	return r
}

// TestPlain: an address on plain UDP shows that it receives before anything is
// forwarded for it, gets no amplification without showing it again, and has a
// rate (RFC 9175, Section 2.4; docs/protocol.md, Section 8).
func TestPlain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		big := strings.Repeat("x", proofCredit/4)
		s, up := bubble(t, Rule{OpenToUDP: true}, func(m *coap.Message, _ int) *coap.Message {
			if slices.Contains(m.Options.Path(), "big") {
				return message(coap.Content, big)
			}
			return message(coap.Content, "x")
		})
		const a, b = "198.51.100.1:7000", "198.51.100.2:7000"
		r := s.ask(plainRequest(a, there+"/a"))
		echo, ok := r.Options.Get(coap.Echo)
		if r.Code != coap.Unauthorized || !ok || len(r.Payload) != 0 || up.count() != 0 {
			t.Fatalf("%v %+v after %d requests", r.Code, r.Options, up.count())
		}
		if size, asked := sizeOf(r.Options, nil), sizeOf(plainRequest(a, there+"/a").Options, nil); size > amplification*asked {
			t.Errorf("a challenge of %d bytes to a request of %d", size, asked)
		}
		with := func(addr, uri string, v []byte) *coap.Response {
			req := plainRequest(addr, uri)
			req.Options.Add(coap.Echo, v)
			return s.ask(req)
		}
		if r := with(b, there+"/a", echo); r.Code != coap.Unauthorized || up.count() != 0 {
			t.Errorf("an Echo of another address: %v", r.Code)
		}
		if r := with(a, there+"/a", []byte("0123456789abcdef")); r.Code != coap.Unauthorized || up.count() != 0 {
			t.Errorf("a forged Echo: %v", r.Code)
		}
		if r := with(a, there+"/a", echo); r.Code != coap.Content || up.count() != 1 || up.newest().Options.Has(coap.Echo) {
			t.Errorf("%v after %d requests", r.Code, up.count())
		}
		if r := s.ask(plainRequest(a, there+"/a")); r.Code != coap.Content {
			t.Errorf("proven: %v", r.Code)
		}
		time.Sleep(2 * time.Second)
		var last *coap.Response
		for range 5 {
			last = s.ask(plainRequest(a, there+"/big"))
		}
		if r := last; r.Code != coap.Unauthorized {
			t.Errorf("more than the credit without Echo: %v", r.Code)
		} else if v, _ := r.Options.Get(coap.Echo); string(with(a, there+"/big", v).Payload) != big {
			t.Error("nor with it")
		}
		time.Sleep(2 * time.Second)
		if r := with(a, there+"/a", append([]byte(nil), echo...)); r.Code != coap.Content {
			t.Errorf("an Echo again within its time: %v", r.Code)
		}
		time.Sleep(echoFor + provenFor)
		if r := with(a, there+"/a", echo); r.Code != coap.Unauthorized {
			t.Errorf("an old Echo: %v", r.Code)
		}
		// The rate of an address, whatever its port.
		limited := 0
		for i := range 50 {
			if s.ask(plainRequest(fmt.Sprintf("198.51.100.3:%d", 1000+i), there+"/a")).Code == coap.TooManyRequests {
				limited++
			}
		}
		if limited != 40 { // twice the rate at once
			t.Errorf("%d of 50 were limited", limited)
		}
		s.stop()
	})
	synctest.Test(t, func(t *testing.T) {
		s, up := bubble(t, Rule{}, func(*coap.Message, int) *coap.Message { return message(coap.Content, "x") })
		for _, uri := range []string{there, "coap://elsewhere.example/", "coap://127.0.0.1:1/"} {
			if r := s.ask(plainRequest("198.51.100.1:7000", uri)); r.Code != coap.Unauthorized || r.Options.Has(coap.Echo) || up.count() != 0 {
				t.Errorf("%s, which is not open: %v", uri, r.Code)
			}
		}
		s.stop()
	})
}

// TestNoWayBack: no request reaches the machine of the gateway, and none its own
// sockets, whatever a rule or a name server says.
func TestNoWayBack(t *testing.T) {
	admin := Listener{TCP: true, Addr: netip.MustParseAddrPort("127.0.0.1:8080")}
	answers := map[string][]string{
		"rebound.example.com": {"127.0.0.1"}, "six.example.com": {"::1"}, "mapped.example.com": {"::ffff:127.0.0.1"},
		"any.example.com": {"0.0.0.0"}, "link.example.com": {"169.254.169.254"}, "link6.example.com": {"fe80::1"},
		"group.example.com": {"224.0.1.187"}, "broadcast.example.com": {"255.255.255.255"}, "good.example.com": {"127.0.0.1", "192.0.2.77"},
		"pinned.example.org": {"192.0.2.5"}, "unpinned.example.org": {"192.0.2.6"},
	}
	s := house(t, Config{}, func(d *Deps) {
		d.Listeners = func() []Listener {
			return []Listener{admin, {Scheme: CoAP, Addr: netip.MustParseAddrPort("0.0.0.0:5683")}}
		}
		d.Resolve = func(_ context.Context, host string) ([]netip.Addr, error) {
			var out []netip.Addr
			for _, a := range answers[host] {
				out = append(out, netip.MustParseAddr(a))
			}
			return out, nil
		}
	})
	wild := Rule{Host: "*.example.com", Scheme: CoAP, Port: 5683}.withDefaults()
	pinned := Rule{Host: "*.example.org", Scheme: CoAP, Port: 5683, Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.5/32")}}.withDefaults()
	loop := Rule{Host: "127.0.0.0/8", Scheme: CoAPTCP, Port: 8080}.withDefaults()
	for _, c := range []struct {
		rule *Rule
		host string
		want string
	}{
		{&wild, "rebound.example.com", ""}, {&wild, "six.example.com", ""}, {&wild, "mapped.example.com", ""}, {&wild, "any.example.com", ""},
		{&wild, "link.example.com", ""}, {&wild, "link6.example.com", ""}, {&wild, "group.example.com", ""}, {&wild, "broadcast.example.com", ""},
		{&wild, "good.example.com", "192.0.2.77:7001"}, {&wild, "absent.example.com", ""},
		{&pinned, "pinned.example.org", "192.0.2.5:7001"}, {&pinned, "unpinned.example.org", ""},
		{&loop, "127.0.0.1", "127.0.0.1:7001"},
	} {
		at, err := s.p.find(t.Context(), c.rule, Target{Scheme: c.rule.Scheme, Host: c.host, Port: 7001}, 0)
		if got := at.String(); err == nil && got != c.want || err != nil && c.want != "" {
			t.Errorf("%s: %v, %v", c.host, at, err)
		}
	}
	// Who writes a wide network does not mean this machine, its link, or groups: those take
	// a network of their kind, and this machine's other addresses one of their own.
	s.p.own.Store(&ownAddrs{at: time.Now().Add(time.Hour), set: map[netip.Addr]bool{netip.MustParseAddr("192.0.2.50"): true}})
	for network, may := range map[string][]string{
		"0.0.0.0/0": {"192.0.2.77"}, "::/0": {"2001:db8::1"}, "192.0.2.0/24": {"192.0.2.77"}, "192.0.2.50/32": {"192.0.2.50"},
		"127.0.0.0/8": {"127.0.0.1"}, "169.254.0.0/16": {"169.254.169.254"}, "224.0.0.0/4": {"224.0.1.187"}, "ff00::/8": {"ff02::fd"}, "255.255.255.255/32": {"255.255.255.255"},
	} {
		literal := Rule{Host: network, Scheme: CoAP, Port: 7001}.withDefaults()
		named := Rule{Host: "x.example.com", Scheme: CoAP, Port: 7001, Addresses: []netip.Prefix{netip.MustParsePrefix(network)}}.withDefaults()
		for _, a := range []string{"192.0.2.77", "192.0.2.50", "127.0.0.1", "169.254.169.254", "224.0.1.187", "255.255.255.255", "0.0.0.0", "2001:db8::1", "::1", "fe80::1", "ff02::fd", "::"} {
			at := netip.MustParseAddr(a)
			if !netip.MustParsePrefix(network).Contains(at) {
				continue
			}
			want := slices.Contains(may, a)
			for _, r := range []*Rule{&literal, &named} {
				if err := s.p.permit(r, Target{Scheme: CoAP, Host: a, Port: 7001}, at); (err == nil) != want {
					t.Errorf("%s by %s: %v", a, network, err)
				}
			}
		}
	}
	for network, want := range map[string]string{"192.0.2.50/24": "192.0.2.255", "10.1.2.3/15": "10.1.255.255", "10.1.2.3/31": "10.1.2.3", "fd00::1/64": "fd00::1"} {
		if got := broadcast(netip.MustParsePrefix(network)); got.String() != want {
			t.Errorf("broadcast in %s: %v", network, got)
		}
	}
	s.p.own.Store(nil)
	// The rule names loopback and the port itself: still not.
	for _, host := range []string{"127.0.0.1", "127.0.0.2"} {
		_, err := s.p.find(t.Context(), &loop, Target{Scheme: CoAPTCP, Host: host, Port: 8080}, 0)
		if own := host == "127.0.0.1"; own != errors.Is(err, errPlace) {
			t.Errorf("%s: %v", host, err)
		}
	}
	if _, err := s.p.find(t.Context(), &wild, Target{Scheme: CoAP, Host: "rebound.example.com", Port: 5683}, 0); !errors.Is(err, errPlace) {
		t.Errorf("a name that leads to our own socket: %v", err)
	}
}

// TestLoop: a proxy that leads back here ends by Hop-Limit (RFC 8768).
func TestLoop(t *testing.T) {
	conns := [2]*origin{}
	var two [2]atomic.Pointer[site]
	for i := range conns {
		conns[i] = serving(t, nil, func(ctx context.Context, req *coap.Request) (*coap.Response, error) {
			own := req.Clone()
			own.Peer = coap.Peer{Via: coap.Internal}
			return two[i].Load().p.ServeCoAP(ctx, own)
		})
	}
	for i := range two {
		two[i].Store(house(t, Config{Name: fmt.Sprintf("edge%d", i), Rules: []Rule{{Prefix: []string{"x"}, Path: []string{"x"}, Upstream: conns[1-i].target()}}}, nil))
	}
	l := two[0].Load().client("a", coaptest.Options{})
	asked := int64(0)
	for _, req := range []*coap.Request{{Code: coap.GET}, {Code: coap.PUT, Payload: make([]byte, 3000)}, {Code: coap.POST, Payload: make([]byte, 3000)}, {Code: coap.FETCH, Payload: make([]byte, 3000)}} {
		req.Options.SetPath("x")
		r := do(t, l, req)
		n := conns[0].asked.Load() + conns[1].asked.Load() - asked
		asked += n
		if r.Code != coap.HopLimitReached || n > defaultHops+1 || strings.Count(string(r.Payload), "edge") < 3 {
			t.Errorf("%v: %v %q after %d requests", req.Code, r.Code, r.Payload, n)
		}
	}
}

// TestSilentUpstream: an upstream that never answers while very many ask: errors
// that say so, bounded memory, and others are served meanwhile.
func TestSilentUpstream(t *testing.T) {
	const clients = 10_000
	for _, same := range []bool{true, false} {
		t.Run(fmt.Sprintf("same=%v", same), func(t *testing.T) {
			silent, err := net.ListenPacket("udp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = silent.Close() }()
			o := serving(t, nil, echoing)
			dead := Target{Scheme: CoAP, Host: "127.0.0.1", Port: silent.LocalAddr().(*net.UDPAddr).AddrPort().Port()}
			slow := forwardTo(dead)
			slow.Timeout = 2 * time.Second
			s := house(t, Config{Rules: []Rule{slow, forwardTo(o.target())}}, nil)
			var before, during runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			var wg sync.WaitGroup
			var codes [256]atomic.Int64
			begun := make(chan struct{}, clients)
			for i := range clients {
				wg.Go(func() {
					uri := dead.String() + "/same"
					if !same {
						uri = fmt.Sprintf("%s/%d", dead, i)
					}
					req := proxied(coap.GET, uri, nil)
					req.Peer = coap.Peer{Link: coap.LinkID(fmt.Sprint(i)), Via: coap.DTLSPSK, Subject: coap.Subject{Kind: coap.SubjectPSK, ID: fmt.Sprint(i)}}
					begun <- struct{}{}
					codes[s.ask(req).Code].Add(1)
				})
			}
			for range clients {
				<-begun
			}
			eventually(t, "they wait, or were told", func() bool {
				var told int64
				for i := range codes {
					told += codes[i].Load()
				}
				return told+s.p.waiting.Load() >= clients
			})
			if n := s.p.waiting.Load(); n > maxWaiting {
				t.Errorf("%d wait", n)
			}
			runtime.ReadMemStats(&during)
			if grown := int64(during.HeapAlloc) - int64(before.HeapAlloc); grown > 64<<20 {
				t.Errorf("%d bytes more", grown)
			}
			l := s.client("other", coaptest.Options{})
			// Other traffic goes on: what needs no upstream, and, when there is room
			// among those who wait, what does.
			req := &coap.Request{Code: coap.GET}
			if r := do(t, l, req); r.Code != coap.Content {
				t.Errorf("local: %v", r.Code)
			}
			wg.Wait()
			timeouts, busy := codes[coap.GatewayTimeout].Load(), codes[coap.ServiceUnavailable].Load()
			if timeouts == 0 || timeouts+busy != clients {
				t.Errorf("%d times 5.04, %d times 5.03", timeouts, busy)
			}
			if r := do(t, l, proxied(coap.GET, o.target().String()+"/a", nil)); r.Code != coap.Content {
				t.Errorf("the other upstream: %v", r.Code)
			}
			eventually(t, "nobody waits", func() bool { return s.p.waiting.Load() == 0 && s.flights() == 0 })
		})
	}
}

// TestBreaker: who was silent for five requests is left alone, for longer each
// time, and asked again by one request at a time.
func TestBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, up := bubble(t, Rule{Timeout: time.Second}, func(*coap.Message, int) *coap.Message { return nil })
		l := s.client("a", coaptest.Options{})
		get := func() *coap.Response { return do(t, l, proxied(coap.GET, there+"/a", nil)) }
		for range breakAfter {
			if r := get(); r.Code != coap.GatewayTimeout || !strings.Contains(string(r.Payload), there) {
				t.Fatalf("%v %q", r.Code, r.Payload)
			}
		}
		asked := up.count()
		r := get()
		if left, ok := r.Options.Uint(coap.MaxAge); r.Code != coap.ServiceUnavailable || !ok || left == 0 || left > 3 || up.count() != asked {
			t.Errorf("%v, Max-Age %d", r.Code, left)
		}
		time.Sleep(breakMin)
		if r := get(); r.Code != coap.GatewayTimeout {
			t.Errorf("the one that tries: %v", r.Code)
		}
		time.Sleep(breakMin)
		if r := get(); r.Code != coap.ServiceUnavailable {
			t.Errorf("twice as long: %v", r.Code)
		}
		up.answers(func(*coap.Message, int) *coap.Message { return message(coap.Content, "x", maxAge(0)) })
		time.Sleep(breakMin + time.Second)
		for range 3 {
			if r := get(); r.Code != coap.Content {
				t.Errorf("it is back: %v", r.Code)
			}
		}
		l.Close()
		s.stop()
	})
}

// TestSlowUpstream: an upstream that drips one block after the other, each in time,
// has the time of one request for all of them.
func TestSlowUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, up := bubble(t, Rule{Timeout: 10 * time.Second}, func(m *coap.Message, _ int) *coap.Message {
			time.Sleep(3 * time.Second)
			b, _ := m.Options.Block(coap.Block2)
			next := coap.Block{More: true}
			if b != nil {
				next.Num = b.Num
			}
			r := message(coap.Content, "0123456789abcdef")
			r.Options.SetBlock(coap.Block2, next)
			return r
		})
		began := time.Now()
		req := proxied(coap.GET, there+"/a", nil)
		req.Peer = coap.Peer{Link: "a", Via: coap.DTLSPSK}
		r := s.ask(req)
		// 10 s, and what the upstream needs to notice.
		if took := time.Since(began); r.Code != coap.GatewayTimeout || took > 13*time.Second || up.count() > 4 {
			t.Errorf("%v after %v and %d requests", r.Code, took, up.count())
		}
		s.stop()
	})
}

// liar is a socket whose answers a test makes by hand.
func liar(t *testing.T, answer func(m *coap.Message) []*coap.Message) Target {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			m, err := coap.DecodeMessage(buf[:n])
			if err != nil || !m.Code.IsRequest() {
				continue
			}
			for _, r := range answer(m.Clone()) {
				if b, err := r.MarshalBinary(); err == nil {
					_, _ = conn.WriteToUDPAddrPort(b, from)
				}
			}
		}
	}()
	at := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	return Target{Scheme: CoAP, Host: "127.0.0.1", Port: at.Port()}
}

// TestLyingUpstream: answers that are none, and attempts to poison the cache.
func TestLyingUpstream(t *testing.T) {
	ack := func(m *coap.Message, code coap.Code, body string, opts ...coap.Option) *coap.Message {
		r := message(code, body, opts...)
		r.Type, r.ID, r.Token = coap.Acknowledgement, m.ID, m.Token
		return r
	}
	block := func(num uint32, more bool) coap.Option {
		var o coap.Options
		o.SetBlock(coap.Block2, coap.Block{Num: num, More: more, SZX: 0})
		return o[0]
	}
	body := strings.Repeat("x", 16)
	for _, c := range []struct {
		name   string
		answer func(m *coap.Message) []*coap.Message
		code   coap.Code
		body   string
	}{
		{"another token", func(m *coap.Message) []*coap.Message {
			bad := ack(m, coap.Content, "poison")
			bad.Token = []byte("12345678")
			return []*coap.Message{bad, ack(m, coap.Content, "good")}
		}, coap.Content, "good"},
		{"another message identifier", func(m *coap.Message) []*coap.Message {
			bad := ack(m, coap.Content, "poison")
			bad.ID++
			return []*coap.Message{bad, ack(m, coap.Content, "good")}
		}, coap.Content, "good"},
		{"two answers", func(m *coap.Message) []*coap.Message {
			return []*coap.Message{ack(m, coap.Content, "good"), ack(m, coap.Content, "poison"), {Type: coap.NonConfirmable, ID: 7, Code: coap.Content, Token: m.Token, Payload: []byte("poison")}}
		}, coap.Content, "good"},
		{"a Reset", func(m *coap.Message) []*coap.Message { return []*coap.Message{{Type: coap.Reset, ID: m.ID}} }, coap.BadGateway, ""},
		{"blocks for ever", func(m *coap.Message) []*coap.Message {
			b, _ := m.Options.Block(coap.Block2)
			n := uint32(0)
			if b != nil {
				n = b.Num
			}
			return []*coap.Message{ack(m, coap.Content, body, block(n, true))}
		}, coap.BadGateway, ""},
		{"the same block again", func(m *coap.Message) []*coap.Message {
			return []*coap.Message{ack(m, coap.Content, body, block(0, true))}
		}, coap.BadGateway, ""},
		{"a block out of the blue", func(m *coap.Message) []*coap.Message {
			return []*coap.Message{ack(m, coap.Content, body, block(5, true))}
		}, coap.BadGateway, ""},
		{"the last block first", func(m *coap.Message) []*coap.Message {
			return []*coap.Message{ack(m, coap.Content, "tail", block(5, false))}
		}, coap.BadGateway, ""},
		{"more than is read", func(m *coap.Message) []*coap.Message {
			return []*coap.Message{ack(m, coap.Content, strings.Repeat(body, maxMessage/len(body)))}
		}, coap.BadGateway, textTooLarge},
		{"much more", func(m *coap.Message) []*coap.Message {
			return []*coap.Message{ack(m, coap.Content, strings.Repeat(body, 2000))}
		}, coap.BadGateway, textTooLarge},
		{"a code that is none", func(m *coap.Message) []*coap.Message { return []*coap.Message{ack(m, coap.Code(0x5f), "x")} }, coap.BadGateway, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			at := liar(t, c.answer)
			s := house(t, Config{Rules: []Rule{forwardTo(at)}}, nil)
			l := s.client("a", coaptest.Options{})
			for range 2 { // the second from the cache, where there is something to keep
				r := do(t, l, proxied(coap.GET, at.String()+"/a", nil))
				if r.Code != c.code || c.body != "" && string(r.Payload) != c.body {
					t.Errorf("%v %q", r.Code, r.Payload)
				}
			}
		})
	}
}

// TestLargeRecord: a message that is larger than is read costs no association.
func TestLargeRecord(t *testing.T) {
	key := func([]byte) ([]byte, error) { return []byte("0123456789abcdef"), nil }
	l, err := dtls.ListenWithOptions("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}, dtls.WithPSK(key), dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_CCM_8))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	var shakes atomic.Int64
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			shakes.Add(1)
			go func() {
				for buf := make([]byte, maxRecord); ; {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					m, err := coap.DecodeMessage(buf[:n])
					if err != nil || !m.Code.IsRequest() {
						continue
					}
					size, _ := strconv.Atoi(m.Options.Path()[0])
					r := &coap.Message{Type: coap.Acknowledgement, ID: m.ID, Token: m.Token, Code: coap.Content, Payload: make([]byte, size)}
					if b, err := r.MarshalBinary(); err == nil {
						_, _ = c.Write(b)
					}
				}
			}()
		}
	}()
	at := Target{Scheme: CoAPS, Host: "127.0.0.1", Port: l.Addr().(*net.UDPAddr).AddrPort().Port()}
	rule := forwardTo(at)
	rule.Credential = &Credential{Identity: []byte("edge"), Key: func() []byte { return []byte("0123456789abcdef") }}
	s := house(t, Config{Rules: []Rule{rule}}, nil)
	client := s.client("a", coaptest.Options{})
	for _, c := range []struct {
		size int
		want coap.Code
	}{{1000, coap.Content}, {4000, coap.Content}, {5000, coap.BadGateway}, {8000, coap.BadGateway}, {1000, coap.Content}} {
		r := do(t, client, proxied(coap.GET, fmt.Sprintf("%s/%d", at, c.size), nil))
		if r.Code != c.want || r.Code == coap.Content && len(r.Payload) != c.size || r.Code != coap.Content && string(r.Payload) != textTooLarge {
			t.Errorf("%d bytes: %v, %d bytes", c.size, r.Code, len(r.Payload))
		}
	}
	if n := shakes.Load(); n != 1 {
		t.Errorf("%d handshakes", n)
	}
}

// TestMoved: a name that leads elsewhere is looked up again when nobody answers any more
// where it led before, and of several addresses that it has another is tried.
func TestMoved(t *testing.T) {
	t.Parallel()
	o := serving(t, nil, func(context.Context, *coap.Request) (*coap.Response, error) { return text("here", 0), nil })
	port := o.at.Port()
	for _, timeout := range []time.Duration{time.Second, 20 * time.Second} { // silent, and refused
		before := "127.0.0.3"
		var at atomic.Pointer[[]netip.Addr]
		at.Store(&[]netip.Addr{netip.MustParseAddr(before)})
		s := house(t, Config{Rules: []Rule{{Host: "up.example.com", Scheme: CoAP, Port: port, Timeout: timeout, Addresses: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}}}, func(d *Deps) {
			d.Resolve = func(context.Context, string) ([]netip.Addr, error) {
				return *at.Load(), nil
			}
		})
		l, uri := s.client("a", coaptest.Options{}), Target{Scheme: CoAP, Host: "up.example.com", Port: port}.String()
		if r := do(t, l, proxied(coap.GET, uri, nil)); r.Code.IsSuccess() {
			t.Errorf("%v: %v", timeout, r.Code)
		}
		at.Store(&[]netip.Addr{o.at.Addr()})
		if timeout == time.Second {
			at.Store(&[]netip.Addr{netip.MustParseAddr(before), o.at.Addr()})
		}
		if r := do(t, l, proxied(coap.GET, uri, nil)); r.Code != coap.Content {
			t.Errorf("moved, %v: %v %q", timeout, r.Code, r.Payload)
		}
	}
}

// TestUnreachable: nobody listens; a name that is none; both are told at once.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	dead := Target{Scheme: CoAP, Host: "127.0.0.1", Port: uint16(ports.Free(t))}
	s := house(t, Config{Rules: []Rule{forwardTo(dead), {Host: "none.example.com", Scheme: CoAP, Port: 5683}, {Host: "127.0.0.1/32", Scheme: CoAPTCP, Port: dead.Port}}}, func(d *Deps) {
		d.Resolve = func(context.Context, string) ([]netip.Addr, error) {
			return nil, errors.New("lookup on 10.9.8.7:53: no such host")
		}
	})
	l := s.client("a", coaptest.Options{})
	for _, uri := range []string{dead.String(), "coap://none.example.com/", "coap+tcp" + strings.TrimPrefix(dead.String(), "coap")} {
		if r := do(t, l, proxied(coap.GET, uri, nil)); r.Code != coap.BadGateway || len(r.Payload) == 0 {
			t.Errorf("%s: %v %q", uri, r.Code, r.Payload)
		} else if strings.Contains(string(r.Payload), "10.9.8.7") {
			t.Errorf("a client is told where names are looked up: %q", r.Payload)
		}
	}
	// What is behind a path or a host name is told to nobody but the log.
	tcp := Target{Scheme: CoAPTCP, Host: "127.0.0.1", Port: dead.Port}
	for shown, up := range map[string]Target{
		"/a": dead, "/b": tcp, "/c": {Scheme: CoAPS, Host: "127.0.0.1", Port: dead.Port}, "/d": {Scheme: CoAP, Host: "none.example.com", Port: 5683},
		"/e": liar(t, func(m *coap.Message) []*coap.Message { return []*coap.Message{{Type: coap.Reset, ID: m.ID}} }), "gm.example.org": tcp,
	} {
		rule := Rule{Upstream: up, Credential: &Credential{Identity: []byte("x"), Key: func() []byte { return []byte("0123456789abcdef") }}}
		req := &coap.Request{Code: coap.GET}
		if path, ok := strings.CutPrefix(shown, "/"); ok {
			rule.Prefix = []string{path}
			req.Options.SetPath(path)
		} else {
			rule.Name = shown
			req.Options.AddString(coap.UriHost, shown)
		}
		var log bytes.Buffer // written by one goroutine before it answers
		s := house(t, Config{Rules: []Rule{rule}}, func(d *Deps) {
			d.Log = slog.New(slog.NewTextHandler(&log, nil))
			d.Resolve = func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no such host") }
		})
		r := do(t, s.client("a", coaptest.Options{}), req)
		if text := string(r.Payload); r.Code != coap.BadGateway || !strings.HasPrefix(text, shown+": ") || strings.Contains(text, up.Host) || strings.Contains(text, fmt.Sprint(up.Port)) {
			t.Errorf("%s: %v %q", shown, r.Code, text)
		}
		if at := up.String(); shown != "/a" && shown != "/e" && !strings.Contains(log.String(), at) {
			t.Errorf("%s: the log lacks %s: %s", shown, at, &log)
		}
	}
}

// TestScreen: of an address that did not show that it receives no body is taken
// in blocks.
func TestScreen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := bubble(t, Rule{OpenToUDP: true}, func(*coap.Message, int) *coap.Message { return message(coap.Changed, "") })
		req := plainRequest("198.51.100.1:7000", there+"/a")
		req.Code, req.Payload = coap.PUT, []byte("0123456789abcdef")
		if err := s.p.Screen(req); err != nil {
			t.Errorf("a body in one piece: %v", err)
		}
		req.Options.SetBlock(coap.Block1, coap.Block{More: true})
		r := coap.ErrorResponse(s.p.Screen(req))
		echo, ok := r.Options.Get(coap.Echo)
		if r.Code != coap.Unauthorized || !ok {
			t.Fatalf("%v %+v", r.Code, r.Options)
		}
		with := req.Clone()
		with.Options.Add(coap.Echo, echo)
		if err := s.p.Screen(with); err != nil {
			t.Error(err)
		}
		if err := s.p.Screen(req); err != nil {
			t.Errorf("the next block: %v", err)
		}
		req.Peer.Via = coap.DTLSPSK
		if err := s.p.Screen(req); err != nil {
			t.Error(err)
		}
		s.stop()
	})
}
