package delegate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/seed4911071e/groupgate/oscore"
	"github.com/seed4911071e/groupgate/store"
)

const (
	// keptMaterials is for how many keying materials of a membership the Replay Windows
	// are kept: the newest, and those before it for messages that are on their way.
	keptMaterials = 4
	// maxWindows bounds the members of a group that send requests under one of them.
	maxWindows = 1 << 16
)

// contexts keeps the Sender Sequence Numbers and Replay Windows of one membership, so
// that it goes on after a restart as if nothing had been.
//
// draft-ietf-core-oscore-groupcomm-28, Section 2.6.1.
type contexts struct {
	sequences

	mu     sync.Mutex
	seen   map[string]map[string]*window // by name of the keying material and kid
	order  []string                      // keys of seen, the oldest first
	closed map[string]bool               // requests were accepted there that nobody remembers
}

// window is what one member has sent.
type window struct {
	writing sync.Mutex // one write at a time, so that the newest is the last

	// Guarded by contexts.mu: what is on disk; not valid before the first is.
	state oscore.WindowState
}

var _ oscore.GroupStore = (*contexts)(nil)

// loadContexts reads what was kept. Names in delegate_sequence stand for Sender Contexts,
// and also for keying materials whose windows are not known any more: a name is the digest
// of either, and no two are equal.
func loadContexts(ctx context.Context, s sequences) (*contexts, error) {
	type kept struct {
		name  string
		kid   []byte
		state oscore.WindowState
	}
	var windows []kept
	var names []string
	err := s.k.store.View(ctx, func(tx *store.Tx) error {
		windows, names = nil, nil
		rows, err := tx.Query(`SELECT name, kid, next, seen FROM delegate_window WHERE owner = ? AND node = ? AND grp = ? ORDER BY at, name, kid`,
			s.k.owner, s.node, s.group)
		if err != nil {
			return err
		}
		defer func() { _ = rows.Close() }()
		for rows.Next() {
			w := kept{state: oscore.WindowState{Valid: true}}
			var next, seen int64
			if err := rows.Scan(&w.name, &w.kid, &next, &seen); err != nil {
				return err
			}
			w.state.Next, w.state.Seen = uint64(next), uint64(seen)
			windows = append(windows, w)
		}
		if err := rows.Err(); err != nil {
			return err
		}
		more, err := tx.Query(`SELECT name FROM delegate_sequence WHERE owner = ? AND node = ? AND grp = ?`, s.k.owner, s.node, s.group)
		if err != nil {
			return err
		}
		defer func() { _ = more.Close() }()
		for more.Next() {
			var name string
			if err := more.Scan(&name); err != nil {
				return err
			}
			names = append(names, name)
		}
		return more.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("delegate: read Replay Windows: %w", err)
	}
	c := &contexts{sequences: s, seen: map[string]map[string]*window{}, closed: map[string]bool{}}
	for _, w := range windows {
		c.ofLocked(w.name)[string(w.kid)] = &window{state: w.state}
	}
	for _, name := range names {
		c.closed[name] = true
	}
	return c, nil
}

// ofLocked gives the windows under one keying material.
func (c *contexts) ofLocked(name string) map[string]*window {
	of := c.seen[name]
	if of == nil {
		of = map[string]*window{}
		c.seen[name] = of
		c.order = append(c.order, name)
	}
	return of
}

// Window implements [oscore.GroupStore].
func (c *contexts) Window(name string, kid []byte) (oscore.WindowState, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w := c.seen[name][string(kid)]; w != nil && w.state.Valid {
		return w.state, true
	}
	return oscore.WindowState{}, c.closed[name]
}

// Keep implements [oscore.GroupStore].
func (c *contexts) Keep(name string, kid []byte, state oscore.WindowState) error {
	if !state.Valid {
		return errors.New("delegate: no Replay Window of a member")
	}
	ctx, cancel := context.WithTimeout(context.Background(), keepTimeout)
	defer cancel()
	if err := c.makeRoom(ctx, name); err != nil {
		return err
	}
	c.mu.Lock()
	of := c.ofLocked(name)
	w := of[string(kid)]
	if w == nil {
		if len(of) >= maxWindows {
			c.mu.Unlock()
			return fmt.Errorf("delegate: the Replay Windows of %d members are kept, and no more", maxWindows)
		}
		w = &window{}
		of[string(kid)] = w
	}
	c.mu.Unlock()

	w.writing.Lock()
	defer w.writing.Unlock()
	c.mu.Lock()
	first := !w.state.Valid
	if !first {
		state = state.Merge(w.state)
	}
	c.mu.Unlock()
	err := c.k.store.Update(ctx, func(tx *store.Tx) (err error) {
		at := int64(0) // that of the first counts
		if first {
			if at, err = c.newest(tx, "delegate_window"); err != nil {
				return err
			}
		}
		_, err = tx.Exec(`INSERT INTO delegate_window (owner, node, grp, name, kid, next, seen, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (owner, node, grp, name, kid) DO UPDATE SET next = excluded.next, seen = excluded.seen`,
			c.k.owner, c.node, c.group, name, kid, int64(state.Next), int64(state.Seen), at)
		return err
	})
	if err != nil {
		return fmt.Errorf("delegate: keep the Replay Window: %w", err)
	}
	c.mu.Lock()
	w.state = state
	c.mu.Unlock()
	return nil
}

// makeRoom forgets the windows of keying materials that are long over before there are
// some of another, but not that there were some.
func (c *contexts) makeRoom(ctx context.Context, name string) error {
	c.mu.Lock()
	old := ""
	if c.seen[name] == nil && len(c.order) >= keptMaterials {
		old = c.order[0]
	}
	c.mu.Unlock()
	if old == "" {
		return nil
	}
	if _, _, err := c.Open(old); err != nil { // its name is kept
		return err
	}
	c.mu.Lock()
	c.closed[old] = true
	delete(c.seen, old)
	c.order = slices.DeleteFunc(c.order, func(n string) bool { return n == old })
	c.mu.Unlock()
	err := c.k.store.Update(ctx, func(tx *store.Tx) error {
		_, err := tx.Exec(`DELETE FROM delegate_window WHERE owner = ? AND node = ? AND grp = ? AND name = ?`, c.k.owner, c.node, c.group, old)
		return err
	})
	if err != nil {
		return fmt.Errorf("delegate: forget Replay Windows: %w", err)
	}
	return nil
}
