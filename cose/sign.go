package cose

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"sync"
)

// Sign makes a raw COSE signature over msg with the algorithm of [Key.SignAlg]:
// 64 bytes for Ed25519, r and s at full width for ECDSA (RFC 9053, Section 2).
func (k *Key) Sign(msg []byte) ([]byte, error) { return k.AppendSigner()(nil, msg) }

// Signer returns what [Key.Sign] is, made once: a private key is expanded before
// it signs, and that costs as much as a signature.
func (k *Key) Signer() func(msg []byte) ([]byte, error) {
	sign := k.AppendSigner()
	return func(msg []byte) ([]byte, error) { return sign(nil, msg) }
}

// AppendSigner is Signer with a place for the signature: it is appended to dst. With
// Ed25519 nothing is allocated; with ECDSA what the standard library needs. A key
// that cannot sign gives a function that always says so.
func (k *Key) AppendSigner() func(dst, msg []byte) ([]byte, error) {
	never := func(reason string) func(dst, msg []byte) ([]byte, error) {
		err := errors.New("cose: sign: " + reason)
		return func([]byte, []byte) ([]byte, error) { return nil, err }
	}
	alg := plainAlg(k.SignAlg())
	switch {
	case alg == 0:
		return never("the key is not for signatures")
	case k.D == nil:
		return never("no private key")
	case alg == AlgEdDSA:
		if len(k.D) != ed25519.SeedSize {
			return never("no usable private key")
		}
		priv := ed25519.NewKeyFromSeed(k.D)
		return func(dst, msg []byte) ([]byte, error) { return append(dst, ed25519.Sign(priv, msg)...), nil }
	}
	c, err := ecCurve(k.Crv)
	if err != nil {
		return never(err.Error())
	}
	priv, err := ecdsa.ParseRawPrivateKey(c, k.D)
	if err != nil {
		return never("no usable private key")
	}
	n := coordinateLen(c)
	return func(dst, msg []byte) ([]byte, error) {
		w := ecdsaRooms.Get().(*ecdsaRoom)
		defer ecdsaRooms.Put(w)
		r, s, err := ecdsa.Sign(rand.Reader, priv, appendDigest(w.digest[:0], alg, msg))
		if err != nil {
			return nil, fmt.Errorf("cose: sign: %w", err)
		}
		at := len(dst)
		dst = append(dst, make([]byte, 2*n)...)
		r.FillBytes(dst[at : at+n])
		s.FillBytes(dst[at+n:])
		return dst, nil
	}
}

// ecdsaRoom is memory that would be allocated for each signature otherwise.
type ecdsaRoom struct {
	digest [maxDigest]byte
	der    [maxSignature + 10]byte
}

var ecdsaRooms = sync.Pool{New: func() any { return new(ecdsaRoom) }}

// maxDigest is the length of the longest digest that is signed.
const maxDigest = sha512.Size

// appendDigest appends the digest that an ECDSA algorithm signs (RFC 9053, Section
// 2.1).
func appendDigest(b []byte, alg int64, msg []byte) []byte {
	switch alg {
	case AlgES384:
		d := sha512.Sum384(msg)
		return append(b, d[:]...)
	case AlgES512:
		d := sha512.Sum512(msg)
		return append(b, d[:]...)
	}
	d := sha256.Sum256(msg)
	return append(b, d[:]...)
}

// SignatureSize is the length in bytes of the raw signatures of an algorithm.
func SignatureSize(alg int64) (int, bool) {
	switch plainAlg(alg) {
	case AlgEdDSA, AlgES256:
		return 64, true
	case AlgES384:
		return 96, true
	case AlgES512:
		return maxSignature, true
	}
	return 0, false
}

// maxSignature is the length of the longest raw signature.
const maxSignature = 132

// Verify checks a raw COSE signature with the algorithm of [Key.SignAlg]. Any
// mismatch is [ErrSignature].
func (k *Key) Verify(msg, sig []byte) error { return k.Verifier()(msg, sig) }

// Verifier returns what [Key.Verify] is, made once. It allocates nothing but what
// the standard library needs for ECDSA. A key that cannot verify gives a function
// that always says so.
func (k *Key) Verifier() func(msg, sig []byte) error {
	never := func([]byte, []byte) error { return ErrSignature }
	alg := plainAlg(k.SignAlg())
	if alg == 0 {
		return never
	}
	if k.Kty == KtyOKP {
		if len(k.X) != ed25519.PublicKeySize {
			return never
		}
		pub := ed25519.PublicKey(bytes.Clone(k.X))
		return func(msg, sig []byte) error {
			if !ed25519.Verify(pub, msg, sig) {
				return ErrSignature
			}
			return nil
		}
	}
	pub, err := k.ecdsaPublic()
	if err != nil {
		return never
	}
	n := coordinateLen(pub.Curve)
	return func(msg, sig []byte) error {
		if len(sig) != 2*n {
			return ErrSignature
		}
		w := ecdsaRooms.Get().(*ecdsaRoom)
		defer ecdsaRooms.Put(w)
		if !ecdsa.VerifyASN1(pub, appendDigest(w.digest[:0], alg, msg), appendDERSignature(w.der[:0], sig[:n], sig[n:])) {
			return ErrSignature
		}
		return nil
	}
}

// appendDERSignature appends r and s as ASN.1 has them: Ecdsa-Sig-Value of RFC 3279,
// Section 2.2.3.
func appendDERSignature(b, r, s []byte) []byte {
	var room [maxSignature + 6]byte
	body := appendDERUint(appendDERUint(room[:0], r), s)
	b = append(b, 0x30)
	if len(body) > 0x7f {
		b = append(b, 0x81)
	}
	return append(append(b, byte(len(body))), body...)
}

// appendDERUint appends an INTEGER of at most 126 bytes.
func appendDERUint(b, v []byte) []byte {
	for len(v) > 1 && v[0] == 0 {
		v = v[1:]
	}
	if v[0]&0x80 != 0 {
		b = append(b, 0x02, byte(len(v)+1), 0)
	} else {
		b = append(b, 0x02, byte(len(v)))
	}
	return append(b, v...)
}
