package gm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// reasons says why a rekey is due: the OR of these.
type reasons int64

const (
	byLeave reasons = 1 << iota
	byEviction
	byExpiry // tokens expired; their members lapsed
	byJoin
	byLifetime // the keying material is about to expire
	byOperator
	bySenderIDs // all Sender IDs are used up, a rekey frees some
	byRevocation
	byRenewal // a member asked for a new Sender ID where that rekeys the group
	byPlan    // an operator's, who is in no hurry
)

// scheduled are the reasons for which nobody has to be kept out: members may be
// told in an order (docs/protocol.md, Section 7). An operator who does not say so may
// have learned of a compromise.
const scheduled = byLifetime | byPlan

// forward are the reasons for which somebody who is no member holds the current
// material: no newcomer gets it.
const forward = byLeave | byEviction | byRevocation

var reasonNames = []struct {
	bit  reasons
	name string
}{
	{byLeave, "leave"}, {byEviction, "eviction"}, {byExpiry, "token expiry"}, {byJoin, "join"},
	{byLifetime, "key lifetime"}, {byOperator, "operator"}, {bySenderIDs, "sender ids"}, {byRevocation, "token revocation"},
	{byRenewal, "key renewal"}, {byPlan, "plan"},
}

func (r reasons) String() string {
	var s []string
	for _, n := range reasonNames {
		if r&n.bit != 0 {
			s = append(s, n.name)
		}
	}
	return strings.Join(s, ", ")
}

// makeDue has a rekey happen at the latest at t. It is on disk with the change
// that caused it, so a crash does not forget it.
func (g *group) makeDue(tx *store.Tx, t time.Time, why reasons) error {
	at := t.UnixMilli()
	_, err := tx.Exec(`UPDATE gm_groups SET changes = changes + 1, due_reasons = due_reasons | ?,
		due_at = CASE WHEN due_at = 0 OR due_at > ? THEN ? ELSE due_at END
		WHERE id = ? AND state < ?`, why, at, at, g.id, stateStopped)
	return err
}

