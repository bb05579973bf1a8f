package endpoint

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/dtls/v3"
	dtlsnet "github.com/pion/dtls/v3/pkg/net"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/serve"
	"github.com/seed4911071e/groupgate/dtls12"
	"github.com/seed4911071e/groupgate/record"
)

func rawKey(t testing.TB) *dtls12.Key {
	t.Helper()
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k, err := dtls12.NewKey(signer)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// line is a client as a connected socket, whose deadlines wake it.
type line struct {
	*client
	to netip.AddrPort

	mu sync.Mutex
	at *time.Timer
}

func (l *line) Read(b []byte) (int, error) {
	n, _, err := l.ReadFrom(b)
	return n, err
}
func (l *line) Write(b []byte) (int, error) { return l.WriteTo(b, net.UDPAddrFromAddrPort(l.to)) }
func (l *line) RemoteAddr() net.Addr        { return net.UDPAddrFromAddrPort(l.to) }
func (l *line) SetReadDeadline(t time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at != nil {
		l.at.Stop()
		l.at = nil
	}
	if !t.IsZero() && t.After(time.Now()) {
		l.at = time.AfterFunc(time.Until(t), func() { _ = l.client.SetReadDeadline(time.Unix(1, 0)) })
		t = time.Time{}
	}
	return l.client.SetReadDeadline(t)
}

// keys are those of a world with raw public keys.
type keys struct{ server, client *dtls12.Key }

// withRaw has a world take raw public keys, those of one client.
func (k keys) withRaw(cfg *Config) {
	cfg.RawKey = func() *dtls12.Key { return k.server }
	f := cfg.Keys.(front)
	f.known = append(f.known, k.client.Public())
}

func (k keys) dial(o *world, p *port, key *dtls12.Key) (*peer, error) {
	return k.dialAs(o, p, key, []byte{})
}

// dialAs gives the endpoint a connection ID; nil: none is spoken of.
func (k keys) dialAs(o *world, p *port, key *dtls12.Key, cid []byte) (*peer, error) {
	q := &peer{t: o.t, o: o, c: &client{p: p}, got: make(chan *coap.Message, 256), over: make(chan struct{})}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var err error
	q.raw, err = dtls12.Dial(ctx, &line{client: q.c, to: o.at}, &dtls12.Config{Key: key, CID: cid, Peer: func(spki []byte) error {
		if !bytes.Equal(spki, k.server.Public()) {
			return dtls12.ErrUnknown
		}
		return nil
	}})
	if err != nil {
		return nil, err
	}
	go func() {
		defer close(q.over)
		b := make([]byte, 2048)
		for {
			n, err := q.raw.Read(b)
			if errors.Is(err, os.ErrDeadlineExceeded) || err != nil {
				return
			}
			q.take(b[:n])
		}
	}()
	return q, nil
}

// empty says that no handshake is left.
func (o *world) empty() bool {
	o.e.mu.Lock()
	defer o.e.mu.Unlock()
	return o.e.underWay()+len(o.e.own.byCID)+len(o.e.halfByCID) == 0
}

// TestRawKey: a client with a raw public key is served, wherever it goes, and
// what Admit sees is its key.
func TestRawKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(1)
		k := keys{rawKey(t), rawKey(t)}
		o := begin(t, w, true, k.withRaw)
		defer o.stop()
		var n numbers
		w.tap = n.watch(o.at, 0)
		p, err := k.dial(o, w.open(""), k.client)
		if err != nil {
			t.Fatal(err)
		}
		defer p.close()
		for i := range 5 {
			if r := p.ask(p.request(coap.PUT, fmt.Sprint(i), "hello")); r.Code != coap.Changed || string(r.Payload) != "hello" {
				t.Fatalf("%+v", r)
			}
		}
		synctest.Wait()
		o.set(func() {
			if len(o.admitted) != 1 || !bytes.Equal(o.admitted[0].PublicKey, k.client.Public()) || o.admitted[0].Identity != nil {
				t.Errorf("admitted %+v", o.admitted)
			}
		})
		who := o.began()[0].Peer()
		if who.Via != coap.DTLSRPK || who.Subject.Kind != coap.SubjectKeyHash {
			t.Errorf("%+v", who)
		}
		want, err1 := p.raw.Result().Export("EXPORTER-x", []byte{}, 32)
		got, err2 := o.admitted[0].Exporter("EXPORTER-x", []byte{}, 32)
		if err1 != nil || err2 != nil || !bytes.Equal(got, want) {
			t.Errorf("exporter: %x, not %x, %v, %v", got, want, err1, err2)
		}
		if !o.empty() {
			t.Error("the handshake is left")
		}
		p.c.rebind()
		if r := p.ask(p.request(coap.PUT, "moved", "there")); string(r.Payload) != "there" {
			t.Errorf("%+v", r)
		}
		// It begins anew at the same address: the old association ends.
		q, err := k.dial(o, w.open(p.c.port().addr.String()), k.client)
		if err != nil {
			t.Fatal(err)
		}
		defer q.close()
		if r := q.ask(q.request(coap.PUT, "anew", "anew")); string(r.Payload) != "anew" {
			t.Errorf("%+v", r)
		}
		synctest.Wait()
		if o.ended() != 1 {
			t.Errorf("%d associations ended", o.ended())
		}
		defer w.lock()()
		if len(n.bad) != 0 {
			t.Errorf("numbers used twice: %v", n.bad)
		}
	})
}

