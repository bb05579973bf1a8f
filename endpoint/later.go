package endpoint

import "sync"

// later calls functions soon, one after the other, apart from who holds
// Endpoint.mu: what became of confirmable messages. A batch of acknowledgements
// wakes one goroutine, not one each.
type later struct {
	crew *crew

	mu      sync.Mutex
	queue   []told // guarded by mu, as what follows
	spare   []told
	working bool
}

// told is what became of a message, and who asked: nil: nobody.
type told struct {
	done func(error)
	err  error
}

// tell is called without Endpoint.mu.
func (t told) tell() {
	if t.done != nil {
		t.done(t.err)
	}
}

// do has t told soon.
func (l *later) do(t told) {
	if t.done == nil {
		return
	}
	l.mu.Lock()
	l.queue = append(l.queue, t)
	start := !l.working
	l.working = true
	l.mu.Unlock()
	if start {
		l.crew.do(l.work)
	}
}

func (l *later) work() {
	for {
		l.mu.Lock()
		batch := l.queue
		if len(batch) == 0 {
			l.working = false
			l.mu.Unlock()
			return
		}
		l.queue, l.spare = l.spare, nil
		l.mu.Unlock()
		for _, t := range batch {
			t.tell()
		}
		clear(batch)
		l.mu.Lock()
		l.spare = batch[:0]
		l.mu.Unlock()
	}
}
