package gm

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// state is where a group is in its life.
//
//	          activate                 exhausted
//	inactive ─────────▶ active ───────────────────▶ stopped
//	    ▲                 │                           ▲
//	    └─────────────────┘        exhausted          │
//	         deactivate      inactive ────────────────┘
//
// A group is created active, and deleted when it is not active. Rekeying is not a state: the version number moves
// in one transaction. Inactive (draft-ietf-ace-key-groupcomm-oscore-21, Section
// 13: error 9): no joins, no key renewals; members may read and leave, and
// rekeys happen. Stopped: the Gid space is used up, so no rekey is possible and
// nobody may be admitted any more; members read that the group is not active,
// and may leave. Moved: another gateway has the group now; nothing changes here
// any more, so that no version and no Gid is used on both sides.
type state int64

const (
	stateInactive state = iota
	stateActive
	stateStopped
	stateMoved
)

func (s state) String() string {
	switch s {
	case stateInactive:
		return "inactive"
	case stateActive:
		return groupcomm.StateActive
	case stateStopped:
		return "stopped"
	case stateMoved:
		return "moved"
	}
	return fmt.Sprintf("state(%d)", int64(s))
}

// transition is an operation on the state of a group.
type transition int

const (
	activate transition = iota
	deactivate
	exhaust
	moveAway
)

// next is the only place where a state changes.
func (s state) next(t transition) (state, error) {
	switch {
	case s == stateMoved || t == moveAway:
		if t == moveAway {
			return stateMoved, nil
		}
		return s, ErrMoved
	case t == exhaust:
		return stateStopped, nil
	case s == stateStopped:
		return s, ErrGidExhausted
	case t == activate:
		return stateActive, nil
	case t == deactivate:
		return stateInactive, nil
	}
	panic(fmt.Sprintf("gm: internal error: transition %d", t))
}

// group is the part of a group that stays in memory: a copy of what is
// configured, which another takes the place of when that changes, and what lives
// as long as the group does here. The row in the database is the truth.
type group struct {
	id   int64
	cfg  *groupcomm.GroupConfig // not written once others see the group
	sids int64                  // how many Sender IDs there are
	kdc  kdc
	// roots are those of members' certificates; nil with other credentials.
	roots *x509.CertPool

	*living
}

// living is what the copies of a group share: the newest keying material, and
// who is at work.
type living struct {
	cur   atomic.Pointer[material]
	known known

	// gate is held for reading by transactions that change the membership and
	// for writing by a rekey that was overtaken too often.
	gate sync.RWMutex
	// rekeying is a semaphore of one: a rekey is being prepared here.
	rekeying chan struct{}

	mu      sync.Mutex
	changed chan struct{} // guarded by mu; closed when the version moves
	joinBy  time.Time     // guarded by mu; end of the running window of joins
}

func newGroup(id int64, cfg groupcomm.GroupConfig) *group {
	return &group{
		id:   id,
		cfg:  &cfg,
		sids: places(cfg.MaxSenderIDLen()),
		living: &living{
			rekeying: make(chan struct{}, 1),
			changed:  make(chan struct{}),
			known:    known{seed: maphash.MakeSeed()},
		},
	}
}

func (g *group) topic() string { return "gm/" + g.cfg.Name }

func (g *group) numTopic() string { return g.topic() + "/num" }

func (g *group) activeTopic() string { return g.topic() + "/active" }

func (g *group) nodeTopic(node string) string { return "gm/" + g.cfg.Name + "/nodes/" + node }

// material is the keying material of one version.
type material struct {
	num     uint64
	gid     groupcomm.Gid
	secret  cose.Secret
	salt    cose.Secret
	message cose.Secret // encoded rekey message
	exp     int64       // seconds since 1970
}

