package oscore

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
)

// split takes m apart and puts it together again, as if the two ends were one.
func split(t *testing.T, m *coap.Message) (protected, back *coap.Message, plaintext []byte) {
	t.Helper()
	out, err := toEnd.outgoing(m)
	if err != nil {
		t.Fatal(err)
	}
	plaintext, err = toEnd.appendPlaintext(nil, out)
	if err != nil {
		t.Fatal(err)
	}
	if len(plaintext) > plaintextBound(out) {
		t.Fatalf("plaintext of %d bytes is longer than its bound %d", len(plaintext), plaintextBound(out))
	}
	var sender, recipient Buffer
	protected = sender.protected(toEnd, out, []byte{9, 0}, []byte{1}).Clone()
	back, err = recipient.unprotected(toEnd, protected, plaintext, m.Code.IsRequest())
	if err != nil {
		t.Fatal(err)
	}
	return protected, back, plaintext
}

// RFC 8613, Section 4.1, Figure 5, row by row.
func TestOptionClasses(t *testing.T) {
	for _, c := range []struct {
		id           coap.OptionID
		inner, outer bool
	}{
		{coap.IfMatch, true, false},
		{coap.UriHost, false, true},
		{coap.ETag, true, false},
		{coap.IfNoneMatch, true, false},
		{coap.ObserveOption, true, true},
		{coap.UriPort, false, true},
		{coap.LocationPath, true, false},
		{coap.UriPath, true, false},
		{coap.ContentFormatOption, true, false},
		{coap.MaxAge, true, false},
		{coap.UriQuery, true, false},
		{coap.HopLimit, false, true},
		{coap.Accept, true, false},
		{coap.LocationQuery, true, false},
		{edhocOption, false, true},
		{MulticastTimeout, false, true},
		{groupETag, false, true},
		{ReplyFrom, false, true},
		{coap.Block2, true, false},
		{coap.Block1, true, false},
		{coap.Size2, true, false},
		{coap.ProxyScheme, false, true},
		{coap.Size1, true, false},
		{coap.Echo, true, false},
		{coap.NoResponse, true, false},
		{coap.RequestTag, true, false},
		{2048, true, false}, // unknown
	} {
		for _, code := range []coap.Code{coap.FETCH, coap.Content} {
			m := &coap.Message{Code: code, Options: coap.Options{{ID: c.id, Value: []byte{1}}}}
			protected, back, plaintext := split(t, m)
			if got := len(plaintext) > 1; got != c.inner {
				t.Errorf("option %d: inner %v", c.id, got)
			}
			if got := protected.Options.Has(c.id); got != c.outer {
				t.Errorf("option %d: outer %v", c.id, got)
			}
			want := m.Options
			if c.id == coap.ObserveOption && code == coap.Content {
				want = coap.Options{{ID: c.id, Value: []byte{}}}
			}
			if len(back.Options) != 1 || back.Options[0].ID != c.id || !bytes.Equal(back.Options[0].Value, want[0].Value) {
				t.Errorf("option %d comes back as %v", c.id, back.Options)
			}
		}
	}
}

// RFC 8613, Section 4.2.
func TestOuterCode(t *testing.T) {
	observe := coap.Options{{ID: coap.ObserveOption}}
	for _, c := range []struct {
		m    coap.Message
		want coap.Code
	}{
		{coap.Message{Code: coap.GET}, coap.POST},
		{coap.Message{Code: coap.DELETE}, coap.POST},
		{coap.Message{Code: coap.GET, Options: observe}, coap.FETCH},
		{coap.Message{Code: coap.Content}, coap.Changed},
		{coap.Message{Code: coap.NotFound}, coap.Changed},
		{coap.Message{Code: coap.Content, Options: observe}, coap.Content},
		{coap.Message{Code: coap.Valid, Options: observe}, coap.Content},
	} {
		if got := outerCode(&c.m); got != c.want {
			t.Errorf("%v with %v: %v, want %v", c.m.Code, c.m.Options, got, c.want)
		}
	}
}

