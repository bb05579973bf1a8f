// Package peers has what tests talk to and with: servers in a multicast group on the
// loopback interface, and clients that see each message by itself.
package peers

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/pion/dtls/v3"
	dtlsnet "github.com/pion/dtls/v3/pkg/net"
	"golang.org/x/net/ipv4"

	"github.com/seed4911071e/groupgate/coap"
)

const patience = 30 * time.Second

// Servers are in an IPv4 group on the loopback interface, the i-th at 127.0.0.(i+1)
// on a port of its own, from which it answers what comes to either.
type Servers struct {
	At netip.AddrPort // of the group

	t    testing.TB
	own  []*net.UDPConn
	mu   sync.Mutex
	from netip.AddrPort // of the newest request; guarded by mu
}

// Group runs n servers; answer makes the responses of the i-th.
func Group(t testing.TB, group string, n int, answer func(i int, m *coap.Message) []*coap.Message) *Servers {
	t.Helper()
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	s := &Servers{t: t, At: netip.AddrPortFrom(netip.MustParseAddr(group), 0)}
	for i := range n {
		lc := net.ListenConfig{Control: reuse}
		pc, err := lc.ListenPacket(t.Context(), "udp4", s.At.String())
		if err != nil {
			t.Fatal(err)
		}
		conn := pc.(*net.UDPConn)
		s.At = netip.AddrPortFrom(s.At.Addr(), conn.LocalAddr().(*net.UDPAddr).AddrPort().Port())
		if err := ipv4.NewPacketConn(conn).JoinGroup(lo, &net.UDPAddr{IP: s.At.Addr().AsSlice()}); err != nil {
			t.Fatal(err)
		}
		own, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, byte(i+1))})
		if err != nil {
			t.Fatal(err)
		}
		s.own = append(s.own, own)
		var wg sync.WaitGroup
		for _, c := range []*net.UDPConn{conn, own} {
			wg.Go(func() {
				buf := make([]byte, 2048)
				for {
					k, from, err := c.ReadFromUDPAddrPort(buf)
					if err != nil {
						return
					}
					m, err := coap.DecodeMessage(buf[:k])
					if err != nil || !m.Code.IsRequest() {
						continue
					}
					s.mu.Lock()
					s.from = from
					s.mu.Unlock()
					for _, r := range answer(i, m.Clone()) {
						if b, err := r.MarshalBinary(); err == nil {
							_, _ = own.WriteToUDPAddrPort(b, from)
						}
					}
				}
			})
		}
		t.Cleanup(func() { _ = conn.Close(); _ = own.Close(); wg.Wait() })
	}
	return s
}

// Addr is where the i-th server answers from.
func (s *Servers) Addr(i int) netip.AddrPort { return s.own[i].LocalAddr().(*net.UDPAddr).AddrPort() }

// Say has the i-th server send a message to who asked last.
func (s *Servers) Say(i int, m *coap.Message) {
	s.t.Helper()
	s.mu.Lock()
	to := s.from
	s.mu.Unlock()
	b, err := m.MarshalBinary()
	if err == nil {
		_, err = s.own[i].WriteToUDPAddrPort(b, to)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// Peer is one end of an association, message by message.
type Peer struct {
	t    testing.TB
	conn net.Conn
	id   uint16
	came chan *coap.Message
}

// Dial opens an association over DTLS with a pre-shared key.
func Dial(t testing.TB, addr, identity string, key []byte) *Peer {
	t.Helper()
	raw, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c, err := dtls.ClientWithOptions(dtlsnet.PacketConnFromConn(raw), raw.RemoteAddr(),
		dtls.WithPSK(func([]byte) ([]byte, error) { return key, nil }), dtls.WithPSKIdentityHint([]byte(identity)),
		dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_CCM_8))
	if err == nil {
		err = c.HandshakeContext(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return read(t, c, raw.Close)
}

// DialUDP is Dial over plain UDP.
func DialUDP(t testing.TB, addr string) *Peer {
	t.Helper()
	c, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return read(t, c, func() error { return nil })
}

// read has what comes over c received until the test is over; after closes what is
// below.
func read(t testing.TB, c net.Conn, after func() error) *Peer {
	p := &Peer{t: t, conn: c, came: make(chan *coap.Message, 256)}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 8192)
		for {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			if m, err := coap.DecodeMessage(buf[:n]); err == nil {
				p.came <- m.Clone()
			}
		}
	})
	t.Cleanup(func() { _ = c.Close(); _ = after(); wg.Wait() })
	return p
}

// Send sends a message, with a message identifier of its own unless it is an
// acknowledgement or a Reset.
func (p *Peer) Send(m *coap.Message) {
	p.t.Helper()
	if m.Type == coap.Confirmable || m.Type == coap.NonConfirmable {
		p.id++
		m.ID = p.id
	}
	p.Again(m)
}

// Again sends a message as it is.
func (p *Peer) Again(m *coap.Message) {
	p.t.Helper()
	b, err := m.MarshalBinary()
	if err == nil {
		_, err = p.conn.Write(b)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

// Receive waits for a message that is wanted; others are left out.
func (p *Peer) Receive(what string, wanted func(*coap.Message) bool) *coap.Message {
	p.t.Helper()
	late := time.After(patience)
	for {
		select {
		case m := <-p.came:
			if wanted(m) {
				return m
			}
		case <-late:
			p.t.Fatalf("did not come: %s", what)
		}
	}
}

// Responses waits for n responses with a token and gives what each says, by payload.
func (p *Peer) Responses(n int, token string) map[string]*coap.Message {
	p.t.Helper()
	got := map[string]*coap.Message{}
	for len(got) < n {
		m := p.Receive(fmt.Sprintf("%d of %d responses", n-len(got), n), func(m *coap.Message) bool {
			return m.Code != coap.Empty && string(m.Token) == token
		})
		got[string(m.Payload)] = m
	}
	return got
}
