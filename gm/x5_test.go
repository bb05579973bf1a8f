package gm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/gm/gmtest"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/store/storetest"
)

// authority issues certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, pool: x509.NewCertPool()}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	return a
}

// issue makes a key pair on P-256 and a chain for it.
func (a *authority) issue(usage x509.KeyUsage, until time.Time) (*cose.Key, []byte) {
	a.t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(crypto.PrivateKey(priv))
	if err != nil {
		a.t.Fatal(err)
	}
	key, err := cose.PrivateKeyFromPEM(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "end"}, KeyUsage: usage,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: until,
	}, a.cert, &priv.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return key, cose.EncodeX5Chain(cert, a.cert.Raw)
}

// x5Fixture is a Group Manager of one group with certificates of a.
func x5Fixture(a *authority, c groupcomm.GroupConfig, usage x509.KeyUsage) *fixture {
	a.t.Helper()
	c.ECDHCrv, c.CredFmt = cose.CrvP256, cose.HeaderX5Chain
	key, chain := a.issue(usage, time.Now().Add(time.Hour))
	f := &fixture{t: a.t, auth: &gmtest.Authority{}}
	f.deps = Deps{Authority: f.auth}
	f.cfg = Config{Groups: []groupcomm.GroupConfig{c}, RenewalInterval: unlimited, X5: map[string]X5{
		c.Name: {Roots: a.pool, Key: key, Chain: chain},
	}}
	f.reopen(storetest.Open(a.t, Migrations()))
	return f
}

// TestX5Chain: certificates as credentials, in groups of both kinds of proof.
func TestX5Chain(t *testing.T) {
	t.Parallel()
	const sign, agree = x509.KeyUsageDigitalSignature, x509.KeyUsageKeyAgreement
	soon, past := time.Now().Add(time.Hour), time.Now().Add(-time.Minute)
	for name, tc := range map[string]struct {
		signAlg, gpEncAlg int64
		usage, other      x509.KeyUsage
	}{
		"signatures": {cose.AlgES256, cose.AlgAESCCM16_64_128, sign, agree},
		"MACs":       {0, 0, agree, sign},
	} {
		t.Run(name, func(t *testing.T) {
			a, stranger := newAuthority(t), newAuthority(t)
			c := groupConfig("g1")
			c.SignAlg, c.GpEncAlg = tc.signAlg, tc.gpEncAlg
			f := x5Fixture(a, c, tc.usage)
			join := func(name string, by *authority, usage x509.KeyUsage, until time.Time) (*node.Member, error) {
				key, chain := by.issue(usage, until)
				m := f.node(name, node.Config{Group: "g1", Roles: both, WantCreds: true, Key: key, Cred: chain, Roots: a.pool})
				return m, m.Join(t.Context())
			}
			first, err := join("first", a, tc.usage, soon)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := join("no usage said", a, 0, soon); err != nil {
				t.Error(err)
			}
			second, err := join("second", a, tc.usage, soon)
			if err != nil {
				t.Fatal(err)
			}
			if s, _ := second.State(); len(s.Peers) != 2 {
				t.Errorf("%d peers", len(s.Peers))
			}
			// Byte for byte: the whole chain comes back.
			peers, err := second.Creds(t.Context())
			if err != nil || len(peers) != 2 || !peers[0].Key.SamePublic(first.Key()) || peers[0].Cred[0] != 0x82 {
				t.Errorf("credentials %v, %v", peers, err)
			}
			for name, bad := range map[string]func(string) (*node.Member, error){
				"another root": func(n string) (*node.Member, error) { return join(n, stranger, tc.usage, soon) },
				"expired":      func(n string) (*node.Member, error) { return join(n, a, tc.usage, past) },
				"other use":    func(n string) (*node.Member, error) { return join(n, a, tc.other, soon) },
			} {
				if _, err := bad(name); !errors.Is(err, groupcomm.ErrCredential) {
					t.Errorf("%s: %v", name, err)
				}
			}
			m := f.node("without a certificate", node.Config{Group: "g1", Roles: both})
			if err := m.Join(t.Context()); !errors.Is(err, node.ErrUnsupported) {
				t.Errorf("no certificate: %v", err)
			}
			// The node believes no Group Manager with a certificate of others.
			key, chain := a.issue(tc.usage, soon)
			m = f.node("suspicious", node.Config{Group: "g1", Roles: both, Key: key, Cred: chain, Roots: stranger.pool})
			if err := m.Join(t.Context()); !errors.Is(err, node.ErrProof) {
				t.Errorf("kdc_cred of another root: %v", err)
			}

			// After a restart with a renewed certificate that one is shown.
			x := f.cfg.X5["g1"]
			x.Key, x.Chain = a.issue(tc.usage, soon)
			f.cfg.X5["g1"] = x
			f.reopen(f.st)
			if m, err := join("later", a, tc.usage, soon); err != nil {
				t.Error(err)
			} else if s, _ := m.State(); !bytes.Equal(s.KDCCred, x.Chain) {
				t.Error("the old certificate is shown")
			}
		})
	}
}

func TestX5Refused(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	key, chain := a.issue(0, time.Now().Add(time.Hour))
	other, _ := a.issue(0, time.Now().Add(time.Hour))
	c := groupConfig("g1")
	c.SignAlg, c.ECDHCrv, c.CredFmt = cose.AlgES256, cose.CrvP256, cose.HeaderX5Chain
	for name, x := range map[string]X5{
		"nothing":     {},
		"no roots":    {Key: key, Chain: chain},
		"another key": {Roots: a.pool, Key: other, Chain: chain},
		"public key":  {Roots: a.pool, Key: key.Public(), Chain: chain},
		"no chain":    {Roots: a.pool, Key: key, Chain: []byte{0xa0}},
		"no key":      {Roots: a.pool, Chain: chain},
	} {
		m := New(Config{Groups: []groupcomm.GroupConfig{c}, X5: map[string]X5{"g1": x}}, Deps{Store: storetest.Open(t, Migrations())})
		if err := m.Setup(t.Context()); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	c.SignAlg, c.GpEncAlg, c.ECDHCrv, c.CredFmt = 0, 0, cose.CrvX25519, cose.HeaderKCWT
	m := New(Config{Groups: []groupcomm.GroupConfig{c}}, Deps{Store: storetest.Open(t, Migrations())})
	if err := m.Setup(t.Context()); err == nil {
		t.Error("an X25519 key signs a CWT")
	}
}
