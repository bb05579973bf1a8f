package endpoint

import (
	"net"

	"github.com/seed4911071e/groupgate/datagram"
)

// Datagram is one datagram and who sent it or is to get it.
type Datagram = datagram.Datagram

// Socket carries datagrams. One goroutine reads and one writes.
type Socket interface {
	// Read fills some of ds and says how many: each B has room when it is
	// called, and is cut to what came. A datagram that does not fit may come
	// cut off.
	Read(ds []Datagram) (int, error)
	// Write sends the first datagrams of ds and says how many; an error is that
	// of the next one.
	Write(ds []Datagram) (int, error)
	LocalAddr() net.Addr
	// Close ends a Read that waits.
	Close() error
}

// batch is how many datagrams are read at a time.
const batch = datagram.Batch

// UDP makes a Socket of a UDP socket and takes it over.
func UDP(conn *net.UDPConn) Socket { return datagram.New(conn) }
