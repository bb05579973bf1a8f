package admin

import (
	"encoding/hex"
	"errors"
	"net/http"
	"time"

	"github.com/seed4911071e/groupgate/groupcomm"
)

// GroupAsk is the body of POST /v1/groups. Algorithms, curve and format have the
// names of the configuration file; what is left out has the default of
// draft-ietf-ace-key-groupcomm-oscore-21, Section 14, as there.
type GroupAsk struct {
	Name          string `json:"name"`
	SignAlg       string `json:"sign_alg,omitempty"`
	GpEncAlg      string `json:"gp_enc_alg,omitempty"`
	Alg           string `json:"alg,omitempty"`
	ECDHAlg       string `json:"ecdh_alg,omitempty"`
	ECDHCurve     string `json:"ecdh_curve,omitempty"`
	HKDF          string `json:"hkdf,omitempty"`
	CredFmt       string `json:"cred_fmt,omitempty"`
	KeyLifetime   string `json:"key_lifetime,omitempty"` // Go duration
	BatchWindow   string `json:"batch_window,omitempty"` // Go duration
	RekeyOnJoin   bool   `json:"rekey_on_join,omitempty"`
	MaxStaleSets  int    `json:"max_stale_sets,omitempty"`
	GidPrefix     string `json:"gid_prefix,omitempty"` // hex; left out: one is chosen
	GidEpochBytes int    `json:"gid_epoch_bytes,omitempty"`
	GidReuse      bool   `json:"gid_reuse,omitempty"`
	Unlisted      bool   `json:"unlisted,omitempty"` // not in /.well-known/core

	Interface       string   `json:"interface,omitempty"`  // current, draft-03, hackathon-109, both
	OnRenewal       string   `json:"on_renewal,omitempty"` // new-id or rekey
	ExpiryGrace     string   `json:"expiry_grace,omitempty"`
	ExpiryBatch     string   `json:"expiry_batch,omitempty"`
	KeyCheck        *uint64  `json:"key_check,omitempty"`        // seconds
	ExpirationDelta *uint64  `json:"expiration_delta,omitempty"` // seconds
	AppGroups       []string `json:"app_groups,omitempty"`

	KeyTree         uint32 `json:"key_tree,omitempty"`          // its degree; 0: members are told one by one
	ControlGroupURI string `json:"control_group_uri,omitempty"` // of a group with a key tree

	RetryFor         string `json:"retry_for,omitempty"` // Go durations, as in delivery of the configuration; 0s: not at all
	UnreachableAfter string `json:"unreachable_after,omitempty"`
	EvictAfter       string `json:"evict_after,omitempty"` // 0s: never

	ActivationOrder  string `json:"activation_order,omitempty"`  // responders-first or none
	ActivationSpread string `json:"activation_spread,omitempty"` // Go duration; 0s: members are told at once
}

// What answers a member that asks for a new Sender ID in a legacy dialect.
const (
	renewNewID = "new-id"
	renewRekey = "rekey"
)

// AskFor is the request that creates a group of that configuration.
func AskFor(c groupcomm.GroupConfig) GroupAsk {
	ask := GroupAsk{
		Name: c.Name, SignAlg: groupcomm.AlgName(c.SignAlg), GpEncAlg: groupcomm.AlgName(c.GpEncAlg), Alg: groupcomm.AlgName(c.Alg),
		ECDHAlg: groupcomm.AlgName(c.ECDHAlg), HKDF: groupcomm.AlgName(c.HKDF), CredFmt: groupcomm.CredFmtName(c.CredFmt),
		KeyLifetime: c.KeyLifetime.String(), BatchWindow: c.BatchWindow.String(), RekeyOnJoin: c.RekeyOnJoin,
		MaxStaleSets: c.MaxStaleSets, GidPrefix: hex.EncodeToString(c.GidPrefix), GidEpochBytes: c.GidEpochBytes, GidReuse: c.GidReuse,
		Unlisted: !c.List, Interface: c.Interface.String(), OnRenewal: renewNewID, ExpiryGrace: c.ExpiryGrace.String(),
		ExpiryBatch: c.ExpiryBatch.String(), KeyCheck: &c.KeyCheck, ExpirationDelta: &c.ExpirationDelta, AppGroups: c.AppGroups,
		KeyTree: c.KeyTree, ControlGroupURI: c.ControlGroupURI,
		ActivationOrder: c.Activation.Order(), ActivationSpread: c.Activation.Spread.String(),
	}
	if d := c.Delivery; d != (groupcomm.DeliveryPolicy{}) {
		ask.RetryFor, ask.UnreachableAfter, ask.EvictAfter = max(d.RetryFor, 0).String(), d.UnreachableAfter.String(), d.EvictAfter.String()
	}
	if c.RekeyOnRenewal {
		ask.OnRenewal = renewRekey
	}
	if c.ECDHCrv != 0 {
		ask.ECDHCurve = groupcomm.CurveName(c.ECDHCrv)
	}
	return ask
}

