package cwt

import (
	"testing"

	"github.com/seed4911071e/groupgate/cose"
)

// FuzzOpenKey: nothing but what was sealed under the key opens.
func FuzzOpenKey(f *testing.F) {
	kek := []byte("0123456789abcdef")
	sealed, err := SealKey(&cose.Key{Kty: cose.KtySymmetric, K: []byte("fedcba9876543210")}, kek)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed)
	f.Add(sealed[:len(sealed)-1])
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := OpenKey(b, kek)
		if err == nil && string(k.K) != "fedcba9876543210" {
			t.Fatalf("%x opens", b)
		}
	})
}
