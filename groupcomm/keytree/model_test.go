package keytree_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"testing"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm/keytree"
)

var (
	treeID = []byte("tree id.")
	baseIV = make([]byte, 13)
)

// signer is the Group Manager's key.
func signer(t testing.TB) (pub *cose.Key, sign func([]byte) ([]byte, error)) {
	t.Helper()
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k := &cose.Key{Kty: cose.KtyOKP, Crv: cose.CrvEd25519, Alg: cose.AlgEdDSA, X: priv.Public().(ed25519.PublicKey)}
	return k, func(b []byte) ([]byte, error) { return ed25519.Sign(priv, b), nil }
}

// world is a group with a tree, everything that was ever sent in it, and what
// everybody was ever given.
type world struct {
	t       *testing.T
	rnd     *mathrand.Rand
	degree  uint32
	tree    *keytree.Memory
	num     uint64
	pub     *cose.Key
	sign    func([]byte) ([]byte, error)
	free    []uint32
	next    uint32
	inside  map[uint32]*person
	left    []*person
	sent    []message
	retain  map[keytree.ID]message
	nonces  map[string]bool
	leaving int  // members that left since the last rekey
	grown   bool // the tree got higher since then
}

type message struct {
	num   uint64
	under keytree.ID
	bytes []byte
}

// person is a member, or was one.
type person struct {
	leaf    uint32
	f       *keytree.Follower
	given   [][]byte // every key that it was given at joins and by GET
	from    uint64   // version at its join: nothing older is for it
	until   uint64   // version at its leave: nothing newer is for it
	holds   uint64   // newest version that it read
	asleep  bool
	skipped int
}

func newWorld(t *testing.T, seed uint64) *world {
	rnd := mathrand.New(mathrand.NewPCG(seed, 1))
	w := &world{
		t: t, rnd: rnd, degree: 2 + rnd.Uint32N(4), inside: map[uint32]*person{},
		retain: map[keytree.ID]message{}, nonces: map[string]bool{},
	}
	w.tree = keytree.NewMemory(w.degree)
	w.pub, w.sign = signer(t)
	return w
}

func (w *world) change(fn func(*keytree.Tree) error) {
	w.t.Helper()
	height := w.tree.Height
	n, err := w.tree.Change(fn)
	if err != nil {
		w.t.Fatal(err)
	}
	w.grown = w.grown || w.tree.Height > height && len(w.inside) > 0
	if limit := int(w.tree.Height+1) * int(w.degree+1); w.leaving <= 1 && n > limit+int(w.tree.Height) {
		w.t.Fatalf("%d nodes changed in a tree of height %d", n, w.tree.Height)
	}
}

// material is what the Group Manager hands out, through the codec.
func (w *world) material(leaf uint32) *keytree.Material {
	w.t.Helper()
	m := &keytree.Material{Tree: treeID, Degree: w.degree}
	tr := keytree.Open(w.tree.Shape, w.tree)
	var err error
	if m.Path, err = tr.Path(leaf); err != nil {
		w.t.Fatal(err)
	}
	out, err := keytree.DecodeMaterial(m.Encode())
	if err != nil {
		w.t.Fatal(err)
	}
	if !bytes.Equal(out.Encode(), m.Encode()) {
		w.t.Fatal("material changes on its way")
	}
	return out
}

func key() []byte {
	k := make([]byte, keytree.KeyLen)
	rand.Read(k)
	return k
}

func (p *person) give(m *keytree.Material) {
	for _, n := range m.Path {
		p.given = append(p.given, n.Key)
	}
}

func (w *world) join() {
	leaf := w.next
	if n := len(w.free); n > 0 {
		leaf, w.free = w.free[n-1], w.free[:n-1]
	} else {
		w.next++
	}
	w.change(func(t *keytree.Tree) error { return t.Add(leaf, key()) })
	m := w.material(leaf)
	p := &person{leaf: leaf, f: keytree.NewFollower(cose.AlgAESCCM16_64_128, baseIV, m), from: w.num, holds: w.num}
	p.give(m)
	w.inside[leaf] = p
}

func (w *world) pick() *person {
	leaves := make([]uint32, 0, len(w.inside))
	for l := range w.inside {
		leaves = append(leaves, l)
	}
	slices.Sort(leaves)
	return w.inside[leaves[w.rnd.IntN(len(leaves))]]
}

