package keytree

import (
	"errors"
	"fmt"

	"github.com/seed4911071e/groupgate/cose"
)

// Follower is a member's side: it learns new keys from messages, in any order,
// and reads the keying material of the group. Its methods are not to be called
// concurrently. It prints as [redacted].
type Follower struct {
	alg    int64
	baseIV []byte
	tree   string
	degree uint32
	leaf   uint32
	known  map[uint8]Node // by level
	wait   map[uint8]waiting
}

// waiting is a message whose key is not known yet: the newest of a level.
type waiting struct {
	under Node // without the key
	e     *cose.RekeyEnvelope
}

// Format prints [redacted] under every verb.
func (*Follower) Format(f fmt.State, _ rune) { cose.Redact(f) }

// NewFollower starts with what the Group Manager gave.
func NewFollower(alg int64, baseIV []byte, m *Material) *Follower {
	f := &Follower{
		alg: alg, baseIV: baseIV, tree: string(m.Tree), degree: m.Degree, leaf: m.Path[0].Index,
		known: map[uint8]Node{}, wait: map[uint8]waiting{},
	}
	for _, n := range m.Path {
		f.known[n.Level] = n
	}
	return f
}

// at is the member's node of a level.
func (f *Follower) at(level uint8) ID {
	i := f.leaf
	for range level {
		i /= f.degree
	}
	return ID{level, i}
}

// Height is the level of the highest node that is known.
func (f *Follower) Height() uint8 {
	var top uint8
	for level := range f.known {
		top = max(top, level)
	}
	return top
}

// Path lists the places from the leaf to the root, as far as they are known.
func (f *Follower) Path() []ID {
	out := make([]ID, 0, f.Height()+1)
	for level := range f.Height() + 1 {
		out = append(out, f.at(level))
	}
	return out
}

// Leaf is the key of the member's own leaf.
func (f *Follower) Leaf() []byte { return f.known[0].Key }

// Opened is a rekey message that could be read.
type Opened struct {
	Num   uint64 // version in the nonce, which must be the one inside
	Plain []byte // encoded rekey message
}

// ErrForeign says that a message is for another tree or another part of it.
var ErrForeign = errors.New("keytree: not for this member")

// Take takes a message whose signature verified, and returns the rekey messages
// that it makes readable. What cannot be read yet waits for the key; see
// [Follower.Behind].
func (f *Follower) Take(e *cose.RekeyEnvelope) ([]Opened, error) {
	tree, under, err := parseKID(e.KID)
	if err != nil {
		return nil, err
	}
	if tree != f.tree || under.ID != f.at(under.Level) {
		return nil, ErrForeign
	}
	if w, ok := f.wait[under.Level]; ok && w.e.Num >= e.Num {
		return nil, nil
	}
	f.wait[under.Level] = waiting{under, e}
	var out []Opened
	for level := under.Level; ; {
		next, opened, err := f.open(level)
		if opened != nil {
			out = append(out, *opened)
		}
		if err != nil || next == 0 {
			return out, err
		}
		level = next
	}
}

// open reads what waits for the key of a level. next is the level of which the key
// was learned, 0: none.
func (f *Follower) open(level uint8) (next uint8, opened *Opened, err error) {
	w, ok := f.wait[level]
	if !ok {
		return 0, nil, nil
	}
	n, ok := f.known[level]
	if !ok || n.Version < w.under.Version {
		return 0, nil, nil // its key is in a message that is still to come
	}
	delete(f.wait, level)
	if n.Version > w.under.Version || n.Step > w.under.Step {
		return 0, nil, nil // older than what is known
	}
	for n.Step < w.under.Step {
		n.Key, n.Step = step(n.Key), n.Step+1
	}
	plain, err := w.e.Open(f.alg, n.Key, f.baseIV)
	if err != nil {
		return 0, nil, err
	}
	f.known[level] = n
	if !isKey(plain) {
		return 0, &Opened{w.e.Num, plain}, nil
	}
	up, err := decodeKey(plain)
	if err != nil {
		return 0, nil, err
	}
	if up.ID != f.at(level+1) {
		return 0, nil, ErrForeign
	}
	if old, ok := f.known[up.Level]; ok && old.Version >= up.Version {
		return 0, nil, nil
	}
	f.known[up.Level] = up
	return up.Level, nil, nil
}

// Behind says whether a message waits for a key that did not come: a link of the
// chain was missed, if it does not come soon.
func (f *Follower) Behind() bool { return len(f.wait) > 0 }

// Forget drops what waits and is of a version up to num.
func (f *Follower) Forget(num uint64) {
	for level, w := range f.wait {
		if w.e.Num <= num {
			delete(f.wait, level)
		}
	}
}

// Renew takes what the Group Manager gave anew, of which another was made, and
// returns the rekey messages that it makes readable. [ErrForeign]: it is another
// place, for which the other stands.
func (f *Follower) Renew(now *Follower) ([]Opened, error) {
	if now.tree != f.tree || now.degree != f.degree || now.leaf != f.leaf {
		return nil, ErrForeign
	}
	for _, n := range now.known {
		if old, ok := f.known[n.Level]; !ok || n.Version > old.Version || n.Version == old.Version && n.Step > old.Step {
			f.known[n.Level] = n
		}
	}
	var out []Opened
	for level := range f.Height() + 1 {
		_, opened, err := f.open(level)
		if err != nil {
			return out, err
		}
		if opened != nil {
			out = append(out, *opened)
		}
	}
	return out, nil
}