// rekey renews the keying material of a group, unless its version is above
// given by now, and returns the version in force. given is what the caller
// knows: of all who find the same version too old, one renews it.
//
// A rekey is decided on a snapshot, its message is rendered outside of any
// transaction, and it is written only if neither version nor membership changed
// meanwhile; else it is prepared again. After a few such attempts the group's
// gate is closed, so that it ends. Where another gateway changes the group too, of
// which our gate knows nothing, the last attempts keep everybody from writing.
func (m *Manager) rekey(ctx context.Context, g *group, why reasons, detail string, given uint64) (uint64, error) {
	select {
	case g.rekeying <- struct{}{}:
		defer func() { <-g.rekeying }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	began := time.Now()
	for try := range maxRekeyTries {
		if try >= freeRekeys {
			g.gate.Lock()
		}
		once := m.rekeyOnce
		if try >= gatedRekeys && m.st.Shared() {
			once = m.rekeyAlone
		}
		mat, err := once(ctx, g, why, detail, given, beyond{})
		if try >= freeRekeys {
			g.gate.Unlock()
		}
		switch {
		case errors.Is(err, errMoved), errors.Is(err, groupcomm.ErrPlanMoved):
			m.met.overtaken.Inc()
			if err := m.settle(ctx); err != nil {
				return 0, err
			}
			continue
		case errors.Is(err, ErrGidExhausted):
			return 0, errors.Join(fmt.Errorf("gm: rekey %q: %w", g.cfg.Name, err), m.move(ctx, g.cfg.Name, exhaust))
		case err != nil:
			return 0, fmt.Errorf("gm: rekey %q: %w", g.cfg.Name, err)
		}
		if mat.num > given {
			m.met.seconds.Observe(time.Since(began).Seconds())
		}
		return mat.num, nil
	}
	return 0, fmt.Errorf("gm: rekey %q: %w", g.cfg.Name, errOvertaken)
}

var errOvertaken = errors.New("overtaken too often")

// toPeer makes the failure of a rekey that a request needed an answer to it.
func toPeer(err error) error {
	switch {
	case errors.Is(err, ErrGidExhausted), errors.Is(err, ErrMoved):
		return fmt.Errorf("%w: %w", groupcomm.ErrInactive, err)
	case errors.Is(err, errOvertaken):
		return unavailable(err.Error())
	}
	return err
}

// snapshot is what a rekey is decided on.
type snapshot struct {
	num       uint64
	state     state
	gid       groupcomm.Gid
	place     gidPlace
	changes   int64
	jump      uint64 // versions that are left out
	staleFrom uint64
	reasons   reasons
	stale     []groupcomm.SenderID
	elders    []*member // evicted with this rekey
	excluded  []string  // members that are not entitled to the new material
	entitled  int64     // how many are
	reserved  reservation
}

// decision is a rekey that is ready to be written.
type decision struct {
	mat    *material
	newer  bool // mat is there already
	detail string
	s      *snapshot
	write  func(*store.Tx) error
}

// rekeyOnce tries it once.
func (m *Manager) rekeyOnce(ctx context.Context, g *group, why reasons, detail string, given uint64, past beyond) (*material, error) {
	d, err := m.decide(ctx, g, why, detail, given, past)
	if err == nil && !d.newer {
		err = m.st.Update(ctx, d.write)
	}
	return m.decided(ctx, g, d, err)
}

// rekeyAlone is rekeyOnce with everything inside of the transaction, which on a
// shared store is the only one.
func (m *Manager) rekeyAlone(ctx context.Context, g *group, why reasons, detail string, given uint64, past beyond) (*material, error) {
	var d *decision
	err := m.st.Update(ctx, func(tx *store.Tx) (err error) {
		if d, err = m.decide(ctx, g, why, detail, given, past); err != nil || d.newer {
			return err
		}
		return d.write(tx)
	})
	return m.decided(ctx, g, d, err)
}

// decide makes a rekey out of what is in the store.
func (m *Manager) decide(ctx context.Context, g *group, why reasons, detail string, given uint64, past beyond) (*decision, error) {
	var s *snapshot
	var newer *material
	err := m.st.View(ctx, func(tx *store.Tx) (err error) {
		if s, err = m.snapshot(tx, g); err != nil {
			return err
		}
		if s.num > given {
			newer, err = m.materialAt(tx, g, s.num)
			return err
		}
		if s.state == stateMoved {
			return ErrMoved
		}
		m.leap(s, g, past)
		if s.gid, s.place, err = m.nextGid(tx, g.cfg, s.place); err != nil {
			return err
		}
		if err := s.findElders(tx, g); err != nil {
			return err
		}
		return s.reserve(tx, g)
	})
	switch {
	case err != nil:
		return nil, err
	case newer != nil:
		return &decision{mat: newer, newer: true}, nil
	case s.state == stateStopped:
		return nil, ErrGidExhausted
	}
	why |= s.reasons
	if detail == "" {
		detail = why.String()
	}
	mat, msg := newMaterial(g, s)
	commit, err := m.prepare(ctx, g, s, mat, msg, activation(g, why))
	if err != nil {
		return nil, fmt.Errorf("prepare delivery: %w", err)
	}
	sealed := m.seal(g.id, mat)
	return &decision{mat: mat, detail: detail, s: s, write: func(tx *store.Tx) error {
		if err := m.writeRekey(tx, g, s, mat, sealed); err != nil {
			return err
		}
		if err := s.reserved.write(tx, g, mat.num); err != nil {
			return err
		}
		if commit != nil {
			if err := commit(tx); err != nil {
				return err
			}
		}
		// Whoever reads the new version after this commit finds the material
		// in memory; followers of the event too.
		tx.AfterCommit(func() { g.install(mat) })
		return emit(tx, groupcomm.EventRekeyed, groupcomm.Event{Group: g.cfg.Name, Version: mat.num, Reason: detail, Gid: mat.gid})
	}}, nil
}

// decided tells of a rekey that was written.
func (m *Manager) decided(ctx context.Context, g *group, d *decision, err error) (*material, error) {
	if err != nil {
		return nil, err
	}
	mat, s := d.mat, d.s
	if d.newer {
		return mat, nil
	}
	m.met.rekeys.WithLabelValues(g.cfg.Name).Inc()
	if len(s.elders) > 0 {
		m.met.removals.WithLabelValues("evicted").Add(float64(len(s.elders)))
		m.log.InfoContext(ctx, "elders evicted, because their gid is used again", "group", g.cfg.Name,
			"gid", mat.gid.String(), "nodes", nodeNames(s.elders))
	}
	m.log.InfoContext(ctx, "group rekeyed", "group", g.cfg.Name, "reason", d.detail, "version", mat.num,
		"gid", mat.gid.String(), "stale", len(s.stale), "members", s.entitled)
	m.poke()
	return mat, nil
}

// snapshot reads what a rekey needs to know.
func (m *Manager) snapshot(tx *store.Tx, g *group) (*snapshot, error) {
	s := &snapshot{}
	err := tx.QueryRow(`SELECT num, state, gid_epoch, gid_wraps, changes, stale_from, due_reasons FROM gm_groups WHERE id = ?`, g.id).
		Scan(&s.num, &s.state, &s.place.epoch, &s.place.wraps, &s.changes, &s.staleFrom, &s.reasons)
	if err != nil {
		return nil, gone(err)
	}
	if s.stale, err = staleOf(tx, g.id, s.num, s.num); err != nil {
		return nil, err
	}
	// A member whose token expired gets no newer key, whether or not the expiry
	// has been worked off.
	if err := tx.QueryRow(`SELECT COUNT(*) FROM gm_members WHERE group_id = ?`, g.id).Scan(&s.entitled); err != nil {
		return nil, err
	}
	// Two disjoint halves, each with an index that lists few: for a UNION, SQLite
	// reads all members in the order of their names.
	rows, err := tx.Query(`SELECT node FROM gm_members WHERE group_id = ? AND lapsed = 0 AND expires BETWEEN 1 AND ?
		UNION ALL SELECT node FROM gm_members WHERE group_id = ? AND lapsed = 1`, g.id, time.Now().UnixMilli(), g.id)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var node string
		if err := rows.Scan(&node); err != nil {
			return nil, err
		}
		s.excluded = append(s.excluded, node)
	}
	s.entitled -= int64(len(s.excluded))
	return s, rows.Err()
}

