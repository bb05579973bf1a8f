package cose

import (
	"errors"
	"fmt"
)

// Labels of a CWT Claims Set (RFC 8392, Section 3.1.1; RFC 8747, Section 3.1).
const (
	claimSub  = 2
	claimCnf  = 8
	cnfKey    = 1
	cnfEncKey = 2
	cnfKID    = 3
)

// EncodeCCS makes a credential of kind kccs (RFC 9528, Section 3.5.2):
// {2: subject, 8: {1: COSE_Key}} with the public part of pub. An empty subject
// is left out.
func EncodeCCS(subject string, pub *Key) []byte {
	claims := map[int64]any{claimCnf: map[int64]any{cnfKey: pub.Public().fields()}}
	if subject != "" {
		claims[claimSub] = subject
	}
	return MustMarshal(claims)
}

// DecodeCCS reads the public key out of a credential of kind kccs. The key must
// be asymmetric, on its curve and without private members; further claims are
// allowed and not judged. A credential is compared and used by its own bytes, so
// keep b: encoding the key again may give others.
func DecodeCCS(b []byte) (*Key, error) {
	k, err := ParseCCS(b)
	if err != nil {
		return nil, err
	}
	if err := k.check(); err != nil {
		return nil, fmt.Errorf("CWT Claims Set: COSE_Key: %w", err)
	}
	return k, nil
}

// ParseCCS is [DecodeCCS] for a caller that goes on to verify a signature with
// the key, and it leaves one question open that costs half as much as that:
// whether the x of an Ed25519 key is a point of the curve. Verification
// decompresses the point, so a key with which a signature verified is what
// DecodeCCS accepts. For any other, [Key.Check] answers.
func ParseCCS(b []byte) (*Key, error) {
	k, err := parseCCS(b)
	if err != nil {
		return nil, fmt.Errorf("CWT Claims Set: %w", err)
	}
	return k, nil
}

func parseCCS(b []byte) (*Key, error) {
	claims, err := DecodeMap(b)
	if err != nil {
		return nil, err
	}
	if _, _, err := claims.Text(claimSub); err != nil {
		return nil, err
	}
	cnf, ok, err := claims.Map(claimCnf)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, errors.New("no cnf")
	}
	// RFC 8747, Section 3.1: one representation of the key.
	if cnf.Has(cnfEncKey) || cnf.Has(cnfKID) {
		return nil, errors.New("cnf has more than a COSE_Key")
	}
	members, ok, err := cnf.Map(cnfKey)
	if err != nil {
		return nil, fmt.Errorf("cnf: %w", err)
	}
	if !ok {
		return nil, errors.New("cnf has no COSE_Key")
	}
	// Someone who publishes the private key has no key.
	if members.Has(keyD) {
		return nil, errors.New("COSE_Key has a private member")
	}
	key, err := keyFromMap(members)
	if err != nil {
		return nil, fmt.Errorf("COSE_Key: %w", err)
	}
	if key.Kty == KtySymmetric {
		return nil, errors.New("COSE_Key is symmetric")
	}
	return key, nil
}
