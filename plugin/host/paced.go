package host

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// tick is how often go-coap looks at retransmissions; its own default of
	// 4 s would turn every ACK_TIMEOUT of 2 s into 4.
	tick = 200 * time.Millisecond
	// idleTick is how often it looks while no acknowledgement is awaited: only
	// old state is dropped then.
	idleTick = 2 * time.Second
	// tickShare bounds what the looking may take of one core, a tenth: with some
	// ten thousand associations it takes longer than a tick.
	tickShare = 10
)

// paced is a runner for go-coap's periodic work, which walks all
// associations. It runs in g until ctx ends. awaiting says whether it has to be
// prompt; if not, the channel tells when that begins.
func paced(ctx context.Context, g *errgroup.Group, awaiting func() (bool, <-chan struct{})) func(func(time.Time) bool) {
	return func(f func(time.Time) bool) {
		g.Go(func() error {
			t := time.NewTimer(idleTick)
			defer t.Stop()
			for {
				began := time.Now()
				if !f(began) {
					return nil
				}
				rest := tickShare * time.Since(began)
				busy, begins := awaiting()
				if busy {
					t.Reset(max(tick, rest))
				} else {
					t.Reset(max(idleTick, rest))
				}
				for ticked := false; !ticked; {
					select {
					case <-t.C:
						ticked = true
					case <-begins:
						begins = nil
						t.Reset(max(tick, rest))
					case <-ctx.Done():
						return nil
					}
				}
			}
		})
	}
}
