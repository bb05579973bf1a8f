package gm

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// Config is the configuration of a Group Manager.
type Config struct {
	// Groups are declared: created by Setup when absent, compared when
	// present. Zero policies take the defaults of draft-ietf-ace-key-groupcomm-
	// oscore-21, Section 14, where it has one.
	Groups []groupcomm.GroupConfig

	// X5 says, for each declared group with certificates as credentials, who the
	// Group Manager is there and whose certificates it accepts.
	X5 map[string]X5

	// RenewalInterval is the time in which a member earns one more Sender ID
	// by re-join or key renewal. Zero: 1 s. Negative: no limit.
	RenewalInterval time.Duration

	// epochs is the number of epochs of a Gid, where that is to be less than
	// GidEpochBytes hold. Zero: as many as they hold.
	epochs uint64
}

// X5 is the part of a group with credentials of kind x5chain that the Group
// Manager cannot make up.
type X5 struct {
	Roots *x509.CertPool // to which members' certificates must lead
	Key   *cose.Key      // the Group Manager's key pair
	Chain []byte         // its credential
}

// Defaults of policies that a declared group leaves at zero.
const (
	defaultKeyLifetime = 720 * time.Hour
	defaultKeyCheck    = 3600 // seconds: draft-ietf-ace-key-groupcomm-oscore-21, Section 6.3
	defaultRenewal     = time.Second
)

// withDefaults returns a private copy with the defaults filled in. Durations
// of zero that mean something (batch window, grace) stay.
func (c Config) withDefaults() Config {
	c.Groups = slices.Clone(c.Groups)
	for i := range c.Groups {
		g := &c.Groups[i]
		g.GidPrefix = slices.Clone(g.GidPrefix)
		if g.KeyLifetime == 0 {
			g.KeyLifetime = defaultKeyLifetime
		}
		if g.MaxStaleSets == 0 {
			g.MaxStaleSets = groupcomm.DefaultMaxStaleSets
		}
		if g.GidEpochBytes == 0 {
			g.GidEpochBytes = groupcomm.DefaultGidEpochBytes
		}
		if g.KeyCheck == 0 {
			g.KeyCheck = defaultKeyCheck
		}
	}
	if c.RenewalInterval == 0 {
		c.RenewalInterval = defaultRenewal
	}
	return c
}

// validate reports all that is wrong with the declared groups.
func (c Config) validate() error {
	var errs []error
	seen := map[string]bool{}
	for _, g := range c.Groups {
		if seen[g.Name] {
			errs = append(errs, fmt.Errorf("gm: group %q is declared twice", g.Name))
		}
		seen[g.Name] = true
		if err := g.Validate(); err != nil {
			errs = append(errs, fmt.Errorf("gm: group %q: %w", g.Name, err))
			continue
		}
		err := validateGroup(g)
		if err == nil && g.CredFmt == cose.HeaderX5Chain {
			err = c.X5[g.Name].validate(&g)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("gm: group %q: %w", g.Name, err))
		}
	}
	return errors.Join(errs...)
}

// validateGroup checks what the Group Manager adds to the vocabulary's rules.
func validateGroup(g groupcomm.GroupConfig) error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if n := g.MaxSenderIDLen(); n < 1 || n > maxSenderID {
		fail("the algorithms leave %d bytes for Sender IDs", n)
	}
	if g.CredFmt == cose.HeaderKCWT && g.PairwiseOnly() && g.ECDHCrv == cose.CrvX25519 {
		fail("cred_fmt: the Group Manager cannot sign its CWT with an X25519 key")
	}
	if g.MaxStaleSets > maxStaleSets {
		fail("max_stale_sets: must be at most %d", maxStaleSets)
	}
	if g.KeyLifetime < minKeyLifetime {
		fail("key_lifetime: %v is below %v", g.KeyLifetime, minKeyLifetime)
	}
	return errors.Join(errs...)
}

// identity lists what cannot change while a group lives: members hold contexts
// made from these values.
func identity(c *groupcomm.GroupConfig) map[string]any {
	return map[string]any{
		"sign_alg":        c.SignAlg,
		"gp_enc_alg":      c.GpEncAlg,
		"alg":             c.Alg,
		"ecdh_alg":        c.ECDHAlg,
		"ecdh_curve":      c.ECDHCrv,
		"hkdf":            c.HKDF,
		"cred_fmt":        c.CredFmt,
		"gid.epoch_bytes": c.GidEpochBytes,
	}
}

// DifferentError says that a declared group exists with other values that
// cannot be changed in place.
type DifferentError struct {
	Group  string
	Fields []string // "sign_alg: declared -7, exists with -8"
}

func (e *DifferentError) Error() string {
	return fmt.Sprintf("gm: group %q exists with a different configuration: %v", e.Group, e.Fields)
}

// compare returns a *DifferentError when want cannot be applied to have.
func compare(have, want *groupcomm.GroupConfig) error {
	var fields []string
	h, w := identity(have), identity(want)
	for k := range w {
		if h[k] != w[k] {
			fields = append(fields, fmt.Sprintf("%s: declared %v, exists with %v", k, w[k], h[k]))
		}
	}
	// No declared prefix means that any will do.
	if want.GidPrefix != nil && !slices.Equal(have.GidPrefix, want.GidPrefix) {
		fields = append(fields, fmt.Sprintf("gid.prefix: declared %x, exists with %x", want.GidPrefix, have.GidPrefix))
	}
	if fields == nil {
		return nil
	}
	slices.Sort(fields)
	return &DifferentError{Group: want.Name, Fields: fields}
}
