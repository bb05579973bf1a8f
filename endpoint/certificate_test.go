package endpoint

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/dtls/v3"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/dtls12"
	"github.com/seed4911071e/groupgate/record"
)

// issuer signs certificates; its own may be signed by another.
type issuer struct {
	cert  *x509.Certificate
	key   crypto.Signer
	chain [][]byte // its own and those above it, without the root
	pool  *x509.CertPool
}

func signer(t testing.TB, kind string) (k crypto.Signer) {
	t.Helper()
	var err error
	switch kind {
	case "Ed25519":
		_, k, err = ed25519.GenerateKey(rand.Reader)
	case "P-384":
		k, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	default:
		k, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// template is a certificate that is valid in a bubble of testing/synctest, where it
// is the year 2000, and outside.
func template(name string, edit ...func(*x509.Certificate)) *x509.Certificate {
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC), KeyUsage: x509.KeyUsageDigitalSignature,
	}
	for _, f := range edit {
		f(c)
	}
	return c
}

func newRoot(t testing.TB) *issuer {
	t.Helper()
	i := &issuer{key: signer(t, "P-384"), pool: x509.NewCertPool()} // of another curve than those that shake hands
	i.cert = i.sign(t, template("root", authority), i.key, nil)
	i.pool.AddCert(i.cert)
	return i
}

func authority(c *x509.Certificate) {
	c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
}

func (i *issuer) sign(t testing.TB, c *x509.Certificate, key crypto.Signer, above *x509.Certificate) *x509.Certificate {
	t.Helper()
	if above == nil {
		above = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, above, key.Public(), i.key)
	if err != nil {
		t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// below is an issuer between.
func (i *issuer) below(t testing.TB) *issuer {
	t.Helper()
	n := &issuer{key: signer(t, "P-256"), pool: i.pool}
	n.cert = i.sign(t, template("between", authority), n.key, i.cert)
	n.chain = append([][]byte{n.cert.Raw}, i.chain...)
	return n
}

// issue makes a certificate with its key.
func (i *issuer) issue(t testing.TB, name, kind string, edit ...func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	k := signer(t, kind)
	c := i.sign(t, template(name, edit...), k, i.cert)
	return tls.Certificate{Certificate: append([][]byte{c.Raw}, i.chain...), PrivateKey: k, Leaf: c}
}

// withCertificates has a world show a certificate, and take those of the issuer.
func withCertificates(t testing.TB, i *issuer, own tls.Certificate) func(*Config) {
	t.Helper()
	k, err := dtls12.NewCertificate(own.Certificate, own.PrivateKey.(crypto.Signer))
	if err != nil {
		t.Fatal(err)
	}
	return func(c *Config) {
		c.Certificate = func() *dtls12.Key { return k }
		c.Keys.(front).roots = i.pool
	}
}

func certOptions(own tls.Certificate, i *issuer, suite dtls.CipherSuiteID, more ...dtls.ClientOption) []dtls.ClientOption {
	return append([]dtls.ClientOption{
		dtls.WithCertificates(own), dtls.WithRootCAs(i.pool), dtls.WithServerName("gateway"), dtls.WithCipherSuites(suite),
		dtls.WithExtendedMasterSecret(dtls.RequireExtendedMasterSecret),
	}, more...)
}

// TestCertificates: clients with certificates are served beside those with
// pre-shared and raw public keys, and what Admit sees is their chain and key.
func TestCertificates(t *testing.T) {
	for name, c := range map[string]struct {
		suite        dtls.CipherSuiteID
		want         record.Suite
		client, mine string
	}{
		"CCM_8":            {dtls.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8, record.ECDSACCM8, "P-256", "P-256"},
		"CCM":              {dtls.TLS_ECDHE_ECDSA_WITH_AES_128_CCM, record.ECDSACCM, "P-256", "P-256"},
		"GCM":              {dtls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, record.ECDSAGCM, "P-256", "P-256"},
		"Ed25519, client":  {dtls.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8, record.ECDSACCM8, "Ed25519", "P-256"},
		"Ed25519, gateway": {dtls.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8, record.ECDSACCM8, "P-256", "Ed25519"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWire(1)
				k := keys{rawKey(t), rawKey(t)}
				root := newRoot(t)
				between := root.below(t)
				own := between.issue(t, "node", c.client)
				o := begin(t, w, true, k.withRaw, withCertificates(t, root, between.issue(t, "gateway", c.mine)))
				defer o.stop()
				var n numbers
				w.tap = n.watch(o.at, 0)
				p, err := o.dialWith(w.open(""), certOptions(own, root, c.suite, dtls.WithConnectionIDGenerator(dtls.OnlySendCIDGenerator()))...)
				if err != nil {
					t.Fatal(err)
				}
				defer p.close()
				if r := p.ask(p.request(coap.PUT, "x", "hello")); string(r.Payload) != "hello" {
					t.Errorf("%+v", r)
				}
				synctest.Wait()
				spki, err := x509.MarshalPKIXPublicKey(own.Leaf.PublicKey)
				if err != nil {
					t.Fatal(err)
				}
				o.set(func() {
					if len(o.admitted) != 1 {
						t.Fatalf("%d admitted", len(o.admitted))
					}
					a := o.admitted[0]
					if len(a.Certificates) != 2 || !bytes.Equal(a.Certificates[0], own.Leaf.Raw) || !bytes.Equal(a.PublicKey, spki) || a.Identity != nil {
						t.Errorf("admitted %+v", a)
					}
				})
				if who := o.began()[0].Peer(); who.Via != coap.DTLSCert {
					t.Errorf("%+v", who)
				}
				o.e.mu.Lock()
				for _, s := range o.e.sessions {
					if s.suite != c.want {
						t.Errorf("suite %#x", s.suite)
					}
				}
				o.e.mu.Unlock()
				p.c.rebind()
				if r := p.ask(p.request(coap.PUT, "moved", "there")); string(r.Payload) != "there" {
					t.Errorf("%+v", r)
				}
				q, err := k.dial(o, w.open(""), k.client)
				if err != nil {
					t.Fatal(err)
				}
				defer q.close()
				// Who has a pre-shared key may offer more, and gets what it has.
				r, err := o.dialFrom(w.open(""), "node", dtls.WithCipherSuites(c.suite, dtls.TLS_PSK_WITH_AES_128_CCM_8))
				if err != nil {
					t.Fatal(err)
				}
				defer r.close()
				for _, x := range []*peer{q, r} {
					if m := x.ask(x.request(coap.PUT, "y", "y")); string(m.Payload) != "y" {
						t.Errorf("%+v", m)
					}
				}
				defer w.lock()()
				if len(n.bad) != 0 {
					t.Errorf("numbers used twice: %v", n.bad)
				}
			})
		})
	}
}

