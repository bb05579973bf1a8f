package relay

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"testing"
	"time"
)

const patience = 20 * time.Second

// hello is the beginning of a ClientHello, withCID a record with a Connection ID, data
// one without.
var (
	hello   = append([]byte{22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 1}, 0, 0, 9)
	withCID = []byte{25, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 0, 1, 9, 9, 9, 0, 1, 7}
	data    = []byte{23, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 0, 1, 0, 1, 7}
)

func socket(t *testing.T) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

// begin starts a relay to a server socket.
func begin(t *testing.T, cfg Config) (*Relay, *net.UDPConn) {
	t.Helper()
	server := socket(t)
	cfg.Server = server.LocalAddr().String()
	r := New(socket(t), cfg)
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-over; err != nil {
			t.Error(err)
		}
	})
	return r, server
}

func send(t *testing.T, c *net.UDPConn, b []byte, to net.Addr) {
	t.Helper()
	if _, err := c.WriteTo(b, to); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, c *net.UDPConn) ([]byte, netip.AddrPort) {
	t.Helper()
	buf := make([]byte, 2048)
	n, from, err := c.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n], from
}

// TestRelay: two nodes are two peers of the server, and answers find their way; what
// is no DTLS, or belongs to no flow, goes nowhere; a node with a Connection ID may come
// from a new address.
func TestRelay(t *testing.T) {
	r, server := begin(t, Config{})
	a, b := socket(t), socket(t)
	send(t, a, []byte("coap?"), r.LocalAddr())
	send(t, a, data, r.LocalAddr())
	send(t, a, hello, r.LocalAddr())
	got, fromA := receive(t, server)
	if !bytes.Equal(got, hello) {
		t.Fatalf("the server got %x first", got)
	}
	send(t, b, withCID, r.LocalAddr())
	got, fromB := receive(t, server)
	if !bytes.Equal(got, withCID) || fromA == fromB {
		t.Fatalf("the server got %x from %v, and the first from %v", got, fromB, fromA)
	}
	for at, c := range map[netip.AddrPort]*net.UDPConn{fromA: a, fromB: b} {
		answer := []byte(at.String())
		if _, err := server.WriteToUDPAddrPort(answer, at); err != nil {
			t.Fatal(err)
		}
		if got, _ := receive(t, c); !bytes.Equal(got, answer) {
			t.Errorf("got %q, want %q", got, answer)
		}
	}
	send(t, a, data, r.LocalAddr())
	if got, from := receive(t, server); !bytes.Equal(got, data) || from != fromA {
		t.Errorf("got %x from %v", got, from)
	}
	if r.Flows() != 2 {
		t.Errorf("%d flows", r.Flows())
	}
}

// TestRelayFlood: invented addresses take no room from a node that talks with the server,
// and open no more flows than there may be.
func TestRelayFlood(t *testing.T) {
	r, server := begin(t, Config{Flows: 8, Opens: 1e6})
	node := socket(t)
	send(t, node, hello, r.LocalAddr())
	_, at := receive(t, server)
	if _, err := server.WriteToUDPAddrPort([]byte{1}, at); err != nil {
		t.Fatal(err)
	}
	receive(t, node)
	send(t, node, data, r.LocalAddr()) // now it is proven
	if _, from := receive(t, server); from != at {
		t.Fatalf("from %v", from)
	}
	for range 50 {
		send(t, socket(t), hello, r.LocalAddr())
		receive(t, server)
		if n := r.Flows(); n > 8 {
			t.Fatalf("%d flows", n)
		}
	}
	send(t, node, data, r.LocalAddr())
	if _, from := receive(t, server); from != at {
		t.Errorf("the node has another flow: %v", from)
	}
}

// TestRelayRate: one node has its rate, another is not held up by it.
func TestRelayRate(t *testing.T) {
	r, server := begin(t, Config{Rate: 0.001})
	a, b := socket(t), socket(t)
	for range 5 {
		send(t, a, hello, r.LocalAddr())
	}
	_, from := receive(t, server)
	send(t, b, hello, r.LocalAddr())
	if _, other := receive(t, server); other == from {
		t.Error("more than the rate of one node came through")
	}
}

// FuzzClassify: nothing short is taken for a record.
func FuzzClassify(f *testing.F) {
	for _, b := range [][]byte{hello, withCID, data, nil} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if k := classify(b); k != notDTLS && (len(b) < headerSize || b[1] != 0xfe) {
			t.Errorf("%x is %v", b, k)
		}
	})
}
