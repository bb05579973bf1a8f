package cose

import (
	"bytes"
	"crypto/x509"
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
