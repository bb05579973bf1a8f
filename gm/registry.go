package gm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"

	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// Which groups there are, and how they are configured, is in memory. Where other
// gateways share the database they create, import, configure and delete groups
// too: each follows the events of that, and reads anew what there is. Two things
// do not wait for the event: a group that is not in memory is looked for in the
// database before anybody is told that there is none, and whoever works on a
// group that is gone finds that out in its transaction.

// cursorGroups is the name of this gateway's own cursor for such events.
const cursorGroups = "gm groups"

// group finds a group in memory by name.
func (m *Manager) group(name string) (*group, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	g, ok := m.groups[name]
	return g, ok
}

// find finds a group by name; [ErrNoGroup] when there is none.
func (m *Manager) find(ctx context.Context, name string) (*group, error) {
	if g, ok := m.group(name); ok {
		return g, nil
	}
	if m.st.Shared() {
		var id int64
		err := m.st.View(ctx, func(tx *store.Tx) error {
			return tx.QueryRow(`SELECT id FROM gm_groups WHERE name = ?`, name).Scan(&id)
		})
		if err == nil {
			err = m.refresh(ctx)
		}
		if err != nil && !isNotFound(err) {
			return nil, fmt.Errorf("gm: group %q: %w", name, err)
		}
		if g, ok := m.group(name); ok {
			return g, nil
		}
	}
	return nil, fmt.Errorf("%w: %q", ErrNoGroup, name)
}

// followGroups keeps the groups in memory in step with the database until ctx
// ends.
func (m *Manager) followGroups(ctx context.Context) error {
	return m.follow(ctx, m.st.OwnCursor(cursorGroups), "groups of other gateways are not seen", func(ctx context.Context, events []store.Event) error {
		for _, e := range events {
			switch e.Kind {
			case groupcomm.EventCreated, groupcomm.EventDeleted, groupcomm.EventConfigured:
				return m.refresh(ctx) // it reads the newest, whatever else there is
			case groupcomm.EventRekeyed:
				if _, ok := m.group(e.Key); !ok { // an imported group begins so
					return m.refresh(ctx)
				}
			}
		}
		return nil
	})
}

// refresh brings the groups in memory to what the database has.
func (m *Manager) refresh(ctx context.Context) error {
	m.planting.Lock()
	defer m.planting.Unlock()
	return m.refreshLocked(ctx)
}

// refreshLocked needs planting, so that no group comes or goes between the look
// and the change.
func (m *Manager) refreshLocked(ctx context.Context) error {
	found, err := m.load(ctx)
	if err != nil {
		return err
	}
	var fresh, gone []*group
	m.mu.Lock()
	for name, old := range m.groups {
		now, ok := found[name]
		switch {
		case !ok || now.id != old.id:
			gone = append(gone, old)
		case old.sameAs(now):
			found[name] = old
		default:
			now.living = old.living
			fresh = append(fresh, now)
		}
	}
	for name, g := range found {
		if old, ok := m.groups[name]; !ok || old.id != g.id {
			fresh = append(fresh, g)
		}
	}
	m.groups = found
	m.mu.Unlock()
	if len(fresh)+len(gone) == 0 {
		return nil
	}
	for _, g := range gone {
		m.forget(g)
		m.log.InfoContext(ctx, "group deleted by another gateway", "group", g.cfg.Name)
	}
	for _, g := range fresh {
		m.log.InfoContext(ctx, "group created or configured by another gateway", "group", g.cfg.Name)
	}
	m.changed()
	m.poke()
	return nil
}

// sameAs says whether two copies of a group are configured alike.
func (g *group) sameAs(o *group) bool {
	a, err := json.Marshal(g.cfg)
	b, err2 := json.Marshal(o.cfg)
	return err == nil && err2 == nil && bytes.Equal(a, b) && bytes.Equal(g.kdc.cred, o.kdc.cred)
}

// enter takes a new group into memory.
func (m *Manager) enter(g *group) {
	m.mu.Lock()
	m.groups = maps.Clone(m.groups)
	m.groups[g.cfg.Name] = g
	m.mu.Unlock()
	m.changed()
	m.poke()
}

// drop takes a deleted group out of memory.
func (m *Manager) drop(g *group) {
	m.mu.Lock()
	if have, ok := m.groups[g.cfg.Name]; ok && have.id == g.id {
		m.groups = maps.Clone(m.groups)
		delete(m.groups, g.cfg.Name)
	}
	m.mu.Unlock()
	m.forget(g)
	m.changed()
}

// forget lets those go on who wait for the next version of a group that is out
// of memory: they find that it is gone.
func (m *Manager) forget(g *group) {
	m.met.rekeys.DeleteLabelValues(g.cfg.Name)
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.changed)
	g.changed = make(chan struct{})
}

// newest is the state of things that a new group is decided on: the groups in
// memory are those of the database, and id is the next group's. Its transaction
// finds another id when some gateway was faster. It needs planting.
func (m *Manager) newest(ctx context.Context) (id int64, err error) {
	if err := m.st.View(ctx, func(tx *store.Tx) error { return nextGroupID(tx, &id) }); err != nil {
		return 0, fmt.Errorf("gm: groups: %w", err)
	}
	if m.st.Shared() {
		err = m.refreshLocked(ctx)
	}
	return id, err
}
