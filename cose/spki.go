package cose

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"errors"
)

// SPKI is the public key as a SubjectPublicKeyInfo in DER, which raw public keys
// (RFC 7250) and certificates carry: of keys that sign.
func (k *Key) SPKI() ([]byte, error) {
	switch {
	case k.Kty == KtyOKP && k.Crv == CrvEd25519:
		return x509.MarshalPKIXPublicKey(ed25519.PublicKey(k.X))
	case k.Kty == KtyEC2:
		pub, err := k.ecdsaPublic()
		if err != nil {
			return nil, err
		}
		return x509.MarshalPKIXPublicKey(pub)
	}
	return nil, errors.New("key cannot sign")
}

// KeyFromSPKI reads a SubjectPublicKeyInfo in DER.
func KeyFromSPKI(der []byte) (*Key, error) {
	pub, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, errors.New("malformed public key")
	}
	k, err := keyOf(pub)
	if err != nil {
		return nil, err
	}
	return k, k.check()
}

// PrivateKey is the key as the standard library has it: of keys that sign.
func (k *Key) PrivateKey() (crypto.Signer, error) {
	if k.Kty == KtyOKP && k.Crv == CrvEd25519 && len(k.D) == ed25519.SeedSize {
		return ed25519.NewKeyFromSeed(k.D), nil
	}
	if k.Kty != KtyEC2 || k.D == nil {
		return nil, errors.New("no private key that signs")
	}
	c, err := ecCurve(k.Crv)
	if err != nil {
		return nil, err
	}
	p, err := ecdsa.ParseRawPrivateKey(c, k.D)
	if err != nil {
		return nil, errors.New("no usable private key")
	}
	return p, nil
}

// Thumbprint is the SHA-256 thumbprint of a public key of kind OKP or EC2 (RFC 9679,
// Section 3): of its required members alone, in deterministic CBOR.
func (k *Key) Thumbprint() []byte {
	sum := sha256.Sum256((&Key{Kty: k.Kty, Crv: k.Crv, X: k.X, Y: k.Y}).Encode())
	return sum[:]
}
