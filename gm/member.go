package gm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// subject is a coap.Subject as it stands in columns.
type subject struct {
	kind int64
	id   []byte
}

func subjectOf(s coap.Subject) subject {
	return subject{kind: int64(s.Kind), id: []byte(s.ID)}
}

// member is one row of gm_members.
type member struct {
	node       string
	subject    coap.Subject
	sid        sidPlace
	roles      groupcomm.Roles
	cred       []byte
	scope      []byte
	cnonce     []byte
	controlURI string
	joinedNum  uint64
	expires    time.Time
	lapsed     bool
	phased     bool // asked for two phases

	by string // address of the peer that asked for the change at hand
}

const memberColumns = `m.node, m.subject_kind, m.subject_id, m.sid, m.roles, m.cred, m.scope, m.cnonce,
	m.control_uri, m.joined_num, m.expires, m.lapsed, m.phased`

// nullMember scans memberColumns, also the NULLs of an outer join without
// match.
type nullMember struct {
	node, controlURI         *string
	subjectID                []byte
	kind, sid, roles, joined *int64
	expires, lapsed, phased  *int64
	cred, scope, cnonce      []byte
}

func (n *nullMember) dst() []any {
	return []any{&n.node, &n.kind, &n.subjectID, &n.sid, &n.roles, &n.cred, &n.scope, &n.cnonce,
		&n.controlURI, &n.joined, &n.expires, &n.lapsed, &n.phased}
}

// member returns what was scanned; nil when there was no row.
func (n *nullMember) member() *member {
	if n.node == nil {
		return nil
	}
	mb := &member{
		node:       *n.node,
		subject:    coap.Subject{Kind: coap.SubjectKind(*n.kind), ID: string(n.subjectID)},
		sid:        noSID,
		roles:      groupcomm.Roles(*n.roles),
		cred:       n.cred,
		scope:      n.scope,
		cnonce:     n.cnonce,
		controlURI: *n.controlURI,
		joinedNum:  uint64(*n.joined),
		expires:    fromMillis(*n.expires),
		lapsed:     *n.lapsed != 0,
		phased:     *n.phased != 0,
	}
	if n.sid != nil {
		mb.sid = sidPlace(*n.sid)
	}
	return mb
}

// public is the member as other rooms see it.
func (mb *member) public(group string) groupcomm.Member {
	return groupcomm.Member{
		Group:    group,
		Node:     mb.node,
		Subject:  mb.subject,
		SenderID: mb.sid.id(),
		Roles:    mb.roles,
		Lapsed:   mb.lapsed,
		Expires:  mb.expires,
		JoinedAt: mb.joinedNum,

		ControlURI: mb.controlURI,
		Phased:     mb.phased,
	}
}

// MemberOf returns the membership of a subject; groupcomm.ErrNotMember when
// there is none, [ErrNoGroup] when there is no such group.
func (m *Manager) MemberOf(ctx context.Context, name string, s coap.Subject) (*groupcomm.Member, error) {
	g, err := m.find(ctx, name)
	if err != nil {
		return nil, err
	}
	var r *row
	err = m.st.View(ctx, func(tx *store.Tx) (err error) {
		r, err = g.look(tx, subjectOf(s))
		return err
	})
	if err != nil {
		return nil, err
	}
	if r.member == nil {
		return nil, groupcomm.ErrNotMember
	}
	out := r.member.public(name)
	return &out, nil
}

