package endpoint

import "sync"

// maxIdle bounds the goroutines that wait for work.
const maxIdle = 256

// crew runs functions that may wait: handlers, and what the server core is
// told. A goroutine that has done its work waits for more, so that stacks are
// not grown anew for each request.
type crew struct {
	jobs  chan func()
	stop  chan struct{}
	after func() // is called after each function; nil: nothing is
	wg    sync.WaitGroup

	mu   sync.Mutex
	idle int // guarded by mu
}

func newCrew() *crew {
	return &crew{jobs: make(chan func()), stop: make(chan struct{})}
}

// do has f run soon, in another goroutine.
func (c *crew) do(f func()) {
	select {
	case c.jobs <- f:
	default:
		c.wg.Go(func() { c.work(f) })
	}
}

func (c *crew) work(f func()) {
	for {
		f()
		if c.after != nil {
			c.after()
		}
		c.mu.Lock()
		if c.idle >= maxIdle {
			c.mu.Unlock()
			return
		}
		c.idle++
		c.mu.Unlock()
		var stopped bool
		select {
		case f = <-c.jobs:
		case <-c.stop:
			stopped = true
		}
		c.mu.Lock()
		c.idle--
		c.mu.Unlock()
		if stopped {
			return
		}
	}
}

// end waits until all is done. Whoever calls do meanwhile is waited for as well.
func (c *crew) end() {
	close(c.stop)
	c.wg.Wait()
}
