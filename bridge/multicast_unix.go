//go:build unix

package bridge

import (
	"context"
	"net"
	"net/netip"
	"syscall"
)

// dialMulticast opens a socket that sends to a multicast address by an interface
// ("": as the system routes), over at most hops routers.
func dialMulticast(ctx context.Context, to netip.AddrPort, ifname string, hops int) (net.Conn, error) {
	var ifi *net.Interface
	if ifname != "" {
		var err error
		if ifi, err = net.InterfaceByName(ifname); err != nil {
			return nil, err
		}
	}
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if e := c.Control(func(fd uintptr) { err = multicastOptions(int(fd), to.Addr().Is4(), ifi, hops) }); e != nil {
			return e
		}
		return err
	}}
	return d.DialContext(ctx, "udp", to.String())
}

func multicastOptions(fd int, v4 bool, ifi *net.Interface, hops int) error {
	if !v4 {
		if ifi != nil {
			if err := syscall.SetsockoptInt(fd, syscall.IPPROTO_IPV6, syscall.IPV6_MULTICAST_IF, ifi.Index); err != nil {
				return err
			}
		}
		return syscall.SetsockoptInt(fd, syscall.IPPROTO_IPV6, syscall.IPV6_MULTICAST_HOPS, hops)
	}
	if ifi != nil {
		ip, err := interfaceAddr(ifi)
		if err != nil {
			return err
		}
		if err := syscall.SetsockoptInet4Addr(fd, syscall.IPPROTO_IP, syscall.IP_MULTICAST_IF, ip); err != nil {
			return err
		}
	}
	return syscall.SetsockoptByte(fd, syscall.IPPROTO_IP, syscall.IP_MULTICAST_TTL, byte(hops))
}
