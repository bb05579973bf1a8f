package bridge

import (
	"container/heap"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// A member that does not answer is not lost but asleep. The newest rekey waits
// for its next sign of life: any authenticated datagram, a new session at the
// broker, or the moment for which it announced that it will be awake. Beside
// that it is tried again by itself for a while, in growing distances.

// Alive says that an authenticated datagram came from p. It does not wait: what
// the member lacks goes out after the answer to that datagram, over every
// channel that failed before. (Protocol.md, Section 7.)
func (b *Bridge) Alive(p coap.Peer) {
	if p.Subject == (coap.Subject{}) {
		return
	}
	members, known := b.activity.members(p.Subject)
	if !known {
		b.lookups.add(p) // after a restart, for instance
		return
	}
	b.wake(p, members)
}

// wake has members told what they lack.
func (b *Bridge) wake(p coap.Peer, members []member) {
	now := time.Now()
	for _, m := range members {
		b.activity.heard(m, "", now)
		c, ok := b.controls.move(m, p)
		if !ok {
			continue
		}
		owed := false
		b.activity.change(m, func(t *trace) { owed, t.owed = t.owed, false })
		if owed {
			b.calls.add(func(ctx context.Context) { b.callRekey(ctx, m, c) })
		}
	}
}

// roster is the optional part of a [Source] that knows what a subject is a
// member of.
type roster interface {
	Memberships(ctx context.Context, s coap.Subject) ([]groupcomm.Member, error)
}

// present says that the broker saw a member's session begin or end. A session
// that begins is a sign of life; the broker hands over the retained newest rekey
// by itself. It is a hint only: whoever can write to the topic can say so.
func (b *Bridge) present(ctx context.Context, rid string, here bool) {
	if m, ok := b.wasPresent(ctx, rid, here); ok && here {
		b.activity.heard(m, channelMQTT, time.Now())
	}
}

// wasPresent notes whether a member has a session at the broker.
func (b *Bridge) wasPresent(ctx context.Context, rid string, here bool) (m member, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	err := b.store.View(ctx, func(tx *store.Tx) error {
		return tx.QueryRow(`SELECT grp, node FROM bridge_registration WHERE rid = ?`, rid).Scan(&m.group, &m.node)
	})
	if err != nil {
		return m, false // ended meanwhile; or a store in trouble, which reports itself
	}
	b.activity.change(m, func(t *trace) { t.online, t.connected = true, here })
	return m, true
}

// lookups are peers that were heard and whose memberships this process does not
// know yet.
type lookups struct {
	wake chan struct{} // one slot

	mu   sync.Mutex
	wait map[coap.Subject]coap.Peer
}

func newLookups() *lookups {
	return &lookups{wake: make(chan struct{}, 1), wait: map[coap.Subject]coap.Peer{}}
}

func (l *lookups) add(p coap.Peer) {
	p.Exporter = nil
	l.mu.Lock()
	if len(l.wait) < maxLookups {
		l.wait[p.Subject] = p
	}
	l.mu.Unlock()
	signal(l.wake)
}

func (l *lookups) take() map[coap.Subject]coap.Peer {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.wait
	l.wait = map[coap.Subject]coap.Peer{}
	return out
}

// recognize looks up who was heard, until ctx ends.
func (b *Bridge) recognize(ctx context.Context) error {
	r, ok := b.source.(roster)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-b.lookups.wake:
		}
		if !ok {
			continue
		}
		for s, p := range b.lookups.take() {
			found, err := r.Memberships(ctx, s)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				b.log.WarnContext(ctx, "cannot look up whom a sign of life is from", "err", err)
				continue // the next one tries again
			}
			b.recognized(ctx, p, found)
		}
	}
}

// recognized notes what a peer is a member of, and has it told what it lacks.
func (b *Bridge) recognized(ctx context.Context, p coap.Peer, found []groupcomm.Member) {
	before, _ := b.activity.members(p.Subject)
	b.activity.stranger(p.Subject)
	var list []member
	for _, f := range found {
		if f.Lapsed {
			continue // it gets no newer key
		}
		m := member{f.Group, f.Node}
		list = append(list, m)
		b.activity.belongs(p.Subject, m)
		if f.ControlURI == "" {
			continue
		}
		b.controls.note(m, p, f.ControlURI)
		version, shown, err := b.confirmedBy(ctx, m)
		if err != nil {
			b.log.WarnContext(ctx, "cannot read what a member confirmed", "group", m.group, "node", m.node, "err", err)
		}
		b.mu.Lock()
		due, _ := b.groups[m.group].newest()
		b.mu.Unlock()
		b.activity.change(m, func(t *trace) {
			if shown && (!t.shown || t.confirmed < version) {
				t.shown, t.confirmed = true, version
			}
			if !slices.Contains(before, m) { // else what it was sent is known
				t.owed = due > f.JoinedAt && (!t.shown || t.confirmed < due)
			}
		})
	}
	b.wake(p, list)
}

