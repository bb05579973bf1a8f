package dtls12

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/seed4911071e/groupgate/record"
)

// Cookies makes the cookies by which a client shows that it receives at its
// address (RFC 6347, Section 4.2.1). It remembers nothing of clients. The zero
// value is not usable: NewCookies.
type Cookies struct{ secret [sha256.Size]byte }

// NewCookies has a secret of its own: cookies end with the process.
func NewCookies() *Cookies {
	c := &Cookies{}
	_, _ = rand.Read(c.secret[:]) // never fails (crypto/rand)
	return c
}

// Verify says whether a ClientHello, or the front of one, carries the cookie that
// was given for it. If not, what it appends to dst is the datagram that answers it,
// shorter than the ClientHello: nobody is reached by more than was sent in his name.
func (c *Cookies) Verify(dst []byte, h *ClientHello, from netip.AddrPort, now time.Time) (ok bool, answer []byte) {
	slot := now.Unix() / int64(cookieLife/time.Second)
	fresh := c.cookie(h, from, slot)
	if carries(h, fresh) || len(h.Cookie) > 0 && carries(h, c.cookie(h, from, slot-1)) {
		return true, dst
	}
	// RFC 6347, Section 4.2.1: the record has the number of that of the
	// ClientHello, and the message is the first of ours.
	return false, record.AppendPlain(dst, record.Handshake, h.record, wrap(typeHelloVerifyRequest, 0, encodeVerifyRequest(fresh)))
}

// carries compares as much of a cookie as there was when it was given, and as there
// is now.
func carries(h *ClientHello, cookie []byte) bool {
	switch n := len(h.Cookie); {
	case n == frontSize:
		return subtle.ConstantTimeCompare(h.Cookie, cookie[:frontSize]) == 1
	case n == cookieSize:
		return subtle.ConstantTimeCompare(h.Cookie[:len(cookie)], cookie) == 1
	}
	return false
}

// cookie covers the address and what a client must not change when it returns
// the cookie (RFC 6347, Section 4.2.1): its first half what is in front of the
// ClientHello, its second half suites and compression methods as well, if those are
// there. Extensions are not in that list, and pion/dtls v2 sends more of them with
// the cookie than without.
func (c *Cookies) cookie(h *ClientHello, from netip.AddrPort, slot int64) []byte {
	mac := hmac.New(sha256.New, c.secret[:])
	ip := from.Addr().As16()
	var head [8 + 16 + 2 + 2 + 1]byte
	binary.BigEndian.PutUint64(head[:], uint64(slot))
	copy(head[8:], ip[:])
	binary.BigEndian.PutUint16(head[24:], from.Port())
	binary.BigEndian.PutUint16(head[26:], uint16(h.version))
	head[28] = byte(len(h.session))
	mac.Write(head[:])
	mac.Write(h.session)
	mac.Write(h.Random[:])
	front := mac.Sum(nil)[:frontSize:frontSize]
	if h.params == nil {
		return front
	}
	mac.Write(h.params)
	return append(front, mac.Sum(nil)[:cookieSize-frontSize]...)
}
