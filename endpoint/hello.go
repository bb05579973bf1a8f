package endpoint

import (
	"net/netip"
	"time"

	"github.com/seed4911071e/groupgate/record"
)

// handshakeClientHello is the type of a ClientHello (RFC 5246, Section 7.4).
const handshakeClientHello = 1

// hello is what is read of a ClientHello before a handshake takes it.
type hello struct {
	whole  bool // the part with random and cookie is there
	random [32]byte
	cookie bool
}

// readHello reads a record of epoch 0 as the beginning of a ClientHello (RFC
// 6347, Section 4.2.2); false when it is something else.
func readHello(r *record.Record) (h hello, ok bool) {
	const header = 12
	b := r.Fragment
	if r.Type != record.Handshake || len(b) < header || b[0] != handshakeClientHello {
		return h, false
	}
	offset := int(b[6])<<16 | int(b[7])<<8 | int(b[8])
	if body := b[header:]; offset == 0 && len(body) >= 2+32+1 {
		copy(h.random[:], body[2:])
		h.whole = true
		// The session ID, then the cookie.
		if at := 2 + 32 + 1 + int(body[2+32]); at < len(body) {
			h.cookie = body[at] > 0
		}
	}
	return h, true
}

// The greylist. While many handshakes are under way, only a ClientHello that
// was seen before begins another: an honest client repeats its own after a
// second (RFC 6347, Section 4.2.4.1), a flood from invented addresses does not.
const (
	greySlots = 8192
	greyFrom  = 500 * time.Millisecond
	greyTo    = time.Minute
)

// sighting is one ClientHello that was turned away.
type sighting struct {
	hash uint64
	at   time.Time
}

// again notes a ClientHello and says whether it is a repeated one.
func (e *Endpoint) again(h hello, from netip.AddrPort, now time.Time) bool {
	sum := e.hash(from, h.random[:])
	s := &e.seen[sum%greySlots]
	if s.hash == sum {
		if age := now.Sub(s.at); age >= greyFrom && age <= greyTo {
			*s = sighting{}
			return true
		} else if age < greyFrom {
			return false
		}
	}
	*s = sighting{sum, now}
	return false
}

// admit begins a handshake with the peer at an address, or nil.
func (e *Endpoint) admit(h hello, from netip.AddrPort) *handshake {
	now := time.Now()
	if e.underWay() >= (e.cfg.MaxHandshakes+1)/2 && (!h.whole || !e.again(h, from, now)) {
		e.refuse(from, now)
		return nil
	}
	if !e.roomToBegin(from, now) {
		return nil
	}
	return e.begin(h, from, now)
}

// refuse counts a ClientHello that begins no handshake, and says so once in a while.
func (e *Endpoint) refuse(from netip.AddrPort, now time.Time) {
	e.metrics.refused.Inc()
	if n := e.room.refused.Event(now); n > 0 {
		e.log.WarnContext(e.ctx, "handshakes are put off: many are under way; clients ask again, and if it is no flood, raise limits.handshakes",
			"refused", n, "peer", from, "handshakes", e.underWay(), "max_handshakes", e.cfg.MaxHandshakes)
	}
}

// giveUp ends the handshake that is missed least: a ClientHello that is not whole, the oldest without a cookie,
// else the oldest that had its time. A finished one is taken over.
func (e *Endpoint) giveUp(now time.Time) bool {
	if e.leastGathered() {
		return true
	}
	var victim *handshake
	for _, h := range e.handshakes {
		if h.verified && now.Sub(h.began) < handshakeGrace {
			continue
		}
		if victim == nil || victim.verified && !h.verified || victim.verified == h.verified && h.began.Before(victim.began) {
			victim = h
		}
	}
	if victim == nil {
		own := e.own.oldest(now)
		if own != nil {
			own.end("given-up")
		}
		return own != nil
	}
	if victim.done {
		victim.takeOver()
	} else {
		victim.drop("given-up")
	}
	return true
}

// another is a ClientHello of a new handshake at an address that has one. The
// old gives way when it is finished, as a session, or had its time.
func (e *Endpoint) another(h *handshake, next hello, from netip.AddrPort) *handshake {
	switch {
	case next.cookie:
		return h // pion knows whether it is its own
	case h.done:
		h.takeOver()
	case time.Since(h.began) >= handshakeGrace:
		h.drop("given-up")
	default:
		return h
	}
	return e.admit(next, from)
}
