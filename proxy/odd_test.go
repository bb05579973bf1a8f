package proxy

import (
	"bytes"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/coaptest"
)

// TestGetWithBody: what has no meaning goes nowhere: a server that heeds the body of a
// GET would answer by it, and the cache give that to who sent none (RFC 7252, Section
// 5.5).
func TestGetWithBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, up := bubble(t, Rule{}, func(m *coap.Message, _ int) *coap.Message {
			return message(coap.Content, fmt.Sprintf("asked for %q", m.Payload), maxAge(60))
		})
		a, b := s.client("a", coaptest.Options{}), s.client("b", coaptest.Options{})
		for _, r := range []*coap.Response{
			do(t, a, proxied(coap.GET, there+"/a", []byte("everything"))), do(t, b, proxied(coap.GET, there+"/a", nil)),
			do(t, a, proxied(coap.DELETE, there+"/b", []byte("everything"))),
		} {
			if string(r.Payload) != `asked for ""` {
				t.Errorf("%q", r.Payload)
			}
		}
		if r := do(t, a, proxied(coap.FETCH, there+"/a", []byte("some"))); string(r.Payload) != `asked for "some"` {
			t.Errorf("FETCH: %q", r.Payload)
		}
		if up.count() != 3 {
			t.Errorf("%d requests", up.count())
		}
		a.Close()
		b.Close()
		s.stop()
	})
}

// TestHostSpelling: a host is one however it is spelled, in the cache as well, and a path
// has no dots (RFC 7252, Sections 5.10.1 and 6.3).
func TestHostSpelling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, up := bubble(t, Rule{Name: "meter.example", Upstream: Target{CoAP, "192.0.2.9", 5683}}, func(m *coap.Message, n int) *coap.Message {
			if host, _ := m.Options.Get(coap.UriHost); string(host) != "meter.example" {
				t.Errorf("Uri-Host %q", host)
			}
			return message(coap.Content, fmt.Sprint(n), maxAge(60))
		})
		l := s.client("a", coaptest.Options{})
		ask := func(code coap.Code, host string, path ...string) *coap.Response {
			req := &coap.Request{Code: code}
			req.Options.AddString(coap.UriHost, host)
			req.Options.SetPath(path...)
			return do(t, l, req)
		}
		first := ask(coap.GET, "Meter.Example", "a")
		if r := ask(coap.GET, "meter.example", "a"); !bytes.Equal(r.Payload, first.Payload) {
			t.Errorf("%q, then %q", first.Payload, r.Payload)
		}
		ask(coap.PUT, "METER.example", "a")
		if r := ask(coap.GET, "meter.example", "a"); bytes.Equal(r.Payload, first.Payload) || up.count() != 3 {
			t.Errorf("%q after a change, %d requests", r.Payload, up.count())
		}
		if r := ask(coap.GET, "meter.example", "a", "..", "ace-group"); r.Code != coap.BadRequest || up.count() != 3 {
			t.Errorf("dots: %v", r.Code)
		}
		l.Close()
		s.stop()
	})
}

// TestSmallerBlocks: a server that says which blocks would do gets them, whether the body
// came to it in larger ones or in none; a size that is no smaller is no advice (RFC 7959,
// Section 2.9.3).
func TestSmallerBlocks(t *testing.T) {
	for _, tt := range []struct{ body, advice, want int }{{1000, 64, 64}, {3000, 128, 128}, {3000, 1024, 0}, {50, 64, 0}} {
		synctest.Test(t, func(t *testing.T) {
			var got []byte
			s, _ := bubble(t, Rule{}, func(m *coap.Message, _ int) *coap.Message {
				b, err := m.Options.Block(coap.Block1)
				if err != nil {
					t.Error(err)
				}
				if b == nil || b.Size() != tt.want {
					r := message(coap.RequestEntityTooLarge, "")
					advice := coap.Block{}
					for advice.Size() < tt.advice {
						advice.SZX++
					}
					r.Options.SetBlock(coap.Block1, advice)
					return r
				}
				got = append(got, m.Payload...)
				r := message(coap.Changed, "")
				if b.More {
					r.Code = coap.Continue
				}
				r.Options.SetBlock(coap.Block1, *b)
				return r
			})
			l := s.client("a", coaptest.Options{})
			body := bytes.Repeat([]byte("x"), tt.body)
			r := do(t, l, proxied(coap.POST, there+"/a", body))
			if tt.want > 0 && (r.Code != coap.Changed || !bytes.Equal(got, body)) || tt.want == 0 && r.Code != coap.RequestEntityTooLarge {
				t.Errorf("%+v: %v, %d bytes", tt, r.Code, len(got))
			}
			l.Close()
			s.stop()
		})
	}
}
