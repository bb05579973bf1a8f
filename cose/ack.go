package cose

import "fmt"

// ackAlg protects acknowledgements, whatever algorithm the rekey messages use.
const ackAlg = AlgAESCCM16_64_128

// ackKey derives the key of acknowledgements, so that no nonce of one direction
// can meet one of the other.
func ackKey(key []byte) ([]byte, error) { return HKDF256(key, nil, []byte("ack"), 16) }

func ackNonce(num uint64) []byte {
	_, n, _, _ := AEADSizes(ackAlg)
	nonce := make([]byte, n)
	_ = putPadded(nonce, num) // 8 bytes always fit 13
	return nonce
}

// SealAck makes the acknowledgement by which a member says that it holds
// version num: an untagged COSE_Encrypt0 of [num] under a key derived from the
// member's administrative key, with num as the nonce. The same num always gives
// the same bytes, so sending it again is safe.
func SealAck(key []byte, num uint64) ([]byte, error) {
	derived, err := ackKey(key)
	if err != nil {
		return nil, fmt.Errorf("cose: acknowledgement: %w", err)
	}
	nonce := ackNonce(num)
	protected := Headers{Alg: ackAlg}.encodeProtected()
	ciphertext, err := seal(ackAlg, derived, nonce, MustMarshal([]uint64{num}), encStructure(protected, nil))
	if err != nil {
		return nil, err
	}
	return MustMarshal([]any{protected, Headers{IV: nonce}.fields(), ciphertext}), nil
}

// OpenAck verifies an acknowledgement and returns the version it shows.
func OpenAck(key, msg []byte) (num uint64, err error) {
	m, err := DecodeEncrypt0(msg)
	if err != nil {
		return 0, fmt.Errorf("acknowledgement: %w", err)
	}
	derived, err := ackKey(key)
	if err != nil {
		return 0, fmt.Errorf("cose: acknowledgement: %w", err)
	}
	plaintext, err := m.Open(ackAlg, derived, nil)
	if err != nil {
		return 0, err
	}
	items, err := DecodeArray(plaintext)
	if err != nil || len(items) != 1 {
		return 0, ErrDecrypt
	}
	if num, err = AsUint(items[0]); err != nil {
		return 0, ErrDecrypt
	}
	// The nonce is the version: another pairing was not made by SealAck.
	if string(m.Unprotected.IV) != string(ackNonce(num)) {
		return 0, ErrDecrypt
	}
	return num, nil
}
