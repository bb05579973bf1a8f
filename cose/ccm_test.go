package cose

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/hex"
	"math/rand/v2"
	"testing"

	pion "github.com/pion/dtls/v3/pkg/crypto/ccm"
)

// RFC 3610, Section 8, packet vectors #1, #2, #3, #4 and #7.
func TestCCMVectors(t *testing.T) {
	const key = "c0c1c2c3c4c5c6c7c8c9cacbcccdcecf"
	for _, c := range []struct {
		tag                    int
		nonce, aad, plain, out string
	}{
		{8, "00000003020100a0a1a2a3a4a5", "0001020304050607", "08090a0b0c0d0e0f101112131415161718191a1b1c1d1e",
			"588c979a61c663d2f066d0c2c0f989806d5f6b61dac38417e8d12cfdf926e0"},
		{8, "00000004030201a0a1a2a3a4a5", "0001020304050607", "08090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
			"72c91a36e135f8cf291ca894085c87e3cc15c439c9e43a3ba091d56e10400916"},
		{8, "00000005040302a0a1a2a3a4a5", "0001020304050607", "08090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20",
			"51b1e5f44a197d1da46b0f8e2d282ae871e838bb64da8596574adaa76fbd9fb0c5"},
		{8, "00000006050403a0a1a2a3a4a5", "000102030405060708090a0b", "0c0d0e0f101112131415161718191a1b1c1d1e",
			"a28c6865939a9a79faaa5c4c2a9d4a91cdac8c96c861b9c9e61ef1"},
		{10, "00000009080706a0a1a2a3a4a5", "0001020304050607", "08090a0b0c0d0e0f101112131415161718191a1b1c1d1e",
			"0135d1b2c95f41d5d1d4fec185d166b8094e999dfed96c048c56602c97acbb7490"},
	} {
		k, _ := hex.DecodeString(key)
		block, err := aes.NewCipher(k)
		if err != nil {
			t.Fatal(err)
		}
		a := newCCM(block, c.tag, 13)
		nonce, _ := hex.DecodeString(c.nonce)
		aad, _ := hex.DecodeString(c.aad)
		plain, _ := hex.DecodeString(c.plain)
		if got := a.Seal(nil, nonce, plain, aad); hex.EncodeToString(got) != c.out {
			t.Errorf("%x, want %s", got, c.out)
		}
	}
}

// ccmPair makes this AES-CCM and that of pion with the same key.
func ccmPair(t testing.TB, key []byte, tag, nonce int) (ours, theirs cipher.AEAD) {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	if theirs, err = pion.NewCCM(block, tag, nonce); err != nil {
		t.Fatal(err)
	}
	return newCCM(block, tag, nonce), theirs
}

// compareCCM seals and opens with both, apart and in place.
func compareCCM(t *testing.T, ours, theirs cipher.AEAD, nonce, plain, aad []byte) {
	t.Helper()
	want := theirs.Seal([]byte("head"), nonce, plain, aad)
	if got := ours.Seal([]byte("head"), nonce, plain, aad); !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, %d of associated data: %x, want %x", len(plain), len(aad), got, want)
	}
	want = want[4:]
	if len(plain) > 0 {
		place := append(make([]byte, 0, len(want)), plain...)
		if got := ours.Seal(place[:0], nonce, place, aad); !bytes.Equal(got, want) || &got[0] != &place[0] {
			t.Fatalf("in place: %x, want %x", got, want)
		}
	}
	got, err := ours.Open([]byte("head"), nonce, want, aad)
	if err != nil || !bytes.Equal(got[4:], plain) {
		t.Fatalf("opened %x, %v, want %x", got, err, plain)
	}
	place := bytes.Clone(want)
	if got, err = ours.Open(place[:0], nonce, place, aad); err != nil || !bytes.Equal(got, plain) {
		t.Fatalf("opened in place %x, %v, want %x", got, err, plain)
	}
	for _, i := range []int{0, len(want) / 2, len(want) - 1} {
		bad := bytes.Clone(want)
		bad[i] ^= 0x40
		room := make([]byte, 0, len(want))
		if got, err := ours.Open(room, nonce, bad, aad); err == nil || got != nil {
			t.Fatalf("opened %x", got)
		}
		if left := room[:len(plain)]; !bytes.Equal(left, make([]byte, len(plain))) {
			t.Fatalf("left behind %x", left)
		}
	}
	if _, err := ours.Open(nil, nonce, want[:len(want)-1], aad); err == nil {
		t.Fatal("opened what was cut off")
	}
}

