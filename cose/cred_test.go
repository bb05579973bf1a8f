package cose

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"testing"
	"time"
)

// authority is a certification authority with one intermediate.
type authority struct {
	root, mid       *x509.Certificate
	rootKey, midKey *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{}
	var err error
	for _, k := range []**ecdsa.PrivateKey{&a.rootKey, &a.midKey} {
		if *k, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	ca := func(name string, parent *x509.Certificate, pub crypto.PublicKey) *x509.Certificate {
		c := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
		}
		if parent == nil {
			parent = c
		}
		der, err := x509.CreateCertificate(rand.Reader, c, parent, pub, a.rootKey)
		if err != nil {
			t.Fatal(err)
		}
		if c, err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
		return c
	}
	a.root = ca("root", nil, &a.rootKey.PublicKey)
	a.mid = ca("intermediate", a.root, &a.midKey.PublicKey)
	return a
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.root)
	return p
}

// issue makes an end entity's certificate, by the intermediate or the root.
func (a *authority) issue(t testing.TB, pub any, byRoot bool, usage x509.KeyUsage) []byte {
	t.Helper()
	parent, key := a.mid, a.midKey
	if byRoot {
		parent, key = a.root, a.rootKey
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "node"}, KeyUsage: usage,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Minute),
	}, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestX5Chain(t *testing.T) {
	a := newAuthority(t)
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	x, _ := ecdh.X25519().GenerateKey(rand.Reader)
	p256, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	p521, _ := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	for crv, k := range map[int64]struct{ priv, pub any }{
		CrvEd25519: {ed, ed.Public()}, CrvX25519: {x, x.PublicKey()},
		CrvP256: {p256, &p256.PublicKey}, CrvP384: {p384, &p384.PublicKey}, CrvP521: {p521, &p521.PublicKey},
	} {
		der, err := x509.MarshalPKCS8PrivateKey(k.priv)
		if err != nil {
			t.Fatal(err)
		}
		key, err := PrivateKeyFromPEM(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
		if err != nil || key.Crv != crv || key.D == nil {
			t.Fatalf("curve %d: %v", crv, err)
		}
		if crv == CrvX25519 { // of which the standard library issues no certificates
			if pub, err := keyOf(k.pub); err != nil || !pub.SamePublic(key) {
				t.Errorf("X25519: %v", err)
			}
			continue
		}
		single := a.issue(t, k.pub, true, 0)
		chain := EncodeX5Chain(a.issue(t, k.pub, false, 0), a.mid.Raw)
		if !bytes.Equal(EncodeX5Chain(single), single) {
			t.Error("a certificate alone is not itself")
		}
		for _, b := range [][]byte{single, chain} {
			got, err := DecodeCredential(HeaderX5Chain, b)
			if err != nil || !got.SamePublic(key) {
				t.Errorf("curve %d: %v", crv, err)
			}
			if err := VerifyX5Chain(b, a.pool(), time.Now(), x509.KeyUsageDigitalSignature); err != nil {
				t.Errorf("curve %d: %v", crv, err)
			}
			for i := range b {
				if _, err := ParseX5Chain(b[:i]); err == nil {
					t.Fatalf("prefix of %d bytes accepted", i)
				}
			}
			if _, err := ParseX5Chain(append(bytes.Clone(b), 0)); err == nil {
				t.Error("trailing byte accepted")
			}
		}
	}
}

func TestX5ChainRefused(t *testing.T) {
	a, b := newAuthority(t), newAuthority(t)
	k, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	const sign, agree = x509.KeyUsageDigitalSignature, x509.KeyUsageKeyAgreement
	leaf := a.issue(t, &k.PublicKey, false, sign)
	chain := EncodeX5Chain(leaf, a.mid.Raw)
	now := time.Now()
	for name, err := range map[string]error{
		"other root":      VerifyX5Chain(chain, b.pool(), now, sign),
		"no root":         VerifyX5Chain(chain, x509.NewCertPool(), now, sign),
		"no intermediate": VerifyX5Chain(leaf, a.pool(), now, sign),
		"expired":         VerifyX5Chain(chain, a.pool(), now.Add(2*time.Minute), sign),
		"not yet valid":   VerifyX5Chain(chain, a.pool(), now.Add(-2*time.Minute), sign),
		"other use":       VerifyX5Chain(chain, a.pool(), now, agree),
		"no chain":        VerifyX5Chain([]byte{0xa0}, a.pool(), now, sign),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := VerifyX5Chain(chain, a.pool(), now, sign); err != nil {
		t.Error(err)
	}
	p224, _ := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	many := make([][]byte, maxX5Chain+1)
	for i := range many {
		many[i] = leaf
	}
	for name, b := range map[string][]byte{
		"empty":             {},
		"array of one":      MustMarshal([][]byte{leaf}),
		"too many":          MustMarshal(many),
		"no certificates":   MustMarshal([][]byte{{1}, {2}}),
		"text":              MustMarshal([]string{"a", "b"}),
		"unsupported curve": a.issue(t, &p224.PublicKey, false, 0),
	} {
		if _, err := ParseX5Chain(b); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestCWTCredential(t *testing.T) {
	for _, alg := range []int64{AlgEdDSA, AlgES256, AlgES384, AlgES512} {
		key, err := GenerateKey(alg)
		if err != nil {
			t.Fatal(err)
		}
		b, err := EncodeCWT("n", key)
		if err != nil {
			t.Fatal(err)
		}
		mac, err := CreateMac0(AlgHMAC256, make([]byte, 32), Headers{}, EncodeCCS("n", key), nil)
		if err != nil {
			t.Fatal(err)
		}
		tagged := AppendTag(TagSign1, b)
		for name, c := range map[string][]byte{
			"untagged": b, "Sign1": tagged, "CWT of Sign1": AppendTag(TagCWT, tagged), "CWT, untagged inside": AppendTag(TagCWT, b),
			"Mac0": mac, "CWT of Mac0": AppendTag(TagCWT, mac),
		} {
			got, err := DecodeCredential(HeaderKCWT, c)
			if err != nil || !got.SamePublic(key) {
				t.Errorf("%s: %v", name, err)
			}
			for i := range c {
				if _, err := ParseCWT(c[:i]); err == nil {
					t.Fatalf("%s: prefix of %d bytes accepted", name, i)
				}
			}
		}
		ccs := EncodeCCS("n", key)
		for name, c := range map[string][]byte{
			"CCS": ccs, "encrypted": AppendTag(TagEncrypt0, b), "twice a CWT": AppendTag(TagCWT, AppendTag(TagCWT, b)),
			"no alg":       MustMarshal([]any{[]byte{}, map[int64]any{}, ccs, []byte{1}}),
			"no signature": MustMarshal([]any{Headers{Alg: alg}.encodeProtected(), map[int64]any{}, ccs, []byte{}}),
			"three":        MustMarshal([]any{Headers{Alg: alg}.encodeProtected(), map[int64]any{}, ccs}),
			"no claims":    MustMarshal([]any{Headers{Alg: alg}.encodeProtected(), map[int64]any{}, []byte{0xa0}, []byte{1}}),
		} {
			if _, err := ParseCWT(c); err == nil {
				t.Errorf("%s: accepted", name)
			}
		}
	}
	dh, err := GenerateDHKey(CrvX25519)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := EncodeCWT("n", dh); err == nil {
		t.Error("an X25519 key signs")
	}
	if _, err := ParseCredential(34, nil); err == nil {
		t.Error("unknown format accepted")
	}
}

// FuzzCredential: what is read stands for a key of a known kind, in every
// format.
func FuzzCredential(f *testing.F) {
	a := newAuthority(f)
	key, err := GenerateKey(AlgEdDSA)
	if err != nil {
		f.Fatal(err)
	}
	cwt, err := EncodeCWT("n", key)
	if err != nil {
		f.Fatal(err)
	}
	leaf := a.issue(f, ed25519.PublicKey(key.X), false, 0)
	for _, b := range [][]byte{cwt, AppendTag(TagCWT, cwt), EncodeCCS("n", key), leaf, EncodeX5Chain(leaf, a.mid.Raw)} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, format := range []int64{HeaderKCCS, HeaderKCWT, HeaderX5Chain} {
			k, err := DecodeCredential(format, b)
			if err == nil && (k.D != nil || len(k.X) == 0 || k.Kty == KtySymmetric) {
				t.Fatalf("format %d: a credential without a public key", format)
			}
		}
		_ = VerifyX5Chain(b, a.pool(), time.Now(), x509.KeyUsageDigitalSignature)
	})
}
