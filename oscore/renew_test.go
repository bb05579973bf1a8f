package oscore

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
)

// newRenewals makes both ends of RFC 8613, Appendix B.2. Calling one of them again
// is a reboot.
func newRenewals(t testing.TB) (client, server func() *Renewal) {
	end := func(sender, recipient byte, secret string) func() *Renewal {
		return func() *Renewal {
			t.Helper()
			r, err := NewRenewal(Params{
				MasterSecret: cose.NewSecret([]byte(secret)), MasterSalt: []byte("salt"),
				SenderID: []byte{sender}, RecipientID: []byte{recipient},
			})
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
	}
	return end(1, 2, string(testSecret)), end(2, 1, string(testSecret))
}

// renewalRun is what went over the wire in an exchange.
type renewalRun struct {
	requests, responses []*coap.Message
}

// do has client ask until it is served, and returns what was sent.
func (r *renewalRun) do(t testing.TB, client, server *Renewal, text string) {
	t.Helper()
	*r = renewalRun{}
	for range 4 {
		p, x, err := client.ProtectRequest(t.Context(), nil, get("a"))
		if err != nil {
			t.Fatal(err)
		}
		p = wire(t, p)
		r.requests = append(r.requests, p)
		c, m, ex, err := server.UnprotectRequest(nil, p)
		var answer *coap.Message
		if err != nil {
			answer, err = c.Refuse(t.Context(), nil, ex, err)
		} else {
			if m.Options.Path()[0] != "a" {
				t.Fatalf("served %+v", m)
			}
			answer, err = c.ProtectResponse(t.Context(), nil, ex, content(text))
		}
		if err != nil {
			t.Fatal(err)
		}
		answer = wire(t, answer)
		r.responses = append(r.responses, answer)
		got, err := client.UnprotectResponse(nil, x, answer)
		if errors.Is(err, ErrRenewed) {
			continue
		}
		if err != nil || string(got.Payload) != text {
			t.Fatalf("%+v, %v", got, err)
		}
		return
	}
	t.Fatal("not served after four requests")
}

// RFC 8613, Appendix B.2, Figure 14, with every combination of reboots.
func TestRenewal(t *testing.T) {
	newClient, newServer := newRenewals(t)
	client, server := newClient(), newServer()
	var run renewalRun
	for i, c := range []struct {
		name           string
		client, server bool
		requests       int
	}{
		{"first contact", false, false, 2},
		{"established", false, false, 1},
		{"the client lost the context", true, false, 2},
		{"the server lost the context", false, true, 2},
		{"both lost it", true, true, 2},
		{"established again", false, false, 1},
	} {
		if c.client {
			client = newClient()
		}
		if c.server {
			server = newServer()
		}
		run.do(t, client, server, c.name)
		if len(run.requests) != c.requests {
			t.Errorf("%s: %d requests", c.name, len(run.requests))
		}
		if client.Current() == nil || !bytes.Equal(client.Current().idContext, server.Current().idContext) {
			t.Fatalf("%s: the ends differ", c.name)
		}
		if i == 0 {
			r1, _ := unwrap(optionOf(t, run.requests[0]).KIDContext)
			r2, _ := unwrap(optionOf(t, run.responses[0]).KIDContext)
			id3, _ := unwrap(optionOf(t, run.requests[1]).KIDContext)
			if len(r1) != 8 || len(r2) != 16 || len(id3) != 24 || !bytes.HasPrefix(id3, r2) || optionOf(t, run.responses[1]).KIDContext != nil {
				t.Errorf("R1 %x, R2 %x, ID3 %x", r1, r2, id3)
			}
			if hint, _ := client.Current().hint(); !bytes.Equal(hint, id3) {
				t.Errorf("an agreed context is named %x", hint)
			}
			if !bytes.Equal(id3, client.Current().idContext) {
				t.Errorf("agreed on %x", client.Current().idContext)
			}
		}
	}
	// The server asks, in the context that it has.
	run.do(t, server, client, "roles swapped")
	if len(run.requests) != 1 {
		t.Errorf("%d requests", len(run.requests))
	}
	// Or after it lost it.
	server = newServer()
	run.do(t, server, client, "roles swapped, lost")
	if len(run.requests) != 2 {
		t.Errorf("%d requests", len(run.requests))
	}
}

// Appendix B.2.2: no message that went by leads anywhere again.
func TestRenewalReplays(t *testing.T) {
	newClient, newServer := newRenewals(t)
	client, server := newClient(), newServer()
	var first, second renewalRun
	first.do(t, client, server, "1")
	agreed := server.Current()
	// Request #1 starts a run that nobody completes.
	for range 3 {
		c, m, ex, err := server.UnprotectRequest(nil, first.requests[0])
		if !errors.Is(err, ErrRenew) || m != nil {
			t.Fatalf("%+v, %v", m, err)
		}
		p, err := c.Refuse(t.Context(), nil, ex, err)
		if err != nil {
			t.Fatal(err)
		}
		if r2 := optionOf(t, p).KIDContext; bytes.Equal(r2, optionOf(t, first.responses[0]).KIDContext) {
			t.Error("R2 is used twice")
		}
	}
	if _, _, _, err := server.UnprotectRequest(nil, first.requests[1]); !errors.Is(err, ErrReplay) {
		t.Errorf("request #2 again: %v", err)
	}
	if server.Current() != agreed {
		t.Error("replays changed the context")
	}
	client = newClient()
	second.do(t, client, server, "2")
	if server.Current() == agreed {
		t.Error("the context is the old one")
	}
	// Request #2 of the run before leads to a challenge, not to its context.
	if _, m, _, err := server.UnprotectRequest(nil, first.requests[1]); !errors.Is(err, ErrRenew) || m != nil {
		t.Errorf("%+v, %v", m, err)
	}
	// Nor do responses of one run do for another.
	_, x, err := newClient().ProtectRequest(t.Context(), nil, get("a"))
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range append(first.responses, second.responses...) {
		before := *x
		if got, err := client.UnprotectResponse(nil, x, m); err == nil || errors.Is(err, ErrRenewed) || *x != before {
			t.Errorf("response %d: %+v, %v", i, got, err)
		}
	}
}

func TestRenewalRefused(t *testing.T) {
	newClient, newServer := newRenewals(t)
	client, server := newClient(), newServer()
	p, x, err := client.ProtectRequest(t.Context(), nil, get("a"))
	if err != nil {
		t.Fatal(err)
	}
	p = p.Clone()
	with := func(m *coap.Message, f func(*Option)) *coap.Message {
		m = m.Clone()
		o := optionOf(t, m)
		f(&o)
		b, err := o.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		m.Options.Set(coap.OSCOREOption, b)
		return m
	}
	kidContext := func(m *coap.Message, b []byte) *coap.Message {
		return with(m, func(o *Option) { o.KIDContext = b })
	}
	for _, c := range []struct {
		name string
		m    *coap.Message
		want error
	}{
		{"another kid", with(p, func(o *Option) { o.KID = []byte{9} }), ErrContext},
		{"no kid context", kidContext(p, nil), ErrContext},
		{"not wrapped", kidContext(p, []byte{1, 2, 3}), ErrDecrypt},
		{"nothing wrapped", kidContext(p, []byte{0x40}), ErrDecrypt},
		{"empty", kidContext(p, []byte{}), ErrDecrypt},
		{"bytes behind", kidContext(p, []byte{0x41, 1, 1}), ErrDecrypt},
		{"long", kidContext(p, appendCBORBytes(nil, make([]byte, 65))), ErrContext},
		{"another", kidContext(p, []byte{0x41, 1}), ErrDecrypt},
		{"unprotected", get("a"), ErrUnprotected},
		{"empty payload", &coap.Message{Options: p.Options}, ErrOption},
	} {
		ctx, m, ex, err := server.UnprotectRequest(nil, c.m)
		if !errors.Is(err, c.want) || ctx != nil || m != nil || ex != (Exchange{}) || server.key != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	c, _, ex, err := server.UnprotectRequest(nil, p)
	if !errors.Is(err, ErrRenew) {
		t.Fatal(err)
	}
	answer, err := c.Refuse(t.Context(), nil, ex, err)
	if err != nil {
		t.Fatal(err)
	}
	for name, m := range map[string]*coap.Message{
		"another R2":        kidContext(answer, appendCBORBytes(nil, make([]byte, 16))),
		"R2 not wrapped":    kidContext(answer, make([]byte, 16)),
		"long R2":           kidContext(answer, appendCBORBytes(nil, make([]byte, 60))),
		"without":           kidContext(answer, nil),
		"a Partial IV":      with(answer, func(o *Option) { o.PIV = []byte{0} }),
		"another recipient": with(answer, func(o *Option) { o.KID = []byte{9} }),
	} {
		before, pending := *x, client.pending
		if _, err := client.UnprotectResponse(nil, x, m); err == nil || errors.Is(err, ErrRenewed) || *x != before || client.pending != pending {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Other servers answer with a Partial IV of their own.
	own, err := c.protectResponse(t.Context(), nil, ex, &coap.Message{Code: coap.Unauthorized}, responseOwnPIV)
	if err != nil {
		t.Fatal(err)
	}
	own = with(own, func(o *Option) { o.KIDContext = c.kidContext })
	if _, err := client.UnprotectResponse(nil, &RenewalExchange{c: x.c, ex: x.ex}, own); !errors.Is(err, ErrRenewed) {
		t.Error(err)
	}
	if _, err := client.UnprotectResponse(nil, x, answer); !errors.Is(err, ErrRenewed) {
		t.Error(err)
	}
	if _, err := client.UnprotectResponse(nil, x, answer); !errors.Is(err, ErrRenewed) && !errors.Is(err, ErrReplay) {
		t.Errorf("once more: %v", err)
	}
	for name, f := range map[string]func(*Params){
		"ID Context": func(p *Params) { p.IDContext = []byte{} },
		"window":     func(p *Params) { p.Window = &WindowState{} },
		"start":      func(p *Params) { p.Sequence.Start = 1 },
		"store":      func(p *Params) { p.Sequence.Store = &memory{} },
		"secret":     func(p *Params) { p.MasterSecret = cose.Secret{} },
	} {
		p := Params{MasterSecret: cose.NewSecret(testSecret), SenderID: []byte{1}, RecipientID: []byte{2}}
		f(&p)
		if _, err := NewRenewal(p); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if s := fmt.Sprintf("%v %+v %#v", client, client, client); strings.Contains(s, string(testSecret)) ||
		strings.Contains(s, hex.EncodeToString(testSecret)) {
		t.Error(s)
	}
}

// Many requests at once, from a client that knows no context: all are served in
// the end, each once, and both ends agree.
func TestRenewalConcurrent(t *testing.T) {
	newClient, newServer := newRenewals(t)
	client, server := newClient(), newServer()
	var served atomic.Int32
	var wg sync.WaitGroup
	const n = 20
	for i := range n {
		wg.Go(func() {
			for range 20 {
				p, x, err := client.ProtectRequest(t.Context(), nil, get("a"))
				if err != nil {
					t.Error(err)
					return
				}
				c, _, ex, err := server.UnprotectRequest(nil, p)
				var answer *coap.Message
				if err == nil {
					served.Add(1)
					answer, err = c.ProtectResponse(t.Context(), nil, ex, content(fmt.Sprint(i)))
				} else {
					answer, err = c.Refuse(t.Context(), nil, ex, err)
				}
				if err != nil {
					t.Error(err)
					return
				}
				got, err := client.UnprotectResponse(nil, x, answer)
				if err == nil {
					if string(got.Payload) != fmt.Sprint(i) {
						t.Errorf("got %q", got.Payload)
					}
					return
				}
				if !errors.Is(err, ErrRenewed) {
					t.Error(err)
					return
				}
			}
			t.Error("never served")
		})
	}
	wg.Wait()
	if served.Load() != n {
		t.Errorf("served %d times", served.Load())
	}
	if !bytes.Equal(client.Current().idContext, server.Current().idContext) {
		t.Error("the ends differ")
	}
}

func FuzzRenewal(f *testing.F) {
	newClient, _ := newRenewals(f)
	p, _, err := newClient().ProtectRequest(f.Context(), nil, get("a"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(encode(f, p))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := coap.DecodeMessage(b)
		if err != nil {
			return
		}
		_, newServer := newRenewals(t)
		server := newServer()
		_, got, _, err := server.UnprotectRequest(nil, m)
		if err == nil || got != nil || server.current != nil {
			t.Errorf("%x is served: %+v, %v", b, got, err)
		}
	})
}