// TestRawKeyStranger: who is not known is told so, and nothing is left of it.
func TestRawKeyStranger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(1)
		k := keys{rawKey(t), rawKey(t)}
		o := begin(t, w, true, k.withRaw)
		defer o.stop()
		_, err := k.dial(o, w.open(""), rawKey(t))
		if a, ok := errors.AsType[*dtls12.AlertError](err); !ok || !a.Remote || a.Alert != dtls12.CertificateUnknown {
			t.Errorf("%v", err)
		}
		synctest.Wait()
		if !o.empty() || len(o.admitted) != 0 {
			t.Errorf("%d admitted", len(o.admitted))
		}
	})
}

// TestRawKeyLate: before the gateway has its key clients wait, and come in then.
func TestRawKeyLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(1)
		k := keys{rawKey(t), rawKey(t)}
		began := time.Now()
		o := begin(t, w, true, k.withRaw, func(c *Config) {
			c.RawKey = func() *dtls12.Key {
				if time.Since(began) < 2*time.Second {
					return nil
				}
				return k.server
			}
		})
		defer o.stop()
		p, err := k.dial(o, w.open(""), k.client)
		if err != nil {
			t.Fatal(err)
		}
		defer p.close()
		if r := p.ask(p.request(coap.PUT, "x", "x")); string(r.Payload) != "x" {
			t.Errorf("%+v", r)
		}
	})
}

// TestRawKeyLossy: handshakes and requests over a bad network.
func TestRawKeyLossy(t *testing.T) {
	k := keys{rawKey(t), rawKey(t)}
	overLossy(t, func(o *world, from *port) (*peer, error) { return k.dial(o, from, k.client) }, k.withRaw)
}

// TestNothingForHellos: a flood of ClientHellos from invented addresses leaves
// nothing behind, and honest clients come in meanwhile.
func TestNothingForHellos(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(1)
		k := keys{rawKey(t), rawKey(t)}
		o := begin(t, w, true, k.withRaw, func(c *Config) { c.MaxHandshakes = 4 })
		defer o.stop()
		for i := range 10_000 {
			h := dtls12.Connect(&dtls12.Config{Key: k.client}, time.Now())
			from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), uint16(i))
			o.e.arrive(Datagram{Addr: from, B: h.Output()[0]})
		}
		if !o.empty() {
			t.Error("something is kept")
		}
		p, err := k.dial(o, w.open(""), k.client)
		if err != nil {
			t.Fatal(err)
		}
		defer p.close()
		if r := p.ask(p.request(coap.PUT, "x", "x")); string(r.Payload) != "x" {
			t.Errorf("%+v", r)
		}
	})
}

// TestHalfOpenBounded: clients that show a cookie and then say nothing are
// bounded in number, give way to others, and end.
func TestHalfOpenBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(1)
		k := keys{rawKey(t), rawKey(t)}
		var told strings.Builder
		o := begin(t, w, true, k.withRaw, func(c *Config) { c.MaxHandshakes, c.Log = 4, slog.New(slog.NewTextHandler(&told, nil)) })
		defer o.stop()
		var mute []*port
		for range 8 {
			p := w.open("")
			mute = append(mute, p)
			h := dtls12.Connect(&dtls12.Config{Key: k.client}, time.Now())
			w.carry(p.addr, o.at, h.Output()[0])
			d, err := p.receive()
			if err != nil {
				t.Fatal(err)
			}
			h.Receive(d.B, time.Now())
			w.carry(p.addr, o.at, h.Output()[0])
		}
		synctest.Wait()
		time.Sleep(time.Second)
		o.e.mu.Lock()
		if n := len(o.e.own.byAddr); n != 4 {
			t.Errorf("%d handshakes", n)
		}
		if n := strings.Count(told.String(), "raise limits.handshakes"); n != 1 {
			t.Errorf("told %d times that handshakes are put off:\n%s", n, told.String())
		}
		o.e.mu.Unlock()
		time.Sleep(handshakeGrace)
		p, err := k.dial(o, w.open(""), k.client)
		if err != nil {
			t.Fatal(err)
		}
		defer p.close()
		if r := p.ask(p.request(coap.PUT, "x", "x")); string(r.Payload) != "x" {
			t.Errorf("%+v", r)
		}
		time.Sleep(2 * handshakeTimeout)
		if !o.empty() {
			t.Error("something is left")
		}
		for _, p := range mute {
			_ = p.Close()
		}
	})
}

