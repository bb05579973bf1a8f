// Package rec writes and reads the fields of records that are kept in binary form:
// numbers in network byte order, strings behind their length in two bytes.
package rec

import "encoding/binary"

// AppendString appends a string of at most 65,535 bytes.
func AppendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}

// Reader takes a record apart. What does not fit it reads as zero, and is bad from
// then on.
type Reader struct {
	b   []byte
	bad bool
}

// NewReader reads b.
func NewReader(b []byte) *Reader { return &Reader{b: b} }

// Bytes takes n bytes, which are those of the record: they are not copied.
func (r *Reader) Bytes(n int) []byte {
	if r.bad || len(r.b) < n {
		r.bad = true
		return make([]byte, n)
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

// U8, U16, U32 and U64 read numbers of that many bits.
func (r *Reader) U8() uint8   { return r.Bytes(1)[0] }
func (r *Reader) U16() uint16 { return binary.BigEndian.Uint16(r.Bytes(2)) }
func (r *Reader) U32() uint32 { return binary.BigEndian.Uint32(r.Bytes(4)) }
func (r *Reader) U64() uint64 { return binary.BigEndian.Uint64(r.Bytes(8)) }

// String reads one of at most so many bytes.
func (r *Reader) String(most int) string {
	n := int(r.U16())
	if n > most {
		r.bad = true
		return ""
	}
	return string(r.Bytes(n))
}

// Fail marks the record as bad when a value in it is none.
func (r *Reader) Fail(when bool) { r.bad = r.bad || when }

// Skip passes over what is left of the record.
func (r *Reader) Skip() { r.b = nil }

// Done says that the record was read whole, and nothing in it was bad.
func (r *Reader) Done() bool { return !r.bad && len(r.b) == 0 }
