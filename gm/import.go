package gm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// Import takes a group from a file of [Manager.Export] and returns its name and
// version (docs/protocol.md, Section 10). Nothing is ever served under the material of
// the file: in one transaction the group comes into being as a rekey leaves it,
// with a version that is one further, or 2^20 with a backup, whose original may
// have gone on; with fresh secrets; and with a Gid that was never in use: the next
// of its space, or where that is not known to be free, one of another space.
//
// Members, roles, credentials, Sender IDs, policies, and the Group Manager's key
// come along, and stale sets but for a backup, whose original may know more. What
// belongs to associations stays behind: members associate anew with tokens that
// this gateway accepts. A key for rekeys is for one gateway: members of a key tree
// get their way in another when they ask for the keying material, and others on MQTT
// join again.
func (m *Manager) Import(ctx context.Context, file, phrase []byte) (string, uint64, error) {
	e, cfg, err := m.openExport(file, phrase)
	if err != nil {
		return "", 0, err
	}
	num, st := e.Num+1, stateActive
	if e.Backup {
		num = e.Num + numLeap
	}
	if !e.Active {
		st = stateInactive
	}
	p := &planted{cfg: *cfg, state: st, num: num, staleFrom: num, key: e.KDCKey, cred: e.KDCCred, file: e.ID, members: e.Members}
	if d, ok := m.deliver.(mover); ok && cfg.KeyTree != 0 && len(e.Branches) > 0 {
		channels := map[string]string{}
		for _, b := range e.Branches {
			channels[b.Node] = b.Channel
		}
		if p.enroll, err = d.Replant(ctx, cfg.Name, channels); err != nil {
			return "", 0, err
		}
	}
	given := []sidPlace{}
	for _, s := range e.Stale {
		if s.Num == e.Num {
			given = append(given, sidPlace(s.SID))
		}
	}
	if n := uint64(cfg.MaxStaleSets); !e.Backup {
		p.staleFrom = max(e.StaleFrom, num+1-min(n, num+1))
		p.stale = slices.DeleteFunc(e.Stale, func(s exportedStale) bool { return s.Num < p.staleFrom })
	}
	slices.Sort(given)
	m.planting.Lock()
	defer m.planting.Unlock()
	if p.id, err = m.newest(ctx); err != nil {
		return "", 0, err
	}
	if err := m.chooseSpace(ctx, p, e); err != nil {
		return "", 0, err
	}
	g := newGroup(0, p.cfg)
	gid, err := makeGid(p.cfg.GidPrefix, p.epoch, p.cfg.GidEpochBytes)
	if err != nil {
		return "", 0, err
	}
	ids := make([]groupcomm.SenderID, len(given))
	for i, s := range given {
		ids[i] = s.id()
	}
	p.mat, _ = makeMaterial(g, groupcomm.RekeyMessage{Num: num, ContextID: gid, Stale: ids})
	if err := m.plant(ctx, p); err != nil {
		return "", 0, err
	}
	m.log.WarnContext(ctx, "group imported", "group", cfg.Name, "version", num, "gid", gid.String(), "members", len(e.Members), "backup", e.Backup)
	return cfg.Name, num, nil
}

// chooseSpace finds the first Gid.
func (m *Manager) chooseSpace(ctx context.Context, p *planted, e *exported) error {
	own := gidSpace{p.cfg.GidPrefix, p.cfg.GidEpochBytes}
	taken := []gidSpace{}
	free := true
	for _, g := range m.byID() {
		s := gidSpace{g.cfg.GidPrefix, g.cfg.GidEpochBytes}
		taken = append(taken, s)
		free = free && !own.meets(s)
	}
	retired, err := m.retired(ctx)
	if err != nil {
		return err
	}
	for _, r := range retired {
		taken = append(taken, r.gidSpace)
		free = free && !own.meets(r.gidSpace)
	}
	p.epoch = e.Epoch + 1
	if e.Backup {
		p.epoch = e.Epoch + numLeap
	}
	if free && e.Wraps == 0 && p.epoch > e.Epoch && p.epoch < m.epochs(&p.cfg) {
		return nil
	}
	p.epoch = 0
	if p.cfg.GidPrefix, err = choosePrefix(append(taken, own), p.cfg.GidEpochBytes); err != nil {
		return coap.Errorf(coap.Conflict, "%w", err)
	}
	return nil
}

