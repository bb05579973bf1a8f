package oscore

import (
	"fmt"
	"sync"
)

// defaultWindow is the size of the Replay Window (RFC 8613, Section 3.2.2).
const defaultWindow = 32

// maxWindow is the size that fits the words of a window.
const maxWindow = 64

// Window is a Replay Window of the sliding kind (RFC 8613, Section 7.4). Its zero
// value accepts nothing: a window is set up by [Window.Reset] or, when what it
// knew is lost, by [Window.Recover].
//
// It also keeps which of the requests it accepted have given their nonce to a
// response, which may happen once. All methods may be called concurrently.
type Window struct {
	mu sync.Mutex
	windowBits
}

// windowBits is a Window for one goroutine at a time.
type windowBits struct {
	valid    bool
	restored bool // nothing says which requests were answered: no nonce is given away
	size     uint64
	next     uint64 // one more than the largest number accepted
	seen     uint64 // bit i: next-1-i was accepted, or is too old
	answered uint64 // bit i: the nonce of next-1-i is used up
}

// WindowState is the content of a Window, to be stored while nobody uses it.
type WindowState struct {
	Valid bool
	Next  uint64 // one more than the largest number accepted
	Seen  uint64 // bit i: number Next-1-i was accepted
}

// setSize sets the size; 0 is the default.
func (w *Window) setSize(n int) error {
	if n == 0 {
		n = defaultWindow
	}
	if n < 1 || n > maxWindow {
		return fmt.Errorf("oscore: Replay Window of %d numbers: 1 to %d", n, maxWindow)
	}
	w.size = uint64(n)
	return nil
}

// Reset makes the window that of a new context: nothing was received.
func (w *Window) Reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reset(0)
}

func (w *windowBits) reset(next uint64) {
	if w.size == 0 {
		w.size = defaultWindow
	}
	w.valid, w.restored, w.next = true, false, next
	w.seen, w.answered = ^uint64(0), ^uint64(0)
}

// Invalidate has the window accept nothing until it is set up again.
func (w *Window) Invalidate() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.valid = false
}

// Valid says whether the window knows what was received.
func (w *Window) Valid() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.valid
}

// Recover sets up an invalid window with n, the number of a request that was
// found to be fresh, as its lower limit: n and all before it are taken as
// received (RFC 8613, Appendix B.1.2). When the window is valid already it is
// [Window.Accept].
func (w *Window) Recover(n uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.valid {
		return w.accept(n)
	}
	w.reset(n + 1)
	w.answered &^= 1
	return true
}

// Restore sets up the window from what [Window.State] returned. From then on no
// response takes the nonce of a request: should the state be older than it claims,
// a replay gets through, but no nonce is used twice.
func (w *Window) Restore(s WindowState) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reset(s.Next)
	w.valid, w.restored = s.Valid, true
	if s.Next > 0 {
		w.seen = s.Seen | 1
	}
}

// State returns the content. It tells the truth as long as nothing more is
// accepted.
func (w *Window) State() WindowState {
	w.mu.Lock()
	defer w.mu.Unlock()
	return WindowState{Valid: w.valid, Next: w.next, Seen: w.seen}
}

// Fresh says whether n could be accepted now.
func (w *Window) Fresh(n uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fresh(n)
}

func (w *windowBits) fresh(n uint64) bool {
	if !w.valid {
		return false
	}
	if n >= w.next {
		return true
	}
	age := w.next - 1 - n
	return age < w.size && w.seen>>age&1 == 0
}

// Accept marks n as received, and reports whether it was not before: check and
// update are one. It is called when the message with n is found authentic.
func (w *Window) Accept(n uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.accept(n)
}

func (w *windowBits) accept(n uint64) bool {
	if !w.fresh(n) {
		return false
	}
	if n >= w.next {
		// Numbers between are neither seen nor, once accepted, answered. A shift
		// by 64 and more leaves zero.
		shift := n + 1 - w.next
		w.seen <<= shift
		w.answered <<= shift
		w.next = n + 1
	}
	age := w.next - 1 - n
	w.seen |= 1 << age
	w.answered &^= 1 << age
	return true
}

// Claim takes the nonce of the request with number n for a response, and
// reports whether it may be used: once for each request that was accepted, and
// not any more when the window has moved past it.
func (w *Window) Claim(n uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.valid || w.restored || n >= w.next {
		return false
	}
	age := w.next - 1 - n
	if age >= w.size || w.seen>>age&1 == 0 || w.answered>>age&1 == 1 {
		return false
	}
	w.answered |= 1 << age
	return true
}
