package cose

import (
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"sync"
)

// ccm is AES-CCM (RFC 3610): the counter mode with a CBC-MAC over associated data
// and plaintext. It allocates nothing, which is why it is written here; the block
// cipher is that of the standard library.
type ccm struct {
	block cipher.Block
	tag   int // M: 4 to 16, even
	nonce int // 15 - L
	state sync.Pool
}

const ccmBlock = 16

// ccmState is the memory of one call. What goes through the interface of the
// block cipher would be allocated otherwise.
type ccmState struct {
	mac, ctr, key, first [ccmBlock]byte
}

func newCCM(block cipher.Block, tag, nonce int) cipher.AEAD {
	c := &ccm{block: block, tag: tag, nonce: nonce}
	c.state.New = func() any { return new(ccmState) }
	return c
}

func (c *ccm) NonceSize() int { return c.nonce }
func (c *ccm) Overhead() int  { return c.tag }

// fits says whether the length of a plaintext can be told in the first block
// (RFC 3610, Section 2.1: less than 2^(8L) bytes).
func (c *ccm) fits(n int) bool {
	l := 15 - c.nonce
	return l >= 8 || uint64(n) < 1<<(8*l)
}

// begin computes the CBC-MAC over the first block and the associated data, and
// the key stream of the tag (RFC 3610, Sections 2.2 and 2.3).
func (c *ccm) begin(s *ccmState, nonce, aad []byte, length int) {
	flags := byte((c.tag-2)/2<<3 | (15 - c.nonce - 1))
	if len(aad) > 0 {
		flags |= 1 << 6
	}
	clear(s.mac[:])
	binary.BigEndian.PutUint64(s.mac[8:], uint64(length))
	s.mac[0] = flags
	copy(s.mac[1:], nonce)
	c.block.Encrypt(s.mac[:], s.mac[:])
	if len(aad) > 0 {
		var head [6]byte
		h := 2
		if len(aad) < 0xff00 {
			binary.BigEndian.PutUint16(head[:], uint16(len(aad)))
		} else {
			h = 6
			head[0], head[1] = 0xff, 0xfe
			binary.BigEndian.PutUint32(head[2:], uint32(len(aad)))
		}
		subtle.XORBytes(s.mac[:], s.mac[:], head[:h])
		n := subtle.XORBytes(s.mac[h:], s.mac[h:], aad)
		c.block.Encrypt(s.mac[:], s.mac[:])
		for aad = aad[n:]; len(aad) > 0; aad = aad[n:] {
			n = subtle.XORBytes(s.mac[:], s.mac[:], aad[:min(len(aad), ccmBlock)])
			c.block.Encrypt(s.mac[:], s.mac[:])
		}
	}
	clear(s.ctr[:])
	s.ctr[0] = byte(15 - c.nonce - 1)
	copy(s.ctr[1:], nonce)
	c.block.Encrypt(s.first[:], s.ctr[:])
}

// stream makes the next block of the key stream.
func (c *ccm) stream(s *ccmState) {
	for i := ccmBlock - 1; i > c.nonce; i-- {
		if s.ctr[i]++; s.ctr[i] != 0 {
			break
		}
	}
	c.block.Encrypt(s.key[:], s.ctr[:])
}

// xorBlock sets dst to a XOR b. They may be the same.
func xorBlock(dst, a, b *[ccmBlock]byte) {
	x := binary.NativeEndian.Uint64(a[:8]) ^ binary.NativeEndian.Uint64(b[:8])
	y := binary.NativeEndian.Uint64(a[8:]) ^ binary.NativeEndian.Uint64(b[8:])
	binary.NativeEndian.PutUint64(dst[:8], x)
	binary.NativeEndian.PutUint64(dst[8:], y)
}

// absorb has the CBC-MAC take one block of plaintext, padded with zeros.
func (c *ccm) absorb(s *ccmState, p []byte) {
	subtle.XORBytes(s.mac[:], s.mac[:], p)
	c.block.Encrypt(s.mac[:], s.mac[:])
}

// grow makes room for n bytes behind dst.
func grow(dst []byte, n int) (whole, room []byte) {
	if total := len(dst) + n; cap(dst) >= total {
		whole = dst[:total]
	} else {
		whole = make([]byte, total)
		copy(whole, dst)
	}
	return whole, whole[len(dst):]
}

// Seal encrypts. plaintext and the room behind dst are the same memory or
// different memory, nothing between.
func (c *ccm) Seal(dst, nonce, plaintext, aad []byte) []byte {
	if len(nonce) != c.nonce {
		panic("cose: AES-CCM: wrong length of nonce")
	}
	if !c.fits(len(plaintext)) {
		panic("cose: AES-CCM: plaintext is too long")
	}
	s := c.state.Get().(*ccmState)
	defer c.state.Put(s)
	c.begin(s, nonce, aad, len(plaintext))
	whole, out := grow(dst, len(plaintext)+c.tag)
	for len(plaintext) >= ccmBlock {
		p, o := (*[ccmBlock]byte)(plaintext), (*[ccmBlock]byte)(out)
		xorBlock(&s.mac, &s.mac, p)
		c.block.Encrypt(s.mac[:], s.mac[:])
		c.stream(s)
		xorBlock(o, p, &s.key)
		plaintext, out = plaintext[ccmBlock:], out[ccmBlock:]
	}
	if n := len(plaintext); n > 0 {
		c.absorb(s, plaintext)
		c.stream(s)
		subtle.XORBytes(out[:n], plaintext, s.key[:])
		out = out[n:]
	}
	subtle.XORBytes(s.mac[:], s.mac[:], s.first[:])
	copy(out, s.mac[:c.tag])
	clear(s.mac[:])
	return whole
}

var errCCM = errors.New("cose: AES-CCM: message is not authentic")

// Open decrypts and verifies. What it wrote is wiped when the message is not
// authentic.
func (c *ccm) Open(dst, nonce, ciphertext, aad []byte) ([]byte, error) {
	if len(nonce) != c.nonce {
		panic("cose: AES-CCM: wrong length of nonce")
	}
	n := len(ciphertext) - c.tag
	if n < 0 || !c.fits(n) {
		return nil, errCCM
	}
	s := c.state.Get().(*ccmState)
	defer c.state.Put(s)
	c.begin(s, nonce, aad, n)
	var tag [ccmBlock]byte
	copy(tag[:], ciphertext[n:])
	ciphertext = ciphertext[:n]
	whole, room := grow(dst, n)
	out := room
	for len(out) >= ccmBlock {
		o := (*[ccmBlock]byte)(out)
		c.stream(s)
		xorBlock(o, (*[ccmBlock]byte)(ciphertext), &s.key)
		xorBlock(&s.mac, &s.mac, o)
		c.block.Encrypt(s.mac[:], s.mac[:])
		ciphertext, out = ciphertext[ccmBlock:], out[ccmBlock:]
	}
	if len(out) > 0 {
		c.stream(s)
		subtle.XORBytes(out, ciphertext, s.key[:])
		c.absorb(s, out)
	}
	subtle.XORBytes(s.mac[:], s.mac[:], s.first[:])
	ok := subtle.ConstantTimeCompare(s.mac[:c.tag], tag[:c.tag]) == 1
	clear(s.mac[:])
	if !ok {
		clear(room)
		return nil, errCCM
	}
	return whole, nil
}
