package config

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestCertificate: what listen.coaps shows is complete, belongs together and is of a
// kind that nodes know.
func TestCertificate(t *testing.T) {
	dir := t.TempDir()
	write := func(name, kind string, der []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	certify := func(name string, k crypto.Signer) {
		t.Helper()
		c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
		if err != nil {
			t.Fatal(err)
		}
		pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		write(name+".pem", "CERTIFICATE", der)
		write(name+".key", "PRIVATE KEY", pkcs8)
	}
	p256, err1 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p384, err2 := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	_, ed, err3 := ed25519.GenerateKey(rand.Reader)
	if err1 != nil || err2 != nil || err3 != nil {
		t.Fatal(err1, err2, err3)
	}
	certify("p256", p256)
	certify("p384", p384)
	certify("ed", ed)
	for _, c := range []struct{ cert, key, roots, kind, want string }{
		{"p256.pem", "p256.key", "", EndpointOwn, ""},
		{"ed.pem", "ed.key", "p256.pem", EndpointOwn, ""},
		{"p256.pem", "", "", EndpointOwn, "listen.coaps_key_file"},
		{"", "p256.key", "", EndpointOwn, "listen.coaps_cert_file: is missing"},
		{"", "", "p256.pem", EndpointOwn, "listen.coaps_cert_file: is missing"},
		{"p256.pem", "p256.key", "", EndpointStock, "is for endpoint.kind: own"},
		{"p256.pem", "ed.key", "", EndpointOwn, "listen.coaps_cert_file: p256.pem with ed.key"},
		{"p384.pem", "p384.key", "", EndpointOwn, "ECDSA on P-256"},
		{"p256.pem", "p256.key", "p256.key", EndpointOwn, "listen.coaps_roots_file: p256.key holds no certificate"},
		{"p256.pem", "p256.key", "absent.pem", EndpointOwn, "does not exist"},
	} {
		cfg := Embedded()
		cfg.DataDir, cfg.Endpoint.Kind = dir, c.kind
		if c.kind == EndpointStock {
			cfg.Endpoint.PersistSessions = false
		}
		l := &cfg.Listen
		l.CoAPSCertFile, l.CoAPSKeyFile, l.CoAPSRootsFile = c.cert, c.key, c.roots
		err := cfg.Validate()
		if err == nil {
			err = cfg.CheckKeys()
		}
		switch {
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%+v: %v", c, err)
		case c.want == "" && (err != nil || l.CoAPSCert == nil || len(l.CoAPSCert.Chain) != 1 || (l.CoAPSCert.Roots != nil) != (c.roots != "")):
			t.Errorf("%+v: %v, %+v", c, err, l.CoAPSCert)
		}
	}
}
