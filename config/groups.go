package config

import (
	"encoding/hex"
	"fmt"

	"github.com/seed4911071e/groupgate/groupcomm"
)

// GroupConfigs translates the groups section. It fails where Validate does.
func (c *Config) GroupConfigs() ([]groupcomm.GroupConfig, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	list := make([]groupcomm.GroupConfig, 0, len(c.Groups))
	for _, g := range c.Groups {
		gc, err := g.groupConfig()
		if err != nil {
			return nil, err
		}
		list = append(list, gc)
	}
	return list, nil
}

func (g Group) groupConfig() (groupcomm.GroupConfig, error) {
	curve := g.ECDHCurve
	if curve == "" {
		curve = curveFor(g.SignAlg)
	}
	gc := groupcomm.GroupConfig{
		Name:     g.Name,
		SignAlg:  signAlgs[g.SignAlg],
		GpEncAlg: aeadAlgs[g.GpEncAlg],
		Alg:      aeadAlgs[g.Alg],
		ECDHAlg:  ecdhAlgs[g.ECDHAlg],
		HKDF:     hkdfAlgs[g.HKDF],
		CredFmt:  credFmts[g.CredFmt],

		KeyLifetime:     g.KeyLifetime,
		RekeyOnJoin:     g.Rekey.OnJoin,
		BatchWindow:     g.Rekey.BatchWindow,
		ExpiryGrace:     g.Rekey.OnExpiry.Grace,
		ExpiryBatch:     g.Rekey.OnExpiry.Batch,
		MaxStaleSets:    g.MaxStaleSets,
		KeyCheck:        g.GroupPolicies.KeyCheck,
		ExpirationDelta: g.GroupPolicies.ExpirationDelta,
		GidEpochBytes:   g.Gid.EpochBytes,
		List:            g.List,
	}
	if gc.ECDHAlg != 0 {
		gc.ECDHCrv = ecdhCurves[curve]
	}
	if g.Gid.Prefix != "auto" {
		prefix, err := hex.DecodeString(g.Gid.Prefix)
		if err != nil {
			return gc, fmt.Errorf("config: group %q: gid.prefix: %w", g.Name, err)
		}
		gc.GidPrefix = prefix
	}
	return gc, nil
}

// ScopeOf translates the scope of a policy.
func ScopeOf(entries []ScopeEntry) (groupcomm.Scope, error) {
	ids := map[string]groupcomm.Roles{
		"requester": groupcomm.Requester, "responder": groupcomm.Responder,
		"monitor": groupcomm.Monitor, "verifier": groupcomm.Verifier,
	}
	scope := make(groupcomm.Scope, 0, len(entries))
	for _, e := range entries {
		var roles groupcomm.Roles
		for _, name := range e.Roles {
			id, ok := ids[name]
			if !ok {
				return nil, fmt.Errorf("config: scope of group %q: unknown role %q", e.Group, name)
			}
			roles |= id
		}
		scope = append(scope, groupcomm.ScopeEntry{Group: e.Group, Roles: roles})
	}
	return scope, nil
}
