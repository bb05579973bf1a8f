package cose

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"fmt"
	"sync"
)

// CTR is AES in counter mode (RFC 9459, Section 4): encryption without
// authentication, for who signs what is encrypted. It allocates nothing for a
// message, as [cipher.NewCTR] does.
type CTR struct {
	block cipher.Block
	state sync.Pool
}

type ctrState struct {
	first [ccmBlock]byte
	counter
	key [ccmBatch * ccmBlock]byte
}

// CTRNonceSize is the length of a nonce in bytes: four zero bytes behind it make the
// first counter block (draft-ietf-core-oscore-groupcomm-28, Section 2.1.7).
const CTRNonceSize = 12

// CTRKeySize is the length in bytes of the key of A128CTR, A192CTR or A256CTR.
func CTRKeySize(alg int64) (n int, ok bool) {
	switch alg {
	case AlgA128CTR:
		return 16, true
	case AlgA192CTR:
		return 24, true
	case AlgA256CTR:
		return 32, true
	}
	return 0, false
}

// NewCTR makes the cipher of A128CTR, A192CTR or A256CTR.
func NewCTR(alg int64, key []byte) (*CTR, error) {
	n, ok := CTRKeySize(alg)
	if !ok {
		return nil, fmt.Errorf("cose: algorithm %d is no AES-CTR", alg)
	}
	if len(key) != n {
		return nil, fmt.Errorf("cose: algorithm %d needs a key of %d bytes, not %d", alg, n, len(key))
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	c := &CTR{block: block}
	c.state.New = func() any { return new(ctrState) }
	return c, nil
}

// Append encrypts or decrypts src, of less than 2³² blocks, and appends the result to
// dst. src and the room behind dst are the same memory or different memory, nothing
// between.
func (c *CTR) Append(dst, nonce, src []byte) []byte {
	if len(nonce) != CTRNonceSize {
		panic("cose: AES-CTR: wrong length of nonce")
	}
	s := c.state.Get().(*ctrState)
	defer c.state.Put(s)
	clear(s.first[copy(s.first[:], nonce):])
	s.set(&s.first)
	whole, out := grow(dst, len(src))
	for len(src) > 0 {
		n := min(len(src), len(s.key))
		room := s.key[:(n+ccmBlock-1)/ccmBlock*ccmBlock]
		s.fill(room)
		for i := 0; i < len(room); i += ccmBlock {
			c.block.Encrypt(room[i:i+ccmBlock], room[i:i+ccmBlock])
		}
		subtle.XORBytes(out[:n], src[:n], room)
		src, out = src[n:], out[n:]
	}
	clear(s.key[:])
	return whole
}
