package host

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"
)

func TestPaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		g, ctx := errgroup.WithContext(ctx)
		var mu sync.Mutex // for what follows: sleeping orders nothing
		runs, takes, busy, begins := 0, time.Duration(0), false, make(chan struct{})
		locked := func(f func()) {
			mu.Lock()
			defer mu.Unlock()
			f()
		}
		paced(ctx, g, func() (b bool, ch <-chan struct{}) {
			locked(func() { b, ch = busy, begins })
			return b, ch
		})(func(time.Time) bool {
			var d time.Duration
			locked(func() { d = takes })
			time.Sleep(d)
			locked(func() { runs++ })
			return true
		})
		// ran counts the runs of some seconds from now.
		ran := func(seconds int) int {
			before, after := 0, 0
			synctest.Wait()
			locked(func() { before = runs })
			time.Sleep(time.Duration(seconds) * time.Second)
			synctest.Wait()
			locked(func() { after = runs })
			return after - before
		}
		if n := ran(10); n != 5 {
			t.Errorf("%d runs in 10 idle seconds", n)
		}
		time.Sleep(time.Second / 10)
		locked(func() {
			close(begins)
			busy, begins = true, nil
		})
		if n := ran(10); n != 50 {
			t.Errorf("%d runs in 10 seconds while an acknowledgement was awaited", n)
		}
		locked(func() { takes = 100 * time.Millisecond })
		if n := ran(11); n != 10 && n != 11 {
			t.Errorf("%d runs of 0.1 s in 11 seconds", n)
		}
		cancel()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	})
}
