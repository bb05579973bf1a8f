package gm

import (
	"context"
	"fmt"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// Stale Sender IDs are kept in one set for each of the newest versions
// (draft-ietf-ace-key-groupcomm-oscore-21, Section 7.1). gm_groups.stale_from
// is the oldest version that has a set: sets may be empty and have no rows.

// staleOf returns the union of the stale sets of versions from to to, in the
// order in which Sender IDs are given out.
func staleOf(tx *store.Tx, groupID int64, from, to uint64) ([]groupcomm.SenderID, error) {
	rows, err := tx.Query(`SELECT DISTINCT sid FROM gm_stale WHERE group_id = ? AND num >= ? AND num <= ? ORDER BY sid`,
		groupID, from, to)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := []groupcomm.SenderID{} // encodes as an array, not as null
	for rows.Next() {
		var p sidPlace
		if err := rows.Scan(&p); err != nil {
			return nil, err
		}
		out = append(out, p.id())
	}
	return out, rows.Err()
}

// staleSIDs answers FETCH stale-sids (draft-ietf-ace-key-groupcomm-oscore-21,
// Sections 8.4.1 and 11.3.1): the member tells the version V that it has, the answer is what
// became stale from V on; or nothing, when so many versions were missed that
// the member must drop all it knows of others.
func (m *Manager) staleSIDs(ctx context.Context, c *call) (*coap.Response, error) {
	if f, ok := c.req.Options.ContentFormat(); ok && f != coap.CBOR {
		return nil, coap.Errorf(coap.UnsupportedContentFormat, "")
	}
	if err := checkAccept(c.req, coap.CBOR); err != nil {
		return nil, err
	}
	v, err := groupcomm.DecodeNum(c.req.Payload)
	if err != nil {
		return nil, coap.Errorf(coap.BadRequest, "a version number is expected")
	}
	var ids []groupcomm.SenderID
	var num uint64
	known := false
	err = m.st.View(ctx, func(tx *store.Tx) (err error) {
		var from uint64
		if err := tx.QueryRow(`SELECT num, stale_from FROM gm_groups WHERE id = ?`, c.g.id).Scan(&num, &from); err != nil {
			return err
		}
		if known = v >= from; !known || v >= num {
			return nil
		}
		ids, err = staleOf(tx, c.g.id, v, num)
		return err
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("gm: stale sender ids of %q: %w", c.g.cfg.Name, err)
	case v >= num:
		return nil, coap.Errorf(coap.BadRequest, "the version is not an earlier one")
	}
	r := &coap.Response{Code: coap.Content}
	r.Options.SetUint(coap.MaxAge, 0)
	if known {
		r.Options.SetContentFormat(coap.CBOR)
		r.Payload = groupcomm.EncodeStaleIDs(ids)
	}
	return r, nil
}
