package groupcomm

import (
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"

	"github.com/seed4911071e/groupgate/cose"
)

// VerifData is the answer of verif-data: what a signature verifier needs to
// check countersignatures of the group, and nothing that decrypts
// (draft-ietf-ace-key-groupcomm-oscore-21, Section 9.6).
type VerifData struct {
	Key        KeyMap  // 8: hkdf, contextId, cred_fmt, gp_enc_alg, sign_alg, sign_params, ? alg, ? ecdh_alg
	Num        Version // 9
	Exp        int64   // 11: seconds since 1970; 0: left out
	Exi        int64   // 12: seconds left
	SignEncKey []byte  // 33: Signature Encryption Key
}

// VerifParams is the part of 'key' in verif-data that the configuration decides.
// It says hkdf also when that is the default, and alg and ecdh_alg unless the
// group is signature-only.
func (c GroupConfig) VerifParams() KeyMap {
	k := c.KeyParams()
	k.ECDHParams = nil
	return k
}

// Encode gives the map.
func (v *VerifData) Encode() []byte {
	m := map[int64]any{
		labelGkty:       GktyOSCORE,
		labelKey:        v.Key.fields(),
		labelNum:        v.Num,
		labelProfile:    ProfileApp,
		labelExi:        max(v.Exi, 0),
		labelSignEncKey: v.SignEncKey,
	}
	putInt(m, labelExp, max(v.Exp, 0))
	return cose.MustMarshal(m)
}

// DecodeVerifData reads the map. What a verifier cannot do without is required:
// the parameters of the signature, the Gid, num and the Signature Encryption
// Key. A Master Secret, a salt or a Sender ID is not for a verifier: an answer
// that has one is an error.
func DecodeVerifData(b []byte) (*VerifData, error) {
	f := decodeFields("verif-data", b)
	f.fixed(labelGkty, GktyOSCORE)
	f.fixed(labelProfile, ProfileApp)
	f.need(labelKey, labelNum, labelSignEncKey)
	v := &VerifData{
		Num:        f.uint(labelNum),
		Exp:        f.seconds(labelExp),
		Exi:        f.seconds(labelExi),
		SignEncKey: f.bytes(labelSignEncKey),
	}
	if f.err == nil {
		k, err := DecodeKeyMap(f.m[labelKey])
		switch {
		case err != nil:
			f.fail(err)
		case k.HKDF == 0 || k.ContextID == nil || k.CredFmt == 0 || k.GpEncAlg == 0 || k.SignAlg == 0 || k.SignParams == nil:
			f.fail(errors.New("key without hkdf, Gid, credential format or signature parameters"))
		case k.MasterSecret != nil || k.Salt != nil || k.SenderID != nil:
			f.fail(errors.New("key with what a verifier must not have"))
		default:
			v.Key = *k
		}
	}
	if f.err != nil {
		return nil, f.err
	}
	return v, nil
}

// SignEncKey derives the Signature Encryption Key of a group's keying material:
// HKDF of Master Secret and Master Salt with info = [empty, Gid, gp_enc_alg,
// "SEKey", length] (draft-ietf-core-oscore-groupcomm-28, Section 2.1). hkdf and
// gpEncAlg are COSE algorithms.
func SignEncKey(hkdfAlg, gpEncAlg int64, secret, salt []byte, gid Gid) (cose.Secret, error) {
	n, _, _, ok := cose.AEADSizes(gpEncAlg)
	if !ok {
		if n, ok = cose.CTRKeySize(gpEncAlg); !ok {
			return cose.Secret{}, fmt.Errorf("signature encryption key: algorithm %d is not supported", gpEncAlg)
		}
	}
	info := string(cose.MustMarshal([]any{[]byte{}, []byte(gid), gpEncAlg, "SEKey", n}))
	var key []byte
	var err error
	switch hkdfAlg {
	case cose.AlgHMAC256:
		key, err = hkdf.Key(sha256.New, secret, salt, info, n)
	case cose.AlgHMAC512:
		key, err = hkdf.Key(sha512.New, secret, salt, info, n)
	default:
		err = fmt.Errorf("HKDF %d is not supported", hkdfAlg)
	}
	if err != nil {
		return cose.Secret{}, fmt.Errorf("signature encryption key: %w", err)
	}
	return cose.NewSecret(key), nil
}
