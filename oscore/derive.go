package oscore

import (
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"

	"github.com/seed4911071e/groupgate/cose"
)

// Types of what is derived (RFC 8613, Section 3.2.1).
const (
	typeKey = "Key"
	typeIV  = "IV"
)

// appendInfo writes the info array of RFC 8613, Section 3.2.1:
//
//	[ id: bstr, id_context: bstr / nil, alg_aead: int, type: tstr, L: uint ]
//
// A nil idContext is null; n is L in bytes.
func appendInfo(b, id, idContext []byte, alg int64, typ string, n int) []byte {
	b = append(b, 0x85)
	b = appendCBORBytes(b, id)
	if idContext == nil {
		b = append(b, 0xf6)
	} else {
		b = appendCBORBytes(b, idContext)
	}
	b = appendCBORInt(b, alg)
	b = append(appendCBORHead(b, cborText, uint64(len(typ))), typ...)
	return appendCBORInt(b, int64(n))
}

// hkdfKey extracts and expands n bytes with an HKDF Algorithm of COSE: HMAC
// 256/256 or HMAC 512/512, which stand for HKDF with that hash.
func hkdfKey(alg int64, secret, salt, info []byte, n int) ([]byte, error) {
	switch alg {
	case cose.AlgHMAC256:
		return hkdf.Key(sha256.New, secret, salt, string(info), n)
	case cose.AlgHMAC512:
		return hkdf.Key(sha512.New, secret, salt, string(info), n)
	}
	return nil, fmt.Errorf("oscore: HKDF Algorithm %d is not supported", alg)
}

// setNonce writes the AEAD nonce of RFC 8613, Section 5.2 into dst, which is as
// long as the nonce of the algorithm: the size of id, the Sender ID of the
// endpoint that generated the Partial IV; id itself; and the Partial IV, XORed
// with the beginning of the Common IV. id is at most len(dst)-6 bytes long.
func setNonce(dst, commonIV, id []byte, piv uint64) {
	n := copy(dst, commonIV[:len(dst)])
	dst[0] ^= byte(len(id))
	at := dst[n-5-len(id):]
	for i, b := range id {
		at[i] ^= b
	}
	at = at[len(id):][:5]
	at[0] ^= byte(piv >> 32)
	at[1] ^= byte(piv >> 24)
	at[2] ^= byte(piv >> 16)
	at[3] ^= byte(piv >> 8)
	at[4] ^= byte(piv)
}

// maxIDLen is the length of the longest Sender ID with nonces of n bytes (RFC
// 8613, Section 3.3).
func maxIDLen(n int) int { return n - 6 }