func TestCCMAgainstPion(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	some := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	for _, tag := range []int{4, 8, 10, 16} {
		for _, nonce := range []int{7, 12, 13} {
			for _, key := range []int{16, 32} {
				ours, theirs := ccmPair(t, some(key), tag, nonce)
				if ours.NonceSize() != nonce || ours.Overhead() != tag {
					t.Fatal("sizes")
				}
				for n := range 70 {
					compareCCM(t, ours, theirs, some(nonce), some(n), some(rng.IntN(70)))
				}
				compareCCM(t, ours, theirs, some(nonce), some(5000), nil)
				for _, aad := range []int{0xfefe, 0xfeff, 0xff00, 0xff01, 70000} {
					compareCCM(t, ours, theirs, some(nonce), some(33), some(aad))
				}
			}
		}
	}
	ours, theirs := ccmPair(t, some(16), 8, 13)
	compareCCM(t, ours, theirs, some(13), some(1<<16-1), some(20))
	for name, f := range map[string]func(){
		"long plaintext":   func() { ours.Seal(nil, some(13), make([]byte, 1<<16), nil) },
		"nonce of sealing": func() { ours.Seal(nil, some(12), nil, nil) },
		"nonce of opening": func() { _, _ = ours.Open(nil, some(14), make([]byte, 20), nil) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
	if _, err := ours.Open(nil, some(13), make([]byte, 1<<16+8), nil); err == nil {
		t.Error("opened more than can be sealed")
	}
}

func TestCCMAllocations(t *testing.T) {
	if raceDetector {
		t.Log("not counted under the race detector")
		return
	}
	a, err := NewAEAD(AlgAESCCM16_64_128, make([]byte, 16))
	if err != nil {
		t.Fatal(err)
	}
	nonce, aad, buf := make([]byte, 13), make([]byte, 20), make([]byte, 200, 300)
	if n := testing.AllocsPerRun(100, func() {
		sealed := a.Seal(buf[:0], nonce, buf, aad)
		if _, err := a.Open(sealed[:0], nonce, sealed, aad); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzCCM(f *testing.F) {
	f.Add(make([]byte, 16), make([]byte, 13), []byte("plaintext"), []byte("associated data"))
	f.Fuzz(func(t *testing.T, key, nonce, plain, aad []byte) {
		if len(key) != 16 || len(nonce) < 7 || len(nonce) > 13 || len(plain) > 1<<16-1 {
			return
		}
		ours, theirs := ccmPair(t, key, 8, len(nonce))
		compareCCM(t, ours, theirs, nonce, plain, aad)
	})
}

func BenchmarkCCM(b *testing.B) {
	ours, theirs := ccmPair(b, make([]byte, 16), 8, 13)
	for name, a := range map[string]cipher.AEAD{"ours": ours, "pion": theirs} {
		for _, n := range []int{64, 1024} {
			b.Run(name+"/"+map[int]string{64: "64", 1024: "1024"}[n], func(b *testing.B) {
				nonce, aad, buf := make([]byte, 13), make([]byte, 32), make([]byte, n, n+8)
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for b.Loop() {
					sealed := a.Seal(buf[:0], nonce, buf, aad)
					if _, err := a.Open(buf[:0], nonce, sealed, aad); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
