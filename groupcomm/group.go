package groupcomm

import (
	"errors"
	"fmt"
	"time"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm/keytree"
)

// Defaults and limits of a group that no specification fixes.
const (
	DefaultMaxStaleSets  = 3
	DefaultGidEpochBytes = 4
	DefaultSpread        = 30 * time.Second // of a scheduled rekey
	MaxSpread            = time.Hour
	maxGidLen            = 16
	minNonceLen          = 6 // what a Sender ID leaves of the nonce (RFC 8613, Section 3.3)
)

// DefaultGroupConfig is a group with the defaults of
// draft-ietf-ace-key-groupcomm-oscore-21, Section 14, that uses both modes.
func DefaultGroupConfig(name string) GroupConfig {
	return GroupConfig{
		Name:          name,
		SignAlg:       cose.AlgEdDSA,
		GpEncAlg:      cose.AlgAESCCM16_64_128,
		Alg:           cose.AlgAESCCM16_64_128,
		ECDHAlg:       cose.AlgECDHSSHKDF256,
		ECDHCrv:       cose.CrvX25519,
		HKDF:          cose.AlgHMAC256,
		CredFmt:       cose.HeaderKCCS,
		KeyLifetime:   720 * time.Hour,
		BatchWindow:   2 * time.Second,
		ExpiryGrace:   24 * time.Hour,
		ExpiryBatch:   time.Hour,
		MaxStaleSets:  DefaultMaxStaleSets,
		KeyCheck:      3600,
		GidEpochBytes: DefaultGidEpochBytes,
		List:          true,
		Activation:    Activation{RespondersFirst: true, Spread: DefaultSpread},
	}
}

// GroupMode reports whether the group uses the group mode: signatures.
func (c GroupConfig) GroupMode() bool { return c.SignAlg != 0 && c.GpEncAlg != 0 }

// PairwiseMode reports whether the group uses the pairwise mode.
func (c GroupConfig) PairwiseMode() bool { return c.Alg != 0 && c.ECDHAlg != 0 }

// PairwiseOnly reports whether the group uses the pairwise mode alone: proofs of
// possession are MACs then, and the Group Manager has a Diffie-Hellman key pair.
func (c GroupConfig) PairwiseOnly() bool { return c.PairwiseMode() && !c.GroupMode() }

// NonceLen is the nonce length in bytes of an AEAD or of AES-CTR, 0 when the algorithm
// is not known.
func NonceLen(alg int64) int {
	if _, ok := cose.CTRKeySize(alg); ok {
		return cose.CTRNonceSize
	}
	_, nonce, _, _ := cose.AEADSizes(alg)
	return nonce
}

// MaxSenderIDLen is the longest Sender ID in bytes: the shortest nonce of the
// algorithms in use less six (RFC 8613, Section 3.3).
func (c GroupConfig) MaxSenderIDLen() int {
	shortest := 0
	for _, alg := range []int64{c.Alg, c.GpEncAlg} {
		if n := NonceLen(alg); n != 0 && (shortest == 0 || n < shortest) {
			shortest = n
		}
	}
	return max(shortest-minNonceLen, 0)
}

// signCaps are the capabilities of a signature algorithm: of the algorithm and of
// its keys (RFC 9594, Section 3.3.1).
func signCaps(alg int64) (algParams, keyParams []int64, ok bool) {
	switch alg {
	case cose.AlgEdDSA:
		return []int64{cose.KtyOKP}, []int64{cose.KtyOKP, cose.CrvEd25519}, true
	case cose.AlgES256:
		return []int64{cose.KtyEC2}, []int64{cose.KtyEC2, cose.CrvP256}, true
	case cose.AlgES384:
		return []int64{cose.KtyEC2}, []int64{cose.KtyEC2, cose.CrvP384}, true
	case cose.AlgES512:
		return []int64{cose.KtyEC2}, []int64{cose.KtyEC2, cose.CrvP521}, true
	}
	return nil, nil, false
}

// ecdhCaps are the capabilities of Diffie-Hellman on a curve.
func ecdhCaps(crv int64) (algParams, keyParams []int64, ok bool) {
	switch crv {
	case cose.CrvX25519:
		return []int64{cose.KtyOKP}, []int64{cose.KtyOKP, crv}, true
	case cose.CrvP256, cose.CrvP384, cose.CrvP521:
		return []int64{cose.KtyEC2}, []int64{cose.KtyEC2, crv}, true
	}
	return nil, nil, false
}

