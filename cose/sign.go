package cose

import (
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

// Signer returns what [Key.Sign] is, made once: a private Ed25519 key is
// expanded before it signs, and that costs as much as a signature.
func (k *Key) Signer() func(msg []byte) ([]byte, error) {
	if plainAlg(k.SignAlg()) != AlgEdDSA || len(k.D) != ed25519.SeedSize {
		return k.Sign
	}
	priv := ed25519.NewKeyFromSeed(k.D)
	return func(msg []byte) ([]byte, error) { return ed25519.Sign(priv, msg), nil }
}

// Verify checks a raw COSE signature with the algorithm of [Key.SignAlg]. Any
// mismatch is [ErrSignature].
func (k *Key) Verify(msg, sig []byte) error {
	alg := k.SignAlg()
	if alg == 0 {
		return ErrSignature
	}
	var pub crypto.PublicKey
	if k.Kty == KtyOKP {
		if len(k.X) != ed25519.PublicKeySize {
			return ErrSignature
		}
		pub = ed25519.PublicKey(k.X)
	} else {
		p, err := k.ecdsaPublic()
		if err != nil {
			return ErrSignature
		}
		pub = p
	}
	verifier, err := gocose.NewVerifier(gocose.Algorithm(plainAlg(alg)), pub)
	if err != nil {
		return ErrSignature
	}
	if verifier.Verify(msg, sig) != nil {
		return ErrSignature
	}
	return nil
}
