package secure_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/coaptest"
	"github.com/seed4911071e/groupgate/coap/secure"
	"github.com/seed4911071e/groupgate/oscore"
)

// crowd answers as the proxy does for a group: one response at once, and what comes
// out of the channel after that.
type crowd struct {
	more    chan *coap.Response
	lasting bool
	mu      sync.Mutex
	ended   []error
}

func (c *crowd) serve(_ context.Context, req *coap.Request) (*coap.Response, error) {
	if req.Path()[0] != "group" {
		return &coap.Response{Code: coap.Content, Payload: []byte("alone")}, nil
	}
	r := &coap.Response{Code: coap.Content, Payload: []byte("first"), Lasting: c.lasting}
	r.More = func(ctx context.Context, send func(*coap.Response) error) (err error) {
		defer func() { c.mu.Lock(); defer c.mu.Unlock(); c.ended = append(c.ended, err) }()
		for {
			select {
			case r, ok := <-c.more:
				if !ok {
					return nil
				}
				if err := send(r); err != nil {
					return err
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return r, nil
}

func (c *crowd) say(texts ...string) {
	for _, text := range texts {
		c.more <- &coap.Response{Code: coap.Content, Payload: []byte(text)}
	}
}

// over says how many have ended.
func (c *crowd) over() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.ended)
}

// heard collects what reaches a client.
type heard struct {
	mu  sync.Mutex
	got []*coap.Message
}

func (h *heard) trace(toServer bool, m *coap.Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !toServer && m.Code != coap.Empty {
		h.got = append(h.got, m.Clone())
	}
}

// open reads all of it as what answers one request, and wants each under a nonce of its
// own, with the first alone under that of the request.
func (h *heard) open(t *testing.T, c *client, ex *oscore.Exchange) []string {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	var texts []string
	pivs := map[string]bool{}
	for i, m := range h.got {
		raw, _ := m.Options.Get(coap.OSCOREOption)
		o, err := oscore.DecodeOption(raw)
		if err != nil || pivs[string(o.PIV)] || (o.PIV == nil) != (i == 0) {
			t.Errorf("response %d: Partial IV %x, of those before it %v, %v", i, o.PIV, pivs, err)
		}
		pivs[string(o.PIV)] = true
		inner := c.open(ex, m)
		texts = append(texts, string(inner.Payload))
		if _, err := c.ctx.UnprotectResponse(nil, ex, m); !errors.Is(err, oscore.ErrReplay) {
			t.Errorf("response %d again: %v", i, err)
		}
	}
	h.got = nil
	slices.Sort(texts) // the network keeps no order
	return texts
}

// group makes a request to the crowd that takes several responses.
func (c *client) group(token string) (*coap.Message, *oscore.Exchange) {
	m := get("group")
	m.Options.SetUint(oscore.MulticastTimeout, 60)
	p, ex := c.protect(m)
	p.Token = []byte(token)
	return p, ex
}

// TestFurther: a request to a group has more responses than one without being an
// observation. Each is protected, with a Partial IV of its own but for the first (RFC
// 8613, Section 5.2; draft-ietf-core-oscore-capable-proxies-07, Section 2.5.1), and bound
// to its request.
func TestFurther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(1, 2)
		all := &crowd{more: make(chan *coap.Response, 16)}
		g := start(t, s, all.serve)
		var h heard
		l := g.over("plain", coaptest.Options{Trace: h.trace})
		c := newHopClient(t, s, 1)
		p, ex := c.group("one")
		send(t, l, p)
		all.say("second", "third")
		settle(time.Second)
		if got := h.open(t, c, ex); !slices.Equal(got, []string{"first", "second", "third"}) {
			t.Errorf("%q", got)
		}
		if n := g.answering(); n != 1 {
			t.Errorf("%d requests with responses to come", n)
		}
		// Others go on meanwhile, of this client and of others.
		if r := c.ask(l, get("x")); string(r.Payload) != "alone" {
			t.Errorf("%s", r.Payload)
		}
		if r := newClient(t, s, 2).ask(l, get("x")); string(r.Payload) != "alone" {
			t.Errorf("%s", r.Payload)
		}
		close(all.more)
		settle(time.Second)
		if n := g.answering(); n != 0 || all.over() != 1 {
			t.Errorf("%d requests with responses to come, %d ended", n, all.over())
		}
	})
}

