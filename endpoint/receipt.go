package endpoint

import (
	"bytes"
	"slices"
	"time"
)

// receipt remembers a message of the peer, so that a copy of it gets the same
// answer and no second treatment (RFC 7252, Section 4.5).
type receipt struct {
	s     *session
	id    uint16
	token []byte
	at    time.Time

	acked    bool   // an empty acknowledgement has gone out
	reply    []byte // the message that answered it; nil while there is none
	withheld bool   // the reply waits for the peer's address to be proven
	dead     bool
	kept     bool // it outlives the process

	next *receipt // newer
}

// receiptList holds the receipts of all sessions, oldest first. All live as
// long, so the oldest is also the first to go. Guarded by Endpoint.mu.
type receiptList struct {
	oldest, newest *receipt
	bytes          int
}

// receipt finds the receipt of a message.
func (s *session) receipt(id uint16, token []byte, now time.Time) *receipt {
	if s.act == nil {
		return nil
	}
	for i, have := range s.act.ids {
		if have != id {
			continue
		}
		r := s.act.receipts[i]
		// Over UDP a peer that began anew may use an identifier again; a copy
		// has the same token.
		if !bytes.Equal(r.token, token) || now.Sub(r.at) >= exchangeLifetime {
			s.e.receipts.forget(r)
			return nil
		}
		return r
	}
	return nil
}

// remember makes a receipt.
func (s *session) remember(id uint16, token []byte, now time.Time) *receipt {
	l := &s.e.receipts
	a := s.activity()
	if len(a.receipts) >= maxReceipts {
		l.forget(a.receipts[0])
		a = s.activity()
	}
	r := &receipt{s: s, id: id, token: bytes.Clone(token), at: now}
	a.receipts, a.ids = append(a.receipts, r), append(a.ids, id)
	if l.newest == nil {
		l.oldest = r
	} else {
		l.newest.next = r
	}
	l.newest = r
	l.bytes += receiptSize
	l.trim(r)
	return r
}

// answer stores the reply of a receipt.
func (l *receiptList) answer(r *receipt, reply []byte) {
	if r.dead {
		return
	}
	r.reply = reply
	l.bytes += len(reply)
	l.trim(r)
}

// trim forgets the oldest receipts while there is too much, but not r.
func (l *receiptList) trim(r *receipt) {
	for l.bytes > maxKept && l.oldest != nil && l.oldest != r {
		l.drop()
	}
}

// expire forgets what is older.
func (l *receiptList) expire(than time.Time) {
	for l.oldest != nil && (l.oldest.dead || !l.oldest.at.After(than)) {
		l.drop()
	}
}

// drop forgets the oldest.
func (l *receiptList) drop() {
	r := l.oldest
	l.forget(r)
	l.oldest, r.next = r.next, nil
	if l.oldest == nil {
		l.newest = nil
	}
}

// forget makes a receipt mean nothing any more; it keeps its place until it is
// the oldest.
func (l *receiptList) forget(r *receipt) {
	if r.dead {
		return
	}
	r.dead = true
	l.bytes -= receiptSize + len(r.reply)
	r.reply = nil
	s := r.s
	r.s = nil
	if a := s.act; a != nil {
		if i := slices.Index(a.receipts, r); i >= 0 {
			a.receipts, a.ids = slices.Delete(a.receipts, i, i+1), slices.Delete(a.ids, i, i+1)
		}
		s.settle()
	}
}
