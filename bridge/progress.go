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
	entries, st, err := b.ledger(ctx, group)
	if err != nil {
		return Progress{}, nil, err
	}
	p := Progress{Group: group, Version: st.version}
	for _, e := range entries {
		if !e.HeldUntil.IsZero() {
			p.Held, p.HeldUntil = p.Held+1, later(p.HeldUntil, e.HeldUntil)
		}
		p.count(e.State)
	}
	p.date(st.group)
	return p, entries, nil
}

// counter is the optional part of a [Source] that counts the members of a group, and
// those of them that lapsed.
type counter interface {
	Count(ctx context.Context, group string) (members, lapsed int, err error)
}

// Tally is Progress without the members, of which there may be very many.
func (b *Bridge) Tally(ctx context.Context, group string) (Progress, error) {
	p, all, _, err := b.allHave(ctx, group)
	if err != nil {
		return Progress{}, fmt.Errorf("bridge: delivery of %q: %w", group, err)
	}
	if all {
		return p, nil
	}
	return b.list(ctx, group)
}

// list is a Tally from the list of members.
func (b *Bridge) list(ctx context.Context, group string) (Progress, error) {
	st, err := b.standing(ctx, group, true)
	if err != nil {
		return Progress{}, fmt.Errorf("bridge: delivery of %q: %w", group, err)
	}
	p := Progress{Group: group, Version: st.version}
	for _, m := range st.members {
		c, shown := st.confirmed[m.Node]
		var t trace
		if !m.Lapsed && (!shown || c.version < st.version) { // others are judged without
			t = b.activity.of(member{group, m.Node})
			st.group.byTree(st.routes[m.Node], st.version, &t)
		}
		is, _ := st.of(m, c, shown, t)
		if is != StateCurrent && is != StateLapsed {
			if until, held := b.held(member{group, m.Node}); held {
				p.Held, p.HeldUntil = p.Held+1, later(p.HeldUntil, until)
			}
		}
		p.count(is)
	}
	p.date(st.group)
	return p, nil
}

// confirmations counts those who confirmed a version of a group, or a newer one.
func (b *Bridge) confirmations(ctx context.Context, group string, version uint64) (n int, err error) {
	err = b.store.View(ctx, func(tx *store.Tx) error {
		return tx.QueryRow(`SELECT COUNT(*) FROM bridge_confirmed WHERE grp = ? AND version >= ?`, group, int64(version)).Scan(&n)
	})
	return n, err
}

// counts are what can be counted of a delivery without the list of members.
type counts struct {
	version   uint64
	confirmed int // that version
	members   int // with those that lapsed
	lapsed    int
}

// counts counts; ok is false where the source does not know how.
func (b *Bridge) counts(ctx context.Context, group string) (n counts, ok bool, err error) {
	c, ok := b.source.(counter)
	if !ok {
		return n, false, nil
	}
	if n.version, _, err = b.source.RekeyMessage(ctx, group); err != nil {
		return n, false, err
	}
	// In this order: who joins and confirms in between takes nobody's place.
	if n.confirmed, err = b.confirmations(ctx, group, n.version); err != nil {
		return n, false, err
	}
	n.members, n.lapsed, err = c.Count(ctx, group)
	return n, err == nil, err
}

// allHave finds out by counting whether all have confirmed the newest version. Only
// members are in the ledger; where one lapsed counting is not enough, and it is not
// certain.
func (b *Bridge) allHave(ctx context.Context, group string) (p Progress, all, certain bool, err error) {
	n, ok, err := b.counts(ctx, group)
	if !ok || err != nil {
		return p, false, false, err
	}
	p, all, certain = b.allOf(group, n)
	return p, all, certain, nil
}

// allOf is allHave of what was counted.
func (b *Bridge) allOf(group string, n counts) (p Progress, all, certain bool) {
	if n.lapsed > 0 {
		return p, false, false
	}
	p = Progress{Group: group, Version: n.version, Delivered: n.confirmed, Members: n.members}
	b.date(&p)
	return p, p.Delivered == p.Members, true
}

