package groupcomm

import (
	"strconv"

	"github.com/seed4911071e/groupgate/cose"
)

// named is one row of a table of names that configuration files use.
type named struct {
	name string
	id   int64
}

// None is the name of "not used" in place of an algorithm.
const None = "none"

var algNames = []named{
	{None, 0},
	{"EdDSA", cose.AlgEdDSA},
	{"ES256", cose.AlgES256},
	{"ES384", cose.AlgES384},
	{"ES512", cose.AlgES512},
	{"AES-CCM-16-64-128", cose.AlgAESCCM16_64_128},
	{"AES-CCM-16-128-128", cose.AlgAESCCM16_128_128},
	{"A128GCM", cose.AlgA128GCM},
	{"A256GCM", cose.AlgA256GCM},
	{"ChaCha20/Poly1305", cose.AlgChaCha20Poly1305},
	{"A128CTR", cose.AlgA128CTR},
	{"A192CTR", cose.AlgA192CTR},
	{"A256CTR", cose.AlgA256CTR},
	{"ECDH-SS+HKDF-256", cose.AlgECDHSSHKDF256},
	{"ECDH-SS+HKDF-512", cose.AlgECDHSSHKDF512},
	{"HMAC-256", cose.AlgHMAC256},
	{"HMAC-512", cose.AlgHMAC512},
}

var curveNames = []named{
	{"X25519", cose.CrvX25519},
	{"P-256", cose.CrvP256},
	{"P-384", cose.CrvP384},
	{"P-521", cose.CrvP521},
}

var credFmtNames = []named{
	{"ccs", cose.HeaderKCCS},
	{"cwt", cose.HeaderKCWT},
	{"x5chain", cose.HeaderX5Chain},
}

func byName(table []named, name string) (int64, bool) {
	for _, row := range table {
		if row.name == name {
			return row.id, true
		}
	}
	return 0, false
}

func byID(table []named, id int64) string {
	for _, row := range table {
		if row.id == id {
			return row.name
		}
	}
	return strconv.FormatInt(id, 10)
}

// AlgByName gives the COSE identifier of an algorithm by its name in a
// configuration file: a signature, encryption, ECDH or HKDF algorithm, or "none" (0).
// Whether it serves its purpose is for [GroupConfig.Validate].
func AlgByName(name string) (int64, bool) { return byName(algNames, name) }

// AlgName is the reverse of [AlgByName]; an algorithm without a name gives its
// number.
func AlgName(alg int64) string { return byID(algNames, alg) }

// CurveByName gives the COSE identifier of a curve for Diffie-Hellman.
func CurveByName(name string) (int64, bool) { return byName(curveNames, name) }

// CurveName is the reverse of [CurveByName].
func CurveName(crv int64) string { return byID(curveNames, crv) }

// CredFmtByName gives the COSE header label of a format of credentials.
func CredFmtByName(name string) (int64, bool) { return byName(credFmtNames, name) }

// CredFmtName is the reverse of [CredFmtByName].
func CredFmtName(f int64) string { return byID(credFmtNames, f) }

// ValidGroupName reports whether a name of a group can be one segment of a URI
// path without escapes: 1 to 63 of [A-Za-z0-9._~-], the first alphanumeric.
func ValidGroupName(name string) bool {
	if len(name) == 0 || len(name) > 63 {
		return false
	}
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case i > 0 && (c == '.' || c == '_' || c == '~' || c == '-'):
		default:
			return false
		}
	}
	return true
}
