package cose

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"testing"
)

type randomReader struct{}

func (randomReader) Read(b []byte) (int, error) { return rand.Read(b) }

const cwtClaims = "a70175636f61703a2f2f61732e6578616d706c652e636f6d02656572696b77037818636f61703a2f2f6c696768742e6578616d706c652e636f6d041a5612aeb0051a5610d9f0061a5610d9f007420b71"

// RFC 8392, Appendices A.3 to A.5.
func TestCWTExamples(t *testing.T) {
	signer := &Key{
		Kty: KtyEC2, Crv: CrvP256, Alg: AlgES256,
		X: unhex(t, "143329cce7868e416927599cf65a34f3ce2ffda55a7eca69ed8919a394d42f0f"),
		Y: unhex(t, "60f7f1a780d8a783bfb7a2dd6b2796e8128dbbcef9d3d168db9529971a36e7b9"),
	}
	signed := "d28443a10126a104524173796d6d657472696345434453413235365850" + cwtClaims +
		"58405427c1ff28d23fbad1f29c4c7c6a555e601d6fa29f9179bc3d7438bacaca5acd08c8d4d4f96131680c429a01f85951ecee743a52b9b63632c57209120e1c9e30"
	m, err := DecodeSign1(unhex(t, signed))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Verify(signer, nil); err != nil || hex.EncodeToString(m.Payload) != cwtClaims || string(m.KID()) != "AsymmetricECDSA256" {
		t.Errorf("A.3: %v", err)
	}

	macKey := unhex(t, "403697de87af64611c1d32a05dab0fe1fcb715a86ab435f1ec99192d79569388")
	maced := "d18443a10104a1044c53796d6d65747269633235365850" + cwtClaims + "48093101ef6d789200"
	payload, err := VerifyMac0(AlgHMAC256_64, macKey, unhex(t, maced), nil)
	if err != nil || hex.EncodeToString(payload) != cwtClaims {
		t.Errorf("A.4: %v", err)
	}

	encKey := unhex(t, "231f4c4d4d3051fdc2ec0a3851d5b383")
	encrypted := "d08343a1010aa2044c53796d6d6574726963313238054d99a0d7846e762c49ffe8a63e0b" +
		"5858b918a11fd81e438b7f973d9e2e119bcb22424ba0f38a80f27562f400ee1d0d6c0fdb559c02421fd384fc2ebe22d7071378b0ea7428fff157444d45f7e6afcda1aae5f6495830c58627087fc5b4974f319a8707a635dd643b"
	plain, err := OpenEncrypt0(AlgAESCCM16_64_128, encKey, unhex(t, encrypted), nil)
	if err != nil || hex.EncodeToString(plain) != cwtClaims {
		t.Errorf("A.5: %v", err)
	}
}

// mutate calls open with every strict prefix and with every byte changed.
func mutate(t *testing.T, msg []byte, open func([]byte) error) {
	t.Helper()
	if err := open(msg); err != nil {
		t.Fatal(err)
	}
	for i := range msg {
		if open(msg[:i]) == nil {
			t.Errorf("prefix of %d bytes opens", i)
		}
	}
	if open(append(bytes.Clone(msg), 0)) == nil {
		t.Error("trailing byte: opens")
	}
}

func TestMessages(t *testing.T) {
	payload, aad := []byte("payload"), []byte("aad")
	for _, alg := range []int64{1, 2, 3, 10, 11, 12, 13, 24, 30, 31, 32, 33} {
		keyLen, nonceLen, tagLen, ok := AEADSizes(alg)
		if !ok {
			t.Fatalf("AEAD %d", alg)
		}
		key := bytes.Repeat([]byte{3}, keyLen)
		aead, err := NewAEAD(alg, key)
		if err != nil || aead.NonceSize() != nonceLen || aead.Overhead() != tagLen {
			t.Fatalf("AEAD %d: %v", alg, err)
		}
		if _, err := NewAEAD(alg, key[1:]); err == nil {
			t.Errorf("AEAD %d takes a short key", alg)
		}
		msg, err := SealEncrypt0(alg, key, Headers{KID: []byte("kid")}, payload, aad)
		if err != nil {
			t.Fatal(err)
		}
		mutate(t, msg, func(b []byte) error {
			got, err := OpenEncrypt0(alg, key, b, aad)
			if err == nil && !bytes.Equal(got, payload) {
				t.Error("another plaintext")
			}
			return err
		})
		if _, err := OpenEncrypt0(alg, key, msg, nil); !errors.Is(err, ErrDecrypt) {
			t.Errorf("AEAD %d: other additional data: %v", alg, err)
		}
		untagged := msg[1:]
		if _, err := OpenEncrypt0(alg, key, untagged, aad); err != nil {
			t.Errorf("AEAD %d: untagged: %v", alg, err)
		}
	}
	// A message names its algorithm, the key decides.
	msg, _ := SealEncrypt0(AlgA128GCM, make([]byte, 16), Headers{}, payload, nil)
	if _, err := OpenEncrypt0(AlgAESCCM16_64_128, make([]byte, 16), msg, nil); !errors.Is(err, ErrDecrypt) {
		t.Error("algorithm of the message wins:", err)
	}
	if _, err := SealEncrypt0(AlgAESCCM16_64_128, make([]byte, 16), Headers{}, make([]byte, 1<<16), nil); err == nil {
		t.Error("plaintext beyond the counter")
	}
	if _, err := SealEncrypt0(AlgA128GCM, make([]byte, 16), Headers{IV: []byte{1}}, nil, nil); err == nil {
		t.Error("short nonce")
	}

	for alg, n := range map[int64]int{AlgHMAC256: 32, AlgHMAC256_64: 8, AlgHMAC384: 48, AlgHMAC512: 64} {
		key := []byte("key")
		msg, err := CreateMac0(alg, key, Headers{KID: []byte{}}, payload, aad)
		if err != nil {
			t.Fatal(err)
		}
		mutate(t, msg, func(b []byte) error { _, err := VerifyMac0(alg, key, b, aad); return err })
		m, _ := DecodeMac0(msg)
		if len(m.Tag) != n || m.KID() == nil {
			t.Errorf("MAC %d: tag of %d bytes", alg, len(m.Tag))
		}
		if _, err := VerifyMac0(alg, []byte("kez"), msg, aad); !errors.Is(err, ErrDecrypt) {
			t.Errorf("MAC %d: other key: %v", alg, err)
		}
	}
	// A truncated tag of the long algorithm is not the short algorithm.
	full, _ := CreateMac0(AlgHMAC256, []byte("key"), Headers{}, payload, nil)
	if _, err := VerifyMac0(AlgHMAC256_64, []byte("key"), full, nil); err == nil {
		t.Error("algorithms are mixed")
	}
	if _, err := CreateMac0(AlgHMAC256, nil, Headers{}, payload, nil); err == nil {
		t.Error("empty key")
	}

	key, _ := GenerateKey(AlgEdDSA)
	msg, err := SignSign1(key, Headers{KID: []byte("kid")}, payload, aad)
	if err != nil {
		t.Fatal(err)
	}
	mutate(t, msg, func(b []byte) error { _, err := VerifySign1(key.Public(), b, aad); return err })
	other, _ := GenerateKey(AlgES256)
	if _, err := VerifySign1(other, msg, aad); !errors.Is(err, ErrSignature) {
		t.Error(err)
	}
}

