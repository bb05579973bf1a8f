package gm

import (
	"context"
	"slices"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// A group with gid.reuse comes back to Gids that it had. A member that joined
// under such a Gid, its Birth Gid, is an elder when the Gid is about to be used
// again: it may still hold what it derived under that Gid, and peers may hold it
// of the elder. The rekey evicts it in its own transaction, so that it gets no
// newer key, and the group remembers it until the following rekey: when it joins
// again before that, its join alone causes no rekey
// (draft-ietf-ace-key-groupcomm-oscore-21, Section 11).

// byGidReuse is the reason of the eviction of elders, in events.
const byGidReuse = "gid reuse"

// findElders finds the members whose Birth Gid is the new Gid. They are not
// entitled to the new material; their Sender IDs become stale with the version
// that is given up.
func (s *snapshot) findElders(tx *store.Tx, g *group) error {
	if !g.cfg.GidReuse {
		return nil
	}
	out := map[string]bool{}
	for _, node := range s.excluded {
		out[node] = true
	}
	err := eachMember(tx, `m.group_id = ? AND m.birth_gid = ? ORDER BY m.node`, []any{g.id, []byte(s.gid)},
		func(mb *member) error {
			s.elders = append(s.elders, mb)
			if !out[mb.node] { // else its token expired
				s.excluded = append(s.excluded, mb.node)
				s.entitled--
			}
			return nil
		})
	if err != nil || len(s.elders) == 0 {
		return err
	}
	for _, mb := range s.elders {
		if mb.sid != noSID {
			s.stale = append(s.stale, mb.sid.id())
		}
	}
	slices.SortFunc(s.stale, func(a, b groupcomm.SenderID) int {
		p, _ := placeOf(a)
		q, _ := placeOf(b)
		return int(p - q)
	})
	return nil
}

// removeElders takes the elders of s out of the group and remembers them in
// place of those of the rekey before.
func (m *Manager) removeElders(tx *store.Tx, g *group, s *snapshot) error {
	if !g.cfg.GidReuse {
		return nil
	}
	if _, err := tx.Exec(`DELETE FROM gm_elders WHERE group_id = ?`, g.id); err != nil {
		return err
	}
	for _, mb := range s.elders {
		if err := m.takeOut(tx, g, s.num, mb, groupcomm.EventEvicted, byGidReuse); err != nil {
			return err
		}
		who := subjectOf(mb.subject)
		if _, err := tx.Exec(`INSERT INTO gm_elders (group_id, subject_kind, subject_id) VALUES (?, ?, ?)`,
			g.id, who.kind, who.id); err != nil {
			return err
		}
	}
	return nil
}

// elder says whether the latest rekey of a group evicted the subject as an
// elder.
func (m *Manager) elder(ctx context.Context, g *group, s coap.Subject) (bool, error) {
	if !g.cfg.GidReuse {
		return false, nil
	}
	n := 0
	err := m.st.View(ctx, func(tx *store.Tx) error {
		who := subjectOf(s)
		return tx.QueryRow(`SELECT COUNT(*) FROM gm_elders WHERE group_id = ? AND subject_kind = ? AND subject_id = ?`,
			g.id, who.kind, who.id).Scan(&n)
	})
	return n > 0, err
}

func nodeNames(members []*member) []string {
	out := make([]string, len(members))
	for i, mb := range members {
		out[i] = mb.node
	}
	return out
}
