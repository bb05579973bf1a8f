package gm

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// A group that asks for backward security is rekeyed before a node gets in, and
// the rekey message tells the members of those who wait for it: credential,
// roles and Sender ID (draft-ietf-ace-key-groupcomm-oscore-21, Section 11.1).
// Those who wait are in a table, for the rekey may be done by another gateway. The
// Sender IDs are reserved in the transaction of the rekey, each for one Join
// Request, which takes its own when it is written.
//
// A reserved Sender ID stands in the stale set of the new version, as one that
// was given out and released under it. So it is assigned to nobody else under
// that Gid, and when its Join Request comes to nothing, for instance because the
// process ends, the next rekey tells the members to forget it. Taking it removes
// it from the set.

// newcomer is a Join Request that waits for a rekey. A monitor is none: it has
// neither credential nor Sender ID.
type newcomer struct {
	ticket []byte // names its row
	cred   []byte
	roles  groupcomm.Roles
}

// waitingLife is how long a row of gm_waiting counts: no request waits that long,
// so what is older was left behind by a process that ended. So was what is of a time
// further ahead than the clock of another gateway, by a clock that was set back since.
const (
	waitingLife  = 30 * time.Second
	waitingAhead = time.Hour
)

// announce has rekeys of the group, whichever gateway does them, tell of a Join
// Request, until its end.
func (m *Manager) announce(ctx context.Context, j *joinCall) error {
	if !j.g.cfg.RekeyOnJoin || !j.admission().newcomer || j.cred == nil || j.ticket != nil {
		return nil
	}
	ticket := make([]byte, ticketBytes)
	rand.Read(ticket)
	err := m.st.Update(ctx, func(tx *store.Tx) error {
		_, err := tx.Exec(`INSERT INTO gm_waiting (group_id, ticket, cred, roles, at) VALUES (?, ?, ?, ?, ?)`,
			j.g.id, ticket, j.cred, j.entry.Roles, time.Now().UnixMilli())
		return err
	})
	if err == nil {
		j.ticket = ticket
	}
	return err
}

// withdraw ends the announcement of a Join Request that came to nothing.
func (m *Manager) withdraw(ctx context.Context, j *joinCall) {
	if j.ticket == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), withdrawTime)
	defer cancel()
	err := m.st.Update(ctx, func(tx *store.Tx) error {
		_, err := tx.Exec(`DELETE FROM gm_waiting WHERE group_id = ? AND ticket = ?`, j.g.id, j.ticket)
		return err
	})
	if err != nil {
		m.log.WarnContext(ctx, "rekeys may tell of a node that does not join", "group", j.g.cfg.Name, "err", err)
	}
}

// awaited are the Join Requests that wait, as many as one rekey message tells of,
// the first first.
func awaited(tx *store.Tx, g *group) ([]newcomer, error) {
	now := time.Now()
	rows, err := tx.Query(`SELECT ticket, cred, roles FROM gm_waiting WHERE group_id = ? AND at > ? AND at <= ? ORDER BY at, ticket LIMIT ?`,
		g.id, now.Add(-waitingLife).UnixMilli(), now.Add(waitingAhead).UnixMilli(), maxNewcomers)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []newcomer
	for size := 0; rows.Next(); {
		var n newcomer
		if err := rows.Scan(&n.ticket, &n.cred, &n.roles); err != nil {
			return nil, err
		}
		if size += len(n.cred); size > maxNewcomerCreds {
			break
		}
		all = append(all, n)
	}
	return all, rows.Err()
}

