// Package table has a map for very many small things: of pointers to values that
// hold their own keys. An entry takes 9 bytes, some 12 with the places that are
// empty; a map of Go holds the key a second time and takes 25 to 60.
//
// Start at [New]. A [Map] must not be used by several goroutines at a time.
package table

import (
	"iter"
	"math/rand/v2"
)

const (
	// parts share the entries: one grows at a time, so that nobody waits long.
	parts = 64
	// first is how many places a part has at least.
	first = 8
)

// What a place holds is told by its tag: nothing, nothing any more, or a value, of
// whose hash the tag is a part.
const (
	empty   = 0
	removed = 1
	values  = 2 // and above
)

// Map finds values by their keys. A value's key must not change while it is in.
type Map[K comparable, V any] struct {
	key  func(*V) K
	hash func(K) uint64
	n    int
	part [parts]part[V]
}

// part is a table with linear probing.
type part[V any] struct {
	tags []uint8
	vals []*V
	used int // places that are not empty
	n    int // values
}

// New makes a map of values with the given key. hash must be keyed where others
// choose the keys.
func New[K comparable, V any](key func(*V) K, hash func(K) uint64) *Map[K, V] {
	return &Map[K, V]{key: key, hash: hash}
}

// Mix spreads the bits of x over the whole word.
func Mix(x uint64) uint64 {
	x = (x ^ x>>32) * 0xd6e8feb86659fd93
	x = (x ^ x>>32) * 0xd6e8feb86659fd93
	return x ^ x>>32
}

// Len is how many values there are.
func (m *Map[K, V]) Len() int { return m.n }

// place takes a hash apart: the tag, and where the search begins.
func (p *part[V]) place(h uint64) (tag uint8, at int) {
	tag = uint8(h >> 8)
	if tag < values {
		tag += 128
	}
	return tag, int(h >> 32 * uint64(len(p.tags)) >> 32)
}

// find returns the place of the value with the key; -1: there is none.
func (m *Map[K, V]) find(k K) (*part[V], int) {
	h := m.hash(k)
	p := &m.part[h%parts]
	if p.n == 0 {
		return p, -1
	}
	// One place at least is empty.
	for tag, i := p.place(h); p.tags[i] != empty; {
		if p.tags[i] == tag && m.key(p.vals[i]) == k {
			return p, i
		}
		if i++; i == len(p.tags) {
			i = 0
		}
	}
	return p, -1
}

// Get returns the value with the key; nil: there is none.
func (m *Map[K, V]) Get(k K) *V {
	if p, i := m.find(k); i >= 0 {
		return p.vals[i]
	}
	return nil
}

// Put has v found by its key, in the place of what had it.
func (m *Map[K, V]) Put(v *V) {
	k := m.key(v)
	p, i := m.find(k)
	if i >= 0 {
		p.vals[i] = v
		return
	}
	if (p.used+1)*8 > len(p.tags)*7 {
		m.rebuild(p)
	}
	p.put(m.hash(k), v)
	m.n++
}

func (p *part[V]) put(h uint64, v *V) {
	tag, i := p.place(h)
	for p.tags[i] >= values {
		if i++; i == len(p.tags) {
			i = 0
		}
	}
	if p.tags[i] == empty {
		p.used++
	}
	p.tags[i], p.vals[i] = tag, v
	p.n++
}

// rebuild makes room for a quarter more than there is.
func (m *Map[K, V]) rebuild(p *part[V]) {
	old := p.vals
	size := max(first, (p.n+1)*8/7*5/4)
	*p = part[V]{tags: make([]uint8, size), vals: make([]*V, size)}
	for _, v := range old {
		if v != nil {
			p.put(m.hash(m.key(v)), v)
		}
	}
}

// Delete has nothing found by the key any more.
func (m *Map[K, V]) Delete(k K) {
	p, i := m.find(k)
	if i < 0 {
		return
	}
	p.tags[i], p.vals[i] = removed, nil
	p.n--
	m.n--
	if p.n == 0 {
		*p = part[V]{}
	}
}

// All gives every value, beginning somewhere. Values may be put and deleted
// meanwhile: what is put may be given or not, and so is what is deleted after that.
func (m *Map[K, V]) All() iter.Seq[*V] {
	return func(yield func(*V) bool) {
		begin := rand.IntN(parts)
		for i := range parts {
			vals := m.part[(begin+i)%parts].vals
			if len(vals) == 0 {
				continue
			}
			at := rand.IntN(len(vals))
			for _, half := range [2][]*V{vals[at:], vals[:at]} {
				for _, v := range half {
					if v != nil && !yield(v) {
						return
					}
				}
			}
		}
	}
}
