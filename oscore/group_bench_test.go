package oscore

import (
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
)

// BenchmarkGroup measures one message with 64 bytes in each mode, beside the bare
// signature and the bare AEAD over as many bytes.
func BenchmarkGroup(b *testing.B) {
	s := newSite(b, bothModes)
	client, server := s.member("a", GroupConfig{}), s.member("b", GroupConfig{})
	m := get("/temperature")
	m.Code, m.Payload = coap.POST, make([]byte, 64)
	var b1, b2 Buffer
	for _, mode := range []Mode{GroupMode, PairwiseMode} {
		protect := func() (*coap.Message, *GroupExchange, error) { return client.ProtectRequest(b.Context(), &b1, m) }
		if mode == PairwiseMode {
			protect = func() (*coap.Message, *GroupExchange, error) {
				return client.ProtectRequestTo(b.Context(), &b1, []byte("b"), m)
			}
		}
		p, _, err := protect()
		if err != nil {
			b.Fatal(err)
		}
		p = wire(b, p)
		if _, _, err := server.UnprotectRequest(nil, p); err != nil {
			b.Fatal(err)
		}
		b.Run(mode.String()+"/protect", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := protect(); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(mode.String()+"/unprotect", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				server.Window([]byte("a")).Reset()
				if _, _, err := server.UnprotectRequest(&b2, p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	signed := make([]byte, 330)
	key := s.keys["a"].Key
	sign, verify := key.Signer(), key.Public().Verifier()
	sig := must(sign(signed))
	b.Run("group/sign", func(b *testing.B) {
		for b.Loop() {
			_, _ = sign(signed)
		}
	})
	b.Run("group/verify", func(b *testing.B) {
		for b.Loop() {
			if verify(signed, sig) != nil {
				b.Fatal("signature")
			}
		}
	})
	aead := must(cose.NewAEAD(cose.AlgAESCCM16_64_128, make([]byte, 16)))
	nonce, aad, plain := make([]byte, 13), make([]byte, 220), make([]byte, 80)
	sealed := aead.Seal(nil, nonce, plain, aad)
	b.Run("pairwise/seal", func(b *testing.B) {
		out := make([]byte, 0, 100)
		for b.Loop() {
			out = aead.Seal(out[:0], nonce, plain, aad)
		}
	})
	b.Run("pairwise/open", func(b *testing.B) {
		out := make([]byte, 0, 100)
		for b.Loop() {
			if _, err := aead.Open(out[:0], nonce, sealed, aad); err != nil {
				b.Fatal(err)
			}
		}
	})
}
