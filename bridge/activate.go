package bridge

import (
	"context"
	"fmt"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// What opened the last wave of a scheduled rekey.
const (
	endConfirmed = "confirmed" // those that were waited for have it
	endSpread    = "spread"    // the time was up
	endOvertaken = "overtaken" // by another rekey
)

// held says until when a member waits at most for the newest rekey, as far as that is
// scheduled. One whose announced time awake ends before is told now: what it lacks
// goes out while it is awake (docs/protocol.md, Section 7).
func (b *Bridge) held(m member) (until time.Time, waits bool) {
	until, waits = b.holds.turn(m, time.Now())
	if !waits {
		return time.Time{}, false
	}
	if a := b.activity.awakeUntil(m); !a.IsZero() && a.Before(until) {
		return time.Time{}, false
	}
	return until, true
}

// heldBack is [coap.Notification.Wait] for members that wait for their turn.
func (b *Bridge) heldBack(topic string) func(coap.Peer) bool {
	return func(p coap.Peer) bool {
		m, ok := b.behind(topic, p)
		if !ok {
			return false
		}
		_, held := b.held(m)
		if held {
			b.observers.add(topic, p.Link, m, p.Subject)
		}
		return held
	}
}

// beginHold makes the hold of a group's newest rekey, or ends the one before it.
func (b *Bridge) beginHold(ctx context.Context, group string, num uint64) error {
	h, urgent, err := b.readHold(ctx, group, num)
	if err != nil {
		return fmt.Errorf("bridge: order of the rekey of %q: %w", group, err)
	}
	if h != nil {
		if err := b.fill(ctx, group, h, urgent); err != nil {
			return err
		}
		b.log.InfoContext(ctx, "rekey is told in order", "group", group, "version", num,
			"responders", len(h.awaited[waveResponders]), "phased", len(h.awaited[wavePhased]), "others", len(h.queues[waveOthers]), "until", h.until)
	}
	if before := b.holds.set(group, h); before != nil && !before.active && before.num < num {
		b.met.activations.WithLabelValues(endOvertaken).Inc()
	}
	return nil
}

// readHold reads what the rekey's transaction wrote; nil when nobody waits. urgent is
// the newest version before it that everybody has to get at once.
func (b *Bridge) readHold(ctx context.Context, group string, num uint64) (h *hold, urgent uint64, err error) {
	now := time.Now()
	err = b.store.View(ctx, func(tx *store.Tx) error {
		h, urgent = nil, 0
		rows, err := tx.Query(`SELECT num, at, held_until, ordered FROM bridge_rekey WHERE grp = ? AND num <= ? ORDER BY num DESC`, group, int64(num))
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var n, at, until, ordered int64
			if err := rows.Scan(&n, &at, &until, &ordered); err != nil {
				return err
			}
			switch {
			case uint64(n) == num && until != 0:
				if c := newHold(num, time.UnixMilli(at), time.UnixMilli(until)); !c.over(now) {
					c.ordered = ordered != 0
					h = c
				}
			case until == 0:
				urgent = uint64(n)
				return nil
			}
		}
		return rows.Err()
	})
	return h, urgent, err
}

// fill puts the members into their waves. Who does not hold what was urgent before it
// waits for nothing: a leave is never held up by a rekey that follows it. Nobody
// waits for one that sleeps or does not answer.
func (b *Bridge) fill(ctx context.Context, group string, h *hold, urgent uint64) error {
	members, err := b.source.Members(ctx, group)
	if err != nil {
		return fmt.Errorf("bridge: order of the rekey of %q: %w", group, err)
	}
	confirmed, routes, err := b.readLedger(ctx, group, true)
	if err != nil {
		return fmt.Errorf("bridge: order of the rekey of %q: %w", group, err)
	}
	state, err := b.upTo(ctx, group, h.num)
	if err != nil {
		return err
	}
	j := judge{version: h.num, group: state, policy: b.policy(group), asleepAfter: b.cfg.AsleepAfter, now: time.Now()}
	for _, m := range members {
		c, shown := confirmed[m.Node]
		t := b.activity.of(member{group, m.Node})
		if t.shown && (!shown || t.confirmed > c.version) {
			c, shown = confirmation{version: t.confirmed, at: t.heard}, true
		}
		has := m.JoinedAt
		if shown {
			has = max(has, c.version)
		}
		phased := m.Phased && !routes[m.Node].tree // what a tree tells goes to all at once
		if m.Lapsed || m.JoinedAt >= h.num || has >= h.num && !phased {
			continue
		}
		s, _ := j.of(m, c, shown, t)
		w := waveOthers
		switch {
		case phased: // it begins later, though it has it
			w = wavePhased
		case h.ordered && m.Roles&groupcomm.Responder != 0:
			w = waveResponders
		}
		if s == StatePending {
			h.await(m.Node, w)
		}
		if has >= urgent {
			h.add(group, m.Node, w)
		}
	}
	h.order()
	return nil
}

