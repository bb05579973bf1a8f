// Package keytree is a logical key hierarchy (RFC 2627, Section 5.4) for the
// one-to-many rekeying of a group (RFC 9594, Section 6.2): a tree in which every
// member has a leaf with a key of its own, and knows the keys on the way from
// there to the root. What is protected under the key of a node can be read by the
// members below it and by nobody else, so a member that leaves costs some
// messages per level of the tree instead of one per member.
//
// [Tree] is the Group Manager's side: [Tree.Add], [Tree.Remove] and [Tree.Rekey]
// decide which keys change and under which keys they are told. It keeps nothing
// itself: it reads nodes from a [Store] and tells what is to be written, a few
// nodes per level for each change. [Follower] is a member's side. Neither does
// I/O.
//
// Three rules hold (docs/protocol.md, Section 6). A key that somebody who left knew
// protects nothing any more: every node above is renewed, and told under keys of
// its children that the leaver did not know. A key that is given to a newcomer
// has never protected anything: those that did are advanced by a one-way step
// first, which members compute themselves. A key protects one message per rekey,
// so that the version of the rekey makes its nonce.
package keytree

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"

	"github.com/seed4911071e/groupgate/cose"
)

// Limits.
const (
	// KeyLen is the length of every key in bytes: that of AES-CCM-16-64-128.
	KeyLen = 16
	// MinDegree and MaxDegree bound how many children a node has.
	MinDegree, MaxDegree = 2, 16
	// DefaultDegree costs the fewest messages where leaves are far apart.
	DefaultDegree = 4
	// MaxHeight is the number of levels above the leaves, at most: of a binary
	// tree with as many leaves as Index can tell apart.
	MaxHeight = 31
	// maxStep bounds what a member computes: further on a key is drawn anew.
	maxStep = 255
)

// ID is the place of a node: how many levels above the leaves, and which from the
// left.
type ID struct {
	Level uint8
	Index uint32
}

// Up is the parent in a tree of degree d.
func (id ID) Up(d uint32) ID { return ID{id.Level + 1, id.Index / d} }

// compare orders by level, the leaves first.
func compare(a, b ID) int {
	return cmp.Or(cmp.Compare(a.Level, b.Level), cmp.Compare(a.Index, b.Index))
}

// Node is a node with its key. It prints as [redacted].
type Node struct {
	ID
	Version uint32 // changes with every key that is drawn
	Step    uint8  // one-way steps from the key that was drawn
	Key     []byte // KeyLen bytes
	Used    bool   // the key has protected a message
	Dirty   bool   // the key is to be renewed at the next rekey
}

// Format prints [redacted] under every verb.
func (Node) Format(f fmt.State, _ rune) { cose.Redact(f) }

// LogValue keeps the key out of logs.
func (Node) LogValue() slog.Value { return slog.StringValue(cose.Redacted) }

// step is the one-way step: from the key after it the one before cannot be had.
func step(key []byte) []byte {
	next, err := cose.HKDF256(key, nil, []byte("groupgate key tree step"), KeyLen)
	if err != nil {
		panic("keytree: internal error: " + err.Error())
	}
	return next
}

// Shape is what a tree is beside its nodes.
type Shape struct {
	Degree uint32
	Height uint8  // of the root above the leaves; 0: there is no node yet
	Seq    uint32 // newest Version that was given
}

// Store has the nodes of one tree.
type Store interface {
	// Get returns those of ids that exist, in any order.
	Get(ids []ID) ([]Node, error)
	// Dirty returns the places of nodes with Dirty.
	Dirty() ([]ID, error)
}

// Tree is a tree during one change. Use [Open]; what is to be written are
// [Tree.Changes] and the Shape.
type Tree struct {
	Shape
	store   Store
	nodes   map[ID]*Node // what is known; nil: there is none
	touched map[ID]bool
}

// Open makes a tree of its shape and nodes.
func Open(s Shape, store Store) *Tree {
	return &Tree{Shape: s, store: store, nodes: map[ID]*Node{}, touched: map[ID]bool{}}
}

