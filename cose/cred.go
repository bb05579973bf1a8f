package cose

import (
	"errors"
	"fmt"
)

// ParseCredential reads the public key out of a credential. format is the COSE
// header label of its kind: kccs, kcwt or x5chain. As with [ParseCCS] the point
// of an Ed25519 key is not judged: [Key.Check] is for who verifies nothing with it.
// Nor is anybody's signature over the credential: see [ParseCWT] and
// [VerifyX5Chain].
func ParseCredential(format int64, b []byte) (*Key, error) {
	switch format {
	case HeaderKCCS:
		return ParseCCS(b)
	case HeaderKCWT:
		return ParseCWT(b)
	case HeaderX5Chain:
		return ParseX5Chain(b)
	}
	return nil, fmt.Errorf("credential format %d is not supported", format)
}

// DecodeCredential is [ParseCredential] and [Key.Check].
func DecodeCredential(format int64, b []byte) (*Key, error) {
	k, err := ParseCredential(format, b)
	if err != nil {
		return nil, err
	}
	if err := k.Check(); err != nil {
		return nil, fmt.Errorf("credential: %w", err)
	}
	return k, nil
}

// EncodeCWT makes a credential of kind kcwt: an untagged COSE_Sign1 over the
// claims of [EncodeCCS], signed by the key that it is about. A key that cannot
// sign is an error.
func EncodeCWT(subject string, key *Key) ([]byte, error) {
	tagged, err := SignSign1(key, Headers{}, EncodeCCS(subject, key), nil)
	if err != nil {
		return nil, err
	}
	_, b, ok := DecodeTag(tagged)
	if !ok {
		return nil, errors.New("cose: internal error: COSE_Sign1 without its tag")
	}
	return b, nil
}

// ParseCWT reads the public key out of a credential of kind kcwt (RFC 8392): a
// COSE_Sign1 or COSE_Mac0, with or without its tag and that of CWTs, whose claims
// are as in a CCS. The signature or MAC of the issuer is not verified: possession
// of the key is proven apart, and the token says who may join.
func ParseCWT(b []byte) (*Key, error) {
	k, err := parseCWT(b)
	if err != nil {
		return nil, fmt.Errorf("CWT: %w", err)
	}
	return k, nil
}

func parseCWT(b []byte) (*Key, error) {
	if tag, content, ok := DecodeTag(b); ok && tag == TagCWT {
		b = content
	}
	var m *message
	var err error
	if tag, _, ok := DecodeTag(b); ok && tag == TagMac0 {
		m, err = decodeMessage(b, TagMac0, 4)
	} else {
		m, err = decodeMessage(b, TagSign1, 4)
	}
	if err != nil {
		return nil, err
	}
	if m.protected.Alg == 0 || len(m.tag) == 0 {
		return nil, errors.New("neither signed nor authenticated")
	}
	return parseCCS(m.content)
}
