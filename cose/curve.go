package cose

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"math/big"
	"slices"
)

var errNotOnCurve = errors.New("public key is not a point of its curve")

func ecCurve(crv int64) (elliptic.Curve, error) {
	switch crv {
	case CrvP256:
		return elliptic.P256(), nil
	case CrvP384:
		return elliptic.P384(), nil
	case CrvP521:
		return elliptic.P521(), nil
	}
	return nil, fmt.Errorf("curve %d is not supported for EC2", crv)
}

// coordinateLen is the full width of a coordinate. RFC 9053, Section 7.1.1:
// leading zeros are kept.
func coordinateLen(c elliptic.Curve) int { return (c.Params().BitSize + 7) / 8 }

func decompress(crv int64, x []byte, odd bool) ([]byte, error) {
	c, err := ecCurve(crv)
	if err != nil {
		return nil, err
	}
	n := coordinateLen(c)
	if len(x) != n {
		return nil, fmt.Errorf("x has %d bytes, not %d", len(x), n)
	}
	sign := byte(2)
	if odd {
		sign = 3
	}
	px, py := elliptic.UnmarshalCompressed(c, append([]byte{sign}, x...))
	if px == nil {
		return nil, errNotOnCurve
	}
	return py.FillBytes(make([]byte, n)), nil
}

// Check reports whether the key is whole: members of the right lengths, a
// public key on its curve, a private key that belongs to it. What [DecodeKey]
// and [DecodeCCS] return was checked; [ParseCCS] leaves one question open.
func (k *Key) Check() error {
	c := *k
	return c.check()
}

// check verifies lengths, points and that D belongs to X and Y; a missing
// public part is computed from D.
func (k *Key) check() error {
	if err := k.checkForm(); err != nil {
		return err
	}
	if k.Kty == KtyOKP && k.Crv == CrvEd25519 && !onEd25519(k.X) {
		return errNotOnCurve
	}
	return nil
}

// checkForm is check but for one question: whether an Ed25519 key whose
// encoding is canonical stands for a point.
func (k *Key) checkForm() error {
	if k.Kty == KtyEC2 {
		return k.checkEC2()
	}
	if k.Y != nil {
		return errors.New("an OKP key has no y")
	}
	if k.D != nil && len(k.D) != 32 {
		return fmt.Errorf("d has %d bytes, not 32", len(k.D))
	}
	var own []byte
	switch k.Crv {
	case CrvEd25519:
		if k.D != nil {
			own = ed25519.NewKeyFromSeed(k.D).Public().(ed25519.PublicKey)
		}
	case CrvX25519:
		if k.D != nil {
			priv, err := ecdh.X25519().NewPrivateKey(k.D)
			if err != nil {
				return errors.New("d is not a private key of its curve")
			}
			own = priv.PublicKey().Bytes()
		}
	default:
		return fmt.Errorf("curve %d is not supported for OKP", k.Crv)
	}
	if own != nil && k.X == nil {
		k.X = own
	}
	if own != nil && !bytes.Equal(own, k.X) {
		return errors.New("private and public key differ")
	}
	if len(k.X) != 32 {
		return fmt.Errorf("x has %d bytes, not 32", len(k.X))
	}
	if k.Crv == CrvEd25519 && !canonicalEd25519(k.X) {
		return errNotOnCurve
	}
	return nil
}

func (k *Key) checkEC2() error {
	c, err := ecCurve(k.Crv)
	if err != nil {
		return err
	}
	n := coordinateLen(c)
	if k.D != nil {
		priv, err := ecdsa.ParseRawPrivateKey(c, k.D)
		if err != nil {
			return errors.New("d is not a private key of its curve")
		}
		point, err := priv.PublicKey.Bytes()
		if err != nil {
			return errors.New("d is not a private key of its curve")
		}
		if k.X == nil && k.Y == nil {
			k.X, k.Y = point[1:1+n], point[1+n:]
		}
		if !bytes.Equal(point, concat([]byte{4}, k.X, k.Y)) {
			return errors.New("private and public key differ")
		}
	}
	if len(k.X) != n || len(k.Y) != n {
		return fmt.Errorf("x and y have %d and %d bytes, not %d each", len(k.X), len(k.Y), n)
	}
	_, err = k.ecdsaPublic()
	return err
}

