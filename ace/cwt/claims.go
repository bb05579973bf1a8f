// Package cwt reads and makes the access tokens of ACE: CBOR Web Tokens
// (RFC 8392) with the claims of RFC 9200, protected as COSE_Encrypt0,
// COSE_Mac0 or COSE_Sign1.
//
// Start at [Parse] for a token that came from outside and at [Seal] for one to
// be given out. The package says what a token contains and whether its
// protection holds under one key; what the content permits is decided by the
// package ace.
package cwt

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/oscore"
)

// ErrClaims is a claims set that cannot be understood.
var ErrClaims = errors.New("cwt: malformed claims")

// Limits on what a claims set may hold, our choice. They keep every stored or
// logged part of a token small; the token as a whole is bounded by MaxToken.
const (
	MaxToken    = 4096 // bytes of a whole token; a psk_identity is not longer either
	MaxText     = 255  // bytes of iss, sub and one audience
	MaxAudience = 16   // entries of an aud array
	MaxKID      = 64   // bytes of a key identifier
	MaxID       = 64   // bytes of cti
	MaxCNonce   = 64   // bytes of cnonce
	maxDate     = 253402300799
)

// Claims is a CWT claims set (RFC 8392, Section 3; RFC 9200, Section 5.10).
// Times are seconds since 1970. Zero values are absent claims; a date that was
// present at or before 1970 reads as 1, so that it stays a date of the past.
type Claims struct {
	Issuer    string        // 1
	Subject   string        // 2
	Audience  []string      // 3; one entry is encoded as text
	Expires   int64         // 4
	NotBefore int64         // 5
	IssuedAt  int64         // 6
	ID        []byte        // 7, cti
	Cnf       *Confirmation // 8
	Scope     []byte        // 9, the encoded CBOR value: bstr, tagged bstr or text
	Profile   int64         // 38
	CNonce    []byte        // 39
	ExpiresIn int64         // 40, exi: seconds from the first sight
}

// Confirmation is the claim 'cnf' (RFC 8747, Section 3.1). The first member
// that is set says how the proof-of-possession key is given.
type Confirmation struct {
	// Key is a COSE_Key (1). A symmetric one without K names a key that the
	// recipient derives or has already (RFC 9202, Section 3.3.1).
	Key *cose.Key
	// Encrypted is an Encrypted_COSE_Key (2): the encoded COSE_Encrypt0.
	Encrypted []byte
	// KID names a key (3), or OSCORE input material that is known already.
	KID []byte
	// OSCORE is OSCORE input material (4; RFC 9203, Section 3.2.1).
	OSCORE *oscore.Material

	// What follows is of draft-ietf-ace-authcred-dtls-profile-04: a public key in a
	// credential, or named by a hash of it. The labels but for ckt are those that
	// draft-ietf-ace-edhoc-oscore-profile asks for.

	// CCS is a CWT Claims Set (11, kccs), encoded.
	CCS []byte
	// Chain is a certificate in DER, or an encoded array of it and those above it
	// (24, x5chain), as in [cose.ParseX5Chain].
	Chain []byte
	// Thumbprint is the SHA-256 of a COSE_Key (5, ckt; RFC 9679).
	Thumbprint []byte
	// CertHash is the SHA-256 of a certificate in DER (6, x5t).
	CertHash []byte
}

// Labels of claims and of confirmation members.
const (
	claimIssuer    = 1
	claimSubject   = 2
	claimAudience  = 3
	claimExpires   = 4
	claimNotBefore = 5
	claimIssuedAt  = 6
	claimID        = 7
	claimCnf       = 8
	claimScope     = 9
	claimProfile   = 38
	claimCNonce    = 39
	claimExpiresIn = 40

	cnfKey       = 1
	cnfEncrypted = 2
	cnfKID       = 3
	cnfOSCORE    = 4
	cnfCKT       = 5
	cnfX5T       = 6
	cnfCCS       = 11
	cnfX5Chain   = 24

	// hashSHA256 is the algorithm of an x5t (RFC 9054). One that is cut to 64 bits, as
	// SHA-256/64 is, names a certificate but does not bind anything to it.
	hashSHA256 = -16
)

