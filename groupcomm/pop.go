package groupcomm

import (
	"crypto/subtle"

	"github.com/seed4911071e/groupgate/cose"
)

// ClientPoPInput is what client_cred_verify proves possession over: scope (the
// bytes inside label 3 of the latest Join Request), N_S and N_C, each as a CBOR
// byte string (RFC 9594, Section 4.3.1.1).
func ClientPoPInput(scope, ns, nc []byte) []byte { return byteStrings(scope, ns, nc) }

// KDCPoPInput is what kdc_cred_verify proves possession over: N_C and N_KDC,
// each as a CBOR byte string (RFC 9594, Section 4.3.1).
func KDCPoPInput(nc, nkdc []byte) []byte { return byteStrings(nc, nkdc) }

func byteStrings(parts ...[]byte) []byte {
	var out []byte
	for _, p := range parts {
		out = append(out, cose.MustMarshal(p)...)
	}
	return out
}

// PoPMAC is the proof of possession in a group that uses only the pairwise mode:
// 8 bytes of HKDF-SHA-256 of the Diffie-Hellman secret z, whatever the group's
// own HKDF is (draft-ietf-ace-key-groupcomm-oscore-21, Section 6.1). Compare
// it with [CheckPoPMAC].
func PoPMAC(z, input []byte) []byte {
	mac, err := cose.HKDF256(z, nil, input, 8)
	if err != nil {
		panic("groupcomm: internal error: " + err.Error())
	}
	return mac
}

// CheckPoPMAC verifies a proof of possession that is a MAC, in constant time.
func CheckPoPMAC(z, input, mac []byte) bool {
	return subtle.ConstantTimeCompare(PoPMAC(z, input), mac) == 1
}
