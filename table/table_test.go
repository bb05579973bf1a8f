package table

import (
	"math/rand/v2"
	"runtime"
	"testing"
)

type thing struct{ key, value uint64 }

func things(hash func(uint64) uint64) *Map[uint64, thing] {
	return New(func(t *thing) uint64 { return t.key }, hash)
}

// TestModel compares a map with one of Go through random changes, with a good
// hash and with ones under which many keys meet.
func TestModel(t *testing.T) {
	for name, hash := range map[string]func(uint64) uint64{
		"spread":   Mix,
		"one part": func(k uint64) uint64 { return Mix(k) &^ (parts - 1) },
		"one tag":  func(k uint64) uint64 { return k << 32 },
		"one":      func(uint64) uint64 { return 0 },
	} {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			m, model := things(hash), map[uint64]*thing{}
			for i := range 4_000 {
				k := r.Uint64N(300)
				// Many, then few, by turns.
				if r.IntN(8) < 2+i/500%5 {
					v := &thing{k, uint64(i)}
					m.Put(v)
					model[k] = v
				} else {
					m.Delete(k)
					delete(model, k)
				}
				k = r.Uint64N(300)
				if m.Get(k) != model[k] {
					t.Fatalf("step %d: key %d: %v, not %v", i, k, m.Get(k), model[k])
				}
				if m.Len() != len(model) {
					t.Fatalf("step %d: %d, not %d", i, m.Len(), len(model))
				}
				if i%500 == 499 {
					seen := map[*thing]bool{}
					for v := range m.All() {
						if seen[v] || model[v.key] != v {
							t.Fatalf("step %d: %v given", i, v)
						}
						seen[v] = true
					}
					if len(seen) != len(model) {
						t.Fatalf("step %d: %d given of %d", i, len(seen), len(model))
					}
				}
			}
		})
	}
}

// TestChangedWhileGiven: whoever goes through a map may delete and put.
func TestChangedWhileGiven(t *testing.T) {
	m := things(Mix)
	for i := range uint64(1000) {
		m.Put(&thing{key: i})
	}
	given := map[uint64]int{}
	for v := range m.All() {
		given[v.key]++
		m.Delete(v.key)
		m.Delete(v.key ^ 1)
	}
	for i := range uint64(500) {
		if given[2*i]+given[2*i+1] != 1 {
			t.Errorf("of %d and its neighbour %d given", 2*i, given[2*i]+given[2*i+1])
		}
	}
	for i := range uint64(1000) {
		m.Put(&thing{key: i})
	}
	clear(given)
	for v := range m.All() {
		given[v.key]++
		m.Put(&thing{key: v.key%1000 + 10_000})
	}
	for i := range uint64(1000) {
		if given[i] != 1 {
			t.Errorf("%d given %d times", i, given[i])
		}
	}
	for range m.All() {
		return // whoever stops early is not asked again
	}
	t.Error("nothing is left")
}

func BenchmarkGet(b *testing.B) {
	m := things(Mix)
	const n = 100_000
	all := make([]thing, n)
	for i := range all {
		all[i].key = rand.Uint64()
	}
	size := func() int64 {
		runtime.GC()
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return int64(s.HeapAlloc)
	}
	before := size()
	for i := range all {
		m.Put(&all[i])
	}
	grown := size() - before
	i := 0
	for b.Loop() {
		if i += 7919; i >= n {
			i -= n
		}
		if m.Get(all[i].key) == nil {
			b.Fatal(i)
		}
	}
	b.ReportMetric(float64(grown)/n, "B/entry")
}