// planted is a group that comes into being with members.
type planted struct {
	id        int64 // the next group's when the Gids were chosen
	cfg       groupcomm.GroupConfig
	state     state
	num       uint64
	epoch     uint64
	mat       *material
	staleFrom uint64
	stale     []exportedStale
	key, cred []byte
	members   []exportedMember
	file      []byte                // identifier of the import; nil: of a fixture
	enroll    func(*store.Tx) error // of members that follow the key tree; nil: there are none
}

// errTaken is the error for the name of a group that is there.
var errTaken = coap.Errorf(coap.Conflict, "a group of that name exists")

// plant writes the group and brings it into memory.
func (m *Manager) plant(ctx context.Context, p *planted) error {
	name := p.cfg.Name
	if _, ok := m.group(name); ok {
		return fmt.Errorf("gm: import %q: %w", name, errTaken)
	}
	config, err := json.Marshal(p.cfg)
	if err != nil {
		return fmt.Errorf("gm: import %q: %w", name, err)
	}
	from := "import"
	if p.file == nil {
		from = "fixture"
	}
	held := map[int64]bool{}
	next := int64(0)
	for _, mb := range p.members {
		if mb.SID != int64(noSID) {
			held[mb.SID] = true
			next = max(next, mb.SID+1)
		}
	}
	// Secrets are sealed outside of the transaction, for an id that is checked in it.
	id := p.id
	sealed, key := m.seal(id, p.mat), m.st.Seal(kdcKeyContext(id), p.key)
	err = m.st.Update(ctx, func(tx *store.Tx) error {
		var now int64
		if err := nextGroupID(tx, &now); err != nil || now != id {
			return errors.Join(err, coap.Errorf(coap.ServiceUnavailable, "another group was created meanwhile"))
		}
		if p.file != nil {
			n, err := tx.Exec(`INSERT INTO gm_imports (file, name, at) VALUES (?, ?, ?) ON CONFLICT (file) DO NOTHING`,
				p.file, name, time.Now().Unix())
			if err != nil {
				return err
			}
			if n == 0 {
				return coap.Errorf(coap.Conflict, "this file was imported before")
			}
		}
		if _, err := tx.Exec(`INSERT INTO gm_groups (id, name, state, num, gid, gid_epoch, exp, handed, changes,
			sid_next, sid_free, stale_from) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?)`,
			id, name, p.state, p.num, []byte(p.mat.gid), p.epoch, p.mat.exp, len(p.members) > 0,
			next, next-int64(len(held)), p.staleFrom); err != nil {
			return err
		}
		if _, err := tx.Exec(`INSERT INTO gm_configs (group_id, config, kdc_key, kdc_cred) VALUES (?, ?, ?, ?)`,
			id, string(config), key, p.cred); err != nil {
			return err
		}
		if _, err := tx.Exec(`INSERT INTO gm_material (group_id, num, master_secret, salt, message) VALUES (?, ?, ?, ?, ?)`,
			id, p.num, sealed.secret, sealed.salt, sealed.message); err != nil {
			return err
		}
		if err := emit(tx, groupcomm.EventCreated, groupcomm.Event{Group: name, Version: p.num, Gid: p.mat.gid, Reason: from}); err != nil {
			return err
		}
		if p.enroll != nil {
			if err := p.enroll(tx); err != nil {
				return err
			}
		}
		return p.writeRows(tx, id, held, next)
	})
	if err != nil {
		return fmt.Errorf("gm: import %q: %w", name, err)
	}
	loaded, err := m.load(ctx)
	if err != nil {
		return err
	}
	if g, ok := loaded[name]; ok { // else another gateway deleted it already
		m.enter(g)
	}
	return nil
}

