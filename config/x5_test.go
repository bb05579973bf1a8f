package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// selfSigned makes a certificate and its key, in PEM.
func selfSigned(t *testing.T, curve elliptic.Curve) (cert, key []byte) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "gm"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &priv.PublicKey, priv)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// TestX5Files reads the files of a group with certificates as credentials.
func TestX5Files(t *testing.T) {
	cert, key := selfSigned(t, elliptic.P256())
	otherCert, _ := selfSigned(t, elliptic.P256())
	cert384, key384 := selfSigned(t, elliptic.P384())
	for name, tc := range map[string]struct {
		roots, cert, key []byte
		fault            string
	}{
		"good":          {cert, cert, key, ""},
		"another key":   {cert, otherCert, key, "x5_key_file: is not the key of the certificate"},
		"another curve": {cert, cert384, key384, "x5_cert_file: gm.pem: key type 2 with curve 2"},
		"no roots":      {[]byte("x"), cert, key, "x5_roots_file: roots.pem holds no certificate"},
		"no cert":       {cert, key, key, "x5_cert_file: gm.pem: no PEM block"},
		"no key":        {cert, cert, cert, "x5_key_file: gm.key: no PEM block"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, b := range map[string][]byte{"roots.pem": tc.roots, "gm.pem": tc.cert, "gm.key": tc.key, "as.key": nil} {
				if err := os.WriteFile(filepath.Join(dir, file), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			c, err := Parse("f", []byte("data_dir: "+dir+"\ngroups:\n- {name: a, sign_alg: ES256, cred_fmt: x5chain, "+
				"x5_roots_file: roots.pem, x5_cert_file: gm.pem, x5_key_file: gm.key}\n"))
			if err != nil {
				t.Fatal(err)
			}
			err = c.CheckKeys()
			if tc.fault == "" {
				if err != nil || c.Groups[0].X5 == nil || !c.Groups[0].X5.Key.IsPrivate() {
					t.Errorf("%v, %+v", err, c.Groups[0].X5)
				}
				return
			}
			if _, ok := errors.AsType[*FaultError](err); !ok || !strings.Contains(err.Error(), tc.fault) {
				t.Errorf("%v, want %q", err, tc.fault)
			}
			if c.Groups[0].X5 != nil {
				t.Error("a faulty identity is kept")
			}
		})
	}
}
