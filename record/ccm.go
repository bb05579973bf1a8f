package record

import (
	"crypto/aes"
	"crypto/subtle"
	"encoding/binary"
)

// lengthSize is L of CCM: what a nonce of 12 bytes leaves of a block (RFC 6655,
// Section 3; RFC 3610, Section 2.1).
const lengthSize = aes.BlockSize - 1 - ivSize - explicitNonce

// authenticate computes the encrypted tag into c.full (RFC 3610, Section 2.2).
func (c *Cipher) authenticate(aad, plain []byte) {
	c.mac[0] = 1<<6 | uint8(c.tag-2)/2<<3 | (lengthSize - 1)
	copy(c.mac[1:], c.nonce[:])
	n := len(plain)
	c.mac[13], c.mac[14], c.mac[15] = uint8(n>>16), uint8(n>>8), uint8(n)
	c.block.Encrypt(c.mac[:], c.mac[:])

	// The additional data is shorter than 2^16-2^8: its length takes two bytes.
	var length [2]byte
	binary.BigEndian.PutUint16(length[:], uint16(len(aad)))
	c.mac[0] ^= length[0]
	c.mac[1] ^= length[1]
	at := min(len(aad), aes.BlockSize-2)
	subtle.XORBytes(c.mac[2:], c.mac[2:], aad[:at])
	c.block.Encrypt(c.mac[:], c.mac[:])
	c.mix(aad[at:])
	c.mix(plain)

	c.counter(0)
	c.block.Encrypt(c.key[:], c.ctr[:])
	subtle.XORBytes(c.full[:], c.mac[:], c.key[:])
}

// mix runs the CBC-MAC over b, padded with zeros.
func (c *Cipher) mix(b []byte) {
	for len(b) > 0 {
		n := subtle.XORBytes(c.mac[:], c.mac[:], b)
		c.block.Encrypt(c.mac[:], c.mac[:])
		b = b[n:]
	}
}

// stream encrypts or decrypts in place (RFC 3610, Section 2.3).
func (c *Cipher) stream(b []byte) {
	c.counter(1)
	for i := 1; len(b) > 0; {
		c.block.Encrypt(c.key[:], c.ctr[:])
		n := subtle.XORBytes(b, b, c.key[:])
		b = b[n:]
		i++
		c.ctr[13], c.ctr[14], c.ctr[15] = uint8(i>>16), uint8(i>>8), uint8(i)
	}
}

func (c *Cipher) counter(i uint8) {
	c.ctr[0] = lengthSize - 1
	copy(c.ctr[1:], c.nonce[:])
	c.ctr[13], c.ctr[14], c.ctr[15] = 0, 0, i
}