// Members lists the members of a group by node name.
func (m *Manager) Members(ctx context.Context, name string) ([]groupcomm.Member, error) {
	g, err := m.find(ctx, name)
	if err != nil {
		return nil, err
	}
	var out []groupcomm.Member
	err = m.st.View(ctx, func(tx *store.Tx) error {
		// Without credentials, which are most of a row: there may be a hundred
		// thousand, at each look at a delivery.
		rows, err := tx.Query(`SELECT node, subject_kind, subject_id, sid, roles, control_uri, joined_num, expires, lapsed, phased
			FROM gm_members WHERE group_id = ? ORDER BY node`, g.id)
		if err != nil {
			return err
		}
		defer rows.Close()
		out = nil
		for rows.Next() {
			var id []byte
			var sid *int64
			var kind, roles, joined, expires, lapsed, phased int64
			mb := member{sid: noSID}
			if err := rows.Scan(&mb.node, &kind, &id, &sid, &roles, &mb.controlURI, &joined, &expires, &lapsed, &phased); err != nil {
				return err
			}
			mb.subject = coap.Subject{Kind: coap.SubjectKind(kind), ID: string(id)}
			mb.roles, mb.joinedNum, mb.expires, mb.lapsed = groupcomm.Roles(roles), uint64(joined), fromMillis(expires), lapsed != 0
			mb.phased = phased != 0
			if sid != nil {
				mb.sid = sidPlace(*sid)
			}
			out = append(out, mb.public(name))
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("gm: members of %q: %w", name, err)
	}
	return out, nil
}

// Count tells how many members a group has, and how many of them lapsed.
func (m *Manager) Count(ctx context.Context, name string) (members, lapsed int, err error) {
	g, err := m.find(ctx, name)
	if err != nil {
		return 0, 0, err
	}
	err = m.st.View(ctx, func(tx *store.Tx) error {
		// Apart, so that each has an index.
		if err := tx.QueryRow(`SELECT COUNT(*) FROM gm_members WHERE group_id = ?`, g.id).Scan(&members); err != nil {
			return err
		}
		return tx.QueryRow(`SELECT COUNT(*) FROM gm_members WHERE lapsed = 1 AND group_id = ?`, g.id).Scan(&lapsed)
	})
	if err != nil {
		return 0, 0, fmt.Errorf("gm: members of %q: %w", name, err)
	}
	return members, lapsed, nil
}

// Roll gives the node names of the members of a group that did not lapse, by their
// subjects: of a hundred thousand in one go.
func (m *Manager) Roll(ctx context.Context, name string) (nodes map[coap.Subject]string, err error) {
	members, lapsed, err := m.Count(ctx, name)
	if err != nil {
		return nil, err
	}
	g, err := m.find(ctx, name)
	if err != nil {
		return nil, err
	}
	err = m.st.View(ctx, func(tx *store.Tx) error {
		rows, err := tx.Query(`SELECT node, subject_kind, subject_id FROM gm_members WHERE group_id = ? AND lapsed = 0`, g.id)
		if err != nil {
			return err
		}
		defer rows.Close()
		nodes = make(map[coap.Subject]string, members-lapsed)
		for rows.Next() {
			var node, id string
			var kind int64
			if err := rows.Scan(&node, &kind, &id); err != nil {
				return err
			}
			nodes[coap.Subject{Kind: coap.SubjectKind(kind), ID: id}] = node
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("gm: members of %q: %w", name, err)
	}
	return nodes, nil
}

// eachMember calls fn for every member that the condition selects.
func eachMember(tx *store.Tx, where string, args []any, fn func(*member) error) error {
	rows, err := tx.Query(`SELECT `+memberColumns+` FROM gm_members m WHERE `+where, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var n nullMember
		if err := rows.Scan(n.dst()...); err != nil {
			return err
		}
		if err := fn(n.member()); err != nil {
			return err
		}
	}
	return rows.Err()
}

// release puts a Sender ID into the stale set of the current version
// (draft-ietf-ace-key-groupcomm-oscore-21, Section 7.1). It stays
// unassignable until the next rekey.
func (g *group) release(tx *store.Tx, num uint64, p sidPlace) error {
	if p == noSID {
		return nil
	}
	_, err := tx.Exec(`INSERT INTO gm_stale (group_id, num, sid) VALUES (?, ?, ?)`, g.id, num, p)
	return err
}

// remove takes a member out: row, Sender ID, delivery, event; and makes a rekey
// due (draft-ietf-ace-key-groupcomm-oscore-21, Section 10). num is the version
// in this transaction.
func (m *Manager) remove(tx *store.Tx, g *group, num uint64, mb *member, kind string, why reasons, window time.Duration) error {
	if err := m.takeOut(tx, g, num, mb, kind, why.String()); err != nil {
		return err
	}
	return g.makeDue(tx, time.Now().Add(window), why)
}

// takeOut is a removal without the rekey.
func (m *Manager) takeOut(tx *store.Tx, g *group, num uint64, mb *member, kind, reason string) error {
	n, err := tx.Exec(`DELETE FROM gm_members WHERE group_id = ? AND node = ?`, g.id, mb.node)
	if err != nil {
		return err
	}
	if n == 0 {
		return errMoved
	}
	if err := g.release(tx, num, mb.sid); err != nil {
		return err
	}
	if m.deliver != nil {
		if err := m.deliver.Remove(tx, g.cfg.Name, mb.node); err != nil {
			return err
		}
	}
	return emit(tx, kind, groupcomm.Event{
		Group: g.cfg.Name, Node: mb.node, Version: num, Subject: mb.subject, Reason: reason,
		SenderID: mb.sid.id(), Roles: mb.roles, Addr: mb.by, ControlURI: mb.controlURI,
	})
}

// addr is the address of the peer that sent a request, "" when it has none.
func addr(req *coap.Request) string {
	if a := req.Peer.Addr; a.IsValid() {
		return a.String()
	}
	return ""
}

func emit(tx *store.Tx, kind string, e groupcomm.Event) error {
	return tx.Emit(kind, e.Group, e.Encode())
}

// isNotFound says that a query had no row.
func isNotFound(err error) bool { return errors.Is(err, store.ErrNotFound) }
