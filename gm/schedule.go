package gm

import (
	"context"
	"fmt"
	"time"

	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// retryRekey is the wait after a rekey that failed, for instance because the
// disk is full.
const retryRekey = 10 * time.Second

// schedule works off what is due: rekeys, and the end of a lapsed member's
// grace. It sleeps until the next of them, or until something new becomes due.
func (m *Manager) schedule(ctx context.Context) error {
	for {
		next := earlier(m.lapseAwaited(ctx), m.evictAfterGrace(ctx))
		for _, g := range m.byID() {
			t := m.workOff(ctx, g)
			if !t.IsZero() && (next.IsZero() || t.Before(next)) {
				next = t
			}
		}
		if err := m.sleep(ctx, next); err != nil {
			return err
		}
	}
}

// sleep waits until t (none if it is zero), a poke, or the end of ctx.
func (m *Manager) sleep(ctx context.Context, t time.Time) error {
	alarm := time.NewTimer(nap(t, time.Now()))
	defer alarm.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-m.wake:
	case <-alarm.C:
	}
	return nil
}

// nap is how long to sleep until t. Timers do not see that somebody sets the
// clock: a machine without one of its own may learn the time of day after the
// start, and what is due then must not wait for days.
func nap(t, now time.Time) time.Duration {
	if t.IsZero() {
		return longestSleep
	}
	return min(t.Sub(now), longestSleep)
}

// workOff rekeys a group if that is due, and returns when to look again.
func (m *Manager) workOff(ctx context.Context, g *group) time.Time {
	r, err := m.lookForDue(ctx, g)
	if isNotFound(err) {
		return time.Time{} // deleted meanwhile
	}
	if err != nil {
		return m.failed(ctx, g, err)
	}
	if r.state >= stateStopped {
		return time.Time{}
	}
	now := time.Now()
	renewal := time.Unix(r.exp, 0).Add(-margin(g.cfg.KeyLifetime))
	why := r.dueReasons
	switch {
	case r.dueAt != 0 && !time.UnixMilli(r.dueAt).After(now):
	case r.dueAt != 0 && time.UnixMilli(r.dueAt).Sub(now) > longest(r.dueReasons, g.cfg)+clockSlack:
		m.log.WarnContext(ctx, "the clock was set back: a rekey that is due does not wait for it",
			"group", g.cfg.Name, "reason", why.String(), "was_due", time.UnixMilli(r.dueAt).UTC())
	case !renewal.After(now):
		why |= byLifetime
	case r.dueAt != 0 && time.UnixMilli(r.dueAt).Before(renewal):
		return time.UnixMilli(r.dueAt)
	default:
		return renewal
	}
	if why == byExpiry {
		needed, err := m.expiryNeedsRekey(ctx, g)
		if err != nil {
			return m.failed(ctx, g, err)
		}
		if !needed {
			return now
		}
	}
	if _, err := m.rekey(ctx, g, why, "", r.num); err != nil {
		return m.failed(ctx, g, err)
	}
	return now // look again: a rekey wakes nobody who was due meanwhile
}

// longest is how long a rekey waits for others at most. What waits for longer was
// noted by a clock that was ahead, and somebody who left may hold the keys
// (docs/protocol.md, Section 7).
func longest(why reasons, c *groupcomm.GroupConfig) time.Duration {
	if why&byExpiry != 0 && why&^(byExpiry|byEviction) == 0 {
		return max(c.BatchWindow, c.ExpiryBatch)
	}
	return c.BatchWindow
}

// margin is how long before its expiry keying material is renewed, so that
// members that sleep have it in time.
func margin(lifetime time.Duration) time.Duration { return lifetime / 10 }

func (m *Manager) failed(ctx context.Context, g *group, err error) time.Time {
	if ctx.Err() == nil {
		m.log.ErrorContext(ctx, "due rekey failed", "group", g.cfg.Name, "err", err)
		if m.note != nil {
			m.note(groupcomm.NoteRekeyFailed, groupcomm.Event{Group: g.cfg.Name, Reason: err.Error()})
		}
	}
	return time.Now().Add(retryRekey)
}

func (m *Manager) lookForDue(ctx context.Context, g *group) (*row, error) {
	r := &row{}
	err := m.st.View(ctx, func(tx *store.Tx) error {
		return tx.QueryRow(`SELECT `+rowColumns+` FROM gm_groups g WHERE g.id = ?`, g.id).
			Scan(&r.num, &r.gid, &r.state, &r.exp, &r.handed, &r.dueAt, &r.dueReasons, &r.changes)
	})
	return r, err
}

// expiryNeedsRekey says whether a lapsed member holds the current material. If
// none does, because all got new tokens or a rekey came for another reason,
// what was due is not due any more.
func (m *Manager) expiryNeedsRekey(ctx context.Context, g *group) (bool, error) {
	needed := false
	err := m.st.Update(ctx, func(tx *store.Tx) error {
		var n int64
		err := tx.QueryRow(`SELECT COUNT(*) FROM gm_members m JOIN gm_groups g ON g.id = m.group_id
			WHERE m.group_id = ? AND m.lapsed = 1 AND m.lapsed_num = g.num`, g.id).Scan(&n)
		if err != nil {
			return err
		}
		if needed = n > 0; needed {
			return nil
		}
		_, err = tx.Exec(`UPDATE gm_groups SET due_at = 0, due_reasons = 0 WHERE id = ? AND due_reasons = ?`, g.id, byExpiry)
		return err
	})
	return needed, err
}

// evictAfterGrace evicts the lapsed members whose grace is over, and returns
// when the next one's will be. They have got no newer key since they lapsed, so
// their eviction joins the next batch of expiries.
func (m *Manager) evictAfterGrace(ctx context.Context) time.Time {
	var next time.Time
	for _, g := range m.byID() {
		t, err := m.evictGroupAfterGrace(ctx, g)
		if err != nil {
			t = m.failed(ctx, g, fmt.Errorf("evict after grace: %w", err))
		}
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	return next
}

func (m *Manager) evictGroupAfterGrace(ctx context.Context, g *group) (next time.Time, err error) {
	oldest := int64(0)
	limit := time.Now().Add(-g.cfg.ExpiryGrace).UnixMilli()
	read := func(tx *store.Tx) error {
		return tx.QueryRow(`SELECT COALESCE(MIN(expires), 0) FROM gm_members WHERE lapsed = 1 AND group_id = ?`, g.id).Scan(&oldest)
	}
	if err := m.st.View(ctx, read); err != nil || oldest == 0 {
		return time.Time{}, err
	}
	evicted := 0
	if oldest <= limit {
		err := m.st.Update(ctx, func(tx *store.Tx) error {
			evicted = 0
			var over []*member
			if err := eachMember(tx, `m.lapsed = 1 AND m.group_id = ? AND m.expires <= ? ORDER BY m.node`, []any{g.id, limit},
				func(mb *member) error {
					over = append(over, mb)
					return nil
				}); err != nil {
				return err
			}
			for _, mb := range over {
				if err := m.evictTokenless(tx, g, mb, byExpiry, g.cfg.ExpiryBatch); err != nil {
					return err
				}
				evicted++
			}
			return read(tx)
		})
		if err != nil {
			return time.Time{}, err
		}
	}
	if evicted > 0 {
		m.met.removals.WithLabelValues("evicted").Add(float64(evicted))
		m.log.InfoContext(ctx, "grace is over, nodes evicted", "group", g.cfg.Name, "nodes", evicted)
	}
	if oldest == 0 {
		return time.Time{}, nil
	}
	return time.UnixMilli(oldest).Add(g.cfg.ExpiryGrace), nil
}
