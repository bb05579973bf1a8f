package cose

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"

	gocose "github.com/veraison/go-cose"
)

// Sign makes a raw COSE signature over msg with the algorithm of [Key.SignAlg]:
// 64 bytes for Ed25519, r and s at full width for ECDSA (RFC 9053, Section 2).
func (k *Key) Sign(msg []byte) ([]byte, error) {
	alg := k.SignAlg()
	if alg == 0 {
		return nil, errors.New("cose: sign: the key is not for signatures")
	}
	if k.D == nil {
		return nil, errors.New("cose: sign: no private key")
	}
	var priv crypto.Signer
	if k.Kty == KtyOKP {
		if len(k.D) != ed25519.SeedSize {
			return nil, errors.New("cose: sign: no usable private key")
		}
		priv = ed25519.NewKeyFromSeed(k.D)
	} else {
		c, err := ecCurve(k.Crv)
		if err != nil {
			return nil, err
		}
		p, err := ecdsa.ParseRawPrivateKey(c, k.D)
		if err != nil {
			return nil, errors.New("cose: sign: no usable private key")
		}
		priv = p
	}
	signer, err := gocose.NewSigner(gocose.Algorithm(plainAlg(alg)), priv)
	if err != nil {
		return nil, fmt.Errorf("cose: sign: %w", err)
	}
	sig, err := signer.Sign(rand.Reader, msg)
	if err != nil {
		return nil, fmt.Errorf("cose: sign: %w", err)
	}
	return sig, nil
}

// Signer returns what [Key.Sign] is, made once: a private key is expanded before
// it signs, and that costs as much as a signature.
func (k *Key) Signer() func(msg []byte) ([]byte, error) {
	alg := plainAlg(k.SignAlg())
	if k.D == nil || alg == 0 {
		return k.Sign
	}
	if alg == AlgEdDSA {
		if len(k.D) != ed25519.SeedSize {
			return k.Sign
		}
		priv := ed25519.NewKeyFromSeed(k.D)
		return func(msg []byte) ([]byte, error) { return ed25519.Sign(priv, msg), nil }
	}
	c, err := ecCurve(k.Crv)
	if err != nil {
		return k.Sign
	}
	priv, err := ecdsa.ParseRawPrivateKey(c, k.D)
	if err != nil {
		return k.Sign
	}
	signer, err := gocose.NewSigner(gocose.Algorithm(alg), priv)
	if err != nil {
		return k.Sign
	}
	return func(msg []byte) ([]byte, error) {
		sig, err := signer.Sign(rand.Reader, msg)
		if err != nil {
			return nil, fmt.Errorf("cose: sign: %w", err)
		}
		return sig, nil
	}
}

// SignatureSize is the length in bytes of the raw signatures of an algorithm.
func SignatureSize(alg int64) (int, bool) {
	switch plainAlg(alg) {
	case AlgEdDSA, AlgES256:
		return 64, true
	case AlgES384:
		return 96, true
	case AlgES512:
		return 132, true
	}
	return 0, false
}

// Verify checks a raw COSE signature with the algorithm of [Key.SignAlg]. Any
// mismatch is [ErrSignature].
func (k *Key) Verify(msg, sig []byte) error { return k.Verifier()(msg, sig) }

// Verifier returns what [Key.Verify] is, made once. A key that cannot verify
// gives a function that always says so.
func (k *Key) Verifier() func(msg, sig []byte) error {
	never := func([]byte, []byte) error { return ErrSignature }
	alg := k.SignAlg()
	if alg == 0 {
		return never
	}
	var pub crypto.PublicKey
	if k.Kty == KtyOKP {
		if len(k.X) != ed25519.PublicKeySize {
			return never
		}
		pub = ed25519.PublicKey(bytes.Clone(k.X))
	} else {
		p, err := k.ecdsaPublic()
		if err != nil {
			return never
		}
		pub = p
	}
	verifier, err := gocose.NewVerifier(gocose.Algorithm(plainAlg(alg)), pub)
	if err != nil {
		return never
	}
	return func(msg, sig []byte) error {
		if verifier.Verify(msg, sig) != nil {
			return ErrSignature
		}
		return nil
	}
}