// ecdhCurveFor is the curve that members' signature keys can be used on for
// Diffie-Hellman; 0 means any.
func ecdhCurveFor(signAlg int64) int64 {
	switch signAlg {
	case cose.AlgEdDSA:
		return cose.CrvX25519
	case cose.AlgES256:
		return cose.CrvP256
	case cose.AlgES384:
		return cose.CrvP384
	case cose.AlgES512:
		return cose.CrvP521
	}
	return 0
}

// ECDHAlgFor is the pairwise key agreement algorithm that goes with the HKDF of
// a group, 0 for an HKDF that no group uses: the same hash serves both
// (draft-ietf-core-oscore-groupcomm-28, Section 2.1).
func ECDHAlgFor(hkdf int64) int64 {
	switch hkdf {
	case cose.AlgHMAC256:
		return cose.AlgECDHSSHKDF256
	case cose.AlgHMAC512:
		return cose.AlgECDHSSHKDF512
	}
	return 0
}

// SignInfo is the group's entry of 'sign_info'. It has no meaning in a group
// without the group mode.
func (c GroupConfig) SignInfo() SignInfoEntry {
	algParams, keyParams, _ := signCaps(c.SignAlg)
	return SignInfoEntry{
		Groups: []string{c.Name}, Alg: c.SignAlg, AlgParams: algParams, KeyParams: keyParams, CredFmt: c.CredFmt,
	}
}

// ECDHInfo is the group's entry of 'ecdh_info'. It has no meaning in a group
// without the pairwise mode.
func (c GroupConfig) ECDHInfo() SignInfoEntry {
	algParams, keyParams, _ := ecdhCaps(c.ECDHCrv)
	return SignInfoEntry{
		Groups: []string{c.Name}, Alg: c.ECDHAlg, AlgParams: algParams, KeyParams: keyParams, CredFmt: c.CredFmt,
	}
}

// KeyParams is the part of 'key' that the configuration decides: algorithms and
// their parameters for the modes in use, no secrets and no identifiers.
func (c GroupConfig) KeyParams() KeyMap {
	k := KeyMap{HKDF: c.HKDF, CredFmt: c.CredFmt}
	if c.GroupMode() {
		algParams, keyParams, _ := signCaps(c.SignAlg)
		k.GpEncAlg, k.SignAlg, k.SignParams = c.GpEncAlg, c.SignAlg, [][]int64{algParams, keyParams}
	}
	if c.PairwiseMode() {
		algParams, keyParams, _ := ecdhCaps(c.ECDHCrv)
		k.Alg, k.ECDHAlg, k.ECDHParams = c.Alg, c.ECDHAlg, [][]int64{algParams, keyParams}
	}
	return k
}