// config translates the request.
func (a GroupAsk) config() (groupcomm.GroupConfig, error) {
	c := groupcomm.DefaultGroupConfig(a.Name)
	var errs []error
	name := func(key, value string, to *int64, find func(string) (int64, bool)) {
		if value == "" {
			return
		}
		id, ok := find(value)
		if !ok {
			errs = append(errs, badRequest("%s: %q is not known", key, value))
			return
		}
		*to = id
	}
	name("sign_alg", a.SignAlg, &c.SignAlg, groupcomm.AlgByName)
	name("gp_enc_alg", a.GpEncAlg, &c.GpEncAlg, groupcomm.AlgByName)
	name("alg", a.Alg, &c.Alg, groupcomm.AlgByName)
	name("ecdh_alg", a.ECDHAlg, &c.ECDHAlg, groupcomm.AlgByName)
	name("hkdf", a.HKDF, &c.HKDF, groupcomm.AlgByName)
	name("cred_fmt", a.CredFmt, &c.CredFmt, groupcomm.CredFmtByName)
	name("ecdh_curve", a.ECDHCurve, &c.ECDHCrv, groupcomm.CurveByName)
	if c.ECDHAlg == 0 {
		c.ECDHCrv = 0
	}
	duration := func(key, value string, to *time.Duration) {
		if value == "" {
			return
		}
		d, err := time.ParseDuration(value)
		if err != nil {
			errs = append(errs, badRequest("%s: %q is no duration such as 720h", key, value))
			return
		}
		*to = d
	}
	duration("key_lifetime", a.KeyLifetime, &c.KeyLifetime)
	duration("batch_window", a.BatchWindow, &c.BatchWindow)
	duration("expiry_grace", a.ExpiryGrace, &c.ExpiryGrace)
	duration("expiry_batch", a.ExpiryBatch, &c.ExpiryBatch)
	duration("retry_for", a.RetryFor, &c.Delivery.RetryFor)
	duration("unreachable_after", a.UnreachableAfter, &c.Delivery.UnreachableAfter)
	duration("evict_after", a.EvictAfter, &c.Delivery.EvictAfter)
	if a.RetryFor != "" && c.Delivery.RetryFor == 0 {
		c.Delivery.RetryFor = -1
	}
	duration("activation_spread", a.ActivationSpread, &c.Activation.Spread)
	switch a.ActivationOrder {
	case "":
	case groupcomm.OrderRespondersFirst, groupcomm.OrderNone:
		c.Activation.RespondersFirst = a.ActivationOrder == groupcomm.OrderRespondersFirst
	default:
		errs = append(errs, badRequest("activation_order: %q is neither responders-first nor none", a.ActivationOrder))
	}
	if a.Interface != "" {
		var ok bool
		if c.Interface, ok = groupcomm.InterfaceByName(a.Interface); !ok {
			errs = append(errs, badRequest("interface: %q is not known", a.Interface))
		}
	}
	switch a.OnRenewal {
	case "", renewNewID:
	case renewRekey:
		c.RekeyOnRenewal = true
	default:
		errs = append(errs, badRequest("on_renewal: %q is neither new-id nor rekey", a.OnRenewal))
	}
	if a.KeyCheck != nil {
		c.KeyCheck = *a.KeyCheck
	}
	if a.ExpirationDelta != nil {
		c.ExpirationDelta = *a.ExpirationDelta
	}
	if a.GidPrefix != "" {
		prefix, err := hex.DecodeString(a.GidPrefix)
		if err != nil {
			errs = append(errs, badRequest("gid_prefix: %q is not hexadecimal", a.GidPrefix))
		}
		c.GidPrefix = prefix
	}
	c.KeyTree, c.ControlGroupURI = a.KeyTree, a.ControlGroupURI
	if a.MaxStaleSets != 0 {
		c.MaxStaleSets = a.MaxStaleSets
	}
	if a.GidEpochBytes != 0 {
		c.GidEpochBytes = a.GidEpochBytes
	}
	c.RekeyOnJoin, c.List, c.GidReuse, c.AppGroups = a.RekeyOnJoin, !a.Unlisted, a.GidReuse, a.AppGroups
	if err := errors.Join(errs...); err != nil {
		return c, badRequest("%s", err)
	}
	return c, nil
}

// createGroup answers with the group that there is now.
func (s *Server) createGroup(r *http.Request) (any, error) {
	var ask GroupAsk
	if err := readJSON(r, &ask); err != nil {
		return nil, err
	}
	cfg, err := ask.config()
	if err != nil {
		return nil, err
	}
	if s.deps.Groups == nil {
		return nil, errNotServed
	}
	if err := s.deps.Groups.CreateGroup(r.Context(), cfg); err != nil {
		return nil, err
	}
	return s.group(r, ask.Name)
}

// DeleteResult is the answer to a deletion.
type DeleteResult struct {
	Group   string `json:"group"`
	Deleted bool   `json:"deleted"`
}

func (s *Server) deleteGroup(r *http.Request) (any, error) {
	if s.deps.Groups == nil {
		return nil, errNotServed
	}
	name := r.PathValue("name")
	err := s.deps.Groups.DeleteGroup(r.Context(), name)
	if errors.Is(err, groupcomm.ErrActive) {
		return nil, &Problem{Status: http.StatusConflict, Detail: err.Error(), Hint: "deactivate it first: `gateway group deactivate " + name + "`"}
	}
	if err != nil {
		return nil, err
	}
	return DeleteResult{name, true}, nil
}

// setActive answers with the group as it is now.
func (s *Server) setActive(active bool) apiFunc {
	return func(r *http.Request) (any, error) {
		if s.deps.Groups == nil {
			return nil, errNotServed
		}
		name := r.PathValue("name")
		if err := s.deps.Groups.SetActive(r.Context(), name, active); err != nil {
			return nil, err
		}
		return s.group(r, name)
	}
}
