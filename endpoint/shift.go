package endpoint

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// One goroutine at a time reads the socket: it is on shift. What a batch of
// datagrams asks for it does itself, one after the other, and sends the answers
// with one system call: most handlers answer at once, and to wake a goroutine for
// each takes longer than they do. A handler that says that it is about to wait
// ([coap.Waiting]) keeps its goroutine, and another goes on with the batch and the shift.
// Should a batch take long, because a handler works hard or waits without a word,
// another takes over the shift, the rest of the batch is spread over the crew, and
// so are the requests of the next time.
const (
	// shiftTick is how often a shift is looked at while it works: a batch that is
	// under way at two looks takes long.
	shiftTick = 4 * time.Millisecond
	// shiftIdle is after how many looks without a batch nobody looks any more.
	shiftIdle = 4
	// apartFirst and apartMost are for how long requests go to the crew at once:
	// twice as long as the last time if the next batch takes long again.
	apartFirst = 50 * time.Millisecond
	apartMost  = 2 * time.Second
)

// task is one of: a request to be served, what became of a message, a function.
type task struct {
	x *exchange
	t told
	f func()
}

func (t *task) run() {
	switch {
	case t.x != nil:
		t.x.serve()
	case t.f != nil:
		t.f()
	default:
		t.t.tell()
	}
}

// shift is what the goroutine on shift and who looks after it share.
type shift struct {
	mu      sync.Mutex // after Endpoint.mu
	turn    uint64     // grows when another takes over
	tasks   []task     // of the batch
	next    int        // of tasks
	now     *exchange  // that is being served, of a task
	working bool
	batches uint64
	seen    uint64 // batches at the last look
	watched bool
	wake    chan struct{}

	apart time.Duration // the last time that requests went to the crew

	readers *crew             // who had a shift or has it
	start   func(turn uint64) // has one of them take over
	tasksWG sync.WaitGroup    // of batches; Add only while Endpoint.mu is held and closed is false, or by one of them
}

// inbox is the memory of whoever reads.
type inbox struct {
	ds      []Datagram
	buffers [][]byte
}

func newInbox() *inbox {
	in := &inbox{make([]Datagram, batch), make([][]byte, batch)}
	all := make([]byte, batch*(maxDatagram+1))
	for i := range in.buffers {
		at := i * (maxDatagram + 1)
		in.buffers[i] = all[at : at+maxDatagram+1 : at+maxDatagram+1]
	}
	return in
}

// soon has a task run without Endpoint.mu, which is held: after the batch of
// datagrams that is being read, if one is, and by the crew otherwise.
func (e *Endpoint) soon(t task) {
	if e.reading && e.stamp(e.lately) >= e.apart {
		e.ready = append(e.ready, t)
		return
	}
	switch {
	case t.x != nil:
		t.x.leave()
		e.crew.do(t.x.serve)
	case t.f != nil:
		e.crew.do(t.f)
	default:
		e.later.do(t.t)
	}
}

// follow goes on with a shift that another began.
func (e *Endpoint) follow(in *inbox, turn uint64, over func(error)) {
	if e.work(turn) {
		e.out.Release()
		e.read(in, turn, over)
	}
}

// read is a shift; over is called when the socket is closed. turn is its number.
func (e *Endpoint) read(in *inbox, turn uint64, over func(error)) {
	for {
		for i := range in.ds {
			in.ds[i] = Datagram{B: in.buffers[i]}
		}
		n, err := e.sock.Read(in.ds)
		if errors.Is(err, net.ErrClosed) {
			over(err)
			return
		}
		if err != nil {
			// What a datagram of ours met comes back as an error of the socket.
			e.mu.Lock()
			closed := e.closed
			e.mu.Unlock()
			if closed {
				over(err)
				return
			}
			e.metrics.dropped.WithLabelValues("socket").Inc()
			continue
		}
		e.out.Hold()
		if len(e.kin) > 1 {
			e.sortOut(in.ds[:n])
		}
		if e.take(in.ds[:n]) && !e.work(turn) {
			return // another has the shift, and what was held
		}
		e.out.Release()
	}
}

