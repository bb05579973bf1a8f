package dtls12

import (
	"bytes"
	"slices"
)

// The bodies of the messages that exchange keys (RFC 5246, Section 7.4; RFC
// 8422, Section 5; RFC 7250, Section 3; RFC 4279, Section 2).

const (
	namedCurve = 3
	ecdsaSign  = 64 // certificate type of a CertificateRequest
	maxSPKI    = 512
	maxSig     = 512
)

// encodeCertificate: with raw public keys a Certificate is the
// SubjectPublicKeyInfo alone.
func encodeCertificate(spki []byte) []byte { return appendVector(nil, 3, spki) }

func decodeCertificate(b []byte) ([]byte, error) {
	r := reader{b: b}
	spki := r.vector(3, 0, maxSPKI)
	return spki, r.end()
}

// appendSigned appends what both ends of a digitally-signed struct have.
func appendSigned(dst []byte, scheme int, signature []byte) []byte {
	return appendVector(appendUint(dst, 2, scheme), 2, signature)
}

// decodeSigned reads it.
func decodeSigned(r *reader) (scheme int, signature []byte) {
	return r.uint(2), r.vector(2, 1, maxSig)
}

// ecParams are the parameters that a ServerKeyExchange signs.
func ecParams(group int, point []byte) []byte {
	return appendVector(appendUint([]byte{namedCurve}, 2, group), 1, point)
}

// serverKeyExchange is one of ECDHE_ECDSA (RFC 8422, Section 5.4).
type serverKeyExchange struct {
	group     int
	point     []byte
	params    []byte // what is signed
	scheme    int
	signature []byte
}

func decodeServerKeyExchange(b []byte) (*serverKeyExchange, error) {
	r := reader{b: b}
	k := &serverKeyExchange{}
	if r.uint(1) != namedCurve {
		return nil, errDecode
	}
	k.group = r.uint(2)
	k.point = r.vector(1, 1, 255)
	k.params = b[:len(b)-len(r.b)]
	k.scheme, k.signature = decodeSigned(&r)
	return k, r.end()
}

// signedParams is what the server signs (RFC 8422, Section 5.4).
func signedParams(client, server [32]byte, params []byte) []byte {
	return slices.Concat(client[:], server[:], params)
}

// encodeCertificateRequest asks for a key of a scheme that we verify; there are
// no authorities of raw keys.
func encodeCertificateRequest() []byte {
	b := appendVector(nil, 1, []byte{ecdsaSign})
	b = appendVector(b, 2, words([]int{schemeES256, schemeEd25519}))
	return appendVector(b, 2, nil)
}

// decodeCertificateRequest says whether a scheme will do.
func decodeCertificateRequest(b []byte, scheme int) (bool, error) {
	r := reader{b: b}
	kinds := r.vector(1, 1, 255)
	schemes := numbers(&r)
	r.vector(2, 0, 1<<16-1)
	return bytes.Contains(kinds, []byte{ecdsaSign}) && slices.Contains(schemes, scheme), r.end()
}

// decodeClientKeyExchange reads a point, or with a pre-shared key the
// psk_identity.
func decodeClientKeyExchange(b []byte, psk bool) ([]byte, error) {
	r := reader{b: b}
	var v []byte
	if psk {
		v = r.vector(2, 0, maxMessage)
	} else {
		v = r.vector(1, 1, 255)
	}
	return v, r.end()
}

func decodeCertificateVerify(b []byte) (scheme int, signature []byte, err error) {
	r := reader{b: b}
	scheme, signature = decodeSigned(&r)
	return scheme, signature, r.end()
}

// pskPremaster is the premaster secret of a pre-shared key (RFC 4279, Section 2).
func pskPremaster(psk []byte) []byte {
	b := appendVector(make([]byte, 0, 4+2*len(psk)), 2, make([]byte, len(psk)))
	return appendVector(b, 2, psk)
}
