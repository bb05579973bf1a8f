package keytree_test

import (
	"math"
	"testing"

	"github.com/seed4911071e/groupgate/groupcomm/keytree"
)

// nodesOf is a store of nodes.
type nodesOf map[keytree.ID]keytree.Node

func (s nodesOf) Get(ids []keytree.ID) (out []keytree.Node, err error) {
	for _, id := range ids {
		if n, ok := s[id]; ok {
			out = append(out, n)
		}
	}
	return out, nil
}

func (s nodesOf) Dirty() (ids []keytree.ID, err error) {
	for id, n := range s {
		if n.Dirty {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

func (s nodesOf) keep(k *keytree.Tree) keytree.Shape {
	put, gone := k.Changes()
	for _, n := range put {
		s[n.ID] = n
	}
	for _, id := range gone {
		delete(s, id)
	}
	return k.Shape
}

// After a leap every key above a leaf is another, of a version that was never given,
// and told under the keys of leaves, which stay.
func TestLeap(t *testing.T) {
	s := nodesOf{}
	shape := keytree.Shape{Degree: 2}
	change := func(fn func(*keytree.Tree) error) (wraps []keytree.Wrap) {
		t.Helper()
		k := keytree.Open(shape, s)
		if err := fn(k); err != nil {
			t.Fatal(err)
		}
		wraps, _, _, err := k.Rekey()
		if err != nil {
			t.Fatal(err)
		}
		shape = s.keep(k)
		return wraps
	}
	for leaf := range uint32(5) {
		change(func(k *keytree.Tree) error { return k.Add(leaf, make([]byte, keytree.KeyLen)) })
	}
	before, last := map[keytree.ID]keytree.Node{}, shape.Seq
	var inner []keytree.ID
	for id, n := range s {
		if before[id] = n; id.Level > 0 {
			inner = append(inner, id)
		}
	}
	const by = 1000
	wraps := change(func(k *keytree.Tree) error { return k.Leap(by, inner) })
	told := map[keytree.ID]bool{}
	for _, w := range wraps {
		told[w.Under.ID] = true
	}
	for id, n := range s {
		same := string(n.Key) == string(before[id].Key)
		switch {
		case id.Level == 0 && (!same || !told[id] || n.Version != before[id].Version):
			t.Errorf("the leaf %v: same %t, told %t", id, same, told[id])
		case id.Level > 0 && (same || n.Version < last+by):
			t.Errorf("the node %v: same %t, version %d after %d", id, same, n.Version, last)
		}
	}
	if err := keytree.Open(shape, s).Leap(math.MaxUint32, inner); err == nil {
		t.Error("a leap beyond all versions")
	}
}
