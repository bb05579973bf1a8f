package gm

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"math"

	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// A Gid is a fixed prefix and an epoch (draft-ietf-core-oscore-groupcomm-28,
// Appendix C). The epoch only grows and is written in the transaction that
// brings the Gid into force, so no Gid of a group is ever used again, whatever
// crashes. A group with gid.reuse begins anew with its first epoch when the last
// is used up, and gid_wraps counts that; the members that hold contexts from the
// first use of such a Gid are evicted before (elders.go).

// ErrGidExhausted says that the epochs of a group's Gid are used up: the group
// is stopped and cannot be rekeyed (draft-ietf-ace-key-groupcomm-oscore-21,
// Section 11: no reuse unless configured).
var ErrGidExhausted = errors.New("gm: the group's Gid space is used up")

// gidPlace is where a group is in its Gid space.
type gidPlace struct {
	epoch uint64
	wraps uint64 // how often the epochs began anew
}

// nextGid finds the Gid that follows at. Epochs at which a group of this
// manager, this one included, has the Gid are skipped.
func (m *Manager) nextGid(tx *store.Tx, c *groupcomm.GroupConfig, at gidPlace) (groupcomm.Gid, gidPlace, error) {
	next := at
	for {
		next.epoch++
		if next.epoch == m.epochs(c) && c.GidReuse {
			next = gidPlace{epoch: 0, wraps: next.wraps + 1}
		}
		// A group that reused Gids once has no new ones.
		if next.epoch >= m.epochs(c) || next.wraps > 0 && !c.GidReuse || next.wraps > at.wraps && next.epoch >= at.epoch {
			return nil, at, ErrGidExhausted
		}
		gid, err := makeGid(c.GidPrefix, next.epoch, c.GidEpochBytes)
		if err != nil {
			return nil, at, err
		}
		var id int64
		err = tx.QueryRow(`SELECT id FROM gm_groups WHERE gid = ?`, []byte(gid)).Scan(&id)
		if isNotFound(err) {
			return gid, next, nil
		}
		if err != nil {
			return nil, at, err
		}
	}
}

// epochs is how many epochs a Gid has.
func (m *Manager) epochs(c *groupcomm.GroupConfig) uint64 {
	if m.cfg.epochs != 0 {
		return m.cfg.epochs
	}
	if c.GidEpochBytes == 8 {
		return math.MaxUint64
	}
	return 1 << (8 * c.GidEpochBytes)
}

// makeGid composes prefix and epoch, or fails when size bytes cannot hold it.
func makeGid(prefix []byte, epoch uint64, size int) (groupcomm.Gid, error) {
	if epoch>>(8*size) != 0 {
		return nil, ErrGidExhausted
	}
	gid := make(groupcomm.Gid, len(prefix)+size)
	copy(gid, prefix)
	for i := len(gid) - 1; i >= len(prefix); i-- {
		gid[i] = byte(epoch)
		epoch >>= 8
	}
	return gid, nil
}

// gidSpace is the set of Gids that one group can ever have.
type gidSpace struct {
	prefix []byte
	size   int // bytes of the epoch
}

// meets says whether two groups could come to have one Gid.
func (a gidSpace) meets(b gidSpace) bool {
	return groupcomm.GidsMeet(a.prefix, a.size, b.prefix, b.size)
}

// choosePrefix finds a random prefix whose Gids no group of taken can have: one
// byte, or more where those are used up.
func choosePrefix(taken []gidSpace, size int) ([]byte, error) {
	for n := 1; n <= 3; n++ {
		start := make([]byte, n)
		rand.Read(start)
		for p := bytes.Clone(start); ; {
			s := gidSpace{prefix: p, size: size}
			free := true
			for _, t := range taken {
				free = free && !s.meets(t)
			}
			if free {
				return p, nil
			}
			// The next value, with carry and wrap-around.
			for i := n - 1; i >= 0; i-- {
				p[i]++
				if p[i] != 0 {
					break
				}
			}
			if bytes.Equal(p, start) {
				break
			}
		}
	}
	return nil, fmt.Errorf("gm: no Gid prefix is left for an epoch of %d bytes", size)
}