func (w *world) leave() {
	p := w.pick()
	w.leaving++
	w.change(func(t *keytree.Tree) error { return t.Remove(p.leaf) })
	p.until = w.num
	delete(w.inside, p.leaf)
	w.left = append(w.left, p)
	w.free = append(w.free, p.leaf)
	delete(w.retain, keytree.ID{Level: 0, Index: p.leaf})
}

// rejoin: the old self of the member counts as one who left.
func (w *world) rejoin() {
	p := w.pick()
	w.change(func(t *keytree.Tree) error { return t.Replace(p.leaf, key()) })
	delete(w.retain, keytree.ID{Level: 0, Index: p.leaf})
	m := w.material(p.leaf)
	p.f, p.holds, p.asleep = keytree.NewFollower(cose.AlgAESCCM16_64_128, baseIV, m), w.num, false
	p.give(m)
}

func (w *world) send(under keytree.Node, plain []byte) {
	kid := keytree.KID(treeID, under)
	nonce := fmt.Sprintf("%x/%d", kid, w.num)
	if w.nonces[nonce] {
		w.t.Fatal("a key protects two messages of one rekey")
	}
	w.nonces[nonce] = true
	b, err := cose.SealRekey(cose.RekeySeal{
		Alg: cose.AlgAESCCM16_64_128, Key: under.Key, BaseIV: baseIV, KID: kid, Num: w.num, SignAlg: cose.AlgEdDSA, Sign: w.sign,
	}, plain)
	if err != nil {
		w.t.Fatal(err)
	}
	m := message{w.num, under.ID, b}
	w.sent = append(w.sent, m)
	w.retain[under.ID] = m
}

// secret is the rekey message of a version: a map.
func secret(num uint64) []byte {
	return cose.MustMarshal(map[int64]any{9: num})
}

func (w *world) rekey() {
	w.num++
	before := len(w.sent)
	var wraps []keytree.Wrap
	var root keytree.Node
	var ok bool
	w.change(func(t *keytree.Tree) (err error) {
		wraps, root, ok, err = t.Rekey()
		return err
	})
	if ok != (len(w.inside) > 0) {
		w.t.Fatalf("a root: %v, with %d members", ok, len(w.inside))
	}
	if ok {
		for _, wr := range wraps {
			w.send(wr.Under, keytree.EncodeKey(wr.Carries))
		}
		w.send(root, secret(w.num))
	}
	n := len(w.sent) - before
	if limit := int(w.degree) * int(w.tree.Height); !w.grown && n > max(1, w.leaving*limit+1) {
		w.t.Fatalf("%d messages for %d leaves, degree %d, height %d", n, w.leaving, w.degree, w.tree.Height)
	}
	w.leaving, w.grown = 0, false
	for _, p := range w.inside {
		w.tell(p)
	}
}

// tell brings a member what is new, in a way that the moment chooses.
func (w *world) tell(p *person) {
	if p.asleep = w.rnd.IntN(4) == 0; p.asleep {
		p.skipped++
		return
	}
	msgs := make([]message, 0, len(w.retain))
	for _, m := range w.retain {
		msgs = append(msgs, m)
	}
	slices.SortFunc(msgs, func(a, b message) int { return bytes.Compare(a.bytes, b.bytes) })
	w.rnd.Shuffle(len(msgs), func(i, j int) { msgs[i], msgs[j] = msgs[j], msgs[i] })
	lost := w.rnd.IntN(6) == 0
	for _, m := range msgs {
		if lost && w.rnd.IntN(2) == 0 {
			continue // a link of the chain is missing
		}
		w.read(p, m.bytes)
	}
	if p.holds == w.num {
		return
	}
	if !lost {
		w.t.Fatalf("a member with every retained message holds version %d of %d", p.holds, w.num)
	}
	m := w.material(p.leaf) // GET: keys and the newest version
	p.give(m)
	opened, err := p.f.Renew(keytree.NewFollower(cose.AlgAESCCM16_64_128, baseIV, m))
	if err != nil {
		w.t.Fatal(err)
	}
	w.got(p, opened)
	p.holds = w.num
}

func (w *world) read(p *person, b []byte) {
	e, err := cose.ReadRekey(w.pub, b)
	if err != nil {
		w.t.Fatal(err)
	}
	opened, err := p.f.Take(e)
	if err != nil && err != keytree.ErrForeign {
		w.t.Fatal(err)
	}
	w.got(p, opened)
}

