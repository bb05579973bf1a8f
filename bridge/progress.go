package bridge

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// Progress is how far the newest rekey of a group has come. Lapsed members are
// not waited for.
type Progress struct {
	Group       string
	Version     uint64
	Since       time.Time // when the version became due
	Done        time.Time // when every member had confirmed it; zero: not yet
	Members     int       // without lapsed ones
	Delivered   int
	Pending     int
	Asleep      int
	Unreachable int
	Lapsed      int
	// Held are those of a scheduled rekey that wait for their turn, and HeldUntil
	// when the last of them is told at the latest.
	Held      int
	HeldUntil time.Time
}

// Percent of the members have confirmed; 100 only when all have.
func (p Progress) Percent() float64 {
	if p.Members == 0 {
		return 100
	}
	return float64(1000*p.Delivered/p.Members) / 10
}

// Progress tells how far the newest rekey of a group has come, and about each
// member.
func (b *Bridge) Progress(ctx context.Context, group string) (Progress, []LedgerEntry, error) {
	entries, version, err := b.ledger(ctx, group)
	if err != nil {
		return Progress{}, nil, err
	}
	p := Progress{Group: group, Version: version}
	for _, e := range entries {
		if !e.HeldUntil.IsZero() {
			p.Held, p.HeldUntil = p.Held+1, later(p.HeldUntil, e.HeldUntil)
		}
		switch e.State {
		case StateLapsed:
			p.Lapsed++
			continue
		case StateCurrent:
			p.Delivered++
		case StateAsleep:
			p.Asleep++
		case StateUnreachable:
			p.Unreachable++
		default:
			p.Pending++
		}
		p.Members++
	}
	b.mu.Lock()
	g := b.groups[group]
	b.mu.Unlock()
	p.Since = g.since
	if n := len(g.rekeys); n > 0 && g.rekeys[n-1].num == version {
		p.Since, p.Done = g.rekeys[n-1].at, g.rekeys[n-1].done
	}
	return p, entries, nil
}

// checks are groups of which a member confirmed something: perhaps it was the
// last.
type checks struct {
	wake chan struct{} // one slot

	mu     sync.Mutex
	groups map[string]bool
}

func newChecks() *checks { return &checks{wake: make(chan struct{}, 1), groups: map[string]bool{}} }

func (c *checks) add(group string) {
	c.mu.Lock()
	c.groups[group] = true
	c.mu.Unlock()
	signal(c.wake)
}

func (c *checks) take() map[string]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.groups
	c.groups = map[string]bool{}
	return out
}

// finish notes which rekeys reached everybody, until ctx ends. Looking costs a
// read of the ledger, so it takes a tenth of the time at most.
func (b *Bridge) finish(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-b.checks.wake:
		}
		began := time.Now()
		for group := range b.checks.take() {
			if err := b.finishGroup(ctx, group); err != nil && ctx.Err() == nil && !gone(err) {
				b.log.ErrorContext(ctx, "cannot note the end of a delivery", "group", group, "err", err)
			}
		}
		pause(ctx, max(confirmDelay, 9*time.Since(began)))
	}
}

func (b *Bridge) finishGroup(ctx context.Context, group string) error {
	p, _, err := b.Progress(ctx, group)
	if err != nil || !p.Done.IsZero() || p.Members == 0 || p.Delivered < p.Members {
		return err
	}
	now := time.Now()
	fresh := false
	err = b.store.Update(ctx, func(tx *store.Tx) error {
		n, err := tx.Exec(`UPDATE bridge_rekey SET done = ? WHERE grp = ? AND num = ? AND done = 0`, now.UnixMilli(), group, int64(p.Version))
		if fresh = n > 0; err != nil || !fresh {
			return err
		}
		return tx.Emit(groupcomm.EventDelivered, group, groupcomm.Event{Group: group, Version: p.Version}.Encode())
	})
	if err != nil {
		return fmt.Errorf("bridge: end of the delivery of %q: %w", group, err)
	}
	if !fresh {
		return nil // a version that nobody was rekeyed to, or another gateway was quicker
	}
	b.mu.Lock()
	g := b.groups[group]
	if n := len(g.rekeys); n > 0 && g.rekeys[n-1].num == p.Version {
		g.rekeys = slices.Clone(g.rekeys) // readers hold what is there
		g.rekeys[n-1].done = now
		b.groups[group] = g
	}
	b.mu.Unlock()
	b.log.InfoContext(ctx, "every member has the rekey", "group", group, "version", p.Version, "n", p.Members, "took", now.Sub(p.Since))
	return nil
}
