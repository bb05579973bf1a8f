package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/dtls/v3"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/serve"
)

// multihomed is a gateway on every address of the machine, by real sockets.
func multihomed(t *testing.T, network string, secure bool, edit ...func(*Config)) *world {
	t.Helper()
	conn, err := net.ListenUDP(network, nil)
	if err != nil {
		t.Fatal(err)
	}
	o := &world{t: t, at: conn.LocalAddr().(*net.UDPAddr).AddrPort()}
	o.core = serve.New(coap.HandlerFunc(o.serveCoAP), serve.Config{})
	cfg := Config{Server: front{o}}
	if secure {
		cfg.Keys = front{o}
	}
	for _, f := range edit {
		f(&cfg)
	}
	o.e = New(UDP(conn), cfg)
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- o.e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-over; err != nil {
			t.Error(err)
		}
	})
	return o
}

// connected is a client that hears one address only: that which it speaks to.
type connected struct {
	net.Conn
	t *testing.T
}

func (c connected) read() *coap.Message {
	c.t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
	b := make([]byte, 2048)
	n, err := c.Read(b)
	if err != nil {
		c.t.Fatalf("nothing comes from the address that was asked: %v", err)
	}
	m, err := coap.DecodeMessage(b[:n])
	if err != nil {
		c.t.Fatal(err)
	}
	return m
}

func (c connected) send(m *coap.Message) {
	c.t.Helper()
	b, err := m.MarshalBinary()
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

// TestMultihomed: on a machine with several addresses what comes to one of them is
// answered from there, handshakes by either kind too, and so are notifications, with
// whatever network and family.
func TestMultihomed(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells the local address of a datagram")
	}
	for _, network := range []string{"udp4", "udp"} {
		for kind, edit := range map[string]func(*Config){"plain": nil, "pion": func(*Config) {}, "own": func(c *Config) { c.OwnPSK = true }} {
			t.Run(network+"/"+kind, func(t *testing.T) {
				t.Parallel()
				var edits []func(*Config)
				if edit != nil {
					edits = append(edits, edit)
				}
				o := multihomed(t, network, edit != nil, edits...)
				// 127.0.0.1 is what the system would choose.
				for i, ip := range []string{"127.0.0.2", "127.0.0.3", "::1"} {
					if ip == "::1" && network == "udp4" {
						continue
					}
					at := netip.AddrPortFrom(netip.MustParseAddr(ip), o.at.Port())
					raw, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
					if err != nil {
						if ip == "::1" {
							continue // no IPv6 on this machine
						}
						t.Fatal(err)
					}
					c := connected{raw, t}
					if edit != nil {
						conn, err := dtls.ClientWithOptions(dtlsOver{raw}, raw.RemoteAddr(),
							dtls.WithPSK(func([]byte) ([]byte, error) { return key, nil }), dtls.WithPSKIdentityHint([]byte("node1")),
							dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_CCM_8), withCID)
						if err != nil {
							t.Fatal(err)
						}
						ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
						defer cancel()
						if err := conn.HandshakeContext(ctx); err != nil {
							t.Fatalf("%s: %v", ip, err)
						}
						c.Conn = conn
					}
					defer c.Close()
					m := &coap.Message{Type: coap.Confirmable, Code: coap.GET, ID: uint16(i), Token: []byte(ip[:2])}
					m.Options.SetUint(coap.ObserveOption, 0)
					c.send(m)
					if r := c.read(); r.Type != coap.Acknowledgement || r.Code != coap.Content {
						t.Fatalf("%s: %+v", ip, r)
					}
					version := uint64(10 + i)
					o.publish(version, true)
					r := c.read()
					for string(r.Payload) != fmt.Sprint(version) { // of a client before this
						c.send(&coap.Message{Type: coap.Acknowledgement, ID: r.ID})
						r = c.read()
					}
					c.send(&coap.Message{Type: coap.Acknowledgement, ID: r.ID})
				}
			})
		}
	}
}

// dtlsOver is a connected socket as pion takes it.
type dtlsOver struct{ *net.UDPConn }

func (c dtlsOver) ReadFrom(b []byte) (int, net.Addr, error) {
	n, err := c.Read(b)
	if err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, nil, fmt.Errorf("read: %w", err)
	}
	return n, c.RemoteAddr(), err
}

func (c dtlsOver) WriteTo(b []byte, _ net.Addr) (int, error) { return c.Write(b) }

// TestPinned: the address of the gateway that a peer uses is that of its newest
// record, and outlives a restart.
func TestPinned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(1)
		d := &disk{}
		o := resume(t, w, d, 1)
		one, two := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::2")
		port := w.open("")
		w.pins, w.from = map[netip.AddrPort]netip.Addr{port.addr: one}, map[netip.AddrPort]netip.Addr{}
		p, err := o.dialFrom(port, "node1", withCID)
		if err != nil {
			t.Fatal(err)
		}
		defer p.close()
		from := func(want netip.Addr) {
			t.Helper()
			defer w.lock()()
			if got := w.from[port.addr]; got != want {
				t.Errorf("from %v, not %v", got, want)
			}
		}
		from(one) // the handshake
		p.observe("o")
		from(one)
		unlock := w.lock()
		w.pins[port.addr] = two
		unlock()
		p.ask(p.request(coap.PUT, "t", ""))
		from(two)
		o.publish(2, true)
		p.acknowledge("2")
		from(two)
		time.Sleep(2 * keepEvery)
		o.kill()
		unlock = w.lock()
		clear(w.from)
		unlock()
		o = resume(t, w, d, 2)
		p.o = o
		defer o.stop()
		o.publish(3, true)
		if m := p.want(); string(m.Payload) != "3" {
			t.Errorf("%+v", m)
		}
		from(two)
	})
}

// TestHome: who is reached over plain UDP after a restart is sent to from the address
// that it used, until it is heard at another.
func TestHome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(1)
		o := begin(t, w, false)
		defer o.stop()
		one, two := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::2")
		port := w.open("")
		unlock := w.lock()
		w.pins, w.from = map[netip.AddrPort]netip.Addr{port.addr: one}, map[netip.AddrPort]netip.Addr{}
		unlock()
		p := o.all.Reach(port.addr, two)
		ask := &coap.Message{Type: coap.Confirmable, Code: coap.PUT, ID: 1, Token: []byte("t")}
		b, err := ask.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []netip.Addr{two, one} {
			p.Send(&coap.Message{Type: coap.NonConfirmable, Code: coap.Content, Token: []byte("o")}, func(err error) {
				if err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
			unlock := w.lock()
			if got := w.from[port.addr]; got != want || p.(coap.Homed).Home() != want {
				t.Errorf("from %v, home %v, want %v", got, p.(coap.Homed).Home(), want)
			}
			unlock()
			w.carry(port.addr, o.at, b)
			time.Sleep(time.Second)
		}
		if again := o.all.Reach(port.addr, two); again != p || p.(coap.Homed).Home() != one {
			t.Errorf("who is known already moved to %v", p.(coap.Homed).Home())
		}
	})
}

// TestLocals: the table of addresses is bounded, and beyond it the system chooses.
func TestLocals(t *testing.T) {
	var l locals
	if l.index(netip.Addr{}) != 0 || l.at(0).IsValid() {
		t.Error("no address has an index")
	}
	for i := range 300 {
		a := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		at := l.index(a)
		if i < maxLocals && l.at(at) != a || i >= maxLocals && at != 0 || l.index(a) != at {
			t.Fatalf("%v has %d", a, at)
		}
	}
}
