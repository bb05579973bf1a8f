package endpoint

import (
	"errors"
	"net"
	"net/netip"
	"runtime"
	"sync"
)

// Bounds of what waits for the socket, in datagrams.
const (
	// outboxPause is when senders that can wait do: a notification of a hundred
	// thousand peers is not held in memory as a hundred thousand datagrams.
	outboxPause = 2048
	// outboxFull is when datagrams are dropped, as a network does: answers, which
	// the reader of the socket must not wait for.
	outboxFull = 16384
	// outboxSpare bounds the buffers that are kept for the next datagrams.
	outboxSpare = 512
	// outboxBuffer holds a block of 1024 bytes, its options and the record.
	outboxBuffer = 1280
)

// outbox is what waits to be sent; one goroutine sends it in batches.
type outbox struct {
	mu     sync.Mutex
	room   *sync.Cond
	queue  []Datagram // guarded by mu
	spare  [][]byte   // guarded by mu
	closed bool       // guarded by mu
	wake   chan struct{}
}

func newOutbox() *outbox {
	o := &outbox{wake: make(chan struct{}, 1)}
	o.room = sync.NewCond(&o.mu)
	return o
}

// buffer is an empty buffer for a datagram.
func (o *outbox) buffer() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	if n := len(o.spare); n > 0 {
		b := o.spare[n-1]
		o.spare = o.spare[:n-1]
		return b
	}
	return make([]byte, 0, outboxBuffer)
}

// push takes a datagram; its bytes belong to the outbox from then on. It waits
// for nobody and says whether there was room.
func (o *outbox) push(addr netip.AddrPort, b []byte) bool {
	o.mu.Lock()
	if o.closed || len(o.queue) >= outboxFull {
		o.mu.Unlock()
		return false
	}
	o.queue = append(o.queue, Datagram{Addr: addr, B: b})
	o.mu.Unlock()
	select {
	case o.wake <- struct{}{}:
	default:
	}
	return true
}

// throttle waits while much is to be sent.
func (o *outbox) throttle() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.queue) >= outboxPause && !o.closed {
		o.room.Wait()
	}
}

// close has run return once everything is sent.
func (o *outbox) close() {
	o.mu.Lock()
	o.closed = true
	o.room.Broadcast()
	o.mu.Unlock()
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// run sends until close. lost is told of each datagram that the system did not
// take.
func (o *outbox) run(sock Socket, lost func()) {
	var batch []Datagram
	for {
		o.mu.Lock()
		for _, d := range batch {
			if len(o.spare) < outboxSpare && cap(d.B) <= 2*outboxBuffer {
				o.spare = append(o.spare, d.B[:0])
			}
		}
		clear(batch)
		batch, o.queue = o.queue, batch[:0]
		closed := o.closed
		o.room.Broadcast()
		o.mu.Unlock()
		if len(batch) == 0 {
			if closed {
				return
			}
			<-o.wake
			// Who is about to send more goes first: one system call then takes it all.
			runtime.Gosched()
			continue
		}
		for rest := batch; len(rest) > 0; {
			n, err := sock.Write(rest)
			rest = rest[min(max(n, 0), len(rest)):]
			switch {
			case err == nil && n > 0:
			case errors.Is(err, net.ErrClosed):
				rest = nil
			case len(rest) > 0:
				// One destination that cannot be reached must not stop the others.
				lost()
				rest = rest[1:]
			}
		}
	}
}
