package cose

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"testing"

	gocose "github.com/veraison/go-cose"
)

type popVectors struct {
	Inputs struct {
		ClientPoP string `json:"client_pop_input"`
		KDCPoP    string `json:"kdc_pop_input"`
	}
	Group struct {
		ClientSeed   string `json:"client_seed"`
		ClientCred   string `json:"client_cred_ccs"`
		ClientVerify string `json:"client_cred_verify"`
		GMSeed       string `json:"gm_seed"`
		KDCCred      string `json:"kdc_cred_ccs"`
		KDCVerify    string `json:"kdc_cred_verify"`
	} `json:"group_mode_ed25519"`
	Pairwise struct {
		ClientPriv string `json:"client_priv"`
		ClientCred string `json:"client_cred_ccs"`
		GMPriv     string `json:"gm_priv"`
		KDCCred    string `json:"kdc_cred_ccs"`
		Secret     string `json:"shared_secret"`
	} `json:"pairwise_only_x25519"`
}

func TestCredentialVectors(t *testing.T) {
	var v popVectors
	readVectors(t, "pop.json", &v)
	for _, tc := range []struct{ seed, cred, subject, input, sig string }{
		{v.Group.ClientSeed, v.Group.ClientCred, "member-25", v.Inputs.ClientPoP, v.Group.ClientVerify},
		{v.Group.GMSeed, v.Group.KDCCred, "gm", v.Inputs.KDCPoP, v.Group.KDCVerify},
	} {
		key := seedKey(t, unhex(t, tc.seed))
		if got := hex.EncodeToString(EncodeCCS(tc.subject, key)); got != tc.cred {
			t.Errorf("credential %s", got)
		}
		pub, err := DecodeCCS(unhex(t, tc.cred))
		if err != nil {
			t.Fatal(err)
		}
		if err := pub.CheckAlg(AlgEdDSA); err != nil || !pub.SamePublic(key) || pub.IsPrivate() {
			t.Error(err)
		}
		sig, err := key.Sign(unhex(t, tc.input))
		if err != nil || hex.EncodeToString(sig) != tc.sig {
			t.Errorf("signature %x, %v", sig, err)
		}
		if err := pub.Verify(unhex(t, tc.input), sig); err != nil {
			t.Error(err)
		}
		sig[3] ^= 1
		if err := pub.Verify(unhex(t, tc.input), sig); !errors.Is(err, ErrSignature) {
			t.Error("forged signature:", err)
		}
	}
	client := &Key{Kty: KtyOKP, Crv: CrvX25519, D: unhex(t, v.Pairwise.ClientPriv)}
	if err := client.check(); err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(EncodeCCS("member-x", client)); got != v.Pairwise.ClientCred {
		t.Errorf("credential %s", got)
	}
	gm, err := DecodeCCS(unhex(t, v.Pairwise.KDCCred))
	if err != nil {
		t.Fatal(err)
	}
	if z, err := client.ECDH(gm); err != nil || hex.EncodeToString(z) != v.Pairwise.Secret {
		t.Errorf("shared secret %x, %v", z, err)
	}
}

// Credentials from published test cases of Group OSCORE: more claims, members
// in another order. The key of the second is not a point of its curve; its
// makers used it as bytes only.
func TestForeignCredential(t *testing.T) {
	cred := unhex(t, "a501781a636f6170733a2f2f7365727665722e6578616d706c652e636f6d026673656e64657203781a636f6170733a2f2f636c69656e742e6578616d706c652e6f7267041a70004b4f08a101a401010327200621582077ec358c1d344e41ee0e87b8383d23a2099acd39bdf989ce45b52e887463389b")
	k, err := DecodeCCS(cred)
	if err != nil || k.CheckAlg(AlgEdDSA) != nil {
		t.Fatal(err)
	}
	for i := range cred {
		if _, err := DecodeCCS(cred[:i]); err == nil {
			t.Errorf("prefix of %d bytes decodes", i)
		}
	}
	if _, err := DecodeCCS(unhex(t, "a501781a636f6170733a2f2f6d79736974652e6578616d706c652e636f6d026c67726f75706d616e6167657203781a636f6170733a2f2f646f6d61696e2e6578616d706c652e6f7267041aab9b154f08a101a4032701012006215820cde3efd3bc3f99c9c9ee210415c6cba55061b5046e963b8a58c9143a61166472")); err == nil {
		t.Error("a key that is no point")
	}
}

