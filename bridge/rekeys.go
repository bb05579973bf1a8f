package bridge

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// groupState is what the bridge remembers of a group between events.
type groupState struct {
	version uint64      // newest version handed to the hub by this process
	since   time.Time   // when the group became known here
	rekeys  []rekeyTime // the newest of the group, in order
	tree    treeSent
}

// rekeyTime says when a version became due.
type rekeyTime struct {
	num  uint64
	at   time.Time
	done time.Time // when every member had confirmed it; zero: not yet
	held time.Time // until when members may wait for it; zero: nobody did
}

// newest is the newest version that became due, and when.
func (g groupState) newest() (version uint64, since time.Time) {
	if n := len(g.rekeys); n > 0 {
		return g.rekeys[n-1].num, g.rekeys[n-1].at
	}
	return g.version, g.since
}

// due is when the first version became due that a member does not hold which
// showed the given one.
func (g groupState) due(confirmed uint64, shown bool) time.Time {
	if !shown {
		_, since := g.newest()
		return since
	}
	if at, ok := g.after(confirmed); ok {
		return at
	}
	return g.since
}

// after is when the first version became due that comes after another; ok: one did.
func (g groupState) after(version uint64) (at time.Time, ok bool) {
	for _, r := range g.rekeys {
		if r.num > version {
			return r.at, true
		}
	}
	return time.Time{}, false
}

// upTo is what is known of a group up to a version, of which the event may be on its
// way still: who was up to date before is not behind for longer than since that rekey.
func (b *Bridge) upTo(ctx context.Context, group string, version uint64) (groupState, error) {
	b.mu.Lock()
	g := b.groups[group]
	b.mu.Unlock()
	known, _ := g.newest()
	if known >= version {
		return g, nil
	}
	var more []rekeyTime
	err := b.store.View(ctx, func(tx *store.Tx) error {
		more = nil
		rows, err := tx.Query(`SELECT num, at, done, held_until FROM bridge_rekey WHERE grp = ? AND num > ? AND num <= ? ORDER BY num`, group, int64(known), int64(version))
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var num, at, done, held int64
			if err := rows.Scan(&num, &at, &done, &held); err != nil {
				return err
			}
			more = append(more, rekeyTime{uint64(num), time.UnixMilli(at), fromMillis(done), fromMillis(held)})
		}
		return rows.Err()
	})
	if err != nil {
		return groupState{}, fmt.Errorf("bridge: rekeys of %q: %w", group, err)
	}
	g.rekeys = append(slices.Clip(g.rekeys), more...)
	return g, nil
}

// noteRekey writes, in the transaction of a rekey, since when its delivery is
// due: a restart does not make a member young again that was silent for days.
// Of a scheduled one it writes until when members may wait for it, too.
func noteRekey(tx *store.Tx, plan groupcomm.RekeyPlan, at time.Time) error {
	var until time.Time
	if plan.Activation.Spread > 0 {
		until = at.Add(plan.Activation.Spread)
	}
	ordered := int64(0)
	if plan.Activation.RespondersFirst {
		ordered = 1
	}
	if _, err := tx.Exec(`INSERT INTO bridge_rekey (grp, num, at, done, held_until, ordered) VALUES (?, ?, ?, 0, ?, ?)
		ON CONFLICT (grp, num) DO UPDATE SET at = excluded.at, done = 0, held_until = excluded.held_until, ordered = excluded.ordered`,
		plan.Group, int64(plan.Num), at.UnixMilli(), millis(until), ordered); err != nil {
		return err
	}
	_, err := tx.Exec(`DELETE FROM bridge_rekey WHERE grp = ? AND num <= ?`, plan.Group, int64(plan.Num)-keptRekeys)
	return err
}

// remember reads what a process before this one knew: since when rekeys are
// due, and what members announced.
func (b *Bridge) remember(ctx context.Context) error {
	type row struct {
		group string
		rekeyTime
	}
	var rekeys []row
	var lives []life
	err := b.store.View(ctx, func(tx *store.Tx) error {
		rekeys, lives = nil, nil
		rows, err := tx.Query(`SELECT grp, num, at, done, held_until FROM bridge_rekey ORDER BY grp, num`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var r row
			var num, at, done, held int64
			if err := rows.Scan(&r.group, &num, &at, &done, &held); err != nil {
				return err
			}
			r.num, r.at, r.done, r.held = uint64(num), time.UnixMilli(at), fromMillis(done), fromMillis(held)
			rekeys = append(rekeys, r)
		}
		if err := rows.Err(); err != nil {
			return err
		}
		lives, err = readLives(tx, "")
		return err
	})
	if err != nil {
		return err
	}
	b.mu.Lock()
	for _, r := range rekeys {
		g := b.groups[r.group]
		g.rekeys = append(g.rekeys, r.rekeyTime)
		b.groups[r.group] = g
	}
	b.mu.Unlock()
	for _, l := range lives {
		b.activity.change(l.member, func(t *trace) {
			t.heard, t.saved, t.asleepAt, t.wakeAt, t.want = l.heard, l.heard, l.asleepAt, l.wakeAt, l.want
		})
	}
	return nil
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}
