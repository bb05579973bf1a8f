package cose

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"testing"
)

// The counter mode is that of the standard library, apart and in place, at every
// length around a block and a batch.
func TestCTR(t *testing.T) {
	for _, alg := range []int64{AlgA128CTR, AlgA192CTR, AlgA256CTR} {
		size, _ := CTRKeySize(alg)
		key, nonce, src := make([]byte, size), make([]byte, CTRNonceSize), make([]byte, 3*ccmBatch*ccmBlock+1)
		for _, b := range [][]byte{key, nonce, src} {
			_, _ = rand.Read(b)
		}
		c, err := NewCTR(alg, key)
		if err != nil {
			t.Fatal(err)
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			t.Fatal(err)
		}
		for n := range src {
			want := make([]byte, n)
			cipher.NewCTR(block, append(bytes.Clone(nonce), 0, 0, 0, 0)).XORKeyStream(want, src[:n])
			if got := c.Append([]byte("head"), nonce, src[:n]); string(got) != "head"+string(want) {
				t.Fatalf("algorithm %d, %d bytes: %x, want %x", alg, n, got, want)
			}
			if got := c.Append(want[:0], nonce, want); !bytes.Equal(got, src[:n]) {
				t.Fatalf("algorithm %d, %d bytes in place: %x, want %x", alg, n, got, src[:n])
			}
		}
		if _, err := NewCTR(alg, key[1:]); err == nil {
			t.Error("a short key is taken")
		}
	}
	if _, err := NewCTR(AlgA128GCM, make([]byte, 16)); err == nil {
		t.Error("an AEAD is AES-CTR")
	}
	for _, n := range []int{0, CTRNonceSize - 1, CTRNonceSize + 1} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("a nonce of %d bytes is taken", n)
				}
			}()
			c, _ := NewCTR(AlgA128CTR, make([]byte, 16))
			c.Append(nil, make([]byte, n), nil)
		}()
	}
}