// Validate reports all faults of a configuration at once. Zero is accepted for
// MaxStaleSets and GidEpochBytes, which have defaults.
func (c GroupConfig) Validate() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	if !ValidGroupName(c.Name) {
		fault("name %q: must be 1 to 63 of A-Z a-z 0-9 . _ ~ -, the first a letter or digit", c.Name)
	}
	if (c.SignAlg == 0) != (c.GpEncAlg == 0) {
		fault("sign_alg and gp_enc_alg: the group mode needs both; without it both are none")
	}
	if (c.Alg == 0) != (c.ECDHAlg == 0) {
		fault("alg and ecdh_alg: the pairwise mode needs both; without it both are none")
	}
	if c.SignAlg == 0 && c.Alg == 0 {
		fault("sign_alg and alg: the group uses neither mode")
	}
	if c.Interface > Both {
		fault("interface: %v", c.Interface)
	}
	// Members of the legacy dialects sign, and have COSE_Keys, of which only CWT
	// Claims Sets can be made.
	if c.Interface.Legacy() != Current && (c.SignAlg == 0 || c.CredFmt != cose.HeaderKCCS) {
		fault("interface: %v needs sign_alg and credentials of kind ccs", c.Interface)
	}
	if _, _, ok := signCaps(c.SignAlg); c.SignAlg != 0 && !ok {
		fault("sign_alg: %s is not a supported signature algorithm", AlgName(c.SignAlg))
	}
	if _, ctr := cose.CTRKeySize(c.GpEncAlg); c.GpEncAlg != 0 && !groupAEAD(c.GpEncAlg) && !ctr {
		fault("gp_enc_alg: %s is neither a supported AEAD nor AES-CTR", AlgName(c.GpEncAlg))
	} else if ctr && c.Interface.Legacy() != Current {
		fault("interface: %v knows AEADs only as gp_enc_alg", c.Interface)
	}
	if c.Alg != 0 && !groupAEAD(c.Alg) {
		fault("alg: %s is not a supported AEAD", AlgName(c.Alg))
	}
	if c.ECDHAlg != 0 {
		errs = append(errs, c.validateECDH()...)
	}
	if c.HKDF != cose.AlgHMAC256 && c.HKDF != cose.AlgHMAC512 {
		fault("hkdf: %s is not a supported HKDF", AlgName(c.HKDF))
	}
	if _, ok := CredFmtByName(CredFmtName(c.CredFmt)); !ok {
		fault("cred_fmt: %s is not supported", CredFmtName(c.CredFmt))
	}
	if c.KeyLifetime < 0 || c.BatchWindow < 0 || c.ExpiryGrace < 0 || c.ExpiryBatch < 0 {
		fault("key_lifetime, batch_window, on_expiry: negative duration")
	}
	if a := c.Activation; a.Spread < 0 || a.Spread > MaxSpread {
		fault("activation.spread: must be 0 to %v", MaxSpread)
	}
	if d := c.Delivery; d.UnreachableAfter < 0 || d.EvictAfter < 0 || d.EvictAfter != 0 && d.EvictAfter < d.UnreachableAfter {
		fault("delivery: evict_after must not be shorter than unreachable_after, and neither negative")
	}
	// draft-ietf-ace-key-groupcomm-oscore-21, Section 7.1: N is greater than 1.
	if c.MaxStaleSets != 0 && c.MaxStaleSets < 2 {
		fault("max_stale_sets: must be 2 or more")
	}
	if c.KeyTree != 0 && (c.KeyTree < keytree.MinDegree || c.KeyTree > keytree.MaxDegree) {
		fault("key tree: degree must be %d to %d", keytree.MinDegree, keytree.MaxDegree)
	}
	if c.ControlGroupURI != "" {
		if err := CheckControlGroupURI(c.ControlGroupURI); err != nil {
			fault("control_group_uri: %w", err)
		}
		if c.KeyTree == 0 {
			fault("control_group_uri: needs a key tree")
		}
	}
	if c.GidEpochBytes < 0 || c.GidEpochBytes > 8 {
		fault("gid.epoch_bytes: must be 1 to 8")
	}
	if len(c.GidPrefix)+c.GidEpochBytes > maxGidLen {
		fault("gid: longer than %d bytes", maxGidLen)
	}
	return errors.Join(errs...)
}

func (c GroupConfig) validateECDH() (errs []error) {
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.ECDHAlg != cose.AlgECDHSSHKDF256 && c.ECDHAlg != cose.AlgECDHSSHKDF512 {
		fault("ecdh_alg: %s is not a supported ECDH algorithm", AlgName(c.ECDHAlg))
	} else if want := ECDHAlgFor(c.HKDF); want != 0 && c.ECDHAlg != want {
		fault("ecdh_alg: %s does not match hkdf %s, which needs %s", AlgName(c.ECDHAlg), AlgName(c.HKDF), AlgName(want))
	}
	if _, _, ok := ecdhCaps(c.ECDHCrv); !ok {
		fault("ecdh_curve: %s is not a supported curve", CurveName(c.ECDHCrv))
	} else if want := ecdhCurveFor(c.SignAlg); want != 0 && c.ECDHCrv != want {
		// One credential serves both modes.
		fault("ecdh_curve: %s does not match sign_alg %s, which needs %s",
			CurveName(c.ECDHCrv), AlgName(c.SignAlg), CurveName(want))
	}
	return errs
}

// groupAEAD reports whether a group may use the AEAD: one with a name here.
func groupAEAD(alg int64) bool {
	switch alg {
	case cose.AlgAESCCM16_64_128, cose.AlgAESCCM16_128_128, cose.AlgA128GCM, cose.AlgA256GCM, cose.AlgChaCha20Poly1305:
		return true
	}
	return false
}