func TestRefusedMessages(t *testing.T) {
	for name, b := range map[string]string{
		"other tag":              "d18343a1010aa040",
		"two tags":               "d0d08343a1010aa040",
		"four elements":          "8443a1010aa04040",
		"label in both headers":  "8343a1010aa1010a40",
		"critical":               "8347a2010a028118ff" + "a040",
		"IV and Partial IV":      "8343a1010aa205410106410140",
		"protected is a map":     "83a1010aa040",
		"protected has trailing": "8344a1010a00a040",
		"text algorithm":         "8343a1016161" + "a040",
		"detached content":       "8343a1010aa0f6",
		"kid is text":            "8343a1010aa104616140",
	} {
		if _, err := DecodeEncrypt0(unhex(t, b)); err == nil {
			t.Errorf("%s: decoded", name)
		}
	}
	// RFC 9052, Section 3: an empty protected header in either form.
	for _, b := range []string{"8340a040", "8341a0a040"} {
		if _, err := DecodeEncrypt0(unhex(t, b)); err != nil {
			t.Errorf("%s: %v", b, err)
		}
	}
}

// fuzzOpen checks that nothing an attacker can make is authentic.
func fuzzOpen(f *testing.F, msg []byte, open func([]byte) error) {
	f.Add(msg)
	f.Add(msg[1:])
	f.Fuzz(func(t *testing.T, b []byte) {
		if open(b) == nil && !bytes.Contains(b, msg[len(msg)-8:]) {
			t.Errorf("%x is authentic", b)
		}
	})
}

func FuzzOpenEncrypt0(f *testing.F) {
	key := make([]byte, 16)
	msg, _ := SealEncrypt0(AlgAESCCM16_64_128, key, Headers{IV: make([]byte, 13)}, []byte("plaintext"), nil)
	fuzzOpen(f, msg, func(b []byte) error { _, err := OpenEncrypt0(AlgAESCCM16_64_128, key, b, nil); return err })
}

func FuzzVerifyMac0(f *testing.F) {
	msg, _ := CreateMac0(AlgHMAC256, []byte("key"), Headers{}, []byte("payload"), nil)
	fuzzOpen(f, msg, func(b []byte) error { _, err := VerifyMac0(AlgHMAC256, []byte("key"), b, nil); return err })
}

func FuzzVerifySign1(f *testing.F) {
	key := &Key{Kty: KtyOKP, Crv: CrvEd25519, D: make([]byte, 32)}
	if err := key.check(); err != nil {
		f.Fatal(err)
	}
	msg, _ := SignSign1(key, Headers{}, []byte("payload"), nil)
	fuzzOpen(f, msg, func(b []byte) error { _, err := VerifySign1(key, b, nil); return err })
}

func FuzzOpenRekey(f *testing.F) {
	gm := &Key{Kty: KtyOKP, Crv: CrvEd25519, D: make([]byte, 32)}
	if err := gm.check(); err != nil {
		f.Fatal(err)
	}
	p := RekeySeal{
		Alg: AlgAESCCM16_64_128, Key: make([]byte, 16), BaseIV: make([]byte, 13), KID: []byte{1},
		Num: 1, SignAlg: AlgEdDSA, Sign: gm.Sign,
	}
	msg, _ := SealRekey(p, []byte("plaintext"))
	fuzzOpen(f, msg, func(b []byte) error {
		_, _, err := OpenRekey(p.Key, p.BaseIV, p.KID, p.Alg, gm, b)
		return err
	})
}

func FuzzOpenAck(f *testing.F) {
	key := make([]byte, 16)
	msg, _ := SealAck(key, 7)
	fuzzOpen(f, msg, func(b []byte) error { _, err := OpenAck(key, b); return err })
}
