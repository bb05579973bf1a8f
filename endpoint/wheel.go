package endpoint

import (
	"context"
	"time"
)

// The one clock of everything that is due: retransmissions, acknowledgements
// that cannot wait for the handler, sessions to be taken over.
const (
	wheelTick    = 50 * time.Millisecond
	wheelBuckets = 1024 // more than the longest time-out of a retransmission
)

// timed is something that is due at a time. due is called with Endpoint.mu held.
type timed interface{ due(e *Endpoint) }

type wheelEntry struct {
	tick uint64
	what timed
}

// wheel holds what is due, in buckets of one tick; guarded by Endpoint.mu.
// Nothing but transmissions, of which there are many, is removed before its time:
// what is over by then does nothing.
type wheel struct {
	buckets [wheelBuckets][]wheelEntry
	start   time.Time
	now     uint64 // the last tick that was worked on
	n       int
	wake    chan struct{}
}

func newWheel() *wheel { return &wheel{start: time.Now(), wake: make(chan struct{}, 1)} }

func (w *wheel) tickAt(t time.Time) uint64 { return uint64(t.Sub(w.start) / wheelTick) }

// add has what told d from now, at most a tick late.
func (w *wheel) add(what timed, d time.Duration) {
	now := w.tickAt(time.Now())
	if w.n == 0 {
		w.now = now
	}
	t := max(now+uint64((d+wheelTick-1)/wheelTick), w.now) + 1
	w.put(wheelEntry{t, what})
	if w.n++; w.n == 1 {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// put adds an entry to its bucket. A transmission knows where it is.
func (w *wheel) put(en wheelEntry) {
	b := &w.buckets[en.tick%wheelBuckets]
	if t, ok := en.what.(*transmission); ok {
		t.tick, t.at = en.tick, len(*b)
	}
	*b = append(*b, en)
}

// remove takes a transmission out; the last of its bucket takes its place.
func (w *wheel) remove(t *transmission) {
	if t.tick == 0 {
		return
	}
	b := w.buckets[t.tick%wheelBuckets]
	last := len(b) - 1
	b[t.at] = b[last]
	if o, ok := b[t.at].what.(*transmission); ok {
		o.at = t.at
	}
	b[last] = wheelEntry{}
	w.buckets[t.tick%wheelBuckets] = b[:last]
	w.n--
	t.tick = 0
}

// turn tells everything that is due.
func (w *wheel) turn(e *Endpoint) {
	for now := w.tickAt(time.Now()); w.now < now && w.n > 0; {
		w.now++
		b := &w.buckets[w.now%wheelBuckets]
		all := *b
		*b = nil
		for i, en := range all {
			if en.tick > w.now {
				w.put(en)
				all[i].what = nil
				continue
			}
			w.n--
			if t, ok := en.what.(*transmission); ok {
				t.tick = 0
			}
		}
		for _, en := range all {
			if en.what != nil {
				en.what.due(e)
			}
		}
	}
}

// runWheel works until ctx ends. It sleeps while nothing is due.
func (e *Endpoint) runWheel(ctx context.Context) {
	t := time.NewTimer(wheelTick)
	defer t.Stop()
	for {
		e.mu.Lock()
		e.wheel.turn(e)
		idle := e.wheel.n == 0
		e.mu.Unlock()
		e.out.kick()
		if idle {
			select {
			case <-e.wheel.wake:
			case <-ctx.Done():
				return
			}
		}
		t.Reset(wheelTick)
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}
