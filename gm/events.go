package gm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// A member whose access token expired is lapsed: it stays a member, keeps its
// Sender ID, and gets no newer key (docs/protocol.md, Section 2). A new token for the
// same key and roles restores it as it was. After the grace it is evicted;
// without a grace at once. A token that was revoked gives no grace.

// cursor is the name under which the Group Manager follows the event log.
const cursor = "gm"

// followTokens keeps memberships in step with access tokens until ctx ends.
// What could not be done, for instance because the disk is full, is met again:
// the cursor stands before it, and an event that comes again changes nothing.
func (m *Manager) followTokens(ctx context.Context) error {
	return m.follow(ctx, cursor, "memberships do not follow their tokens", m.workOn)
}

// follow has work done on the events after a cursor until ctx ends, again after
// a while where it fails, which the log is told as trouble.
func (m *Manager) follow(ctx context.Context, cursor, trouble string, work func(context.Context, []store.Event) error) error {
	for delay := followMin; ; delay = min(2*delay, followMax) {
		err := m.st.Follow(ctx, cursor, func(ctx context.Context, events []store.Event) error {
			if err := work(ctx, events); err != nil {
				return err
			}
			delay = followMin
			return nil
		})
		if ctx.Err() != nil || errors.Is(err, store.ErrClosed) {
			return err
		}
		m.log.ErrorContext(ctx, trouble, "err", err, "retry_in", delay)
		t := time.NewTimer(delay)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
}

// workOn does what the events of tokens ask for, in their order.
func (m *Manager) workOn(ctx context.Context, events []store.Event) error {
	for _, e := range events {
		switch e.Kind {
		case groupcomm.EventLeft, groupcomm.EventEvicted, groupcomm.EventRekeyed:
			if m.st.Shared() {
				m.poke() // another gateway made a rekey due, and may not live to do it
			}
			continue
		}
		var work func(context.Context, *groupcomm.Event) error
		switch e.Kind {
		case groupcomm.EventTokenExpired:
			work = m.tokenExpired
		case groupcomm.EventTokenStored:
			work = m.tokenStored
		default:
			continue
		}
		ev, err := groupcomm.DecodeEvent(e.Data)
		if err != nil {
			// Written by this program: nobody can repair it, and the log must
			// not stand still for it.
			m.log.ErrorContext(ctx, "unreadable event", "id", e.ID, "kind", e.Kind, "err", err)
			continue
		}
		if err := work(ctx, ev); err != nil {
			return fmt.Errorf("gm: event %d (%s): %w", e.ID, e.Kind, err)
		}
	}
	return nil
}

// memberships lists the groups of a subject by id.
func memberships(tx *store.Tx, s subject) (map[int64]*member, error) {
	ids := []int64{}
	rows, err := tx.Query(`SELECT m.group_id FROM gm_members m WHERE m.subject_id = ? AND m.subject_kind = ?`, s.id, s.kind)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	out := map[int64]*member{}
	for _, id := range ids {
		err := eachMember(tx, `m.group_id = ? AND m.subject_id = ? AND m.subject_kind = ?`, []any{id, s.id, s.kind},
			func(mb *member) error {
				out[id] = mb
				return nil
			})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Memberships lists what a subject is a member of, by group name.
func (m *Manager) Memberships(ctx context.Context, s coap.Subject) ([]groupcomm.Member, error) {
	groups := m.byID()
	var out []groupcomm.Member
	err := m.st.View(ctx, func(tx *store.Tx) error {
		out = nil
		found, err := memberships(tx, subjectOf(s))
		if err != nil {
			return err
		}
		for id, mb := range found {
			if g, ok := groups[id]; ok {
				out = append(out, mb.public(g.cfg.Name))
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("gm: memberships: %w", err)
	}
	slices.SortFunc(out, func(a, b groupcomm.Member) int { return strings.Compare(a.Group, b.Group) })
	return out, nil
}

// Belongs says whether a subject is a member of some group.
func (m *Manager) Belongs(ctx context.Context, s coap.Subject) (bool, error) {
	var n int
	err := m.st.View(ctx, func(tx *store.Tx) error {
		who := subjectOf(s)
		return tx.QueryRow(`SELECT count(*) FROM gm_members WHERE subject_id = ? AND subject_kind = ?`, who.id, who.kind).Scan(&n)
	})
	if err != nil {
		return false, fmt.Errorf("gm: memberships: %w", err)
	}
	return n > 0, nil
}

// byID lists all groups by row id.
func (m *Manager) byID() map[int64]*group {
	m.mu.RLock()
	defer m.mu.RUnlock()
	out := make(map[int64]*group, len(m.groups))
	for _, g := range m.groups {
		out[g.id] = g
	}
	return out
}

// tokenExpired ends the memberships that stand on a token: by expiry, or for the
// reason that the event names, which is a revocation. An event that a newer
// token has overtaken changes nothing; neither does one that comes again.
func (m *Manager) tokenExpired(ctx context.Context, e *groupcomm.Event) error {
	why := byExpiry
	if e.Reason != "" {
		why = byRevocation
	}
	return m.lapse(ctx, e.Subject, why, func(_ *group, mb *member) bool {
		return e.Expires == 0 || !mb.expires.After(time.Unix(e.Expires, 0).Add(time.Second-1))
	})
}

// lapse ends those memberships of a subject for which gone says so: with
// byExpiry they lapse, if their group has a grace; else they are evicted.
func (m *Manager) lapse(ctx context.Context, s coap.Subject, why reasons, gone func(*group, *member) bool) error {
	groups := m.byID()
	type end struct{ group, node, membership string }
	var ended []end
	lapsed, evicted := 0, 0
	err := m.st.Update(ctx, func(tx *store.Tx) error {
		lapsed, evicted, ended = 0, 0, nil
		found, err := memberships(tx, subjectOf(s))
		if err != nil {
			return err
		}
		for id, mb := range found {
			g, ok := groups[id]
			if !ok || !gone(g, mb) {
				continue
			}
			if why != byExpiry || g.cfg.ExpiryGrace == 0 {
				if err := m.evictTokenless(tx, g, mb, why, g.cfg.BatchWindow); err != nil {
					return err
				}
				evicted++
				ended = append(ended, end{g.cfg.Name, mb.node, "evicted"})
				continue
			}
			if mb.lapsed {
				continue
			}
			lapsed++
			ended = append(ended, end{g.cfg.Name, mb.node, "lapsed"})
			if _, err := tx.Exec(`UPDATE gm_members SET lapsed = 1, expires = ?,
				lapsed_num = (SELECT num FROM gm_groups WHERE id = ?) WHERE group_id = ? AND node = ?`,
				lapseTime(mb), id, id, mb.node); err != nil {
				return err
			}
			if err := g.makeDue(tx, time.Now().Add(g.cfg.ExpiryBatch), byExpiry); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil || lapsed+evicted == 0 {
		return err
	}
	m.poke()
	m.met.lapses.Add(float64(lapsed))
	m.met.removals.WithLabelValues("evicted").Add(float64(evicted))
	for _, e := range ended {
		m.log.InfoContext(ctx, "token of a member ended", "group", e.group, "node", e.node, "reason", why.String(), "membership", e.membership)
	}
	return nil
}

// lapseTime is the time from which the grace of a member counts, in
// milliseconds: the expiry of its token, or now if that is still to come.
func lapseTime(mb *member) int64 {
	now := time.Now()
	if mb.expires.IsZero() || mb.expires.After(now) {
		return now.UnixMilli()
	}
	return mb.expires.UnixMilli()
}

// evictTokenless removes a member that has no token any more.
func (m *Manager) evictTokenless(tx *store.Tx, g *group, mb *member, why reasons, window time.Duration) error {
	var num uint64
	if err := tx.QueryRow(`SELECT num FROM gm_groups WHERE id = ?`, g.id).Scan(&num); err != nil {
		return err
	}
	return m.remove(tx, g, num, mb, groupcomm.EventEvicted, why|byEviction, window)
}

// tokenStored restores the lapsed memberships that a new token covers, and
// notes its expiry. Memberships whose roles it does not grant any more lapse.
func (m *Manager) tokenStored(ctx context.Context, e *groupcomm.Event) error {
	grant, err := m.auth.Grant(ctx, coap.Peer{Via: coap.Internal, Subject: e.Subject})
	if err != nil {
		if coap.Deliberate(err) {
			return nil // it is gone again; its expiry is a later event
		}
		return err
	}
	groups := m.byID()
	covers := func(g *group, mb *member) bool { return grant.Scope.RolesFor(g.cfg.Name).Has(mb.roles) }
	restored := 0
	err = m.st.Update(ctx, func(tx *store.Tx) error {
		restored = 0
		found, err := memberships(tx, subjectOf(e.Subject))
		if err != nil {
			return err
		}
		for id, mb := range found {
			g, ok := groups[id]
			if !ok || !covers(g, mb) {
				continue
			}
			if _, err := tx.Exec(`UPDATE gm_members SET expires = ?, lapsed = 0, awaited = 0 WHERE group_id = ? AND node = ?`,
				millis(grant.Expires), id, mb.node); err != nil {
				return err
			}
			if !mb.lapsed {
				continue
			}
			restored++
			// A rekey that is being prepared would leave it out.
			if _, err := tx.Exec(`UPDATE gm_groups SET changes = changes + 1 WHERE id = ?`, id); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if restored > 0 {
		m.log.InfoContext(ctx, "token renewed, memberships restored", "memberships", restored)
	}
	return m.lapse(ctx, e.Subject, byExpiry, func(g *group, mb *member) bool { return !covers(g, mb) })
}
