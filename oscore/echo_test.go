package oscore

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
)

// RFC 8613, Appendix B.1.2: a server that lost its Replay Window serves nothing
// before the client has shown that it is there now.
func TestEcho(t *testing.T) {
	store := &memory{upTo: 512}
	client, server := pair(t, func(c, s *Params) {
		s.Window = &WindowState{}
		s.Sequence = SequenceConfig{Start: store.upTo, Store: store}
		c.Sequence.Start = 40
	})
	ask := func(m *coap.Message) (p *coap.Message, ex Exchange) {
		t.Helper()
		p, ex, err := client.ProtectRequest(t.Context(), nil, m)
		if err != nil {
			t.Fatal(err)
		}
		return p, ex
	}
	first, cex := ask(get("a"))
	var challenge *coap.Message
	for range 2 { // the same request, replayed, is challenged again
		got, sex, err := server.UnprotectRequest(nil, first)
		if !errors.Is(err, ErrNotFresh) || got != nil || server.Window().Valid() {
			t.Fatalf("%+v, %v", got, err)
		}
		p, err := server.Refuse(t.Context(), nil, sex, err)
		if err != nil {
			t.Fatal(err)
		}
		// "The server MUST use its Partial IV ... and MUST include" it.
		if o := optionOf(t, p); o.PIV == nil || pivNumber(o.PIV) < 512 {
			t.Errorf("Partial IV %x", o.PIV)
		}
		challenge = p.Clone()
	}
	got, err := client.UnprotectResponse(nil, &cex, challenge)
	if err != nil {
		t.Fatal(err)
	}
	echo, ok := got.Options.Get(coap.Echo)
	if got.Code != coap.Unauthorized || !ok || len(got.Options) != 1 || len(got.Payload) != 0 {
		t.Fatalf("challenge %+v", got)
	}

	wrong := get("a")
	wrong.Options.Add(coap.Echo, []byte("12345678"))
	p, _ := ask(wrong)
	if _, _, err := server.UnprotectRequest(nil, p); !errors.Is(err, ErrNotFresh) {
		t.Errorf("another Echo value: %v", err)
	}
	// Outside of the ciphertext it proves nothing.
	p, _ = ask(get("a"))
	p.Options.Set(coap.Echo, echo)
	if _, _, err := server.UnprotectRequest(nil, p); !errors.Is(err, ErrNotFresh) {
		t.Errorf("outer Echo: %v", err)
	}

	again := get("a")
	again.Options.Add(coap.Echo, echo)
	p, cex = ask(again)
	wire := encode(t, p)
	got, sex, err := server.UnprotectRequest(nil, p)
	if err != nil || got.Options.Path()[0] != "a" {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, err := client.UnprotectResponse(nil, &cex, respond(t, server, sex, content("x"))); err != nil {
		t.Error(err)
	}
	// From here on the window is known: before it nothing, behind it everything once.
	for name, m := range map[string]*coap.Message{"first": first, "second": decode(t, wire)} {
		if _, _, err := server.UnprotectRequest(nil, m); !errors.Is(err, ErrReplay) {
			t.Errorf("%s again: %v", name, err)
		}
	}
	request(t, client, server, get("b"))
}

// Of several requests with the Echo value one sets the window up, and none is
// served twice.
func TestEchoAtomic(t *testing.T) {
	client, server := pair(t, func(_, s *Params) { s.Window = &WindowState{} })
	p, _, err := client.ProtectRequest(t.Context(), nil, get("a"))
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = server.UnprotectRequest(nil, p)
	if !errors.Is(err, ErrNotFresh) {
		t.Fatal(err)
	}
	m := get("a")
	m.Options.Add(coap.Echo, server.echo[:])
	if p, _, err = client.ProtectRequest(t.Context(), nil, m); err != nil {
		t.Fatal(err)
	}
	var served atomic.Int32
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if _, _, err := server.UnprotectRequest(nil, p); err == nil {
				served.Add(1)
			} else if !errors.Is(err, ErrReplay) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if served.Load() != 1 {
		t.Errorf("served %d times", served.Load())
	}
}

// A window that was stored orderly needs no challenge, and the nonces of requests
// stay unused.
func TestWindowStored(t *testing.T) {
	client, server := pair(t)
	p, _, err := client.ProtectRequest(t.Context(), nil, get("a"))
	if err != nil {
		t.Fatal(err)
	}
	skipped, _, err := client.ProtectRequest(t.Context(), nil, get("a"))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := server.UnprotectRequest(nil, p); err != nil {
		t.Fatal(err)
	}
	request(t, client, server, get("b"))
	state := server.Window().State()
	_, server = pair(t, func(_, s *Params) { s.Window = &state; s.Sequence.Start = server.Sequence().Used() })
	if _, _, err := server.UnprotectRequest(nil, p); !errors.Is(err, ErrReplay) {
		t.Errorf("replay: %v", err)
	}
	_, sex, err := server.UnprotectRequest(nil, skipped)
	if err != nil {
		t.Fatal(err)
	}
	if o := optionOf(t, respond(t, server, sex, content("x"))); o.PIV == nil {
		t.Error("the response has the nonce of the request")
	}
}
