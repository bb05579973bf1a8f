package plugin

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	clockEvery = time.Second     // between two looks at the clock
	clockStep  = 2 * time.Second // what is less is not worth a word
)

// steps measures by how much a clock was set: the time of day goes on as the monotonic
// clock does, unless somebody sets it.
type steps struct {
	from  time.Time
	known time.Duration
}

// look says by how much it was set since the last look; 0: it was not.
func (s *steps) look(now time.Time) time.Duration {
	by := now.Round(0).Sub(s.from.Round(0)) - now.Sub(s.from) - s.known
	if by.Abs() < clockStep {
		return 0
	}
	s.known += by
	return by
}

// clock tells the endpoint, and the operator, when somebody set the clock: what a machine
// without one of its own does after each start. The others compare times themselves, and
// end what is over by them within the hour: not at once, for a clock that is wrong for a
// moment would end what cannot be brought back.
func (b *built) clock(ctx context.Context) error {
	set := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "groupgate_clock_set_total", Help: "How often the clock of the machine was set while the gateway ran, by two seconds or more.",
	})
	_ = b.g.registry.Register(set) // it is there when Run was called before
	s := steps{from: time.Now()}
	t := time.NewTicker(clockEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		by := s.look(time.Now())
		if by == 0 {
			continue
		}
		set.Inc()
		b.g.log.WarnContext(ctx, "the clock was set, or the machine slept: tokens and keys end earlier or later by that", "by", by.Round(time.Millisecond))
		if b.g.coaps != nil {
			b.g.coaps.ClockSet()
		}
	}
}
