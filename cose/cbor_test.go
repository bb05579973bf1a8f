package cose

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math"
	"strings"
	"testing"
)

// Input that is not exactly one strict data item, and what reads it.
func TestStrict(t *testing.T) {
	for _, tc := range []struct{ name, hex string }{
		{"empty", ""},
		{"duplicate key", "a201010102"},
		{"duplicate key in another length", "a20101180102"},
		{"duplicate text key", "a26161016161f6"},
		{"indefinite map", "bf0101ff"},
		{"indefinite string", "a1015f4101ff"},
		{"trailing byte", "a1010100"},
		{"byte string as key", "a1410101"},
		{"float as key", "a1f93c0001"},
		{"Boolean as key", "a1f501"},
		{"null as key", "a1f601"},
		{"array as key", "a1800101"},
		{"bignum as key", "a1c2490100000000000000000001"},
		{"key out of range", "a11bffffffffffffffff01"},
		{"text key not UTF-8", "a161ff01"},
		{"not a map", "8101"},
		{"tagged", "c1a10101"},
		{"nested too deep", "a101" + strings.Repeat("81", 20) + "00"},
		{"truncated", "a101"},
	} {
		if m, err := DecodeMap(unhex(t, tc.hex)); err == nil {
			t.Errorf("%s: decoded %v", tc.name, m)
		}
	}
}

// Long arrays are for files only, and bounded there too.
func TestUnmarshalLong(t *testing.T) {
	var out []int64
	for _, tc := range []struct {
		n           int
		short, long bool
	}{{maxElements, true, true}, {maxElements + 1, false, true}, {maxLong, false, true}, {maxLong + 1, false, false}} {
		b := MustMarshal(make([]int64, tc.n))
		if err := Unmarshal(b, &out); (err == nil) != tc.short {
			t.Errorf("%d elements: %v", tc.n, err)
		}
		if err := UnmarshalLong(b, &out); (err == nil) != tc.long {
			t.Errorf("%d elements of a file: %v", tc.n, err)
		}
	}
	if err := UnmarshalLong([]byte{0x9f, 1, 0xff}, &out); err == nil {
		t.Error("an array of indefinite length")
	}
}

func TestItems(t *testing.T) {
	m, err := DecodeMap(unhex(t, "ab"+
		"01"+"1bffffffffffffffff"+
		"02"+"3b7fffffffffffffff"+
		"03"+"3b8000000000000000"+
		"04"+"40"+
		"05"+"f6"+
		"06"+"820102"+
		"07"+"61ff"+
		"08"+"f5"+
		"09"+"c101"+
		"6161"+"00"+
		"20"+"f90000"))
	if err != nil {
		t.Fatal(err)
	}
	if len(m) != 10 {
		t.Errorf("%d entries", len(m))
	}
	if v, ok, err := m.Uint(1); v != math.MaxUint64 || !ok || err != nil {
		t.Error(v, ok, err)
	}
	if _, ok, err := m.Int(1); !ok || err == nil {
		t.Error("2^64-1 fits int64")
	}
	if v, ok, err := m.Int(2); v != math.MinInt64 || !ok || err != nil {
		t.Error(v, ok, err)
	}
	if _, _, err := m.Int(3); err == nil {
		t.Error("-2^63-1 fits int64")
	}
	if v, ok, err := m.Bytes(4); v == nil || len(v) != 0 || !ok || err != nil {
		t.Error("an empty byte string must not be nil", v, ok, err)
	}
	if v, ok, err := m.Bytes(99); v != nil || ok || err != nil {
		t.Error("absent", v, ok, err)
	}
	if _, _, err := m.Bytes(6); err == nil {
		t.Error("an array of integers is no byte string")
	}
	if _, _, err := m.Text(7); err == nil {
		t.Error("not UTF-8")
	}
	if v, _, err := m.Bool(8); !v || err != nil {
		t.Error(v, err)
	}
	if _, _, err := m.Int(9); err == nil {
		t.Error("a tagged integer is no integer")
	}
	if _, _, err := m.Int(-1); err == nil {
		t.Error("a float is no integer")
	}
	for _, err := range []error{second(m.Int(5)), second(m.Bytes(5)), second(m.Text(5)), second(m.Bool(5)), second(m.Array(5)), second(m.Map(5)), second(m.Uint(2))} {
		if err == nil {
			t.Error("null or a negative value is taken for something else")
		}
	}
	if !m.IsNull(5) || m.IsNull(99) {
		t.Error("null")
	}
}

