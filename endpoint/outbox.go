package endpoint

import (
	"errors"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
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
	// outboxRounds bounds how often somebody who has other things to do looks for
	// more to send.
	outboxRounds = 2
)

// outbox is what waits to be sent. Whoever has several datagrams holds it, and
// sends them on release with as few system calls as they take, in its own
// goroutine: to wake another costs as much as a datagram. One goroutine sends what
// nobody holds.
type outbox struct {
	sock Socket
	lost func() // is told of each datagram that the system did not take

	waiting atomic.Int32 // the length of queue

	mu      sync.Mutex
	room    *sync.Cond
	queue   []Datagram // guarded by mu, as all below
	back    []Datagram // what queue is next
	spare   [][]byte
	holds   int
	sending bool // by one goroutine at a time, without mu
	closed  bool
	wake    chan struct{}
}

func newOutbox(sock Socket, lost func()) *outbox {
	o := &outbox{sock: sock, lost: lost, wake: make(chan struct{}, 1)}
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

// push takes a datagram, to come from an address of this machine, or from any; its
// bytes belong to the outbox from then on. It waits for nobody and says whether there
// was room.
func (o *outbox) push(addr netip.AddrPort, local netip.Addr, b []byte) bool {
	o.mu.Lock()
	if o.closed || len(o.queue) >= outboxFull {
		o.mu.Unlock()
		return false
	}
	o.queue = append(o.queue, Datagram{Addr: addr, Local: local, B: b})
	o.waiting.Store(int32(len(o.queue)))
	rouse := o.holds == 0 && !o.sending // who sends looks again
	o.mu.Unlock()
	if rouse {
		o.rouse()
	}
	return true
}

func (o *outbox) rouse() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// Hold has datagrams wait for Release.
func (o *outbox) Hold() {
	o.mu.Lock()
	o.holds++
	o.mu.Unlock()
}

// Release sends what waits. It may wait for the socket.
func (o *outbox) Release() {
	o.mu.Lock()
	o.holds--
	o.drain(outboxRounds)
	o.mu.Unlock()
}

// kick has what waits sent soon, whoever holds it: somebody else is done.
func (o *outbox) kick() {
	if o.waiting.Load() > 0 {
		o.rouse()
	}
}

// throttle sends, for somebody who can wait, what makes a full batch, and waits
// while much is to be sent.
func (o *outbox) throttle() {
	if o.waiting.Load() < batch {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.drain(1)
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
	o.rouse()
}

// drain sends what waits, with mu held before and after, and what came meanwhile
// in as many rounds, unless somebody else is sending.
func (o *outbox) drain(rounds int) {
	if o.sending {
		return
	}
	for ; rounds > 0 && len(o.queue) > 0; rounds-- {
		now := o.queue
		o.queue, o.back, o.sending = o.back[:0], nil, true
		o.waiting.Store(0)
		o.mu.Unlock()
		o.write(now)
		o.mu.Lock()
		for _, d := range now {
			if len(o.spare) < outboxSpare && cap(d.B) <= 2*outboxBuffer {
				o.spare = append(o.spare, d.B[:0])
			}
		}
		clear(now)
		o.back, o.sending = now[:0], false
		o.room.Broadcast()
	}
	if len(o.queue) > 0 {
		o.rouse()
	}
}

// write sends datagrams one after the other.
func (o *outbox) write(ds []Datagram) {
	for len(ds) > 0 {
		n, err := o.sock.Write(ds)
		ds = ds[min(max(n, 0), len(ds)):]
		switch {
		case err == nil && n > 0:
		case errors.Is(err, net.ErrClosed):
			return
		case len(ds) > 0 && ds[0].Local.IsValid():
			ds[0].Local = netip.Addr{} // perhaps it is an address of ours no more
		case len(ds) > 0:
			// One destination that cannot be reached must not stop the others.
			o.lost()
			ds = ds[1:]
		}
	}
}

// run sends what nobody holds until close.
func (o *outbox) run() {
	for {
		o.mu.Lock()
		o.drain(1)
		over := o.closed && len(o.queue) == 0 && !o.sending
		if o.closed && o.sending {
			o.room.Wait()
		}
		more := o.closed || len(o.queue) > 0 && !o.sending
		o.mu.Unlock()
		if over {
			return
		}
		if !more {
			<-o.wake
			// Who is about to send more goes first: one system call then takes it all.
			runtime.Gosched()
		}
	}
}
