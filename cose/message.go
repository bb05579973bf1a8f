package cose

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"errors"
	"fmt"
	"hash"
)

// Headers are the header parameters that we use (RFC 9052, Section 3.1). nil
// byte fields are absent.
type Headers struct {
	Alg       int64  // 1, 0: absent
	KID       []byte // 4
	IV        []byte // 5
	PartialIV []byte // 6
	// Countersignature is the abbreviated one of RFC 9338, label 12.
	Countersignature []byte
}

func (h Headers) fields() map[int64]any {
	m := map[int64]any{}
	if h.Alg != 0 {
		m[HeaderAlg] = h.Alg
	}
	for label, v := range map[int64][]byte{
		HeaderKID: h.KID, HeaderIV: h.IV, HeaderPartialIV: h.PartialIV, HeaderCountersignature: h.Countersignature,
	} {
		if v != nil {
			m[label] = v
		}
	}
	return m
}

// encodeProtected gives the content of the protected bstr. RFC 9052, Section 3:
// an empty map is a zero-length string.
func (h Headers) encodeProtected() []byte {
	m := h.fields()
	if len(m) == 0 {
		return []byte{}
	}
	return MustMarshal(m)
}

func headersFromMap(m Map) (h Headers, err error) {
	// RFC 9052, Section 3.1: we understand no critical parameter.
	if m.Has(HeaderCrit) {
		return h, errors.New("critical header parameters are not supported")
	}
	if h.Alg, _, err = m.Int(HeaderAlg); err != nil {
		return h, err
	}
	if h.KID, _, err = m.Bytes(HeaderKID); err != nil {
		return h, err
	}
	if h.IV, _, err = m.Bytes(HeaderIV); err != nil {
		return h, err
	}
	if h.PartialIV, _, err = m.Bytes(HeaderPartialIV); err != nil {
		return h, err
	}
	if h.Countersignature, _, err = m.Bytes(HeaderCountersignature); err != nil {
		return h, err
	}
	if h.IV != nil && h.PartialIV != nil {
		return h, errors.New("both IV and Partial IV")
	}
	return h, nil
}

// message is the common form of COSE_Encrypt0, COSE_Mac0 and COSE_Sign1: array
// of protected, unprotected, content and, but for the first, a tag.
type message struct {
	protected, unprotected Headers
	rawProtected           []byte
	content, tag           []byte
}

func decodeMessage(b []byte, wantTag uint64, elements int) (*message, error) {
	if tag, content, ok := DecodeTag(b); ok {
		if tag != wantTag {
			return nil, fmt.Errorf("CBOR tag %d, not %d", tag, wantTag)
		}
		b = content
	}
	items, err := DecodeArray(b)
	if err != nil {
		return nil, err
	}
	if len(items) != elements {
		return nil, fmt.Errorf("array of %d elements, not %d", len(items), elements)
	}
	var m message
	if m.rawProtected, err = AsBytes(items[0]); err != nil {
		return nil, fmt.Errorf("protected header: %w", err)
	}
	protected := Map{}
	if len(m.rawProtected) > 0 {
		if protected, err = DecodeMap(m.rawProtected); err != nil {
			return nil, fmt.Errorf("protected header: %w", err)
		}
	}
	if m.protected, err = headersFromMap(protected); err != nil {
		return nil, fmt.Errorf("protected header: %w", err)
	}
	unprotected, err := DecodeMap(items[1])
	if err != nil {
		return nil, fmt.Errorf("unprotected header: %w", err)
	}
	if m.unprotected, err = headersFromMap(unprotected); err != nil {
		return nil, fmt.Errorf("unprotected header: %w", err)
	}
	// RFC 9052, Section 3: a label occurs in one of the two.
	for label := range unprotected {
		if protected.Has(label) {
			return nil, fmt.Errorf("label %d is in both headers", label)
		}
	}
	if m.content, err = AsBytes(items[2]); err != nil {
		return nil, fmt.Errorf("content: %w", err)
	}
	if elements > 3 {
		if m.tag, err = AsBytes(items[3]); err != nil {
			return nil, fmt.Errorf("tag or signature: %w", err)
		}
	}
	return &m, nil
}

// either returns the first that is present.
func either(a, b []byte) []byte {
	if a != nil {
		return a
	}
	return b
}

