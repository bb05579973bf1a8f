package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// maxDatagram bounds what is read at once: the largest UDP payload.
const maxDatagram = 65535

// groupInterface finds the network interface for IP multicast: the one with the
// name, or the loopback interface.
func groupInterface(name string) (*net.Interface, netip.Addr, error) {
	list, err := net.Interfaces()
	if err != nil {
		return nil, netip.Addr{}, fmt.Errorf("node: network interfaces: %w", err)
	}
	for _, ifi := range list {
		if name != "" && ifi.Name != name || name == "" && ifi.Flags&net.FlagLoopback == 0 {
			continue
		}
		addrs, err := ifi.Addrs()
		if err != nil {
			return nil, netip.Addr{}, fmt.Errorf("node: interface %s: %w", ifi.Name, err)
		}
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if err == nil && p.Addr().Unmap().Is4() {
				return &ifi, p.Addr().Unmap(), nil
			}
		}
	}
	if name == "" {
		return nil, netip.Addr{}, errors.New("node: no loopback interface with an IPv4 address")
	}
	return nil, netip.Addr{}, fmt.Errorf("node: no interface %q with an IPv4 address", name)
}

// listenGroup hears what is sent to a multicast address.
func listenGroup(group netip.AddrPort, ifname string) (*net.UDPConn, error) {
	if !group.Addr().Is4() || !group.Addr().IsMulticast() || group.Port() == 0 {
		return nil, fmt.Errorf("node: %v is no IPv4 multicast address with a port", group)
	}
	ifi, _, err := groupInterface(ifname)
	if err != nil {
		return nil, err
	}
	c, err := net.ListenMulticastUDP("udp4", ifi, net.UDPAddrFromAddrPort(group))
	if err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	return c, nil
}

// listenUnicast opens a socket at addr whose multicast leaves by the interface.
func listenUnicast(ctx context.Context, addr, ifname string) (*net.UDPConn, error) {
	_, own, err := groupInterface(ifname)
	if err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: multicastVia(own)}
	c, err := lc.ListenPacket(ctx, "udp4", addr)
	if err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	return c.(*net.UDPConn), nil
}

// fromAddr is the sender of a datagram in its plain form.
func fromAddr(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
