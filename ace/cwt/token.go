package cwt

import (
	"bytes"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"

	"github.com/seed4911071e/groupgate/cose"
)

var (
	// ErrForm is a byte string that has not the form of a CWT.
	ErrForm = errors.New("cwt: not a token")
	// ErrProtection is a token that does not verify under the key. It says no
	// more than that on purpose.
	ErrProtection = errors.New("cwt: protection does not verify")
)

// Kind is the COSE structure that protects a token.
type Kind uint8

// The protections of a token.
const (
	Encrypt0 Kind = iota + 1
	Mac0
	Sign1
)

func (k Kind) String() string {
	switch k {
	case Encrypt0:
		return "COSE_Encrypt0"
	case Mac0:
		return "COSE_Mac0"
	case Sign1:
		return "COSE_Sign1"
	}
	return "none"
}

// KindOf returns the structure that an algorithm belongs to; 0 for algorithms
// that protect no token here.
func KindOf(alg int64) Kind {
	switch alg {
	case cose.AlgAESCCM16_64_128:
		return Encrypt0
	case cose.AlgHMAC256_64, cose.AlgHMAC256:
		return Mac0
	case cose.AlgEdDSA, cose.AlgES256:
		return Sign1
	}
	return 0
}

const nonceSize = 13 // AES-CCM-16-64-128

// Token is a parsed token whose protection is not verified yet.
type Token struct {
	Kind Kind
	Alg  int64
	KID  []byte // of the protecting key; nil: none

	raw       []byte
	protected []byte // inside the bstr
	iv        []byte
	payload   []byte // ciphertext or claims
	auth      []byte // tag or signature
}

// Parse reads the form of a token: the CWT tag 61 and the COSE tag may each be
// there or not (RFC 8392, Section 6), but nothing else may precede or follow.
// The algorithm in the protected header decides what the token is, and tag and
// shape have to agree with it: a token has exactly one reading.
func Parse(b []byte) (*Token, error) {
	if len(b) > MaxToken {
		return nil, fmt.Errorf("%w: longer than %d bytes", ErrForm, MaxToken)
	}
	t := &Token{raw: b}
	rest := b
	if len(rest) > 1 && rest[0] == 0xd8 && rest[1] == 61 {
		rest = rest[2:]
	}
	var tagged Kind
	if len(rest) > 0 && rest[0] >= 0xd0 && rest[0] <= 0xd2 { // tags 16, 17, 18
		tagged = Kind(rest[0]-0xd0) + Encrypt0
		rest = rest[1:]
	}
	parts, err := cose.DecodeArray(rest)
	if err != nil || len(parts) < 3 || len(parts) > 4 {
		return nil, fmt.Errorf("%w: no COSE structure", ErrForm)
	}
	if err := t.parse(parts); err != nil {
		return nil, err
	}
	t.Kind = KindOf(t.Alg)
	if t.Kind == 0 {
		return t, nil // a well-formed token that no key of ours protects
	}
	if (t.Kind == Encrypt0) != (len(parts) == 3) || tagged != 0 && tagged != t.Kind {
		return nil, fmt.Errorf("%w: algorithm and structure disagree", ErrForm)
	}
	if t.Kind == Encrypt0 && len(t.iv) != nonceSize {
		return nil, fmt.Errorf("%w: no usable IV", ErrForm)
	}
	return t, nil
}

