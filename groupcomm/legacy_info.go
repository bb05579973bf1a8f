package groupcomm

import (
	"errors"
	"fmt"

	"github.com/seed4911071e/groupgate/cose"
)

// LegacySignInfo says how members of a group countersign, in 'sign_info' and in
// 'key' of the legacy dialects: an algorithm, and key type and curve of its keys.
type LegacySignInfo struct {
	Groups []string // hackathon-109; draft-03 has no place for it
	Alg    int64
	Kty    int64
	Crv    int64
}

// LegacySignInfo is the group's entry.
func (c GroupConfig) LegacySignInfo() LegacySignInfo {
	s := LegacySignInfo{Groups: []string{c.Name}, Alg: c.SignAlg}
	if _, p, ok := signCaps(c.SignAlg); ok {
		s.Kty, s.Crv = p[0], p[1]
	}
	return s
}

// params are sign_parameters or cs_params. draft-03 has the map of the Counter
// Signature Parameters registry, whose keys we take from COSE_Key
// (draft-ietf-core-oscore-groupcomm-06, Section 9.1); hackathon-109 the
// capabilities of algorithm and key type
// (draft-ietf-ace-key-groupcomm-oscore-09, Section 6.1).
func (s LegacySignInfo) params(d Interface) any {
	if d == Draft03 {
		return map[int64]any{coseCrv: s.Crv}
	}
	return [][]int64{{s.Kty}, {s.Kty, s.Crv}}
}

// keyParams are sign_key_parameters or cs_key_params.
func (s LegacySignInfo) keyParams(d Interface) any {
	if d == Draft03 {
		return map[int64]any{coseKty: s.Kty, coseCrv: s.Crv}
	}
	return []int64{s.Kty, s.Crv}
}

// readParams reads both, either of which may be null or absent (nil).
func (s *LegacySignInfo) readParams(d Interface, params, keyParams []byte) error {
	crv := int64(0)
	if params != nil && !cose.IsNull(params) {
		if d == Draft03 {
			f := decodeFields("countersignature parameters", params)
			f.need(coseCrv)
			if crv = f.int(coseCrv); f.err != nil {
				return f.err
			}
		} else {
			caps, err := decodeArray(params, asCapabilities)
			if err != nil {
				return err
			}
			if len(caps) != 2 || len(caps[0]) != 1 || len(caps[1]) != 2 {
				return errors.New("capabilities of algorithm and key type expected")
			}
			crv = caps[1][1]
		}
	}
	if keyParams == nil || cose.IsNull(keyParams) {
		s.Crv = crv
		return nil
	}
	if d == Draft03 {
		f := decodeFields("key parameters", keyParams)
		f.need(coseKty, coseCrv)
		if s.Kty, s.Crv = f.int(coseKty), f.int(coseCrv); f.err != nil {
			return f.err
		}
	} else {
		caps, err := asCapabilities(keyParams)
		if err != nil {
			return err
		}
		if len(caps) != 2 {
			return errors.New("capabilities of a key type expected")
		}
		s.Kty, s.Crv = caps[0], caps[1]
	}
	if crv != 0 && crv != s.Crv {
		return errors.New("parameters of algorithm and key name two curves")
	}
	return nil
}

// orNull leaves parameters out that are not known.
func orNull(known bool, v any) any {
	if !known {
		return nil
	}
	return v
}

func (s LegacySignInfo) items(d Interface) []any {
	params, keyParams := orNull(s.Crv != 0, s.params(d)), orNull(s.Kty != 0, s.keyParams(d))
	if d == Draft03 {
		return []any{s.Alg, params, keyParams}
	}
	return []any{idItem(s.Groups), s.Alg, params, keyParams, PubKeyEncCOSEKey}
}

func decodeLegacySignInfo(d Interface, b []byte) (s LegacySignInfo, err error) {
	items, err := cose.DecodeArray(b)
	if err != nil {
		return s, err
	}
	if d == Hackathon109 {
		if len(items) != 5 {
			return s, errors.New("array of five elements expected")
		}
		if s.Groups, err = decodeID(items[0]); err != nil {
			return s, err
		}
		if enc, err := cose.AsInt(items[4]); err != nil || enc != PubKeyEncCOSEKey {
			return s, errors.New("encoding of public keys is not COSE_Key")
		}
		items = items[1:4]
	}
	if len(items) != 3 {
		return s, errors.New("array of three elements expected")
	}
	if s.Alg, err = cose.AsInt(items[0]); err != nil {
		return s, err
	}
	return s, s.readParams(d, items[1], items[2])
}

