package cwt_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"testing"

	"github.com/seed4911071e/groupgate/ace/cwt"
	"github.com/seed4911071e/groupgate/cose"
)

var key16 = bytes.Repeat([]byte{0x11}, 16)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func fullClaims() *cwt.Claims {
	return &cwt.Claims{
		Issuer: "as1", Subject: "s", Audience: []string{"rs1", "rs2"}, Expires: 2000000000, NotBefore: 5, IssuedAt: 6,
		ID: []byte{1, 2}, Cnf: &cwt.Confirmation{Key: &cose.Key{Kty: cose.KtySymmetric, KID: []byte{9}, K: key16}},
		Scope: []byte{0x41, 0x80}, Profile: 1, CNonce: []byte{7}, ExpiresIn: 60,
	}
}

func TestClaimsRoundTrip(t *testing.T) {
	enc := fullClaims().Encode()
	got, err := cwt.DecodeClaims(enc)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, fullClaims()) {
		t.Error("decoded claims differ")
	}
	if !bytes.Equal(got.Encode(), enc) {
		t.Error("encoding again gives other bytes")
	}
	for i := range enc {
		if _, err := cwt.DecodeClaims(enc[:i]); err == nil {
			t.Fatalf("prefix of %d bytes parses", i)
		}
	}
	if _, err := cwt.DecodeClaims(append(enc, 0)); err == nil {
		t.Error("trailing byte accepted")
	}
}

func TestClaimsDates(t *testing.T) {
	for _, c := range []struct {
		name, hex string
		want      int64
		bad       bool
	}{
		{"integer", "a1041864", 100, false},
		{"zero is past, not absent", "a10400", 1, false},
		{"negative", "a10420", 1, false},
		{"float", "a104fb4059200000000000", 100, false}, // 100.5
		{"infinite", "a104f97c00", 253402300799, false},
		{"nan", "a104f97e00", 0, true},
		{"huge", "a1041bffffffffffffffff", 253402300799, false},
		{"tagged", "a104c11864", 0, true},
		{"text", "a1046131", 0, true},
		{"null", "a104f6", 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := cwt.DecodeClaims(unhex(t, c.hex))
			if (err != nil) != c.bad {
				t.Fatalf("err = %v", err)
			}
			if err == nil && got.Expires != c.want {
				t.Errorf("exp = %d, want %d", got.Expires, c.want)
			}
		})
	}
}

func TestClaimsMalformed(t *testing.T) {
	for name, h := range map[string]string{
		"no map":          "80",
		"duplicate":       "a20101" + "0101",
		"issuer is bytes": "a1014161",
		"empty aud array": "a10380",
		"aud of integers": "a1038101",
		"cti is text":     "a1076161",
		"exi zero":        "a1182800",
		"cnf is text":     "a1086161",
		"two keys":        "a108a201a10104028043",
		"indefinite":      "bfff",
	} {
		if _, err := cwt.DecodeClaims(unhex(t, h)); !errors.Is(err, cwt.ErrClaims) {
			t.Errorf("%s: err = %v", name, err)
		}
	}
}

func protections(t testing.TB) map[string]cwt.Protection {
	t.Helper()
	p := map[string]cwt.Protection{
		"Encrypt0":    {Alg: cose.AlgAESCCM16_64_128, Key: key16},
		"Mac0 256":    {Alg: cose.AlgHMAC256, Key: key16, KID: []byte("k")},
		"Mac0 256/64": {Alg: cose.AlgHMAC256_64, Key: key16},
	}
	for name, alg := range map[string]int64{"EdDSA": cose.AlgEdDSA, "ES256": cose.AlgES256} {
		k, err := cose.GenerateKey(alg)
		if err != nil {
			t.Fatal(err)
		}
		p[name] = cwt.Protection{Alg: alg, Signer: k}
	}
	return p
}

func open(t *cwt.Token, p cwt.Protection) ([]byte, error) {
	if p.Signer != nil {
		return t.Verify(p.Signer.Public())
	}
	return t.Open(p.Key)
}