// Encrypt0 is a COSE_Encrypt0 message (RFC 9052, Section 5.2).
type Encrypt0 struct {
	Protected, Unprotected Headers
	Ciphertext             []byte
	rawProtected           []byte
}

// DecodeEncrypt0 reads the message with or without its tag.
func DecodeEncrypt0(b []byte) (*Encrypt0, error) {
	m, err := decodeMessage(b, TagEncrypt0, 3)
	if err != nil {
		return nil, fmt.Errorf("COSE_Encrypt0: %w", err)
	}
	return &Encrypt0{m.protected, m.unprotected, m.content, m.rawProtected}, nil
}

// KID is the key identifier, from either header; nil when there is none.
func (m *Encrypt0) KID() []byte { return either(m.Protected.KID, m.Unprotected.KID) }

// Open decrypts with the nonce in the IV parameter. alg is the algorithm of the
// key: a message that names another is refused.
func (m *Encrypt0) Open(alg int64, key, externalAAD []byte) ([]byte, error) {
	return m.openWith(alg, key, either(m.Protected.IV, m.Unprotected.IV), externalAAD)
}

func (m *Encrypt0) openWith(alg int64, key, nonce, externalAAD []byte) ([]byte, error) {
	if m.Protected.Alg != alg {
		return nil, ErrDecrypt
	}
	return open(alg, key, nonce, m.Ciphertext, encStructure(m.rawProtected, externalAAD))
}

// encStructure is the additional data of RFC 9052, Section 5.3.
func encStructure(protected, externalAAD []byte) []byte {
	return MustMarshal([]any{"Encrypt0", protected, externalAAD})
}

// SealEncrypt0 makes a tagged COSE_Encrypt0: {1: alg} protected, kid and IV
// unprotected. A nil h.IV is drawn at random; h.Alg is not looked at.
func SealEncrypt0(alg int64, key []byte, h Headers, plaintext, externalAAD []byte) ([]byte, error) {
	_, nonceLen, _, ok := AEADSizes(alg)
	if !ok {
		return nil, fmt.Errorf("cose: AEAD algorithm %d is not supported", alg)
	}
	if h.IV == nil {
		h.IV = make([]byte, nonceLen)
		_, _ = rand.Read(h.IV) // never fails
	}
	h.Alg = 0
	protected := Headers{Alg: alg}.encodeProtected()
	ciphertext, err := seal(alg, key, h.IV, plaintext, encStructure(protected, externalAAD))
	if err != nil {
		return nil, err
	}
	return AppendTag(TagEncrypt0, MustMarshal([]any{protected, h.fields(), ciphertext})), nil
}

// OpenEncrypt0 is [DecodeEncrypt0] and [Encrypt0.Open] in one.
func OpenEncrypt0(alg int64, key, msg, externalAAD []byte) ([]byte, error) {
	m, err := DecodeEncrypt0(msg)
	if err != nil {
		return nil, err
	}
	return m.Open(alg, key, externalAAD)
}

// Mac0 is a COSE_Mac0 message (RFC 9052, Section 6.2).
type Mac0 struct {
	Protected, Unprotected Headers
	Payload, Tag           []byte
	rawProtected           []byte
}

// DecodeMac0 reads the message with or without its tag.
func DecodeMac0(b []byte) (*Mac0, error) {
	m, err := decodeMessage(b, TagMac0, 4)
	if err != nil {
		return nil, fmt.Errorf("COSE_Mac0: %w", err)
	}
	return &Mac0{m.protected, m.unprotected, m.content, m.tag, m.rawProtected}, nil
}

// KID is the key identifier, from either header; nil when there is none.
func (m *Mac0) KID() []byte { return either(m.Protected.KID, m.Unprotected.KID) }

// Verify checks the tag. alg is the algorithm of the key: a message that names
// another is refused.
func (m *Mac0) Verify(alg int64, key, externalAAD []byte) error {
	if m.Protected.Alg != alg {
		return ErrDecrypt
	}
	tag, err := mac(alg, key, macStructure(m.rawProtected, externalAAD, m.Payload))
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(tag, m.Tag) != 1 {
		return ErrDecrypt
	}
	return nil
}

