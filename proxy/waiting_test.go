package proxy

import (
	"context"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
)

// told counts how often a handler said that it waits.
type told struct{ n atomic.Int32 }

func (w *told) Waits() { w.n.Add(1) }

// TestWaiting: the proxy says that it waits before it waits for an upstream, whatever
// for; a response from the cache is waited for by nobody.
func TestWaiting(t *testing.T) {
	var said atomic.Pointer[told] // by the request that is under way
	o := serving(t, nil, func(_ context.Context, req *coap.Request) (*coap.Response, error) {
		eventually(t, "somebody says that he waits", func() bool { return said.Load().n.Load() > 0 })
		switch r := text("21.5", 0); {
		case req.Code != coap.GET:
			return &coap.Response{Code: coap.Changed}, nil
		case req.Path()[0] == "kept":
			return text("21.5", 60), nil
		default:
			if register, ok := req.Observe(); ok && register {
				r.Observe = &coap.Observation{Topic: "state", Version: 1}
			}
			return r, nil
		}
	})
	s := house(t, Config{Rules: []Rule{forwardTo(o.target())}}, nil)
	peer := coap.Peer{Link: "a", Via: coap.DTLSPSK, Addr: netip.MustParseAddrPort("192.0.2.1:4000")}
	for _, c := range []struct {
		name    string
		code    coap.Code
		path    string
		observe bool
		cached  bool
	}{
		{"association", coap.GET, "/fresh", false, false},
		{"uncached", coap.GET, "/fresh", false, false},
		{"unsafe", coap.POST, "/fresh", false, false},
		{"to be kept", coap.GET, "/kept", false, false},
		{"kept", coap.GET, "/kept", false, true},
		{"observed", coap.GET, "/state", true, false},
	} {
		said.Store(&told{})
		ctx := context.WithValue(t.Context(), coap.WaiterKey{}, said.Load())
		req := proxied(c.code, "coap://"+o.at.String()+c.path, nil)
		if c.observe {
			req.Options.SetUint(coap.ObserveOption, 0)
		}
		req.Peer = peer
		r, err := s.p.ServeCoAP(ctx, req)
		if err != nil || !r.Code.IsSuccess() {
			t.Fatalf("%s: %v, %v", c.name, r, err)
		}
		if (said.Load().n.Load() > 0) == c.cached {
			t.Errorf("%s: said %d times that it waits", c.name, said.Load().n.Load())
		}
	}
}
