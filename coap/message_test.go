package coap

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"slices"
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

var messages = []struct {
	name string
	hex  string
	m    Message
}{
	{"ping", "40000001", Message{ID: 1}},
	{"GET with path", "44015d1f00003974396c6f63616c686f737483747631", Message{
		// RFC 8613, Appendix C.4
		Code: GET, ID: 0x5d1f, Token: []byte{0, 0, 0x39, 0x74},
		Options: Options{{UriHost, []byte("localhost")}, {UriPath, []byte("tv1")}},
	}},
	{"content", "6145000108c0ff68656c6c6f", Message{
		Type: Acknowledgement, Code: Content, ID: 1, Token: []byte{8},
		Options: Options{{ContentFormatOption, []byte{}}}, Payload: []byte("hello"),
	}},
	{"extended delta and length", "5102ffff07dd0b03" + "61616161616161616161616161616161", Message{
		Type: NonConfirmable, Code: POST, ID: 0xffff, Token: []byte{7},
		Options: Options{{24, bytes.Repeat([]byte("a"), 16)}},
	}},
}

func TestMessage(t *testing.T) {
	for _, c := range messages {
		t.Run(c.name, func(t *testing.T) {
			got, err := DecodeMessage(unhex(t, c.hex))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, &c.m) {
				t.Errorf("got %+v, want %+v", got, c.m)
			}
			b, err := c.m.MarshalBinary()
			if err != nil || hex.EncodeToString(b) != c.hex {
				t.Errorf("encoded %x, %v, want %s", b, err, c.hex)
			}
		})
	}
}

// RFC 7252, Section 3.1: the borders between the short and the extended forms.
func TestOptionExtension(t *testing.T) {
	for _, delta := range []int{0, 1, 12, 13, 14, 268, 269, 270, 65535} {
		for _, length := range []int{0, 12, 13, 268, 269, 1034, maxOptionLength} {
			m := &Message{Code: GET, Options: Options{{OptionID(delta), make([]byte, length)}}, Payload: []byte{1}}
			b, err := m.MarshalBinary()
			if err != nil {
				t.Fatal(err)
			}
			got, err := DecodeMessage(b)
			if err != nil || !reflect.DeepEqual(got, m) {
				t.Errorf("delta %d, length %d: %v", delta, length, err)
			}
		}
	}
}

func TestMessageFormatErrors(t *testing.T) {
	for name, s := range map[string]string{
		"nothing":                        "",
		"three bytes":                    "400100",
		"version 0":                      "00010000",
		"version 2":                      "80010000",
		"token length 9":                 "49010000000000000000000000",
		"token length 15":                "4f010000000000000000000000000000000000",
		"token truncated":                "4401000000",
		"empty with token":               "4100000000",
		"empty with bytes":               "4000000000",
		"empty with marker":              "40000000ff01",
		"class 1":                        "40200000",
		"class 6":                        "40c00000",
		"class 7":                        "40e10000",
		"marker without payload":         "40010000ff",
		"marker after option":            "40010000b0ff",
		"delta 15":                       "40010000f0",
		"length 15":                      "400100000f",
		"delta byte missing":             "40010000d0",
		"delta bytes missing":            "40010000e000",
		"length byte missing":            "400100000d",
		"length bytes missing":           "400100000e00",
		"value missing":                  "4001000051",
		"number overflows":               "40010000e0fef2" + "10",
		"number overflows with extended": "40010000e0fef2e0fef2",
		"too many options":               "40010000" + fmt.Sprintf("%0*d", 2*(maxOptions+1), 0),
	} {
		t.Run(name, func(t *testing.T) {
			m, err := DecodeMessage(unhex(t, s))
			if !errors.Is(err, ErrFormat) {
				t.Errorf("got %+v, %v", m, err)
			}
			if (name == "version 0" || name == "version 2") != errors.Is(err, ErrVersion) {
				t.Errorf("version error: %v", err)
			}
		})
	}
}