func second[T any](_ T, _ bool, err error) error { return err }

// RFC 8949, Section 4.2.1.
func TestDeterministic(t *testing.T) {
	got := MustMarshal(map[int64]any{24: 1, -1: []byte(nil), 10: "a", 100: []string(nil), -25: nil})
	if want := unhex(t, "a5"+"0a6161"+"181801"+"186480"+"2040"+"3818f6"); !bytes.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
}

func TestTag(t *testing.T) {
	b := AppendTag(TagCWT, AppendTag(TagSign1, []byte{0x80}))
	if tag, rest, ok := DecodeTag(b); tag != TagCWT || !ok || !bytes.Equal(rest, []byte{0xd2, 0x80}) {
		t.Error(tag, rest, ok)
	}
	if _, rest, ok := DecodeTag([]byte{0x80}); ok || !bytes.Equal(rest, []byte{0x80}) {
		t.Error("no tag there")
	}
	if _, _, ok := DecodeTag([]byte{0xd2}); ok {
		t.Error("a tag without content")
	}
}

// libraryMap is DecodeMap by reflection.
func libraryMap(b []byte) (Map, error) {
	var all map[any]Item
	if err := Unmarshal(b, &all); err != nil {
		return nil, err
	}
	if b[0]>>5 != majorMap {
		return nil, errors.New("no map")
	}
	m := Map{}
	for k, v := range all {
		switch k := k.(type) {
		case int64:
			m[k] = v
		case string:
		default:
			return nil, fmt.Errorf("key %T", k)
		}
	}
	return m, nil
}

func FuzzDecodeMap(f *testing.F) {
	f.Add([]byte{0xa1, 0x01, 0x40})
	f.Add([]byte{0xa2, 0x01, 0x81, 0xf6, 0x61, 0x61, 0xa0})
	f.Add([]byte{0xa2, 0x01, 0xf6, 0x18, 0x01, 0xf6})
	f.Add([]byte{0xa2, 0x61, 0x61, 0x01, 0x78, 0x01, 0x61, 0x02})
	f.Add([]byte{0xa1, 0x3b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x00})
	f.Add([]byte{0xa2, 0x20, 0xc1, 0xfb, 0, 0, 0, 0, 0, 0, 0, 0, 0x00, 0xa1, 0x40, 0x82, 0x01, 0x02})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeMap(b)
		want, wantErr := libraryMap(b)
		if (err == nil) != (wantErr == nil) || !maps.EqualFunc(m, want, func(a, b Item) bool { return bytes.Equal(a, b) }) {
			t.Fatalf("%x: %x, %v; the library says %x, %v", b, m, err, want, wantErr)
		}
		if err != nil {
			return
		}
		for k := range m {
			_, _, _ = m.Int(k)
			_, _, _ = m.Uint(k)
			_, _, _ = m.Text(k)
			_, _, _ = m.Bool(k)
			_, _, _ = m.Map(k)
			if items, _, err := m.Array(k); err == nil && items == nil {
				t.Error("nil array")
			}
			if v, _, err := m.Bytes(k); err == nil && v == nil {
				t.Error("nil byte string")
			}
			if err := Check(m[k]); err != nil {
				t.Errorf("label %d: %v", k, err)
			}
		}
		// The library refuses to encode some tags that it decodes unseen.
		if again, err := Marshal(m); err == nil {
			if _, err := DecodeMap(again); err != nil {
				t.Error(err)
			}
		}
	})
}
