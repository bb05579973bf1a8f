package oscore

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

// TestWindowModel compares the window with the set of all numbers that it
// accepted.
func TestWindowModel(t *testing.T) {
	for _, size := range []int{1, 2, 31, 32, 63, 64} {
		rng := rand.New(rand.NewPCG(1, uint64(size)))
		var w Window
		if err := w.setSize(size); err != nil {
			t.Fatal(err)
		}
		w.Reset()
		accepted, answered := map[uint64]bool{}, map[uint64]bool{}
		var next uint64
		restored := false
		for i := range 20000 {
			var n uint64
			switch rng.IntN(10) {
			case 0:
				n = next + rng.Uint64N(100)
			case 1:
				n = next + rng.Uint64N(3)
			default:
				if back := rng.Uint64N(80); back < next {
					n = next - back
				}
			}
			want := n >= next || next-1-n < uint64(size) && !accepted[n]
			if got := w.Fresh(n); got != want {
				t.Fatalf("size %d: Fresh(%d) = %v at %d", size, n, got, next)
			}
			if rng.IntN(4) > 0 {
				if got := w.Accept(n); got != want {
					t.Fatalf("size %d: Accept(%d) = %v at %d", size, n, got, next)
				}
				if want {
					accepted[n] = true
					next = max(next, n+1)
				}
			}
			claim := !restored && accepted[n] && !answered[n] && n < next && next-1-n < uint64(size)
			if got := w.Claim(n); got != claim {
				t.Fatalf("size %d: Claim(%d) = %v at %d", size, n, got, next)
			}
			if claim {
				answered[n] = true
			}
			if i > 10000 && rng.IntN(50) == 0 {
				// What is stored and loaded knows the same, but gives no nonce away.
				w.Restore(w.State())
				restored = true
			}
		}
	}
}

func TestWindowInvalid(t *testing.T) {
	var w Window
	if w.Valid() || w.Fresh(0) || w.Accept(0) || w.Claim(0) {
		t.Error("a window that was never set up accepts")
	}
	if !w.Recover(7) || !w.Valid() {
		t.Fatal("not recovered")
	}
	for n := range uint64(8) {
		if w.Accept(n) {
			t.Errorf("%d is accepted below the lower limit", n)
		}
	}
	if !w.Claim(7) || w.Claim(7) {
		t.Error("the request that recovered the window has one response with its nonce")
	}
	if w.Recover(7) || w.Recover(3) {
		t.Error("recovered twice by the same number")
	}
	if !w.Accept(8) {
		t.Error("8 is not accepted")
	}
	w.Invalidate()
	if w.Accept(9) || w.Claim(8) {
		t.Error("an invalid window accepts")
	}
	w.Restore(WindowState{Next: 5})
	if w.Valid() {
		t.Error("an invalid state restored makes a valid window")
	}
	for _, n := range []int{-1, 65} {
		if err := w.setSize(n); err == nil {
			t.Errorf("size %d is taken", n)
		}
	}
}

// One of many that come with the same number is accepted.
func TestWindowAtomic(t *testing.T) {
	var w Window
	w.Reset()
	for n := range uint64(200) {
		var accepted, claimed atomic.Int32
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if w.Accept(n) {
					accepted.Add(1)
				}
				if w.Claim(n) {
					claimed.Add(1)
				}
			})
		}
		wg.Wait()
		if accepted.Load() != 1 || claimed.Load() != 1 {
			t.Fatalf("%d accepted %d times, claimed %d times", n, accepted.Load(), claimed.Load())
		}
	}
}