// TestFurtherObserved: a group that is observed answers with and without Observe; one
// member that does not take the observation ends it for no other.
func TestFurtherObserved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(1)
		all := &crowd{more: make(chan *coap.Response, 16), lasting: true}
		g := start(t, s, all.serve)
		var h heard
		l := g.over("plain", coaptest.Options{Trace: h.trace})
		c := newHopClient(t, s, 1)
		m := get("group")
		m.Options.SetUint(oscore.MulticastTimeout, 60)
		m.Options.SetUint(coap.ObserveOption, 0)
		p, ex := c.protect(m)
		p.Token = []byte("watch")
		send(t, l, p) // the first member does not take it
		all.say("second")
		all.more <- &coap.Response{Code: coap.Content, Payload: []byte("third"), Options: coap.Options{{ID: coap.ObserveOption, Value: []byte{9}}}}
		all.say("fourth")
		all.more <- &coap.Response{Code: coap.Content, Payload: []byte("fifth"), Options: coap.Options{{ID: coap.ObserveOption, Value: []byte{7}}}}
		settle(time.Second)
		if got := h.open(t, c, ex); !slices.Equal(got, []string{"fifth", "first", "fourth", "second", "third"}) {
			t.Errorf("%q", got)
		}
		// RFC 7641, Section 3.6: the client rejects one.
		g.layer.Cancel("plain", []byte("watch"))
		settle(time.Second)
		if n := g.answering(); n != 0 || all.over() != 1 {
			t.Errorf("%d requests with responses to come, %d ended", n, all.over())
		}
	})
}

// TestFurtherEnds: what is kept of a request for its further responses is bounded, and
// goes with its end, whatever that is.
func TestFurtherEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(1)
		all := &crowd{more: make(chan *coap.Response, 16)}
		g := start(t, s, all.serve)
		l := g.over("plain", coaptest.Options{})
		c := newHopClient(t, s, 1)
		for i := range 9 {
			p, _ := c.group(fmt.Sprint("t", i))
			send(t, l, p)
		}
		if n := g.answering(); n != 4 { // what the server core has of one peer
			t.Errorf("%d requests with responses to come", n)
		}
		g.layer.Cancel("other", []byte("t0"))
		g.layer.Cancel("plain", []byte("t9"))
		settle(time.Second)
		if n := g.answering(); n != 4 {
			t.Errorf("%d requests with responses to come after what is not theirs", n)
		}
		g.layer.Cancel("plain", []byte("t0"))
		settle(time.Second)
		if n := g.answering(); n != 3 {
			t.Errorf("%d requests with responses to come after one was rejected", n)
		}
		s.end(1)
		g.layer.Drop([]coap.LinkID{"oscore-1"})
		settle(time.Minute)
		if n := g.answering(); n != 0 {
			t.Errorf("%d requests with responses to come of a context that ended", n)
		}
	})
}

// TestLastWord: the end of a context is told to what it observes with the context itself,
// although the store has forgotten it and makes no number durable any more. Where the
// registration wanted no response, the nonce of the request is left for that.
func TestLastWord(t *testing.T) {
	for _, quiet := range []bool{false, true} {
		t.Run(fmt.Sprint("quiet ", quiet), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newShelf(1)
				version := uint64(1)
				g := start(t, s, topic(&version))
				var h heard
				l := g.over("plain", coaptest.Options{Trace: h.trace})
				c := newClient(t, s, 1)
				m := get("t")
				m.Options.SetUint(coap.ObserveOption, 0)
				if quiet {
					m.Options.SetUint(coap.NoResponse, 2)
				}
				p, ex := c.protect(m)
				p.Type, p.Token = coap.NonConfirmable, []byte{7}
				l.Inject(true, encode(t, p))
				settle(time.Second)
				s.end(1)
				s.mu.Lock()
				s.fails = secure.ErrTaken
				s.mu.Unlock()
				g.layer.Drop([]coap.LinkID{"oscore-1"})
				g.srv.Drop("t", "oscore-1", &coap.Response{Code: coap.Unauthorized})
				settle(time.Second)
				h.mu.Lock()
				defer h.mu.Unlock()
				var got []coap.Code
				for _, m := range h.got {
					got = append(got, c.open(ex, m).Code)
				}
				want := []coap.Code{coap.Content, coap.Unauthorized}
				if quiet {
					want = want[1:]
				}
				if !slices.Equal(got, want) {
					t.Errorf("%v", got)
				}
			})
		})
	}
}

func encode(t *testing.T, m *coap.Message) []byte {
	t.Helper()
	b, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return b
}
