package gm

import (
	"context"
	"hash/maphash"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/store"
)

// A Join Request nearly always comes from a node that is no member, to an
// active group whose keying material is in memory. guess assumes that and
// spares the look into the database.
//
// Only time rests on the guess: the transaction of the join admits to the
// version, and in the state, that the decision was made for, and nobody who is
// a member (assign, writeMember). What fails is looked at again, see admit.

// guess fills in what the gate would probably find, or returns false.
func (g *group) guess(c *call) bool {
	mat := g.cur.Load()
	// With a rekey at each join it matters who joined meanwhile.
	if mat == nil || g.cfg.RekeyOnJoin || mat.exp <= time.Now().Unix() || g.known.has(subjectOf(c.grant.Subject)) {
		return false
	}
	c.mat = mat
	c.row = &row{num: mat.num, gid: mat.gid, state: stateActive, exp: mat.exp}
	c.guessed = true
	return true
}

// verifyGuess looks what j was decided on, after the decision was to refuse,
// and says whether it was as guessed.
func (m *Manager) verifyGuess(ctx context.Context, j *joinCall) (right bool, err error) {
	num := j.row.num
	j.guessed = false
	err = m.st.View(ctx, func(tx *store.Tx) error { return m.see(tx, j.call) })
	return err == nil && j.row.active() && j.row.num == num && j.row.member == nil, err
}

// maxKnown bounds the members remembered for a group, some 20 bytes each.
const maxKnown = 1 << 16

// known remembers which subjects were seen to be members of a group: a hint
// that they are not newcomers, so a collision of hashes does no harm.
type known struct {
	seed maphash.Seed
	mu   sync.Mutex
	set  map[uint64]struct{} // guarded by mu
}

func (k *known) hash(s subject) uint64 {
	return maphash.Bytes(k.seed, s.id) + uint64(s.kind)
}

func (k *known) has(s subject) bool {
	h := k.hash(s)
	k.mu.Lock()
	defer k.mu.Unlock()
	_, ok := k.set[h]
	return ok
}

// note remembers whether s is a member.
func (k *known) note(s subject, member bool) {
	h := k.hash(s)
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case !member:
		delete(k.set, h)
	case k.set == nil || len(k.set) >= maxKnown:
		k.set = map[uint64]struct{}{h: {}}
	default:
		k.set[h] = struct{}{}
	}
}
