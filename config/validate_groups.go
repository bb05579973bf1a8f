package config

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/groupcomm/keytree"
)

const nameRule = "must be 1 to 63 letters, digits or . _ ~ -, the first a letter or digit, for it is a path segment in URIs"

func (c *Config) validateGroups(f *faults) {
	seen, relays := map[string]int{}, map[string]string{}
	for i, g := range c.Groups {
		key := fmt.Sprintf("groups[%d]", i)
		if !groupcomm.ValidGroupName(g.Name) {
			f.add(key+".name", nameRule)
		} else if j, ok := seen[g.Name]; ok {
			f.add(key+".name", "%q is taken by groups[%d]", g.Name, j)
		}
		seen[g.Name] = i
		if at := g.Upstream.RelayListen; at != "" {
			if gm, ok := relays[at]; ok && gm != g.GM {
				f.add(key+".upstream.relay_listen", "is taken for another Group Manager, %s", gm)
			}
			relays[at] = g.GM
		}
		g.validate(f, key)
	}
	c.validateGids(f)
}

// validateGids: no two groups may come to one Gid.
func (c *Config) validateGids(f *faults) {
	prefixes := make([][]byte, len(c.Groups))
	for i, g := range c.Groups {
		if g.Local() && g.Gid.Prefix != "auto" {
			prefixes[i], _ = hex.DecodeString(g.Gid.Prefix) // a fault was told
		}
		for j, other := range prefixes[:i] {
			if prefixes[i] != nil && other != nil && groupcomm.GidsMeet(prefixes[i], g.Gid.EpochBytes, other, c.Groups[j].Gid.EpochBytes) {
				f.add(fmt.Sprintf("groups[%d].gid.prefix", i), "leads to the same Gids as that of groups[%d]: choose another, or auto", j)
				break
			}
		}
	}
}

func (g Group) validate(f *faults, key string) {
	g.validateRemote(f, key)
	if !g.Local() {
		return // the rest is for its Group Manager to say
	}
	oneOf(f, key+".interface", g.Interface, "current", "draft-03", "hackathon-109", "both")
	g.validateLegacy(f, key)
	g.validateAlgorithms(f, key)
	g.validateCredentials(f, key)
	inRange(f, key+".key_lifetime", g.KeyLifetime, time.Minute, maxLifetime)
	inRange(f, key+".rekey.batch_window", g.Rekey.BatchWindow, 0, maxBatch)
	inRange(f, key+".rekey.on_expiry.grace", g.Rekey.OnExpiry.Grace, 0, maxLifetime)
	inRange(f, key+".rekey.on_expiry.batch", g.Rekey.OnExpiry.Batch, 0, maxLifetime)
	inRange(f, key+".delivery.retry_for", g.Delivery.RetryFor, 0, maxLifetime)
	inRange(f, key+".delivery.unreachable_after", g.Delivery.UnreachableAfter, time.Minute, maxLifetime)
	switch d := g.Delivery; {
	case d.EvictAfter == 0:
	case d.EvictAfter < time.Hour || d.EvictAfter > maxLifetime:
		f.add(key+".delivery.evict_after", "must be 0s for never, or from 1h to %v, not %v", spelled(maxLifetime), spelled(d.EvictAfter))
	case d.EvictAfter < d.UnreachableAfter:
		f.add(key+".delivery.evict_after", "must not be shorter than unreachable_after")
	}
	oneOf(f, key+".activation.order", g.Activation.Order, groupcomm.OrderRespondersFirst, groupcomm.OrderNone)
	inRange(f, key+".activation.spread", g.Activation.Spread, 0, groupcomm.MaxSpread)
	g.Rekey.validateScheme(f, key+".rekey")
	if g.Rekey.OnStart {
		f.add(key+".rekey.on_start", "a restart never rekeys by itself in this version")
	}
	g.validateAppGroups(f, key)
	inRange(f, key+".max_stale_sets", g.MaxStaleSets, 2, maxStaleSets)
	if g.Gid.Prefix != "auto" {
		if b, err := hex.DecodeString(g.Gid.Prefix); err != nil || len(b) == 0 || len(b) > maxGidPrefix {
			f.add(key+".gid.prefix", "must be auto or 1 to %d bytes in hexadecimal", maxGidPrefix)
		}
	}
	// One byte is 256 rekeys: the end of a group that never uses a Gid again.
	shortest := 2
	if g.Gid.Reuse {
		shortest = 1
	}
	inRange(f, key+".gid.epoch_bytes", g.Gid.EpochBytes, shortest, maxEpochBytes)
}

// validateAppGroups: the names stand as app-gp in link attributes.
func (g Group) validateAppGroups(f *faults, key string) {
	if len(g.AppGroups) > maxAppGroups {
		f.add(key+".app_groups", "must list at most %d names", maxAppGroups)
	}
	for i, name := range g.AppGroups {
		k := fmt.Sprintf("%s.app_groups[%d]", key, i)
		if name == "" || len(name) > maxName || strings.ContainsFunc(name, unicode.IsControl) || !utf8.ValidString(name) {
			f.add(k, "must have 1 to %d bytes and no control characters", maxName)
		} else if j := slices.Index(g.AppGroups, name); j < i {
			f.add(k, "is %s.app_groups[%d] again", key, j)
		}
	}
}