// nextGroupID is the id of the next group. Secrets are sealed with it: that of a
// deleted group is not given to another.
func nextGroupID(tx *store.Tx, id *int64) error {
	return tx.QueryRow(`SELECT COALESCE(MAX(id), 0) + 1 FROM
		(SELECT id FROM gm_groups UNION ALL SELECT group_id FROM gm_retired) AS ids`).Scan(id)
}

// writeRows writes members, stale sets, and the Sender IDs that nobody holds:
// under the new Gid all of them are assignable.
func (p *planted) writeRows(tx *store.Tx, id int64, held map[int64]bool, next int64) error {
	for _, x := range p.members {
		var sid any
		if x.SID != int64(noSID) {
			sid = x.SID
		}
		cred := x.Cred
		if len(cred) == 0 {
			cred = nil
		}
		if _, err := tx.Exec(`INSERT INTO gm_members (group_id, node, subject_kind, subject_id, sid, roles, cred, scope,
			cnonce, control_uri, birth_gid, joined_num, expires, lapsed, lapsed_num, awaited)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1)`,
			id, x.Node, x.SubjectKind, x.SubjectID, sid, x.Roles, nullable(cred), x.Scope,
			x.CNonce, x.ControlURI, x.BirthGid, x.JoinedNum, x.Expires, x.Lapsed, x.LapsedNum); err != nil {
			return err
		}
	}
	for _, s := range p.stale {
		if _, err := tx.Exec(`INSERT INTO gm_stale (group_id, num, sid) VALUES (?, ?, ?)`, id, s.Num, s.SID); err != nil {
			return err
		}
	}
	for sid := range next {
		if held[sid] {
			continue
		}
		if _, err := tx.Exec(`INSERT INTO gm_free (group_id, sid) VALUES (?, ?)`, id, sid); err != nil {
			return err
		}
	}
	return emit(tx, groupcomm.EventRekeyed, groupcomm.Event{Group: p.cfg.Name, Version: p.num, Reason: "import"})
}

// lapseAwaited lets imported members lapse whose token expired elsewhere and was
// never seen here, and returns when to look again. Nothing else tells of such a
// token.
func (m *Manager) lapseAwaited(ctx context.Context) time.Time {
	var next int64
	var over []coap.Subject
	now := time.Now()
	err := m.st.View(ctx, func(tx *store.Tx) error {
		over = nil
		if err := eachMember(tx, `m.awaited = 1 AND m.lapsed = 0 AND m.expires > 0 AND m.expires <= ?`, []any{now.UnixMilli()},
			func(mb *member) error {
				over = append(over, mb.subject)
				return nil
			}); err != nil {
			return err
		}
		return tx.QueryRow(`SELECT COALESCE(MIN(expires), 0) FROM gm_members
			WHERE awaited = 1 AND lapsed = 0 AND expires > ?`, now.UnixMilli()).Scan(&next)
	})
	for _, s := range over {
		if err != nil {
			break
		}
		// It may have been here since before the import.
		if _, grantErr := m.auth.Grant(ctx, coap.Peer{Via: coap.Internal, Subject: s}); grantErr == nil {
			err = m.tokenStored(ctx, &groupcomm.Event{Subject: s})
			continue
		}
		err = m.lapse(ctx, s, byExpiry, func(_ *group, mb *member) bool {
			return !mb.expires.IsZero() && !mb.expires.After(now)
		})
	}
	if err != nil {
		if ctx.Err() == nil {
			m.log.ErrorContext(ctx, "imported memberships do not lapse", "err", err)
		}
		return now.Add(retryRekey)
	}
	if next == 0 {
		return time.Time{}
	}
	return time.UnixMilli(next)
}

// earlier is the first of two times, of which zero means never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
