package endpoint

import "sync"

// later calls functions soon, one after the other, apart from who holds
// Endpoint.mu: what became of confirmable messages. A batch of acknowledgements
// wakes one goroutine, not one each.
type later struct {
	crew *crew

	mu      sync.Mutex
	queue   []func() // guarded by mu, as what follows
	spare   []func()
	working bool
}

// do has f called soon.
func (l *later) do(f func()) {
	l.mu.Lock()
	l.queue = append(l.queue, f)
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
		for _, f := range batch {
			f()
		}
		clear(batch)
		l.mu.Lock()
		l.spare = batch[:0]
		l.mu.Unlock()
	}
}
