package cose

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"unicode/utf8"

	"github.com/fxamacker/cbor/v2"
)

// Item is one encoded data item.
type Item = cbor.RawMessage

// Major types of CBOR (RFC 8949, Section 3.1).
const (
	majorUint = iota
	majorNegative
	majorBytes
	majorText
	majorArray
	majorMap
	majorTag
	majorSimple
)

const (
	itemFalse = 0xf4
	itemTrue  = 0xf5
	itemNull  = 0xf6

	itemFloat16 = 0xf9
	itemFloat64 = 0xfb
)

// head reads the head of an item that Check accepted: major type, argument and
// length of the head.
func head(b []byte) (major byte, arg uint64, n int) {
	major, info := b[0]>>5, b[0]&0x1f
	switch info {
	case 24:
		return major, uint64(b[1]), 2
	case 25:
		return major, uint64(binary.BigEndian.Uint16(b[1:])), 3
	case 26:
		return major, uint64(binary.BigEndian.Uint32(b[1:])), 5
	case 27:
		return major, binary.BigEndian.Uint64(b[1:]), 9
	}
	return major, uint64(info), 1
}

// AsInt reads an integer.
func AsInt(b []byte) (int64, error) {
	if err := Check(b); err != nil {
		return 0, err
	}
	return asInt(b)
}

func asInt(b []byte) (int64, error) {
	major, arg, _ := head(b)
	switch {
	case major > majorNegative:
		return 0, errors.New("integer expected")
	case arg > math.MaxInt64:
		return 0, errors.New("integer out of range")
	case major == majorNegative:
		return -1 - int64(arg), nil
	}
	return int64(arg), nil
}

// AsUint reads an unsigned integer.
func AsUint(b []byte) (uint64, error) {
	if err := Check(b); err != nil {
		return 0, err
	}
	return asUint(b)
}

func asUint(b []byte) (uint64, error) {
	major, arg, _ := head(b)
	if major != majorUint {
		return 0, errors.New("unsigned integer expected")
	}
	return arg, nil
}

// AsBytes reads a byte string. The result is a copy and never nil.
func AsBytes(b []byte) ([]byte, error) {
	if err := Check(b); err != nil {
		return nil, err
	}
	return asBytes(b)
}

func asBytes(b []byte) ([]byte, error) {
	major, _, n := head(b)
	if major != majorBytes {
		return nil, errors.New("byte string expected")
	}
	return append([]byte{}, b[n:]...), nil
}

// AsText reads a text string.
func AsText(b []byte) (string, error) {
	if err := Check(b); err != nil {
		return "", err
	}
	return asText(b)
}

func asText(b []byte) (string, error) {
	major, _, n := head(b)
	if major != majorText {
		return "", errors.New("text string expected")
	}
	if !utf8.Valid(b[n:]) {
		return "", errors.New("text string is not UTF-8")
	}
	return string(b[n:]), nil
}

// AsBool reads true or false.
func AsBool(b []byte) (bool, error) {
	if len(b) != 1 || (b[0] != itemTrue && b[0] != itemFalse) {
		return false, errors.New("true or false expected")
	}
	return b[0] == itemTrue, nil
}

// IsNull reports whether b is the simple value null.
func IsNull(b []byte) bool { return len(b) == 1 && b[0] == itemNull }

// IsText reports whether b, one well-formed item, is a text string.
func IsText(b []byte) bool { return len(b) > 0 && b[0]>>5 == majorText }

// IsArray reports whether b, one well-formed item, is an array.
func IsArray(b []byte) bool { return len(b) > 0 && b[0]>>5 == majorArray }

// itemLen is the length of the first item in b, which Check accepted as part of
// a whole.
func itemLen(b []byte) int {
	n := 0
	for left := uint64(1); left > 0; left-- {
		major, arg, size := head(b[n:])
		n += size
		switch major {
		case majorBytes, majorText:
			n += int(arg)
		case majorArray:
			left += arg
		case majorMap:
			left += 2 * arg
		case majorTag:
			left++
		}
	}
	return n
}

// cut takes the first item off b, which Check accepted as part of a whole. It
// fails when the item has a tag over content that the tag is not for.
func cut(b []byte) (first Item, rest []byte, err error) {
	n := itemLen(b)
	if b[0]>>5 == majorTag {
		err = checkTags(b)
	}
	return b[:n:n], b[n:], err
}

// checkTags looks at the tags around an item that Check accepted: date text,
// seconds since 1970 and big numbers (RFC 8949, Sections 3.4.1 to 3.4.3).
func checkTags(b []byte) error {
	for {
		major, tag, n := head(b)
		if major != majorTag {
			return nil
		}
		b = b[n:]
		major, ok := b[0]>>5, true
		switch tag {
		case 0:
			ok = major == majorText
		case 1:
			ok = major <= majorNegative || b[0] >= itemFloat16 && b[0] <= itemFloat64
		case 2, 3:
			ok = major == majorBytes
		}
		if !ok {
			return fmt.Errorf("tag %d is not for its content", tag)
		}
	}
}

