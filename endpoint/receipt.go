package endpoint

import (
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// receipt remembers a message of the peer, so that a copy of it gets the same
// answer and no second treatment (RFC 7252, Section 4.5). 64 bytes are a size that Go
// allocates without a rest.
type receipt struct {
	s            *session // nil: it means nothing any more
	older, newer *receipt // of the same list
	reply        []byte   // the message that answered it; nil while there is none
	token        [8]byte
	at           seconds // rounded down
	id           uint16
	size         uint8 // of the token
	is           receiptFlags
}

type receiptFlags uint8

const (
	acked    receiptFlags = 1 << iota // an empty acknowledgement has gone out
	withheld                          // the reply waits for the peer's address to be proven
	lasting                           // it outlives the process
	safe                              // which list it is in
	served                            // an exchange has it
)

func (r *receipt) has(f receiptFlags) bool { return r.is&f != 0 }

func (r *receipt) set(f receiptFlags, on bool) {
	if r.is &^= f; on {
		r.is |= f
	}
}

func (r *receipt) tokenBytes() []byte { return r.token[:r.size] }

// list is where a receipt waits for its end.
func (r *receipt) list(e *Endpoint) *receiptList {
	if r.has(safe) {
		return &e.safe
	}
	return &e.receipts
}

// lives says how long a receipt is of use.
func (r *receipt) lives() time.Duration {
	if r.has(safe) {
		return maxTransmitSpan
	}
	return exchangeLifetime
}

// old says that a receipt lived for that long.
func (r *receipt) old(now stamp, lives time.Duration) bool {
	return time.Duration(now-r.at.stamp()) >= lives+time.Second
}

// shelf has the receipts of a session that has any. Most leave it as the oldest.
type shelf struct {
	receipts []*receipt // from first on, oldest first
	ids      []uint16   // of receipts, in the same order
	first    int
}

// all are the receipts of a shelf; nil is an empty one.
func (sh *shelf) all() []*receipt {
	if sh == nil {
		return nil
	}
	return sh.receipts[sh.first:]
}

func (sh *shelf) add(r *receipt) {
	if n := len(sh.receipts); n == cap(sh.receipts) && sh.first > n/2 {
		// There is room in front.
		m := copy(sh.receipts, sh.receipts[sh.first:])
		clear(sh.receipts[m:])
		copy(sh.ids, sh.ids[sh.first:])
		sh.receipts, sh.ids, sh.first = sh.receipts[:m], sh.ids[:m], 0
	}
	sh.receipts, sh.ids = append(sh.receipts, r), append(sh.ids, r.id)
}

func (sh *shelf) remove(r *receipt) {
	i := sh.first + slices.Index(sh.all(), r)
	if i == sh.first {
		sh.receipts[i] = nil
		sh.first++
		return
	}
	sh.receipts, sh.ids = slices.Delete(sh.receipts, i, i+1), slices.Delete(sh.ids, i, i+1)
}

// receiptList holds the receipts of all sessions that live as long, oldest first:
// that is also the first to go. Guarded by Endpoint.mu.
type receiptList struct {
	oldest, newest *receipt
	bytes          int
}

func (l *receiptList) add(r *receipt) {
	r.older = l.newest
	if l.newest == nil {
		l.oldest = r
	} else {
		l.newest.newer = r
	}
	l.newest = r
	l.bytes += receiptSize
}

func (l *receiptList) remove(r *receipt) {
	if r.older == nil {
		l.oldest = r.newer
	} else {
		r.older.newer = r.newer
	}
	if r.newer == nil {
		l.newest = r.older
	} else {
		r.newer.older = r.older
	}
	r.older, r.newer = nil, nil
	l.bytes -= receiptSize + len(r.reply)
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
	for i, have := range s.shelf.ids[s.shelf.first:] {
		if have != id {
			continue
		}
		r := s.shelf.all()[i]
		// Over UDP a peer that began anew may use an identifier again; a copy
		// has the same token.
		if string(r.tokenBytes()) != string(token) || r.old(s.e.stamp(now), r.lives()) {
			r.forget()
			return nil
		}
		return r
	}
	return nil
}

// remember makes a receipt.
func (s *session) remember(id uint16, token []byte, is receiptFlags, now time.Time) *receipt {
	e := s.e
	if all := s.shelf.all(); len(all) >= maxReceipts {
		all[0].forget()
	}
	if s.shelf == nil {
		s.shelf = &shelf{}
	}
	var r *receipt
	if n := len(e.spareReceipts); n > 0 {
		r, e.spareReceipts = e.spareReceipts[n-1], e.spareReceipts[:n-1]
	} else {
		r = &receipt{}
	}
	*r = receipt{s: s, id: id, size: uint8(len(token)), at: e.stamp(now).seconds(), is: is}
	copy(r.token[:], token)
	s.shelf.add(r)
	r.list(e).add(r)
	e.trim(r)
	return r
}

// answer stores a copy of the reply of a receipt.
func (r *receipt) answer(reply []byte) {
	if r.s == nil {
		return
	}
	e := r.s.e
	var b []byte
	if n := len(e.spareReplies); n > 0 && cap(e.spareReplies[n-1]) >= len(reply) {
		b, e.spareReplies = e.spareReplies[n-1], e.spareReplies[:n-1]
	}
	r.reply = append(b, reply...)
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
		l.oldest.forget()
	}
}

// expire forgets what is older than it may live.
func (l *receiptList) expire(now stamp, lives time.Duration) {
	for l.oldest != nil && l.oldest.old(now, lives) {
		l.oldest.forget()
	}
}

// forget makes a receipt mean nothing any more. Its memory serves again, unless an
// exchange has it.
func (r *receipt) forget() {
	s := r.s
	if s == nil {
		return
	}
	e := s.e
	r.list(e).remove(r)
	s.shelf.remove(r)
	if len(s.shelf.all()) == 0 {
		s.shelf = nil
	}
	if b := r.reply; b != nil {
		clear(b) // it may have held keys
		if len(e.spareReplies) < maxSpareSent && cap(b) <= maxSpareReply {
			e.spareReplies = append(e.spareReplies, b[:0])
		}
	}
	r.reply, r.s = nil, nil
	if !r.has(served) && len(e.spareReceipts) < maxSpareSent {
		e.spareReceipts = append(e.spareReceipts, r)
	}
}
