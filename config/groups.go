package config

import (
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/seed4911071e/groupgate/groupcomm"
)

// GroupConfigs translates the groups that are managed here. It fails where Validate does.
func (c *Config) GroupConfigs() ([]groupcomm.GroupConfig, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	list := make([]groupcomm.GroupConfig, 0, len(c.Groups))
	for _, g := range c.Groups {
		if !g.Local() {
			continue
		}
		gc, err := g.groupConfig()
		if err != nil {
			return nil, err
		}
		list = append(list, gc)
	}
	return list, nil
}

// GroupConfig checks and translates one group by itself. Its error is a
// [*FaultError] whose keys are those of a groups entry.
func (g Group) GroupConfig() (groupcomm.GroupConfig, error) {
	f := newFaults("", nil)
	if !groupcomm.ValidGroupName(g.Name) {
		f.add("name", nameRule)
	}
	if !g.Local() {
		f.add("gm", "must be local: only those groups are managed here")
	}
	g.validate(f, "")
	if len(f.list) > 0 {
		for i := range f.list {
			f.list[i].Key = strings.TrimPrefix(f.list[i].Key, ".")
		}
		return groupcomm.GroupConfig{}, &FaultError{Faults: f.list}
	}
	return g.groupConfig()
}

// policy is how long members are run after, as the bridge has it.
func (d Delivery) policy() groupcomm.DeliveryPolicy {
	if d.RetryFor == 0 {
		d.RetryFor = -1 // only at a sign of life
	}
	return groupcomm.DeliveryPolicy(d)
}

func (g Group) groupConfig() (groupcomm.GroupConfig, error) {
	g = g.resolved()
	// Validate has looked the names up.
	alg := func(name string) int64 { id, _ := groupcomm.AlgByName(name); return id }
	credFmt, _ := groupcomm.CredFmtByName(g.CredFmt)
	gc := groupcomm.GroupConfig{
		Name:     g.Name,
		SignAlg:  alg(g.SignAlg),
		GpEncAlg: alg(g.GpEncAlg),
		Alg:      alg(g.Alg),
		ECDHAlg:  alg(g.ECDHAlg),
		HKDF:     alg(g.HKDF),
		CredFmt:  credFmt,

		KeyLifetime:     g.KeyLifetime,
		RekeyOnJoin:     g.Rekey.OnJoin,
		BatchWindow:     g.Rekey.BatchWindow,
		ExpiryGrace:     g.Rekey.OnExpiry.Grace,
		ExpiryBatch:     g.Rekey.OnExpiry.Batch,
		MaxStaleSets:    g.MaxStaleSets,
		KeyCheck:        g.GroupPolicies.KeyCheck,
		ExpirationDelta: g.GroupPolicies.ExpirationDelta,
		GidEpochBytes:   g.Gid.EpochBytes,
		GidReuse:        g.Gid.Reuse,
		List:            g.List,
		AppGroups:       g.AppGroups,
		RekeyOnRenewal:  g.OnRenewal == "rekey",
		Delivery:        g.Delivery.policy(),
		Activation: groupcomm.Activation{
			RespondersFirst: g.Activation.Order == groupcomm.OrderRespondersFirst, Spread: g.Activation.Spread,
		},
	}
	if g.Rekey.Scheme == schemeKeyTree {
		gc.KeyTree, gc.ControlGroupURI = uint32(g.Rekey.TreeDegree), g.Rekey.Multicast
	}
	gc.Interface, _ = groupcomm.InterfaceByName(g.Interface)
	if gc.ECDHAlg != 0 {
		gc.ECDHCrv, _ = groupcomm.CurveByName(g.ECDHCurve)
	}
	if g.Gid.Prefix != "auto" {
		prefix, err := hex.DecodeString(g.Gid.Prefix)
		if err != nil {
			return gc, fmt.Errorf("config: group %q: gid.prefix: %w", g.Name, err)
		}
		gc.GidPrefix = prefix
	}
	if err := gc.Validate(); err != nil {
		return gc, fmt.Errorf("config: group %q: %w", g.Name, err)
	}
	return gc, nil
}

// resolved fills in the keys that follow others where they are left open: a mode
// that is not used has no algorithm at all
// (draft-ietf-ace-key-groupcomm-oscore-21, Section 14).
func (g Group) resolved() Group {
	if g.GpEncAlg == "" {
		if g.GpEncAlg = defaultAEAD; g.SignAlg == groupcomm.None {
			g.GpEncAlg = groupcomm.None
		}
	}
	if g.ECDHAlg == "" {
		if g.ECDHAlg = ecdhAlgFor(g.HKDF); g.Alg == groupcomm.None {
			g.ECDHAlg = groupcomm.None
		}
	}
	if g.ECDHCurve == "" {
		if g.ECDHCurve = curveFor(g.SignAlg); g.ECDHCurve == "" {
			g.ECDHCurve = "X25519"
		}
	}
	return g
}

// ScopeOf translates the scope of a policy.
func ScopeOf(entries []ScopeEntry) (groupcomm.Scope, error) {
	scope := make(groupcomm.Scope, 0, len(entries))
	for _, e := range entries {
		roles, err := groupcomm.ParseRoles(strings.Join(e.Roles, ","))
		if err != nil {
			return nil, fmt.Errorf("config: scope of group %q: %w", e.Group, err)
		}
		scope = append(scope, groupcomm.ScopeEntry{Group: e.Group, Roles: roles})
	}
	return scope, nil
}
