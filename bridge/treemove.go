package bridge

import (
	"context"
	"errors"
	"fmt"

	"github.com/seed4911071e/groupgate/groupcomm/keytree"
	"github.com/seed4911071e/groupgate/store"
)

// noTree is the tree of a registration that is to get a place and has none yet.
const noTree = "-"

// Branches lists the members that follow the key tree of a group, with the channel
// that each asked for.
func (b *Bridge) Branches(tx *store.Tx, group string) (channels map[string]string, err error) {
	rows, err := tx.Query(`SELECT node, route FROM bridge_registration WHERE grp = ? AND tid <> ''`, group)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	channels = map[string]string{}
	for rows.Next() {
		var node, route string
		if err := rows.Scan(&node, &route); err != nil {
			return nil, err
		}
		channels[node] = route
	}
	return channels, rows.Err()
}

// Replant enrols members of a group that comes from another gateway (docs/protocol.md,
// Section 10). Each gets its place when it asks for the keying material, as it must
// to have any: until then no message is for it. Members on MQTT are left out where
// there is none.
func (b *Bridge) Replant(ctx context.Context, group string, channels map[string]string) (commit func(*store.Tx) error, err error) {
	var values []any
	for node, channel := range channels {
		if channel == channelMQTT && b.publisher == nil {
			continue
		}
		_, _, row := b.register(member{group, node}, channel)
		values = append(values, row...)
	}
	return func(tx *store.Tx) error {
		const width = registrationColumns
		for v := values; len(v) > 0; {
			n := min(len(v)/width, messagesAtOnce)
			if _, err := tx.Exec(insertRegistration+marks(n, "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '"+noTree+"', -1, 0)"), v[:n*width]...); err != nil {
				return fmt.Errorf("bridge: enrol members of %q: %w", group, err)
			}
			v = v[n*width:]
		}
		return nil
	}, ctx.Err()
}

// degreeOf is the configured one of a group's tree.
func (b *Bridge) degreeOf(ctx context.Context, group string) (uint32, error) {
	c, ok := b.source.(configurer)
	if !ok {
		return keytree.DefaultDegree, nil
	}
	list, err := c.GroupConfigs(ctx, []string{group})
	if err != nil || len(list) == 0 || list[0].KeyTree == 0 {
		return keytree.DefaultDegree, err
	}
	return list[0].KeyTree, nil
}

// resettle gives a member another place, and another key of its own.
func (b *Bridge) resettle(ctx context.Context, group, node string) error {
	key := random(keyLen)
	degree, err := b.degreeOf(ctx, group)
	if err != nil {
		return fmt.Errorf("bridge: key tree of %q: %w", group, err)
	}
	err = b.store.Update(ctx, func(tx *store.Tx) error {
		var rid string
		var leaf int64
		err := tx.QueryRow(`SELECT rid, leaf FROM bridge_registration WHERE grp = ? AND node = ? AND tid <> ''`, group, node).Scan(&rid, &leaf)
		if err != nil || leaf >= 0 {
			return err
		}
		s, err := b.settle(tx, group, degree, key, -1)
		if err != nil {
			return err
		}
		_, err = tx.Exec(`UPDATE bridge_registration SET sealed_key = ?, tid = ?, leaf = ? WHERE rid = ?`,
			b.store.Seal(keyContext(rid), key), s.t.tid, s.path[0].Index, rid)
		return err
	})
	if err != nil && !errors.Is(err, store.ErrNotFound) { // left meanwhile
		return fmt.Errorf("bridge: key tree of %q: %w", group, err)
	}
	return nil
}
