package endpoint

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/record"
)

// pipeRoom bounds the records that wait for pion.
const pipeRoom = 32

// pipe is the packet connection of one handshake: pion reads from it what came
// from one address, and what it writes goes there.
type pipe struct {
	e    *Endpoint
	addr netip.AddrPort
	peer net.Addr
	wake chan struct{}

	mu       sync.Mutex
	in       [][]byte // guarded by mu, as what follows
	expired  bool     // the deadline of reads has passed
	closed   bool
	muted    bool
	stranger bool // the identity is unknown: an alert says so
}

func newPipe(e *Endpoint, addr netip.AddrPort) *pipe {
	return &pipe{e: e, addr: addr, peer: net.UDPAddrFromAddrPort(addr), wake: make(chan struct{}, 1)}
}

// deliver gives pion a record.
func (p *pipe) deliver(b []byte) {
	p.mu.Lock()
	if !p.closed && len(p.in) < pipeRoom {
		p.in = append(p.in, bytes.Clone(b))
	}
	p.mu.Unlock()
	p.signal()
}

func (p *pipe) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// ReadFrom waits for a record.
func (p *pipe) ReadFrom(b []byte) (int, net.Addr, error) {
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
func (p *pipe) WriteTo(b []byte, _ net.Addr) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return 0, net.ErrClosed
	}
	if p.muted {
		return len(b), nil
	}
	out := append(p.e.out.buffer(), b...)
	if p.stranger {
		illegalParameter(out)
	}
	p.e.out.push(p.addr, out)
	return len(b), nil
}

// illegalParameter makes a clear internal_error, which is what pion says when
// it gets no key, what RFC 9202, Section 3.3.2, has for an unknown psk_identity.
func illegalParameter(b []byte) {
	r, rest, err := record.Next(b, 0)
	if err == nil && len(rest) == 0 && r.Type == record.Alert && r.Epoch == 0 && len(r.Fragment) == 2 && r.Fragment[1] == alertInternalError {
		r.Fragment[0], r.Fragment[1] = alertFatal, alertIllegalParameter
	}
}

// mute has nothing go out any more: what pion says from now on is not heard,
// and its counters stand still for whoever takes over.
func (p *pipe) mute() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.muted = true
}

func (p *pipe) unknown() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stranger = true
}

// Close ends reads.
func (p *pipe) Close() error {
	p.mu.Lock()
	p.closed = true
	p.in = nil
	p.mu.Unlock()
	p.signal()
	return nil
}

func (p *pipe) LocalAddr() net.Addr { return p.e.sock.LocalAddr() }

func (p *pipe) SetDeadline(t time.Time) error { return p.SetReadDeadline(t) }

// SetReadDeadline knows two deadlines, which is all that pion uses: one that
// has passed, and none.
func (p *pipe) SetReadDeadline(t time.Time) error {
	p.mu.Lock()
	p.expired = !t.IsZero() && !t.After(time.Now())
	p.mu.Unlock()
	p.signal()
	return nil
}

// SetWriteDeadline does nothing: no write waits.
func (p *pipe) SetWriteDeadline(time.Time) error { return nil }