// TestCertificateRefused: what is wrong with a certificate is told by its alert, and
// nothing is left of the handshake.
func TestCertificateRefused(t *testing.T) {
	root, other := newRoot(t), newRoot(t)
	good := root.issue(t, "node", "P-256")
	for name, c := range map[string]struct {
		own  func(*tls.Certificate)
		want dtls12.Alert
	}{
		"none":            {func(c *tls.Certificate) { *c = tls.Certificate{} }, dtls12.HandshakeFailure},
		"of another root": {func(c *tls.Certificate) { *c = other.issue(t, "node", "P-256") }, dtls12.UnknownCA},
		"without its issuer": {func(c *tls.Certificate) {
			*c = root.below(t).issue(t, "node", "P-256")
			c.Certificate = c.Certificate[:1]
		}, dtls12.UnknownCA},
		"expired": {func(c *tls.Certificate) {
			*c = root.issue(t, "node", "P-256", func(c *x509.Certificate) { c.NotAfter = time.Unix(1, 0) })
		}, dtls12.CertificateExpired},
		"of a server": {func(c *tls.Certificate) {
			*c = root.issue(t, "node", "P-256", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
		}, dtls12.BadCertificate},
		"not for signatures": {func(c *tls.Certificate) {
			*c = root.issue(t, "node", "P-256", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement })
		}, dtls12.UnsupportedCertificate},
		"of another curve": {func(c *tls.Certificate) { *c = root.issue(t, "node", "P-384") }, dtls12.UnsupportedCertificate},
		"of another key":   {func(c *tls.Certificate) { c.Certificate = root.issue(t, "node", "P-256").Certificate }, dtls12.DecryptError},
		"garbled":          {func(c *tls.Certificate) { c.Certificate = [][]byte{append([]byte{1}, good.Certificate[0]...)} }, dtls12.BadCertificate},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWire(1)
				o := begin(t, w, true, withCertificates(t, root, root.issue(t, "gateway", "P-256")))
				defer o.stop()
				own := good
				c.own(&own)
				give := func(*dtls.CertificateRequestInfo) (*tls.Certificate, error) { return &own, nil }
				_, err := o.dialWith(w.open(""), dtls.WithGetClientCertificate(give), dtls.WithRootCAs(root.pool), dtls.WithServerName("gateway"),
					dtls.WithCipherSuites(dtls.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8))
				if err == nil {
					t.Fatal("let in")
				}
				if want := fmt.Sprint(c.want); !strings.Contains(said(err), want) {
					t.Errorf("told %s, not %s", said(err), want)
				}
				synctest.Wait()
				if !o.empty() || len(o.admitted) != 0 {
					t.Errorf("%d admitted, or something is left", len(o.admitted))
				}
			})
		})
	}
}

// said is the alert of an error of pion's, as RFC 5246 spells it.
func said(err error) string {
	for _, a := range []dtls12.Alert{
		dtls12.HandshakeFailure, dtls12.UnknownCA, dtls12.CertificateExpired, dtls12.BadCertificate, dtls12.UnsupportedCertificate, dtls12.DecryptError,
		dtls12.IllegalParameter, dtls12.CertificateUnknown, dtls12.UnexpectedMessage,
	} {
		word := strings.NewReplacer("_", "", "ca", "CA").Replace(fmt.Sprint(a))
		if strings.Contains(strings.ToLower(err.Error()), strings.ToLower(word)) {
			return fmt.Sprint(a)
		}
	}
	if e := errors.Unwrap(err); e != nil {
		return said(e)
	}
	return err.Error()
}
