package cose

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"

	"github.com/fxamacker/cbor/v2"
)

// Labels of a COSE_Key (RFC 9052, Section 7.1; RFC 9053, Section 7).
const (
	keyKty = 1
	keyKID = 2
	keyAlg = 3
	keyCrv = -1 // OKP and EC2
	keyX   = -2
	keyY   = -3
	keyD   = -4
	keyK   = -1 // symmetric
)

// maxKID and maxSymmetric bound what a key may carry.
const (
	maxKID       = 64
	maxSymmetric = 256
)

// Key is a COSE_Key. nil byte fields are absent. It prints as [redacted] under
// every verb, public or not: who wants to show a public key encodes it. fmt does
// not call methods on unexported fields, so a type that holds a private Key in one
// redacts itself or holds a [Secret].
type Key struct {
	Kty, Crv, Alg int64 // 0: absent
	KID           []byte
	X, Y          []byte // public: OKP has X only
	D             []byte // private
	K             []byte // symmetric
}

// Format prints [redacted] under every verb.
func (Key) Format(f fmt.State, _ rune) { Redact(f) }

// LogValue keeps the key out of logs.
func (Key) LogValue() slog.Value { return slog.StringValue(Redacted) }

// MarshalText keeps the key out of JSON and YAML.
func (Key) MarshalText() ([]byte, error) { return []byte(Redacted), nil }

// DecodeKey reads a COSE_Key: OKP with Ed25519 or X25519, EC2 with P-256, P-384
// or P-521, or symmetric. A public key must be on its curve, a private key must
// belong to its public key (which is computed where it is missing), and a
// compressed y coordinate is expanded. Unknown labels are ignored.
//
// A symmetric key without k is accepted: kid alone refers to a key (RFC 9202,
// Section 3.3).
func DecodeKey(b []byte) (*Key, error) {
	m, err := DecodeMap(b)
	if err != nil {
		return nil, fmt.Errorf("COSE_Key: %w", err)
	}
	k, err := keyFromMap(m)
	if err == nil && k.Kty != KtySymmetric {
		err = k.check()
	}
	if err != nil {
		return nil, fmt.Errorf("COSE_Key: %w", err)
	}
	return k, nil
}

// keyFromMap reads the members of a key. Its form is checked, its point is not.
func keyFromMap(m Map) (*Key, error) {
	var k Key
	var err error
	var ok bool
	if k.Kty, ok, err = m.Int(keyKty); err != nil {
		return nil, err
	} else if !ok {
		return nil, errors.New("no kty")
	}
	if k.Alg, _, err = m.Int(keyAlg); err != nil {
		return nil, err
	}
	if k.KID, _, err = m.Bytes(keyKID); err != nil {
		return nil, err
	}
	if len(k.KID) > maxKID {
		return nil, fmt.Errorf("kid is longer than %d bytes", maxKID)
	}
	if k.Kty == KtySymmetric {
		if k.K, _, err = m.Bytes(keyK); err != nil {
			return nil, err
		}
		if len(k.K) > maxSymmetric || (k.K != nil && len(k.K) == 0) {
			return nil, errors.New("k has a wrong length")
		}
		return &k, nil
	}
	if k.Kty != KtyOKP && k.Kty != KtyEC2 {
		return nil, fmt.Errorf("key type %d is not supported", k.Kty)
	}
	if k.Crv, _, err = m.Int(keyCrv); err != nil {
		return nil, err
	}
	if k.X, _, err = m.Bytes(keyX); err != nil {
		return nil, err
	}
	if k.D, _, err = m.Bytes(keyD); err != nil {
		return nil, err
	}
	if k.Kty == KtyOKP && m.Has(keyY) {
		return nil, errors.New("an OKP key has no y")
	}
	if m.Has(keyY) {
		// RFC 9053, Section 7.1.1: y is the coordinate or, as a Boolean, its sign.
		if odd, err := AsBool(m[keyY]); err == nil {
			if k.Y, err = decompress(k.Crv, k.X, odd); err != nil {
				return nil, err
			}
		} else if k.Y, err = AsBytes(m[keyY]); err != nil {
			return nil, errors.New("y is neither a byte string nor a Boolean")
		}
	}
	if err := k.checkForm(); err != nil {
		return nil, err
	}
	return &k, nil
}

