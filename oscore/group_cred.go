package oscore

import (
	"errors"
	"fmt"

	"github.com/seed4911071e/groupgate/cose"
)

// CredentialSource knows the authentication credentials of the members of a group,
// as the Group Manager gave them.
type CredentialSource interface {
	// Credential gives the credential of the member that has the Sender ID kid
	// under the Group Identifier gid, byte for byte; false when it is not known. It
	// is called for the first message from a member, and again when one does not
	// verify with the credential given before. It must not block for long: who has
	// to ask the Group Manager answers false, asks, and tries the message again.
	// gid and kid are not to be changed or kept; cred stays as it is.
	Credential(gid, kid []byte) (cred []byte, ok bool)
}

// maxTags bounds the CBOR tags in front of a credential: that of a CWT and that
// of its COSE message.
const maxTags = 2

// endEntity is the part of a credential that stands for a member: without tags,
// and of a chain only the certificate at its end. It shares memory with cred.
//
// draft-ietf-core-oscore-groupcomm-28, Section 2.4.
func endEntity(format int64, cred []byte) ([]byte, error) {
	if format != cose.HeaderX5Chain {
		for range maxTags {
			_, content, ok := cose.DecodeTag(cred)
			if !ok {
				break
			}
			cred = content
		}
		return cred, nil
	}
	if len(cred) == 0 || !cose.IsArray(cred) {
		return cred, nil // a certificate alone
	}
	items, err := cose.DecodeArray(cred)
	if err != nil {
		return nil, err
	}
	if len(items) == 0 {
		return nil, errors.New("no certificate")
	}
	return cose.AsBytes(items[0])
}

// memberCredential reads a credential: the part that counts and the key in it,
// which must serve the modes of the group.
func (s *groupSuite) memberCredential(format int64, cred []byte) ([]byte, *cose.Key, error) {
	own, err := endEntity(format, cred)
	if err != nil {
		return nil, nil, fmt.Errorf("oscore: credential: %w", err)
	}
	key, err := cose.DecodeCredential(format, own)
	if err != nil {
		return nil, nil, fmt.Errorf("oscore: credential: %w", err)
	}
	return own, key, s.checkKey(key)
}

// checkKey reports whether a key serves the modes of the group.
func (s *groupSuite) checkKey(key *cose.Key) error {
	if s.group {
		if err := key.CheckAlg(s.Sign); err != nil {
			return fmt.Errorf("oscore: credential: %w", err)
		}
	}
	if s.pairwise && key.Degenerate() {
		return errors.New("oscore: credential: the key gives no shared secret")
	}
	return nil
}
