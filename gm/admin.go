package gm

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// Groups tells the state of all groups by name.
func (m *Manager) Groups(ctx context.Context) ([]groupcomm.GroupStatus, error) {
	var out []groupcomm.GroupStatus
	err := m.st.View(ctx, func(tx *store.Tx) error {
		out = nil
		rows, err := tx.Query(`SELECT g.name, g.gid, g.num, g.state, g.exp, g.due_at,
			(SELECT COUNT(*) FROM gm_members m WHERE m.group_id = g.id)
			FROM gm_groups g ORDER BY g.name`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var s groupcomm.GroupStatus
			var st state
			var exp, due int64
			if err := rows.Scan(&s.Name, &s.Gid, &s.Version, &st, &exp, &due, &s.Members); err != nil {
				return err
			}
			s.Active = st == stateActive
			s.Exp = time.Unix(exp, 0)
			s.Due = due != 0
			out = append(out, s)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("gm: groups: %w", err)
	}
	return out, nil
}

// Rekey renews the keying material of a group now and returns the new version.
// Whatever was due is done with it. reason is for the log and the event.
func (m *Manager) Rekey(ctx context.Context, name, reason string) (uint64, error) {
	return m.rekeyNow(ctx, name, byOperator, reason)
}

// RekeyScheduled is Rekey by one who is in no hurry: members are told in the order
// that the group has for that, unless something else was due.
func (m *Manager) RekeyScheduled(ctx context.Context, name, reason string) (uint64, error) {
	return m.rekeyNow(ctx, name, byPlan, reason)
}

func (m *Manager) rekeyNow(ctx context.Context, name string, why reasons, reason string) (uint64, error) {
	g, err := m.find(ctx, name)
	if err != nil {
		return 0, err
	}
	mat, err := m.current(ctx, g)
	if err != nil {
		return 0, err
	}
	return m.rekey(ctx, g, why, reason, mat.num)
}

// DeliveryPolicy tells how long the members of a group are run after; false: there is no
// such group.
func (m *Manager) DeliveryPolicy(name string) (groupcomm.DeliveryPolicy, bool) {
	g, ok := m.group(name)
	if !ok {
		return groupcomm.DeliveryPolicy{}, false
	}
	return g.cfg.Delivery, true
}

// UnknownMembersError names those of an Evict that are no members.
type UnknownMembersError struct {
	Group string
	Names []string // node names, and Sender IDs as "sender id 0a"
}

func (e *UnknownMembersError) Error() string {
	return fmt.Sprintf("gm: no members of %q: %s", e.Group, strings.Join(e.Names, ", "))
}

// Evict removes members, named by node name or by their current Sender ID
// (draft-ietf-ace-key-groupcomm-oscore-21, Section 10), and returns their node
// names. If one of them is unknown it returns an [UnknownMembersError] and
// nobody is evicted. The rekey follows within the batch window.
func (m *Manager) Evict(ctx context.Context, name string, nodes []string, senderIDs [][]byte) ([]string, error) {
	return m.evict(ctx, name, byEviction.String(), func(tx *store.Tx, g *group) ([]*member, error) {
		return findMembers(tx, g, nodes, senderIDs)
	})
}

// maxNamed is how many nodes a line of the log names; the audit log has all.
const maxNamed = 20

// bySilence is the reason of an eviction by the delivery policy, in events.
const bySilence = "silence"

// EvictSilent removes members that were behind and silent for as long as the delivery
// policy of their group allows. Those that went meanwhile are passed over.
func (m *Manager) EvictSilent(ctx context.Context, name string, nodes []string) error {
	_, err := m.evict(ctx, name, bySilence, func(tx *store.Tx, g *group) (found []*member, err error) {
		for _, n := range nodes {
			if err := eachMember(tx, `m.group_id = ? AND m.node = ?`, []any{g.id, n}, func(mb *member) error {
				found = append(found, mb)
				return nil
			}); err != nil {
				return nil, err
			}
		}
		return found, nil
	})
	return err
}

// evict removes the members that find names, for a reason.
func (m *Manager) evict(ctx context.Context, name, reason string, find func(*store.Tx, *group) ([]*member, error)) ([]string, error) {
	g, err := m.find(ctx, name)
	if err != nil {
		return nil, err
	}
	var evicted []string
	g.gate.RLock()
	defer g.gate.RUnlock()
	err = m.st.Update(ctx, func(tx *store.Tx) error {
		evicted = nil
		var num uint64
		var st state
		if err := tx.QueryRow(`SELECT num, state FROM gm_groups WHERE id = ?`, g.id).Scan(&num, &st); err != nil {
			return err
		}
		if st == stateMoved {
			return ErrMoved
		}
		found, err := find(tx, g)
		if err != nil {
			return err
		}
		for _, mb := range found {
			if err := m.takeOut(tx, g, num, mb, groupcomm.EventEvicted, reason); err != nil {
				return err
			}
			evicted = append(evicted, mb.node)
		}
		if len(found) == 0 {
			return nil
		}
		return g.makeDue(tx, time.Now().Add(g.cfg.BatchWindow), byEviction)
	})
	if err != nil {
		return nil, fmt.Errorf("gm: evict from %q: %w", name, err)
	}
	m.poke()
	m.met.removals.WithLabelValues("evicted").Add(float64(len(evicted)))
	m.log.InfoContext(ctx, "nodes evicted", "group", name, "nodes", evicted[:min(len(evicted), maxNamed)], "n", len(evicted), "reason", reason)
	return evicted, nil
}

// findMembers looks members up, each once, in the order named.
func findMembers(tx *store.Tx, g *group, nodes []string, senderIDs [][]byte) ([]*member, error) {
	var found []*member
	var unknown []string
	seen := map[string]bool{}
	find := func(label, where string, arg any) error {
		hit := false
		err := eachMember(tx, where, []any{g.id, arg}, func(mb *member) error {
			hit = true
			if !seen[mb.node] {
				seen[mb.node] = true
				found = append(found, mb)
			}
			return nil
		})
		if err == nil && !hit {
			unknown = append(unknown, label)
		}
		return err
	}
	for _, n := range nodes {
		if err := find(n, `m.group_id = ? AND m.node = ?`, n); err != nil {
			return nil, err
		}
	}
	for _, id := range senderIDs {
		label := fmt.Sprintf("sender id %x", id)
		p, ok := placeOf(id)
		if !ok {
			unknown = append(unknown, label)
			continue
		}
		if err := find(label, `m.group_id = ? AND m.sid = ?`, int64(p)); err != nil {
			return nil, err
		}
	}
	if unknown != nil {
		return nil, &UnknownMembersError{Group: g.cfg.Name, Names: unknown}
	}
	return found, nil
}