// newMaterial makes the material that follows s, and encodes its rekey message:
// once, so that all members get the same bytes.
func newMaterial(g *group, s *snapshot) (*material, []byte) {
	msg := groupcomm.RekeyMessage{Num: s.num + s.jump + 1, ContextID: s.gid, Stale: s.stale}
	s.reserved.introduce(&msg)
	return makeMaterial(g, msg)
}

// firstMaterial makes version 0. Its message says what a rekey message would,
// for deliveries that start from one.
func firstMaterial(g *group, gid groupcomm.Gid) *material {
	mat, _ := makeMaterial(g, groupcomm.RekeyMessage{ContextID: gid, Stale: []groupcomm.SenderID{}})
	return mat
}

// makeMaterial draws fresh secrets for the version and Gid of msg and encodes the
// rekey message (draft-ietf-ace-key-groupcomm-oscore-21, Section 11.1).
func makeMaterial(g *group, msg groupcomm.RekeyMessage) (*material, []byte) {
	msg.MasterSecret, msg.Salt = make([]byte, masterSecret), make([]byte, masterSalt)
	rand.Read(msg.MasterSecret)
	rand.Read(msg.Salt)
	return givenMaterial(g, msg)
}

// givenMaterial is makeMaterial with the secrets of msg.
func givenMaterial(g *group, msg groupcomm.RekeyMessage) (*material, []byte) {
	msg.Exi = int64(g.cfg.KeyLifetime / time.Second)
	msg.Exp = time.Now().Unix() + msg.Exi
	body := msg.Encode()
	return &material{
		num:     msg.Num,
		gid:     msg.ContextID,
		secret:  cose.NewSecret(msg.MasterSecret),
		salt:    cose.NewSecret(msg.Salt),
		exp:     msg.Exp,
		message: cose.NewSecret(body),
	}, body
}

