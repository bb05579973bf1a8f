// Package cose holds what the gateway needs of CBOR and COSE: a deterministic
// encoder and a strict decoder, COSE keys, raw signatures, CWT Claims Sets used
// as credentials, the COSE messages, and the protected form of rekey messages.
//
// Start at [Marshal], [DecodeMap] and [Key]. All cryptography is that of the
// standard library and of vetted modules, but for the mode AES-CCM, which the
// library lacks; this package arranges bytes.
//
// Errors say what is wrong with the bytes and never contain a secret, so that
// their text may be shown to the peer that sent them. Failed cryptography is
// [ErrDecrypt] or [ErrSignature], without a reason.
//
// Do not compare secrets with bytes.Equal; use [Secret.Equal] or crypto/subtle.
package cose

import "errors"

// ErrDecrypt says that a ciphertext or an authentication tag is not genuine
// under the given key. There is deliberately one value for every cause.
var ErrDecrypt = errors.New("cose: message is not authentic")

// ErrSignature says that a signature is not genuine.
var ErrSignature = errors.New("cose: signature is not authentic")

// Algorithms of the COSE Algorithms registry (RFC 9053).
const (
	AlgEd25519             int64 = -19 // fully specified name of EdDSA over Ed25519 (RFC 9864)
	AlgEdDSA               int64 = -8
	AlgES256               int64 = -7
	AlgES384               int64 = -35
	AlgES512               int64 = -36
	AlgECDHSSHKDF256       int64 = -27
	AlgECDHSSHKDF512       int64 = -28
	AlgSHA256              int64 = -16
	AlgA128GCM             int64 = 1
	AlgA192GCM             int64 = 2
	AlgA256GCM             int64 = 3
	AlgHMAC256_64          int64 = 4
	AlgHMAC256             int64 = 5
	AlgHMAC384             int64 = 6
	AlgHMAC512             int64 = 7
	AlgAESCCM16_64_128     int64 = 10
	AlgAESCCM16_64_256     int64 = 11
	AlgAESCCM64_64_128     int64 = 12
	AlgAESCCM64_64_256     int64 = 13
	AlgChaCha20Poly1305    int64 = 24
	AlgAESCCM16_128_128    int64 = 30
	AlgAESCCM16_128_256    int64 = 31
	AlgAESCCM64_128_128    int64 = 32
	AlgAESCCM64_128_256    int64 = 33
	AlgA128CTR             int64 = -65534 // RFC 9459: encrypts, authenticates nothing
	AlgA192CTR             int64 = -65533
	AlgA256CTR             int64 = -65532
	HeaderAlg              int64 = 1
	HeaderCrit             int64 = 2
	HeaderKID              int64 = 4
	HeaderIV               int64 = 5
	HeaderPartialIV        int64 = 6
	HeaderCountersignature int64 = 12 // abbreviated countersignature version 2 (RFC 9338)
	HeaderKCWT             int64 = 13
	HeaderKCCS             int64 = 14
	HeaderX5Chain          int64 = 33
)

// Key types and curves (RFC 9053, Section 7).
const (
	KtyOKP       int64 = 1
	KtyEC2       int64 = 2
	KtySymmetric int64 = 4

	CrvP256    int64 = 1
	CrvP384    int64 = 2
	CrvP521    int64 = 3
	CrvX25519  int64 = 4
	CrvEd25519 int64 = 6
)

// CBOR tags of messages (RFC 9052, Section 2; RFC 8392, Section 6).
const (
	TagEncrypt0 uint64 = 16
	TagMac0     uint64 = 17
	TagSign1    uint64 = 18
	TagCWT      uint64 = 61
)