// Encode returns the claims set in core-deterministic encoding.
func (c *Claims) Encode() []byte {
	m := map[int64]any{}
	if c.Issuer != "" {
		m[claimIssuer] = c.Issuer
	}
	if c.Subject != "" {
		m[claimSubject] = c.Subject
	}
	switch len(c.Audience) {
	case 0:
	case 1:
		m[claimAudience] = c.Audience[0]
	default:
		m[claimAudience] = c.Audience
	}
	for label, v := range map[int64]int64{
		claimExpires: c.Expires, claimNotBefore: c.NotBefore, claimIssuedAt: c.IssuedAt,
		claimProfile: c.Profile, claimExpiresIn: c.ExpiresIn,
	} {
		if v != 0 {
			m[label] = v
		}
	}
	for label, v := range map[int64][]byte{claimID: c.ID, claimCNonce: c.CNonce} {
		if v != nil {
			m[label] = v
		}
	}
	if c.Cnf != nil {
		m[claimCnf] = cose.Item(c.Cnf.Encode())
	}
	if c.Scope != nil {
		m[claimScope] = cose.Item(c.Scope)
	}
	return cose.MustMarshal(m)
}

// Encode returns the value of a 'cnf' claim or parameter.
func (c *Confirmation) Encode() []byte {
	m := map[int64]any{}
	switch {
	case c.Key != nil:
		m[cnfKey] = cose.Item(c.Key.Encode())
	case c.Encrypted != nil:
		m[cnfEncrypted] = cose.Item(c.Encrypted)
	case c.OSCORE != nil:
		m[cnfOSCORE] = cose.Item(c.OSCORE.Encode())
	case c.CCS != nil:
		m[cnfCCS] = cose.Item(c.CCS)
	case len(c.Chain) > 0 && c.Chain[0] == derSequence:
		m[cnfX5Chain] = c.Chain
	case c.Chain != nil:
		m[cnfX5Chain] = cose.Item(c.Chain)
	case c.Thumbprint != nil:
		m[cnfCKT] = c.Thumbprint
	case c.CertHash != nil:
		m[cnfX5T] = []any{hashSHA256, c.CertHash}
	}
	if c.KID != nil {
		m[cnfKID] = c.KID
	}
	return cose.MustMarshal(m)
}

// DecodeClaims reads a claims set. Unknown claims are ignored (RFC 8392,
// Section 3); known ones must have their types. Errors wrap [ErrClaims].
func DecodeClaims(b []byte) (*Claims, error) {
	if len(b) > MaxToken {
		return nil, fmt.Errorf("%w: %d bytes", ErrClaims, len(b))
	}
	m, err := cose.DecodeMap(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrClaims, err)
	}
	d := decoder{m: m}
	c := &Claims{
		Issuer:    d.text("iss", claimIssuer),
		Subject:   d.text("sub", claimSubject),
		Audience:  d.audience(),
		Expires:   d.date("exp", claimExpires, math.Floor),
		NotBefore: d.date("nbf", claimNotBefore, math.Ceil),
		IssuedAt:  d.date("iat", claimIssuedAt, math.Floor),
		ID:        d.bytes("cti", claimID, MaxID),
		Scope:     m[claimScope],
		Profile:   d.integer("ace_profile", claimProfile),
		CNonce:    d.bytes("cnonce", claimCNonce, MaxCNonce),
		ExpiresIn: d.integer("exi", claimExpiresIn),
	}
	if m.Has(claimExpiresIn) && (c.ExpiresIn <= 0 || c.ExpiresIn > maxDate) {
		d.fail("exi", "out of range")
	}
	if d.err != nil {
		return nil, d.err
	}
	if m.Has(claimCnf) {
		if c.Cnf, err = DecodeConfirmation(m[claimCnf]); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// DecodeConfirmation reads the value of a 'cnf' claim or a 'req_cnf'
// parameter. A confirmation method that is not known here reads as an empty
// Confirmation.
func DecodeConfirmation(b []byte) (*Confirmation, error) {
	m, err := cose.DecodeMap(b)
	if err != nil {
		return nil, fmt.Errorf("%w: cnf: %w", ErrClaims, err)
	}
	// RFC 8747, Section 3.1: at most one key is given.
	keys := 0
	for _, label := range []int64{cnfKey, cnfEncrypted, cnfOSCORE, cnfCCS, cnfX5Chain, cnfCKT, cnfX5T} {
		if m.Has(label) {
			keys++
		}
	}
	if keys > 1 {
		return nil, fmt.Errorf("%w: cnf holds two keys", ErrClaims)
	}
	d := decoder{m: m}
	c := &Confirmation{KID: d.bytes("kid", cnfKID, MaxKID), Encrypted: m[cnfEncrypted], CCS: m[cnfCCS]}
	c.Thumbprint, c.Chain, c.CertHash = d.digest("ckt", m[cnfCKT]), d.chain(), d.certHash()
	if d.err != nil {
		return nil, d.err
	}
	if m.Has(cnfKey) {
		if c.Key, err = cose.DecodeKey(m[cnfKey]); err != nil {
			return nil, fmt.Errorf("%w: cnf: %w", ErrClaims, err)
		}
	}
	if m.Has(cnfOSCORE) {
		if c.OSCORE, err = oscore.DecodeMaterial(m[cnfOSCORE]); err != nil {
			return nil, fmt.Errorf("%w: cnf: %w", ErrClaims, err)
		}
	}
	return c, nil
}

// decoder reads members of a map and keeps the first error.
type decoder struct {
	m   cose.Map
	err error
}

func (d *decoder) fail(name, what string) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s: %s", ErrClaims, name, what)
	}
}

