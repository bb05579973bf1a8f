package proxy

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/coaptest"
)

// echoing answers with what it was asked.
func echoing(_ context.Context, req *coap.Request) (*coap.Response, error) {
	if req.Code == coap.GET || req.Code == coap.FETCH {
		return text(fmt.Sprintf("%v /%s?%s %d", req.Code, strings.Join(req.Path(), "/"), strings.Join(req.Options.Queries(), "&"), len(req.Payload)), 60), nil
	}
	return &coap.Response{Code: coap.Changed, Payload: bytes.ToUpper(req.Payload)}, nil
}

// TestForward: every form of addressing, over UDP and DTLS, with bodies larger
// than a block in both directions and blocks of different sizes on the two legs.
func TestForward(t *testing.T) {
	keys := &psk{identity: "edge", key: []byte("0123456789abcdef")}
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("secure=%v", secure), func(t *testing.T) {
			var o *origin
			if secure {
				o = serving(t, keys, echoing)
			} else {
				o = serving(t, nil, echoing)
			}
			via := forwardTo(o.target())
			host := Rule{Name: "meter.example", Upstream: o.target()}
			path := Rule{Prefix: []string{"m"}, Upstream: o.target(), Path: []string{"v1"}}
			rules := []Rule{via, host, path}
			if secure {
				for i := range rules {
					rules[i].Credential = &Credential{Identity: []byte(keys.identity), Key: func() []byte { return keys.key }}
				}
			}
			s := house(t, Config{Rules: rules}, nil)
			l := s.client("a", coaptest.Options{BlockSize: 128})

			r := do(t, l, proxied(coap.GET, o.target().String()+"/a/b%2fc?q=1&r", nil))
			if r.Code != coap.Content || string(r.Payload) != "GET /a/b/c?q=1&r 0" {
				t.Errorf("%v %q", r.Code, r.Payload)
			}
			if got := o.request(); len(got.Path()) != 2 || got.Options.Has(coap.UriHost) || got.Options.Has(coap.ProxyUri) {
				t.Errorf("%+v", got)
			}

			req := &coap.Request{Code: coap.GET}
			req.Options.AddString(coap.UriHost, o.target().Host)
			req.Options.SetUint(coap.UriPort, uint32(o.target().Port))
			req.Options.AddString(coap.ProxyScheme, o.target().Scheme)
			req.Options.AddString(coap.UriPath, "x")
			if r := do(t, l, req); string(r.Payload) != "GET /x? 0" {
				t.Errorf("Proxy-Scheme: %v %q", r.Code, r.Payload)
			}

			req = &coap.Request{Code: coap.GET}
			req.Options.AddString(coap.UriHost, "meter.example")
			req.Options.SetPath("authz-info")
			if r := do(t, l, req); string(r.Payload) != "GET /authz-info? 0" {
				t.Errorf("Uri-Host: %v %q", r.Code, r.Payload)
			}
			req = &coap.Request{Code: coap.GET}
			req.Options.SetPath("m", "a")
			if r := do(t, l, req); string(r.Payload) != "GET /v1/a? 0" {
				t.Errorf("path: %v %q", r.Code, r.Payload)
			}

			body := bytes.Repeat([]byte("abcdefghij"), 100)
			r = do(t, l, proxied(coap.PUT, o.target().String()+"/big", body))
			if r.Code != coap.Changed || !bytes.Equal(r.Payload, bytes.ToUpper(body)) {
				t.Errorf("%v, %d bytes", r.Code, len(r.Payload))
			}
			if got := o.request(); !bytes.Equal(got.Payload, body) {
				t.Errorf("%d bytes arrived", len(got.Payload))
			}
		})
	}
	if n := keys.shakes.Load(); n != 3 {
		t.Errorf("%d handshakes for three rules: sessions are to be reused", n)
	}
}
