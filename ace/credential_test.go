package ace

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/ace/cwt"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
)

// certified is a certificate that ends after a time, in DER, with its key.
func certified(t *testing.T, left time.Duration) (der, spki []byte, key *cose.Key) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "node"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(left)}
	if der, err = x509.CreateCertificate(rand.Reader, c, c, &priv.PublicKey, priv); err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	if key, err = cose.KeyFromSPKI(c.RawSubjectPublicKeyInfo); err != nil {
		t.Fatal(err)
	}
	return der, c.RawSubjectPublicKeyInfo, key
}

// draft-ietf-ace-authcred-dtls-profile-04: a token confirms a public key in a
// credential, or by a hash: who shows it in a handshake is the holder, and nobody
// else. What only the certificate's hash names is not shown by a raw public key.
func TestCredentialsInTokens(t *testing.T) {
	for name, c := range map[string]struct {
		cnf  func(der []byte, key *cose.Key) *cwt.Confirmation
		cert bool // the certificate has to be shown
	}{
		"kccs": {func(_ []byte, k *cose.Key) *cwt.Confirmation {
			return &cwt.Confirmation{CCS: cose.EncodeCCS("node", k)}
		}, false},
		"x5chain": {func(der []byte, _ *cose.Key) *cwt.Confirmation {
			return &cwt.Confirmation{Chain: cose.EncodeX5Chain(der)}
		}, false},
		"x5chain with others": {func(der []byte, _ *cose.Key) *cwt.Confirmation {
			return &cwt.Confirmation{Chain: cose.EncodeX5Chain(der, der)}
		}, false},
		"ckt": {func(_ []byte, k *cose.Key) *cwt.Confirmation { return &cwt.Confirmation{Thumbprint: k.Thumbprint()} }, false},
		"x5t": {func(der []byte, _ *cose.Key) *cwt.Confirmation {
			sum := sha256.Sum256(der)
			return &cwt.Confirmation{CertHash: sum[:]}
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			der, spki, key := certified(t, time.Hour)
			other, otherSPKI, _ := certified(t, time.Hour)
			b.mustPost(outside(), b.token(func(x *cwt.Claims) { x.Cnf = c.cnf(der, key) }))
			if _, err := b.Holder(t.Context(), otherSPKI, other); !errors.Is(err, ErrIdentity) {
				t.Errorf("a stranger: %v", err)
			}
			if _, err := b.Holder(t.Context(), otherSPKI, nil); !errors.Is(err, ErrIdentity) {
				t.Errorf("a stranger's raw key: %v", err)
			}
			if _, err := b.Holder(t.Context(), spki, nil); errors.Is(err, ErrIdentity) != c.cert {
				t.Errorf("the raw key: %v", err)
			}
			who, err := b.Proved(t.Context(), spki, der)
			if err != nil {
				t.Fatal(err)
			}
			g, err := b.Grant(t.Context(), coap.Peer{Via: coap.DTLSCert, Subject: who})
			if err != nil || len(g.Scope) != 1 {
				t.Errorf("%+v, %v", g, err)
			}
		})
	}
}

// Confirmations that are malformed, or confirm nothing that can be relied on.
func TestUnusableCredentials(t *testing.T) {
	b := newBench(t)
	der, _, key := certified(t, time.Hour)
	old, _, _ := certified(t, -time.Minute)
	sum := sha256.Sum256(der)
	item := func(v any) cose.Item { return cose.Item(cose.MustMarshal(v)) }
	for name, cnf := range map[string]map[int64]any{
		"expired certificate":   {24: old},
		"no certificate":        {24: []byte{0x30, 1, 2}},
		"chain of nothing":      {24: []byte{}},
		"array of one":          {24: [][]byte{der}},
		"array of numbers":      {24: []int{1, 2}},
		"hash cut to 64 bits":   {6: []any{-15, sum[:8]}},
		"hash by name":          {6: []any{"SHA-256", sum[:]}},
		"short hash":            {6: []any{-16, sum[:31]}},
		"hash alone":            {6: sum[:]},
		"thumbprint of 31":      {5: sum[:31]},
		"thumbprint as text":    {5: string(sum[:])},
		"claims without a key":  {11: map[int64]any{2: "node"}},
		"claims that are bytes": {11: []byte{1}},
		"two at once":           {5: sum[:], 24: der},
		"a key beside":          {1: cose.Item(key.Encode()), 6: []any{-16, sum[:]}},
		"a bag":                 {23: der},
	} {
		c := claims()
		c.Cnf = nil
		raw, err := cose.DecodeMap(c.Encode())
		if err != nil {
			t.Fatal(err)
		}
		raw[8] = item(cnf)
		token, err := cwt.Seal(cwt.Protection{Alg: cose.AlgAESCCM16_64_128, Key: encKey}, cose.MustMarshal(raw))
		if err != nil {
			t.Fatal(err)
		}
		before := b.dump()
		if _, err := b.post(outside(), token); code(err) != coap.BadRequest {
			t.Errorf("%s: %v", name, err)
		}
		if b.dump() != before {
			t.Errorf("%s: state changed", name)
		}
	}
}