func (k *Key) ecdsaPublic() (*ecdsa.PublicKey, error) {
	c, err := ecCurve(k.Crv)
	if err != nil {
		return nil, err
	}
	pub, err := ecdsa.ParseUncompressedPublicKey(c, concat([]byte{4}, k.X, k.Y))
	if err != nil {
		return nil, errNotOnCurve
	}
	return pub, nil
}

// First bytes of p = 2²⁵⁵-19 and of p-1 = -1, encoded with the low byte first:
// 30 bytes 0xff follow, and 0x7f.
const (
	lowOfPrime    = 0xed
	lowOfMinusOne = 0xec
)

// ed25519Edge reads from the 32 bytes of a point whether y is not reduced, that
// is not below p, and whether it is 1 or -1, in which case x is zero.
func ed25519Edge(x []byte) (unreduced, unit bool) {
	ones := x[31]&0x7f == 0x7f
	zeros := x[31]&0x7f == 0
	for _, b := range x[1:31] {
		ones = ones && b == 0xff
		zeros = zeros && b == 0
	}
	return ones && x[0] >= lowOfPrime, ones && x[0] == lowOfMinusOne || zeros && x[0] == 1
}

// canonicalEd25519 reports whether the 32 bytes are what RFC 8032, Section
// 5.1.2 makes of a point, if they are one: y is reduced, and an x of zero has no
// sign. Signature verification is more lenient.
func canonicalEd25519(x []byte) bool {
	unreduced, unit := ed25519Edge(x)
	return !unreduced && (!unit || x[31]&0x80 == 0)
}

// onEd25519 reports whether the 32 bytes are a point: RFC 8032, Section 5.1.3
// has a solution x for (y²-1)/(dy²+1). Only public data is handled, so the
// arithmetic need not take constant time.
func onEd25519(x []byte) bool {
	if !canonicalEd25519(x) {
		return false
	}
	p := new(big.Int).Lsh(big.NewInt(1), 255)
	p.Sub(p, big.NewInt(19))
	le := bytes.Clone(x)
	le[31] &= 0x7f
	slices.Reverse(le)
	y := new(big.Int).SetBytes(le)
	one := big.NewInt(1)
	// d = -121665/121666
	d := new(big.Int).ModInverse(big.NewInt(121666), p)
	d.Mul(d, big.NewInt(-121665)).Mod(d, p)
	yy := new(big.Int).Mul(y, y)
	u := new(big.Int).Sub(yy, one)
	u.Mod(u, p)
	v := yy.Mul(yy, d)
	v.Add(v, one).Mod(v, p)
	return u.Sign() == 0 || big.Jacobi(u.Mul(u, v).Mod(u, p), p) == 1
}

// Degenerate reports whether an Ed25519 key has y = 1 or y = -1, so that its
// Montgomery form gives no shared secret. draft-ietf-ace-key-groupcomm-oscore-21,
// Section 6.2: such a key is refused where pairwise keys are derived from it.
func (k *Key) Degenerate() bool {
	if k.Kty != KtyOKP || k.Crv != CrvEd25519 || len(k.X) != 32 {
		return false
	}
	unreduced, unit := ed25519Edge(k.X)
	return unreduced || unit
}

