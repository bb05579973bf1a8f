package swarm

import (
	"context"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"net"
	"sync/atomic"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/datagram"
)

// Move has all nodes on loopback send from a new port from now on, as a NAT that
// lost its bindings would. What comes to the port before is still received, what
// comes to older ones is not.
func (s *Swarm) Move(ctx context.Context) error {
	if s.lone {
		return errors.New("swarm: only nodes on a loopback address can move")
	}
	conn, err := datagram.ListenLocal(0)
	if err != nil {
		return fmt.Errorf("swarm: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return errors.Join(net.ErrClosed, conn.Close())
	}
	s.side = 1 - s.side
	s.wmu[s.side].Lock()
	old := s.port[s.side]
	s.port[s.side] = conn
	s.wmu[s.side].Unlock()
	if old != nil {
		_ = old.Close()
	}
	s.wg.Go(func() { s.receive(conn) })
	return ctx.Err()
}

// Traffic is datagrams one way.
type Traffic struct{ Datagrams, Bytes uint64 }

// thief is somebody between the nodes and the server.
type thief struct {
	conn             *datagram.Conn
	datagrams, bytes atomic.Uint64
}

// Divert has somebody on the way take a record of each node from first up to end, a
// request m that no node waits for, and send it on from a port of its own: authentic and new, so that
// a server with Connection IDs has to think that the node moved there (RFC 9146,
// Section 6). Who sits there never answers; [Swarm.Diverted] counts what comes.
// Nodes without an association have no part in it.
func (s *Swarm) Divert(first, end int, m *coap.Message) (sent Traffic, err error) {
	if s.lone {
		return sent, errNotHere
	}
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return sent, net.ErrClosed
	}
	if s.thief == nil {
		conn, err := datagram.ListenLocal(0)
		if err != nil {
			s.mu.Unlock()
			return sent, fmt.Errorf("swarm: %w", err)
		}
		t := &thief{conn: conn}
		s.thief = t
		s.wg.Go(func() { read(conn, t.took) })
	}
	t := s.thief
	out := make([]datagram.Datagram, 0, datagram.Batch)
	for i := first; i < min(end, len(s.nodes)); i++ {
		n := &s.nodes[i]
		if !n.live {
			continue
		}
		n.mid++
		x := *m
		x.Type, x.ID, x.Token = coap.Confirmable, n.mid, fmt.Appendf(nil, "%08x", mrand.Uint32())
		b, err := x.MarshalBinary()
		if err != nil {
			s.mu.Unlock()
			return sent, fmt.Errorf("swarm: %w", err)
		}
		d := datagram.Datagram{Addr: s.cfg.Gateway, Local: s.address(i), B: s.sealed(i, b)}
		sent.Datagrams, sent.Bytes = sent.Datagrams+1, sent.Bytes+uint64(len(d.B))
		if out = append(out, d); len(out) == cap(out) {
			s.mu.Unlock()
			writeAll(t.conn, out)
			out = out[:0]
			s.mu.Lock()
		}
	}
	s.mu.Unlock()
	writeAll(t.conn, out)
	return sent, nil
}

// Diverted is what came so far to where [Swarm.Divert] sends from.
func (s *Swarm) Diverted() (came Traffic) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.thief != nil {
		came = Traffic{s.thief.datagrams.Load(), s.thief.bytes.Load()}
	}
	return came
}

func (t *thief) took(ds []datagram.Datagram) {
	for _, d := range ds {
		t.datagrams.Add(1)
		t.bytes.Add(uint64(len(d.B)))
	}
}

// writeAll sends datagrams; what the system does not take is lost.
func writeAll(c *datagram.Conn, ds []datagram.Datagram) {
	for len(ds) > 0 {
		n, err := c.Write(ds)
		if err != nil {
			n = 1 // that one is lost
		}
		ds = ds[max(n, 1):]
	}
}

// read has f take datagrams until the socket is closed.
func read(c *datagram.Conn, f func([]datagram.Datagram)) {
	ds := make([]datagram.Datagram, datagram.Batch)
	buffers := make([]byte, maxMessage*len(ds))
	for {
		for i := range ds {
			ds[i].B = buffers[i*maxMessage : (i+1)*maxMessage]
		}
		n, err := c.Read(ds)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil { // else: what a datagram of ours met
			f(ds[:n])
		}
	}
}