// install makes mat current unless something newer is, and wakes who waits for
// a new version.
func (g *group) install(mat *material) {
	for {
		old := g.cur.Load()
		if old != nil && old.num >= mat.num {
			return
		}
		if g.cur.CompareAndSwap(old, mat) {
			break
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.changed)
	g.changed = make(chan struct{})
	g.joinBy = time.Time{}
}

// row is what one look at a group and one subject's membership finds.
type row struct {
	num        uint64
	gid        groupcomm.Gid
	state      state
	exp        int64
	handed     bool
	dueAt      int64
	dueReasons reasons
	changes    uint64  // of the state
	member     *member // nil: not a member
}

func (r *row) active() bool { return r.state == stateActive }

const rowColumns = `g.num, g.gid, g.state, g.exp, g.handed, g.due_at, g.due_reasons, g.state_changes`

// look reads a group's row and the membership of a subject.
func (g *group) look(tx *store.Tx, s subject) (*row, error) {
	r := &row{}
	var n nullMember
	dst := append([]any{&r.num, &r.gid, &r.state, &r.exp, &r.handed, &r.dueAt, &r.dueReasons, &r.changes}, n.dst()...)
	err := tx.QueryRow(`SELECT `+rowColumns+`, `+memberColumns+`
		FROM gm_groups g LEFT JOIN gm_members m
		ON m.subject_id = ? AND m.subject_kind = ? AND m.group_id = g.id
		WHERE g.id = ?`, s.id, s.kind, g.id).Scan(dst...)
	if err != nil {
		return nil, fmt.Errorf("gm: group %q: %w", g.cfg.Name, gone(err))
	}
	r.member = n.member()
	g.known.note(s, r.member != nil)
	return r, nil
}

// materialAt returns the material of version num, which is the group's current
// one in tx, from memory if it is there.
func (m *Manager) materialAt(tx *store.Tx, g *group, num uint64) (*material, error) {
	if mat := g.cur.Load(); mat != nil && mat.num == num {
		return mat, nil
	}
	return m.readMaterial(tx, g)
}

// readMaterial reads and opens the current material. What it returns is put
// into the memory too, so the next look is cheap.
func (m *Manager) readMaterial(tx *store.Tx, g *group) (*material, error) {
	mat := &material{}
	var secret, salt, message []byte
	err := tx.QueryRow(`SELECT g.num, g.gid, g.exp, k.master_secret, k.salt, k.message
		FROM gm_groups g JOIN gm_material k ON k.group_id = g.id AND k.num = g.num
		WHERE g.id = ?`, g.id).Scan(&mat.num, &mat.gid, &mat.exp, &secret, &salt, &message)
	if err != nil {
		return nil, fmt.Errorf("gm: keying material of %q: %w", g.cfg.Name, err)
	}
	for _, c := range []struct {
		column string
		sealed []byte
		to     *cose.Secret
	}{{"master_secret", secret, &mat.secret}, {"salt", salt, &mat.salt}, {"message", message, &mat.message}} {
		plain, err := m.st.Unseal(materialContext(g.id, mat.num, c.column), c.sealed)
		if err != nil {
			return nil, fmt.Errorf("gm: %s of %q at version %d: %w", c.column, g.cfg.Name, mat.num, err)
		}
		*c.to = cose.NewSecret(plain)
	}
	g.install(mat)
	return mat, nil
}

// current returns the current material as of now.
func (m *Manager) current(ctx context.Context, g *group) (*material, error) {
	var mat *material
	err := m.st.View(ctx, func(tx *store.Tx) error {
		var num uint64
		if err := tx.QueryRow(`SELECT num FROM gm_groups WHERE id = ?`, g.id).Scan(&num); err != nil {
			return gone(err)
		}
		var err error
		mat, err = m.materialAt(tx, g, num)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("gm: group %q: %w", g.cfg.Name, err)
	}
	return mat, nil
}

// settle waits until the transactions that overtook this one are on disk. The
// store commits many together: one that met errMoved knows of changes that a
// View does not see before their commit.
func (m *Manager) settle(ctx context.Context) error {
	return m.st.Update(ctx, func(*store.Tx) error { return nil })
}

func materialContext(groupID int64, num uint64, column string) string {
	return fmt.Sprintf("gm_material/%d/%d/%s", groupID, num, column)
}

// SetActive activates or deactivates a group
// (draft-ietf-ace-key-groupcomm-oscore-21, Section 8.2).
func (m *Manager) SetActive(ctx context.Context, name string, active bool) error {
	t := deactivate
	if active {
		t = activate
	}
	return m.move(ctx, name, t)
}

// move applies a transition and writes the new state.
func (m *Manager) move(ctx context.Context, name string, t transition) error {
	g, err := m.find(ctx, name)
	if err != nil {
		return err
	}
	var was, is state
	err = m.st.Update(ctx, func(tx *store.Tx) error {
		var changes uint64
		if err := tx.QueryRow(`SELECT state, state_changes FROM gm_groups WHERE id = ?`, g.id).Scan(&was, &changes); err != nil {
			return gone(err)
		}
		var err error
		if is, err = was.next(t); err != nil || is == was {
			return err
		}
		changes++
		if _, err := tx.Exec(`UPDATE gm_groups SET state = ?, state_changes = ? WHERE id = ?`, is, changes, g.id); err != nil {
			return err
		}
		if is == stateStopped || is == stateMoved {
			// Nothing that is due can be done any more.
			if _, err := tx.Exec(`UPDATE gm_groups SET due_at = 0, due_reasons = 0 WHERE id = ?`, g.id); err != nil {
				return err
			}
		}
		return emit(tx, groupcomm.EventState, groupcomm.Event{Group: name, Version: changes, Reason: is.String()})
	})
	if err != nil {
		return fmt.Errorf("gm: group %q: %w", name, err)
	}
	switch {
	case is == was:
	case is == stateStopped:
		m.log.ErrorContext(ctx, "group stopped: its gid space is used up", "group", name)
	default:
		m.log.InfoContext(ctx, "group state changed", "group", name, "from", was.String(), "to", is.String())
	}
	return nil
}

// errMoved says that the group changed under a decision: look again.
var errMoved = errors.New("gm: the group moved on")