// TestOwnPSK: with pre-shared keys pion's clients are served by handshakes of our
// own as by pion's, over a bad network too, and are refused as RFC 9202 has it.
func TestOwnPSK(t *testing.T) {
	for seed := range uint64(10) {
		synctest.Test(t, func(t *testing.T) {
			w := newWire(seed)
			if seed > 0 {
				w.drop, w.double, w.detour = 0.15, 0.15, 0.2
				w.delay = 20 * time.Millisecond
			}
			k := keys{rawKey(t), rawKey(t)}
			o := begin(t, w, true, k.withRaw, func(c *Config) { c.OwnPSK = true })
			defer o.stop()
			var p *peer
			for range 20 {
				var err error
				if p, err = o.dialFrom(w.open(""), "node1", withCID); err == nil {
					break
				}
			}
			if p == nil {
				t.Fatal("no handshake comes through")
			}
			defer p.close()
			for i := range 10 {
				if r := p.ask(p.request(coap.POST, fmt.Sprint(i), "x")); string(r.Payload) != fmt.Sprintf("%d:x", i+1) {
					t.Fatalf("request %d: %v %q", i, r.Code, r.Payload)
				}
			}
			o.set(func() {
				for _, a := range o.admitted {
					if string(a.Identity) != "node1" {
						t.Errorf("%+v", a)
					}
				}
			})
			if seed == 0 {
				var refused []byte
				w.tap = func(from, _ netip.AddrPort, b []byte) bool {
					if r, _, err := record.Next(b, 0); err == nil && from == o.at && r.Type == record.Alert && r.Epoch == 0 {
						refused = bytes.Clone(r.Fragment)
					}
					return false
				}
				if _, err := o.dialFrom(w.open(""), "stranger", withCID, dtls.WithFlightInterval(time.Second)); err == nil {
					t.Error("a stranger comes in")
				}
				unlock := w.lock()
				if !bytes.Equal(refused, []byte{alertFatal, alertIllegalParameter}) {
					t.Errorf("alert %v", refused)
				}
				unlock()
			}
		})
	}
}

// BenchmarkHandshake is what a whole handshake takes, the client's half by the
// same stack as far as there is one: with pre-shared keys the client is pion's in
// both cases.
func BenchmarkHandshake(b *testing.B) {
	for name, edit := range map[string]func(*Config){
		"psk/pion": func(*Config) {}, "psk/own": func(c *Config) { c.OwnPSK = true }, "raw/own": nil,
	} {
		b.Run(name, func(b *testing.B) {
			udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				b.Fatal(err)
			}
			sock := UDP(udp)
			k := keys{rawKey(b), rawKey(b)}
			o := &world{}
			cfg := Config{Server: front{o}, Keys: front{o}}
			o.core = serve.New(coap.HandlerFunc(o.serveCoAP), serve.Config{})
			if k.withRaw(&cfg); edit != nil {
				edit(&cfg)
			}
			o.e = New(sock, cfg)
			ctx, cancel := context.WithCancel(context.Background())
			over := make(chan error, 1)
			go func() { over <- o.e.Run(ctx) }()
			b.ReportAllocs()
			for b.Loop() {
				raw, err := net.DialUDP("udp", nil, sock.LocalAddr().(*net.UDPAddr))
				if err != nil {
					b.Fatal(err)
				}
				if edit == nil {
					c, err := dtls12.Dial(ctx, raw, &dtls12.Config{Key: k.client, CID: []byte{}, Peer: func([]byte) error { return nil }})
					if err != nil {
						b.Fatal(err)
					}
					_ = c.Close()
					continue
				}
				c, err := dtls.ClientWithOptions(dtlsnet.PacketConnFromConn(raw), raw.RemoteAddr(),
					dtls.WithPSK(func([]byte) ([]byte, error) { return key, nil }), dtls.WithPSKIdentityHint([]byte("node1")),
					dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_CCM_8), withCID)
				if err != nil {
					b.Fatal(err)
				}
				if err := c.HandshakeContext(ctx); err != nil {
					b.Fatal(err)
				}
				_ = c.Close()
				_ = raw.Close()
			}
			cancel()
			if err := <-over; err != nil {
				b.Fatal(err)
			}
		})
	}
}
