package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/seed4911071e/groupgate/groupcomm"
)

// restartObserved kills the gateway when a third of those who observe were told of a
// rekey, and starts it again.
func (b *rekeyBench) restartObserved(ctx context.Context) ([]Result, error) {
	ctx, cancel := context.WithTimeout(ctx, rekeyTime)
	defer cancel()
	b.progress("kill -9 in the middle of a rekey")
	version, err := b.renew(ctx, "")
	if err != nil {
		return nil, err
	}
	for b.watch.reached(version) < b.kind.n/3 {
		if !wait(ctx, time.Millisecond) {
			return nil, fmt.Errorf("bench: %d nodes were told before the gateway was killed: %w", b.watch.reached(version), ctx.Err())
		}
	}
	began, err := b.restart()
	if err != nil {
		return nil, err
	}
	took, err := b.confirmed(ctx, began, version)
	if err != nil {
		return nil, err
	}
	return []Result{
		b.row("restart_seconds", "s", b.g.took.Seconds()),
		b.row("restart_seconds_to_all_confirmed", "s", took.Seconds()),
	}, nil
}

// restart kills the gateway, starts it, and says when that began.
func (b *rekeyBench) restart() (time.Time, error) {
	began := time.Now()
	err := b.g.restart()
	return began, err
}

// restartRetained kills the gateway when the broker has a rekey for members that
// sleep, starts it again, and has them wake when everything is retained anew.
func (b *rekeyBench) restartRetained(ctx context.Context) (rows []Result, err error) {
	within, cancel := context.WithTimeout(ctx, rekeyTime)
	defer cancel()
	b.progress("kill -9 with a rekey that sleepers did not fetch")
	b.sleep()
	before, err := b.sent(within)
	if err != nil {
		return nil, err
	}
	version, err := b.renew(within, "")
	if err != nil {
		return nil, err
	}
	retained, err := b.retained(within, before.relayed+1, 0)
	if err != nil {
		return nil, err
	}
	began, err := b.restart()
	if err != nil {
		return nil, err
	}
	// Of a key tree everything is retained, else what is not confirmed.
	least := 1.0
	if !b.kind.leave {
		least = retained.relayed - before.relayed
	}
	if _, err = b.retained(within, least, rekeyLook); err != nil {
		return nil, err
	}
	again := time.Since(began)
	woken := time.Now()
	b.wake(ctx)
	took, err := b.confirmed(within, woken, version)
	if err != nil {
		return nil, err
	}
	return []Result{
		b.row("restart_seconds", "s", b.g.took.Seconds()),
		b.row("restart_seconds_to_all_retained", "s", again.Seconds()),
		b.row("wake_seconds_to_all_confirmed", "s", took.Seconds()),
	}, nil
}

// retained waits until the broker took so many messages, and all that were sent.
func (b *rekeyBench) retained(ctx context.Context, least float64, look time.Duration) (s sent, err error) {
	for {
		before := s
		if s, err = b.sent(ctx); err != nil {
			return s, err
		}
		if s.relayed >= least && s.relayed >= s.messages && s == before {
			return s, nil
		}
		if !wait(ctx, max(look, 5*rekeyLook)) {
			return s, fmt.Errorf("bench: the broker has %v of %v messages: %w", s.relayed, s.messages, ctx.Err())
		}
	}
}

// takeOut names a member to be evicted, in the middle.
func (b *rekeyBench) takeOut() string {
	i := len(b.names) / 2
	out := b.names[i]
	b.names = append(b.names[:i:i], b.names[i+1:]...)
	return out
}

// leave measures what the gateway does when one of very many members of a key tree
// is evicted while they sleep: messages, bytes, and its processor time until all is
// at the broker, which the one member tells that is awake.
func (b *rekeyBench) leave(ctx context.Context) ([]Result, error) {
	ctx, cancel := context.WithTimeout(ctx, rekeyTime)
	defer cancel()
	b.progress("a first rekey")
	version, err := b.renew(ctx, "")
	if err != nil {
		return nil, err
	}
	if err := b.firstHas(ctx, version); err != nil {
		return nil, err
	}
	if _, err := b.retained(ctx, 1, 0); err != nil {
		return nil, err
	}
	idle, err := b.g.collected()
	if err != nil {
		return nil, err
	}
	b.progress(fmt.Sprintf("%d evictions, one after the other", rekeyRounds))
	var busy, took []time.Duration
	var messages, bytes float64
	for range rekeyRounds {
		before, err := b.sent(ctx)
		if err != nil {
			return nil, err
		}
		start := time.Now()
		used, err := b.cpu(func() error {
			version, err := b.renew(ctx, b.takeOut())
			if err != nil {
				return err
			}
			return b.firstHas(ctx, version)
		})
		if err != nil {
			return nil, err
		}
		busy, took = append(busy, used), append(took, time.Since(start))
		after, err := b.retained(ctx, before.relayed+1, 0)
		if err != nil {
			return nil, err
		}
		messages, bytes = max(messages, after.messages-before.messages), max(bytes, after.bytes-before.bytes)
	}
	return []Result{
		b.row("messages_sent", "1", messages).below("point-to-point", float64(b.kind.n)),
		b.row("bytes_sent", "B", bytes),
		b.row("gateway_cpu_ms", "ms", milliseconds(percentile(busy, 50))),
		b.row("seconds_to_the_first", "s", percentile(took, 50).Seconds()),
		b.row("rss_bytes_per_member", "B", float64(idle.RSS-b.empty.RSS)/float64(b.kind.n)),
	}, nil
}

// firstHas waits until the first member holds a version.
func (b *rekeyBench) firstHas(ctx context.Context, version uint64) error {
	for {
		if s, ok := b.members[0].State(); ok && s.Installed && s.Version >= groupcomm.Version(version) {
			return nil
		}
		if !wait(ctx, time.Millisecond) {
			return fmt.Errorf("bench: the member that is awake does not get version %d: %w", version, ctx.Err())
		}
	}
}
