package record

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"slices"
)

// Cipher protects or opens the records of one direction. It has working space
// inside: one goroutine at a time may use it.
type Cipher struct {
	block cipher.Block
	gcm   cipher.AEAD // nil: CCM
	tag   int

	nonce [ivSize + explicitNonce]byte
	aad   [8 + 3 + 2 + 8 + maxCID + 2]byte
	mac   [aes.BlockSize]byte // CCM: the running CBC-MAC, then the tag
	ctr   [aes.BlockSize]byte
	key   [aes.BlockSize]byte // CCM: key stream
	full  [aes.BlockSize]byte // CCM: the tag that was computed
}

// NewCipher expands the keys.
func NewCipher(s Suite, k *Keys) (*Cipher, error) {
	c := &Cipher{}
	if err := c.Rekey(s, k); err != nil {
		return nil, err
	}
	return c, nil
}

// Rekey makes c what [NewCipher] returns, and uses its memory again. After an error
// c is of no use.
func (c *Cipher) Rekey(s Suite, k *Keys) error {
	c.block, c.gcm = nil, nil
	if c.tag = s.tagSize(); c.tag == 0 {
		return fmt.Errorf("%w: %#04x", ErrSuite, uint16(s))
	}
	var err error
	if c.block, err = aes.NewCipher(k.Key[:]); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	if s.gcm() {
		if c.gcm, err = cipher.NewGCM(c.block); err != nil {
			return fmt.Errorf("record: %w", err)
		}
	}
	copy(c.nonce[:], k.IV[:])
	return nil
}

// Overhead is how much longer a record is than its plaintext, in bytes, with a
// Connection ID of cidSize bytes (0: none).
func (c *Cipher) Overhead(cidSize int) int {
	n := headerSize + explicitNonce + c.tag
	if cidSize > 0 {
		n += cidSize + 1 // the content type
	}
	return n
}

// Seal appends one record of the given type to dst. With cid it is one of type
// ConnectionID for a receiver that gave out that ID. A sequence number must
// never be used twice in an epoch under the same keys.
func (c *Cipher) Seal(dst []byte, kind uint8, epoch uint16, seq uint64, cid, plaintext []byte) []byte {
	inner := len(plaintext)
	outer := kind
	if len(cid) > 0 {
		inner++ // RFC 9146, Section 4: content, its type, no padding
		outer = ConnectionID
	}
	dst = slices.Grow(dst, headerSize+len(cid)+explicitNonce+inner+c.tag)
	dst = appendHeader(dst, outer, epoch, seq, cid)
	dst = binary.BigEndian.AppendUint16(dst, uint16(explicitNonce+inner+c.tag))
	full := uint64(epoch)<<48 | seq&MaxSeq
	dst = binary.BigEndian.AppendUint64(dst, full)
	binary.BigEndian.PutUint64(c.nonce[ivSize:], full)
	aad := c.additional(outer, full, cid, inner)
	at := len(dst)
	dst = append(dst, plaintext...)
	if len(cid) > 0 {
		dst = append(dst, kind)
	}
	if c.gcm != nil {
		return c.gcm.Seal(dst[:at], c.nonce[:], dst[at:], aad)
	}
	body := dst[at:]
	c.authenticate(aad, body)
	c.stream(body)
	return append(dst, c.full[:c.tag]...)
}

// Open checks and decrypts a record and appends the content to dst. kind is its
// true type. The error is [ErrOpen] whatever is wrong with it. The caller has
// asked its [Window] before, and tells it after.
func (c *Cipher) Open(dst []byte, r *Record) (kind uint8, content []byte, err error) {
	inner := len(r.Fragment) - explicitNonce - c.tag
	if r.Version != version || inner < 0 || inner > maxFragment+1 || len(r.CID) > maxCID {
		return 0, nil, ErrOpen
	}
	copy(c.nonce[ivSize:], r.Fragment[:explicitNonce])
	aad := c.additional(r.Type, uint64(r.Epoch)<<48|r.Seq&MaxSeq, r.CID, inner)
	at := len(dst)
	dst = slices.Grow(dst, inner+c.tag)
	if c.gcm != nil {
		if dst, err = c.gcm.Open(dst, c.nonce[:], r.Fragment[explicitNonce:], aad); err != nil {
			return 0, nil, ErrOpen
		}
	} else {
		sent := r.Fragment[explicitNonce+inner:]
		dst = append(dst, r.Fragment[explicitNonce:explicitNonce+inner]...)
		c.stream(dst[at:])
		c.authenticate(aad, dst[at:])
		if subtle.ConstantTimeCompare(c.full[:c.tag], sent) != 1 {
			clear(dst[at:])
			return 0, nil, ErrOpen
		}
	}
	content = dst[at:]
	if r.Type != ConnectionID {
		return r.Type, content, nil
	}
	// RFC 9146, Section 4: zeros behind the content type are padding.
	for len(content) > 0 && content[len(content)-1] == 0 {
		content = content[:len(content)-1]
	}
	if len(content) == 0 {
		return 0, nil, ErrOpen
	}
	return content[len(content)-1], content[:len(content)-1], nil
}

// additional is the additional data of the AEAD: RFC 6347, Section 4.1.2.1,
// with RFC 5246, Section 6.2.3.3; with a Connection ID RFC 9146, Section 5.3.
func (c *Cipher) additional(kind uint8, seq uint64, cid []byte, inner int) []byte {
	a := c.aad[:0]
	if kind != ConnectionID {
		a = binary.BigEndian.AppendUint64(a, seq)
		a = append(a, kind, version>>8, version&0xff)
		return binary.BigEndian.AppendUint16(a, uint16(inner))
	}
	a = binary.BigEndian.AppendUint64(a, ^uint64(0))
	a = append(a, ConnectionID, uint8(len(cid)), ConnectionID, version>>8, version&0xff)
	a = binary.BigEndian.AppendUint64(a, seq)
	a = append(a, cid...)
	return binary.BigEndian.AppendUint16(a, uint16(inner))
}
