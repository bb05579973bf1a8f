package oscore

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
)

// ecdsaAllocations counts what the standard library allocates for one signature and
// one verification.
func ecdsaAllocations(c elliptic.Curve) (sign, verify float64) {
	key := must(ecdsa.GenerateKey(c, rand.Reader))
	digest := make([]byte, 32)
	sig := must(ecdsa.SignASN1(rand.Reader, key, digest))
	sign = testing.AllocsPerRun(10, func() { _, _, _ = ecdsa.Sign(rand.Reader, key, digest) })
	verify = testing.AllocsPerRun(10, func() { ecdsa.VerifyASN1(&key.PublicKey, digest, sig) })
	return sign, verify
}

// exchange is a request, its first response and a notification, from one member to
// another and back, with memory that is used again.
func (s *site) exchange(client, server *Group, mode, answer Mode) func() {
	req, resp := observed(get("/a"), 0), observed(content("some payload that is not short"), 5)
	var b1, b2, b3, b4 Buffer
	ctx := s.t.Context()
	ok := func(err error) {
		if err != nil {
			s.t.Fatal(err)
		}
	}
	to := s.keys["b"].ID
	return func() {
		var p *coap.Message
		var x *GroupExchange
		var err error
		if mode == GroupMode {
			p, x, err = client.ProtectRequest(ctx, &b1, req)
		} else {
			p, x, err = client.ProtectRequestTo(ctx, &b1, to, req)
		}
		ok(err)
		_, sx, err := server.UnprotectRequest(&b2, p)
		ok(err)
		for range 2 {
			p, err = sx.ProtectIn(ctx, &b3, answer, resp)
			ok(err)
			_, _, err = x.Unprotect(&b4, p)
			ok(err)
		}
		sx.Recycle()
		x.Recycle()
	}
}

// With memory that is used again a group's messages cost no allocation in either mode
// and either direction, but for what the standard library needs for ECDSA.
func TestGroupAllocations(t *testing.T) {
	if raceDetector {
		t.Log("not counted under the race detector")
		return
	}
	type sum struct{ sign, verify float64 }
	bare := map[int64]sum{cose.AlgEdDSA: {}}
	for alg, c := range map[int64]elliptic.Curve{
		cose.AlgES256: elliptic.P256(), cose.AlgES384: elliptic.P384(), cose.AlgES512: elliptic.P521(),
	} {
		sign, verify := ecdsaAllocations(c)
		bare[alg] = sum{sign, verify}
	}
	for _, algs := range []GroupAlgorithms{
		bothModes,
		{AEAD: cose.AlgA128GCM, GroupEnc: cose.AlgA128CTR, Sign: cose.AlgEdDSA, HKDF: cose.AlgHMAC512, KeyAgreement: cose.AlgECDHSSHKDF512},
		{AEAD: cose.AlgChaCha20Poly1305, GroupEnc: cose.AlgChaCha20Poly1305, Sign: cose.AlgEdDSA, KeyAgreement: cose.AlgECDHSSHKDF256},
		{AEAD: cose.AlgAESCCM16_64_128, GroupEnc: cose.AlgA256GCM, Sign: cose.AlgES256, KeyAgreement: cose.AlgECDHSSHKDF256},
		{AEAD: cose.AlgAESCCM16_64_128, GroupEnc: cose.AlgAESCCM16_64_128, Sign: cose.AlgES384, KeyAgreement: cose.AlgECDHSSHKDF256},
		{AEAD: cose.AlgAESCCM16_64_128, GroupEnc: cose.AlgAESCCM16_64_128, Sign: cose.AlgES512, KeyAgreement: cose.AlgECDHSSHKDF256},
	} {
		s := newSite(t, algs)
		client, server := s.member("a", GroupConfig{}), s.member("b", GroupConfig{})
		for _, mode := range []Mode{GroupMode, PairwiseMode} {
			for _, answer := range []Mode{GroupMode, PairwiseMode} {
				signed := 0.0
				if mode == GroupMode {
					signed++
				}
				if answer == GroupMode {
					signed += 2
				}
				round := s.exchange(client, server, mode, answer)
				round()
				want, runs := signed*(bare[algs.Sign].sign+bare[algs.Sign].verify), 100
				if want > 0 {
					// The library's numbers are rounded down, and vary. One of our own would
					// be one for each signature.
					want, runs = want+max(1, signed-1), 10
				}
				if n := testing.AllocsPerRun(runs, round); n > want {
					t.Errorf("%+v, %v and answers in %v mode: %v allocations, want %v", algs, mode, answer, n, want)
				}
			}
		}
	}
}

