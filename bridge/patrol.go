package bridge

import (
	"context"
	"fmt"
	"time"

	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// patrol applies the policies of the groups until ctx ends: it marks members
// that became unreachable, and has those evicted that are silent for too long.
func (b *Bridge) patrol(ctx context.Context) error {
	tick := time.NewTicker(patrolEvery)
	defer tick.Stop()
	for {
		b.mu.Lock()
		groups := make([]string, 0, len(b.groups))
		for g := range b.groups {
			groups = append(groups, g)
		}
		b.mu.Unlock()
		for _, g := range groups {
			if err := b.patrolGroup(ctx, g); err != nil && ctx.Err() == nil && !gone(err) {
				b.log.ErrorContext(ctx, "cannot apply the delivery policy of a group", "group", g, "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func (b *Bridge) patrolGroup(ctx context.Context, group string) error {
	p := b.policy(group)
	if p.EvictAfter != 0 {
		if err := b.saveLives(ctx, group); err != nil {
			return err
		}
	}
	entries, err := b.Ledger(ctx, group)
	if err != nil {
		return err
	}
	marked, err := b.marked(ctx, group)
	if err != nil {
		return err
	}
	now := time.Now()
	var fresh []LedgerEntry
	var back, evict []string
	for _, e := range entries {
		if e.State != StateUnreachable {
			if !marked[e.Node].marked.IsZero() {
				back = append(back, e.Node)
			}
			continue
		}
		if marked[e.Node].marked.IsZero() {
			fresh = append(fresh, e)
		}
		// Another gateway on the same store may have heard it.
		silent := now.Sub(e.Since) + p.UnreachableAfter
		if p.EvictAfter != 0 && silent >= p.EvictAfter && now.Sub(marked[e.Node].heard) >= p.EvictAfter {
			evict = append(evict, e.Node)
		}
	}
	if err := b.mark(ctx, group, fresh, marked, back); err != nil {
		return err
	}
	if len(evict) == 0 || b.evict == nil {
		return nil
	}
	b.log.InfoContext(ctx, "members are silent for too long and go", "group", group, "nodes", len(evict), "after", p.EvictAfter)
	return b.evict(ctx, group, evict)
}

// marked reads what is kept of the members of a group, by node.
func (b *Bridge) marked(ctx context.Context, group string) (map[string]life, error) {
	out := map[string]life{}
	err := b.store.View(ctx, func(tx *store.Tx) error {
		clear(out)
		lives, err := readLives(tx, group)
		for _, l := range lives {
			out[l.member.node] = l
		}
		return err
	})
	return out, err
}

// mark notes that members became unreachable, each once until it is back.
func (b *Bridge) mark(ctx context.Context, group string, entries []LedgerEntry, known map[string]life, back []string) error {
	if len(entries)+len(back) == 0 {
		return nil
	}
	err := b.store.Update(ctx, func(tx *store.Tx) error {
		for _, node := range back {
			if _, err := tx.Exec(`UPDATE bridge_life SET marked = 0 WHERE grp = ? AND node = ?`, group, node); err != nil {
				return err
			}
		}
		for _, e := range entries {
			l, ok := known[e.Node]
			if !ok {
				l = life{member: member{group, e.Node}, heard: e.LastHeard}
			}
			l.marked = e.Since
			if err := writeLife(tx, l); err != nil {
				return err
			}
			ev := groupcomm.Event{Group: group, Node: e.Node, Version: e.Confirmed, Reason: e.LastError}
			if err := tx.Emit(groupcomm.EventUnreachable, group, ev.Encode()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("bridge: mark unreachable members of %q: %w", group, err)
	}
	if len(entries) > 0 {
		b.log.WarnContext(ctx, "members are unreachable", "group", group, "nodes", len(entries))
	}
	return nil
}