func TestKeys(t *testing.T) {
	for _, alg := range []int64{AlgEdDSA, AlgEd25519, AlgES256, AlgES384, AlgES512} {
		key, err := GenerateKey(alg)
		if err != nil {
			t.Fatal(err)
		}
		key.KID = []byte{}
		enc := key.Encode()
		back, err := DecodeKey(enc)
		if err != nil || !bytes.Equal(back.Encode(), enc) {
			t.Fatalf("alg %d: %v", alg, err)
		}
		for i := range enc {
			if _, err := DecodeKey(enc[:i]); err == nil {
				t.Errorf("alg %d: prefix of %d bytes decodes", alg, i)
			}
		}
		sig, err := back.Sign([]byte("message"))
		if err != nil {
			t.Fatal(err)
		}
		pub := back.Public()
		if pub.IsPrivate() || pub.Verify([]byte("message"), sig) != nil || pub.Verify([]byte("Message"), sig) == nil {
			t.Errorf("alg %d: signature", alg)
		}
		if len(sig) != map[int64]int{AlgES384: 96, AlgES512: 132}[alg] && len(sig) != 64 {
			t.Errorf("alg %d: signature of %d bytes", alg, len(sig))
		}
		for _, bad := range [][]byte{nil, {}, sig[:len(sig)-1], append(bytes.Clone(sig), 0), make([]byte, len(sig))} {
			if err := pub.Verify([]byte("message"), bad); !errors.Is(err, ErrSignature) {
				t.Errorf("alg %d: signature of %d bytes: %v", alg, len(bad), err)
			}
		}
		if _, err := pub.Sign(nil); err == nil {
			t.Errorf("alg %d: a public key signs", alg)
		}
		// Without a public part it is computed; with a wrong one the key is refused.
		half := &Key{Kty: key.Kty, Crv: key.Crv, D: key.D}
		if back, err = DecodeKey(half.Encode()); err != nil || !back.SamePublic(key) {
			t.Errorf("alg %d: %v", alg, err)
		}
		other, _ := GenerateKey(alg)
		mixed := *key
		mixed.X, mixed.Y = other.X, other.Y
		if _, err := DecodeKey(mixed.Encode()); err == nil {
			t.Errorf("alg %d: a foreign public part", alg)
		}
		if key.Kty != KtyEC2 {
			continue
		}
		m := key.Public().fields()
		m[keyY] = key.Y[len(key.Y)-1]&1 == 1
		if back, err = DecodeKey(MustMarshal(m)); err != nil || !back.SamePublic(key) {
			t.Errorf("alg %d: compressed: %v", alg, err)
		}
		y := bytes.Clone(key.Y)
		y[len(y)-1] ^= 1
		m[keyY] = y
		if _, err := DecodeKey(MustMarshal(m)); err == nil {
			t.Errorf("alg %d: a point off the curve", alg)
		}
		m[keyY] = key.Y[1:]
		if _, err := DecodeKey(MustMarshal(m)); err == nil {
			t.Errorf("alg %d: a short coordinate", alg)
		}
		delete(m, keyY)
		if _, err := DecodeKey(MustMarshal(m)); err == nil {
			t.Errorf("alg %d: no y", alg)
		}
	}
	if _, err := GenerateKey(AlgA128GCM); err == nil {
		t.Error("generated a key for an AEAD")
	}
}

