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

const (
	ccmBlock = 16
	// ccmBatch is how many blocks of key stream are made at a time. The CBC-MAC waits
	// for each of its blocks, so that the processor makes key stream beside it.
	ccmBatch = 16
)

// ccmState is the memory of one call. What goes through the interface of the
// block cipher would be allocated otherwise.
type ccmState struct {
	mac, first [ccmBlock]byte
	counter
	key [ccmBatch * ccmBlock]byte
}

// counter is the next block that the counter mode encrypts.
type counter struct{ high, low uint64 }

// set makes a block the next one.
func (c *counter) set(block *[ccmBlock]byte) {
	c.high, c.low = binary.BigEndian.Uint64(block[:8]), binary.BigEndian.Uint64(block[8:])
}

// fill writes whole blocks. The counter proper, the bytes at the end that were zero
// in the first block, does not overflow: callers see to the length of messages.
func (c *counter) fill(b []byte) {
	for i := 0; i < len(b); i += ccmBlock {
		binary.BigEndian.PutUint64(b[i:], c.high)
		binary.BigEndian.PutUint64(b[i+8:], c.low)
		c.low++
	}
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
	s.first[0] = byte(15 - c.nonce - 1)
	clear(s.first[1+copy(s.first[1:], nonce):])
	s.set(&s.first)
	s.low++
	c.block.Encrypt(s.first[:], s.first[:])

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
}

// work has the CBC-MAC take up to a batch of plaintext, the last block padded with
// zeros, and meanwhile makes the key stream for the next n bytes.
//
// A block is written as a whole before the cipher reads it: a processor that has to
// put it together from two stores waits for both.
func (c *ccm) work(s *ccmState, plaintext []byte, n int) {
	n = (n + ccmBlock - 1) / ccmBlock * ccmBlock
	s.fill(s.key[:n])
	for i := 0; i < n || len(plaintext) > 0; i += ccmBlock {
		if len(plaintext) > 0 {
			taken := subtle.XORBytes(s.mac[:], s.mac[:], plaintext[:min(len(plaintext), ccmBlock)])
			c.block.Encrypt(s.mac[:], s.mac[:])
			plaintext = plaintext[taken:]
		}
		if i < n {
			key := s.key[i : i+ccmBlock]
			c.block.Encrypt(key, key)
		}
	}
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
	for len(plaintext) > 0 {
		n := min(len(plaintext), len(s.key))
		c.work(s, plaintext[:n], n)
		subtle.XORBytes(out[:n], plaintext[:n], s.key[:n])
		plaintext, out = plaintext[n:], out[n:]
	}
	subtle.XORBytes(s.mac[:], s.mac[:], s.first[:])
	copy(out, s.mac[:c.tag])
	s.wipe()
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
	c.work(s, nil, min(n, len(s.key)))
	for out := room; len(out) > 0; {
		n := subtle.XORBytes(out, ciphertext, s.key[:])
		ciphertext = ciphertext[n:]
		c.work(s, out[:n], min(len(ciphertext), len(s.key)))
		out = out[n:]
	}
	subtle.XORBytes(s.mac[:], s.mac[:], s.first[:])
	ok := subtle.ConstantTimeCompare(s.mac[:c.tag], tag[:c.tag]) == 1
	s.wipe()
	if !ok {
		clear(room)
		return nil, errCCM
	}
	return whole, nil
}

// wipe clears what reveals a message: nothing of it waits in memory for the next.
func (s *ccmState) wipe() {
	clear(s.mac[:])
	clear(s.first[:])
	clear(s.key[:])
}
