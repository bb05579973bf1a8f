// Package datagram moves UDP datagrams in batches: on Linux many with one
// system call (recvmmsg, sendmmsg), elsewhere one by one. Neither direction
// allocates per datagram.
package datagram

import (
	"net"
	"net/netip"
)

// Batch is how many datagrams one system call carries: beyond 64 nothing is
// gained.
const Batch = 64

// Datagram is one datagram and who sent it or is to get it.
type Datagram struct {
	Addr netip.AddrPort
	// Local is the address of this machine that it came to or is to come from;
	// invalid where that is not known, or does not matter: see [New].
	Local netip.Addr
	B     []byte
}

// Conn carries datagrams. One goroutine at a time reads and one writes.
type Conn struct {
	udp *net.UDPConn
	system
}

// bufferSize is what we ask the system to keep for us in either direction.
const bufferSize = 4 << 20

// New makes a Conn of a socket, which it takes over. Where the socket is bound to
// every address of the machine, each datagram tells its local address, on Linux: an
// answer has to come from where the question went, whatever the routes say.
func New(c *net.UDPConn) *Conn {
	conn := open(c)
	if a, ok := c.LocalAddr().(*net.UDPAddr); ok && a.IP.IsUnspecified() {
		_ = conn.askLocal() // else the system chooses
	}
	return conn
}

// ListenLocal opens an IPv4 socket that tells the local address of each datagram
// and sends from any address of the machine: one socket for very many peers of a
// load generator. Only Linux has that.
func ListenLocal(port uint16) (*Conn, error) {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{Port: int(port)})
	if err != nil {
		return nil, err
	}
	conn := open(c)
	if err := conn.askLocal(); err != nil {
		_ = c.Close()
		return nil, err
	}
	return conn, nil
}

func open(c *net.UDPConn) *Conn {
	conn := &Conn{udp: c}
	conn.init(c)
	// Best effort: a burst should not be lost for want of room.
	if !conn.force(bufferSize) {
		_ = c.SetReadBuffer(bufferSize)
		_ = c.SetWriteBuffer(bufferSize)
	}
	return conn
}

// LocalAddr is the address of the socket.
func (c *Conn) LocalAddr() net.Addr { return c.udp.LocalAddr() }

// Close ends a Read that waits.
func (c *Conn) Close() error { return c.udp.Close() }

// readOne and writeOne are what every system can.
func (c *Conn) readOne(ds []Datagram) (int, error) {
	n, addr, err := c.udp.ReadFromUDPAddrPort(ds[0].B)
	if err != nil {
		return 0, err
	}
	ds[0].B, ds[0].Addr = ds[0].B[:n], netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	return 1, nil
}

func (c *Conn) writeOne(ds []Datagram) (int, error) {
	if _, err := c.udp.WriteToUDPAddrPort(ds[0].B, ds[0].Addr); err != nil {
		return 0, err
	}
	return 1, nil
}