func (t *Token) parse(parts []cose.Item) (err error) {
	malformed := fmt.Errorf("%w: malformed headers or content", ErrForm)
	if t.protected, err = cose.AsBytes(parts[0]); err != nil {
		return malformed
	}
	if t.payload, err = cose.AsBytes(parts[2]); err != nil {
		return malformed
	}
	if len(parts) == 4 {
		if t.auth, err = cose.AsBytes(parts[3]); err != nil {
			return malformed
		}
	}
	prot, err := cose.DecodeMap(t.protected)
	if err != nil {
		return malformed
	}
	headers, err := cose.DecodeMap(parts[1])
	if err != nil {
		return malformed
	}
	// RFC 9052, Section 3.1: 'alg' is authenticated where it can be, a header
	// occurs once, and critical ones have to be understood: we know of none.
	if !prot.Has(cose.HeaderAlg) || headers.Has(cose.HeaderAlg) {
		return fmt.Errorf("%w: alg is not protected", ErrForm)
	}
	for label, v := range prot {
		if headers.Has(label) {
			return fmt.Errorf("%w: header %d occurs twice", ErrForm, label)
		}
		headers[label] = v
	}
	if headers.Has(cose.HeaderCrit) || headers.Has(cose.HeaderPartialIV) {
		return fmt.Errorf("%w: headers not permitted", ErrForm)
	}
	if !cose.IsText(headers[cose.HeaderAlg]) {
		if t.Alg, _, err = headers.Int(cose.HeaderAlg); err != nil {
			return malformed
		}
	}
	d := decoder{m: headers}
	t.KID = d.bytes("kid", cose.HeaderKID, MaxKID)
	t.iv = d.bytes("IV", cose.HeaderIV, nonceSize)
	if d.err != nil {
		return malformed
	}
	return nil
}

// Open verifies a COSE_Encrypt0 or COSE_Mac0 token under a symmetric key and
// returns the encoded claims.
func (t *Token) Open(key []byte) ([]byte, error) {
	switch t.Kind {
	case Encrypt0:
		aead, err := cose.NewAEAD(t.Alg, key)
		if err != nil {
			return nil, ErrProtection
		}
		plain, err := aead.Open(nil, t.iv, t.payload, structure("Encrypt0", t.protected, nil))
		if err != nil {
			return nil, ErrProtection
		}
		return plain, nil
	case Mac0:
		if subtle.ConstantTimeCompare(t.mac(key), t.auth) != 1 {
			return nil, ErrProtection
		}
		return t.payload, nil
	}
	return nil, ErrProtection
}

// Verify verifies a COSE_Sign1 token and returns the encoded claims.
func (t *Token) Verify(pub *cose.Key) ([]byte, error) {
	if t.Kind != Sign1 || pub == nil || pub.CheckAlg(t.Alg) != nil ||
		pub.Verify(structure("Signature1", t.protected, t.payload), t.auth) != nil {
		return nil, ErrProtection
	}
	return t.payload, nil
}

func (t *Token) mac(key []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(structure("MAC0", t.protected, t.payload))
	sum := h.Sum(nil)
	if t.Alg == cose.AlgHMAC256_64 {
		return sum[:8]
	}
	return sum
}

// structure is Enc_structure, MAC_structure or Sig_structure with an empty
// external_aad (RFC 9052, Sections 4.4, 5.3 and 6.3); only Enc_structure has
// no payload.
func structure(context string, protected, payload []byte) []byte {
	if context == "Encrypt0" {
		return cose.MustMarshal([]any{context, protected, []byte{}})
	}
	return cose.MustMarshal([]any{context, protected, []byte{}, payload})
}

// Core identifies what is authenticated in the token: the same for every
// encoding of its outside, whose tags, unprotected headers and (with ECDSA)
// signature anyone can change.
func (t *Token) Core() [sha256.Size]byte {
	return sha256.Sum256(cose.MustMarshal([]any{uint64(t.Kind), t.protected, t.payload}))
}

// Canonical says whether the token has the one form of RFC 9770, Section 3: tag
// 61, the COSE tag, no unprotected headers, everything in its shortest encoding.
// Its token hash is then that of every form that the recipient accepts.
func (t *Token) Canonical() bool {
	return t.Kind != 0 && bytes.Equal(t.raw, encode(t.Kind, t.protected, t.payload, t.auth))
}

// Twin is the same token with the other signature that ECDSA has for it: (r, -s)
// verifies where (r, s) does, and everybody can tell one from the other. nil:
// there is none.
func (t *Token) Twin() []byte {
	half := len(t.auth) / 2
	if t.Alg != cose.AlgES256 || len(t.auth) != 64 {
		return nil
	}
	n := elliptic.P256().Params().N
	s := new(big.Int).SetBytes(t.auth[half:])
	if s.Sign() == 0 || s.Cmp(n) >= 0 {
		return nil
	}
	auth := bytes.Clone(t.auth)
	s.Sub(n, s).FillBytes(auth[half:])
	return encode(t.Kind, t.protected, t.payload, auth)
}

