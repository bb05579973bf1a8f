package oscore

import (
	"crypto/cipher"
	"fmt"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
)

// With a Buffer that is used again nothing is allocated for a message; without one
// it is the Buffer with its output.
func TestAllocations(t *testing.T) {
	if raceDetector {
		t.Log("not counted under the race detector")
		return
	}
	for _, alg := range aeads {
		client, server := pair(t, both(func(p *Params) { p.AEAD, p.IDContext = alg, []byte("ctx"); p.Sequence.Store = &memory{} }))
		ctx := t.Context()
		req, resp := get("a/b"), observed(content("some payload that is not short"), 5)
		req = observed(req, 0)
		var b1, b2, b3, b4 Buffer
		round := func() {
			p, cex, err := client.ProtectRequest(ctx, &b1, req)
			if err != nil {
				t.Fatal(err)
			}
			if _, ex, err := server.UnprotectRequest(&b2, p); err != nil {
				t.Fatal(err)
			} else if p, err = server.ProtectResponse(ctx, &b3, ex, resp); err != nil {
				t.Fatal(err)
			}
			if _, err := client.UnprotectResponse(&b4, &cex, p); err != nil {
				t.Fatal(err)
			}
		}
		round()
		if n := testing.AllocsPerRun(200, round); n != 0 {
			t.Errorf("algorithm %d: %v allocations for a request and its response", alg, n)
		}
	}
	client, server := pair(t)
	var set Set
	if err := set.Add(server); err != nil {
		t.Fatal(err)
	}
	var b1, b2 Buffer
	req := get("a")
	if n := testing.AllocsPerRun(200, func() {
		p, _, err := client.ProtectRequest(t.Context(), &b1, req)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, _, err := set.UnprotectRequest(&b2, p); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations by way of a set", n)
	}
	if n := testing.AllocsPerRun(200, func() {
		if _, _, err := client.ProtectRequest(t.Context(), nil, req); err != nil {
			t.Fatal(err)
		}
	}); n > 3 {
		t.Errorf("%v allocations without a Buffer", n)
	}
}

// benchSizes are the sizes of payloads that are measured.
var benchSizes = []int{64, 1024}

func benchMessage(n int) *coap.Message {
	m := &coap.Message{Type: coap.NonConfirmable, Code: coap.POST, ID: 1, Token: []byte{1, 2}, Payload: make([]byte, n)}
	m.Options.SetPath("sensors", "temperature")
	return m
}

// BenchmarkBareAEAD is the floor: the AEAD over the same plaintext with the same
// associated data.
func BenchmarkBareAEAD(b *testing.B) {
	for _, n := range benchSizes {
		client, _ := pair(b)
		m := benchMessage(n)
		var buf Buffer
		if err := client.plaintext(&buf, m); err != nil {
			b.Fatal(err)
		}
		aad, nonce := client.setAAD(&buf, client.senderID, 1000), client.setNonce(&buf, client.senderID, 1000)
		aead, err := cose.NewAEAD(client.alg, make([]byte, 16))
		if err != nil {
			b.Fatal(err)
		}
		plain, room := buf.data, make([]byte, 0, n+100)
		b.Run(fmt.Sprintf("Seal/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				room = aead.Seal(room[:0], nonce, plain, aad)
			}
		})
		b.Run(fmt.Sprintf("Open/%d", n), func(b *testing.B) { benchOpen(b, aead, nonce, room, aad) })
	}
}

func benchOpen(b *testing.B, aead cipher.AEAD, nonce, sealed, aad []byte) {
	b.ReportAllocs()
	var out []byte
	var err error
	for b.Loop() {
		if out, err = aead.Open(out[:0], nonce, sealed, aad); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkProtect(b *testing.B) {
	for _, n := range benchSizes {
		client, _ := pair(b, func(c, _ *Params) { c.Sequence.Start = 1000 })
		m, ctx := benchMessage(n), b.Context()
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var buf Buffer
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := client.ProtectRequest(ctx, &buf, m); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkUnprotect(b *testing.B) {
	for _, n := range benchSizes {
		client, server := pair(b, func(c, _ *Params) { c.Sequence.Start = 1000 })
		p, _, err := client.ProtectRequest(b.Context(), nil, benchMessage(n))
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var buf Buffer
			b.ReportAllocs()
			for b.Loop() {
				server.window.Reset()
				if _, _, err := server.UnprotectRequest(&buf, p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
