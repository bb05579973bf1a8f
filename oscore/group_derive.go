package oscore

import "errors"

// typeSEKey is the type of a Signature Encryption Key in the info array.
const typeSEKey = "SEKey"

// memberKey derives the Sender Key of a member, which is the Recipient Key that
// others have for it.
//
// draft-ietf-core-oscore-groupcomm-28, Section 2.2.
func (s *groupSuite) memberKey(secret, salt, gid, id []byte) ([]byte, error) {
	return hkdfKey(s.HKDF, secret, salt, appendInfo(nil, id, gid, s.keyAlg, typeKey, s.keyLen), s.keyLen)
}

// commonIV derives the Common IV: as long as the longer of the two nonces.
//
// draft-ietf-core-oscore-groupcomm-28, Section 2.1.4.
func (s *groupSuite) commonIV(secret, salt, gid []byte) ([]byte, error) {
	return hkdfKey(s.HKDF, secret, salt, appendInfo(nil, nil, gid, s.keyAlg, typeIV, s.ivLen), s.ivLen)
}

// signatureEncryptionKey derives the key of the keystreams.
//
// draft-ietf-core-oscore-groupcomm-28, Section 2.1.9.
func (s *groupSuite) signatureEncryptionKey(secret, salt, gid []byte) ([]byte, error) {
	return hkdfKey(s.HKDF, secret, salt, appendInfo(nil, nil, gid, s.GroupEnc, typeSEKey, s.encKeyLen), s.encKeyLen)
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
	return hkdfKey(s.HKDF, ikm, senderKey, appendInfo(nil, id, gid, s.AEAD, typeKey, s.pairLen), s.pairLen)
}

// keystreamKey derives the keystreams that hide countersignatures. It holds the
// Signature Encryption Key.
type keystreamKey struct {
	suite *groupSuite
	key   []byte
}

// stream derives the keystream of a message, in the memory of w.
//
// draft-ietf-core-oscore-groupcomm-28, Section 4.2.
func (k *keystreamKey) stream(w *hkdfScratch, m *groupMessage) []byte {
	w.info = append(w.info[:0], 0x84)
	w.info = appendCBORBytes(w.info, m.pivID)
	w.info = appendCBORBytes(w.info, m.gid)
	kind := byte(0xf4)
	if m.request {
		kind = 0xf5
	}
	w.info = append(w.info, kind)
	w.info = appendCBORInt(w.info, int64(k.suite.sigLen))
	return w.derive(k.suite.HKDF, k.key, m.piv, k.suite.sigLen)
}
