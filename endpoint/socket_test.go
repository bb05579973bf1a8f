package endpoint

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// TestUDP: an endpoint on every address of the machine answers IPv4 and IPv6
// alike, many at once.
func TestUDP(t *testing.T) {
	t.Parallel()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{})
	if err != nil {
		t.Fatal(err)
	}
	e := New(UDP(conn), Config{Server: nobody{}})
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- e.Run(ctx) }()
	port := conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	var wg sync.WaitGroup
	for _, host := range []string{"127.0.0.1", "::1"} {
		at := netip.AddrPortFrom(netip.MustParseAddr(host), port)
		probe, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
		if err != nil {
			continue // no IPv6 on this machine
		}
		_ = probe.Close()
		for range 4 {
			wg.Go(func() {
				c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				for i := range byte(100) {
					if _, err := c.Write([]byte{0x41, 2, 0, i, i, 0xff, i}); err != nil {
						t.Error(err)
					}
				}
				_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
				seen := map[byte]bool{}
				for b := make([]byte, 64); len(seen) < 100; {
					n, err := c.Read(b)
					if err != nil {
						t.Errorf("%v: %d answers of 100: %v", at, len(seen), err)
						return
					}
					if n != 7 || b[0] != 0x61 || b[3] != b[6] {
						t.Errorf("%x", b[:n])
					}
					seen[b[3]] = true
				}
			})
		}
	}
	wg.Wait()
	cancel()
	if err := <-over; err != nil {
		t.Error(err)
	}
}
