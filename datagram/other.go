//go:build !linux

package datagram

import (
	"errors"
	"net"
)

type system struct{}

func (system) init(*net.UDPConn) {}

func (system) force(int) bool { return false }

func (system) askLocal() error {
	return errors.New("datagram: only Linux tells and sets the local address of each datagram")
}

// Read fills the first of ds.
func (c *Conn) Read(ds []Datagram) (int, error) { return c.readOne(ds) }

// Write sends the first of ds.
func (c *Conn) Write(ds []Datagram) (int, error) { return c.writeOne(ds) }