func TestCheckAlg(t *testing.T) {
	ed := &Key{Kty: KtyOKP, Crv: CrvEd25519}
	x := &Key{Kty: KtyOKP, Crv: CrvX25519}
	p256 := &Key{Kty: KtyEC2, Crv: CrvP256}
	dh := &Key{Kty: KtyEC2, Crv: CrvP256, Alg: AlgECDHSSHKDF256}
	full := &Key{Kty: KtyOKP, Crv: CrvEd25519, Alg: AlgEd25519}
	for _, tc := range []struct {
		key *Key
		alg int64
		ok  bool
	}{
		{ed, AlgEdDSA, true}, {ed, AlgEd25519, true}, {full, AlgEdDSA, true}, {p256, AlgES256, true},
		{ed, AlgES256, false}, {x, AlgEdDSA, false}, {p256, AlgES384, false}, {dh, AlgES256, false}, {p256, 0, false},
	} {
		if err := tc.key.CheckAlg(tc.alg); (err == nil) != tc.ok {
			t.Errorf("crv %d, alg %d: %v", tc.key.Crv, tc.alg, err)
		}
	}
	if x.SignAlg() != 0 || dh.SignAlg() != 0 {
		t.Error("a Diffie-Hellman key has a signature algorithm")
	}
}

func TestRefusedCredentials(t *testing.T) {
	key, _ := GenerateKey(AlgES256)
	ed, _ := GenerateKey(AlgEdDSA)
	cnf := func(v any) []byte { return MustMarshal(map[int64]any{2: "x", 8: v}) }
	off := ed.Public()
	off.X = bytes.Repeat([]byte{2}, 31)
	short := ed.Public()
	short.X = short.X[:31]
	for name, b := range map[string][]byte{
		"private EC2":       cnf(map[int64]any{1: key}),
		"private OKP":       cnf(map[int64]any{1: ed}),
		"symmetric":         cnf(map[int64]any{1: &Key{Kty: KtySymmetric, K: []byte{1}}}),
		"kid only":          cnf(map[int64]any{3: []byte{1}}),
		"key and kid":       cnf(map[int64]any{1: key.Public(), 3: []byte{1}}),
		"no cnf":            MustMarshal(map[int64]any{2: "x"}),
		"subject not text":  MustMarshal(map[int64]any{2: 1, 8: map[int64]any{1: key.Public()}}),
		"bare key":          key.Public().Encode(),
		"tagged":            AppendTag(TagCWT, EncodeCCS("", key)),
		"short x":           cnf(map[int64]any{1: short}),
		"RSA":               cnf(map[int64]any{1: map[int64]any{1: 3}}),
		"Ed448":             cnf(map[int64]any{1: map[int64]any{1: 1, -1: 7, -2: make([]byte, 57)}}),
		"text algorithm":    cnf(map[int64]any{1: map[int64]any{1: 1, 3: "EdDSA", -1: 6, -2: ed.X}}),
		"OKP with y":        cnf(map[int64]any{1: map[int64]any{1: 1, -1: 6, -2: ed.X, -3: ed.X}}),
		"x is null":         cnf(map[int64]any{1: map[int64]any{1: 1, -1: 6, -2: nil}}),
		"oversize kid":      cnf(map[int64]any{1: map[int64]any{1: 1, 2: make([]byte, 65), -1: 6, -2: ed.X}}),
		"empty private key": cnf(map[int64]any{1: map[int64]any{1: 1, -1: 6, -2: ed.X, -4: []byte{}}}),
	} {
		if _, err := DecodeCCS(b); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := DecodeCCS(EncodeCCS("", key)); err != nil {
		t.Error(err)
	}
}

// RFC 8032, Section 5.1.3.
func TestEd25519Points(t *testing.T) {
	p := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 255), big.NewInt(19))
	le := func(v *big.Int) []byte {
		b := v.FillBytes(make([]byte, 32))
		for i, j := 0, 31; i < j; i, j = i+1, j-1 {
			b[i], b[j] = b[j], b[i]
		}
		return b
	}
	one := big.NewInt(1)
	negative := le(one)
	negative[31] |= 0x80
	for _, tc := range []struct {
		name              string
		x                 []byte
		point, degenerate bool
	}{
		{"y = 1", le(one), true, true},
		{"y = 1 with a sign", negative, false, true},
		{"y = -1", le(new(big.Int).Sub(p, one)), true, true},
		{"y = 0", le(new(big.Int)), true, false},
		{"y = -1 with a sign", append(le(new(big.Int).Sub(p, one))[:31:31], 0xff), false, true},
		{"y = 2", le(big.NewInt(2)), false, false},
		{"y = p", le(p), false, true},
		{"y = p + 1", le(new(big.Int).Add(p, one)), false, true},
	} {
		k := &Key{Kty: KtyOKP, Crv: CrvEd25519, X: tc.x}
		if got := onEd25519(tc.x); got != tc.point {
			t.Errorf("%s: point %v", tc.name, got)
		}
		if got := k.Degenerate(); got != tc.degenerate {
			t.Errorf("%s: degenerate %v", tc.name, got)
		}
		// What ParseCCS leaves open, Check and verification answer.
		_, strict := DecodeCCS(EncodeCCS("", k))
		if (strict == nil) != tc.point || (k.Check() == nil) != tc.point {
			t.Errorf("%s: DecodeCCS says %v, Check %v", tc.name, strict, k.Check())
		}
		if parsed, err := ParseCCS(EncodeCCS("", k)); err == nil && !tc.point && parsed.Verify(nil, make([]byte, 64)) == nil {
			t.Errorf("%s: not a point, and a signature verifies", tc.name)
		}
	}
	for range 50 {
		k, err := GenerateKey(AlgEdDSA)
		if err != nil || !onEd25519(k.X) || k.Degenerate() {
			t.Fatal("a generated key is no good point", err)
		}
	}
}

