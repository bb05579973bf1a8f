//go:build unix

package node

import (
	"net/netip"
	"syscall"
)

// multicastVia has a socket send multicast by the interface with the address, to
// nobody behind its routers.
func multicastVia(addr netip.Addr) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			if failed = syscall.SetsockoptInet4Addr(int(fd), syscall.IPPROTO_IP, syscall.IP_MULTICAST_IF, addr.As4()); failed == nil {
				failed = syscall.SetsockoptByte(int(fd), syscall.IPPROTO_IP, syscall.IP_MULTICAST_TTL, 1)
			}
		})
		if err != nil {
			return err
		}
		return failed
	}
}

// multicastVia6 is multicastVia for IPv6, with the index of the interface.
func multicastVia6(index int) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			if failed = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IPV6, syscall.IPV6_MULTICAST_IF, index); failed == nil {
				failed = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IPV6, syscall.IPV6_MULTICAST_HOPS, 1)
			}
		})
		if err != nil {
			return err
		}
		return failed
	}
}
