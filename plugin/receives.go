package plugin

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// Anybody can ask over plain UDP in the name of another address, and have it
// flooded with answers. So an address gets the large answers in small blocks (RFC
// 7252, Section 11.3), until it shows that it receives: each block brings an Echo
// value, and who returns it gets large ones (RFC 9175, Section 2.4, case 3). A
// client that knows no Echo is served as well, with more messages.

// smallBlock is the size of these blocks in bytes: with its options a response is
// below the 136 bytes that RFC 9175, Section 2.4, allows to anybody.
const smallBlock = 64

// echoLives is how long an Echo value is taken, at least.
const echoLives = 10 * time.Minute

// receives tells which addresses showed that they receive. It keeps nothing of
// them: the value is computed.
type receives struct{ key [32]byte }

func newReceives() (r receives) {
	_, _ = rand.Read(r.key[:]) // never fails (crypto/rand)
	return r
}

// value is what the peer of a request gets, in the span of time that now is in.
func (r *receives) value(p coap.Peer, now time.Time) []byte {
	h := hmac.New(sha256.New, r.key[:])
	ip := p.Addr.Addr().As16()
	h.Write(ip[:])
	h.Write(binary.BigEndian.AppendUint16(nil, p.Addr.Port()))
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(now.Unix()/int64(echoLives/time.Second))))
	return h.Sum(nil)[:8]
}

// bound has a response go out in small blocks, unless its request shows that the
// address receives.
func (r *receives) bound(req *coap.Request, resp *coap.Response, now time.Time) {
	if have, ok := req.Options.Get(coap.Echo); ok &&
		(hmac.Equal(have, r.value(req.Peer, now)) || hmac.Equal(have, r.value(req.Peer, now.Add(-echoLives)))) {
		return
	}
	if len(resp.Payload) <= smallBlock {
		return
	}
	resp.MaxBlock = smallBlock
	resp.Options.Set(coap.Echo, r.value(req.Peer, now))
}
