// Package record protects and reads the records of DTLS 1.2 on plain keys: the
// AEAD suites of constrained nodes, with and without Connection ID (RFC 6347,
// Section 4.1; RFC 6655; RFC 5288; RFC 9146).
//
// It knows no handshake and keeps no session: whoever finished a handshake
// derives the [Keys] of both directions with [Derive], counts what it sends,
// and keeps a [Window] of what it received. A [Cipher] is made of keys in a
// fraction of a microsecond, so a sleeping session needs to keep its keys only.
//
// Neither [Cipher.Seal] nor [Cipher.Open] allocates when the destination has
// room.
package record

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Content types (RFC 5246, Section 6.2.1; RFC 9146, Section 3).
const (
	ChangeCipherSpec uint8 = 20
	Alert            uint8 = 21
	Handshake        uint8 = 22
	ApplicationData  uint8 = 23
	ConnectionID     uint8 = 25 // tls12_cid: the type within is encrypted
)

// Spec constants.
const (
	// version is DTLS 1.2.
	version = 0xfefd
	// headerSize is that of a record without Connection ID (RFC 6347, Section
	// 4.1).
	headerSize = 13
	// MaxSeq is the largest sequence number: 48 bits.
	MaxSeq = 1<<48 - 1
	// maxFragment bounds a plaintext (RFC 6347, Section 4.1).
	maxFragment = 1 << 14
	// maxCID is the length of the longest Connection ID (RFC 9146, Section 3).
	maxCID = 255
	// explicitNonce is the part of the nonce that travels (RFC 6655, Section 3).
	explicitNonce = 8
)

// ErrFormat is the error of bytes that are no record. RFC 6347, Section
// 4.1.2.7: they are discarded in silence.
var ErrFormat = errors.New("record: no DTLS 1.2 record")

// ErrOpen is the error of a record that does not open: never why.
var ErrOpen = errors.New("record: does not open")

// Record is one record as it travels. Its slices refer to the datagram.
type Record struct {
	Type     uint8
	Version  uint16 // of epoch 0: 0xfeff or 0xfefd
	Epoch    uint16
	Seq      uint64 // 48 bits
	CID      []byte // of a record of type ConnectionID
	Fragment []byte
}

// Next reads the first record of a datagram; rest is what follows it. cidSize
// is the length of the Connection IDs that the receiver gave out, in bytes.
func Next(b []byte, cidSize int) (r Record, rest []byte, err error) {
	if len(b) < headerSize {
		return r, nil, fmt.Errorf("%w: %d bytes", ErrFormat, len(b))
	}
	r.Type = b[0]
	r.Version = binary.BigEndian.Uint16(b[1:])
	if r.Version>>8 != 0xfe {
		return r, nil, fmt.Errorf("%w: version %#x", ErrFormat, r.Version)
	}
	seq := binary.BigEndian.Uint64(b[3:])
	r.Epoch, r.Seq = uint16(seq>>48), seq&MaxSeq
	at := headerSize - 2
	switch r.Type {
	case ChangeCipherSpec, Alert, Handshake, ApplicationData:
	case ConnectionID:
		// RFC 9146, Section 4: without a negotiated ID there are no such records,
		// and none in epoch 0.
		if cidSize == 0 || r.Epoch == 0 || len(b) < headerSize+cidSize {
			return r, nil, fmt.Errorf("%w: Connection ID", ErrFormat)
		}
		r.CID = b[at : at+cidSize : at+cidSize]
		at += cidSize
	default:
		return r, nil, fmt.Errorf("%w: content type %d", ErrFormat, r.Type)
	}
	n := int(binary.BigEndian.Uint16(b[at:]))
	at += 2
	if n > len(b)-at {
		return r, nil, fmt.Errorf("%w: length %d of %d", ErrFormat, n, len(b)-at)
	}
	r.Fragment = b[at : at+n : at+n]
	return r, b[at+n:], nil
}

// AppendPlain appends a record of epoch 0.
func AppendPlain(dst []byte, kind uint8, seq uint64, fragment []byte) []byte {
	dst = appendHeader(dst, kind, 0, seq, nil)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(fragment)))
	return append(dst, fragment...)
}

// appendHeader appends all of the header but the length.
func appendHeader(dst []byte, kind uint8, epoch uint16, seq uint64, cid []byte) []byte {
	dst = append(dst, kind, version>>8, version&0xff)
	dst = binary.BigEndian.AppendUint64(dst, uint64(epoch)<<48|seq&MaxSeq)
	return append(dst, cid...)
}