func (w *world) got(p *person, opened []keytree.Opened) {
	for _, o := range opened {
		if !bytes.Equal(o.Plain, secret(o.Num)) {
			w.t.Fatal("read something else")
		}
		if o.Num < p.from {
			w.t.Fatalf("one who joined at version %d read version %d", p.from, o.Num)
		}
		p.holds = max(p.holds, o.Num)
	}
}

// spy reads all that can be read with what somebody was ever given and everything
// that was ever sent, whatever keys and steps it takes.
func (w *world) spy(p *person) map[uint64]bool {
	keys := map[string]bool{}
	var fresh [][]byte
	learn := func(k []byte) {
		for range 6 { // further than any key was advanced here
			if keys[string(k)] {
				return
			}
			keys[string(k)] = true
			fresh = append(fresh, k)
			k = keytree.Step(k)
		}
	}
	for _, k := range p.given {
		learn(k)
	}
	read := map[uint64]bool{}
	closed := make([]*cose.RekeyEnvelope, 0, len(w.sent))
	for _, m := range w.sent {
		e, err := cose.ReadRekey(w.pub, m.bytes)
		if err != nil {
			w.t.Fatal(err)
		}
		closed = append(closed, e)
	}
	for len(fresh) > 0 {
		k := fresh[0]
		fresh = fresh[1:]
		closed = slices.DeleteFunc(closed, func(e *cose.RekeyEnvelope) bool {
			plain, err := e.Open(cose.AlgAESCCM16_64_128, k, baseIV)
			if err != nil {
				return false
			}
			if bytes.Equal(plain, secret(e.Num)) {
				read[e.Num] = true
				return true
			}
			items, err := cose.DecodeArray(plain)
			if err != nil {
				w.t.Fatal(err)
			}
			key, err := cose.AsBytes(items[3])
			if err != nil {
				w.t.Fatal(err)
			}
			learn(key)
			return true
		})
	}
	return read
}

// TestSecrecy: whoever left reads nothing that is newer, and whoever joined
// nothing that is older, with everything that it was ever given, everything that
// was ever sent, and all that follows from both; and everybody else reads all.
func TestSecrecy(t *testing.T) {
	rounds := uint64(5)
	if testing.Short() {
		rounds = 3
	}
	for seed := range rounds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, seed)
			for range 60 {
				switch n := w.rnd.IntN(10); {
				case w.leaving == 0 && (n < 4 || len(w.inside) == 0): // a leave's rekey comes before any newcomer
					w.join()
				case n < 6 && len(w.inside) > 0:
					w.leave()
				case n < 7 && len(w.inside) > 0:
					w.rejoin()
				default:
					w.rekey()
				}
			}
			w.rekey()
			for _, p := range w.left {
				for num := range w.spy(p) {
					if num > p.until {
						t.Fatalf("one who left at version %d reads version %d", p.until, num)
					}
					if num < p.from+1 {
						t.Fatalf("one who joined at version %d reads version %d", p.from, num)
					}
				}
			}
			for _, p := range w.inside {
				for num := range w.spy(p) {
					if num < p.from+1 {
						t.Fatalf("one who joined at version %d reads version %d", p.from, num)
					}
				}
			}
			t.Logf("degree %d, height %d, %d messages, %d left", w.degree, w.tree.Height, len(w.sent), len(w.left))
		})
	}
}

// TestCost: a leave in a group of 100,000 costs at most 40 messages.
func TestCost(t *testing.T) {
	const n = 100000
	m := keytree.NewMemory(keytree.DefaultDegree)
	k := key()
	for leaf := range uint32(n) {
		binary.BigEndian.PutUint32(k, leaf)
		if _, err := m.Change(func(t *keytree.Tree) error { return t.Add(leaf, k) }); err != nil {
			t.Fatal(err)
		}
	}
	rekey := func() (messages, rows int) {
		rows, err := m.Change(func(t *keytree.Tree) error {
			wraps, _, _, err := t.Rekey()
			messages = len(wraps) + 1
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return messages, rows
	}
	rekey()
	if _, err := m.Change(func(t *keytree.Tree) error { return t.Remove(n / 2) }); err != nil {
		t.Fatal(err)
	}
	messages, rows := rekey()
	if messages > 40 || rows > 50 {
		t.Errorf("%d messages, %d rows", messages, rows)
	}
	if messages, _ := rekey(); messages != 1 {
		t.Errorf("%d messages when nobody left", messages)
	}
}
