//go:build !linux

package datagram

import (
	"context"
	"errors"
	"net"
)

type system struct{}

func (system) init(*net.UDPConn) {}

func (system) force(int) bool { return false }

func (system) askLocal() error {
	return errors.New("datagram: only Linux tells and sets the local address of each datagram")
}

// ListenShards opens one socket; only Linux spreads peers among several.
func ListenShards(ctx context.Context, addr string, n int) ([]*net.UDPConn, error) {
	if n > 1 {
		return nil, errors.New("datagram: several sockets on one address are for Linux: set endpoint.shards to 1")
	}
	var lc net.ListenConfig
	c, err := lc.ListenPacket(ctx, "udp", addr)
	if err != nil {
		return nil, err
	}
	return []*net.UDPConn{c.(*net.UDPConn)}, nil
}

// Steer does nothing: there is one socket.
func Steer([]*net.UDPConn, byte, int) error { return nil }

// Read fills the first of ds.
func (c *Conn) Read(ds []Datagram) (int, error) { return c.readOne(ds) }

// Write sends the first of ds.
func (c *Conn) Write(ds []Datagram) (int, error) { return c.writeOne(ds) }