// A prefix parses only where the message may end: after a whole option or
// within the payload. Then it is another message.
func TestMessagePrefixes(t *testing.T) {
	m := &Message{Code: FETCH, ID: 7, Token: []byte{1, 2, 3}, Payload: []byte("payload")}
	m.Options.SetPath("ace-group", "a segment of more than thirteen bytes")
	m.Options.SetContentFormat(ACEGroupcomm)
	whole, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	parsed := 0
	for n := range whole {
		got, err := DecodeMessage(whole[:n])
		if err != nil {
			continue
		}
		parsed++
		b, err := got.MarshalBinary()
		if err != nil || !bytes.Equal(b, whole[:n]) || reflect.DeepEqual(got, m) {
			t.Errorf("prefix of %d bytes: %+v, %v", n, got, err)
		}
	}
	// The bare header, after each of the three options, and six of the payload.
	if parsed != 1+3+6 {
		t.Errorf("%d prefixes parse", parsed)
	}
}

func TestMarshalErrors(t *testing.T) {
	for name, m := range map[string]*Message{
		"token":       {Code: GET, Token: make([]byte, 9)},
		"type":        {Code: GET, Type: 4},
		"option":      {Code: GET, Options: Options{{1, make([]byte, maxOptionLength+1)}}},
		"empty":       {Payload: []byte{1}},
		"empty token": {Token: []byte{1}},
	} {
		if b, err := m.MarshalBinary(); err == nil {
			t.Errorf("%s: encoded %x", name, b)
		}
	}
}

func TestMarshalSorts(t *testing.T) {
	m := &Message{Code: GET, Options: Options{{UriPath, []byte("a")}, {UriHost, []byte("h")}, {UriPath, []byte("b")}}}
	before := slices.Clone(m.Options)
	b, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeMessage(b)
	if err != nil || !slices.Equal(got.Options.Path(), []string{"a", "b"}) || got.Options[0].ID != UriHost {
		t.Errorf("%+v, %v", got, err)
	}
	if !reflect.DeepEqual(before, m.Options) {
		t.Error("the message was changed")
	}
}

func TestClone(t *testing.T) {
	b := unhex(t, messages[1].hex)
	m, err := DecodeMessage(b)
	if err != nil {
		t.Fatal(err)
	}
	c := m.Clone()
	r := (&Request{Code: m.Code, Options: m.Options, Payload: []byte("x")}).Clone()
	clear(b)
	if !reflect.DeepEqual(c, &messages[1].m) || !slices.Equal(r.Path(), []string{"tv1"}) {
		t.Errorf("clones share memory: %+v, %+v", c, r)
	}
}

// RFC 7641, Section 2: 0 registers, 1 deregisters, all else means nothing; only
// GET and FETCH are observed.
func TestRequestObserve(t *testing.T) {
	for _, c := range []struct {
		code              Code
		value             []byte
		register, present bool
	}{
		{GET, []byte{}, true, true}, {GET, []byte{0}, true, true}, {FETCH, []byte{1}, false, true},
		{GET, []byte{2}, false, false}, {POST, []byte{}, false, false}, {GET, make([]byte, 5), false, false},
	} {
		r := &Request{Code: c.code, Options: Options{{ObserveOption, c.value}}}
		if register, present := r.Observe(); register != c.register || present != c.present {
			t.Errorf("%v %x: %v, %v", c.code, c.value, register, present)
		}
	}
	if _, present := (&Request{Code: GET}).Observe(); present {
		t.Error("present without the option")
	}
}

func FuzzDecodeMessage(f *testing.F) {
	for _, c := range messages {
		f.Add(unhex(f, c.hex))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeMessage(b)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		again, err := m.MarshalBinary()
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x encodes to %x, %v", b, again, err)
		}
		m.Options.Unusable()
		o := slices.Clone(m.Options)
		o.DropUnusable()
		if _, bad := o.Block(Block2); bad != nil {
			_ = bad.Error()
		}
	})
}
