package proxy

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/coaptest"
)

// TestRequestOptions is RFC 7252, Section 5.7.1, as a table: what becomes of an
// option of a request.
func TestRequestOptions(t *testing.T) {
	const unknown = "unknown option"
	for _, c := range []struct {
		name string
		opt  coap.Option
		code coap.Code // of a refusal; 0: it is forwarded
		kept bool      // the upstream sees it
	}{
		{"critical, unsafe, unknown", opt(2051, "v"), coap.BadOption, false}, // 0x803
		{"elective, unsafe, unknown", opt(2050, "v"), coap.BadOption, false},
		{"critical, safe, unknown", opt(2049, "v"), 0, true},
		{"elective, safe, unknown", opt(2048, "v"), 0, true},
		{"elective, safe, no cache key, unknown", opt(2044, "v"), 0, true},
		{"critical, known, of a wrong length", opt(coap.Accept, "abc"), coap.BadOption, false},
		{"elective, known, of a wrong length", opt(coap.ETag, "123456789"), 0, false},
		{"If-Match", opt(coap.IfMatch, "tag"), 0, true},
		{"If-None-Match", opt(coap.IfNoneMatch, ""), 0, true},
		{"ETag", opt(coap.ETag, "tag"), 0, true},
		{"Accept", opt(coap.Accept, "\x32"), 0, true},
		{"Content-Format", opt(coap.ContentFormatOption, "\x32"), 0, true},
		{"Echo", opt(coap.Echo, "12345678"), 0, true},
		{"OSCORE", opt(coap.OSCOREOption, "\x09\x01\x02"), 0, true},
		{"No-Response is heeded here (RFC 7967)", opt(coap.NoResponse, "\x08"), 0, false},
		{"Request-Tag is that of the client's leg (RFC 9175)", opt(coap.RequestTag, "t"), 0, false},
		{"Max-Age in a request means nothing", opt(coap.MaxAge, "\x05"), 0, false},
		{"Block2 is that of the client's leg (RFC 7959)", opt(coap.Block2, "\x02"), 0, false},
		{"Size2", opt(coap.Size2, ""), 0, false},
		{"Hop-Limit 0 (RFC 8768)", opt(coap.HopLimit, "\x00"), coap.BadRequest, false},
		{"Hop-Limit 1", opt(coap.HopLimit, "\x01"), coap.HopLimitReached, false},
		{"Hop-Limit of two bytes is ignored", opt(coap.HopLimit, "\x01\x01"), 0, false},
		{"Uri-Host beside Proxy-Uri is of no meaning", opt(coap.UriHost, "elsewhere"), 0, false},
		{"Multicast-Timeout to one server", opt(MulticastTimeout, "\x05"), 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, up := bubble(t, Rule{}, func(*coap.Message, int) *coap.Message { return message(coap.Content, "x") })
				l := s.client("a", coaptest.Options{})
				req := proxied(coap.GET, there+"/a", nil)
				if c.opt.ID == coap.ContentFormatOption || c.opt.ID == coap.OSCOREOption {
					req.Code, req.Payload = coap.POST, []byte("x")
				}
				req.Options.Add(c.opt.ID, c.opt.Value)
				r := do(t, l, req)
				switch {
				case c.code != 0 && (r.Code != c.code || up.count() != 0):
					t.Errorf("%v %q after %d requests, want %v", r.Code, r.Payload, up.count(), c.code)
				case c.code == 0 && up.count() != 1:
					t.Errorf("%v %q after %d requests", r.Code, r.Payload, up.count())
				case c.code == 0:
					m := up.newest()
					got, has := m.Options.Get(c.opt.ID)
					if has = has && string(got) == string(c.opt.Value); has != c.kept {
						t.Errorf("the upstream sees it: %v, want %v", has, c.kept)
					}
					if m.Options.Has(coap.ProxyUri) || !slices.Equal(m.Options.Path(), []string{"a"}) {
						t.Errorf("%+v", m.Options)
					}
					if hops, _ := m.Options.Uint(coap.HopLimit); hops != defaultHops {
						t.Errorf("Hop-Limit %d", hops)
					}
				}
				if c.code == coap.HopLimitReached && string(r.Payload) != "edge" {
					t.Errorf("%s: who it was is not told: %q", unknown, r.Payload)
				}
				l.Close()
				s.stop()
			})
		})
	}
}

