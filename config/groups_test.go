package config

import (
	"fmt"
	"maps"
	"testing"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// TestAlgorithms reads every combination of algorithms that a group may have.
func TestAlgorithms(t *testing.T) {
	aeads := map[string]int64{
		"AES-CCM-16-64-128": cose.AlgAESCCM16_64_128, "AES-CCM-16-128-128": cose.AlgAESCCM16_128_128,
		"A128GCM": cose.AlgA128GCM, "A256GCM": cose.AlgA256GCM, "ChaCha20/Poly1305": cose.AlgChaCha20Poly1305,
	}
	for sign, want := range map[string][2]int64{
		"EdDSA": {cose.AlgEdDSA, cose.CrvX25519}, "ES256": {cose.AlgES256, cose.CrvP256},
		"ES384": {cose.AlgES384, cose.CrvP384}, "ES512": {cose.AlgES512, cose.CrvP521},
	} {
		for hkdf, ecdh := range map[string][2]int64{
			"HMAC-256": {cose.AlgHMAC256, cose.AlgECDHSSHKDF256}, "HMAC-512": {cose.AlgHMAC512, cose.AlgECDHSSHKDF512},
		} {
			gpEncs := maps.Clone(aeads)
			gpEncs["A128CTR"], gpEncs["A192CTR"], gpEncs["A256CTR"] = cose.AlgA128CTR, cose.AlgA192CTR, cose.AlgA256CTR
			for gpEnc := range gpEncs {
				for alg := range aeads {
					text := fmt.Sprintf("groups: [{name: a, sign_alg: %s, gp_enc_alg: %s, alg: %s, hkdf: %s}]\n", sign, gpEnc, alg, hkdf)
					c, err := Parse("f", []byte(text))
					if err != nil {
						t.Fatal(err)
					}
					list, err := c.GroupConfigs()
					if err != nil {
						t.Fatal(err)
					}
					g := list[0]
					if g.SignAlg != want[0] || g.ECDHCrv != want[1] || g.HKDF != ecdh[0] || g.ECDHAlg != ecdh[1] ||
						g.GpEncAlg != gpEncs[gpEnc] || g.Alg != aeads[alg] || !g.GroupMode() || !g.PairwiseMode() {
						t.Errorf("%s gives %+v", text, g)
					}
				}
			}
		}
	}
}

// TestSignatureOnly: a mode that is not used has no algorithms.
func TestSignatureOnly(t *testing.T) {
	for _, text := range []string{"{name: a, alg: none}", "{name: a, alg: none, ecdh_alg: none, hkdf: HMAC-512}"} {
		c, err := Parse("f", []byte("groups: ["+text+"]\n"))
		if err != nil {
			t.Fatal(err)
		}
		list, err := c.GroupConfigs()
		if err != nil {
			t.Fatal(err)
		}
		if g := list[0]; !g.GroupMode() || g.PairwiseMode() || g.Alg != 0 || g.ECDHAlg != 0 || g.ECDHCrv != 0 {
			t.Errorf("%s gives %+v", text, g)
		}
	}
}

// TestPairwiseOnly: sign_alg none leaves the pairwise mode, with any curve.
func TestPairwiseOnly(t *testing.T) {
	for text, crv := range map[string]int64{
		"{name: a, sign_alg: none}":                                             cose.CrvX25519,
		"{name: a, sign_alg: none, gp_enc_alg: none, ecdh_curve: P-256}":        cose.CrvP256,
		"{name: a, sign_alg: none, ecdh_curve: P-384, alg: A256GCM}":            cose.CrvP384,
		"{name: a, sign_alg: none, ecdh_curve: P-521, hkdf: HMAC-512}":          cose.CrvP521,
		"{name: a, sign_alg: none, ecdh_curve: X25519, alg: AES-CCM-16-64-128}": cose.CrvX25519,
	} {
		c, err := Parse("f", []byte("groups: ["+text+"]\n"))
		if err != nil {
			t.Fatal(err)
		}
		list, err := c.GroupConfigs()
		if err != nil {
			t.Fatal(err)
		}
		if g := list[0]; !g.PairwiseOnly() || g.SignAlg != 0 || g.GpEncAlg != 0 || g.ECDHCrv != crv {
			t.Errorf("%s gives %+v", text, g)
		}
	}
}

func TestInterface(t *testing.T) {
	for text, want := range map[string]groupcomm.GroupConfig{
		"{name: a}":                      {Interface: groupcomm.Current},
		"{name: a, interface: draft-03}": {Interface: groupcomm.Draft03},
		"{name: a, interface: draft-03, on_renewal: rekey}":    {Interface: groupcomm.Draft03, RekeyOnRenewal: true},
		"{name: a, interface: both, on_renewal: new-id}":       {Interface: groupcomm.Both},
		"{name: a, interface: hackathon-109, sign_alg: ES256}": {Interface: groupcomm.Hackathon109},
	} {
		c, err := Parse("f", []byte("groups: ["+text+"]\n"))
		if err != nil {
			t.Fatal(err)
		}
		list, err := c.GroupConfigs()
		if err != nil {
			t.Fatal(err)
		}
		if g := list[0]; g.Interface != want.Interface || g.RekeyOnRenewal != want.RekeyOnRenewal {
			t.Errorf("%s gives %+v", text, g)
		}
	}
}
