package cose

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"
)

// aeadParams are the sizes in bytes of an AEAD (RFC 9053, Section 4).
type aeadParams struct {
	name            string
	key, nonce, tag int
	max             int // longest plaintext, 0: not limited here
}

func aeadOf(alg int64) (aeadParams, bool) {
	switch alg {
	case AlgA128GCM:
		return aeadParams{"A128GCM", 16, 12, 16, 0}, true
	case AlgA192GCM:
		return aeadParams{"A192GCM", 24, 12, 16, 0}, true
	case AlgA256GCM:
		return aeadParams{"A256GCM", 32, 12, 16, 0}, true
	case AlgChaCha20Poly1305:
		return aeadParams{"ChaCha20/Poly1305", 32, 12, 16, 0}, true
	case AlgAESCCM16_64_128:
		return aeadParams{"AES-CCM-16-64-128", 16, 13, 8, 1<<16 - 1}, true
	case AlgAESCCM16_64_256:
		return aeadParams{"AES-CCM-16-64-256", 32, 13, 8, 1<<16 - 1}, true
	case AlgAESCCM64_64_128:
		return aeadParams{"AES-CCM-64-64-128", 16, 7, 8, 0}, true
	case AlgAESCCM64_64_256:
		return aeadParams{"AES-CCM-64-64-256", 32, 7, 8, 0}, true
	case AlgAESCCM16_128_128:
		return aeadParams{"AES-CCM-16-128-128", 16, 13, 16, 1<<16 - 1}, true
	case AlgAESCCM16_128_256:
		return aeadParams{"AES-CCM-16-128-256", 32, 13, 16, 1<<16 - 1}, true
	case AlgAESCCM64_128_128:
		return aeadParams{"AES-CCM-64-128-128", 16, 7, 16, 0}, true
	case AlgAESCCM64_128_256:
		return aeadParams{"AES-CCM-64-128-256", 32, 7, 16, 0}, true
	}
	return aeadParams{}, false
}

// AEADName is the registered name of an AEAD.
func AEADName(alg int64) (string, bool) {
	p, ok := aeadOf(alg)
	return p.name, ok
}

// AEADSizes gives key, nonce and tag length in bytes.
func AEADSizes(alg int64) (key, nonce, tag int, ok bool) {
	p, ok := aeadOf(alg)
	return p.key, p.nonce, p.tag, ok
}

// NewAEAD makes the AEAD with a COSE algorithm identifier. As usual with
// cipher.AEAD, a nonce of a wrong length panics, and so does a plaintext beyond
// 65535 bytes with the AES-CCM-16 algorithms.
func NewAEAD(alg int64, key []byte) (cipher.AEAD, error) {
	p, ok := aeadOf(alg)
	if !ok {
		return nil, fmt.Errorf("cose: AEAD algorithm %d is not supported", alg)
	}
	if len(key) != p.key {
		return nil, fmt.Errorf("cose: %s needs a key of %d bytes, not %d", p.name, p.key, len(key))
	}
	if alg == AlgChaCha20Poly1305 {
		return chacha20poly1305.New(key)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("cose: %w", err)
	}
	switch alg {
	case AlgA128GCM, AlgA192GCM, AlgA256GCM:
		return cipher.NewGCM(block)
	}
	return newCCM(block, p.tag, p.nonce), nil
}

// seal encrypts after checking what cipher.AEAD answers with a panic.
func seal(alg int64, key, nonce, plaintext, aad []byte) ([]byte, error) {
	aead, err := NewAEAD(alg, key)
	if err != nil {
		return nil, err
	}
	if len(nonce) != aead.NonceSize() {
		return nil, fmt.Errorf("cose: nonce has %d bytes, not %d", len(nonce), aead.NonceSize())
	}
	if p, _ := aeadOf(alg); p.max != 0 && len(plaintext) > p.max {
		return nil, fmt.Errorf("cose: plaintext is longer than %d bytes", p.max)
	}
	return aead.Seal(nil, nonce, plaintext, aad), nil
}

// open decrypts. A wrong key length is the caller's error; all that depends on
// the message is ErrDecrypt.
func open(alg int64, key, nonce, ciphertext, aad []byte) ([]byte, error) {
	aead, err := NewAEAD(alg, key)
	if err != nil {
		return nil, err
	}
	if len(nonce) != aead.NonceSize() {
		return nil, ErrDecrypt
	}
	plaintext, err := aead.Open(nil, nonce, ciphertext, aad)
	if err != nil {
		return nil, ErrDecrypt
	}
	return plaintext, nil
}

// HKDF256 is HKDF with SHA-256 (RFC 5869). A nil salt is 32 zero bytes. n is at
// most 8160.
func HKDF256(secret, salt, info []byte, n int) ([]byte, error) {
	return hkdf.Key(sha256.New, secret, salt, string(info), n)
}