func TestTokenForms(t *testing.T) {
	claims := fullClaims().Encode()
	for name, p := range protections(t) {
		t.Run(name, func(t *testing.T) {
			full, err := cwt.Seal(p, claims)
			if err != nil {
				t.Fatal(err)
			}
			var cores [][32]byte
			for form, b := range map[string][]byte{"both tags": full, "COSE tag": full[2:], "none": full[3:], "CWT tag": append([]byte{0xd8, 61}, full[3:]...)} {
				tok, err := cwt.Parse(b)
				if err != nil {
					t.Fatalf("%s: %v", form, err)
				}
				got, err := open(tok, p)
				if err != nil || !bytes.Equal(got, claims) {
					t.Fatalf("%s: claims differ, err = %v", form, err)
				}
				cores = append(cores, tok.Core())
			}
			for _, c := range cores {
				if c != cores[0] {
					t.Error("outer encoding changes the core")
				}
			}
			for i := range full {
				if _, err := cwt.Parse(full[:i]); err == nil {
					t.Fatalf("prefix of %d bytes parses", i)
				}
				flipped := bytes.Clone(full)
				flipped[i] ^= 1
				tok, err := cwt.Parse(flipped)
				if err != nil {
					continue
				}
				if got, err := open(tok, p); err == nil && !bytes.Equal(got, claims) {
					t.Fatalf("byte %d altered, other claims accepted", i)
				} else if err == nil {
					t.Fatalf("byte %d altered and accepted", i)
				}
			}
			for other, q := range protections(t) {
				tok, err := cwt.Parse(full)
				if err != nil {
					t.Fatal(err)
				}
				q.Key = bytes.Repeat([]byte{0x22}, 16)
				if _, err := open(tok, q); !errors.Is(err, cwt.ErrProtection) {
					t.Errorf("accepted under the key of %s: %v", other, err)
				}
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	full, err := cwt.Seal(cwt.Protection{Alg: cose.AlgAESCCM16_64_128, Key: key16}, fullClaims().Encode())
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"empty":               {},
		"map":                 {0xa0},
		"other COSE tag":      append([]byte{0xd1}, full[3:]...),
		"tag twice":           append([]byte{0xd8, 61}, full...),
		"long tag":            append([]byte{0xd9, 0, 61}, full[2:]...),
		"trailing byte":       append(bytes.Clone(full), 0),
		"oversized":           make([]byte, cwt.MaxToken+1),
		"alg not protected":   unhex(t, "8340a1010a4100"),
		"alg twice":           unhex(t, "8343a1010aa2010a054d000000000000000000000000004100"),
		"critical header":     unhex(t, "8347a2010a02811863a1054d000000000000000000000000004100"),
		"Encrypt0 without IV": unhex(t, "8343a1010aa04100"),
		"Mac0 in three parts": unhex(t, "8343a10105a04100"),
		"Encrypt0 in four":    unhex(t, "8443a1010aa1054d0000000000000000000000000041004100"),
	} {
		if _, err := cwt.Parse(b); !errors.Is(err, cwt.ErrForm) {
			t.Errorf("%s: err = %v", name, err)
		}
	}
}

func TestEncryptedKey(t *testing.T) {
	k := &cose.Key{Kty: cose.KtySymmetric, KID: []byte{1, 2}, K: bytes.Repeat([]byte{3}, 16)}
	enc, err := cwt.SealKey(k, key16)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{enc, enc[1:]} {
		got, err := cwt.OpenKey(b, key16)
		if err != nil || !bytes.Equal(got.K, k.K) || !bytes.Equal(got.KID, k.KID) {
			t.Errorf("key differs, err = %v", err)
		}
	}
	if _, err := cwt.OpenKey(enc, bytes.Repeat([]byte{9}, 16)); !errors.Is(err, cwt.ErrProtection) {
		t.Errorf("wrong key: %v", err)
	}
	if _, err := cwt.OpenKey(append([]byte{0xd8, 61}, enc...), key16); !errors.Is(err, cwt.ErrForm) {
		t.Errorf("a token as key: %v", err)
	}
}

// RFC 9770, Section 4, with the sample token of that document.
func TestHash(t *testing.T) {
	raw, err := os.ReadFile("../testdata/rfc9770-token-hash.json")
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		Bytes string `json:"BYTES"`
		Hash  string `json:"token_hash_sha256"`
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	token := unhex(t, v.Bytes)
	if got := hex.EncodeToString(cwt.Hash(token)); got != v.Hash {
		t.Errorf("hash = %s, want %s", got, v.Hash)
	}
	tok, err := cwt.Parse(token)
	if err != nil || tok.Kind != cwt.Encrypt0 || string(tok.KID) != "Symmetric128" {
		t.Errorf("sample token: %v", err)
	}
}

// Property: what parses as claims encodes to what parses as the same claims;
// and whatever parses as a token never opens under a key that did not seal it.
func FuzzParseToken(f *testing.F) {
	for _, p := range protections(f) {
		b, err := cwt.Seal(p, fullClaims().Encode())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add(fullClaims().Encode())
	other := bytes.Repeat([]byte{0x77}, 16)
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := cwt.DecodeClaims(b); err == nil {
			again, err := cwt.DecodeClaims(c.Encode())
			if err != nil || fmt.Sprintf("%x", again.Encode()) != fmt.Sprintf("%x", c.Encode()) {
				t.Fatalf("claims do not survive: %v", err)
			}
		}
		tok, err := cwt.Parse(b)
		if err != nil {
			return
		}
		if _, err := tok.Open(other); err == nil {
			t.Fatal("forged")
		}
		tok.Core()
	})
}