// awaitJoinRekey waits until the group's version is above arrived: by the rekey
// that closes the running window of joins, or by any other. The window is short,
// and whoever is awake at its end renews the keys for all.
func (m *Manager) awaitJoinRekey(ctx context.Context, g *group, arrived uint64) error {
	g.mu.Lock()
	if g.joinBy.IsZero() {
		g.joinBy = time.Now().Add(min(g.cfg.BatchWindow, joinWindow))
	}
	wait, changed := time.Until(g.joinBy), g.changed
	g.mu.Unlock()
	if mat := g.cur.Load(); mat != nil && mat.num > arrived {
		return nil
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	coap.Waiting(ctx)
	select {
	case <-changed:
		return nil
	case <-t.C:
		_, err := m.rekey(ctx, g, byJoin, "", arrived)
		return toPeer(err)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// reservation is what a rekey keeps for the newcomers that it tells of.
type reservation struct {
	newcomers []newcomer
	places    []sidPlace
	free      int // of the places, how many come from those that were given out before
}

// reserve finds the Sender IDs that newcomers get under the next Gid, in the
// order of assign: what the version that is given up released is free then.
func (s *snapshot) reserve(tx *store.Tx, g *group) error {
	s.reserved = reservation{}
	newcomers, err := awaited(tx, g)
	if err != nil || len(newcomers) == 0 {
		return err
	}
	var next int64
	if err := tx.QueryRow(`SELECT sid_next FROM gm_groups WHERE id = ?`, g.id).Scan(&next); err != nil {
		return gone(err)
	}
	free := make([]sidPlace, 0, len(s.stale)+len(newcomers))
	for _, id := range s.stale {
		p, _ := placeOf(id)
		free = append(free, p)
	}
	rows, err := tx.Query(`SELECT sid FROM gm_free WHERE group_id = ? ORDER BY sid LIMIT ?`, g.id, len(newcomers))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var p sidPlace
		if err := rows.Scan(&p); err != nil {
			return err
		}
		free = append(free, p)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	slices.Sort(free)
	r := &s.reserved
	for _, n := range newcomers {
		p := sidPlace(next)
		switch {
		case len(free) > 0:
			p, free = free[0], free[1:]
			r.free++
		case next < g.sids:
			next++
		default:
			return nil // the join finds that out by itself
		}
		r.newcomers, r.places = append(r.newcomers, n), append(r.places, p)
	}
	return nil
}

// introduce puts the newcomers into the rekey message.
func (r *reservation) introduce(msg *groupcomm.RekeyMessage) {
	for i, n := range r.newcomers {
		msg.Creds = append(msg.Creds, n.cred)
		msg.PeerRoles = append(msg.PeerRoles, n.roles)
		msg.PeerIdentifiers = append(msg.PeerIdentifiers, r.places[i].id())
	}
}

// write keeps the places under version num, which came into force before in tx.
func (r *reservation) write(tx *store.Tx, g *group, num uint64) error {
	if len(r.places) == 0 {
		return nil
	}
	now := time.Now()
	if _, err := tx.Exec(`DELETE FROM gm_waiting WHERE group_id = ? AND (at <= ? OR at > ?)`, g.id,
		now.Add(-waitingLife).UnixMilli(), now.Add(waitingAhead).UnixMilli()); err != nil {
		return err
	}
	if _, err := tx.Exec(`UPDATE gm_groups SET sid_free = sid_free - ?, sid_next = sid_next + ? WHERE id = ?`,
		r.free, len(r.places)-r.free, g.id); err != nil {
		return err
	}
	for i, p := range r.places {
		if i < r.free {
			if _, err := tx.Exec(`DELETE FROM gm_free WHERE group_id = ? AND sid = ?`, g.id, p); err != nil {
				return err
			}
		}
		if err := g.release(tx, num, p); err != nil {
			return err
		}
		if _, err := tx.Exec(`UPDATE gm_waiting SET num = ?, sid = ? WHERE group_id = ? AND ticket = ?`,
			num, p, g.id, r.newcomers[i].ticket); err != nil {
			return err
		}
	}
	return nil
}

// admit assigns a Sender ID to a Join Request: the one that the rekey to the
// version at hand reserved for its ticket, else the next one. See assign for
// errors.
func (g *group) admit(tx *store.Tx, a admission, ticket []byte) (sidPlace, error) {
	p, err := g.redeem(tx, a.num, ticket)
	if err != nil {
		return noSID, err
	}
	if p == noSID || a.monitor {
		return g.assign(tx, a)
	}
	if err := g.count(tx, a); err != nil {
		return noSID, err
	}
	taken, err := tx.Exec(`DELETE FROM gm_stale WHERE group_id = ? AND num = ? AND sid = ?`, g.id, a.num, p)
	if err == nil && taken == 0 {
		err = fmt.Errorf("gm: reserved Sender ID %v of %q is gone", p.id(), g.cfg.Name)
	}
	return p, err
}

// redeem ends an announcement, and tells the Sender ID that is reserved for it
// under version num; noSID when there is none.
func (g *group) redeem(tx *store.Tx, num uint64, ticket []byte) (sidPlace, error) {
	if ticket == nil {
		return noSID, nil
	}
	var at uint64
	var p sidPlace
	err := tx.QueryRow(`DELETE FROM gm_waiting WHERE group_id = ? AND ticket = ? RETURNING num, sid`, g.id, ticket).Scan(&at, &p)
	if isNotFound(err) || err == nil && at != num {
		return noSID, nil
	}
	return p, err
}
