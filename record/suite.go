package record

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
)

// Suite is a cipher suite by its IANA number.
type Suite uint16

// The suites that protect with AES-128 in an AEAD mode and derive with
// SHA-256 (RFC 6655, RFC 5487, RFC 7251, RFC 5289).
const (
	PSKCCM8   Suite = 0xc0a8 // TLS_PSK_WITH_AES_128_CCM_8
	PSKCCM    Suite = 0xc0a4 // TLS_PSK_WITH_AES_128_CCM
	PSKGCM    Suite = 0x00a8 // TLS_PSK_WITH_AES_128_GCM_SHA256
	ECDSACCM8 Suite = 0xc0ae // TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8
	ECDSACCM  Suite = 0xc0ac // TLS_ECDHE_ECDSA_WITH_AES_128_CCM
	ECDSAGCM  Suite = 0xc02b // TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
)

// ErrSuite is the error of a suite that is not one of the above.
var ErrSuite = errors.New("record: cipher suite is not supported")

// tagSize is the length of the authentication tag in bytes, 0 for a suite that
// is not supported.
func (s Suite) tagSize() int {
	switch s {
	case PSKCCM8, ECDSACCM8:
		return 8
	case PSKCCM, ECDSACCM, PSKGCM, ECDSAGCM:
		return 16
	}
	return 0
}

func (s Suite) gcm() bool { return s == PSKGCM || s == ECDSAGCM }

// Supported says whether records of the suite can be protected here.
func (s Suite) Supported() bool { return s.tagSize() != 0 }

const (
	keySize = 16 // AES-128
	ivSize  = 4  // the implicit part of the nonce (RFC 6655, Section 3)
)

// Keys protect one direction.
type Keys struct {
	Key [keySize]byte
	IV  [ivSize]byte
}

// Derive computes the keys of both directions (RFC 5246, Section 6.3). master
// is the master secret of 48 bytes, and the randoms are those of ClientHello
// and ServerHello.
func Derive(s Suite, master []byte, client, server [32]byte) (fromClient, fromServer Keys, err error) {
	if !s.Supported() {
		return fromClient, fromServer, fmt.Errorf("%w: %#04x", ErrSuite, uint16(s))
	}
	if len(master) != 48 {
		return fromClient, fromServer, errors.New("record: master secret of a wrong length")
	}
	var block [2*keySize + 2*ivSize]byte
	PRF(block[:], master, "key expansion", server[:], client[:])
	b := block[:]
	for _, part := range [][]byte{fromClient.Key[:], fromServer.Key[:], fromClient.IV[:], fromServer.IV[:]} {
		b = b[copy(part, b):]
	}
	clear(block[:])
	return fromClient, fromServer, nil
}

// PRF fills out with pseudorandom bytes from a secret, a label and a seed in
// pieces: the one of all suites here (RFC 5246, Section 5).
func PRF(out, secret []byte, label string, seed ...[]byte) {
	expand(out, secret, append([]byte(label), bytes.Join(seed, nil)...))
}

// expand is P_SHA256 (RFC 5246, Section 5).
func expand(out, secret, seed []byte) {
	mac := hmac.New(sha256.New, secret)
	mac.Write(seed)
	a := mac.Sum(nil)
	for len(out) > 0 {
		mac.Reset()
		mac.Write(a)
		mac.Write(seed)
		out = out[copy(out, mac.Sum(nil)):]
		mac.Reset()
		mac.Write(a)
		a = mac.Sum(a[:0])
	}
}

// Export computes n bytes of keying material (RFC 5705, Section 4). A nil
// context is absent; one of length zero is present, and gives another result.
func Export(master []byte, client, server [32]byte, label string, context []byte, n int) []byte {
	seed := make([]byte, 0, len(label)+64+2+len(context))
	seed = append(seed, label...)
	seed = append(seed, client[:]...)
	seed = append(seed, server[:]...)
	if context != nil {
		seed = append(seed, byte(len(context)>>8), byte(len(context)))
		seed = append(seed, context...)
	}
	out := make([]byte, n)
	expand(out, master, seed)
	return out
}
