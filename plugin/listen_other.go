//go:build !linux

package plugin

import (
	"context"
	"errors"
	"net"
)

// listenOn needs SO_BINDTODEVICE.
func listenOn(context.Context, string, string) (*net.UDPConn, error) {
	return nil, errors.New("insecure nodes are served on Linux only: nothing else binds a socket to an interface")
}
