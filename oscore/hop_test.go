package oscore

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
)

func hopPair(t testing.TB) (client, server *Context) {
	t.Helper()
	return pair(t, both(func(p *Params) { p.Hop = true }))
}

// draft-ietf-core-oscore-capable-proxies-07, Section 2.2: what is for the proxy itself is
// protected on the way to it, and so is what is protected for somebody beyond it.
func TestHopOptions(t *testing.T) {
	nested := []byte{9, 7, 0xaa}
	for _, c := range []struct {
		name    string
		options coap.Options
		outer   []coap.OptionID // beside OSCORE
	}{
		{"Proxy-Uri", coap.Options{{ID: MulticastTimeout, Value: []byte{9}}, {ID: coap.ProxyUri, Value: []byte("coap://[ff05::fd]/r")}}, nil},
		{"Proxy-Scheme", coap.Options{{ID: coap.UriHost, Value: []byte("h")}, {ID: coap.UriPort, Value: []byte{1, 2}}, {ID: coap.UriPath, Value: []byte("r")}, {ID: coap.HopLimit, Value: []byte{3}}, {ID: coap.ProxyScheme, Value: []byte("coap")}}, nil},
		{"a name that leads on", coap.Options{{ID: coap.UriHost, Value: []byte("h")}, {ID: coap.UriPort, Value: []byte{1, 2}}, {ID: coap.UriPath, Value: []byte("r")}}, []coap.OptionID{coap.UriHost, coap.UriPort}},
		{"nested", coap.Options{{ID: coap.OSCOREOption, Value: nested}, {ID: coap.ProxyUri, Value: []byte("coap://h")}}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			client, server := hopPair(t)
			p, _, err := client.ProtectRequest(t.Context(), nil, &coap.Message{Code: coap.POST, Options: c.options, Payload: []byte("x")})
			if err != nil {
				t.Fatal(err)
			}
			var outer []coap.OptionID
			for _, o := range p.Options {
				if o.ID != coap.OSCOREOption {
					outer = append(outer, o.ID)
				}
			}
			if !slices.Equal(outer, c.outer) || len(p.Options) != len(c.outer)+1 {
				t.Errorf("outside: %v", p.Options)
			}
			got, _, err := server.UnprotectRequest(nil, decode(t, encode(t, p)))
			if err != nil || fmt.Sprint(got.Options) != fmt.Sprint(c.options) || string(got.Payload) != "x" {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
	// Past a proxy: what leads there and what it is to do is outside, and nothing is
	// protected twice.
	client, _ := pair(t)
	m := get("a")
	m.Options.SetUint(MulticastTimeout, 5)
	p, _, err := client.ProtectRequest(t.Context(), nil, m)
	if err != nil || !p.Options.Has(MulticastTimeout) {
		t.Errorf("%v, %v", p, err)
	}
	if _, _, err := client.ProtectRequest(t.Context(), nil, &coap.Message{Code: coap.POST, Options: coap.Options{{ID: coap.OSCOREOption, Value: nested}}}); err == nil {
		t.Error("protected twice for one end")
	}
}

// What somebody on the way adds does not lead a request elsewhere.
func TestHopAltered(t *testing.T) {
	for _, inner := range []coap.Options{
		{{ID: coap.ProxyUri, Value: []byte("coap://h/r")}},
		{{ID: coap.UriHost, Value: []byte("h")}, {ID: coap.UriPath, Value: []byte("r")}, {ID: coap.ProxyScheme, Value: []byte("coap")}},
	} {
		client, server := hopPair(t)
		p, _, err := client.ProtectRequest(t.Context(), nil, &coap.Message{Code: coap.GET, Options: inner})
		if err != nil {
			t.Fatal(err)
		}
		p.Options.Set(coap.UriHost, []byte("evil"))
		p.Options.SetUint(coap.UriPort, 1)
		p.Options.SetUint(MulticastTimeout, 200)
		p.Options.SetUint(coap.HopLimit, 200)
		p.Options.Set(coap.ProxyScheme, []byte("coaps"))
		got, _, err := server.UnprotectRequest(nil, decode(t, encode(t, p)))
		if err != nil || fmt.Sprint(got.Options) != fmt.Sprint(inner) {
			t.Errorf("%v, %v", got, err)
		}
	}
}

// draft-ietf-core-oscore-capable-proxies-07, Section 2.6.1: the responses of a group come
// in any order, each is accepted once, and one of them may be without Partial IV.
func TestSeveral(t *testing.T) {
	client, server := hopPair(t)
	ask := get("a")
	ask.Options.SetUint(MulticastTimeout, 5)
	cex, sex := request(t, client, server, ask)
	var all []*coap.Message
	for i := range 70 {
		protect := server.ProtectFurther // also when the first was not made yet
		if i == 1 {
			protect = server.ProtectResponse
		}
		m := &coap.Message{Code: coap.Content, Options: coap.Options{{ID: coap.OSCOREOption, Value: []byte{0x20}}, {ID: ReplyFrom, Value: []byte{0x82}}}, Payload: fmt.Append(nil, i)}
		p, err := protect(t.Context(), nil, sex, m)
		if err != nil {
			t.Fatal(err)
		}
		if o := optionOf(t, p); (o.PIV == nil) != (i == 1) || len(p.Options) != 1 {
			t.Errorf("response %d: Partial IV %x, options %v", i, o.PIV, p.Options)
		}
		all = append(all, p.Clone())
	}
	open := func(i int, want error) {
		t.Helper()
		before := cex
		got, err := client.UnprotectResponse(nil, &cex, decode(t, encode(t, all[i])))
		if !errors.Is(err, want) || err != nil && cex != before {
			t.Errorf("response %d: %v", i, err)
		}
		if err == nil && (string(got.Payload) != fmt.Sprint(i) || !got.Options.Has(coap.OSCOREOption) || !got.Options.Has(ReplyFrom)) {
			t.Errorf("response %d: %v", i, got)
		}
		stored, err := cex.MarshalBinary()
		var back Exchange
		if err = errors.Join(err, back.UnmarshalBinary(stored)); err != nil || back != cex || !cex.Open() {
			t.Errorf("kept: %+v, %v", back, err)
		}
	}
	for _, i := range []int{5, 3, 1, 60, 4, 69} {
		open(i, nil)
		open(i, ErrReplay)
	}
	open(7, nil)
	open(2, ErrReplay) // too old to tell

	// Who asks one server takes one response.
	one, sone := request(t, client, server, get("a"))
	for i, want := range []error{nil, ErrReplay} {
		p, err := server.ProtectFurther(t.Context(), nil, sone, content("x"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err = client.UnprotectResponse(nil, &one, p); !errors.Is(err, want) {
			t.Errorf("response %d: %v", i, err)
		}
	}
	// So does who asks for none.
	ask.Options.SetUint(MulticastTimeout, 0)
	if none, _ := request(t, client, server, ask); none.several {
		t.Error("Multicast-Timeout 0 asks for several")
	}
}
