package plugin

import "sync"

// awaited counts the confirmable messages of ours that peers have not
// acknowledged yet. Only for those does a host's go-coap have to look at its
// timers often.
type awaited struct {
	mu   sync.Mutex
	n    int           // guarded by mu
	rose chan struct{} // guarded by mu; closed when n leaves 0; nil: nobody asked
}

// begin counts one message; end must be called when it is over.
func (a *awaited) begin() (end func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.n++; a.n == 1 && a.rose != nil {
		close(a.rose)
		a.rose = nil
	}
	return a.end
}

func (a *awaited) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.n--
}

// Awaiting tells whether an acknowledgement of some peer is awaited. When none
// is, the channel is closed as soon as that changes: until then a host may call
// go-coap's periodic work (options.WithPeriodicRunner) seldom, which costs some
// microseconds for every association each time.
func (g *Gateway) Awaiting() (now bool, begins <-chan struct{}) {
	a := &g.awaited
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.n > 0 {
		return true, nil
	}
	if a.rose == nil {
		a.rose = make(chan struct{})
	}
	return false, a.rose
}
