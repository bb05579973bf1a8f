package cose

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
)

// RekeySeal says how a rekey message is protected (RFC 9594, Section 6.2.1).
// It prints as [redacted].
type RekeySeal struct {
	Alg    int64  // AEAD of the administrative key
	Key    []byte // administrative key
	BaseIV []byte // as long as the nonce of Alg
	KID    []byte // identifies Key; changes with it
	Num    uint64 // version of the new keying material
	Count  uint16 // uses of Key within this version so far: never twice the same
	// SignAlg and Sign are the signature algorithm and the signing key of the
	// Group Manager.
	SignAlg int64
	Sign    func(message []byte) ([]byte, error)
}

// Format prints [redacted] under every verb.
func (RekeySeal) Format(f fmt.State, _ rune) { Redact(f) }

// LogValue keeps the key out of logs.
func (RekeySeal) LogValue() slog.Value { return slog.StringValue(Redacted) }

// SealRekey protects the encoded rekey message plaintext: an untagged
// COSE_Encrypt0 with {1: alg, 4: kid} protected and the Partial IV and an
// abbreviated countersignature unprotected.
//
// One (kid, Num, Count) makes one nonce. The caller makes sure that no two
// plaintexts ever share it, across restarts as well.
func SealRekey(p RekeySeal, plaintext []byte) ([]byte, error) {
	if len(p.KID) == 0 || len(p.KID) > maxKID {
		return nil, errors.New("cose: rekey: kid has a wrong length")
	}
	if p.Sign == nil {
		return nil, errors.New("cose: rekey: no signing key")
	}
	piv, nonce, err := rekeyNonce(p.Alg, p.BaseIV, p.Num, p.Count)
	if err != nil {
		return nil, err
	}
	protected := Headers{Alg: p.Alg, KID: p.KID}.encodeProtected()
	ciphertext, err := seal(p.Alg, p.Key, nonce, plaintext, encStructure(protected, nil))
	if err != nil {
		return nil, err
	}
	sig, err := p.Sign(rekeyToBeSigned(p.SignAlg, protected, ciphertext))
	if err != nil {
		return nil, fmt.Errorf("cose: rekey: countersign: %w", err)
	}
	unprotected := Headers{PartialIV: piv, Countersignature: sig}
	return MustMarshal([]any{protected, unprotected.fields(), ciphertext}), nil
}

// rekeyNonce builds the Partial IV, COUNT (2 bytes) and the version left-padded,
// and the nonce from it. RFC 9594, Section 6.2.1.
func rekeyNonce(alg int64, baseIV []byte, num uint64, count uint16) (piv, nonce []byte, err error) {
	_, n, _, ok := AEADSizes(alg)
	if !ok {
		return nil, nil, fmt.Errorf("cose: AEAD algorithm %d is not supported", alg)
	}
	if len(baseIV) != n {
		return nil, nil, fmt.Errorf("cose: rekey: Base IV has %d bytes, not %d", len(baseIV), n)
	}
	piv = make([]byte, n)
	binary.BigEndian.PutUint16(piv, count)
	if err := putPadded(piv[2:], num); err != nil {
		return nil, nil, fmt.Errorf("cose: rekey: %w", err)
	}
	return piv, xor(baseIV, piv), nil
}

// putPadded writes v big-endian and left-padded.
func putPadded(dst []byte, v uint64) error {
	full := binary.BigEndian.AppendUint64(nil, v)
	if skip := len(full) - len(dst); skip > 0 {
		if !allZero(full[:skip]) {
			return errors.New("version does not fit the nonce")
		}
		full = full[skip:]
	}
	copy(dst[len(dst)-len(full):], full)
	return nil
}

func allZero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

func xor(a, b []byte) []byte {
	out := make([]byte, len(a))
	for i := range a {
		out[i] = a[i] ^ b[i]
	}
	return out
}