func (p *Progress) count(state string) {
	switch state {
	case StateLapsed:
		p.Lapsed++
		return
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

// date adds since when the version is due, and since when all have it.
func (b *Bridge) date(p *Progress) {
	b.mu.Lock()
	g := b.groups[p.Group]
	b.mu.Unlock()
	p.date(g)
}

func (p *Progress) date(g groupState) {
	p.Since = g.since
	if n := len(g.rekeys); n > 0 && g.rekeys[n-1].num == p.Version {
		p.Since, p.Done = g.rekeys[n-1].at, g.rekeys[n-1].done
	}
}

// checks are groups of which a member confirmed something: perhaps it was the
// last.
type checks struct {
	wake chan struct{} // one slot

	mu     sync.Mutex
	groups map[string]bool

	lacking map[string]lacking // for finish alone
	skipped map[string]bool    // groups of which lacking was believed; likewise
}

// lacking is what was known of a delivery that was not over: until enough confirmed
// the version since, it is not.
type lacking struct {
	version   uint64
	members   int
	confirmed int // how many had
	missing   int // how many more it took
	at        time.Time
}

// nearly is from how many of so many members on it is worth looking whether all have
// confirmed a version.
func nearly(members int) int { return members - max(16, members/10) }

// lackingFor is how long that is believed: a member that leaves or lapses is not
// waited for any more.
const lackingFor = 10 * time.Second

func newChecks() *checks {
	return &checks{wake: make(chan struct{}, 1), groups: map[string]bool{}, lacking: map[string]lacking{}, skipped: map[string]bool{}}
}

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
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		if again.Stop(); len(b.checks.skipped) > 0 {
			again.Reset(lackingFor)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-b.checks.wake:
		case <-again.C:
			for group := range b.checks.skipped {
				b.checks.add(group)
			}
			clear(b.checks.skipped)
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
	version, _, err := b.source.RekeyMessage(ctx, group)
	if err != nil {
		return err
	}
	b.mu.Lock()
	known := b.groups[group].rekeys
	b.mu.Unlock()
	if n := len(known); n > 0 && known[n-1].num == version && !known[n-1].done.IsZero() {
		return nil // whoever confirms now does so once more
	}
	if p, all, certain, err := b.allHave(ctx, group); err != nil {
		return fmt.Errorf("bridge: end of the delivery of %q: %w", group, err)
	} else if certain {
		if all {
			return b.finished(ctx, p)
		}
		return nil
	}
	confirmed, err := b.confirmations(ctx, group, version) // is cheap beside the tally
	if err != nil {
		return fmt.Errorf("bridge: confirmations of %q: %w", group, err)
	}
	now := time.Now()
	l, before := b.checks.lacking[group]
	switch {
	case before && l.version != version:
		l = lacking{version: version, members: l.members, missing: nearly(l.members), at: now}
		b.checks.lacking[group] = l
	case now.Sub(l.at) >= lackingFor:
		before = false
	}
	if before && confirmed-l.confirmed < l.missing {
		b.checks.skipped[group] = true // looked at again when nobody confirms any more
		return nil
	}
	delete(b.checks.skipped, group)
	p, err := b.Tally(ctx, group)
	if err != nil || !p.Done.IsZero() {
		return err
	}
	// confirmed was counted before, so that none of the missing is in it.
	b.checks.lacking[group] = lacking{p.Version, p.Members, confirmed, p.Members - p.Delivered, now}
	if p.Delivered < p.Members {
		return nil
	}
	return b.finished(ctx, p)
}

// finished notes that all have confirmed a rekey.
func (b *Bridge) finished(ctx context.Context, p Progress) error {
	if !p.Done.IsZero() {
		return nil
	}
	now, group := time.Now(), p.Group
	fresh := false
	err := b.store.Update(ctx, func(tx *store.Tx) error {
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
	if p.Members == 0 {
		return nil
	}
	b.log.InfoContext(ctx, "every member has the rekey", "group", group, "version", p.Version, "n", p.Members, "took", now.Sub(p.Since))
	return nil
}