// take reads a batch of datagrams; true: it left tasks.
func (e *Endpoint) take(ds []Datagram) bool {
	now := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lately = now
	e.reading = true
	for _, d := range ds {
		e.datagram(d, now)
	}
	e.reading = false
	if len(e.ready) == 0 {
		return false
	}
	h := &e.shift
	h.tasksWG.Add(1)
	h.mu.Lock()
	h.tasks, e.ready = e.ready, h.tasks[:0]
	h.next, h.working = 0, true
	h.batches++
	if !h.watched {
		h.watched = true
		h.wake <- struct{}{} // has room: it was taken before
	}
	h.mu.Unlock()
	return true
}

// work runs the tasks of a batch; false: another took over.
func (e *Endpoint) work(turn uint64) bool {
	defer e.shift.tasksWG.Done()
	h := &e.shift
	for {
		h.mu.Lock()
		if h.turn != turn {
			h.mu.Unlock()
			return false
		}
		if h.next == len(h.tasks) {
			h.working, h.now = false, nil
			h.mu.Unlock()
			return true
		}
		t := h.tasks[h.next]
		h.tasks[h.next] = task{}
		h.next++
		h.now = t.x
		h.mu.Unlock()
		t.run()
	}
}

// handOver has another goroutine go on with the batch of which x is, and with the
// shift, if this one has it.
func (e *Endpoint) handOver(x *exchange) {
	h := &e.shift
	h.mu.Lock()
	if h.now != x {
		h.mu.Unlock()
		return
	}
	h.now = nil
	h.turn++
	turn := h.turn
	h.tasksWG.Add(1) // for who follows; that of x is over with work
	h.mu.Unlock()
	h.start(turn)
	e.mu.Lock()
	x.leave()
	e.mu.Unlock()
}

// relieve ends a shift that works on the same batch as at the last look.
// It returns false when no batch came since.
func (e *Endpoint) relieve() (active bool) {
	h := &e.shift
	h.mu.Lock()
	if h.batches != h.seen {
		h.seen = h.batches
		h.mu.Unlock()
		return true
	}
	if !h.working {
		h.mu.Unlock()
		return false
	}
	h.turn++
	turn := h.turn
	rest := append([]task(nil), h.tasks[h.next:]...)
	stuck := h.now
	h.now = nil
	clear(h.tasks)
	h.tasks, h.next, h.working = h.tasks[:0], 0, false
	h.tasksWG.Add(1) // for who follows
	h.mu.Unlock()

	e.mu.Lock()
	now := e.stamp(time.Now())
	if time.Duration(now-e.apart) > max(h.apart, apartFirst) {
		h.apart = apartFirst
	} else {
		h.apart = min(2*h.apart, apartMost)
	}
	e.apart = now + stamp(h.apart)
	stuck.leave()
	for i := range rest {
		rest[i].x.leave()
	}
	e.mu.Unlock()
	for i := range rest {
		e.crew.do(rest[i].run)
	}
	h.start(turn)
	return true
}

// runShift looks after the shifts until ctx ends.
func (e *Endpoint) runShift(ctx context.Context) {
	t := time.NewTimer(shiftTick)
	defer t.Stop()
	for {
		select {
		case <-e.shift.wake:
		case <-ctx.Done():
			return
		}
		for idle := 0; idle < shiftIdle; {
			t.Reset(shiftTick)
			select {
			case <-t.C:
			case <-ctx.Done():
				return
			}
			if e.relieve() {
				idle = 0
			} else {
				idle++
			}
		}
		e.shift.mu.Lock()
		e.shift.watched = e.shift.working || e.shift.batches != e.shift.seen
		again := e.shift.watched
		e.shift.mu.Unlock()
		if again {
			e.shift.wake <- struct{}{} // has room: it was taken before
		}
	}
}