// validateLegacy: members of the older dialects sign; and only draft-03 lets a
// Group Manager refuse a new Sender ID and rekey instead.
func (g Group) validateLegacy(f *faults, key string) {
	if i, _ := groupcomm.InterfaceByName(g.Interface); i != groupcomm.Current && g.SignAlg == groupcomm.None {
		f.add(key+".interface", "a pairwise-only group is for current only: the members of the others sign")
	} else if i != groupcomm.Current && g.CredFmt != "ccs" {
		f.add(key+".interface", "credentials of kind %s are for current only: the members of the others have plain keys", g.CredFmt)
	}
	if g.OnRenewal == "" || !oneOf(f, key+".on_renewal", g.OnRenewal, "new-id", "rekey") {
		return
	}
	if i, ok := groupcomm.InterfaceByName(g.Interface); ok && i.Legacy() != groupcomm.Draft03 {
		f.add(key+".on_renewal", "is for interface draft-03 or both: other members always get a new Sender ID, or a rekey that is due anyway")
	}
}

// validateAlgorithms: each mode has all of its algorithms or none of them, and a
// group has at least one mode.
func (g Group) validateAlgorithms(f *faults, key string) {
	r := g.resolved()
	aeads := []string{defaultAEAD, "AES-CCM-16-128-128", "A128GCM", "A256GCM", "ChaCha20/Poly1305", groupcomm.None}
	known := oneOf(f, key+".sign_alg", r.SignAlg, "EdDSA", "ES256", "ES384", "ES512", groupcomm.None)
	known = oneOf(f, key+".gp_enc_alg", r.GpEncAlg, append(slices.Clone(aeads), "A128CTR", "A192CTR", "A256CTR")...) && known
	known = oneOf(f, key+".alg", r.Alg, aeads...) && known
	known = oneOf(f, key+".hkdf", r.HKDF, "HMAC-256", "HMAC-512") && known
	known = oneOf(f, key+".ecdh_alg", r.ECDHAlg, "ECDH-SS+HKDF-256", "ECDH-SS+HKDF-512", groupcomm.None) && known
	known = oneOf(f, key+".ecdh_curve", r.ECDHCurve, "X25519", "P-256", "P-384", "P-521") && known
	if !known {
		return
	}
	if (r.SignAlg == groupcomm.None) != (r.GpEncAlg == groupcomm.None) {
		f.add(key+".gp_enc_alg", "group mode needs both sign_alg and gp_enc_alg; a pairwise-only group has none in both")
	}
	if (r.Alg == groupcomm.None) != (r.ECDHAlg == groupcomm.None) {
		f.add(key+".ecdh_alg", "pairwise mode needs both alg and ecdh_alg; a signature-only group has none in both")
	}
	if r.SignAlg == groupcomm.None && r.Alg == groupcomm.None {
		f.add(key+".alg", "a group needs a mode: sign_alg and gp_enc_alg, alg and ecdh_alg, or all four")
	}
	if i, _ := groupcomm.InterfaceByName(g.Interface); i != groupcomm.Current && strings.HasSuffix(r.GpEncAlg, "CTR") {
		f.add(key+".gp_enc_alg", "%s is for interface current: members of the others know AEADs only", r.GpEncAlg)
	}
	if want := ecdhAlgFor(r.HKDF); r.ECDHAlg != groupcomm.None && r.ECDHAlg != want {
		f.add(key+".ecdh_alg", "does not fit hkdf %s: it must be %s", r.HKDF, want)
	}
	if want := curveFor(r.SignAlg); want != "" && r.ECDHCurve != want {
		f.add(key+".ecdh_curve", "does not fit sign_alg %s: members have one key pair, so it must be %s", r.SignAlg, want)
	}
}

// validateCredentials: certificates need files, the others must have none.
func (g Group) validateCredentials(f *faults, key string) {
	oneOf(f, key+".cred_fmt", g.CredFmt, "ccs", "cwt", "x5chain")
	for _, x := range []struct{ name, file string }{
		{".x5_roots_file", g.X5RootsFile}, {".x5_cert_file", g.X5CertFile}, {".x5_key_file", g.X5KeyFile},
	} {
		switch {
		case g.CredFmt == "x5chain" && x.file == "":
			f.add(key+x.name, "is missing: cred_fmt x5chain needs roots, and a certificate and a key for the Group Manager")
		case g.CredFmt != "x5chain" && x.file != "":
			f.add(key+x.name, "is for cred_fmt x5chain")
		}
	}
	if r := g.resolved(); g.CredFmt == "cwt" && r.SignAlg == groupcomm.None && r.ECDHCurve == "X25519" {
		f.add(key+".cred_fmt", "a pairwise-only group has CWTs with ecdh_curve P-256, P-384 or P-521 only: the Group Manager cannot sign its own with an X25519 key")
	}
}

// ecdhAlgFor returns the ECDH algorithm with the hash of an HKDF.
func ecdhAlgFor(hkdf string) string {
	id, _ := groupcomm.AlgByName(hkdf)
	return groupcomm.AlgName(groupcomm.ECDHAlgFor(id))
}

// curveFor returns the ECDH curve on which the key pair of a signature
// algorithm can be used (draft-ietf-core-oscore-groupcomm, Section 2.5.1: an
// Ed25519 key serves X25519).
func curveFor(signAlg string) string {
	return map[string]string{"EdDSA": "X25519", "ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}[signAlg]
}

// validateScheme: how rekeys are told to many members.
func (r Rekey) validateScheme(f *faults, key string) {
	oneOf(f, key+".scheme", r.Scheme, schemeOneByOne, schemeKeyTree)
	inRange(f, key+".tree_degree", r.TreeDegree, keytree.MinDegree, keytree.MaxDegree)
	if r.Multicast == "" {
		return
	}
	if r.Scheme != schemeKeyTree {
		f.add(key+".control_group_uri", "needs scheme: %s", schemeKeyTree)
	}
	if err := groupcomm.CheckControlGroupURI(r.Multicast); err != nil {
		f.add(key+".control_group_uri", "%v", err)
	}
}

// Schemes of rekeying.
const (
	schemeOneByOne = "point-to-point"
	schemeKeyTree  = "key-tree"
)
