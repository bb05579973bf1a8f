package dtls12

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pion/dtls/v3"
	dtlsnet "github.com/pion/dtls/v3/pkg/net"

	"github.com/seed4911071e/groupgate/record"
)

// listen serves one client on a socket: a handshake, then what is sent comes
// back, until the client says goodbye.
func listen(t *testing.T, cfg *Config) (addr *net.UDPAddr, outcome <-chan *Handshake) {
	t.Helper()
	sock, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sock.Close() })
	out := make(chan *Handshake, 1)
	go func() {
		defer close(out)
		cookies := NewCookies()
		var h *Handshake
		var reader, writer *record.Cipher
		var seq uint64
		b := make([]byte, 8192)
		for {
			n, from, err := sock.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
			r, _, err := record.Next(b[:n], len(cfg.CID))
			if err != nil {
				continue
			}
			if h == nil {
				if hello := ReadClientHello(&r); hello != nil {
					if ok, answer := cookies.Verify(nil, hello, from, time.Now()); ok {
						h = Accept(cfg, hello, time.Now())
					} else {
						_, _ = sock.WriteToUDPAddrPort(answer, from)
					}
				}
			} else if reader != nil {
				kind, content, err := reader.Open(nil, &r)
				if err != nil {
					continue
				}
				if kind != record.ApplicationData {
					return
				}
				_, _ = sock.WriteToUDPAddrPort(writer.Seal(nil, kind, 1, seq, h.Result().PeerCID, content), from)
				seq++
			} else {
				h.Receive(b[:n], time.Now())
			}
			if h == nil {
				continue
			}
			for _, d := range h.Output() {
				_, _ = sock.WriteToUDPAddrPort(d, from)
			}
			if h.Err() != nil {
				out <- h
				return
			}
			if h.Done() && reader == nil {
				reader, _ = record.NewCipher(h.Result().Suite, &h.Result().Read)
				writer, _ = record.NewCipher(h.Result().Suite, &h.Result().Write)
				seq = h.Number()
				out <- h
			}
		}
	}()
	return sock.LocalAddr().(*net.UDPAddr), out
}

// TestDial: a client over a socket: what it writes comes back, and it notices
// that it is not wanted.
func TestDial(t *testing.T) {
	t.Parallel()
	ck, sk, other := newKey(t, "P-256"), newKey(t, "P-256"), newKey(t, "P-256")
	for _, cid := range [][]byte{nil, {}, []byte("client")} {
		sc := accepting(sk, ck)
		sc.CID = []byte("gateway1")
		addr, outcome := listen(t, sc)
		raw, err := net.DialUDP("udp", nil, addr)
		if err != nil {
			t.Fatal(err)
		}
		cc := accepting(ck, sk)
		cc.CID = cid
		c, err := Dial(t.Context(), raw, cc)
		if err != nil {
			t.Fatal(err)
		}
		if h := <-outcome; !h.Done() || !bytes.Equal(h.Result().PeerKey, ck.Public()) {
			t.Fatal(h.Err())
		}
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		if n, err := c.Read(b); err != nil || string(b[:n]) != "hello" {
			t.Fatalf("%q, %v", b[:n], err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if _, err := c.Write([]byte("hello")); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	}
	addr, outcome := listen(t, accepting(sk, other))
	raw, err := net.DialUDP("udp", nil, addr)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Dial(t.Context(), raw, accepting(ck, sk))
	if a, ok := errors.AsType[*AlertError](err); !ok || !a.Remote || a.Alert != CertificateUnknown {
		t.Errorf("of an unknown client: %v", err)
	}
	if h := <-outcome; !errors.Is(h.Err(), ErrUnknown) {
		t.Error(h.Err())
	}
	// Nobody answers there.
	ctx, cancel := context.WithCancel(t.Context())
	mute, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	if raw, err = net.DialUDP("udp", nil, mute.LocalAddr().(*net.UDPAddr)); err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _, _ = mute.ReadFrom(make([]byte, 2048))
		cancel()
	}()
	if _, err := Dial(ctx, raw, accepting(ck, sk)); !errors.Is(err, context.Canceled) {
		t.Errorf("of a silent server: %v", err)
	}
}

// TestPSKWithPion: pion's client with a pre-shared key, with all suites and
// connection IDs; the exporter gives the same.
func TestPSKWithPion(t *testing.T) {
	t.Parallel()
	key := []byte("sixteen byte key")
	identity := bytes.Repeat([]byte("token"), 600) // in several records
	cfg := func() *Config {
		return &Config{CID: []byte("gateway1"), PSK: func(id []byte) ([]byte, error) {
			if !bytes.Equal(id, identity) {
				return nil, ErrUnknown
			}
			return key, nil
		}}
	}
	for name, opts := range map[string][]dtls.ClientOption{
		"CCM_8": {dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_CCM_8)},
		"CCM":   {dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_CCM), dtls.WithConnectionIDGenerator(dtls.OnlySendCIDGenerator())},
		"GCM":   {dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_GCM_SHA256), dtls.WithConnectionIDGenerator(dtls.RandomCIDGenerator(5))},
	} {
		t.Run(name, func(t *testing.T) {
			addr, outcome := listen(t, cfg())
			c, err := pionClient(t, addr, append(opts, dtls.WithPSKIdentityHint(identity), dtls.WithPSK(func([]byte) ([]byte, error) { return key, nil })))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			h := <-outcome
			if !h.Done() || !bytes.Equal(h.Result().Identity, identity) {
				t.Fatal(h.Err())
			}
			st, ok := c.ConnectionState()
			if !ok {
				t.Fatal("no state")
			}
			want, err1 := st.ExportKeyingMaterial("EXPORTER-x", nil, 32)
			got, err2 := h.Result().Export("EXPORTER-x", nil, 32)
			if err1 != nil || err2 != nil || !bytes.Equal(got, want) {
				t.Errorf("exporter: %x, %x, %v, %v", got, want, err1, err2)
			}
			if _, err := c.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 5)
			if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
				t.Errorf("%q, %v", b, err)
			}
		})
	}
	addr, outcome := listen(t, cfg())
	_, err := pionClient(t, addr, []dtls.ClientOption{
		dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_CCM_8), dtls.WithPSKIdentityHint([]byte("nobody")), dtls.WithPSK(func([]byte) ([]byte, error) { return key, nil }),
	})
	if err == nil {
		t.Error("an unknown identity comes in")
	}
	a, ok := errors.AsType[*AlertError]((<-outcome).Err())
	if !ok || a.Alert != IllegalParameter {
		t.Errorf("%v: RFC 9202, Section 3.3.2, has illegal_parameter", a)
	}
}

func pionClient(t *testing.T, addr *net.UDPAddr, opts []dtls.ClientOption) (*dtls.Conn, error) {
	t.Helper()
	raw, err := net.DialUDP("udp", nil, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	c, err := dtls.ClientWithOptions(dtlsnet.PacketConnFromConn(raw), addr, append(opts, dtls.WithExtendedMasterSecret(dtls.RequireExtendedMasterSecret))...)
	if err != nil {
		t.Fatal(err)
	}
	return c, c.HandshakeContext(t.Context())
}
