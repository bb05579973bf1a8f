package host

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"
)

func TestPaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		g, ctx := errgroup.WithContext(ctx)
		runs, takes, busy, begins := 0, time.Duration(0), false, make(chan struct{})
		paced(ctx, g, func() (bool, <-chan struct{}) { return busy, begins })(func(time.Time) bool {
			time.Sleep(takes)
			runs++
			return true
		})
		// ran counts the runs of some seconds from now.
		ran := func(seconds int) int {
			synctest.Wait()
			before := runs
			time.Sleep(time.Duration(seconds) * time.Second)
			synctest.Wait()
			return runs - before
		}
		if n := ran(10); n != 5 {
			t.Errorf("%d runs in 10 idle seconds", n)
		}
		time.Sleep(time.Second / 10)
		close(begins)
		busy, begins = true, nil
		if n := ran(10); n != 50 {
			t.Errorf("%d runs in 10 seconds while an acknowledgement was awaited", n)
		}
		takes = 100 * time.Millisecond
		if n := ran(11); n != 10 && n != 11 {
			t.Errorf("%d runs of 0.1 s in 11 seconds", n)
		}
		cancel()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	})
}