// TestResponseOptions: what becomes of a response of an upstream.
func TestResponseOptions(t *testing.T) {
	for _, c := range []struct {
		name   string
		answer *coap.Message
		code   coap.Code
		check  func(r *coap.Response) bool
	}{
		{"critical, unsafe, unknown", message(coap.Content, "x", opt(2051, "v")), coap.BadGateway, nil},
		{"elective, unsafe, unknown", message(coap.Content, "x", opt(2050, "v")), coap.BadGateway, nil},
		{"critical, safe, unknown", message(coap.Content, "x", opt(2049, "v")), coap.Content, func(r *coap.Response) bool { return r.Options.Has(2049) }},
		{"elective, safe, unknown", message(coap.Content, "x", opt(2048, "v")), coap.Content, func(r *coap.Response) bool { return r.Options.Has(2048) }},
		{"Observe that nobody asked for", message(coap.Content, "x", opt(coap.ObserveOption, "\x05")), coap.Content, func(r *coap.Response) bool { return !r.Options.Has(coap.ObserveOption) }},
		{"proxy options make no sense", message(coap.Content, "x", opt(coap.ProxyUri, "coap://a")), coap.Content, func(r *coap.Response) bool { return !r.Options.Has(coap.ProxyUri) }},
		{"an ETag too long is ignored", message(coap.Content, "x", opt(coap.ETag, "123456789")), coap.Content, func(r *coap.Response) bool { return !r.Options.Has(coap.ETag) }},
		{"2.03 to a request without ETag", message(coap.Valid, ""), coap.BadGateway, nil},
		{"2.31 out of place", message(coap.Continue, ""), coap.BadGateway, nil},
		{"a class that is none", message(coap.Code(3<<5), ""), coap.BadGateway, nil},
		{"5.08: our name goes before theirs (RFC 8768)", message(coap.HopLimitReached, "inner"), coap.HopLimitReached, func(r *coap.Response) bool { return string(r.Payload) == "edge inner" }},
		{"4.01 with Echo passes", message(coap.Unauthorized, "", opt(coap.Echo, "12345678")), coap.Unauthorized, func(r *coap.Response) bool { return r.Options.Has(coap.Echo) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, _ := bubble(t, Rule{}, func(*coap.Message, int) *coap.Message { return c.answer })
				l := s.client("a", coaptest.Options{})
				r := do(t, l, proxied(coap.GET, there+"/a", nil))
				if r.Code != c.code || c.check != nil && !c.check(r) {
					t.Errorf("%v %q %+v", r.Code, r.Payload, r.Options)
				}
				l.Close()
				s.stop()
			})
		})
	}
}

