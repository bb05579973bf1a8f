package endpoint

import (
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// receipt remembers a message of the peer, so that a copy of it gets the same
// answer and no second treatment (RFC 7252, Section 4.5).
type receipt struct {
	s     *session
	next  *receipt // newer, of the same list
	at    stamp
	reply []byte // the message that answered it; nil while there is none
	token [8]byte
	id    uint16
	size  uint8 // of the token

	acked    bool // an empty acknowledgement has gone out
	withheld bool // the reply waits for the peer's address to be proven
	dead     bool
	kept     bool // it outlives the process
	safe     bool // which list it is in
}

func (r *receipt) tokenBytes() []byte { return r.token[:r.size] }

// list is where a receipt waits for its end.
func (r *receipt) list(e *Endpoint) *receiptList {
	if r.safe {
		return &e.safe
	}
	return &e.receipts
}

// lives says how long a receipt is of use.
func (r *receipt) lives() time.Duration {
	if r.safe {
		return maxTransmitSpan
	}
	return exchangeLifetime
}

// shelf has the receipts of a session that has any.
type shelf struct {
	receipts []*receipt // oldest first
	ids      []uint16   // of receipts, in the same order
}

// receiptList holds the receipts of all sessions that live as long, oldest first:
// that is also the first to go. Guarded by Endpoint.mu.
type receiptList struct {
	oldest, newest *receipt
	bytes          int
}

// safe says that a request may be served again instead of answered again: RFC
// 7252, Section 4.5, lets a server do so where that has no effects. A registration
// only renews the observation. Over DTLS no copy but the peer's own comes, which is
// over after MAX_TRANSMIT_SPAN; over UDP the network makes some as well. What
// OSCORE protects is taken once.
func (s *session) safe(m *coap.Message, effects bool) bool {
	return !effects && s.via != coap.Plain && m.Code.IsRequest() && !m.Options.Has(coap.OSCOREOption)
}

// receipt finds the receipt of a message.
func (s *session) receipt(id uint16, token []byte, now time.Time) *receipt {
	if s.shelf == nil {
		return nil
	}
	for i, have := range s.shelf.ids {
		if have != id {
			continue
		}
		r := s.shelf.receipts[i]
		// Over UDP a peer that began anew may use an identifier again; a copy
		// has the same token.
		if string(r.tokenBytes()) != string(token) || time.Duration(s.e.stamp(now)-r.at) >= r.lives() {
			r.forget()
			return nil
		}
		return r
	}
	return nil
}

// remember makes a receipt.
func (s *session) remember(id uint16, token []byte, safe bool, now time.Time) *receipt {
	e := s.e
	if s.shelf != nil && len(s.shelf.receipts) >= maxReceipts {
		s.shelf.receipts[0].forget()
	}
	if s.shelf == nil {
		s.shelf = &shelf{}
	}
	r := &receipt{s: s, id: id, size: uint8(len(token)), at: e.stamp(now), safe: safe}
	copy(r.token[:], token)
	sh := s.shelf
	sh.receipts, sh.ids = append(sh.receipts, r), append(sh.ids, id)
	l := r.list(e)
	if l.newest == nil {
		l.oldest = r
	} else {
		l.newest.next = r
	}
	l.newest = r
	l.bytes += receiptSize
	e.trim(r)
	return r
}

// answer stores the reply of a receipt.
func (r *receipt) answer(reply []byte) {
	if r.dead {
		return
	}
	e := r.s.e
	r.reply = reply
	r.list(e).bytes += len(reply)
	e.trim(r)
}

// trim forgets the oldest receipts while there is too much, but not r: at first
// those that are missed less.
func (e *Endpoint) trim(r *receipt) {
	for e.receipts.bytes+e.safe.bytes > maxKept {
		l := &e.safe
		if l.oldest == nil || l.oldest == r {
			l = &e.receipts
		}
		if l.oldest == nil || l.oldest == r {
			return
		}
		l.drop()
	}
}

// expire forgets what is older than it may live.
func (l *receiptList) expire(now time.Time, lives time.Duration) {
	for l.oldest != nil && (l.oldest.dead || time.Duration(l.oldest.s.e.stamp(now)-l.oldest.at) >= lives) {
		l.drop()
	}
}

// drop forgets the oldest.
func (l *receiptList) drop() {
	r := l.oldest
	r.forget()
	l.oldest, r.next = r.next, nil
	if l.oldest == nil {
		l.newest = nil
	}
}

// forget makes a receipt mean nothing any more; it keeps its place in its list
// until it is the oldest.
func (r *receipt) forget() {
	if r.dead {
		return
	}
	s := r.s
	r.dead = true
	r.list(s.e).bytes -= receiptSize + len(r.reply)
	r.reply, r.s = nil, nil
	sh := s.shelf
	i := slices.Index(sh.receipts, r)
	sh.receipts, sh.ids = slices.Delete(sh.receipts, i, i+1), slices.Delete(sh.ids, i, i+1)
	if len(sh.receipts) == 0 {
		s.shelf = nil
	}
}