// DecodeArray reads an array into its items, which share no memory with b.
func DecodeArray(b []byte) ([]Item, error) {
	if err := Check(b); err != nil {
		return nil, err
	}
	return splitArray(bytes.Clone(b))
}

// splitArray is DecodeArray of a checked item; the result shares its memory.
func splitArray(b []byte) ([]Item, error) {
	major, count, n := head(b)
	if major != majorArray {
		return nil, errors.New("array expected")
	}
	b = b[n:]
	items := make([]Item, count)
	for i := range items {
		var err error
		if items[i], b, err = cut(b); err != nil {
			return nil, err
		}
	}
	return items, nil
}

// DecodeTag takes off one tag. ok is false when b is not one well-formed item
// or carries no tag; content is then b.
func DecodeTag(b []byte) (tag uint64, content []byte, ok bool) {
	if Check(b) != nil {
		return 0, b, false
	}
	major, arg, n := head(b)
	if major != majorTag {
		return 0, b, false
	}
	return arg, b[n:], true
}

// AppendTag puts a tag in front of an encoded item.
func AppendTag(tag uint64, content []byte) []byte {
	return MustMarshal(cbor.RawTag{Number: tag, Content: content})
}

// Map is a decoded map with integer keys, each entry one item that [Check]
// accepted. Entries whose key is a text string are left out: no message that we
// read gives them a meaning.
type Map map[int64]Item

// DecodeMap reads a map whose keys are integers and text strings. Any other
// kind of key and any duplicate is an error. The entries share no memory with b.
func DecodeMap(b []byte) (Map, error) {
	if err := Check(b); err != nil {
		return nil, err
	}
	return splitMap(bytes.Clone(b))
}

// splitMap is DecodeMap of a checked item; the result shares its memory. Every
// message is taken apart here, so it is done without reflection.
func splitMap(b []byte) (Map, error) {
	major, pairs, n := head(b)
	if major != majorMap {
		return nil, errors.New("map expected")
	}
	b = b[n:]
	m := make(Map, pairs)
	var names map[string]bool
	for range pairs {
		var key, value Item
		var err error
		if key, b, err = cut(b); err != nil {
			return nil, err
		}
		if value, b, err = cut(b); err != nil {
			return nil, err
		}
		switch major, _, _ := head(key); major {
		case majorUint, majorNegative:
			k, err := asInt(key)
			if err != nil {
				return nil, fmt.Errorf("map key: %w", err)
			}
			if m.Has(k) {
				return nil, fmt.Errorf("map key %d twice", k)
			}
			m[k] = value
		case majorText:
			k, err := asText(key)
			if err != nil {
				return nil, fmt.Errorf("map key: %w", err)
			}
			if names[k] {
				return nil, errors.New("a text map key twice")
			}
			if names == nil {
				names = make(map[string]bool)
			}
			names[k] = true
		default:
			return nil, errors.New("map key is neither an integer nor a text string")
		}
	}
	return m, nil
}

// Has reports whether the map has the key.
func (m Map) Has(key int64) bool {
	_, ok := m[key]
	return ok
}

// IsNull reports whether the key is there with the value null.
func (m Map) IsNull(key int64) bool { return IsNull(m[key]) }

// Bytes reads a byte string: not nil when present.
func (m Map) Bytes(key int64) (v []byte, present bool, err error) { return get(m, key, asBytes) }

// Int reads an integer.
func (m Map) Int(key int64) (v int64, present bool, err error) { return get(m, key, asInt) }

// Uint reads an unsigned integer.
func (m Map) Uint(key int64) (v uint64, present bool, err error) { return get(m, key, asUint) }

// Text reads a text string.
func (m Map) Text(key int64) (v string, present bool, err error) { return get(m, key, asText) }

// Bool reads true or false.
func (m Map) Bool(key int64) (v, present bool, err error) { return get(m, key, AsBool) }

// Array reads an array into its items.
func (m Map) Array(key int64) (v []Item, present bool, err error) { return get(m, key, splitArray) }

// Map reads a map.
func (m Map) Map(key int64) (v Map, present bool, err error) { return get(m, key, splitMap) }

func get[T any](m Map, key int64, as func([]byte) (T, error)) (v T, present bool, err error) {
	raw, ok := m[key]
	if !ok {
		return v, false, nil
	}
	if v, err = as(raw); err != nil {
		return v, true, fmt.Errorf("label %d: %w", key, err)
	}
	return v, true, nil
}

// concat joins byte strings into a new slice.
func concat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
