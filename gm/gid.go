package gm

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/seed4911071e/groupgate/groupcomm"
)

// A Gid is a fixed prefix and an epoch (draft-ietf-core-oscore-groupcomm-28,
// Appendix C). The epoch only grows and is written in the transaction that
// brings the Gid into force, so no Gid of a group is ever used again, whatever
// crashes.

// ErrGidExhausted says that the epochs of a group's Gid are used up: the group
// is stopped and cannot be rekeyed (draft-ietf-ace-key-groupcomm-oscore-21,
// Section 11: no reuse unless configured).
var ErrGidExhausted = errors.New("gm: the group's Gid space is used up")

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
	return len(a.prefix)+a.size == len(b.prefix)+b.size &&
		(bytes.HasPrefix(a.prefix, b.prefix) || bytes.HasPrefix(b.prefix, a.prefix))
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
