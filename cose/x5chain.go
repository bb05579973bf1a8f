package cose

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// maxX5Chain bounds the certificates of one chain.
const maxX5Chain = 8

// EncodeX5Chain makes a credential of kind x5chain (RFC 9360, Section 2) of
// certificates in DER, the end entity's first: the certificate itself, or a CBOR
// array of several.
func EncodeX5Chain(certs ...[]byte) []byte {
	if len(certs) == 1 {
		return certs[0]
	}
	return MustMarshal(certs)
}

// ParseX5Chain reads the public key of the end entity out of a credential of
// kind x5chain. Nothing is verified: see [VerifyX5Chain].
func ParseX5Chain(b []byte) (*Key, error) {
	certs, err := x5chain(b)
	if err != nil {
		return nil, fmt.Errorf("x5chain: %w", err)
	}
	k, err := keyOf(certs[0].PublicKey)
	if err != nil {
		return nil, fmt.Errorf("x5chain: %w", err)
	}
	return k, nil
}

// x5chain parses the certificates. A certificate in DER begins with 0x30, an
// array in CBOR does not.
func x5chain(b []byte) ([]*x509.Certificate, error) {
	ders := [][]byte{b}
	if len(b) == 0 || b[0] != 0x30 {
		items, err := DecodeArray(b)
		if err != nil {
			return nil, errors.New("neither a certificate nor an array of them")
		}
		// RFC 9360, Section 2: one alone is no array.
		if len(items) < 2 || len(items) > maxX5Chain {
			return nil, fmt.Errorf("array of %d certificates", len(items))
		}
		ders = ders[:0]
		for _, item := range items {
			der, err := AsBytes(item)
			if err != nil {
				return nil, err
			}
			ders = append(ders, der)
		}
	}
	certs := make([]*x509.Certificate, 0, len(ders))
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, errors.New("malformed certificate")
		}
		certs = append(certs, c)
	}
	return certs, nil
}

// CheckX5Time says whether the end entity's certificate of a credential of kind x5chain
// is valid at the time now, as far as its dates go.
func CheckX5Time(b []byte, now time.Time) error {
	certs, err := x5chain(b)
	if err != nil {
		return fmt.Errorf("x5chain: %w", err)
	}
	if c := certs[0]; now.Before(c.NotBefore) || now.After(c.NotAfter) {
		return errors.New("x5chain: the certificate is not valid now")
	}
	return nil
}

// VerifyX5Chain verifies a credential of kind x5chain at the time now: a path of
// valid certificates leads from the end entity to one of roots, and the end
// entity's key may be used for usage, where its certificate restricts that
// (RFC 5280, Section 4.2.1.3). Extended key usages are not judged.
func VerifyX5Chain(b []byte, roots *x509.CertPool, now time.Time, usage x509.KeyUsage) error {
	certs, err := x5chain(b)
	if err != nil {
		return fmt.Errorf("x5chain: %w", err)
	}
	between := x509.NewCertPool()
	for _, c := range certs[1:] {
		between.AddCert(c)
	}
	if _, err := certs[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}); err != nil {
		return fmt.Errorf("x5chain: %w", err)
	}
	if have := certs[0].KeyUsage; have != 0 && have&usage == 0 {
		return errors.New("x5chain: the certificate does not allow this use of its key")
	}
	return nil
}

// keyOf is a public key of the standard library as a COSE_Key.
func keyOf(pub any) (*Key, error) {
	k := &Key{}
	switch p := pub.(type) {
	case ed25519.PublicKey:
		k.Kty, k.Crv, k.X = KtyOKP, CrvEd25519, p
	case *ecdh.PublicKey:
		if p.Curve() != ecdh.X25519() {
			return nil, errors.New("curve is not supported")
		}
		k.Kty, k.Crv, k.X = KtyOKP, CrvX25519, p.Bytes()
	case *ecdsa.PublicKey:
		point, err := p.Bytes() // 0x04 | x | y
		if err != nil {
			return nil, err
		}
		n := (len(point) - 1) / 2
		k.Kty, k.X, k.Y = KtyEC2, point[1:1+n], point[1+n:]
		for _, crv := range []int64{CrvP256, CrvP384, CrvP521} {
			if c, err := ecCurve(crv); err == nil && c == p.Curve {
				k.Crv = crv
			}
		}
	default:
		return nil, fmt.Errorf("public key of kind %T is not supported", pub)
	}
	if err := k.checkForm(); err != nil {
		return nil, err
	}
	return k, nil
}

// X5ChainFromPEM makes a credential of kind x5chain of PEM blocks
// "CERTIFICATE", the end entity's first.
func X5ChainFromPEM(text []byte) ([]byte, error) {
	var ders [][]byte
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			ders = append(ders, block.Bytes)
		}
	}
	if len(ders) == 0 {
		return nil, errors.New(`no PEM block "CERTIFICATE"`)
	}
	b := EncodeX5Chain(ders...)
	if _, err := x5chain(b); err != nil {
		return nil, err
	}
	return b, nil
}

// PrivateKeyFromPEM reads a key pair out of the first PEM block "PRIVATE KEY"
// (PKCS #8): Ed25519, X25519, P-256, P-384 or P-521.
func PrivateKeyFromPEM(text []byte) (*Key, error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "PRIVATE KEY" {
			continue
		}
		priv, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, errors.New("malformed private key")
		}
		var k *Key
		switch p := priv.(type) {
		case ed25519.PrivateKey:
			if k, err = keyOf(p.Public()); err == nil {
				k.D = p.Seed()
			}
		case *ecdh.PrivateKey:
			if k, err = keyOf(p.PublicKey()); err == nil {
				k.D = p.Bytes()
			}
		case *ecdsa.PrivateKey:
			if k, err = keyOf(&p.PublicKey); err == nil {
				k.D, err = p.Bytes()
			}
		default:
			err = errors.New("kind of private key is not supported")
		}
		if err != nil {
			return nil, err
		}
		return k, k.check()
	}
	return nil, errors.New(`no PEM block "PRIVATE KEY" (PKCS #8)`)
}