// resumeHolds makes the holds of before a restart again.
func (b *Bridge) resumeHolds(ctx context.Context) error {
	b.mu.Lock()
	newest := map[string]uint64{}
	for group, g := range b.groups {
		if n := len(g.rekeys); n > 0 && time.Now().Before(g.rekeys[n-1].held) {
			newest[group] = g.rekeys[n-1].num
		}
	}
	b.mu.Unlock()
	for group, num := range newest {
		if err := b.beginHold(ctx, group, num); err != nil && !gone(err) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			b.log.ErrorContext(ctx, "cannot go on with the order of a rekey: everybody is told now", "group", group, "err", err)
		}
	}
	return nil
}

// runHolds has members told when their turn comes, until ctx ends.
func (b *Bridge) runHolds(ctx context.Context) error {
	for {
		if b.store.Shared() {
			b.confirmedElsewhere(ctx)
		}
		now := time.Now()
		d := b.holds.take(now)
		for group, how := range d.ended {
			b.met.activations.WithLabelValues(how).Inc()
			b.log.InfoContext(ctx, "rekey is for everybody now", "group", group, "because", how)
		}
		for _, group := range d.activated {
			b.activatePhased(ctx, group)
		}
		for group, nodes := range d.released {
			b.release(group, nodes)
		}
		nap := longestNap
		if !d.next.IsZero() {
			// Timers do not see that somebody sets the clock.
			nap = min(d.next.Sub(now), longestNap)
			if b.store.Shared() {
				nap = min(nap, sharedEvery)
			}
		}
		t := time.NewTimer(nap)
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-b.holds.wake:
		case <-t.C:
		}
		t.Stop()
	}
}

// confirmedElsewhere takes note of what other gateways on the same store wrote.
func (b *Bridge) confirmedElsewhere(ctx context.Context) {
	for _, group := range b.holds.all() {
		num, awaited := b.holds.awaitedOf(group)
		if len(awaited) == 0 {
			continue
		}
		confirmed, _, err := b.readLedger(ctx, group, true)
		if err != nil {
			continue // the time of the hold ends in any case
		}
		for _, node := range awaited {
			if c, ok := confirmed[node]; ok && c.version >= num {
				b.holds.confirmed(member{group, node}, c.version)
			}
		}
	}
}

// resumer is the optional part of a hub that sends, in its turn, what a peer was kept
// waiting for.
type resumer interface {
	Resume(topic string, link coap.LinkID)
}

// release tells members over the channels that they have.
func (b *Bridge) release(group string, nodes []string) {
	b.mu.Lock()
	version, _ := b.groups[group].newest()
	b.mu.Unlock()
	hub, resumes := b.hub.(resumer)
	for _, node := range nodes {
		m := member{group, node}
		if b.activity.holds(m, version) && !b.holds.begins(m, version) {
			continue
		}
		if c, ok := b.controls.get(m); ok {
			b.callOne(m, c)
		}
		if !resumes {
			continue
		}
		for _, link := range b.observers.links(m) {
			hub.Resume(groupTopic(group), link)
		}
	}
	if b.publisher != nil {
		b.publisher.wakeGroup(group)
	}
}

// Two phases: members that asked for them, in -65537 of the Join Request, are told of
// a scheduled rekey before all others. They keep the new keys beside those in use,
// read messages under both, and begin to protect with the new ones when the last
// wave opens: then they are sent the rekey message that everybody gets.

// Dormant is in how many seconds, at the latest, a member begins to use a version that
// it has; 0: at once.
func (b *Bridge) Dormant(group, node string, num uint64) uint64 {
	now := time.Now()
	if !b.holds.dormant(member{group, node}, num, now) {
		return 0
	}
	_, left, _ := b.holds.phased(group, num, now)
	return left
}

// phaseBody is the rekey message for m: body, or that of the first phase.
func (b *Bridge) phaseBody(m member, version uint64, body []byte) ([]byte, error) {
	now := time.Now()
	if !b.holds.dormant(m, version, now) {
		return body, nil
	}
	whole, _, _ := b.holds.phased(m.group, version, now)
	return groupcomm.Dormant(body, whole)
}

// tellPhased hands the state of a rekey to those who observe in two phases.
func (b *Bridge) tellPhased(ctx context.Context, l *roll, group string, version uint64, body []byte) error {
	topic := groupcomm.PhasedTopic(group)
	whole, _, dormant := b.holds.phased(group, version, time.Now())
	if dormant {
		var err error
		if body, err = groupcomm.Dormant(body, whole); err != nil {
			return fmt.Errorf("bridge: first phase of the rekey of %q: %w", group, err)
		}
	}
	n := b.notification(ctx, l, topic, group, version, coap.ACEGroupcomm, body)
	n.Version = groupcomm.PhasedVersion(version, !dormant)
	b.hub.Publish(topic, n)
	return nil
}

// activatePhased has the members of the first wave begin.
func (b *Bridge) activatePhased(ctx context.Context, group string) {
	version, body, err := b.source.RekeyMessage(ctx, group)
	if err == nil && body != nil {
		err = b.tellPhased(ctx, nil, group, version, body)
		n := b.notification(ctx, nil, groupTopic(group), group, version, coap.ACEGroupcomm, body)
		for _, node := range b.observers.observing(group) {
			if b.holds.begins(member{group, node}, version) {
				b.hub.Publish(nodeTopic(group, node), n)
			}
		}
	}
	if err != nil && !gone(err) && ctx.Err() == nil {
		b.log.WarnContext(ctx, "members with two phases begin by themselves: they cannot be told", "group", group, "err", err)
	}
}
