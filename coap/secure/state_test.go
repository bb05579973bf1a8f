package secure_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/coaptest"
	"github.com/seed4911071e/groupgate/oscore"
)

// nonces fails when one nonce protects two messages.
type nonces struct {
	t    testing.TB
	seen map[string][]byte
}

// add notes a protected response to a request with a Partial IV.
func (n *nonces) add(request, response *coap.Message) {
	raw, ok := response.Options.Get(coap.OSCOREOption)
	if !ok {
		return
	}
	o, err := oscore.DecodeOption(raw)
	if err != nil {
		n.t.Error(err)
		return
	}
	key := fmt.Sprintf("own %x", o.PIV)
	if o.PIV == nil {
		raw, _ := request.Options.Get(coap.OSCOREOption)
		r, err := oscore.DecodeOption(raw)
		if err != nil {
			n.t.Error(err)
			return
		}
		key = fmt.Sprintf("of the request %x", r.PIV)
	}
	if before, ok := n.seen[key]; ok && !bytes.Equal(before, response.Payload) {
		n.t.Errorf("nonce %s protects two messages", key)
	}
	n.seen[key] = bytes.Clone(response.Payload)
}

// RFC 8613, Appendix B.1: after a restart the numbers go on beyond those that may
// have been used, and a request is served when it is known to be fresh.
func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(1)
		served := 0
		count := func(ctx context.Context, req *coap.Request) (*coap.Response, error) {
			served++
			return hello(ctx, req)
		}
		g := start(t, s, count)
		l := g.over("plain", coaptest.Options{})
		c := newClient(t, s, 1)
		old, ex := c.protect(get("x"))
		c.open(ex, send(t, l, old))
		g.stop()

		g = start(t, s, count)
		l = g.over("plain", coaptest.Options{})
		served = 0
		// Who replays now is challenged, which is not to be served.
		r := send(t, l, old)
		if _, err := c.ctx.UnprotectResponse(nil, ex, r); err == nil {
			t.Error("the challenge answers the request of before once more")
		}
		if !r.Options.Has(coap.OSCOREOption) || served != 0 {
			t.Errorf("%v, served %d", r.Code, served)
		}
		if r, challenged := c.askFresh(l, get("x")); !challenged || r.Code != coap.Content || served != 1 {
			t.Errorf("%v, challenged %v, served %d", r.Code, challenged, served)
		}
		simple(t, "the old one again", send(t, l, old), coap.Unauthorized)
		if r, challenged := c.askFresh(l, get("x")); challenged || r.Code != coap.Content {
			t.Errorf("%v, challenged %v", r.Code, challenged)
		}
		if s.rows["\x01"].Reserved == 0 {
			t.Error("the challenge used a number that was not reserved")
		}
	})
}

// A number that cannot be reserved protects nothing.
func TestReserveFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(1)
		s.rows["\x01"].Epoch = 1 // lived before: a challenge needs a number
		s.fails = errors.New("disk")
		g := start(t, s, hello)
		l := g.over("plain", coaptest.Options{})
		c := newClient(t, s, 1)
		p, _ := c.protect(get("x"))
		if r := send(t, l, p); r.Code != coap.InternalServerError || r.Options.Has(coap.OSCOREOption) {
			t.Errorf("%v", r.Code)
		}
		s.fails = nil
		if r, challenged := c.askFresh(l, get("x")); !challenged || r.Code != coap.Content {
			t.Errorf("%v", r.Code)
		}
	})
}

// With the last number the context ends (RFC 9203, Section 6).
func TestExhausted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(1)
		s.rows["\x01"].Epoch, s.rows["\x01"].Reserved = 1, 1<<40
		g := start(t, s, hello)
		l := g.over("plain", coaptest.Options{})
		c := newClient(t, s, 1)
		p, _ := c.protect(get("x"))
		simple(t, "exhausted", send(t, l, p), coap.Unauthorized)
	})
}

// Gateways that share what is stored, and are killed in between, serve no request
// twice and use no nonce twice, in whatever order requests and copies of them reach
// which of them.
func TestOwners(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { owners(t, rand.New(rand.NewPCG(seed, 1))) })
		})
	}
}

func owners(t *testing.T, rng *rand.Rand) {
	s := newShelf(1)
	served := map[string]int{}
	count := func(ctx context.Context, req *coap.Request) (*coap.Response, error) {
		served[string(req.Payload)]++
		return hello(ctx, req)
	}
	used := &nonces{t: t, seen: map[string][]byte{}}
	c := newClient(t, s, 1)
	var gates [3]*gateway
	var links [3]*coaptest.Link
	lives := 0
	begin := func(i int) {
		lives++
		gates[i] = start(t, s, count)
		links[i] = gates[i].over(coap.LinkID(fmt.Sprintf("plain %d", lives)), coaptest.Options{})
	}
	for i := range gates {
		begin(i)
	}
	var past []*coap.Message
	answered := 0
	for n := range 300 {
		i := rng.IntN(len(gates))
		switch rng.IntN(10) {
		case 0: // killed
			gates[i].stop()
			links[i].Close()
			begin(i)
		case 1, 2, 3: // somebody repeats what he caught
			if len(past) > 0 {
				m := past[rng.IntN(len(past))]
				used.add(m, send(t, links[i], m))
			}
		default:
			m := get("x")
			m.Code, m.Payload = coap.POST, fmt.Append(nil, n)
			for range 2 {
				p, ex := c.protect(m)
				past = append(past, p)
				if rng.IntN(8) == 0 {
					break // caught, and kept for later
				}
				r := send(t, links[i], p)
				used.add(p, r)
				inner, err := c.ctx.UnprotectResponse(nil, ex, r)
				if err != nil {
					break // not protected: a replay meanwhile moved the window on
				}
				echo, ok := inner.Options.Get(coap.Echo)
				if !ok {
					answered++
					break
				}
				m = m.Clone()
				m.Options.Set(coap.Echo, bytes.Clone(echo))
			}
		}
	}
	for body, times := range served {
		if times > 1 {
			// The client itself sends one again with Echo when it was challenged, so
			// that one of the two is served.
			t.Errorf("request %s was served %d times", body, times)
		}
	}
	if answered < 50 {
		t.Errorf("only %d requests were answered", answered)
	}
}