// RFC 8613, Section 8.2, step 1: what should have been inner and comes outside is
// dropped, what belongs outside stays.
func TestOuterDiscarded(t *testing.T) {
	in := &coap.Message{Code: coap.FETCH, ID: 7, Token: []byte{1}, Options: coap.Options{
		{ID: coap.IfMatch, Value: []byte{1}}, {ID: coap.UriHost, Value: []byte("h")}, {ID: coap.ObserveOption}, {ID: coap.OSCOREOption},
		{ID: coap.UriPath, Value: []byte("evil")}, {ID: coap.MaxAge, Value: []byte{9}}, {ID: coap.HopLimit, Value: []byte{3}},
		{ID: coap.Block1, Value: []byte{0x0e}}, {ID: coap.Echo, Value: []byte{1}}, {ID: coap.NoResponse, Value: []byte{26}},
		{ID: coap.RequestTag, Value: []byte{1}}, {ID: 2049, Value: []byte{1}},
	}, Payload: []byte("ciphertext")}
	var b Buffer
	got, err := b.unprotected(toEnd, in, unhex(t, "01b16151ffff70"), true)
	if err != nil {
		t.Fatal(err)
	}
	want := &coap.Message{Code: coap.GET, ID: 7, Token: []byte{1}, Options: coap.Options{
		{ID: coap.UriHost, Value: []byte("h")}, {ID: coap.UriPath, Value: []byte("a")},
		// The inner one, which nobody should send, stands first.
		{ID: coap.HopLimit, Value: []byte{0xff}}, {ID: coap.HopLimit, Value: []byte{3}},
	}, Payload: []byte("p")}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// RFC 8613, Section 4.1.3.3.
func TestProxyURI(t *testing.T) {
	for _, c := range []struct {
		uri, outer string
		path       []string
		query      []string
	}{
		{"coap://example.com/resource?q=1", "coap://example.com", []string{"resource"}, []string{"q=1"}},
		{"coap://example.com:5684", "coap://example.com:5684", nil, nil},
		{"coaps://[2001:db8::1]/", "coaps://[2001:db8::1]", nil, nil},
		{"coap://h/a%2Fb//c+d?x=%26&y", "coap://h", []string{"a/b", "", "c+d"}, []string{"x=&", "y"}},
	} {
		m := &coap.Message{Code: coap.GET}
		m.Options.AddString(coap.UriPath, "overridden")
		m.Options.AddString(coap.ProxyUri, c.uri)
		protected, back, _ := split(t, m)
		if got, _ := protected.Options.Get(coap.ProxyUri); string(got) != c.outer || len(protected.Options) != 2 {
			t.Errorf("%s: outside is %v", c.uri, protected.Options)
		}
		if got := back.Options.Path(); !reflect.DeepEqual(got, c.path) {
			t.Errorf("%s: path %q", c.uri, got)
		}
		if got := back.Options.Queries(); !reflect.DeepEqual(got, c.query) {
			t.Errorf("%s: query %q", c.uri, got)
		}
		if !m.Options.Has(coap.UriPath) || len(m.Options) != 2 {
			t.Errorf("%s: the caller's options became %v", c.uri, m.Options)
		}
	}
	for _, uri := range []string{"", "/relative", "coap://u:p@h/", "coap://h/#f", "coap://h/%zz", "coap:opaque", "coap://h?%z"} {
		m := &coap.Message{Code: coap.GET, Options: coap.Options{{ID: coap.ProxyUri, Value: []byte(uri)}}}
		if _, err := toEnd.outgoing(m); err == nil {
			t.Errorf("%q is taken", uri)
		}
	}
}

func TestUnsortedOptions(t *testing.T) {
	m := &coap.Message{Code: coap.PUT, Options: coap.Options{
		{ID: coap.UriQuery, Value: []byte("q")}, {ID: coap.UriPath, Value: []byte("a")}, {ID: coap.UriPath, Value: []byte("b")},
	}}
	_, back, plaintext := split(t, m)
	if hex.EncodeToString(plaintext) != "03b16101624171" || back.Options[2].ID != coap.UriQuery {
		t.Errorf("plaintext %x, back %v", plaintext, back.Options)
	}
	if m.Options[0].ID != coap.UriQuery {
		t.Error("the caller's options were sorted")
	}
}

func TestPlaintextRefused(t *testing.T) {
	in := &coap.Message{Code: coap.POST, Options: coap.Options{{ID: coap.OSCOREOption}}, Payload: []byte{1}}
	for _, c := range []struct {
		name, hex string
		request   bool
	}{
		{"empty", "", true},
		{"a response for a request", "45", true},
		{"a request for a response", "01", false},
		{"the empty code", "00", true},
		{"the empty code for a response", "00", false},
		{"a reserved class", "20", false},
		{"marker without payload", "01ff", true},
		{"cut off option", "01b474763", true},
		{"an OSCORE option", "0190", true},
		{"reserved nibble", "01f0", true},
	} {
		plain, _ := hex.DecodeString(c.hex)
		var b Buffer
		if got, err := b.unprotected(toEnd, in, plain, c.request); !errors.Is(err, ErrInner) {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
	if _, err := toEnd.outgoing(in); err == nil {
		t.Error("a protected message is protected again")
	}
}

// RFC 8613, Section 2.
func TestMalformed(t *testing.T) {
	option := coap.Option{ID: coap.OSCOREOption, Value: []byte{9, 0}}
	for _, c := range []struct {
		name string
		m    coap.Message
		want error
	}{
		{"no option", coap.Message{Payload: []byte{1}}, ErrUnprotected},
		{"no payload", coap.Message{Options: coap.Options{option}}, ErrOption},
		{"two options", coap.Message{Options: coap.Options{option, option}, Payload: []byte{1}}, ErrOption},
		{"reserved flags", coap.Message{Options: coap.Options{{ID: 9, Value: []byte{0xff}}}, Payload: []byte{1}}, ErrOption},
	} {
		if _, err := received(&c.m); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// RFC 8613, Sections 7.4 and 8.2: what a server answers, unprotected and not to
// be cached.
func TestErrorResponses(t *testing.T) {
	for err, want := range map[error]struct {
		code coap.Code
		text string
	}{
		ErrOption:  {coap.BadOption, "Failed to decode COSE"},
		ErrContext: {coap.Unauthorized, "Security context not found"},
		ErrReplay:  {coap.Unauthorized, "Replay detected"},
		ErrDecrypt: {coap.BadRequest, "Decryption failed"},
	} {
		r := coap.ErrorResponse(err)
		age, ok := r.Options.Get(coap.MaxAge)
		if r.Code != want.code || string(r.Payload) != want.text || !ok || len(age) != 0 || len(r.Options) != 1 {
			t.Errorf("%v: %+v", err, r)
		}
	}
}
