package oscore

import (
	"errors"
	"fmt"

	"github.com/seed4911071e/groupgate/cose"
)

// cipherSizes gives key, nonce and tag length in bytes of an AEAD, or of an
// AES-CTR algorithm, which has no tag.
func cipherSizes(alg int64) (key, nonce, tag int, ok bool) {
	if key, ok := cose.CTRKeySize(alg); ok {
		return key, cose.CTRNonceSize, 0, true
	}
	return cose.AEADSizes(alg)
}

// GroupAlgorithms are the COSE algorithms of a group. 0 means that one is not
// set. The group mode needs GroupEnc and Sign, the pairwise mode AEAD and
// KeyAgreement.
//
// draft-ietf-core-oscore-groupcomm-28, Section 2.1.
type GroupAlgorithms struct {
	AEAD         int64 // of the pairwise mode
	HKDF         int64 // HMAC 256/256 or HMAC 512/512; 0: the former
	GroupEnc     int64 // of the group mode: an AEAD or AES-CTR
	Sign         int64 // of countersignatures
	KeyAgreement int64 // of the pairwise mode: ECDH-SS with the HKDF of the group
}

// groupSuite is what the algorithms of a group imply.
type groupSuite struct {
	GroupAlgorithms
	group, pairwise bool
	sigLen          int
	keyAlg          int64 // alg_aead in the derivation of keys and the Common IV
	keyLen          int   // of the Sender Key
	encKeyLen       int   // of the Signature Encryption Key
	pairLen         int   // of a pairwise key
	ivLen           int   // of the Common IV
	maxID           int   // of a Sender ID
	aadHead         []byte
}

// newGroupSuite checks the algorithms and draws the conclusions.
func newGroupSuite(a GroupAlgorithms) (*groupSuite, error) {
	if a.HKDF == 0 {
		a.HKDF = cose.AlgHMAC256
	}
	s := &groupSuite{GroupAlgorithms: a, group: a.GroupEnc != 0, pairwise: a.AEAD != 0}
	if s.group != (a.Sign != 0) {
		return nil, errors.New("oscore: group mode needs both a Group Encryption Algorithm and a Signature Algorithm")
	}
	if s.pairwise != (a.KeyAgreement != 0) {
		return nil, errors.New("oscore: pairwise mode needs both an AEAD Algorithm and a Pairwise Key Agreement Algorithm")
	}
	if !s.group && !s.pairwise {
		return nil, errors.New("oscore: the group has neither of the two modes")
	}
	minNonce := 0
	if s.group {
		key, nonce, _, ok := cipherSizes(a.GroupEnc)
		if !ok {
			return nil, fmt.Errorf("oscore: Group Encryption Algorithm %d is not supported", a.GroupEnc)
		}
		if s.sigLen, ok = cose.SignatureSize(a.Sign); !ok {
			return nil, fmt.Errorf("oscore: Signature Algorithm %d is not supported", a.Sign)
		}
		s.keyAlg, s.keyLen, s.encKeyLen, s.ivLen, minNonce = a.GroupEnc, key, key, nonce, nonce
	}
	if s.pairwise {
		key, nonce, _, ok := cose.AEADSizes(a.AEAD)
		if !ok {
			return nil, fmt.Errorf("oscore: AEAD Algorithm %d is not supported", a.AEAD)
		}
		s.pairLen = key
		if !s.group {
			s.keyAlg, s.keyLen, minNonce = a.AEAD, key, nonce
		}
		s.ivLen, minNonce = max(s.ivLen, nonce), min(minNonce, nonce)
	}
	// Section 2.1.10: the key agreement uses the HKDF of the group.
	want := map[int64]int64{cose.AlgHMAC256: cose.AlgECDHSSHKDF256, cose.AlgHMAC512: cose.AlgECDHSSHKDF512}
	agreement, ok := want[a.HKDF]
	if !ok {
		return nil, fmt.Errorf("oscore: HKDF Algorithm %d is not supported", a.HKDF)
	}
	if s.pairwise && a.KeyAgreement != agreement {
		return nil, fmt.Errorf("oscore: Pairwise Key Agreement Algorithm %d does not go with HKDF Algorithm %d", a.KeyAgreement, a.HKDF)
	}
	// Section 2.2: the longest Sender ID is six bytes shorter than the shorter nonce.
	s.maxID = minNonce - 6
	s.aadHead = append(s.aadHead, 0x89, 0x01, 0x84)
	for _, alg := range []int64{a.AEAD, a.GroupEnc, a.Sign, a.KeyAgreement} {
		if alg == 0 {
			s.aadHead = append(s.aadHead, 0xf6) // null
			continue
		}
		s.aadHead = appendCBORInt(s.aadHead, alg)
	}
	return s, nil
}
