package oscore

import (
	"crypto/subtle"
	"errors"
	"sync"

	"github.com/seed4911071e/groupgate/coap"
)

// maxPlaintext is what fits a datagram, and what AES-CCM with a nonce of 13 bytes
// can encrypt.
const maxPlaintext = 1<<16 - 1

// maxTag and maxNonce are the longest of the algorithms at hand.
const (
	maxTag   = 16
	maxNonce = 13
)

var (
	errTooLong   = errors.New("oscore: the message is too long to protect")
	errTruncated = errors.New("oscore: payload is shorter than its signature and tag")
)

// groupMessage is what protection of one message takes beside its bytes.
type groupMessage struct {
	aad     groupAAD
	gid     []byte // of the material that protects it
	pivID   []byte // Sender ID of who generated piv
	piv     []byte
	request bool
}

// groupScratch is memory that protection needs and nobody sees.
type groupScratch struct {
	frame   aadFrame
	message groupMessage
	request VerifiedRequest // that message refers to
	nonce   [maxNonce]byte
	piv     [maxPIV]byte
	sig     []byte
	hkdf    hkdfScratch
	plain   []byte // an inner message, to be overwritten
}

var groupScratches = sync.Pool{New: func() any { return new(groupScratch) }}

// release wipes what is secret and gives the memory back.
func (w *groupScratch) release() {
	clear(w.plain)
	w.hkdf.wipe()
	w.plain, w.message = w.plain[:0], groupMessage{}
	groupScratches.Put(w)
}

// groupOutput is a protected message in one piece of memory, where its outer options
// are few.
type groupOutput struct {
	Buffer
	room [3]coap.Option
}

// outputBuffer is buf, or a new one.
func outputBuffer(buf *Buffer) *Buffer {
	if buf != nil {
		return buf
	}
	o := &groupOutput{}
	o.opts = o.room[:0]
	return &o.Buffer
}

// groupInput is a message that was read, likewise.
type groupInput struct {
	Buffer
	room [8]coap.Option
}

// inputBuffer is buf, or a new one.
func inputBuffer(buf *Buffer) *Buffer {
	if buf != nil {
		return buf
	}
	in := &groupInput{}
	in.opts = in.room[:0]
	return &in.Buffer
}

// roomFor is the buffer's memory, empty, for at least n bytes.
func (b *Buffer) roomFor(n int) []byte {
	if cap(b.data) < n {
		b.data = make([]byte, 0, n)
	}
	return b.data[:0]
}

// seal appends the payload of a message to dst: the ciphertext and, when sign is
// given, the countersignature under its keystream.
//
// draft-ietf-core-oscore-groupcomm-28, Sections 3.1, 4.1 and 4.2.
func (c *groupContext) seal(w *groupScratch, dst []byte, by *groupCipher, sign func(dst, msg []byte) ([]byte, error), m *groupMessage, plaintext []byte) ([]byte, error) {
	if len(plaintext) > maxPlaintext {
		return nil, errTooLong
	}
	w.frame.set(&m.aad, c.suite)
	nonce := w.nonce[:by.nonce]
	setNonce(nonce, c.commonIV, m.pivID, pivNumber(m.piv))
	at := len(dst)
	dst = by.seal(dst, nonce, plaintext, w.frame.encrypted())
	if sign == nil {
		return dst, nil
	}
	signature := len(dst)
	dst, err := sign(dst, w.frame.countersigned(dst[at:]))
	if err != nil {
		return nil, err
	}
	subtle.XORBytes(dst[signature:], dst[signature:], c.keystream.stream(&w.hkdf, m))
	return dst, nil
}

// open appends the plaintext of a payload to dst. When verify is given, the
// countersignature is verified first, and nothing is decrypted when that fails.
//
// draft-ietf-core-oscore-groupcomm-28, Sections 7.2 and 7.4.
func (c *groupContext) open(w *groupScratch, dst []byte, by *groupCipher, verify func(msg, sig []byte) error, m *groupMessage, payload []byte) ([]byte, error) {
	if len(payload) < by.tag || len(payload) > maxPlaintext+by.tag+c.suite.sigLen {
		return nil, errTruncated
	}
	w.frame.set(&m.aad, c.suite)
	if verify != nil {
		n := len(payload) - c.suite.sigLen
		if n < by.tag {
			return nil, errTruncated
		}
		if err := c.keystream.verify(w, verify, m, payload); err != nil {
			return nil, err
		}
		payload = payload[:n]
	}
	nonce := w.nonce[:by.nonce]
	setNonce(nonce, c.commonIV, m.pivID, pivNumber(m.piv))
	return by.open(dst, nonce, payload, w.frame.encrypted())
}

// verify takes the keystream off the signature at the end of a payload and verifies
// it over the rest. The external_aad is in w.frame.
func (k *keystreamKey) verify(w *groupScratch, verify func(msg, sig []byte) error, m *groupMessage, payload []byte) error {
	n := len(payload) - k.suite.sigLen
	w.sig = append(w.sig[:0], payload[n:]...)
	subtle.XORBytes(w.sig, w.sig, k.stream(&w.hkdf, m))
	return verify(w.frame.countersigned(payload[:n]), w.sig)
}
