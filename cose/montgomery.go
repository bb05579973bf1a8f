package cose

import (
	"bytes"
	"crypto/sha512"
	"errors"
	"math/big"
	"slices"
)

// errDegenerate says that an Ed25519 key has no Montgomery form that gives a
// shared secret.
var errDegenerate = errors.New("public key is degenerate for Diffie-Hellman")

// Montgomery maps an Ed25519 key to the X25519 key with which the same owner
// agrees on secrets: u = (1+y)/(1-y) for the public part, and the first half of
// SHA-512 of the private key, which X25519 clamps as Ed25519 does. A key with y = 1
// or y = -1 is refused, and so is one that is no point of its curve.
//
// draft-ietf-core-oscore-groupcomm-28, Section 2.5.2.1; RFC 7748, Section 4.1.
func (k *Key) Montgomery() (*Key, error) {
	if k.Kty != KtyOKP || k.Crv != CrvEd25519 || len(k.X) != 32 {
		return nil, errors.New("cose: not an Ed25519 key")
	}
	if k.Degenerate() {
		return nil, errDegenerate
	}
	if !onEd25519(k.X) {
		return nil, errNotOnCurve
	}
	m := &Key{Kty: KtyOKP, Crv: CrvX25519, X: montgomeryU(k.X)}
	if k.D != nil {
		h := sha512.Sum512(k.D)
		m.D = bytes.Clone(h[:32])
		clear(h[:])
	}
	return m, nil
}

// montgomeryU computes u = (1+y)/(1-y) mod 2²⁵⁵-19 of the 32 bytes of a point
// whose y is neither 1 nor -1. Only public data is handled, so the arithmetic
// need not take constant time.
func montgomeryU(x []byte) []byte {
	one := big.NewInt(1)
	p := new(big.Int).Lsh(one, 255)
	p.Sub(p, big.NewInt(19))
	le := bytes.Clone(x)
	le[31] &= 0x7f
	slices.Reverse(le)
	y := new(big.Int).SetBytes(le)
	num := new(big.Int).Add(one, y)
	den := new(big.Int).Sub(one, y)
	den.Mod(den, p).ModInverse(den, p)
	u := num.Mul(num, den)
	u.Mod(u, p)
	out := u.FillBytes(make([]byte, 32))
	slices.Reverse(out)
	return out
}
