package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// certify writes NAME.pem and NAME.key, signed by the authority in ca.
func (s *site) certify(name string, ca *x509.Certificate, caKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if ca == nil {
		ca, caKey = c, key
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
	}
	der, err := x509.CreateCertificate(rand.Reader, c, ca, &key.PublicKey, caKey)
	if err != nil {
		s.t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		s.t.Fatal(err)
	}
	s.write(name+".pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	s.write(name+".key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})))
	if c, err = x509.ParseCertificate(der); err != nil {
		s.t.Fatal(err)
	}
	return c, key
}

// TestCertificates has the programs use certificates as credentials.
func TestCertificates(t *testing.T) {
	s := newSite(t)
	ca, caKey := s.certify("ca", nil, nil)
	s.certify("gm", ca, caKey)
	s.certify("node", ca, caKey)
	s.certify("stranger", nil, nil)
	file := func(name string) string { return filepath.Join(s.dir, name) }
	s.group = "    sign_alg: ES256\n    cred_fmt: x5chain\n    x5_roots_file: " + file("ca.pem") +
		"\n    x5_cert_file: " + file("gm.pem") + "\n    x5_key_file: " + file("gm.key") + "\n"
	s.configure()
	gateway := s.run()
	flags := func(name string) []string {
		return []string{"--cert-file", file(name + ".pem"), "--cert-key-file", file(name + ".key"), "--roots-file", file("ca.pem")}
	}
	n := s.join("n", flags("node")...)
	n.holds(s.rekey())
	args := append([]string{"node", "join", "--config", s.config, "--client", s.client, "--once"}, flags("stranger")...)
	run(t, 1, args...)
	run(t, 1, "node", "join", "--config", s.config, "--client", s.client, "--once")
	if code := gateway.signal(syscall.SIGTERM); code != 0 {
		t.Errorf("exit status %d", code)
	}
}
