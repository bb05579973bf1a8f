package gm

import (
	"context"
	"fmt"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// creds answers GET and FETCH on creds (RFC 9594, Section 4.4;
// draft-ietf-ace-key-groupcomm-oscore-21, Section 9.3).
func (m *Manager) creds(ctx context.Context, c *call) (*coap.Response, error) {
	if err := checkFormats(c.req); err != nil {
		return nil, err
	}
	match := func(*member) bool { return true }
	if c.req.Code == coap.FETCH {
		if len(c.req.Payload) > maxBody {
			return nil, coap.Errorf(coap.RequestEntityTooLarge, "")
		}
		q, err := groupcomm.DecodeCredsRequest(c.req.Payload)
		// RFC 9594, Section 4.4.1: null, or no filter at all, is malformed here.
		if err != nil || len(q.Roles) > maxFilter || len(q.IDs) > maxFilter {
			return nil, coap.Errorf(coap.BadRequest, "get_creds with a filter is expected")
		}
		match = credsFilter(q)
	}
	cr, err := m.selectCreds(ctx, c.g, match)
	if err != nil {
		return nil, err
	}
	return keyed(coap.Content, cr.Encode()), nil
}

// credsFilter is the selection of RFC 9594, Section 4.4.1:
//
//	inclusion  roles  ids   selected are members
//	true       R      I     with a role of R, or an ID in I
//	false      R      I     with a role of R and an ID not in I
//	true       []     I     with an ID in I
//	false      []     I     with an ID not in I
//	any        R      []    with a role of R
func credsFilter(q *groupcomm.GetCreds) func(*member) bool {
	ids := make(map[sidPlace]bool, len(q.IDs))
	for _, id := range q.IDs {
		// IDs that nobody can have match nobody.
		if p, ok := placeOf(id); ok {
			ids[p] = true
		}
	}
	return func(mb *member) bool {
		role, listed := matchRoles(q.Roles, mb.roles), ids[mb.sid]
		switch {
		case len(q.IDs) == 0:
			return role
		case len(q.Roles) == 0:
			return listed == q.Inclusion
		case q.Inclusion:
			return role || listed
		}
		return role && !listed
	}
}

// matchRoles: a member matches an element if it has all roles of it.
func matchRoles(filter []groupcomm.Roles, have groupcomm.Roles) bool {
	for _, r := range filter {
		if have&r == r {
			return true
		}
	}
	return false
}

// wanted says whether a joiner with the given roles that sent q gets the
// credential of mb (draft-ietf-ace-key-groupcomm-oscore-21, Section 6.3): with
// null those that it has to do with.
func wanted(q *groupcomm.GetCreds, joiner groupcomm.Roles, mb *member) bool {
	if !q.All {
		return matchRoles(q.Roles, mb.roles)
	}
	if joiner&groupcomm.Requester != 0 && mb.roles&groupcomm.Responder != 0 {
		return true
	}
	return joiner&(groupcomm.Responder|groupcomm.Monitor) != 0 && mb.roles&groupcomm.Requester != 0
}

// selectCreds lists the credentials of the members that match, in the order of
// their Sender IDs. Members without credential (monitors) are not listed.
func (m *Manager) selectCreds(ctx context.Context, g *group, match func(*member) bool) (*groupcomm.CredsResponse, error) {
	var out *groupcomm.CredsResponse
	err := m.st.View(ctx, func(tx *store.Tx) error {
		// Empty, not nil: nobody matches is something else than nobody asked.
		out = &groupcomm.CredsResponse{
			Creds: [][]byte{}, PeerRoles: []groupcomm.Roles{}, PeerIdentifiers: []groupcomm.SenderID{},
		}
		if err := tx.QueryRow(`SELECT num FROM gm_groups WHERE id = ?`, g.id).Scan(&out.Num); err != nil {
			return err
		}
		return eachMember(tx, `m.group_id = ? AND m.sid IS NOT NULL ORDER BY m.sid`, []any{g.id}, func(mb *member) error {
			if mb.cred != nil && match(mb) {
				out.Creds = append(out.Creds, mb.cred)
				out.PeerRoles = append(out.PeerRoles, mb.roles)
				out.PeerIdentifiers = append(out.PeerIdentifiers, mb.sid.id())
			}
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("gm: credentials of %q: %w", g.cfg.Name, err)
	}
	return out, nil
}

// getKDCCred answers GET kdc-cred (draft-ietf-ace-key-groupcomm-oscore-21,
// Section 9.5.1): the proof is over the nonce of the member's latest Join Request
// and a new one of ours.
func (m *Manager) getKDCCred(c *call) (*coap.Response, error) {
	if err := checkAccept(c.req, coap.ACEGroupcomm); err != nil {
		return nil, err
	}
	return m.kdcCred(c, c.row.member.cred, c.row.member.cnonce)
}
