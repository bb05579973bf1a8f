package gm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// Setup reads the groups and brings the declared ones into being: an absent
// group is created, a present one is compared. Its policies follow the
// declaration; anything else that differs is a [DifferentError], and nothing is
// changed. Groups that are no longer declared stay. Setup never rekeys.
func (m *Manager) Setup(ctx context.Context) error {
	if err := m.cfg.validate(); err != nil {
		return err
	}
	declared := slices.Clone(m.cfg.Groups)
	err := m.setup(ctx)
	for n := 0; errors.Is(err, errMoved) && n < maxPlantTries+len(declared); n++ {
		// Another gateway created a group at the same time.
		m.cfg.Groups = slices.Clone(declared)
		err = m.setup(ctx)
	}
	return err
}

func (m *Manager) setup(ctx context.Context) error {
	var id int64
	if err := m.st.View(ctx, func(tx *store.Tx) error { return nextGroupID(tx, &id) }); err != nil {
		return fmt.Errorf("gm: groups: %w", err)
	}
	groups, err := m.load(ctx)
	if err != nil {
		return err
	}
	spaces, err := m.gidSpaces(groups)
	if err != nil {
		return err
	}
	retired, err := m.retired(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for i := range m.cfg.Groups {
		want := &m.cfg.Groups[i]
		if have, ok := groups[want.Name]; ok {
			errs = append(errs, compare(have.cfg, want))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, want := range m.cfg.Groups {
		have, ok := groups[want.Name]
		if !ok {
			g, err := m.createDeclared(ctx, want, id, &spaces, retired)
			if err != nil {
				return err
			}
			id++
			groups[want.Name] = g
			continue
		}
		if err := m.adoptX5(ctx, have); err != nil {
			return err
		}
		want.GidPrefix = have.cfg.GidPrefix
		if err := m.adopt(ctx, have, want); err != nil {
			return err
		}
	}
	m.mu.Lock()
	m.groups = groups
	m.mu.Unlock()
	m.poke()
	return nil
}

// createDeclared creates a declared group that is absent. spaces are those in use,
// with those of declarations that have a prefix. A group that an operator deleted
// is a new group now, with another Gid, other keys and no members: to be rid of
// it, it must not be declared any more.
func (m *Manager) createDeclared(ctx context.Context, want groupcomm.GroupConfig, id int64, spaces *[]gidSpace, retired []retiredSpace) (*group, error) {
	taken := *spaces
	if want.GidPrefix != nil {
		taken = nil // gidSpaces has compared declarations and groups
	}
	epoch, err := placeGids(&want, taken, retired)
	if err != nil {
		return nil, err
	}
	*spaces = append(*spaces, gidSpace{want.GidPrefix, want.GidEpochBytes})
	for _, r := range retired {
		if r.name == want.Name {
			m.log.WarnContext(ctx, "a group that was deleted is declared, and created anew", "group", want.Name)
			break
		}
	}
	return m.create(ctx, want, epoch, id)
}

// load reads all groups with their keys.
func (m *Manager) load(ctx context.Context) (map[string]*group, error) {
	groups := map[string]*group{}
	err := m.st.View(ctx, func(tx *store.Tx) error {
		clear(groups)
		rows, err := tx.Query(`SELECT g.id, g.name, c.config, c.kdc_key, c.kdc_cred
			FROM gm_groups g JOIN gm_configs c ON c.group_id = g.id`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var id int64
			var name, config string
			var sealed, cred []byte
			if err := rows.Scan(&id, &name, &config, &sealed, &cred); err != nil {
				return err
			}
			var cfg groupcomm.GroupConfig
			if err := json.Unmarshal([]byte(config), &cfg); err != nil {
				return fmt.Errorf("configuration of %q: %w", name, err)
			}
			plain, err := m.st.Unseal(kdcKeyContext(id), sealed)
			if err != nil {
				return fmt.Errorf("key of %q: %w", name, err)
			}
			key, err := cose.DecodeKey(plain)
			if err != nil {
				return fmt.Errorf("key of %q: %w", name, err)
			}
			g := newGroup(id, cfg)
			g.roots = m.cfg.X5[name].Roots
			if g.kdc, err = newKDC(&cfg, key, cred); err != nil {
				return fmt.Errorf("key of %q: %w", name, err)
			}
			groups[name] = g
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("gm: load groups: %w", err)
	}
	return groups, nil
}

// gidSpaces lists the Gid spaces that are taken: by existing groups and by
// declarations with a prefix. No two groups may share one.
func (m *Manager) gidSpaces(groups map[string]*group) ([]gidSpace, error) {
	type owner struct {
		name string
		gidSpace
	}
	var owners []owner
	for name, g := range groups {
		owners = append(owners, owner{name, gidSpace{g.cfg.GidPrefix, g.cfg.GidEpochBytes}})
	}
	for _, w := range m.cfg.Groups {
		if _, ok := groups[w.Name]; !ok && w.GidPrefix != nil {
			owners = append(owners, owner{w.Name, gidSpace{w.GidPrefix, w.GidEpochBytes}})
		}
	}
	slices.SortFunc(owners, func(a, b owner) int { return slices.Compare([]byte(a.name), []byte(b.name)) })
	var spaces []gidSpace
	var errs []error
	for i, a := range owners {
		spaces = append(spaces, a.gidSpace)
		for _, b := range owners[:i] {
			if a.meets(b.gidSpace) {
				errs = append(errs, fmt.Errorf("gm: groups %q and %q could come to the same Gid: gid.prefix %x and %x",
					b.name, a.name, b.prefix, a.prefix))
			}
		}
	}
	return spaces, errors.Join(errs...)
}

// create makes a group at version 0 with a key pair of its own. epoch is that of
// its first Gid, id the group's: errMoved when that is not the next any more.
func (m *Manager) create(ctx context.Context, cfg groupcomm.GroupConfig, epoch uint64, id int64) (*group, error) {
	key, cred, err := m.selfCred(&cfg)
	if err != nil {
		return nil, fmt.Errorf("gm: create %q: %w", cfg.Name, err)
	}
	config, err := json.Marshal(cfg)
	if err != nil {
		return nil, fmt.Errorf("gm: create %q: %w", cfg.Name, err)
	}
	var g *group
	var mat *material
	self, err := newKDC(&cfg, key, cred)
	if err != nil {
		return nil, fmt.Errorf("gm: create %q: %w", cfg.Name, err)
	}
	err = m.st.Update(ctx, func(tx *store.Tx) error {
		var next int64
		switch err := nextGroupID(tx, &next); {
		case err != nil:
			return err
		case next != id:
			return errMoved
		}
		g = newGroup(id, cfg)
		g.kdc, g.roots = self, m.cfg.X5[cfg.Name].Roots
		gid, err := makeGid(cfg.GidPrefix, epoch, cfg.GidEpochBytes)
		if err != nil {
			return err
		}
		mat = firstMaterial(g, gid)
		if _, err := tx.Exec(`INSERT INTO gm_groups (id, name, state, num, gid, gid_epoch, exp, handed, changes,
			sid_next, sid_free, stale_from) VALUES (?, ?, ?, 0, ?, ?, ?, 0, 0, 0, 0, 0)`,
			id, cfg.Name, stateActive, []byte(gid), epoch, mat.exp); err != nil {
			return err
		}
		if _, err := tx.Exec(`INSERT INTO gm_configs (group_id, config, kdc_key, kdc_cred) VALUES (?, ?, ?, ?)`,
			id, string(config), m.st.Seal(kdcKeyContext(id), key.Encode()), cred); err != nil {
			return err
		}
		sealed := m.seal(id, mat)
		_, err = tx.Exec(`INSERT INTO gm_material (group_id, num, master_secret, salt, message) VALUES (?, 0, ?, ?, ?)`,
			id, sealed.secret, sealed.salt, sealed.message)
		if err != nil {
			return err
		}
		return emit(tx, groupcomm.EventCreated, groupcomm.Event{Group: cfg.Name, Gid: gid})
	})
	if err != nil {
		return nil, fmt.Errorf("gm: create %q: %w", cfg.Name, err)
	}
	g.install(mat)
	m.log.InfoContext(ctx, "group created", "group", cfg.Name, "gid", mat.gid.String())
	return g, nil
}

// adopt writes declared policies over those of an existing group. It sees to
// it that no more stale sets are kept than declared, the newest
// (draft-ietf-ace-key-groupcomm-oscore-21, Section 7.1).
func (m *Manager) adopt(ctx context.Context, g *group, want groupcomm.GroupConfig) error {
	config, err := json.Marshal(want)
	if err != nil {
		return fmt.Errorf("gm: group %q: %w", want.Name, err)
	}
	if have, err := json.Marshal(g.cfg); err == nil && slices.Equal(have, config) {
		return nil
	}
	err = m.st.Update(ctx, func(tx *store.Tx) error {
		if _, err := tx.Exec(`UPDATE gm_configs SET config = ? WHERE group_id = ?`, string(config), g.id); err != nil {
			return err
		}
		n := want.MaxStaleSets
		if _, err := tx.Exec(`UPDATE gm_groups SET stale_from = num - ? + 1 WHERE id = ? AND num - stale_from + 1 > ?`,
			n, g.id, n); err != nil {
			return err
		}
		_, err := tx.Exec(`DELETE FROM gm_stale WHERE group_id = ? AND num < (SELECT stale_from FROM gm_groups WHERE id = ?)`,
			g.id, g.id)
		if err != nil {
			return err
		}
		return emit(tx, groupcomm.EventConfigured, groupcomm.Event{Group: want.Name})
	})
	if err != nil {
		return fmt.Errorf("gm: group %q: %w", want.Name, err)
	}
	g.cfg = &want
	m.log.InfoContext(ctx, "group policies changed", "group", want.Name)
	return nil
}

func kdcKeyContext(groupID int64) string { return fmt.Sprintf("gm_configs/%d/kdc_key", groupID) }
