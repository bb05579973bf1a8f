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
// name, or the loopback interface. That has no multicast with IPv6, for which it is the
// first interface that has; [needsInterface] says when one has to be named.
func groupInterface(name string, v6 bool) (*net.Interface, netip.Addr, error) {
	list, err := net.Interfaces()
	if err != nil {
		return nil, netip.Addr{}, fmt.Errorf("node: network interfaces: %w", err)
	}
	family, kind, flag := "IPv4", "loopback", net.FlagLoopback
	if v6 {
		family, kind, flag = "IPv6", "multicast", net.FlagMulticast
	}
	for _, ifi := range list {
		if name != "" && ifi.Name != name || name == "" && (ifi.Flags&flag == 0 || ifi.Flags&net.FlagUp == 0) {
			continue
		}
		addrs, err := ifi.Addrs()
		if err != nil {
			return nil, netip.Addr{}, fmt.Errorf("node: interface %s: %w", ifi.Name, err)
		}
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if err == nil && p.Addr().Unmap().Is4() != v6 {
				return &ifi, p.Addr().Unmap(), nil
			}
		}
	}
	if name == "" {
		return nil, netip.Addr{}, fmt.Errorf("node: no %s interface with an %s address", kind, family)
	}
	return nil, netip.Addr{}, fmt.Errorf("node: no interface %q with an %s address", name, family)
}

// errInterface says what IPv6 multicast beyond this machine takes.
var errInterface = errors.New("node: name the network interface: with IPv6 only multicast of interface-local scope (ff01::/16) stays on this machine")

// needsInterface says whether a multicast address leaves the machine unless an
// interface is named.
func needsInterface(group netip.Addr, ifname string) bool {
	return group.Is6() && group.IsMulticast() && !group.IsInterfaceLocalMulticast() && ifname == ""
}

// listenGroup hears what is sent to a multicast address.
func listenGroup(group netip.AddrPort, ifname string) (*net.UDPConn, error) {
	if !group.Addr().IsMulticast() || group.Port() == 0 {
		return nil, fmt.Errorf("node: %v is no multicast address with a port", group)
	}
	if ifname == "" {
		ifname = group.Addr().Zone()
	}
	if needsInterface(group.Addr(), ifname) {
		return nil, errInterface
	}
	ifi, _, err := groupInterface(ifname, group.Addr().Is6())
	if err != nil {
		return nil, err
	}
	network := "udp4"
	if group.Addr().Is6() {
		network = "udp6"
	}
	c, err := net.ListenMulticastUDP(network, ifi, net.UDPAddrFromAddrPort(group))
	if err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	return c, nil
}

// listenUnicast opens a socket at addr whose multicast leaves by the interface.
func listenUnicast(ctx context.Context, addr, ifname string) (*net.UDPConn, error) {
	at, err := netip.ParseAddrPort(addr)
	v6 := err == nil && at.Addr().Is6() && !at.Addr().Is4In6()
	ifi, own, err := groupInterface(ifname, v6)
	if err != nil && (!v6 || ifname != "") {
		return nil, err
	}
	network, control := "udp4", multicastVia(own)
	switch {
	case v6 && err == nil:
		network, control = "udp6", multicastVia6(ifi.Index)
	case v6: // unicast alone
		network, control = "udp6", nil
	}
	lc := net.ListenConfig{Control: control}
	c, err := lc.ListenPacket(ctx, network, addr)
	if err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	return c.(*net.UDPConn), nil
}

// fromAddr is the sender of a datagram in its plain form.
func fromAddr(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
