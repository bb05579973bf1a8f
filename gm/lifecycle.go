package gm

import (
	"context"
	"errors"
	"fmt"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// Groups come and go while the gateway runs. What is left of a deleted group is
// its Gid space, in gm_retired: no group ever has a Gid of it again
// (draft-ietf-ace-key-groupcomm-oscore-21, Section 11).

// ErrExists is the error for the name of a group that exists already.
var ErrExists = coap.Errorf(coap.Conflict, "a group of that name exists")

// CreateGroup brings a group into being that is not declared in the
// configuration; it is there after a restart too. Policies of zero take their
// defaults. The error for a configuration that cannot be served is a 4.00, for a
// name in use [ErrExists], for a Gid prefix in use a 4.09.
func (m *Manager) CreateGroup(ctx context.Context, cfg groupcomm.GroupConfig) error {
	one := Config{Groups: []groupcomm.GroupConfig{cfg}}.withDefaults()
	err := one.validate()
	if err != nil {
		return coap.Errorf(coap.BadRequest, "%w", err)
	}
	m.planting.Lock()
	defer m.planting.Unlock()
	for range maxPlantTries {
		if err = m.tryCreate(ctx, one.Groups[0]); !errors.Is(err, errMoved) {
			return err
		}
	}
	return unavailable("other gateways create groups all the time")
}

// tryCreate fails with errMoved when another gateway created a group meanwhile.
func (m *Manager) tryCreate(ctx context.Context, cfg groupcomm.GroupConfig) error {
	id, err := m.newest(ctx)
	if err != nil {
		return err
	}
	if _, ok := m.group(cfg.Name); ok {
		return fmt.Errorf("gm: %w: %q", ErrExists, cfg.Name)
	}
	retired, err := m.retired(ctx)
	if err != nil {
		return err
	}
	var taken []gidSpace
	for _, g := range m.byID() {
		taken = append(taken, gidSpace{g.cfg.GidPrefix, g.cfg.GidEpochBytes})
	}
	epoch, err := placeGids(&cfg, taken, retired)
	if err != nil {
		return coap.Errorf(coap.Conflict, "%w", err)
	}
	g, err := m.create(ctx, cfg, epoch, id)
	if err != nil {
		return err
	}
	m.enter(g)
	return nil
}

// placeGids gives a new group its Gid prefix, if it has none, and returns the
// epoch of its first Gid. A declared prefix that a deleted group had is gone on
// with where that group ended; nothing else may meet a space that is or was in
// use.
func placeGids(c *groupcomm.GroupConfig, taken []gidSpace, retired []retiredSpace) (epoch uint64, err error) {
	if c.GidPrefix == nil {
		for _, r := range retired {
			taken = append(taken, r.gidSpace)
		}
		c.GidPrefix, err = choosePrefix(taken, c.GidEpochBytes)
		return 0, err
	}
	want := gidSpace{c.GidPrefix, c.GidEpochBytes}
	for _, t := range taken {
		if want.meets(t) {
			return 0, fmt.Errorf("gm: group %q: another group has Gids with the prefix %x", c.Name, t.prefix)
		}
	}
	for _, r := range retired {
		switch {
		case !want.meets(r.gidSpace):
		case string(want.prefix) != string(r.prefix):
			return 0, fmt.Errorf("gm: group %q: the deleted group %q had Gids with the prefix %x", c.Name, r.name, r.prefix)
		default:
			epoch = max(epoch, r.epoch+1)
		}
	}
	if _, err := makeGid(c.GidPrefix, epoch, c.GidEpochBytes); err != nil {
		return 0, fmt.Errorf("gm: group %q: deleted groups used up the Gids with the prefix %x: %w", c.Name, c.GidPrefix, err)
	}
	return epoch, nil
}

// retiredSpace is the Gid space of a deleted group, used up to epoch.
type retiredSpace struct {
	gidSpace
	name  string
	epoch uint64
}

func (m *Manager) retired(ctx context.Context) ([]retiredSpace, error) {
	var out []retiredSpace
	err := m.st.View(ctx, func(tx *store.Tx) error {
		out = nil
		rows, err := tx.Query(`SELECT name, gid_prefix, epoch_bytes, gid_epoch FROM gm_retired ORDER BY group_id`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var r retiredSpace
			if err := rows.Scan(&r.name, &r.prefix, &r.size, &r.epoch); err != nil {
				return err
			}
			out = append(out, r)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("gm: Gids of deleted groups: %w", err)
	}
	return out, nil
}

// groupTables are those with rows of a group, by its id.
var groupTables = []string{"gm_members", "gm_elders", "gm_stale", "gm_free", "gm_waiting", "gm_material", "gm_configs"}

// DeleteGroup removes a group with its members and its keys, for good. Like the
// administrative interface of draft-ietf-ace-oscore-gm-admin it refuses an active
// group (error 10): whoever deletes one has deactivated it before. Observers are
// told that the group is gone (RFC 9594, Section 9: error 6).
func (m *Manager) DeleteGroup(ctx context.Context, name string) error {
	g, err := m.find(ctx, name)
	if err != nil {
		return err
	}
	m.planting.Lock()
	defer m.planting.Unlock()
	select {
	case g.rekeying <- struct{}{}: // no rekey is prepared meanwhile
		defer func() { <-g.rekeying }()
	case <-ctx.Done():
		return ctx.Err()
	}
	g.gate.Lock()
	defer g.gate.Unlock()
	members := 0
	err = m.st.Update(ctx, func(tx *store.Tx) error {
		var st state
		var epoch, wraps, num uint64
		err := tx.QueryRow(`SELECT state, gid_epoch, gid_wraps, num FROM gm_groups WHERE id = ?`, g.id).Scan(&st, &epoch, &wraps, &num)
		switch {
		case isNotFound(err):
			return ErrNoGroup
		case err != nil:
			return err
		case st == stateActive:
			return groupcomm.ErrActive
		}
		if wraps > 0 {
			epoch = m.epochs(g.cfg) - 1 // all were in use
		}
		var nodes []string
		if err := eachMember(tx, `m.group_id = ? ORDER BY m.node`, []any{g.id}, func(mb *member) error {
			nodes = append(nodes, mb.node)
			return nil
		}); err != nil {
			return err
		}
		members = len(nodes)
		if m.deliver != nil {
			if err := m.deliver.RemoveAll(tx, name, nodes); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(`INSERT INTO gm_retired (group_id, name, gid_prefix, epoch_bytes, gid_epoch) VALUES (?, ?, ?, ?, ?)`,
			g.id, name, g.cfg.GidPrefix, g.cfg.GidEpochBytes, epoch); err != nil {
			return err
		}
		for _, t := range groupTables {
			if _, err := tx.Exec(`DELETE FROM `+t+` WHERE group_id = ?`, g.id); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(`DELETE FROM gm_groups WHERE id = ?`, g.id); err != nil {
			return err
		}
		tx.AfterCommit(func() { m.drop(g) })
		return emit(tx, groupcomm.EventDeleted, groupcomm.Event{Group: name, Version: num})
	})
	if err != nil {
		return fmt.Errorf("gm: delete %q: %w", name, err)
	}
	m.log.InfoContext(ctx, "group deleted", "group", name, "members", members)
	return nil
}

// gone makes the error of a query that did not find the row of a group: it was
// deleted after the request had found it.
func gone(err error) error {
	if isNotFound(err) {
		return errors.Join(ErrNoGroup, err)
	}
	return err
}
