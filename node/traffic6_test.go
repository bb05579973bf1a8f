package node

import (
	"errors"
	"github.com/seed4911071e/groupgate/test/ports"
	"net"
	"net/netip"
	"testing"
	"time"
)

// TestTrafficIPv6: members talk over IPv6, by unicast on loopback and by multicast of
// interface-local scope, which stays on the machine; any other scope takes an interface.
func TestTrafficIPv6(t *testing.T) {
	probe, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6loopback})
	if err != nil {
		t.Skipf("no IPv6 on this machine: %v", err)
	}
	if err := probe.Close(); err != nil {
		t.Fatal(err)
	}
	b := newBand(t, "client", "server")
	port := uint16(ports.Free(t))
	group := netip.AddrPortFrom(netip.MustParseAddr("ff01::fd"), port)
	_, _, err = groupInterface("", true)
	multicast := err == nil
	s, h := b.serve(b.members[1], func(c *GroupServerConfig) {
		if c.Listen, c.Multicast = "[::1]:0", (netip.AddrPort{}); multicast {
			c.Listen, c.Multicast = "[::]:0", group
		}
	})
	client, err := DialGroup(t.Context(), b.members[0].t, "[::]:0", "")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	to := []netip.AddrPort{netip.AddrPortFrom(netip.IPv6Loopback(), s.Addr().Port())}
	if multicast {
		to = append(to, group)
	} else {
		t.Log("no interface has multicast with IPv6: unicast alone")
	}
	for _, dst := range to {
		wait := time.Minute
		if dst.Addr().IsMulticast() {
			wait = 300 * time.Millisecond
		}
		answers := 0
		for try := 0; answers == 0 && try < 20; try++ { // what is not confirmable may be lost
			if err := client.Send(t.Context(), dst, nil, request("x"), wait, func(a Answer) {
				if a.Err != nil || string(a.Message.Payload) != "\x26x" {
					t.Errorf("%v: %v %v", dst, a.Message, a.Err)
				}
				answers++
			}); err != nil {
				t.Fatal(err)
			}
		}
		if answers == 0 {
			t.Errorf("nobody answers at %v", dst)
		}
	}
	for _, err := range h.errors() {
		if err != nil {
			t.Error(err)
		}
	}

	beyond := netip.AddrPortFrom(netip.MustParseAddr("ff02::fd"), port)
	if err := client.Send(t.Context(), beyond, nil, request("x"), time.Second, func(Answer) {}); !errors.Is(err, errInterface) {
		t.Errorf("sent to %v: %v", beyond, err)
	}
	if c, err := listenGroup(beyond, ""); !errors.Is(err, errInterface) {
		t.Errorf("listens at %v: %v", beyond, err)
		_ = c.Close()
	}
}