// encode writes a token in the form of RFC 9770, Section 3.
func encode(kind Kind, protected, payload, auth []byte) []byte {
	parts := []any{protected, map[int64]any{}, payload}
	if kind != Encrypt0 {
		parts = append(parts, auth)
	}
	return append([]byte{0xd8, 61, 0xd0 + byte(kind-Encrypt0)}, cose.MustMarshal(parts)...)
}

// Bytes returns the token as it was given to [Parse].
func (t *Token) Bytes() []byte { return t.raw }

// Hash is the token hash of RFC 9770, Section 4: the algorithm identifier of
// RFC 6920 for SHA-256 and the digest of the base64url text of the token.
func Hash(token []byte) []byte {
	sum := sha256.Sum256([]byte(base64.RawURLEncoding.EncodeToString(token)))
	return append([]byte{1}, sum[:]...)
}

// Protection says how a token is sealed.
type Protection struct {
	Alg    int64
	Key    []byte    // of COSE_Encrypt0 and COSE_Mac0
	Signer *cose.Key // private key of COSE_Sign1
	KID    []byte    // names the key to the recipient; nil: left out
}

// Seal makes a token of encoded claims. It has the form that RFC 9770,
// Section 3 asks for: tag 61, the COSE tag, and no unprotected headers.
func Seal(p Protection, claims []byte) ([]byte, error) {
	t := &Token{Kind: KindOf(p.Alg), Alg: p.Alg, payload: claims}
	h := map[int64]any{cose.HeaderAlg: p.Alg}
	if p.KID != nil {
		h[cose.HeaderKID] = p.KID
	}
	switch t.Kind {
	case Encrypt0:
		aead, err := cose.NewAEAD(p.Alg, p.Key)
		if err != nil {
			return nil, fmt.Errorf("cwt: seal: %w", err)
		}
		t.iv = make([]byte, nonceSize)
		rand.Read(t.iv)
		h[cose.HeaderIV] = t.iv
		t.protected = cose.MustMarshal(h)
		t.payload = aead.Seal(nil, t.iv, claims, structure("Encrypt0", t.protected, nil))
	case Mac0:
		t.protected = cose.MustMarshal(h)
		t.auth = t.mac(p.Key)
	case Sign1:
		if p.Signer == nil {
			return nil, errors.New("cwt: seal: no signing key")
		}
		if err := p.Signer.CheckAlg(p.Alg); err != nil {
			return nil, fmt.Errorf("cwt: seal: %w", err)
		}
		t.protected = cose.MustMarshal(h)
		sig, err := p.Signer.Sign(structure("Signature1", t.protected, claims))
		if err != nil {
			return nil, fmt.Errorf("cwt: seal: %w", err)
		}
		t.auth = sig
	default:
		return nil, fmt.Errorf("cwt: seal: algorithm %d protects no token", p.Alg)
	}
	return encode(t.Kind, t.protected, t.payload, t.auth), nil
}

// OpenKey decrypts an Encrypted_COSE_Key (RFC 8747, Section 3.3): a
// COSE_Encrypt0 of an encoded COSE_Key, tagged or not.
func OpenKey(encrypted, key []byte) (*cose.Key, error) {
	if len(encrypted) > 0 && encrypted[0] == 0xd8 {
		return nil, fmt.Errorf("%w: a token in place of a key", ErrForm)
	}
	t, err := Parse(encrypted)
	if err != nil {
		return nil, err
	}
	if t.Kind != Encrypt0 {
		return nil, fmt.Errorf("%w: key is not encrypted", ErrForm)
	}
	plain, err := t.Open(key)
	if err != nil {
		return nil, err
	}
	return cose.DecodeKey(plain)
}

// SealKey encrypts a symmetric COSE_Key for [OpenKey].
func SealKey(k *cose.Key, key []byte) ([]byte, error) {
	b, err := Seal(Protection{Alg: cose.AlgAESCCM16_64_128, Key: key}, k.Encode())
	if err != nil {
		return nil, err
	}
	return b[2:], nil // without the CWT tag
}