// load makes nodes known.
func (t *Tree) load(ids ...ID) error {
	ids = slices.DeleteFunc(slices.Clone(ids), func(id ID) bool { _, ok := t.nodes[id]; return ok })
	if len(ids) == 0 {
		return nil
	}
	found, err := t.store.Get(ids)
	if err != nil {
		return err
	}
	for _, id := range ids {
		t.nodes[id] = nil
	}
	for _, n := range found {
		t.nodes[n.ID] = &n
	}
	return nil
}

func (t *Tree) put(n *Node) {
	t.nodes[n.ID] = n
	t.touched[n.ID] = true
}

func (t *Tree) drop(id ID) {
	t.nodes[id] = nil
	t.touched[id] = true
}

// draw gives a node a fresh key.
func (t *Tree) draw(n *Node) {
	n.Key = make([]byte, KeyLen)
	rand.Read(n.Key) // never fails
	n.Version, n.Step, n.Used = t.Seq, 0, false
}

// places is how many leaves a tree of a height has room for.
func (t *Tree) places() uint64 {
	n := uint64(1)
	for range t.Height {
		n *= uint64(t.Degree)
	}
	return n
}

// path lists the places from a leaf to the root.
func (t *Tree) path(leaf uint32) []ID {
	id := ID{0, leaf}
	ids := []ID{id}
	for id.Level < t.Height {
		id = id.Up(t.Degree)
		ids = append(ids, id)
	}
	return ids
}

func (t *Tree) children(ids ...ID) []ID {
	var out []ID
	for _, id := range ids {
		for i := range t.Degree {
			if c := uint64(id.Index)*uint64(t.Degree) + uint64(i); c <= 1<<32-1 {
				out = append(out, ID{id.Level - 1, uint32(c)})
			}
		}
	}
	return out
}

// ErrPlace says that a leaf is taken, or that there is none.
var ErrPlace = errors.New("keytree: no such place, or it is taken")

// Add gives a place to a newcomer with the key of its leaf. The keys on its way
// to the root are such that none has protected a message.
func (t *Tree) Add(leaf uint32, key []byte) error {
	if t.Degree < MinDegree || t.Degree > MaxDegree {
		return fmt.Errorf("keytree: degree %d", t.Degree)
	}
	if len(key) != KeyLen {
		return fmt.Errorf("keytree: key of %d bytes", len(key))
	}
	t.Seq++
	for t.Height == 0 || uint64(leaf) >= t.places() {
		if t.Height == MaxHeight {
			return ErrPlace
		}
		t.Height++
		old, root := ID{t.Height - 1, 0}, ID{t.Height, 0}
		if err := t.load(old, root); err != nil {
			return err
		}
		// Those below the old root do not know the new one: the next rekey tells
		// them another, as after a leave.
		n := &Node{ID: root, Dirty: t.nodes[old] != nil}
		if n.Dirty {
			t.draw(n)
			t.put(n)
		}
	}
	ids := t.path(leaf)
	if err := t.load(ids...); err != nil {
		return err
	}
	if t.nodes[ids[0]] != nil {
		return ErrPlace
	}
	for _, id := range ids[1:] {
		n := t.nodes[id]
		switch {
		case n == nil:
			n = &Node{ID: id}
			t.draw(n)
		case !n.Used:
			continue
		case n.Step < maxStep:
			n.Key, n.Step, n.Used = step(n.Key), n.Step+1, false
		default:
			t.draw(n)
			n.Dirty = true
		}
		t.put(n)
	}
	t.put(&Node{ID: ids[0], Version: t.Seq, Key: slices.Clone(key)})
	return nil
}

// Replace gives the member at a leaf another key of its own: one that joined
// again.
func (t *Tree) Replace(leaf uint32, key []byte) error {
	id := ID{0, leaf}
	if err := t.load(id); err != nil {
		return err
	}
	if t.nodes[id] == nil || len(key) != KeyLen {
		return ErrPlace
	}
	t.Seq++
	t.put(&Node{ID: id, Version: t.Seq, Key: slices.Clone(key)})
	return nil
}

