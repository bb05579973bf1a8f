package oscore

import (
	"bytes"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
)

// FuzzUnprotectRequest has a server read any datagram: it does not panic, and what
// it refuses changes nothing.
func FuzzUnprotectRequest(f *testing.F) {
	v := loadRFCVectors(f)
	for _, m := range v.Messages {
		f.Add([]byte(m.Protected))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := coap.DecodeMessage(b)
		if err != nil {
			return
		}
		server := v.context(t, "C1", true, 0)
		before := server.window.State()
		got, ex, err := server.UnprotectRequest(nil, m)
		if err == nil {
			if server.window.State() == before || got == nil {
				t.Error("accepted, and the window knows nothing of it")
			}
			return
		}
		if server.window.State() != before || server.seq.Used() != 0 || got != nil || ex != (Exchange{}) {
			t.Errorf("%v changed something", err)
		}
		if r, err := server.Refuse(t.Context(), nil, ex, err); err != nil || !r.Code.IsResponse() || server.seq.Used() != 0 {
			t.Errorf("refused with %+v, %v", r, err)
		}
	})
}

// FuzzUnprotectResponse is the same for a client, before and after it has
// accepted something.
func FuzzUnprotectResponse(f *testing.F) {
	v := loadRFCVectors(f)
	for _, m := range v.Messages {
		f.Add([]byte(m.Protected), false, uint64(0))
		f.Add([]byte(m.Protected), true, uint64(1))
	}
	f.Fuzz(func(t *testing.T, b []byte, observe bool, next uint64) {
		m, err := coap.DecodeMessage(b)
		if err != nil {
			return
		}
		client := v.context(t, "C1", false, 21)
		ex := newExchange(nil, 20, "")
		ex.client, ex.observe, ex.next = true, observe, next
		before := ex
		window := client.window.State()
		got, err := client.UnprotectResponse(nil, &ex, m)
		if client.window.State() != window || client.seq.Used() != 21 {
			t.Error("a response changed the context")
		}
		if (err == nil) != (got != nil) || err == nil && ex == before || err != nil && ex != before {
			t.Errorf("%+v, %v: %+v became %+v", got, err, before, ex)
		}
	})
}

// FuzzIdentity protects any message and gets it back.
func FuzzIdentity(f *testing.F) {
	for _, c := range []string{"44015d1f00003974396c6f63616c686f737483747631", "40010001", "6145000108c0ff68656c6c6f", "5102ffff07dd0b03" + "61616161616161616161616161616161"} {
		f.Add(unhex(f, c), uint8(0))
	}
	f.Fuzz(func(t *testing.T, b []byte, alg uint8) {
		m, err := coap.DecodeMessage(b)
		if err != nil || m.Options.Has(coap.OSCOREOption) || m.Options.Has(coap.ProxyUri) || m.Options.Has(coap.ObserveOption) {
			return
		}
		client, server := pair(t, both(func(p *Params) { p.AEAD = aeads[int(alg)%len(aeads)] }))
		req := m
		if !m.Code.IsRequest() {
			req = get("a")
		}
		p, cex, err := client.ProtectRequest(t.Context(), nil, req)
		if err != nil {
			return // too large
		}
		got, sex, err := server.UnprotectRequest(nil, decode(t, encode(t, p)))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(encode(t, got), encode(t, req)) {
			t.Errorf("%+v, want %+v", got, req)
		}
		if !m.Code.IsResponse() {
			return
		}
		if p, err = server.ProtectResponse(t.Context(), nil, sex, m); err != nil {
			return
		}
		if got, err = client.UnprotectResponse(nil, &cex, decode(t, encode(t, p))); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(encode(t, got), encode(t, m)) {
			t.Errorf("%+v, want %+v", got, m)
		}
	})
}

// FuzzInner opens any plaintext that a peer with the key may send.
func FuzzInner(f *testing.F) {
	f.Add([]byte("\x01\xb3tv1"), true)
	f.Add([]byte("\x45\xffhello"), false)
	f.Add([]byte("\x02\x92\x09\x00\x21\x05\xd7\x0d\x0bcoap://\xffx"), true)
	f.Fuzz(func(t *testing.T, plain []byte, request bool) {
		outer := &coap.Message{Code: coap.POST, Options: coap.Options{{ID: coap.UriHost, Value: []byte("h")}, {ID: coap.OSCOREOption}}}
		for _, s := range []span{toEnd, toHop} {
			var b Buffer
			m, err := b.unprotected(s, outer, plain, request)
			if err != nil {
				continue
			}
			if m.Code.IsRequest() != request || s == toEnd && m.Options.Has(coap.OSCOREOption) {
				t.Errorf("%+v", m)
			}
			for i := range m.Options {
				if i > 0 && m.Options[i].ID < m.Options[i-1].ID {
					t.Errorf("not sorted: %v", m.Options)
				}
			}
		}
	})
}
