package record

// windowSize is how far behind the newest a record may be (RFC 6347, Section
// 4.1.2.6, asks for 32 and advises 64).
const windowSize = 64

// Window remembers which sequence numbers of an epoch were received (RFC 6347,
// Section 4.1.2.6). The zero value has seen none.
type Window struct {
	next uint64 // one above the highest received
	seen uint64 // bit i: next-1-i was received
}

// From returns a window that takes nothing below next: for a session whose
// window was lost but for its edge.
func From(next uint64) Window { return Window{next: next, seen: ^uint64(0)} }

// Next is one above the highest number received.
func (w *Window) Next() uint64 { return w.next }

// Fresh says whether a record with this number may be opened: it was not
// received before and is not too old to tell.
func (w *Window) Fresh(seq uint64) bool {
	if seq >= w.next {
		return seq <= MaxSeq
	}
	back := w.next - 1 - seq
	return back < windowSize && w.seen>>back&1 == 0
}

// Accept notes that a record with this number was received and is authentic.
// newest says that it is newer than all before it.
func (w *Window) Accept(seq uint64) (newest bool) {
	if seq >= w.next {
		if ahead := seq + 1 - w.next; ahead >= windowSize {
			w.seen = 0
		} else {
			w.seen <<= ahead
		}
		w.seen |= 1
		w.next = seq + 1
		return true
	}
	if back := w.next - 1 - seq; back < windowSize {
		w.seen |= 1 << back
	}
	return false
}