func (d *decoder) text(name string, label int64) string {
	s, present, err := d.m.Text(label)
	if err != nil || present && (s == "" || len(s) > MaxText) {
		d.fail(name, "not a text of 1 to 255 bytes")
	}
	return s
}

func (d *decoder) bytes(name string, label int64, limit int) []byte {
	b, _, err := d.m.Bytes(label)
	if err != nil || len(b) > limit {
		d.fail(name, "not a byte string of a permitted length")
	}
	return b
}

// derSequence begins a certificate in DER, and no array in CBOR.
const derSequence = 0x30

// digest reads a SHA-256; nil when there is none.
func (d *decoder) digest(name string, raw []byte) []byte {
	if raw == nil {
		return nil
	}
	b, err := cose.AsBytes(raw)
	if err != nil || len(b) != sha256.Size {
		d.fail(name, "not a SHA-256")
		return nil
	}
	return b
}

// chain: RFC 9360, Section 2: one certificate is a byte string, several are an array.
func (d *decoder) chain() []byte {
	raw := d.m[cnfX5Chain]
	if raw == nil {
		return nil
	}
	if b, err := cose.AsBytes(raw); err == nil {
		if len(b) == 0 || b[0] != derSequence {
			d.fail("x5chain", "not a certificate")
		}
		return b
	}
	if list, err := cose.DecodeArray(raw); err != nil || len(list) < 2 {
		d.fail("x5chain", "neither a certificate nor an array of several")
	}
	return raw
}

// certHash: RFC 9360, Section 2: COSE_CertHash, an algorithm and a hash.
func (d *decoder) certHash() []byte {
	raw := d.m[cnfX5T]
	if raw == nil {
		return nil
	}
	list, err := cose.DecodeArray(raw)
	if err != nil || len(list) != 2 || !bytes.Equal(list[0], cose.MustMarshal(hashSHA256)) {
		d.fail("x5t", "not [-16, hash]: other hash algorithms than SHA-256 are not supported")
		return nil
	}
	return d.digest("x5t", list[1])
}

func (d *decoder) integer(name string, label int64) int64 {
	v, _, err := d.m.Int(label)
	if err != nil {
		d.fail(name, "not an integer")
	}
	return v
}

// audience: RFC 8392, Section 3.1.3: one text or an array of texts.
func (d *decoder) audience() []string {
	if !d.m.Has(claimAudience) {
		return nil
	}
	raw := d.m[claimAudience]
	if cose.IsText(raw) {
		return []string{d.text("aud", claimAudience)}
	}
	list, err := cose.DecodeArray(raw)
	if err != nil || len(list) == 0 || len(list) > MaxAudience {
		d.fail("aud", "not a text or an array of texts")
		return nil
	}
	out := make([]string, len(list))
	for i, r := range list {
		if out[i], err = cose.AsText(r); err != nil || out[i] == "" || len(out[i]) > MaxText {
			d.fail("aud", "not a text of 1 to 255 bytes")
		}
	}
	return out
}

// date: RFC 8392, Section 2: NumericDate is an integer or a float, without tag.
func (d *decoder) date(name string, label int64, round func(float64) float64) int64 {
	raw, present := d.m[label]
	if !present || len(raw) == 0 {
		return 0
	}
	switch head := raw[0]; {
	case head>>5 == 0: // unsigned
		u, err := cose.AsUint(raw)
		if err != nil {
			break
		}
		return int64(max(1, min(u, maxDate)))
	case head>>5 == 1: // negative
		return 1
	case head >= 0xf9 && head <= 0xfb: // half, single and double float
		var f float64
		if cose.Unmarshal(raw, &f) != nil || math.IsNaN(f) {
			break
		}
		return int64(max(1, min(round(f), maxDate)))
	}
	d.fail(name, "not a date")
	return 0
}