// Encode gives the deterministic encoding, private members included.
func (k *Key) Encode() []byte { return MustMarshal(k.fields()) }

func (k *Key) fields() map[int64]any {
	m := map[int64]any{keyKty: k.Kty}
	if k.KID != nil {
		m[keyKID] = k.KID
	}
	if k.Alg != 0 {
		m[keyAlg] = k.Alg
	}
	if k.Kty == KtySymmetric {
		if k.K != nil {
			m[keyK] = k.K
		}
		return m
	}
	m[keyCrv] = k.Crv
	for label, v := range map[int64][]byte{keyX: k.X, keyY: k.Y, keyD: k.D} {
		if v != nil {
			m[label] = v
		}
	}
	return m
}

// Public returns a copy without private members. Of a symmetric key only type,
// kid and algorithm remain.
func (k *Key) Public() *Key {
	return &Key{
		Kty: k.Kty, Crv: k.Crv, Alg: k.Alg,
		KID: bytes.Clone(k.KID), X: bytes.Clone(k.X), Y: bytes.Clone(k.Y),
	}
}

// IsPrivate reports whether the key can sign or agree on a secret.
func (k *Key) IsPrivate() bool { return k.D != nil }

// SamePublic reports whether two asymmetric keys have the same public part.
func (k *Key) SamePublic(other *Key) bool {
	return k.Kty == other.Kty && k.Crv == other.Crv &&
		k.X != nil && bytes.Equal(k.X, other.X) && bytes.Equal(k.Y, other.Y)
}

// SignAlg is the signature algorithm of the key: its own, else what its curve
// implies. 0 means that the key cannot sign.
func (k *Key) SignAlg() int64 {
	if k.Alg != 0 {
		if k.CheckAlg(k.Alg) != nil {
			return 0
		}
		return k.Alg
	}
	switch {
	case k.Kty == KtyOKP && k.Crv == CrvEd25519:
		return AlgEdDSA
	case k.Kty == KtyEC2 && k.Crv == CrvP256:
		return AlgES256
	case k.Kty == KtyEC2 && k.Crv == CrvP384:
		return AlgES384
	case k.Kty == KtyEC2 && k.Crv == CrvP521:
		return AlgES512
	}
	return 0
}

// CheckAlg reports whether the key serves the signature algorithm: key type,
// curve and, where the key names one, its algorithm. EdDSA and its fully
// specified name Ed25519 mean the same here.
func (k *Key) CheckAlg(signAlg int64) error {
	var kty, crv int64
	switch signAlg {
	case AlgEdDSA, AlgEd25519:
		kty, crv = KtyOKP, CrvEd25519
	case AlgES256:
		kty, crv = KtyEC2, CrvP256
	case AlgES384:
		kty, crv = KtyEC2, CrvP384
	case AlgES512:
		kty, crv = KtyEC2, CrvP521
	default:
		return fmt.Errorf("signature algorithm %d is not supported", signAlg)
	}
	if k.Kty != kty || k.Crv != crv {
		return fmt.Errorf("key type %d with curve %d does not serve signature algorithm %d", k.Kty, k.Crv, signAlg)
	}
	if k.Alg != 0 && plainAlg(k.Alg) != plainAlg(signAlg) {
		return fmt.Errorf("key is for algorithm %d, not %d", k.Alg, signAlg)
	}
	return nil
}

// plainAlg maps the fully specified Ed25519 to EdDSA.
func plainAlg(alg int64) int64 {
	if alg == AlgEd25519 {
		return AlgEdDSA
	}
	return alg
}

var _ cbor.Marshaler = (*Key)(nil)

// MarshalCBOR makes a Key usable inside a larger value.
func (k *Key) MarshalCBOR() ([]byte, error) { return Marshal(k.fields()) }
