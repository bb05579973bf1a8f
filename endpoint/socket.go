package endpoint

import (
	"context"
	"net"

	"github.com/seed4911071e/groupgate/datagram"
	"github.com/seed4911071e/groupgate/record"
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

// UDPShards opens n sockets on one address for [NewShards], on Linux; n is 1 elsewhere.
func UDPShards(ctx context.Context, addr string, n int) ([]Socket, error) {
	conns, err := datagram.ListenShards(ctx, addr, n)
	if err != nil {
		return nil, err
	}
	// Best effort: what comes to the wrong shard is handed over.
	_ = datagram.Steer(conns, record.ConnectionID, cidAt)
	socks := make([]Socket, len(conns))
	for i, c := range conns {
		socks[i] = UDP(c)
	}
	return socks, nil
}

// UDP makes a Socket of a UDP socket and takes it over.
func UDP(conn *net.UDPConn) Socket { return datagram.New(conn) }
