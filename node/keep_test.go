package node

import (
	"bytes"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/oscore"
)

func keptAccesses() []*Access {
	own, _ := cose.GenerateKey(cose.AlgEdDSA)
	gm, _ := cose.GenerateKey(cose.AlgES256)
	return []*Access{
		{Token: []byte("a token"), KID: []byte("kid"), Key: cose.NewSecret([]byte("key of the token"))},
		{Token: []byte("a token"), ExpiresAt: time.Unix(1<<31, 0), Material: &oscore.Material{
			ID: []byte("id"), MasterSecret: cose.NewSecret([]byte("master secret 01")), Salt: []byte("salt"),
		}},
		{Token: []byte("a token"), PrivateKey: own, ServerKey: gm.Public()},
		{Token: []byte("a token"), PrivateKey: own},
	}
}

// An access token is the same after a restart, whatever it confirms; what is cut off is
// none.
func TestKeepAccess(t *testing.T) {
	for _, a := range keptAccesses() {
		b := a.Encode()
		got, err := DecodeAccess(b)
		if err != nil || !bytes.Equal(got.Encode(), b) || !got.ExpiresAt.Equal(a.ExpiresAt) || (got.Material == nil) != (a.Material == nil) {
			t.Errorf("%v: %v, %v", a, got, err)
		}
		for n := range b {
			if _, err := DecodeAccess(b[:n]); err == nil {
				t.Errorf("%d bytes of %d are a token", n, len(b))
			}
		}
	}
}

// FuzzKeptAccess: nothing that a file may hold is fatal, and what is read can be kept
// again.
func FuzzKeptAccess(f *testing.F) {
	for _, a := range keptAccesses() {
		f.Add(a.Encode())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := DecodeAccess(b)
		if err != nil {
			return
		}
		if again, err := DecodeAccess(a.Encode()); err != nil || !bytes.Equal(again.Encode(), a.Encode()) {
			t.Errorf("kept again: %v", err)
		}
	})
}
