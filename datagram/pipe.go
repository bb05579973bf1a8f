package datagram

import (
	"bytes"
	"net"
	"os"
	"sync"
	"time"
)

// pipeRoom bounds the datagrams that wait to be read.
const pipeRoom = 32

// Pipe is a packet connection in memory with one peer: something reads from it
// what was given to Deliver, and what it writes is given to a function. It gives
// a handshake of somebody else's the datagrams of one peer among many on a
// socket.
type Pipe struct {
	local, peer net.Addr
	send        func([]byte) // takes a copy
	wake        chan struct{}

	mu      sync.Mutex
	in      [][]byte // guarded by mu, as what follows
	expired bool     // the deadline of reads has passed
	closed  bool
	muted   bool
}

var _ net.PacketConn = (*Pipe)(nil)

// NewPipe makes one. send is called for each datagram that is written and may
// not keep it; it is not called twice at the same time, nor after Mute.
func NewPipe(local, peer net.Addr, send func([]byte)) *Pipe {
	return &Pipe{local: local, peer: peer, send: send, wake: make(chan struct{}, 1)}
}

// Peer is the address of the other end.
func (p *Pipe) Peer() net.Addr { return p.peer }

// Deliver has a datagram read; b is not kept. It does not wait, and drops what
// there is no room for.
func (p *Pipe) Deliver(b []byte) {
	p.mu.Lock()
	if !p.closed && len(p.in) < pipeRoom {
		p.in = append(p.in, bytes.Clone(b))
	}
	p.mu.Unlock()
	p.signal()
}

func (p *Pipe) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// ReadFrom waits for a datagram.
func (p *Pipe) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		p.mu.Lock()
		switch {
		case p.closed:
			p.mu.Unlock()
			return 0, nil, net.ErrClosed
		case p.expired:
			p.mu.Unlock()
			return 0, nil, os.ErrDeadlineExceeded
		case len(p.in) > 0:
			n := copy(b, p.in[0])
			p.in = p.in[1:]
			p.mu.Unlock()
			return n, p.peer, nil
		}
		p.mu.Unlock()
		<-p.wake
	}
}

// WriteTo sends a datagram, unless the pipe is muted.
func (p *Pipe) WriteTo(b []byte, _ net.Addr) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return 0, net.ErrClosed
	}
	if !p.muted {
		p.send(b)
	}
	return len(b), nil
}

// Mute has nothing go out any more: what the user of the pipe says from now on
// is not heard, and its counters stand still for whoever takes over.
func (p *Pipe) Mute() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.muted = true
}

// Close ends reads.
func (p *Pipe) Close() error {
	p.mu.Lock()
	p.closed = true
	p.in = nil
	p.mu.Unlock()
	p.signal()
	return nil
}

// LocalAddr is the address of the socket that the pipe stands for.
func (p *Pipe) LocalAddr() net.Addr { return p.local }

// SetDeadline is SetReadDeadline.
func (p *Pipe) SetDeadline(t time.Time) error { return p.SetReadDeadline(t) }

// SetReadDeadline knows two deadlines, which is all that pion uses: one that
// has passed, and none.
func (p *Pipe) SetReadDeadline(t time.Time) error {
	p.mu.Lock()
	p.expired = !t.IsZero() && !t.After(time.Now())
	p.mu.Unlock()
	p.signal()
	return nil
}

// SetWriteDeadline does nothing: no write waits.
func (p *Pipe) SetWriteDeadline(time.Time) error { return nil }
