package cose

import (
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// Limits on what is read. A message fits one CoAP body (64 KiB), so these only
// keep a hostile one from costing more than its size.
const (
	maxNesting  = 16
	maxElements = 16384
	maxLong     = 1 << 18 // elements, see UnmarshalLong
	maxPairs    = 1024
)

var (
	encMode = mustEncMode()
	decMode = mustDecMode(maxElements)
	// longMode is for files that this program wrote.
	longMode = mustDecMode(maxLong)
)

func mustEncMode() cbor.EncMode {
	// RFC 8949, Section 4.2.1: core deterministic encoding. An absent value is
	// left out by the caller, so a nil slice inside an array is an empty string
	// and not null.
	opts := cbor.CoreDetEncOptions()
	opts.NilContainers = cbor.NilContainerAsEmpty
	m, err := opts.EncMode()
	if err != nil {
		panic("cose: internal error: " + err.Error())
	}
	return m
}

func mustDecMode(elements int) cbor.DecMode {
	m, err := cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		IndefLength:      cbor.IndefLengthForbidden,
		IntDec:           cbor.IntDecConvertSignedOrFail,
		MaxNestedLevels:  maxNesting,
		MaxArrayElements: elements,
		MaxMapPairs:      maxPairs,
		UTF8:             cbor.UTF8RejectInvalid,
	}.DecMode()
	if err != nil {
		panic("cose: internal error: " + err.Error())
	}
	return m
}

// Marshal encodes v in the core deterministic encoding of RFC 8949, Section
// 4.2.1. A nil slice or map is encoded as an empty one, never as null.
func Marshal(v any) ([]byte, error) { return encMode.Marshal(v) }

// MustMarshal is [Marshal] for values that this program built; it panics where
// that fails.
func MustMarshal(v any) []byte {
	b, err := encMode.Marshal(v)
	if err != nil {
		panic("cose: internal error: " + err.Error())
	}
	return b
}

// Unmarshal decodes exactly one data item: no duplicate keys, no indefinite
// lengths, no trailing bytes, no invalid UTF-8, bounded nesting and sizes.
//
// Into Go integers and byte slices it is as lenient as the library below (null
// leaves a value alone, an array of integers fills a []byte); for input from
// the network use [DecodeMap], [DecodeArray] and the As functions, which check
// the type as well.
func Unmarshal(b []byte, v any) error { return decMode.Unmarshal(b, v) }

// UnmarshalLong is [Unmarshal] for arrays of up to 262,144 elements: for files
// whose origin was verified before, never for input from the network.
func UnmarshalLong(b []byte, v any) error { return longMode.Unmarshal(b, v) }

// Check reports whether b is exactly one data item within the limits. It does
// not look for duplicate keys.
func Check(b []byte) error {
	if err := decMode.Wellformed(b); err != nil {
		return fmt.Errorf("not one well-formed CBOR data item: %w", err)
	}
	return nil
}