// GenerateKey makes a key pair for a signature algorithm.
func GenerateKey(alg int64) (*Key, error) {
	k := &Key{Alg: alg}
	switch alg {
	case AlgEdDSA, AlgEd25519:
		k.Kty, k.Crv, k.D = KtyOKP, CrvEd25519, make([]byte, ed25519.SeedSize)
		_, _ = rand.Read(k.D) // never fails
		return k, k.check()
	case AlgES256:
		k.Crv = CrvP256
	case AlgES384:
		k.Crv = CrvP384
	case AlgES512:
		k.Crv = CrvP521
	default:
		return nil, fmt.Errorf("cose: generate key: algorithm %d is not supported", alg)
	}
	k.Kty = KtyEC2
	c, err := ecCurve(k.Crv)
	if err != nil {
		return nil, err
	}
	priv, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("cose: generate key: %w", err)
	}
	if k.D, err = priv.Bytes(); err != nil {
		return nil, fmt.Errorf("cose: generate key: %w", err)
	}
	return k, k.check()
}

// GenerateDHKey makes a key pair for Diffie-Hellman on a curve: X25519 or one
// of the NIST curves. It names no algorithm.
func GenerateDHKey(crv int64) (*Key, error) {
	k := &Key{Kty: KtyEC2, Crv: crv}
	if crv == CrvX25519 {
		k.Kty = KtyOKP
	}
	curve, err := k.ecdhCurve()
	if err != nil {
		return nil, err
	}
	priv, err := curve.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("cose: generate key: %w", err)
	}
	k.D = priv.Bytes()
	return k, k.check()
}

// CheckDH reports whether the key serves Diffie-Hellman on the curve: key type,
// curve and, where the key names one, an algorithm of key agreement with static
// keys (RFC 9053, Section 6.3).
func (k *Key) CheckDH(crv int64) error {
	if _, err := k.ecdhCurve(); err != nil {
		return err
	}
	if k.Crv != crv {
		return fmt.Errorf("key is of curve %d, not %d", k.Crv, crv)
	}
	if k.Alg != 0 && k.Alg != AlgECDHSSHKDF256 && k.Alg != AlgECDHSSHKDF512 {
		return fmt.Errorf("key is for algorithm %d, not for Diffie-Hellman", k.Alg)
	}
	return nil
}

func (k *Key) ecdhCurve() (ecdh.Curve, error) {
	switch {
	case k.Kty == KtyOKP && k.Crv == CrvX25519:
		return ecdh.X25519(), nil
	case k.Kty == KtyEC2 && k.Crv == CrvP256:
		return ecdh.P256(), nil
	case k.Kty == KtyEC2 && k.Crv == CrvP384:
		return ecdh.P384(), nil
	case k.Kty == KtyEC2 && k.Crv == CrvP521:
		return ecdh.P521(), nil
	}
	return nil, fmt.Errorf("key type %d with curve %d does not serve Diffie-Hellman", k.Kty, k.Crv)
}

// ECDH computes the shared secret of the private key k and the public key pub
// of the same curve: the output of X25519 (RFC 7748) or the x coordinate at
// full width. Two Ed25519 keys agree in their [Key.Montgomery] form. A public key
// that gives no secret (an all-zero output of X25519) is refused.
func (k *Key) ECDH(pub *Key) ([]byte, error) {
	if k.Kty == KtyOKP && k.Crv == CrvEd25519 && pub.Kty == KtyOKP && pub.Crv == CrvEd25519 {
		own, err := k.Montgomery()
		if err != nil {
			return nil, err
		}
		peer, err := pub.Montgomery()
		if err != nil {
			return nil, err
		}
		return own.ECDH(peer)
	}
	curve, err := k.ecdhCurve()
	if err != nil {
		return nil, err
	}
	if k.D == nil {
		return nil, errors.New("cose: no private key")
	}
	if pub.Kty != k.Kty || pub.Crv != k.Crv {
		return nil, errors.New("cose: keys are of different curves")
	}
	priv, err := curve.NewPrivateKey(k.D)
	if err != nil {
		return nil, errors.New("cose: no usable private key")
	}
	point := pub.X
	if pub.Kty == KtyEC2 {
		point = concat([]byte{4}, pub.X, pub.Y)
	}
	peer, err := curve.NewPublicKey(point)
	if err != nil {
		return nil, errNotOnCurve
	}
	z, err := priv.ECDH(peer)
	if err != nil {
		return nil, errNotOnCurve
	}
	return z, nil
}
