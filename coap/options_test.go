package coap

import (
	"fmt"
	"reflect"
	"slices"
	"testing"
)

func TestOptionsStaySorted(t *testing.T) {
	var o Options
	o.AddString(UriQuery, "a=1")
	o.SetPath("x", "y/z", "")
	o.SetContentFormat(CBOR)
	o.AddString(UriQuery, "b")
	o.SetUint(MaxAge, 0)
	o.SetUint(MaxAge, 70000)
	want := Options{
		{UriPath, []byte("x")}, {UriPath, []byte("y/z")}, {UriPath, []byte{}}, {ContentFormatOption, []byte{60}},
		{MaxAge, []byte{1, 0x11, 0x70}}, {UriQuery, []byte("a=1")}, {UriQuery, []byte("b")},
	}
	if !reflect.DeepEqual(o, want) {
		t.Errorf("got %v", o)
	}
	if f, ok := o.ContentFormat(); !ok || f != CBOR {
		t.Errorf("Content-Format %v, %v", f, ok)
	}
	if v, ok := o.Uint(MaxAge); !ok || v != 70000 {
		t.Errorf("Max-Age %v, %v", v, ok)
	}
	if q := o.Queries(); !slices.Equal(q, []string{"a=1", "b"}) {
		t.Errorf("queries %q", q)
	}
	before := slices.Clone(o)
	other := o
	other.Remove(UriPath)
	if !reflect.DeepEqual(o, before) || other.Has(UriPath) {
		t.Error("Remove changed a slice that was given away")
	}
	if _, ok := o.Uint(Size1); ok {
		t.Error("Uint of an absent option")
	}
	if _, ok := (Options{{Size1, make([]byte, 5)}}).Uint(Size1); ok {
		t.Error("Uint of five bytes")
	}
}

// Copies of a slice with room to grow do not write into each other.
func TestOptionsCopiesAreApart(t *testing.T) {
	base := append(make(Options, 0, 8), Option{UriPath, []byte("x")})
	a, b := base, base
	a.SetUint(Size2, 1)
	b.SetUint(Size2, 2)
	b.SetUint(ETag, 3)
	if v, _ := a.Uint(Size2); v != 1 || !slices.Equal(base.Path(), []string{"x"}) || len(base) != 1 {
		t.Errorf("got %v and %v", a, base)
	}
}

func TestUint(t *testing.T) {
	for _, v := range []uint32{0, 1, 255, 256, 65535, 65536, 1<<24 - 1, 1 << 24, 1<<32 - 1} {
		var o Options
		o.SetUint(Size1, v)
		got, ok := o.Uint(Size1)
		if b, _ := o.Get(Size1); !ok || got != v || len(b) > 0 && b[0] == 0 {
			t.Errorf("%d: %d, %x", v, got, b)
		}
	}
}

func TestBlockOption(t *testing.T) {
	for _, b := range []Block{{0, false, 0}, {0, true, 6}, {1, false, 2}, {1<<20 - 1, true, 6}} {
		var o Options
		o.SetBlock(Block1, b)
		got, err := o.Block(Block1)
		if err != nil || *got != b {
			t.Errorf("%+v: %+v, %v", b, got, err)
		}
	}
	for _, raw := range [][]byte{{7}, {0, 0, 0, 1}} {
		if _, err := (Options{{Block2, raw}}).Block(Block2); err == nil {
			t.Errorf("%x is no block", raw)
		}
	}
	if b, err := Options(nil).Block(Block2); b != nil || err != nil {
		t.Error("absent block")
	}
	if b := (Block{Num: 3, SZX: 2}); b.Size() != 64 || b.Offset() != 192 {
		t.Errorf("size %d, offset %d", b.Size(), b.Offset())
	}
}

// RFC 7252, Section 5.4.6, by numbers of which the RFCs say it.
func TestOptionProperties(t *testing.T) {
	for _, c := range []struct {
		id                           OptionID
		critical, unsafe, noCacheKey bool
	}{
		{IfMatch, true, false, false}, {UriHost, true, true, false}, {ETag, false, false, false},
		{ObserveOption, false, true, false}, {MaxAge, false, true, false}, {OSCOREOption, true, false, false},
		{Block2, true, true, false}, {Size1, false, false, true}, {Size2, false, false, true},
		{Echo, false, false, true}, {NoResponse, false, true, false}, {RequestTag, false, false, false}, {HopLimit, false, false, false},
	} {
		if c.id.Critical() != c.critical || c.id.Unsafe() != c.unsafe || c.id.NoCacheKey() != c.noCacheKey {
			t.Errorf("option %d: %v %v %v", c.id, c.id.Critical(), c.id.Unsafe(), c.id.NoCacheKey())
		}
	}
}

func TestDropUnusable(t *testing.T) {
	o := Options{{ETag, make([]byte, 9)}, {ETag, []byte{1}}, {UriPath, []byte("x")}, {MaxAge, []byte{1}}, {MaxAge, []byte{2}}, {2048, nil}}
	o.DropUnusable()
	want := Options{{ETag, []byte{1}}, {UriPath, []byte("x")}, {MaxAge, []byte{1}}, {2048, nil}}
	if !reflect.DeepEqual(o, want) {
		t.Errorf("got %v", o)
	}
}

func TestCodes(t *testing.T) {
	for c, want := range map[Code]string{GET: "GET", IPATCH: "iPATCH", Content: "2.05", Continue: "2.31", UnprocessableEntity: "4.22",
		TooManyRequests: "4.29", HopLimitReached: "5.08", Empty: "0.00", 8: "0.08", Conflict: "4.09", ProxyingNotSupported: "5.05"} {
		if got := c.String(); got != want {
			t.Errorf("%#x: %s, want %s", uint8(c), got, want)
		}
	}
	for c := range 256 {
		code := Code(c)
		class := fmt.Sprint(c >> 5)
		if code.IsSuccess() != (class == "2") || code.IsRequest() != (class == "0" && c != 0) || code.IsResponse() != (class == "2" || class == "4" || class == "5") {
			t.Errorf("code %v", code)
		}
	}
}