func TestECDH(t *testing.T) {
	for _, crv := range []int64{CrvX25519, CrvP256, CrvP384, CrvP521} {
		a, err := GenerateDHKey(crv)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := GenerateDHKey(crv)
		za, err := a.ECDH(b.Public())
		zb, _ := b.ECDH(a.Public())
		if err != nil || !bytes.Equal(za, zb) || len(za) != len(a.X) {
			t.Errorf("crv %d: %v", crv, err)
		}
		if _, err := a.Public().ECDH(b); err == nil {
			t.Error("no private key")
		}
	}
	x, _ := GenerateDHKey(CrvX25519)
	p, _ := GenerateDHKey(CrvP256)
	if _, err := x.ECDH(p); err == nil {
		t.Error("two curves")
	}
	// RFC 7748, Section 6.1: an all-zero output is refused.
	if _, err := x.ECDH(&Key{Kty: KtyOKP, Crv: CrvX25519, X: make([]byte, 32)}); err == nil {
		t.Error("a point of small order")
	}
	if _, err := GenerateDHKey(CrvEd25519); err == nil {
		t.Error("Ed25519 serves no Diffie-Hellman")
	}
}

// go-cose must understand our signatures and keys and we its.
func TestGoCOSE(t *testing.T) {
	for _, alg := range []int64{AlgEdDSA, AlgES256, AlgES384, AlgES512} {
		key, _ := GenerateKey(alg)
		var theirs gocose.Key
		if err := theirs.UnmarshalCBOR(key.Encode()); err != nil {
			t.Fatal(err)
		}
		verifier, err := theirs.Verifier()
		if err != nil {
			t.Fatal(err)
		}
		msg, err := SignSign1(key, Headers{KID: []byte("k")}, []byte("payload"), []byte("aad"))
		if err != nil {
			t.Fatal(err)
		}
		var m gocose.Sign1Message
		if err := m.UnmarshalCBOR(msg); err != nil {
			t.Fatal(err)
		}
		if err := m.Verify([]byte("aad"), verifier); err != nil {
			t.Errorf("alg %d: %v", alg, err)
		}
		signer, err := theirs.Signer()
		if err != nil {
			t.Fatal(err)
		}
		h := gocose.Headers{Protected: gocose.ProtectedHeader{gocose.HeaderLabelAlgorithm: gocose.Algorithm(alg)}}
		msg, err = gocose.Sign1(nil, signer, h, []byte("payload"), nil)
		if alg != AlgEdDSA {
			msg, err = gocose.Sign1(randomReader{}, signer, h, []byte("payload"), nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		if got, err := VerifySign1(key.Public(), msg, nil); err != nil || string(got) != "payload" {
			t.Errorf("alg %d: %q, %v", alg, got, err)
		}
	}
}

// TestRedacted prints every secret type in every way that fmt, slog and JSON
// know, also inside other values.
func TestRedacted(t *testing.T) {
	secret := []byte("SECRETSECRETSECRETSECRETSECRETSE")
	s := NewSecret(secret)
	key := Key{Kty: KtyOKP, Crv: CrvEd25519, D: secret, X: secret}
	seal := RekeySeal{Key: secret, KID: secret}
	for _, v := range []any{
		s, &s, key, &key, []Secret{s}, []Key{key}, map[string]Secret{"a": s}, struct{ S Secret }{s}, struct{ s Secret }{s},
		seal, &seal, struct{ K *Key }{&key}, [1]Secret{s}, fmt.Errorf("error with %v and %w", s, errors.New("x")),
	} {
		checkRedacted(t, v, secret)
	}
	if !s.Equal(NewSecret(secret)) || s.Equal(NewSecret([]byte("x"))) || s.Equal(Secret{}) || (Secret{}).Equal(Secret{}) {
		t.Error("equality")
	}
	if !bytes.Equal(s.Bytes(), secret) || (Secret{}).Bytes() != nil || !(Secret{}).IsZero() || NewSecret(nil).IsZero() {
		t.Error("bytes")
	}
}

func checkRedacted(t *testing.T, v any, secret []byte) {
	t.Helper()
	var out []string
	// fmt takes %p of a value that is no pointer past every method; vet reports it.
	for _, verb := range "vTtbcdoOqxXUeEfFgGs" {
		for _, flags := range []string{"", "+", "#", "-", " ", "0", "20", ".3"} {
			out = append(out, fmt.Sprintf("%"+flags+string(verb), v))
		}
	}
	var log bytes.Buffer
	for _, h := range []slog.Handler{slog.NewTextHandler(&log, nil), slog.NewJSONHandler(&log, nil)} {
		slog.New(h).Info("x", "v", v, slog.Group("g", "v", v))
	}
	out = append(out, log.String())
	if b, err := json.Marshal(v); err == nil {
		out = append(out, string(b))
	}
	for _, s := range out {
		low := strings.ToLower(s)
		for _, leak := range []string{"secretsecret", hex.EncodeToString(secret[:6]), "83 69 67", "0x53, 0x45", "53 45 43", "u0lduku", "u0vdukv", "123 105"} {
			if strings.Contains(low, leak) {
				t.Errorf("%T leaks: %s", v, s)
			}
		}
	}
}

func FuzzDecodeKey(f *testing.F) {
	for _, alg := range []int64{AlgEdDSA, AlgES256} {
		k, _ := GenerateKey(alg)
		f.Add(k.Encode())
		f.Add(k.Public().Encode())
	}
	f.Add((&Key{Kty: KtySymmetric, KID: []byte{1}, K: []byte{2}}).Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := DecodeKey(b)
		if err != nil {
			return
		}
		enc := k.Encode()
		again, err := DecodeKey(enc)
		if err != nil || !bytes.Equal(again.Encode(), enc) {
			t.Errorf("%x: %v", enc, err)
		}
	})
}

func FuzzDecodeCCS(f *testing.F) {
	k, _ := GenerateKey(AlgEdDSA)
	f.Add(EncodeCCS("s", k))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := DecodeCCS(b)
		if err != nil {
			return
		}
		if k.IsPrivate() || k.K != nil {
			t.Error("a credential with a private key")
		}
		if _, err := DecodeCCS(EncodeCCS("s", k)); err != nil {
			t.Error(err)
		}
	})
}

// TestSymmetricKeys: tokens confirm such keys, and have no point to check.
func TestSymmetricKeys(t *testing.T) {
	for name, k := range map[string]*Key{
		"with k":   {Kty: KtySymmetric, KID: []byte{1}, K: []byte("0123456789abcdef")},
		"kid only": {Kty: KtySymmetric, KID: []byte{1}},
	} {
		got, err := DecodeKey(k.Encode())
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !bytes.Equal(got.K, k.K) || !bytes.Equal(got.KID, k.KID) {
			t.Errorf("%s: another key", name)
		}
	}
}
