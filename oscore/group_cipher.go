package oscore

import (
	"crypto/cipher"
	"fmt"

	"github.com/seed4911071e/groupgate/cose"
)

// groupCipher encrypts with an AEAD or, without authentication, with AES-CTR.
type groupCipher struct {
	aead  cipher.AEAD
	ctr   *cose.CTR
	nonce int
	tag   int
}

// newGroupCipher makes the cipher of an algorithm that cipherSizes knows.
func newGroupCipher(alg int64, key []byte) (*groupCipher, error) {
	n, nonce, tag, ok := cipherSizes(alg)
	if !ok {
		return nil, fmt.Errorf("oscore: encryption algorithm %d is not supported", alg)
	}
	if len(key) != n {
		return nil, fmt.Errorf("oscore: encryption algorithm %d needs a key of %d bytes, not %d", alg, n, len(key))
	}
	c := &groupCipher{nonce: nonce, tag: tag}
	var err error
	if tag == 0 {
		c.ctr, err = cose.NewCTR(alg, key)
	} else {
		c.aead, err = cose.NewAEAD(alg, key)
	}
	if err != nil {
		return nil, fmt.Errorf("oscore: %w", err)
	}
	return c, nil
}

// seal appends the ciphertext to dst. With AES-CTR the aad goes nowhere: only
// the countersignature covers it.
func (c *groupCipher) seal(dst, nonce, plaintext, aad []byte) []byte {
	if c.aead == nil {
		return c.ctr.Append(dst, nonce, plaintext)
	}
	return c.aead.Seal(dst, nonce, plaintext, aad)
}

// open appends the plaintext to dst.
func (c *groupCipher) open(dst, nonce, ciphertext, aad []byte) ([]byte, error) {
	if c.aead == nil {
		return c.ctr.Append(dst, nonce, ciphertext), nil
	}
	return c.aead.Open(dst, nonce, ciphertext, aad)
}
