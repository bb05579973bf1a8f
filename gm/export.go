package gm

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// ErrMoved is the error for a group that another gateway has now.
var ErrMoved = coap.Errorf(coap.Conflict, "the group was moved to another gateway")

// Export writes a group into a sealed file, for [Manager.Import] of another
// gateway, and returns the version that it had (docs/protocol.md, Section 10). With
// move the group ends here in the same transaction: no join, no leave, no rekey.
// The move of a group that was moved gives the same content again, for who lost
// the file. A file opens with the passphrase, or when that is empty with the
// sealing key.
func (m *Manager) Export(ctx context.Context, name string, move bool, phrase []byte) (file []byte, version uint64, err error) {
	g, err := m.find(ctx, name)
	if err != nil {
		return nil, 0, err
	}
	if len(phrase) > 0 && (len(phrase) < minPhrase || len(phrase) > maxPhrase) { // before anything is moved
		return nil, 0, coap.Errorf(coap.BadRequest, "the passphrase must have %d to %d bytes", minPhrase, maxPhrase)
	}
	config, err := json.Marshal(g.cfg)
	if err != nil {
		return nil, 0, fmt.Errorf("gm: export %q: %w", name, err)
	}
	id := make([]byte, 16)
	rand.Read(id)
	var e *exported
	var sealedKey []byte
	var before state
	var changes uint64
	read := func(tx *store.Tx) error {
		e = &exported{Backup: !move, ID: id, Config: config}
		var st, from state
		var gid []byte
		if err := tx.QueryRow(`SELECT g.state, g.moved_from, g.state_changes, g.num, g.gid, g.gid_epoch, g.gid_wraps, g.stale_from, c.kdc_key, c.kdc_cred
			FROM gm_groups g JOIN gm_configs c ON c.group_id = g.id WHERE g.id = ?`, g.id).
			Scan(&st, &from, &changes, &e.Num, &gid, &e.Epoch, &e.Wraps, &e.StaleFrom, &sealedKey, &e.KDCCred); err != nil {
			return err
		}
		if st == stateMoved && !move {
			return ErrMoved
		}
		if before = st; st != stateMoved {
			from = st
		}
		e.Active = from != stateInactive
		if move {
			sum := sha256.Sum256(cose.MustMarshal([]any{"group export", name, gid, e.Num}))
			e.ID = sum[:16]
		}
		if err := e.read(tx, g.id); err != nil {
			return err
		}
		return m.readBranches(tx, e, name)
	}
	if !move {
		err = m.st.View(ctx, read)
	} else {
		g.gate.Lock() // no change of the membership is under way
		defer g.gate.Unlock()
		err = m.st.Update(ctx, func(tx *store.Tx) error {
			if err := read(tx); err != nil {
				return err
			}
			if before == stateMoved {
				return nil
			}
			changes++
			if _, err := tx.Exec(`UPDATE gm_groups SET state = ?, moved_from = ?, state_changes = ?, due_at = 0, due_reasons = 0,
				changes = changes + 1 WHERE id = ?`, stateMoved, before, changes, g.id); err != nil {
				return err
			}
			return emit(tx, groupcomm.EventState, groupcomm.Event{Group: name, Version: changes, Reason: stateMoved.String()})
		})
	}
	if err != nil {
		return nil, 0, fmt.Errorf("gm: export %q: %w", name, err)
	}
	if e.KDCKey, err = m.st.Unseal(kdcKeyContext(g.id), sealedKey); err != nil {
		return nil, 0, fmt.Errorf("gm: export %q: %w", name, err)
	}
	if _, err := e.check(); err != nil {
		return nil, 0, fmt.Errorf("gm: export %q: no gateway would take it: %w", name, err)
	}
	if file, err = m.sealExport(e, phrase); err != nil {
		return nil, 0, fmt.Errorf("gm: export %q: %w", name, err)
	}
	m.log.WarnContext(ctx, "group exported", "group", name, "version", e.Num, "members", len(e.Members), "moved", move)
	return file, e.Num, nil
}

// readBranches fills in who follows the group's key tree.
func (m *Manager) readBranches(tx *store.Tx, e *exported, name string) error {
	e.Branches = []exportedBranch{}
	d, ok := m.deliver.(mover)
	if !ok {
		return nil
	}
	channels, err := d.Branches(tx, name)
	if err != nil {
		return err
	}
	for _, node := range slices.Sorted(maps.Keys(channels)) {
		e.Branches = append(e.Branches, exportedBranch{Node: node, Channel: channels[node]})
	}
	return nil
}

// read fills in what has many rows.
func (e *exported) read(tx *store.Tx, id int64) error {
	rows, err := tx.Query(`SELECT num, sid FROM gm_stale WHERE group_id = ? ORDER BY num, sid`, id)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var s exportedStale
		if err := rows.Scan(&s.Num, &s.SID); err != nil {
			return err
		}
		e.Stale = append(e.Stale, s)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	members, err := tx.Query(`SELECT node, subject_kind, subject_id, COALESCE(sid, -1), roles, cred, scope, cnonce, control_uri,
		birth_gid, joined_num, expires, lapsed, lapsed_num FROM gm_members WHERE group_id = ? ORDER BY node`, id)
	if err != nil {
		return err
	}
	defer members.Close()
	for members.Next() {
		var x exportedMember
		var lapsed int64
		if err := members.Scan(&x.Node, &x.SubjectKind, &x.SubjectID, &x.SID, &x.Roles, &x.Cred, &x.Scope, &x.CNonce, &x.ControlURI,
			&x.BirthGid, &x.JoinedNum, &x.Expires, &lapsed, &x.LapsedNum); err != nil {
			return err
		}
		x.Lapsed = lapsed != 0
		e.Members = append(e.Members, x)
	}
	return members.Err()
}
