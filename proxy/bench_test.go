package proxy

import (
	"context"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
)

// BenchmarkUncached is one request after the other through the proxy to an origin
// on a real socket, and back; allocations are those of both.
func BenchmarkUncached(b *testing.B) {
	o := serving(b, nil, func(context.Context, *coap.Request) (*coap.Response, error) { return text("x", 0), nil })
	s := house(b, Config{Rules: []Rule{forwardTo(o.target())}}, nil)
	req := proxied(coap.GET, o.target().String()+"/a", nil)
	req.Peer = coap.Peer{Link: "a", Via: coap.DTLSPSK, Subject: coap.Subject{Kind: coap.SubjectPSK, ID: "a"}}
	b.ReportAllocs()
	for b.Loop() {
		if r, err := s.p.ServeCoAP(b.Context(), req); err != nil || r.Code != coap.Content {
			b.Fatalf("%+v: %v", r, err)
		}
	}
}
