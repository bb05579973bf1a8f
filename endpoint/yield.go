package endpoint

import (
	"bytes"
	"slices"

	"github.com/seed4911071e/groupgate/coap"
)

// A notification that is overtaken by a newer state is not sent again: when its
// retransmission is due, the newer takes its place, as a message of its own that goes on
// with the counter and the time-out (RFC 7641, Section 4.5.2). Until the old one would
// have been given up an acknowledgement or a Reset of it still counts; its identifier and
// its token are kept for that.

// giveWay has who asked send what is newer, in place of the retransmission that is due.
func (t *transmission) giveWay() {
	e := t.s.e
	t.size = uint8(copy(t.token[:], t.tokenBytes()))
	t.silent, t.yielding = true, true
	t.forgetMessage()
	after := coap.Attempt{Tries: t.tries, Wait: t.wait}
	e.crew.do(func() {
		late := t.yield(after)
		e.mu.Lock()
		t.yielding, t.done = false, late
		var end told
		if t.over {
			end = t.outcome(e, t.err)
		}
		e.mu.Unlock()
		end.tell()
	})
}

// headSize is the length of the header of a message (RFC 7252, Section 3), which ends
// with its token; the first byte has the length of that.
const headSize = 4

func (t *transmission) tokenBytes() []byte {
	if t.silent {
		return t.token[:t.size]
	}
	return t.b[headSize : headSize+int(t.b[0]&15)]
}

// forgetOvertaken ends those that gave way before t was sent, which is acknowledged:
// what they told is known to be old.
func (s *session) forgetOvertaken(t *transmission) {
	sent := s.act.sent
	if len(sent) == 1 {
		return
	}
	for i := slices.Index(sent, t) - 1; i >= 0; i-- {
		if o := s.act.sent[i]; o.silent && bytes.Equal(o.tokenBytes(), t.tokenBytes()) {
			s.e.soon(task{t: o.end(coap.ErrOvertaken)})
		}
	}
}

// rejectKin ends, with a notification that is rejected, those that it gave way to or that
// gave way to it: the observation is over, whichever of them the peer has seen.
func (s *session) rejectKin(t *transmission) {
	if t.overtaken == nil {
		return
	}
	for i := len(s.act.sent) - 1; i >= 0; i-- {
		if o := s.act.sent[i]; o != t && o.overtaken != nil && bytes.Equal(o.tokenBytes(), t.tokenBytes()) {
			s.e.soon(task{t: o.end(coap.ErrReset)})
		}
	}
}
