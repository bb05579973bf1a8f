package dtls12

import "errors"

// errDecode is the error of a message that is not as it should be.
var errDecode = errors.New("malformed message")

// reader takes fields from the front of a message; what is not there sets bad,
// and reads as empty.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if r.bad || n > len(r.b) {
		r.bad, r.b = true, nil
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

// uint reads a number of n bytes.
func (r *reader) uint(n int) int {
	v := 0
	for _, x := range r.take(n) {
		v = v<<8 | int(x)
	}
	return v
}

// vector reads a vector with a length of n bytes that has from least to most
// bytes in it (RFC 5246, Section 4.3).
func (r *reader) vector(n, least, most int) []byte {
	size := r.uint(n)
	if size < least || size > most {
		r.bad = true
	}
	return r.take(size)
}

// end is the error of what was read: all of it must have been.
func (r *reader) end() error {
	if r.bad || len(r.b) > 0 {
		return errDecode
	}
	return nil
}

// appendUint appends a number of n bytes.
func appendUint(dst []byte, n, v int) []byte {
	for n--; n >= 0; n-- {
		dst = append(dst, byte(v>>(8*n)))
	}
	return dst
}

// appendVector appends a vector with a length of n bytes.
func appendVector(dst []byte, n int, v []byte) []byte {
	return append(appendUint(dst, n, len(v)), v...)
}
