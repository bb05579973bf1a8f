//go:build !unix

package bridge

import (
	"context"
	"errors"
	"net"
	"net/netip"
)

func dialMulticast(context.Context, netip.AddrPort, string, int) (net.Conn, error) {
	return nil, errors.New("IP multicast is not supported on this system")
}