// rekeyToBeSigned is the Countersign_structure of RFC 9338, Section 3.3 in the
// five-element form: RFC 9594, Section 6.2.1 wants the signature algorithm in a
// protected header of the countersignature, and an abbreviated one carries none,
// so both sides put {1: sign_alg} there and it is not transmitted.
func rekeyToBeSigned(signAlg int64, bodyProtected, ciphertext []byte) []byte {
	return MustMarshal([]any{
		"CounterSignature0",
		bodyProtected,
		Headers{Alg: signAlg}.encodeProtected(),
		[]byte{},
		ciphertext,
	})
}

// RekeyEnvelope is a rekey message whose countersignature verified, and that is
// not decrypted yet.
type RekeyEnvelope struct {
	KID []byte // of the administrative key that opens it
	Num uint64 // version in the nonce, which must be the one inside

	m *Encrypt0
}

// ReadRekey verifies a rekey message before anything is done with its key: it is
// refused, with [ErrSignature], when kdcPub did not countersign it.
func ReadRekey(kdcPub *Key, msg []byte) (*RekeyEnvelope, error) {
	m, err := DecodeEncrypt0(msg)
	if err != nil {
		return nil, fmt.Errorf("rekey message: %w", err)
	}
	_, n, _, ok := AEADSizes(m.Protected.Alg)
	if !ok {
		return nil, fmt.Errorf("cose: AEAD algorithm %d is not supported", m.Protected.Alg)
	}
	piv := m.Unprotected.PartialIV
	if len(piv) != n {
		return nil, errors.New("rekey message: Partial IV has a wrong length")
	}
	rest := piv[2:]
	if len(rest) > 8 {
		if !allZero(rest[:len(rest)-8]) {
			return nil, errors.New("rekey message: version is too large")
		}
		rest = rest[len(rest)-8:]
	}
	e := &RekeyEnvelope{KID: m.Protected.KID, m: m}
	for _, b := range rest {
		e.Num = e.Num<<8 | uint64(b)
	}
	if err := verifyRekey(kdcPub, m); err != nil {
		return nil, err
	}
	return e, nil
}

// Open decrypts with the key that KID names. The message is refused, with
// [ErrDecrypt], for every reason that lies in cryptography.
func (e *RekeyEnvelope) Open(alg int64, key, baseIV []byte) ([]byte, error) {
	_, n, _, ok := AEADSizes(alg)
	if !ok {
		return nil, fmt.Errorf("cose: AEAD algorithm %d is not supported", alg)
	}
	if len(baseIV) != n {
		return nil, fmt.Errorf("cose: rekey: Base IV has %d bytes, not %d", len(baseIV), n)
	}
	piv := e.m.Unprotected.PartialIV
	if len(piv) != n {
		return nil, errors.New("rekey message: Partial IV has a wrong length")
	}
	return e.m.openWith(alg, key, xor(baseIV, piv), nil)
}

// OpenRekey verifies and decrypts a rekey message for one key. kid and alg must
// be those of the key. It returns the encoded rekey message and the version in
// the nonce, which must be the one inside. See [ReadRekey] and
// [RekeyEnvelope.Open] for errors.
func OpenRekey(key, baseIV, kid []byte, alg int64, kdcPub *Key, msg []byte) (plaintext []byte, num uint64, err error) {
	e, err := ReadRekey(kdcPub, msg)
	if err != nil {
		return nil, 0, err
	}
	if !bytes.Equal(e.KID, kid) {
		return nil, 0, errors.New("rekey message: another key identifier")
	}
	if plaintext, err = e.Open(alg, key, baseIV); err != nil {
		return nil, 0, err
	}
	return plaintext, e.Num, nil
}

func verifyRekey(kdcPub *Key, m *Encrypt0) error {
	if kdcPub == nil || m.Unprotected.Countersignature == nil {
		return ErrSignature
	}
	algs := []int64{kdcPub.SignAlg()}
	if plainAlg(algs[0]) == AlgEdDSA {
		// The group may use either name of the algorithm, the credential too.
		algs = []int64{AlgEdDSA, AlgEd25519}
	}
	for _, alg := range algs {
		if kdcPub.Verify(rekeyToBeSigned(alg, m.rawProtected, m.Ciphertext), m.Unprotected.Countersignature) == nil {
			return nil
		}
	}
	return ErrSignature
}
