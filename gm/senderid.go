package gm

import (
	"errors"
	"fmt"

	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// Sender IDs are kept as their place in the order in which they are given out:
// shortest first, then by value. 0 is the empty ID, 1 to 256 those of one byte,
// and so on. A place fits 64 bits because no ID is longer than maxSenderID.
//
// draft-ietf-ace-key-groupcomm-oscore-21, Sections 6.3 and 9.2: an ID that
// somebody held when the current Gid came into force, or that was given out
// since, is not given out again under that Gid. The group row therefore has a
// cursor sid_next, and gm_free lists places below it. Under one Gid at all
// times
//
//	{places < sid_next} = held by members ⊎ stale set of the version ⊎ gm_free
//
// so that finding the shortest assignable ID looks at one row, however large
// the group is. A release goes to the stale set; a rekey moves the stale set of
// the version that it gives up to gm_free.
type sidPlace int64

// noSID is the place of a member without Sender ID (a monitor).
const noSID sidPlace = -1

// id returns the Sender ID at a place; nil for noSID.
func (p sidPlace) id() groupcomm.SenderID {
	if p < 0 {
		return nil
	}
	v, n := uint64(p), 0
	for size := uint64(1); v >= size; n++ {
		v -= size
		size <<= 8
	}
	id := make(groupcomm.SenderID, n)
	for i := n - 1; i >= 0; i-- {
		id[i] = byte(v)
		v >>= 8
	}
	return id
}

// placeOf is the inverse of id. IDs longer than any we give out have no place.
func placeOf(id groupcomm.SenderID) (sidPlace, bool) {
	if len(id) > maxSenderID {
		return noSID, false
	}
	var v, below uint64
	for i, b := range id {
		v = v<<8 | uint64(b)
		below += 1 << (8 * i)
	}
	return sidPlace(below + v), true
}

// places returns how many Sender IDs have at most n bytes.
func places(n int) int64 {
	var sum int64
	for i := 0; i <= n; i++ {
		sum += 1 << (8 * i)
	}
	return sum
}

// errNoSID says that no Sender ID is assignable under the current Gid.
var errNoSID = errors.New("gm: no Sender ID is left")

// admission is what an assignment depends on.
type admission struct {
	num      uint64 // the decision was made for this version
	newcomer bool   // does not know the keys of num yet
	monitor  bool   // needs no Sender ID
}

// avoid are the reasons for which a rekey must come first: one that a leave made
// due comes before any newcomer.
func (a admission) avoid() reasons {
	if a.newcomer {
		return forward
	}
	return 0
}

// count counts a change of the membership, without a Sender ID. It returns
// errMoved when the group is not any more what the decision was made for.
func (g *group) count(tx *store.Tx, a admission) error {
	n, err := tx.Exec(`UPDATE gm_groups SET changes = changes + 1, handed = 1
		WHERE id = ? AND num = ? AND state = ? AND (due_reasons & ?) = 0`,
		g.id, a.num, stateActive, a.avoid())
	if err == nil && n == 0 {
		err = errMoved
	}
	return err
}

// assign counts a change of the membership, and gives out the shortest
// assignable Sender ID unless the member is a monitor. It returns errMoved when
// the group is not any more what the decision was made for, and errNoSID.
//
// The checks and the assignment are one statement: the join of a node is the
// path that a group of 50,000 takes 50,000 times.
func (g *group) assign(tx *store.Tx, a admission) (sidPlace, error) {
	if a.monitor {
		return noSID, g.count(tx, a)
	}
	// All right-hand sides see the row as it was.
	var fromFree bool
	var next int64
	err := tx.QueryRow(`UPDATE gm_groups SET changes = changes + 1, handed = 1,
			sid_from_free = CASE WHEN sid_free > 0 THEN 1 ELSE 0 END,
			sid_next = sid_next + CASE WHEN sid_free > 0 THEN 0 ELSE 1 END,
			sid_free = sid_free - CASE WHEN sid_free > 0 THEN 1 ELSE 0 END
		WHERE id = ? AND num = ? AND state = ? AND (due_reasons & ?) = 0 AND (sid_free > 0 OR sid_next < ?)
		RETURNING sid_from_free, sid_next`,
		g.id, a.num, stateActive, a.avoid(), g.sids).Scan(&fromFree, &next)
	switch {
	case isNotFound(err):
		return noSID, g.whyNot(tx, a)
	case err != nil:
		return noSID, err
	case !fromFree:
		return sidPlace(next - 1), nil
	}
	var p sidPlace
	if err := tx.QueryRow(`SELECT MIN(sid) FROM gm_free WHERE group_id = ?`, g.id).Scan(&p); err != nil {
		return noSID, fmt.Errorf("gm: free Sender ID of %q: %w", g.cfg.Name, err)
	}
	_, err = tx.Exec(`DELETE FROM gm_free WHERE group_id = ? AND sid = ?`, g.id, p)
	return p, err
}

// whyNot says why assign found no row to change.
func (g *group) whyNot(tx *store.Tx, a admission) error {
	var num uint64
	var free, next int64
	if err := tx.QueryRow(`SELECT num, sid_free, sid_next FROM gm_groups WHERE id = ?`, g.id).Scan(&num, &free, &next); err != nil {
		return gone(err)
	}
	if num == a.num && free == 0 && next >= g.sids {
		return errNoSID
	}
	return errMoved
}
