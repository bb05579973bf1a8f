// Package keytreetest tells what somebody can read who keeps everything: whatever
// was ever given to it of a key tree, all that ever passed, and all that follows
// from both. It finds keys by the identifiers in messages and steps on by itself,
// and knows nothing of what the members or the Group Manager keep.
package keytreetest

import (
	"fmt"
	"slices"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/groupcomm/keytree"
)

// Given is what a member was given once.
type Given struct {
	Alg    int64
	BaseIV []byte
	Way    *keytree.Material
}

// Parse reads a mgt_key_material of a key tree.
func Parse(mgt []byte) (Given, error) {
	k, err := groupcomm.DecodeMgtKeyMaterial(mgt)
	if err != nil {
		return Given{}, err
	}
	way, err := keytree.DecodeMaterial(k.Tree)
	return Given{k.Alg, k.BaseIV, way}, err
}

// Names holds that a key identifier names one key and a key has one identifier;
// else a nonce might come twice under a key although no identifier tells. Use
// [NewNames].
type Names struct{ key, kid map[string]string }

// NewNames knows none.
func NewNames() *Names { return &Names{map[string]string{}, map[string]string{}} }

// Len is how many keys are known.
func (n *Names) Len() int { return len(n.kid) }

// Add takes a key and its identifier.
func (n *Names) Add(kid, key []byte) error {
	if old, ok := n.kid[string(kid)]; ok && old != string(key) {
		return fmt.Errorf("two keys have the identifier %x", kid)
	}
	if old, ok := n.key[string(key)]; ok && old != string(kid) {
		return fmt.Errorf("one key has the identifiers %x and %x", old, kid)
	}
	n.kid[string(kid)], n.key[string(key)] = string(key), string(kid)
	return nil
}

// Library is all that ever passed.
type Library struct {
	gm       *cose.Key
	names    *Names
	messages map[string][]message // by the identifier of the key without its step
}

type message struct {
	step uint8
	e    *cose.RekeyEnvelope
}

// NewLibrary makes an empty one; gm countersigns.
func NewLibrary(gm *cose.Key, names *Names) *Library {
	return &Library{gm, names, map[string][]message{}}
}

// kidLen is docs/key-tree.md's: tree (8), level (1), index (4), version (4), step (1).
const kidLen = 18

// Add takes a message that passed. Those that are for one member only are left
// out.
func (l *Library) Add(body []byte) error {
	e, err := cose.ReadRekey(l.gm, body)
	if err != nil || len(e.KID) != kidLen {
		return err
	}
	at, step := stem(e.KID)
	l.messages[at] = append(l.messages[at], message{step, e})
	return nil
}

func stem(kid []byte) (string, uint8) { return string(kid[:kidLen-1]), kid[kidLen-1] }

// onward is the one-way step.
func onward(key []byte) []byte {
	next, err := cose.HKDF256(key, nil, []byte("groupgate key tree step"), keytree.KeyLen)
	if err != nil {
		panic(err) // the arguments are constants but for the key
	}
	return next
}

// Opens lists the versions whose keying material can be read.
func (l *Library) Opens(given []Given) (versions []uint64, err error) {
	r := reader{l: l, given: given, have: map[string]known{}}
	for _, g := range given {
		for _, n := range g.Way.Path {
			if err := r.learn(keytree.KID(g.Way.Tree, n), n.Key); err != nil {
				return nil, err
			}
		}
	}
	for len(r.todo) > 0 {
		at := r.todo[0]
		r.todo = r.todo[1:]
		for _, m := range l.messages[at] {
			if err := r.read(at, m); err != nil {
				return nil, err
			}
		}
	}
	slices.Sort(r.versions)
	return slices.Compact(r.versions), nil
}

type known struct {
	step uint8
	key  []byte
}

type reader struct {
	l        *Library
	given    []Given
	have     map[string]known // the earliest step
	todo     []string
	versions []uint64
}

func (r *reader) learn(kid, key []byte) error {
	at, step := stem(kid)
	if old, ok := r.have[at]; !ok || step < old.step {
		r.have[at] = known{step, key}
		r.todo = append(r.todo, at)
	}
	return r.l.names.Add(kid, key)
}

// read opens a message with the key of the name, if its step can be had.
func (r *reader) read(at string, m message) error {
	k := r.have[at]
	if m.step < k.step {
		return nil // the steps lead one way
	}
	for k.step < m.step {
		k.step, k.key = k.step+1, onward(k.key)
	}
	tree := at[:keytree.TreeIDLen]
	i := slices.IndexFunc(r.given, func(g Given) bool { return string(g.Way.Tree) == tree })
	plain, err := m.e.Open(r.given[i].Alg, k.key, r.given[i].BaseIV)
	if err != nil {
		return fmt.Errorf("what the key %x protects cannot be read: %w", m.e.KID, err)
	}
	if msg, err := groupcomm.DecodeRekeyMessage(plain); err == nil {
		r.versions = append(r.versions, msg.Num)
		return nil
	}
	items, err := cose.DecodeArray(plain)
	if err != nil || len(items) != 4 {
		return fmt.Errorf("a message of a tree carries neither a key nor keying material: %w", err)
	}
	var v [3]uint64
	for i := range v {
		if v[i], err = cose.AsUint(items[i]); err != nil {
			return err
		}
	}
	key, err := cose.AsBytes(items[3])
	if err != nil {
		return err
	}
	n := keytree.Node{ID: keytree.ID{Level: uint8(v[0]), Index: uint32(v[1])}, Version: uint32(v[2])}
	return r.learn(keytree.KID([]byte(tree), n), key)
}
