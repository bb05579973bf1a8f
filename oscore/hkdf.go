package oscore

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"

	"github.com/seed4911071e/groupgate/cose"
)

// hkdfScratch is memory to derive keys in (HKDF, RFC 5869) once for each message:
// crypto/hkdf allocates at every step.
type hkdfScratch struct {
	info []byte
	hash int64 // HKDF Algorithm
	// What HMAC hashes first and last (RFC 2104, Section 2): the key, padded, and
	// behind it the message, or the first hash.
	inner  []byte
	outer  [sha512.BlockSize + sha512.Size]byte
	prk, t [sha512.Size]byte
	out    []byte
}

// innerPad and outerPad are what HMAC adds to a key (RFC 2104, Section 2).
var (
	innerPad = [sha512.BlockSize]byte(bytes.Repeat([]byte{0x36}, sha512.BlockSize))
	outerPad = [sha512.BlockSize]byte(bytes.Repeat([]byte{0x5c}, sha512.BlockSize))
)

// setKey begins an HMAC: key is at most as long as a block.
func (w *hkdfScratch) setKey(key []byte) {
	block := sha256.BlockSize
	if w.hash == cose.AlgHMAC512 {
		block = sha512.BlockSize
	}
	w.inner = append(w.inner[:0], innerPad[:block]...)
	subtle.XORBytes(w.inner, w.inner, key)
	copy(w.outer[:block], outerPad[:])
	subtle.XORBytes(w.outer[:], w.outer[:len(key)], key)
}

// sum is the HMAC of what was appended to w.inner behind the key, in dst.
func (w *hkdfScratch) sum(dst *[sha512.Size]byte) []byte {
	if w.hash == cose.AlgHMAC512 {
		*(*[sha512.Size]byte)(w.outer[sha512.BlockSize:]) = sha512.Sum512(w.inner)
		*dst = sha512.Sum512(w.outer[:])
		return dst[:]
	}
	*(*[sha256.Size]byte)(w.outer[sha256.BlockSize:]) = sha256.Sum256(w.inner)
	*(*[sha256.Size]byte)(dst[:]) = sha256.Sum256(w.outer[:sha256.BlockSize+sha256.Size])
	return dst[:sha256.Size]
}

// derive extracts and expands n bytes of secret and salt, with w.info, in the memory
// of w. hash is an HKDF Algorithm of COSE that the group's suite has, and salt at
// most as long as its block.
func (w *hkdfScratch) derive(hash int64, secret, salt []byte, n int) []byte {
	w.hash = hash
	w.setKey(salt)
	w.inner = append(w.inner, secret...)
	w.setKey(w.sum(&w.prk))
	block, last := len(w.inner), w.t[:0]
	w.out = w.out[:0]
	for i := byte(1); len(w.out) < n; i++ {
		w.inner = append(w.inner[:block], last...)
		w.inner = append(append(w.inner, w.info...), i)
		last = w.sum(&w.t)
		w.out = append(w.out, last...)
	}
	return w.out[:n]
}

// wipe clears what is secret, if there is something.
func (w *hkdfScratch) wipe() {
	if len(w.out) == 0 {
		return
	}
	w.out = w.out[:0]
	clear(w.inner[:cap(w.inner)])
	clear(w.outer[:])
	clear(w.prk[:])
	clear(w.t[:])
	clear(w.out[:cap(w.out)])
}