// prepare has the delivery render its messages.
func (m *Manager) prepare(ctx context.Context, g *group, s *snapshot, mat *material, msg []byte, how groupcomm.Activation) (func(*store.Tx) error, error) {
	if m.deliver == nil {
		return nil, nil
	}
	return m.deliver.Prepare(ctx, groupcomm.RekeyPlan{
		Group:   g.cfg.Name,
		Num:     mat.num,
		Message: msg,
		SignAlg: g.kdc.signAlg,
		Sign:    g.kdc.sign,

		Excluded: s.excluded,

		Activation: how,
	})
}

// activation is the order in which the members of g are told of a rekey for the
// given reasons: never one that keeps somebody out of the group. The keying material
// before it must not expire while they wait.
func activation(g *group, why reasons) groupcomm.Activation {
	if why == 0 || why&^scheduled != 0 {
		return groupcomm.Activation{}
	}
	a := g.cfg.Activation
	a.Spread = min(a.Spread, margin(g.cfg.KeyLifetime)/2)
	return a
}

// sealedMaterial is material as it stands in its row.
type sealedMaterial struct{ secret, salt, message []byte }

func (m *Manager) seal(groupID int64, mat *material) sealedMaterial {
	return sealedMaterial{
		secret:  m.st.Seal(materialContext(groupID, mat.num, "master_secret"), mat.secret.Bytes()),
		salt:    m.st.Seal(materialContext(groupID, mat.num, "salt"), mat.salt.Bytes()),
		message: m.st.Seal(materialContext(groupID, mat.num, "message"), mat.message.Bytes()),
	}
}

// writeRekey brings mat into force if the group is still what s says.
func (m *Manager) writeRekey(tx *store.Tx, g *group, s *snapshot, mat *material, sealed sealedMaterial) error {
	// draft-ietf-ace-key-groupcomm-oscore-21, Section 7.1: with the new version
	// there are at most N stale sets.
	staleFrom := s.staleFrom
	if n := uint64(g.cfg.MaxStaleSets); mat.num-staleFrom+1 > n {
		staleFrom = mat.num - n + 1
	}
	if s.jump > 0 {
		staleFrom = mat.num // what became stale in between is not known
	}
	n, err := tx.Exec(`UPDATE gm_groups SET num = ?, gid = ?, gid_epoch = ?, gid_wraps = ?, exp = ?, handed = ?,
		sid_free = sid_free + ?, stale_from = ?, due_at = 0, due_reasons = 0
		WHERE id = ? AND num = ? AND changes = ?`,
		mat.num, []byte(mat.gid), s.place.epoch, s.place.wraps, mat.exp, s.entitled > 0,
		len(s.stale), staleFrom, g.id, s.num, s.changes)
	if err != nil {
		return err
	}
	if n == 0 {
		return errMoved
	}
	if _, err := tx.Exec(`UPDATE gm_material SET num = ?, master_secret = ?, salt = ?, message = ? WHERE group_id = ?`,
		mat.num, sealed.secret, sealed.salt, sealed.message, g.id); err != nil {
		return err
	}
	if err := m.removeElders(tx, g, s); err != nil {
		return err
	}
	// Section 10: under the new Gid the released Sender IDs are assignable again.
	if _, err := tx.Exec(`INSERT INTO gm_free (group_id, sid) SELECT group_id, sid FROM gm_stale WHERE group_id = ? AND num = ?`,
		g.id, s.num); err != nil {
		return err
	}
	_, err = tx.Exec(`DELETE FROM gm_stale WHERE group_id = ? AND num < ?`, g.id, staleFrom)
	return err
}

// noSenderID is the answer when every Sender ID is taken: error 4. When a rekey
// would free some it is started, and the node is told to come back soon.
func (m *Manager) noSenderID(ctx context.Context, g *group, num uint64) error {
	freed := false
	err := m.st.Update(ctx, func(tx *store.Tx) error {
		var n int64
		if err := tx.QueryRow(`SELECT COUNT(*) FROM gm_stale WHERE group_id = ? AND num = ?`, g.id, num).Scan(&n); err != nil {
			return err
		}
		if freed = n > 0; !freed {
			return nil
		}
		return g.makeDue(tx, time.Now(), bySenderIDs)
	})
	if err != nil {
		return err
	}
	if !freed {
		return groupcomm.ErrNoSenderID
	}
	m.poke()
	return soon(groupcomm.ErrNoSenderID, retryAfter)
}