// LegacyInfo is the answer to a token post, and the body of the 4.00 to a Joining
// Request (draft-ietf-ace-key-groupcomm-oscore-03, Sections 4.1 and 4.3): what a
// client needs for a Joining Request.
type LegacyInfo struct {
	Dialect   Interface        // Draft03 or Hackathon109
	Challenge []byte           // 205: N_S; nil: absent
	SignInfo  []LegacySignInfo // 203; nil: absent. draft-03 has exactly one
	PubKeyEnc int64            // 204, only in draft-03; 0: absent
}

// Encode gives the map.
func (i *LegacyInfo) Encode() []byte {
	m := map[int64]any{}
	putBytes(m, legacyChallenge, i.Challenge)
	putInt(m, legacyPubKeyEnc, i.PubKeyEnc)
	switch {
	case i.SignInfo == nil:
	case i.Dialect == Draft03:
		m[legacySignInfo] = i.SignInfo[0].items(Draft03)
	default:
		entries := make([]any, 0, len(i.SignInfo))
		for _, s := range i.SignInfo {
			entries = append(entries, s.items(i.Dialect))
		}
		m[legacySignInfo] = entries
	}
	return cose.MustMarshal(m)
}

// DecodeLegacyInfo reads the map.
func DecodeLegacyInfo(d Interface, b []byte) (*LegacyInfo, error) {
	f := decodeFields("legacy information", b)
	i := &LegacyInfo{Dialect: d, Challenge: f.bytes(legacyChallenge), PubKeyEnc: f.int(legacyPubKeyEnc)}
	if d != Draft03 && d != Hackathon109 {
		f.fail(errNotLegacy)
	}
	if i.PubKeyEnc != 0 && i.PubKeyEnc != PubKeyEncCOSEKey {
		f.failf("label %d: encoding %d of public keys is not supported", legacyPubKeyEnc, i.PubKeyEnc)
	}
	one := func(b []byte) (LegacySignInfo, error) { return decodeLegacySignInfo(d, b) }
	if raw, ok := f.m[legacySignInfo]; ok && f.err == nil && d == Draft03 {
		s, err := one(raw)
		if err != nil {
			f.failf("label %d: %w", legacySignInfo, err)
		}
		i.SignInfo = []LegacySignInfo{s}
	} else if f.err == nil {
		i.SignInfo = array(f, legacySignInfo, one)
	}
	if f.err != nil {
		return nil, f.err
	}
	return i, nil
}

// LegacyKeyRenewal is the answer to a Key Renewal Request: a new Sender ID
// (draft-ietf-ace-key-groupcomm-oscore-03, Section 7).
type LegacyKeyRenewal struct {
	SenderID SenderID // 209
}

// Encode gives the map.
func (k *LegacyKeyRenewal) Encode() []byte {
	return cose.MustMarshal(map[int64]any{legacyClientID: k.SenderID})
}

// DecodeLegacyKeyRenewal reads the map.
func DecodeLegacyKeyRenewal(b []byte) (*LegacyKeyRenewal, error) {
	f := decodeFields("legacy key renewal", b)
	f.need(legacyClientID)
	k := &LegacyKeyRenewal{SenderID: f.bytes(legacyClientID)}
	if f.err != nil {
		return nil, f.err
	}
	return k, nil
}

// LegacyLeave is the payload of a leaving node: an empty map
// (draft-ietf-ace-key-groupcomm-oscore-03, Section 11).
const LegacyLeave = 0xa0

// EncodeLegacyPolicies gives the body of GET on policies: {207: {2: seconds}}, in
// hackathon-109 with the Expiration Delta, which came later.
func EncodeLegacyPolicies(d Interface, p *Policies) []byte {
	return cose.MustMarshal(map[int64]any{legacyPolicies: legacyPolicyFields(d, p)})
}

func legacyPolicyFields(d Interface, p *Policies) map[int64]any {
	m := map[int64]any{legacyPolicyKeyCheck: p.KeyCheck}
	if d != Draft03 {
		m[legacyPolicyExpirationDelta] = p.ExpirationDelta
	}
	return m
}

// DecodeLegacyPolicies reads the body of GET on policies.
func DecodeLegacyPolicies(b []byte) (*Policies, error) {
	f := decodeFields("legacy policies", b)
	f.need(legacyPolicies)
	p := f.legacyPolicies()
	if f.err != nil {
		return nil, f.err
	}
	return p, nil
}

func (f *fields) legacyPolicies() *Policies {
	raw, ok := f.m[legacyPolicies]
	if !ok || f.err != nil {
		return nil
	}
	in := decodeFields("group_policies", raw)
	p := &Policies{KeyCheck: in.uint(legacyPolicyKeyCheck), ExpirationDelta: in.uint(legacyPolicyExpirationDelta)}
	if in.err != nil {
		f.fail(fmt.Errorf("label %d: %w", legacyPolicies, in.err))
	}
	return p
}
