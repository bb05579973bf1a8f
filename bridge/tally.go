package bridge

import (
	"context"
	"sync"
	"time"
)

// Shape of what metrics tell of a large group: to read the list of its members at each
// scrape would cost more than the delivery that they tell of.
const (
	// tallyMany is from how many members on a list is long; others are that take
	// tallySlow to be read.
	tallyMany = 2048
	tallySlow = 50 * time.Millisecond
	// tallyShare: of the time that passes, one part at most is spent on reading it.
	tallyShare = 20
	// tallyRush: when since the last look one of so many members confirmed, or a new
	// version is due, a delivery goes on in which they are counted. It is over after as
	// many looks, unless there is another; tallyOld is for how long that may go.
	tallyRush = 100
	tallyOld  = 10 * time.Minute
)

// tallies are the newest of each group; the zero value is ready.
type tallies struct {
	mu     sync.Mutex // held while one is made: two scrapes do not do the same work
	groups map[string]*tally
	many   int // in place of tallyMany; 0: that
}

// tally is one of before.
type tally struct {
	Progress
	counts        // when it was made
	seen   counts // at the last look
	at     time.Time
	took   time.Duration
}

// tallied is a Tally for the metrics. Of a large group the list of members is not read
// while a delivery goes on: how many have it is counted, and the others are taken to be
// what they were. When it rests all is as in the list, as it was some times ago what it
// takes to read it.
func (b *Bridge) tallied(ctx context.Context, group string) (Progress, error) {
	b.tallies.mu.Lock()
	defer b.tallies.mu.Unlock()
	n, ok, err := b.counts(ctx, group)
	if err != nil {
		delete(b.tallies.groups, group)
		return Progress{}, err
	}
	now := time.Now()
	old := b.tallies.groups[group]
	if old != nil && ok && (n.members >= b.tallies.long() || old.took >= tallySlow) {
		rush := n.version != old.seen.version || (n.confirmed-old.seen.confirmed)*tallyRush >= n.members
		old.seen = n
		if age := now.Sub(old.at); rush && age < tallyOld || age < tallyShare*old.took {
			p := old.after(n)
			b.date(&p)
			return p, nil
		}
	}
	t := &tally{counts: n, seen: n, at: now}
	all := false
	if t.Progress, all, _ = b.allOf(group, n); !ok || !all {
		if t.Progress, err = b.list(ctx, group); err != nil {
			delete(b.tallies.groups, group)
			return Progress{}, err
		}
	}
	t.took = time.Since(now)
	if b.tallies.groups == nil {
		b.tallies.groups = map[string]*tally{}
	}
	b.tallies.groups[group] = t
	return t.Progress, nil
}

func (t *tallies) long() int {
	if t.many > 0 {
		return t.many
	}
	return tallyMany
}

// after is the tally as far as counting tells it some time later. Where nobody lapsed
// it is exact in who has the version and who lacks it.
func (t *tally) after(n counts) Progress {
	p := t.Progress
	p.Version, p.Members, p.Lapsed = n.version, n.members-n.lapsed, n.lapsed
	p.Delivered = n.confirmed
	if n.version == t.counts.version {
		p.Delivered -= t.counts.confirmed - t.Delivered // who lapsed after it confirmed
	}
	p.Delivered = min(max(p.Delivered, 0), p.Members)
	lack := p.Members - p.Delivered
	p.Unreachable = min(p.Unreachable, lack)
	p.Asleep = min(p.Asleep, lack-p.Unreachable)
	p.Pending = lack - p.Unreachable - p.Asleep
	if p.Held = min(p.Held, lack); p.Held == 0 {
		p.HeldUntil = time.Time{}
	}
	return p
}
