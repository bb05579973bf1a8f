package oscore

import (
	"bytes"
	"encoding/hex"
	"reflect"
	"strings"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var optionForms = []struct {
	name string
	hex  string
	o    Option
}{
	// RFC 8613, Section 6.3.
	{"request", "090525", Option{PIV: []byte{5}, KID: []byte{0x25}}},
	{"request, empty kid", "0900", Option{PIV: []byte{0}, KID: []byte{}}},
	{"request with kid context", "19050344616c25", Option{PIV: []byte{5}, KIDContext: []byte("Dal"), KID: []byte{0x25}}},
	{"response", "", Option{}},
	{"response with Partial IV", "0107", Option{PIV: []byte{7}}},
	// draft-ietf-core-oscore-groupcomm-28, Section 4.
	{"group request", "39050344616c25", Option{PIV: []byte{5}, KIDContext: []byte("Dal"), KID: []byte{0x25}, Group: true}},
	{"group response", "2852", Option{KID: []byte{0x52}, Group: true}},
	{"group response of a new group", "390002dd1252", Option{PIV: []byte{0}, KIDContext: []byte{0xdd, 0x12}, KID: []byte{0x52}, Group: true}},
	{"longest Partial IV", "05ffffffffff", Option{PIV: []byte{255, 255, 255, 255, 255}}},
	{"empty kid context", "1000", Option{KIDContext: []byte{}}},
}

func TestOption(t *testing.T) {
	for _, c := range optionForms {
		t.Run(c.name, func(t *testing.T) {
			got, err := DecodeOption(unhex(t, c.hex))
			if err != nil || !reflect.DeepEqual(got, c.o) {
				t.Errorf("got %+v, %v, want %+v", got, err, c.o)
			}
			b, err := c.o.Append([]byte{0xee})
			if err != nil || hex.EncodeToString(b) != "ee"+c.hex {
				t.Errorf("encoded %x, %v, want ee%s", b, err, c.hex)
			}
		})
	}
}

// Cut anywhere before the kid, which reaches to the end, an option is no option.
func TestOptionPrefixes(t *testing.T) {
	for _, c := range optionForms {
		whole := unhex(t, c.hex)
		for n := 1; n < len(whole)-len(c.o.KID); n++ {
			if got, err := DecodeOption(whole[:n]); err == nil {
				t.Errorf("%s: %x is read as %+v", c.name, whole[:n], got)
			}
		}
	}
}

func TestOptionRefused(t *testing.T) {
	for _, c := range []struct{ name, hex string }{
		{"reserved bit 0", "8900"},
		{"reserved bit 1", "4900"},
		{"Partial IV of 6 bytes", "0e010203040506"},
		{"Partial IV of 7 bytes", "0f01020304050607"},
		{"leading zero", "0a0001"},
		{"two zeros", "020000"},
		{"zero flags in a byte", "00"},
		{"bytes behind the Partial IV", "010000"},
		{"bytes behind the kid context", "1001aabb"},
	} {
		if got, err := DecodeOption(unhex(t, c.hex)); err == nil {
			t.Errorf("%s: read as %+v", c.name, got)
		}
	}
	for _, o := range []Option{
		{PIV: []byte{}}, {PIV: []byte{0, 1}}, {PIV: make([]byte, 6)},
		{KIDContext: make([]byte, 254)},
		{PIV: []byte{1}, KID: []byte(strings.Repeat("k", 254))},
	} {
		if b, err := o.Append(nil); err == nil {
			t.Errorf("%+v is written as %x", o, b)
		}
	}
}

func TestPIV(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "00", 1: "01", 255: "ff", 256: "0100", 1<<16 - 1: "ffff", 1 << 16: "010000", 1 << 24: "01000000",
		1 << 32: "0100000000", maxSequence - 1: "ffffffffff",
	} {
		b := appendPIV(nil, n)
		if hex.EncodeToString(b) != want || !validPIV(b) || pivNumber(b) != n {
			t.Errorf("%d is %x, which is %d; want %s", n, b, pivNumber(b), want)
		}
	}
}

func FuzzOption(f *testing.F) {
	for _, c := range optionForms {
		f.Add(unhex(f, c.hex))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := DecodeOption(b)
		if err != nil {
			return
		}
		again, err := o.Append(nil)
		if len(b) <= maxOption && (err != nil || !bytes.Equal(again, b)) {
			t.Errorf("%x is written as %x, %v", b, again, err)
		}
	})
}
