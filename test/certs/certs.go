// Package certs has certificates for tests, of authorities that live as long as
// the test.
package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Authority issues certificates.
type Authority struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	next int64
}

// New makes an authority that everybody may trust who wants.
func New(t testing.TB) *Authority {
	t.Helper()
	a := &Authority{t: t, next: 1}
	a.cert, a.key = a.Issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	return a
}

// Issue signs c, with a new key, for an hour unless it says until when.
func (a *Authority) Issue(c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.SerialNumber, c.NotBefore = big.NewInt(a.next), time.Now().Add(-time.Hour)
	if c.NotAfter.IsZero() {
		c.NotAfter = time.Now().Add(time.Hour)
	}
	a.next++
	parent, by := a.cert, a.key
	if parent == nil {
		parent, by = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, by)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

// Pair is a certificate for a server or client on 127.0.0.1 and its key, as PEM.
func (a *Authority) Pair(name string) (cert, key []byte) {
	a.t.Helper()
	return a.PairFor(&x509.Certificate{Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
}

// PairFor is Pair for what c says.
func (a *Authority) PairFor(c *x509.Certificate) (cert, key []byte) {
	a.t.Helper()
	c.KeyUsage, c.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	c, k := a.Issue(c)
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		a.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// Roots is the certificate of the authority, as PEM.
func (a *Authority) Roots() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// Pool trusts the authority.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// WritePair writes NAME.pem and NAME.key into a folder.
func (a *Authority) WritePair(dir, name string) (certFile, keyFile string) {
	a.t.Helper()
	cert, key := a.Pair(name)
	return a.write(dir, name+".pem", cert), a.write(dir, name+".key", key)
}

// WriteRoots writes ca.pem into a folder.
func (a *Authority) WriteRoots(dir string) (file string) {
	a.t.Helper()
	return a.write(dir, "ca.pem", a.Roots())
}

func (a *Authority) write(dir, name string, text []byte) (file string) {
	a.t.Helper()
	file = filepath.Join(dir, name)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		a.t.Fatal(err)
	}
	return file
}
