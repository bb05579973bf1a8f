package groupcomm

import (
	"errors"
	"fmt"
	"math"

	"github.com/seed4911071e/groupgate/cose"
)

// fields reads the members of a map and remembers the first fault, so that a
// decoder reads like the list of its members. A member is optional unless it is
// asked for with need.
type fields struct {
	what string
	m    cose.Map
	err  error
}

func decodeFields(what string, b []byte) *fields {
	m, err := cose.DecodeMap(b)
	f := &fields{what: what, m: m}
	f.fail(err)
	return f
}

func (f *fields) fail(err error) {
	if f.err == nil && err != nil {
		f.err = fmt.Errorf("%s: %w", f.what, err)
	}
}

func (f *fields) failf(format string, args ...any) { f.fail(fmt.Errorf(format, args...)) }

// need fails unless all labels are there.
func (f *fields) need(labels ...int64) {
	for _, label := range labels {
		if !f.m.Has(label) {
			f.failf("no label %d", label)
		}
	}
}

func (f *fields) bytes(label int64) []byte {
	v, _, err := f.m.Bytes(label)
	f.fail(err)
	return v
}

func (f *fields) text(label int64) string {
	v, _, err := f.m.Text(label)
	f.fail(err)
	return v
}

func (f *fields) int(label int64) int64 {
	v, _, err := f.m.Int(label)
	f.fail(err)
	return v
}

func (f *fields) uint(label int64) uint64 {
	v, _, err := f.m.Uint(label)
	f.fail(err)
	return v
}

// seconds reads an unsigned integer into the signed type that clocks use.
func (f *fields) seconds(label int64) int64 {
	v := f.uint(label)
	if v > math.MaxInt64 {
		f.failf("label %d: integer out of range", label)
	}
	return int64(v)
}

// fixed fails unless the label is there with exactly this value.
func (f *fields) fixed(label, want int64) {
	f.need(label)
	if v := f.int(label); f.err == nil && v != want {
		f.failf("label %d: value %d is not supported", label, v)
	}
}

// array reads an optional array, nil when absent and not nil when present.
func array[T any](f *fields, label int64, item func([]byte) (T, error)) []T {
	if !f.m.Has(label) {
		return nil
	}
	v, err := decodeArray(f.m[label], item)
	if err != nil {
		f.failf("label %d: %w", label, err)
	}
	return v
}

func decodeArray[T any](b []byte, item func([]byte) (T, error)) ([]T, error) {
	items, err := cose.DecodeArray(b)
	if err != nil {
		return nil, err
	}
	out := make([]T, 0, len(items))
	for i, raw := range items {
		v, err := item(raw)
		if err != nil {
			return nil, fmt.Errorf("element %d: %w", i, err)
		}
		out = append(out, v)
	}
	return out, nil
}

func asSenderID(b []byte) (SenderID, error) { return cose.AsBytes(b) }

func asGid(b []byte) (Gid, error) { return cose.AsBytes(b) }

// asRoles reads a Tperm.
func asRoles(b []byte) (Roles, error) {
	v, err := cose.AsUint(b)
	if err != nil {
		return 0, err
	}
	if v > math.MaxUint32 {
		return 0, errors.New("roles out of range")
	}
	return Roles(v), nil
}

// asCapabilities reads an array of capabilities, all of them integers.
func asCapabilities(b []byte) ([]int64, error) {
	v, err := decodeArray(b, cose.AsInt)
	if err == nil && len(v) > maxCapabilities {
		return nil, errors.New("too many capabilities")
	}
	return v, err
}

// asName reads a text string of bounded length.
func asName(b []byte) (string, error) {
	v, err := cose.AsText(b)
	if err == nil && len(v) > maxNameLen {
		return "", errors.New("name is too long")
	}
	return v, err
}

// putBytes adds a byte string unless it is nil, that is absent.
func putBytes(m map[int64]any, label int64, v []byte) {
	if v != nil {
		m[label] = v
	}
}

// putInt adds an integer unless it is 0, that is absent.
func putInt(m map[int64]any, label, v int64) {
	if v != 0 {
		m[label] = v
	}
}
