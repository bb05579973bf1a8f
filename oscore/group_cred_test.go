package oscore

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/cose"
)

// TestGroupCredentials: of a credential with tags, or in a chain, the untagged one of
// the end entity counts, and it is used byte for byte; keys that do not serve the
// group are refused.
//
// draft-ietf-core-oscore-groupcomm-28, Section 2.4.
func TestGroupCredentials(t *testing.T) {
	s := must(newGroupSuite(bothModes))
	key := must(cose.GenerateKey(cose.AlgEdDSA))
	ccs := cose.EncodeCCS("name", key)
	cwt := must(cose.EncodeCWT("name", key))
	priv := ed25519.NewKeyFromSeed(key.D)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "name"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0),
	}
	cert := must(x509.CreateCertificate(rand.Reader, template, template, priv.Public(), priv))
	for name, c := range map[string]struct {
		format int64
		cred   []byte
		want   []byte
	}{
		"CCS":              {cose.HeaderKCCS, ccs, ccs},
		"CWT":              {cose.HeaderKCWT, cwt, cwt},
		"CWT with its tag": {cose.HeaderKCWT, cose.AppendTag(cose.TagSign1, cwt), cwt},
		"CWT with both":    {cose.HeaderKCWT, cose.AppendTag(cose.TagCWT, cose.AppendTag(cose.TagSign1, cwt)), cwt},
		"certificate":      {cose.HeaderX5Chain, cert, cert},
		"chain":            {cose.HeaderX5Chain, cose.EncodeX5Chain(cert, cert), cert},
	} {
		own, k, err := s.memberCredential(c.format, c.cred)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !bytes.Equal(own, c.want) || !k.SamePublic(key) {
			t.Errorf("%s: %x", name, own)
		}
		for i := range c.cred {
			if _, _, err := s.memberCredential(c.format, c.cred[:i]); err == nil {
				t.Errorf("%s: a prefix of %d bytes is accepted", name, i)
			}
		}
	}
	one := make([]byte, 32)
	one[0] = 1
	for name, k := range map[string]*cose.Key{
		"other curve": must(cose.GenerateKey(cose.AlgES256)),
		"X25519":      must(cose.GenerateDHKey(cose.CrvX25519)),
		"y = 1":       {Kty: cose.KtyOKP, Crv: cose.CrvEd25519, X: one},
	} {
		if _, _, err := s.memberCredential(cose.HeaderKCCS, cose.EncodeCCS("", k)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// FuzzGroupCredential reads arbitrary bytes as credentials.
func FuzzGroupCredential(f *testing.F) {
	s := must(newGroupSuite(bothModes))
	key := must(cose.GenerateKey(cose.AlgEdDSA))
	f.Add(cose.HeaderKCCS, cose.EncodeCCS("name", key))
	f.Add(cose.HeaderKCWT, cose.AppendTag(cose.TagCWT, must(cose.EncodeCWT("name", key))))
	f.Add(cose.HeaderX5Chain, cose.EncodeX5Chain([]byte{0x30, 0}, []byte{0x30, 0}))
	f.Fuzz(func(t *testing.T, format int64, cred []byte) {
		own, k, err := s.memberCredential(format, cred)
		if err == nil && (k == nil || !bytes.Contains(cred, own)) {
			t.Errorf("credential %x of %x", own, cred)
		}
	})
}
