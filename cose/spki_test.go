package cose

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"testing"
)

// TestSPKI: a key is the same after SubjectPublicKeyInfo, and the private key of
// the standard library belongs to it.
func TestSPKI(t *testing.T) {
	for _, alg := range []int64{AlgEdDSA, AlgES256, AlgES384, AlgES512} {
		k, err := GenerateKey(alg)
		if err != nil {
			t.Fatal(err)
		}
		der, err := k.SPKI()
		if err != nil {
			t.Fatal(err)
		}
		back, err := KeyFromSPKI(der)
		if err != nil || !back.SamePublic(k) || back.IsPrivate() {
			t.Errorf("%d: %v", alg, err)
		}
		priv, err := k.PrivateKey()
		if err != nil {
			t.Fatal(err)
		}
		if again, err := x509.MarshalPKIXPublicKey(priv.Public()); err != nil || !bytes.Equal(again, der) {
			t.Errorf("%d: another key, %v", alg, err)
		}
		for n := range der {
			if _, err := KeyFromSPKI(der[:n]); err == nil {
				t.Errorf("%d: %d bytes of %d are a key", alg, n, len(der))
			}
		}
		if _, err := k.Public().PrivateKey(); err == nil {
			t.Errorf("%d: a public key signs", alg)
		}
	}
	dh, err := GenerateDHKey(CrvX25519)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dh.SPKI(); err == nil {
		t.Error("a key for Diffie-Hellman has a place in handshakes")
	}
}

// TestThumbprint: the example of RFC 9679, Section 6, of a key that also has what does
// not count.
func TestThumbprint(t *testing.T) {
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	k := &Key{
		Kty: KtyEC2, Crv: CrvP256, KID: []byte("meriadoc"), Alg: AlgES256,
		X: unhex("65eda5a12577c2bae829437fe338701a10aaa375e1bb5b5de108de439c08551d"),
		Y: unhex("1e52ed75701163f7f9e40ddf9f341b3dc9ba860af7e0ca7ca7e9eecd0084d19c"),
	}
	if got := hex.EncodeToString(k.Thumbprint()); got != "496bd8afadf307e5b08c64b0421bf9dc01528a344a43bda88fadd1669da253ec" {
		t.Error(got)
	}
}