// TestAddressing: where Proxy-Uri and its kin lead, and what they must not.
func TestAddressing(t *testing.T) {
	rules := []Rule{
		{Host: "192.0.2.9/32", Scheme: CoAP, Port: 5683},
		{Host: "*.example.com", Scheme: CoAP, Port: 5683, Path: []string{"data"}},
		{Host: "2001:db8::/32", Scheme: CoAPTCP, Port: 5683, Methods: []coap.Code{coap.GET}},
		{Host: "secret.example.com", Scheme: CoAP, Port: 7000, Peers: []string{"psk:b", "cert:" + strings.Repeat("00", 32)}},
	}
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(func(*coap.Message, int) *coap.Message { return message(coap.Content, "x", maxAge(0)) })
		local := netip.MustParseAddrPort("192.0.2.1:5683")
		s := house(t, Config{Rules: rules}, func(d *Deps) {
			d.Listeners = func() []Listener { return []Listener{{Scheme: CoAP, Addr: local}} }
		})
		s.p.dialer = func(context.Context, *Rule, Target, int) (link, error) { return m, nil }
		l := s.client("a", coaptest.Options{})
		for _, c := range []struct {
			uri  string
			code coap.Code
			host string // Uri-Host at the upstream
		}{
			{"coap://192.0.2.9", coap.Content, ""},
			{"COAP://192.0.2.9:5683/", coap.Content, ""},
			{"coap://192.0.2.9:/", coap.Content, ""},
			{"coap://[::ffff:192.0.2.9]/", coap.Content, ""},
			{"coap://192.0.2.9:5684/", coap.ProxyingNotSupported, ""},
			{"coaps://192.0.2.9:5683/", coap.ProxyingNotSupported, ""},
			{"coap://192.0.2.10/", coap.ProxyingNotSupported, ""},
			{"coap://A.Example.COM/data/x", coap.Content, "a.example.com"},
			{"coap://a.example.com./data", coap.Content, "a.example.com"},
			{"coap://a.b.example.com/data", coap.Content, "a.b.example.com"},
			{"coap://example.com/data", coap.ProxyingNotSupported, ""},
			{"coap://aexample.com/data", coap.ProxyingNotSupported, ""},
			{"coap://a.example.com/other", coap.ProxyingNotSupported, ""},
			{"coap://a.example.com/datax", coap.ProxyingNotSupported, ""},
			{"coap://a.example.com/data/../other", coap.BadRequest, ""},
			{"coap://a.example.com/data/%2e%2e/other", coap.BadRequest, ""},
			{"coap://a.example.com/data/%2E/other", coap.BadRequest, ""},
			{"coap+tcp://[2001:db8::1]/x", coap.Content, ""},
			{"coap+tcp://[2001:db9::1]/x", coap.ProxyingNotSupported, ""},
			{"coap://secret.example.com:7000/", coap.ProxyingNotSupported, ""},
			{"coap://192.0.2.1/local", coap.Content, ""},
			{"http://192.0.2.9/", coap.ProxyingNotSupported, ""},
			{"coap+ws://192.0.2.9/", coap.ProxyingNotSupported, ""},
			{"coap:192.0.2.9", coap.BadRequest, ""},
			{"coap:///x", coap.BadRequest, ""},
			{"//192.0.2.9/x", coap.BadRequest, ""},
			{"/x", coap.BadRequest, ""},
			{"coap://user@192.0.2.9/x", coap.BadRequest, ""},
			{"coap://192.0.2.9/x#f", coap.BadRequest, ""},
			{"coap://192.0.2.9:0/x", coap.BadRequest, ""},
			{"coap://192.0.2.9:65536/x", coap.BadRequest, ""},
			{"coap://192.0.2.9:x/x", coap.BadRequest, ""},
			{"coap://192.0.2.9/%zz", coap.BadRequest, ""},
			{"coap://192.0.2.9/ x", coap.BadRequest, ""},
			{"coap://192.0.2.9/\x01", coap.BadRequest, ""},
			{"coap://[fe80::1%25eth0]/", coap.BadRequest, ""},
			{"coap://[::1/", coap.BadRequest, ""},
			{"coap://127.1/", coap.BadRequest, ""},
			{"coap://0x7f000001/", coap.BadRequest, ""},
			{"coap://2130706433/", coap.BadRequest, ""},
			{"coap://a_b.ex ample/", coap.BadRequest, ""},
			{"coap://192.0.2.9/" + strings.Repeat("a", 256), coap.BadRequest, ""},
			{"coap://192.0.2.9/?" + strings.Repeat("a", 256), coap.BadRequest, ""},
		} {
			before := m.count()
			r := do(t, l, proxied(coap.GET, c.uri, nil))
			if r.Code != c.code {
				t.Errorf("%q: %v %q, want %v", c.uri, r.Code, r.Payload, c.code)
			}
			if asked := m.count() > before; asked != (c.code == coap.Content && !strings.Contains(c.uri, "local")) {
				t.Errorf("%q: an upstream was asked: %v", c.uri, asked)
			} else if asked {
				if host, _ := m.newest().Options.Get(coap.UriHost); string(host) != c.host {
					t.Errorf("%q: Uri-Host %q, want %q", c.uri, host, c.host)
				}
			}
		}
		if r := do(t, l, proxied(coap.PUT, "coap+tcp://[2001:db8::1]/x", nil)); r.Code != coap.MethodNotAllowed {
			t.Errorf("a method that no rule has: %v", r.Code)
		}
		b := s.client("b", coaptest.Options{})
		if r := do(t, b, proxied(coap.GET, "coap://secret.example.com:7000/", nil)); r.Code != coap.Content {
			t.Errorf("the peer of the rule: %v", r.Code)
		}
		// Proxy-Scheme alone names nobody; with a name that climbs it is refused.
		req := &coap.Request{Code: coap.GET}
		req.Options.AddString(coap.ProxyScheme, "coap")
		if r := do(t, l, req); r.Code != coap.BadRequest {
			t.Errorf("no Uri-Host: %v", r.Code)
		}
		req.Options.AddString(coap.UriHost, "a.example.com")
		req.Options.SetPath("data", "..", "other")
		if r := do(t, l, req); r.Code != coap.BadRequest {
			t.Errorf("Uri-Path ..: %v", r.Code)
		}
		l.Close()
		b.Close()
		s.stop()
	})
}

// FuzzParseURI: what is read is what is written again, and stays in its bounds.
func FuzzParseURI(f *testing.F) {
	for _, s := range []string{"coap://a.example.com/x/y?z", "coaps://[2001:db8::1]:7/%2f", "coap+tcp://192.0.2.1", "coap://[::ffff:1.2.3.4]//", "coap://a:/?&"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		target, o, err := parseURI(s)
		if err != nil {
			return
		}
		if target.Host == "" || len(target.Host) > 253 || target.Host != strings.ToLower(target.Host) {
			t.Fatalf("%q: host %q", s, target.Host)
		}
		for _, x := range o {
			if len(x.Value) > maxSegment || x.ID == coap.UriPath && (string(x.Value) == "." || string(x.Value) == "..") {
				t.Fatalf("%q: %q", s, x.Value)
			}
		}
		again, _, err := parseURI(target.String())
		if target.Port != 0 && (err != nil || again != target) {
			t.Fatalf("%q: %v, then %v, %v", s, target, again, err)
		}
		_ = fmt.Sprint(o)
	})
}
