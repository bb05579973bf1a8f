package cose

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func readVectors(t testing.TB, name string, v any) {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
}

type rekeyVector struct {
	Key, KID     string
	BaseIV       string `json:"base_iv"`
	Count        uint16 `json:"COUNT"`
	Num          uint64 `json:"NEW_NUM"`
	PartialIV    string `json:"partial_iv"`
	Nonce        string
	Plaintext    string `json:"plaintext_ace_groupcomm_cbor"`
	Protected    string `json:"protected_header"`
	EncStructure string `json:"enc_structure"`
	Ciphertext   string
	Seed         string `json:"gm_seed"`
	Variants     map[string]rekeyVariant
}

type rekeyVariant struct {
	ToBeSigned string `json:"to_be_signed"`
	Message    string `json:"cose_encrypt0"`
}

func seedKey(t testing.TB, seed []byte) *Key {
	t.Helper()
	k := &Key{Kty: KtyOKP, Crv: CrvEd25519, Alg: AlgEdDSA, D: seed}
	if err := k.check(); err != nil {
		t.Fatal(err)
	}
	return k
}

// RFC 9594, Section 6.2.1, with the countersignature over five elements and the
// algorithm in the protected header of the signer.
func TestRekeyVector(t *testing.T) {
	var v rekeyVector
	readVectors(t, "one-to-many-rekey.json", &v)
	gm := seedKey(t, unhex(t, v.Seed))

	piv, nonce, err := rekeyNonce(AlgAESCCM16_64_128, unhex(t, v.BaseIV), v.Num, v.Count)
	if err != nil || hex.EncodeToString(piv) != v.PartialIV || hex.EncodeToString(nonce) != v.Nonce {
		t.Fatalf("Partial IV %x, nonce %x, %v", piv, nonce, err)
	}
	if got := hex.EncodeToString(encStructure(unhex(t, v.Protected), nil)); got != v.EncStructure {
		t.Fatalf("Enc_structure %s", got)
	}
	var signed []byte
	seal := RekeySeal{
		Alg: AlgAESCCM16_64_128, Key: unhex(t, v.Key), BaseIV: unhex(t, v.BaseIV), KID: unhex(t, v.KID),
		Num: v.Num, Count: v.Count, SignAlg: AlgEdDSA,
		Sign: func(m []byte) ([]byte, error) { signed = m; return gm.Sign(m) },
	}
	msg, err := SealRekey(seal, unhex(t, v.Plaintext))
	if err != nil {
		t.Fatal(err)
	}
	want := v.Variants["five_elem_alg_in_sign_protected"]
	if got := hex.EncodeToString(signed); got != want.ToBeSigned {
		t.Errorf("signed %s", got)
	}
	if got := hex.EncodeToString(msg); got != want.Message {
		t.Errorf("message %s", got)
	}
	open := func(msg []byte) ([]byte, uint64, error) {
		return OpenRekey(seal.Key, seal.BaseIV, seal.KID, seal.Alg, gm.Public(), msg)
	}
	for _, tagged := range []bool{false, true} {
		b := msg
		if tagged {
			b = AppendTag(TagEncrypt0, msg)
		}
		plain, num, err := open(b)
		if err != nil || num != v.Num || hex.EncodeToString(plain) != v.Plaintext {
			t.Errorf("tagged %v: %x, %d, %v", tagged, plain, num, err)
		}
	}
	// The other two readings of the countersignature are not ours.
	for name, variant := range v.Variants {
		if name == "five_elem_alg_in_sign_protected" {
			continue
		}
		if _, _, err := open(unhex(t, variant.Message)); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for i := range msg {
		if _, _, err := open(msg[:i]); err == nil {
			t.Errorf("prefix of %d bytes opens", i)
		}
		bad := bytes.Clone(msg)
		bad[i] ^= 1
		if _, _, err := open(bad); err == nil {
			t.Errorf("byte %d changed: opens", i)
		}
	}
	other := seedKey(t, bytes.Repeat([]byte{1}, 32))
	if _, _, err := OpenRekey(seal.Key, seal.BaseIV, seal.KID, seal.Alg, other, msg); !errors.Is(err, ErrSignature) {
		t.Errorf("other signer: %v", err)
	}
	if _, _, err := OpenRekey(seal.Key, seal.BaseIV, seal.KID, seal.Alg, nil, msg); !errors.Is(err, ErrSignature) {
		t.Errorf("no signer: %v", err)
	}
	wrong := bytes.Repeat([]byte{9}, 16)
	if _, _, err := OpenRekey(wrong, seal.BaseIV, seal.KID, seal.Alg, gm, msg); !errors.Is(err, ErrDecrypt) {
		t.Errorf("other key: %v", err)
	}
}

func TestRekeyAlgorithms(t *testing.T) {
	for _, signAlg := range []int64{AlgEdDSA, AlgEd25519, AlgES256, AlgES384, AlgES512} {
		gm, err := GenerateKey(signAlg)
		if err != nil {
			t.Fatal(err)
		}
		for _, alg := range []int64{AlgAESCCM16_64_128, AlgAESCCM16_128_128, AlgA128GCM, AlgA256GCM, AlgChaCha20Poly1305, AlgAESCCM64_64_128} {
			keyLen, nonceLen, _, _ := AEADSizes(alg)
			p := RekeySeal{
				Alg: alg, Key: make([]byte, keyLen), BaseIV: bytes.Repeat([]byte{0x5a}, nonceLen), KID: []byte("kid"),
				Num: 1<<40 - 1, Count: 0xfffe, SignAlg: signAlg, Sign: gm.Sign,
			}
			msg, err := SealRekey(p, []byte("map"))
			if err != nil {
				t.Fatal(err)
			}
			plain, num, err := OpenRekey(p.Key, p.BaseIV, p.KID, alg, gm.Public(), msg)
			if err != nil || num != p.Num || string(plain) != "map" {
				t.Errorf("sign %d, AEAD %d: %q, %d, %v", signAlg, alg, plain, num, err)
			}
			if _, _, err := OpenRekey(p.Key, p.BaseIV, []byte("KID"), alg, gm.Public(), msg); err == nil {
				t.Error("opens under another kid")
			}
		}
	}
}

func TestRekeyVersionTooLarge(t *testing.T) {
	gm, _ := GenerateKey(AlgEdDSA)
	p := RekeySeal{
		Alg: AlgAESCCM64_64_128, Key: make([]byte, 16), BaseIV: make([]byte, 7), KID: []byte{1},
		Num: 1 << 40, SignAlg: AlgEdDSA, Sign: gm.Sign,
	}
	if _, err := SealRekey(p, nil); err == nil {
		t.Error("a version of 6 bytes fits 5")
	}
}

func TestAck(t *testing.T) {
	key := bytes.Repeat([]byte{7}, 16)
	for _, num := range []uint64{0, 1, 255, 1 << 32, 1<<64 - 1} {
		msg, err := SealAck(key, num)
		if err != nil {
			t.Fatal(err)
		}
		again, _ := SealAck(key, num)
		if !bytes.Equal(msg, again) {
			t.Error("the same version gives other bytes")
		}
		if got, err := OpenAck(key, msg); err != nil || got != num {
			t.Errorf("%d: %d, %v", num, got, err)
		}
		m, err := DecodeEncrypt0(msg)
		if err != nil {
			t.Fatal(err)
		}
		if iv := m.Unprotected.IV; len(iv) != 13 || binary.BigEndian.Uint64(iv[5:]) != num {
			t.Errorf("nonce %x", iv)
		}
		for i := range msg {
			if _, err := OpenAck(key, msg[:i]); err == nil {
				t.Errorf("prefix of %d bytes opens", i)
			}
			bad := bytes.Clone(msg)
			bad[i] ^= 0x10
			if _, err := OpenAck(key, bad); err == nil {
				t.Errorf("byte %d changed: opens", i)
			}
		}
		if _, err := OpenAck(key[:15], msg); !errors.Is(err, ErrDecrypt) {
			t.Errorf("other key: %v", err)
		}
	}
}
