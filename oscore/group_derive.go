package oscore

import (
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"

	"github.com/seed4911071e/groupgate/cose"
)

// groupHKDF extracts and expands n bytes with the HKDF Algorithm of a group.
func groupHKDF(alg int64, salt, ikm, info []byte, n int) ([]byte, error) {
	switch alg {
	case cose.AlgHMAC256:
		return hkdf.Key(sha256.New, ikm, salt, string(info), n)
	case cose.AlgHMAC512:
		return hkdf.Key(sha512.New, ikm, salt, string(info), n)
	}
	return nil, fmt.Errorf("oscore: HKDF Algorithm %d is not supported", alg)
}

// groupInfo is the info array of RFC 8613, Section 3.2.1, whose id_context is the
// Gid in a group.
func groupInfo(id, gid []byte, alg int64, typ string, n int) []byte {
	b := make([]byte, 0, 16+len(id)+len(gid)+len(typ))
	b = append(b, 0x85)
	b = appendCBORBytes(b, id)
	b = appendCBORBytes(b, gid)
	b = appendCBORInt(b, alg)
	b = append(appendCBORHead(b, cborText, uint64(len(typ))), typ...)
	return appendCBORInt(b, int64(n))
}

// memberKey derives the Sender Key of a member, which is the Recipient Key that
// others have for it.
//
// draft-ietf-core-oscore-groupcomm-28, Section 2.2.
func (s *groupSuite) memberKey(secret, salt, gid, id []byte) ([]byte, error) {
	return groupHKDF(s.HKDF, salt, secret, groupInfo(id, gid, s.keyAlg, "Key", s.keyLen), s.keyLen)
}

// commonIV derives the Common IV: as long as the longer of the two nonces.
//
// draft-ietf-core-oscore-groupcomm-28, Section 2.1.4.
func (s *groupSuite) commonIV(secret, salt, gid []byte) ([]byte, error) {
	return groupHKDF(s.HKDF, salt, secret, groupInfo(nil, gid, s.keyAlg, "IV", s.ivLen), s.ivLen)
}

// signatureEncryptionKey derives the key of the keystreams.
//
// draft-ietf-core-oscore-groupcomm-28, Section 2.1.9.
func (s *groupSuite) signatureEncryptionKey(secret, salt, gid []byte) ([]byte, error) {
	return groupHKDF(s.HKDF, salt, secret, groupInfo(nil, gid, s.GroupEnc, "SEKey", s.encKeyLen), s.encKeyLen)
}

// pairwiseKey derives the key of messages that the member with the given Sender
// ID, Sender Key and credential sends to the member with the other credential. z is
// their Diffie-Hellman secret.
//
// draft-ietf-core-oscore-groupcomm-28, Section 2.5.1.
func (s *groupSuite) pairwiseKey(senderKey, id, gid, senderCred, recipientCred, z []byte) ([]byte, error) {
	if !s.pairwise {
		return nil, errors.New("oscore: the group has no pairwise mode")
	}
	ikm := make([]byte, 0, len(senderCred)+len(recipientCred)+len(z))
	ikm = append(ikm, senderCred...)
	ikm = append(ikm, recipientCred...)
	ikm = append(ikm, z...)
	return groupHKDF(s.HKDF, senderKey, ikm, groupInfo(id, gid, s.AEAD, "Key", s.pairLen), s.pairLen)
}

// keystream derives what hides a countersignature. pivID is the Sender ID of
// the endpoint that generated piv; gid is that of this message.
//
// draft-ietf-core-oscore-groupcomm-28, Section 4.2.
func (s *groupSuite) keystream(key, pivID, gid, piv []byte, request bool) ([]byte, error) {
	var room [64]byte
	info := append(room[:0], 0x84)
	info = appendCBORBytes(info, pivID)
	info = appendCBORBytes(info, gid)
	kind := byte(0xf4)
	if request {
		kind = 0xf5
	}
	info = append(info, kind)
	info = appendCBORInt(info, int64(s.sigLen))
	return groupHKDF(s.HKDF, piv, key, info, s.sigLen)
}

// groupNonce writes the nonce of RFC 8613, Section 5.2 into dst: the Sender ID of
// the endpoint that generated the Partial IV and the Partial IV itself, under the
// beginning of the Common IV.
//
// draft-ietf-core-oscore-groupcomm-28, Section 3.3.
func groupNonce(dst, commonIV, pivID, piv []byte) {
	clear(dst)
	dst[0] = byte(len(pivID))
	copy(dst[len(dst)-5-len(pivID):], pivID)
	copy(dst[len(dst)-len(piv):], piv)
	for i := range dst {
		dst[i] ^= commonIV[i]
	}
}
