package oscore

import (
	"bytes"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"hash"
	"testing"

	"github.com/seed4911071e/groupgate/cose"
)

// What is derived without allocations is what crypto/hkdf derives, whatever was
// derived before in the same memory, and nothing of it stays.
func TestHKDFScratch(t *testing.T) {
	var w hkdfScratch
	random := make([]byte, 1024)
	_, _ = rand.Read(random)
	for alg, f := range map[int64]func() hash.Hash{cose.AlgHMAC256: sha256.New, cose.AlgHMAC512: sha512.New} {
		for n := 1; n <= 132; n++ {
			for _, salt := range [][]byte{{}, random[:1], random[:5], random[:64]} {
				secret, info := random[n:n+n%33], random[2*n:2*n+n%80]
				var want []byte
				var err error
				if want, err = hkdf.Key(f, secret, salt, string(info), n); err != nil {
					t.Fatal(err)
				}
				w.info = append(w.info[:0], info...)
				if got := w.derive(alg, secret, salt, n); !bytes.Equal(got, want) {
					t.Fatalf("HMAC %d, %d bytes, salt of %d: %x, want %x", alg, n, len(salt), got, want)
				}
			}
		}
	}
	w.wipe()
	for name, b := range map[string][]byte{
		"inner": w.inner[:cap(w.inner)], "outer": w.outer[:], "prk": w.prk[:], "t": w.t[:], "out": w.out[:cap(w.out)],
	} {
		if !bytes.Equal(b, make([]byte, len(b))) {
			t.Errorf("%s is not wiped", name)
		}
	}
}

func BenchmarkKeystream(b *testing.B) {
	s := must(newGroupSuite(bothModes))
	k := keystreamKey{s, make([]byte, 16)}
	var w hkdfScratch
	m := groupMessage{gid: []byte{0xdd, 0x11}, pivID: []byte("a"), piv: []byte{1}, request: true}
	b.ReportAllocs()
	for b.Loop() {
		k.stream(&w, &m)
	}
}