// macStructure is the input of RFC 9052, Section 6.3.
func macStructure(protected, externalAAD, payload []byte) []byte {
	return MustMarshal([]any{"MAC0", protected, externalAAD, payload})
}

// mac computes an HMAC of RFC 9053, Section 3.1.
func mac(alg int64, key, input []byte) ([]byte, error) {
	var newHash func() hash.Hash
	var n int
	switch alg {
	case AlgHMAC256:
		newHash, n = sha256.New, 32
	case AlgHMAC256_64:
		newHash, n = sha256.New, 8
	case AlgHMAC384:
		newHash, n = sha512.New384, 48
	case AlgHMAC512:
		newHash, n = sha512.New, 64
	default:
		return nil, fmt.Errorf("cose: MAC algorithm %d is not supported", alg)
	}
	if len(key) == 0 {
		return nil, errors.New("cose: MAC key is empty")
	}
	h := hmac.New(newHash, key)
	h.Write(input)
	return h.Sum(nil)[:n], nil
}

// CreateMac0 makes a tagged COSE_Mac0: {1: alg} protected, kid unprotected.
func CreateMac0(alg int64, key []byte, h Headers, payload, externalAAD []byte) ([]byte, error) {
	h.Alg = 0
	protected := Headers{Alg: alg}.encodeProtected()
	tag, err := mac(alg, key, macStructure(protected, externalAAD, payload))
	if err != nil {
		return nil, err
	}
	return AppendTag(TagMac0, MustMarshal([]any{protected, h.fields(), payload, tag})), nil
}

// VerifyMac0 decodes and verifies; it returns the payload.
func VerifyMac0(alg int64, key, msg, externalAAD []byte) ([]byte, error) {
	m, err := DecodeMac0(msg)
	if err != nil {
		return nil, err
	}
	if err := m.Verify(alg, key, externalAAD); err != nil {
		return nil, err
	}
	return m.Payload, nil
}

// Sign1 is a COSE_Sign1 message (RFC 9052, Section 4.2).
type Sign1 struct {
	Protected, Unprotected Headers
	Payload, Signature     []byte
	rawProtected           []byte
}

// DecodeSign1 reads the message with or without its tag.
func DecodeSign1(b []byte) (*Sign1, error) {
	m, err := decodeMessage(b, TagSign1, 4)
	if err != nil {
		return nil, fmt.Errorf("COSE_Sign1: %w", err)
	}
	return &Sign1{m.protected, m.unprotected, m.content, m.tag, m.rawProtected}, nil
}

// KID is the key identifier, from either header; nil when there is none.
func (m *Sign1) KID() []byte { return either(m.Protected.KID, m.Unprotected.KID) }

// Verify checks the signature with a public key that must serve the algorithm
// that the protected header names.
func (m *Sign1) Verify(pub *Key, externalAAD []byte) error {
	if pub.CheckAlg(m.Protected.Alg) != nil {
		return ErrSignature
	}
	return pub.Verify(sigStructure(m.rawProtected, externalAAD, m.Payload), m.Signature)
}

// sigStructure is the input of RFC 9052, Section 4.4.
func sigStructure(protected, externalAAD, payload []byte) []byte {
	return MustMarshal([]any{"Signature1", protected, externalAAD, payload})
}

// SignSign1 makes a tagged COSE_Sign1: {1: alg} protected, kid unprotected.
func SignSign1(key *Key, h Headers, payload, externalAAD []byte) ([]byte, error) {
	alg := key.SignAlg()
	if alg == 0 {
		return nil, errors.New("cose: sign: the key is not for signatures")
	}
	h.Alg = 0
	protected := Headers{Alg: alg}.encodeProtected()
	sig, err := key.Sign(sigStructure(protected, externalAAD, payload))
	if err != nil {
		return nil, err
	}
	return AppendTag(TagSign1, MustMarshal([]any{protected, h.fields(), payload, sig})), nil
}

// VerifySign1 decodes and verifies; it returns the payload.
func VerifySign1(pub *Key, msg, externalAAD []byte) ([]byte, error) {
	m, err := DecodeSign1(msg)
	if err != nil {
		return nil, err
	}
	if err := m.Verify(pub, externalAAD); err != nil {
		return nil, err
	}
	return m.Payload, nil
}
