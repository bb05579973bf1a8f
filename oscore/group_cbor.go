package oscore

import "encoding/binary"

// Major types of CBOR (RFC 8949, Section 3.1).
const (
	cborUint  = 0 << 5
	cborNint  = 1 << 5
	cborBytes = 2 << 5
	cborText  = 3 << 5
)

// appendCBORHead writes the shortest head with the argument n (RFC 8949,
// Section 4.2.1).
func appendCBORHead(b []byte, major byte, n uint64) []byte {
	switch {
	case n < 24:
		return append(b, major|byte(n))
	case n < 1<<8:
		return append(b, major|24, byte(n))
	case n < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, major|25), uint16(n))
	case n < 1<<32:
		return binary.BigEndian.AppendUint32(append(b, major|26), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(b, major|27), n)
}

// cborHeadLen is the length of the head with the argument n.
func cborHeadLen(n int) int {
	switch {
	case n < 24:
		return 1
	case n < 1<<8:
		return 2
	case n < 1<<16:
		return 3
	}
	return 5
}

func appendCBORBytes(b, v []byte) []byte {
	return append(appendCBORHead(b, cborBytes, uint64(len(v))), v...)
}

func appendCBORInt(b []byte, v int64) []byte {
	if v < 0 {
		return appendCBORHead(b, cborNint, uint64(-1-v))
	}
	return appendCBORHead(b, cborUint, uint64(v))
}