// Without Recycle and with Buffers a request costs what remembers it; without Buffers
// also the message and its bytes.
func TestGroupAllocationsOneByOne(t *testing.T) {
	if raceDetector {
		t.Log("not counted under the race detector")
		return
	}
	s := newSite(t, bothModes)
	client, server := s.member("a", GroupConfig{}), s.member("b", GroupConfig{})
	req, resp := get("/a"), content("b")
	var b1, b2, b3, b4 Buffer
	for _, mode := range []Mode{GroupMode, PairwiseMode} {
		protect := func(b *Buffer) (*coap.Message, *GroupExchange, error) {
			if mode == GroupMode {
				return client.ProtectRequest(t.Context(), b, req)
			}
			return client.ProtectRequestTo(t.Context(), b, []byte("b"), req)
		}
		var p *coap.Message
		var x *GroupExchange
		var sx *GroupRequest
		var err error
		for _, step := range []struct {
			name string
			max  float64
			run  func()
		}{
			{"protect a request", 3, func() { p, x, err = protect(nil) }},
			{"with a buffer", 1, func() { p, x, err = protect(&b1) }},
			{"read it", 1, func() {
				if w := server.Window([]byte("a")); w != nil {
					w.Reset() // it is the same request again and again
				}
				_, sx, err = server.UnprotectRequest(&b2, p)
			}},
			{"protect a response", 0, func() { p, err = sx.Protect(t.Context(), &b3, resp) }},
			{"read the response", 1, func() { x.over, x.responders = false, nil; _, _, err = x.Unprotect(&b4, p) }},
		} {
			n := testing.AllocsPerRun(200, func() {
				if step.run(); err != nil {
					t.Fatal(err)
				}
			})
			if n > step.max {
				t.Errorf("%v mode: %s: %v allocations, want %v", mode, step.name, n, step.max)
			}
		}
	}
}

// fewCreds is a source of credentials that allocates nothing.
type fewCreds map[string][]byte

func (c fewCreds) Credential(_, kid []byte) ([]byte, bool) {
	cred, ok := c[string(kid)]
	return cred, ok
}

// A signature checker allocates nothing for a message.
func TestVerifierAllocations(t *testing.T) {
	if raceDetector {
		t.Log("not counted under the race detector")
		return
	}
	s := newSite(t, bothModes)
	client, server := s.member("a", GroupConfig{}), s.member("b", GroupConfig{})
	v := s.verifier(fewCreds{"a": s.keys["a"].Cred, "b": s.keys["b"].Cred})
	req, _ := ask(t, client, GroupMode, "", get("/a"))
	_, sx, err := server.UnprotectRequest(nil, req)
	if err != nil {
		t.Fatal(err)
	}
	resp := wire(t, must(sx.Protect(t.Context(), nil, content("x"))))
	if n := testing.AllocsPerRun(100, func() {
		seen, err := v.VerifyRequest(req)
		if err != nil {
			t.Fatal(err)
		}
		if err := v.VerifyResponse(seen, resp, nil); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for a request and its response", n)
	}
}

// A checker sees that a credential was replaced, and its memory of them is bounded.
func TestVerifierCredentials(t *testing.T) {
	s := newSite(t, bothModes)
	client := s.member("a", GroupConfig{})
	creds := fewCreds{"a": s.keys["a"].Cred}
	v := s.verifier(creds)
	req, _ := ask(t, client, GroupMode, "", get("/a"))
	if _, err := v.VerifyRequest(req); err != nil {
		t.Fatal(err)
	}
	creds["a"] = cose.EncodeCCS("somebody else", must(cose.GenerateKey(cose.AlgEdDSA)))
	_, err := v.VerifyRequest(req)
	wantErr(t, "credential of another", err, ErrDecrypt)
	creds["a"] = s.keys["a"].Cred
	if _, err := v.VerifyRequest(req); err != nil {
		t.Error(err)
	}
	for i := range 2 * defaultMaxRecipients {
		kid := fmt.Sprint(i)
		creds[kid] = s.keys["a"].Cred
		if _, err := v.peer([]byte(kid)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(v.peers); n > defaultMaxRecipients {
		t.Errorf("%d credentials are remembered", n)
	}
}
