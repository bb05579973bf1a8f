//go:build !unix

package node

import (
	"net/netip"
	"syscall"
)

// multicastVia6 is likewise.
func multicastVia6(int) func(network, address string, c syscall.RawConn) error { return nil }

// multicastVia leaves the interface to the system.
func multicastVia(netip.Addr) func(network, address string, c syscall.RawConn) error { return nil }
