package endpoint

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// TestReceipts: what is remembered is what a simple model says, whatever is asked for
// again, expires or ends between, and what an exchange has is not used again for others.
func TestReceipts(t *testing.T) {
	type model struct {
		id    uint16
		reply string
		r     *receipt // still served; nil: no more
		at    time.Time
	}
	e := New(sink{make(chan struct{})}, Config{Server: nobody{}, Keys: nobody{}})
	defer func() { _ = e.Close() }()
	rng := rand.New(rand.NewPCG(1, 2))
	now := time.Now()
	var sessions []*session
	for i := range 3 {
		s := e.newSession(coap.DTLSPSK, mirrorAddr(i))
		e.mu.Lock()
		e.register(s)
		e.mu.Unlock()
		sessions = append(sessions, s)
	}
	want := make([][]model, len(sessions))
	var orphans []model // served still, but forgotten
	drop := func(i, j int) {
		if m := want[i][j]; m.r != nil {
			orphans = append(orphans, m)
		}
		want[i] = slices.Delete(want[i], j, j+1)
	}
	for step := range 20_000 {
		i := rng.IntN(len(sessions))
		s := sessions[i]
		now = now.Add(time.Duration(rng.IntN(200)) * time.Millisecond)
		switch op := rng.IntN(20); {
		case op < 14:
			id := uint16(step)
			if len(want[i]) == maxReceipts {
				drop(i, 0)
			}
			is := served
			if rng.IntN(2) == 0 {
				is |= safe
			}
			want[i] = append(want[i], model{id: id, r: s.remember(id, []byte{byte(step)}, is, now), at: now})
		case op < 18 && len(want[i]) > 0: // one of the newer ones is answered
			j := len(want[i]) - 1 - rng.IntN(min(8, len(want[i])))
			if m := &want[i][j]; m.r != nil {
				m.reply = fmt.Sprint("reply ", step)
				m.r.answer([]byte(m.reply))
				m.r.set(served, false)
				m.r = nil
			}
		case op == 18 && len(want[i]) > 0: // another message with the identifier
			j := rng.IntN(len(want[i]))
			if s.receipt(want[i][j].id, []byte("other"), now) != nil {
				t.Fatal("a message is taken for another")
			}
			drop(i, j)
		default:
			e.receipts.expire(e.stamp(now), exchangeLifetime)
			e.safe.expire(e.stamp(now), maxTransmitSpan)
			for i := range want {
				for j := len(want[i]) - 1; j >= 0; j-- {
					m := want[i][j]
					if r := sessions[i].receipt(m.id, []byte{byte(m.id)}, now); r == nil {
						if now.Sub(m.at) < maxTransmitSpan {
							t.Fatalf("forgotten after %v", now.Sub(m.at))
						}
						drop(i, j)
					}
				}
			}
		}
		for _, o := range orphans {
			if o.r.s != nil || o.r.id != o.id {
				t.Fatalf("step %d: a receipt that is served serves another", step)
			}
		}
		if len(orphans) > 32 {
			orphans = orphans[16:]
		}
	}
	bytes, n := 0, 0
	for i, s := range sessions {
		for _, m := range want[i] {
			r := s.receipt(m.id, []byte{byte(m.id)}, now)
			if r == nil || string(r.reply) != m.reply {
				t.Fatalf("message %d: %+v, not %q", m.id, r, m.reply)
			}
			bytes, n = bytes+receiptSize+len(m.reply), n+1
		}
	}
	for _, l := range []*receiptList{&e.receipts, &e.safe} {
		var before *receipt
		for r := l.oldest; r != nil; before, r = r, r.newer {
			if r.older != before || before != nil && r.at < before.at {
				t.Fatal("out of order")
			}
			n--
		}
		if l.newest != before {
			t.Fatal("the newest is another")
		}
	}
	if n != 0 || bytes != e.receipts.bytes+e.safe.bytes {
		t.Errorf("%d receipts too few, %d bytes of %d", n, e.receipts.bytes+e.safe.bytes, bytes)
	}
	for _, s := range sessions {
		for s.shelf != nil {
			s.shelf.all()[0].forget()
		}
	}
	if e.receipts != (receiptList{}) || e.safe != (receiptList{}) {
		t.Errorf("left: %+v, %+v", e.receipts, e.safe)
	}
}
