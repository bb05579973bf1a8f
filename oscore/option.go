package oscore

import (
	"errors"
	"fmt"
)

// Flag bits of the option value (RFC 8613, Section 6.1).
const (
	flagPIV        = 0x07 // length of the Partial IV
	flagKID        = 0x08
	flagKIDContext = 0x10
	flagGroup      = 0x20 // draft-ietf-core-oscore-groupcomm-28, Section 4
	flagReserved   = 0xc0
)

const (
	// maxPIV is the length of the longest Partial IV (RFC 8613, Section 6.1:
	// 6 and 7 are reserved).
	maxPIV = 5
	// maxOption is the length of the longest value of the option that coap takes.
	maxOption = 255
)

// Option is the value of the OSCORE option (RFC 8613, Section 6.1). A parameter
// that is nil is absent; kid and kid context may be present and empty.
type Option struct {
	PIV        []byte // 1 to 5 bytes, without leading zeros; zero is one byte
	KIDContext []byte // up to 255 bytes
	KID        []byte
	Group      bool // Group Flag: the message is in group mode
}

// Append writes the option value behind b.
func (o *Option) Append(b []byte) ([]byte, error) {
	if o.PIV != nil && !validPIV(o.PIV) {
		return b, fmt.Errorf("oscore: Partial IV of %d bytes, or with leading zeros", len(o.PIV))
	}
	flags := byte(len(o.PIV))
	n := 1 + len(o.PIV)
	if o.KIDContext != nil {
		flags |= flagKIDContext
		n += 1 + len(o.KIDContext)
	}
	if o.KID != nil {
		flags |= flagKID
		n += len(o.KID)
	}
	if o.Group {
		flags |= flagGroup
	}
	if n > maxOption {
		return b, fmt.Errorf("oscore: option value of %d bytes", n)
	}
	// Section 6.1: when the flags are all zero the option is empty.
	if flags == 0 {
		return b, nil
	}
	b = append(b, flags)
	b = append(b, o.PIV...)
	if o.KIDContext != nil {
		b = append(b, byte(len(o.KIDContext)))
		b = append(b, o.KIDContext...)
	}
	return append(b, o.KID...), nil
}

var (
	errOptionFlags    = errors.New("oscore: reserved bits in the OSCORE option")
	errOptionZero     = errors.New("oscore: OSCORE option of zero flags that is not empty")
	errOptionShort    = errors.New("oscore: OSCORE option is cut off")
	errOptionTrailing = errors.New("oscore: OSCORE option has bytes that belong to nothing")
	errOptionPIV      = errors.New("oscore: Partial IV with leading zeros")
)

// DecodeOption reads the value of an OSCORE option. What it returns refers to b,
// and encodes to b again, byte for byte.
func DecodeOption(b []byte) (Option, error) {
	var o Option
	if len(b) == 0 {
		return o, nil
	}
	flags := b[0]
	n := int(flags & flagPIV)
	switch {
	// Section 6.1: with a reserved bit set the message is malformed.
	case flags&flagReserved != 0 || n > maxPIV:
		return Option{}, errOptionFlags
	case flags == 0:
		return Option{}, errOptionZero
	}
	b = b[1:]
	if len(b) < n {
		return Option{}, errOptionShort
	}
	if n > 0 {
		if o.PIV = b[:n:n]; !validPIV(o.PIV) {
			return Option{}, errOptionPIV
		}
		b = b[n:]
	}
	if flags&flagKIDContext != 0 {
		if len(b) == 0 || len(b)-1 < int(b[0]) {
			return Option{}, errOptionShort
		}
		s := int(b[0])
		o.KIDContext, b = b[1:1+s:1+s], b[1+s:]
	}
	if flags&flagKID != 0 {
		o.KID = b[:len(b):len(b)]
	} else if len(b) > 0 {
		return Option{}, errOptionTrailing
	}
	o.Group = flags&flagGroup != 0
	return o, nil
}

// validPIV says whether b is a Partial IV in its only form (RFC 8613, Section 5).
func validPIV(b []byte) bool {
	return len(b) >= 1 && len(b) <= maxPIV && (b[0] != 0 || len(b) == 1)
}

// appendPIV writes the Partial IV of a sequence number below 2^40: in network
// byte order without leading zeros, one zero byte for zero (RFC 8613, Section 5).
func appendPIV(b []byte, n uint64) []byte {
	switch {
	case n < 1<<8:
		return append(b, byte(n))
	case n < 1<<16:
		return append(b, byte(n>>8), byte(n))
	case n < 1<<24:
		return append(b, byte(n>>16), byte(n>>8), byte(n))
	case n < 1<<32:
		return append(b, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	}
	return append(b, byte(n>>32), byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
}

// pivNumber is the sequence number that a Partial IV stands for.
func pivNumber(piv []byte) uint64 {
	var n uint64
	for _, c := range piv {
		n = n<<8 | uint64(c)
	}
	return n
}