// Remove takes a member out. The keys that it knew are in use until the next
// [Tree.Rekey].
func (t *Tree) Remove(leaf uint32) error {
	ids := t.path(leaf)
	if err := t.load(append(slices.Clone(ids), t.children(ids[1:]...)...)...); err != nil {
		return err
	}
	if t.nodes[ids[0]] == nil {
		return ErrPlace
	}
	t.drop(ids[0])
	for _, id := range ids[1:] {
		n := t.nodes[id]
		if n == nil {
			return fmt.Errorf("keytree: a leaf without the node above it, at level %d", id.Level)
		}
		if !slices.ContainsFunc(t.children(id), func(c ID) bool { return t.nodes[c] != nil }) {
			t.drop(id)
			continue
		}
		if !n.Dirty {
			n.Dirty = true
			t.put(n)
		}
	}
	return nil
}

// Leap makes a tree safe to go on with that was put back from a backup: what was
// drawn since then is not known. The next key has a version that is so much further,
// and every key above a leaf is drawn anew at the next rekey. inner are the places of
// these.
func (t *Tree) Leap(by uint32, inner []ID) error {
	if t.Seq > math.MaxUint32-by {
		return fmt.Errorf("keytree: no version is %d further than %d", by, t.Seq)
	}
	t.Seq += by
	if err := t.load(inner...); err != nil {
		return err
	}
	for _, id := range inner {
		if n := t.nodes[id]; n != nil && id.Level > 0 && !n.Dirty {
			n.Dirty = true
			t.put(n)
		}
	}
	return nil
}

// Wrap is a message that tells a new key.
type Wrap struct {
	Under   Node // whose key protects it
	Carries Node // whose key it tells
}

// Rekey renews the keys of dirty nodes. wraps tell them to those who are to know
// them, the lowest first; root protects the keying material of the group. ok is
// false when the tree has no member. Each key protects one message.
func (t *Tree) Rekey() (wraps []Wrap, root Node, ok bool, err error) {
	top := ID{t.Height, 0}
	if err := t.load(top); err != nil || t.Height == 0 || t.nodes[top] == nil {
		return nil, Node{}, false, err
	}
	ids, err := t.store.Dirty()
	if err != nil {
		return nil, Node{}, false, err
	}
	for id := range t.touched {
		if n := t.nodes[id]; n != nil && n.Dirty {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, compare)
	ids = slices.Compact(ids)
	if err := t.load(append(slices.Clone(ids), t.children(ids...)...)...); err != nil {
		return nil, Node{}, false, err
	}
	t.Seq++
	ids = slices.DeleteFunc(ids, func(id ID) bool { return t.nodes[id] == nil })
	for _, id := range ids {
		n := t.nodes[id]
		t.draw(n)
		n.Dirty = false
		t.put(n)
	}
	for _, id := range ids {
		for _, below := range t.children(id) {
			if c := t.nodes[below]; c != nil {
				c.Used = true
				t.put(c)
				wraps = append(wraps, Wrap{*c, *t.nodes[id]})
			}
		}
	}
	n := t.nodes[top]
	n.Used = true
	t.put(n)
	return wraps, *n, true, nil
}

// Path returns the nodes from a leaf to the root, which are what its member is to
// know.
func (t *Tree) Path(leaf uint32) ([]Node, error) {
	ids := t.path(leaf)
	if err := t.load(ids...); err != nil {
		return nil, err
	}
	out := make([]Node, len(ids))
	for i, id := range ids {
		if t.nodes[id] == nil {
			return nil, ErrPlace
		}
		out[i] = *t.nodes[id]
	}
	return out, nil
}

// Changes are the nodes to be written and the places of those to be deleted, in
// order.
func (t *Tree) Changes() (put []Node, gone []ID) {
	for id := range t.touched {
		if n := t.nodes[id]; n != nil {
			put = append(put, *n)
		} else {
			gone = append(gone, id)
		}
	}
	slices.SortFunc(put, func(a, b Node) int { return compare(a.ID, b.ID) })
	slices.SortFunc(gone, compare)
	return put, gone
}