// confirmedBy reads what a member confirmed.
func (b *Bridge) confirmedBy(ctx context.Context, m member) (version uint64, shown bool, err error) {
	var v int64
	err = b.store.View(ctx, func(tx *store.Tx) error {
		return tx.QueryRow(`SELECT version FROM bridge_confirmed WHERE grp = ? AND node = ?`, m.group, m.node).Scan(&v)
	})
	if errors.Is(err, store.ErrNotFound) {
		return 0, false, nil
	}
	return uint64(v), err == nil, err
}

// failed notes that a member was tried in vain, and when to try again.
func (b *Bridge) failed(m member, channel string, err error) {
	b.activity.attempted(m, channel, err)
	if channel == channelControl {
		b.activity.change(m, func(t *trace) { t.owed = true })
	}
	b.tryLater(m)
}

// tryLater sets the alarm of a member, if it is to be tried again by itself.
func (b *Bridge) tryLater(m member) {
	t := b.activity.of(m)
	now := time.Now()
	wait := min(retryFirst<<min(max(t.attempts-1, 0), 10), retryMost)
	at := now.Add(time.Duration(float64(wait) * (0.75 + rand.Float64()/2)))
	switch {
	case t.asleep(now) && !t.wakeAt.IsZero():
		at = t.wakeAt // announced: tried then in any case
	case t.asleep(now):
		return
	case t.gap > 0 && t.heard.Add(t.gap).After(at):
		at = t.heard.Add(t.gap) // learned
	}
	if !t.asleep(now) && at.Sub(b.pendingSince(m, t)) > b.policy(m.group).RetryFor {
		return // a sign of life brings it
	}
	b.alarms.set(m, at)
}

// pendingSince is when the version became due that m does not hold.
func (b *Bridge) pendingSince(m member, t trace) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.groups[m.group].due(t.confirmed, t.shown)
}

// resender is the optional part of a hub that can send again what a peer did
// not acknowledge, without a sign of life.
type resender interface {
	Resend(link coap.LinkID)
}

// tryAgain works off the alarms until ctx ends.
func (b *Bridge) tryAgain(ctx context.Context) error {
	for {
		due, err := b.alarms.next(ctx)
		if err != nil {
			return err
		}
		for _, m := range due {
			b.again(m)
		}
	}
}

// again tries a member over the channels that it has, unless it was quicker.
func (b *Bridge) again(m member) {
	b.mu.Lock()
	version, _ := b.groups[m.group].newest()
	b.mu.Unlock()
	if b.activity.holds(m, version) {
		return
	}
	if c, ok := b.controls.get(m); ok && b.activity.wants(m, channelControl) {
		b.calls.add(func(ctx context.Context) { b.callRekey(ctx, m, c) })
	}
	if r, ok := b.hub.(resender); ok {
		for _, link := range b.observers.links(m) {
			r.Resend(link)
		}
	}
}

// alarms wake members' deliveries, the earliest first. The zero value is not
// ready: use newAlarms.
type alarms struct {
	wake chan struct{} // one slot

	mu    sync.Mutex
	queue alarmQueue
	at    map[member]time.Time
}

type alarm struct {
	at     time.Time
	member member
}

func newAlarms() *alarms { return &alarms{wake: make(chan struct{}, 1), at: map[member]time.Time{}} }

// set replaces the alarm of a member.
func (a *alarms) set(m member, at time.Time) {
	a.mu.Lock()
	a.at[m] = at
	heap.Push(&a.queue, alarm{at, m})
	a.mu.Unlock()
	signal(a.wake)
}

// clear removes the alarm of a member.
func (a *alarms) clear(m member) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.at, m)
}

// next waits for the members whose time has come.
func (a *alarms) next(ctx context.Context) ([]member, error) {
	for {
		due, nap := a.take(time.Now())
		if len(due) > 0 {
			return due, nil
		}
		t := time.NewTimer(nap)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil, ctx.Err()
		case <-a.wake:
		case <-t.C:
		}
		t.Stop()
	}
}

func (a *alarms) take(now time.Time) (due []member, nap time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.queue) > 0 {
		first := a.queue[0]
		if at, ok := a.at[first.member]; !ok || !at.Equal(first.at) {
			heap.Pop(&a.queue) // replaced or cleared
			continue
		}
		if first.at.After(now) {
			// Timers do not see that somebody sets the clock.
			return due, min(first.at.Sub(now), longestNap)
		}
		heap.Pop(&a.queue)
		delete(a.at, first.member)
		due = append(due, first.member)
	}
	return due, longestNap
}

// alarmQueue is a heap by time.
type alarmQueue []alarm

func (q alarmQueue) Len() int           { return len(q) }
func (q alarmQueue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q alarmQueue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *alarmQueue) Push(x any)        { *q = append(*q, x.(alarm)) }
func (q *alarmQueue) Pop() any {
	old := *q
	x := old[len(old)-1]
	*q = old[:len(old)-1]
	return x
}
