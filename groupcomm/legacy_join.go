package groupcomm

import (
	"errors"

	"github.com/seed4911071e/groupgate/cose"
)

// LegacyJoinRequest is the body of POST /group-oscore/NAME. nil byte fields are
// absent.
type LegacyJoinRequest struct {
	Dialect          Interface
	Scope            []byte    // 9: the bytes inside the byte string, see EncodeLegacyScope
	GetPubKeys       *GetCreds // 101: in draft-03 All, or nil
	ClientCred       []byte    // 102: an encoded COSE_Key
	CNonce           []byte    // 39
	ClientCredVerify []byte    // 103
}

// Encode gives the map; absent fields are left out.
func (j *LegacyJoinRequest) Encode() []byte {
	m := map[int64]any{}
	putBytes(m, legacyScope, j.Scope)
	putBytes(m, legacyClientCred, j.ClientCred)
	putBytes(m, legacyCNonce, j.CNonce)
	putBytes(m, legacyClientCredVerify, j.ClientCredVerify)
	if j.GetPubKeys != nil {
		m[legacyGetPubKeys] = legacyQuery(j.Dialect, j.GetPubKeys)
	}
	return cose.MustMarshal(m)
}

// DecodeLegacyJoinRequest reads the map
// (draft-ietf-ace-key-groupcomm-oscore-03, Section 4.2): scope is required, and
// with client_cred both cnonce and client_cred_verify. Labels that are not known
// are ignored in every dialect: that draft calls them malformed, but has a
// parameter for which there is no number.
func DecodeLegacyJoinRequest(d Interface, b []byte) (*LegacyJoinRequest, error) {
	f := decodeFields("joining request", b)
	f.need(legacyScope)
	j := &LegacyJoinRequest{
		Dialect:          d,
		Scope:            f.bytes(legacyScope),
		ClientCred:       f.bytes(legacyClientCred),
		CNonce:           f.bytes(legacyCNonce),
		ClientCredVerify: f.bytes(legacyClientCredVerify),
	}
	if d != Draft03 && d != Hackathon109 {
		f.fail(errNotLegacy)
	}
	if raw, ok := f.m[legacyGetPubKeys]; ok && f.err == nil {
		q, err := decodeLegacyQuery(d, raw)
		if err == nil && d == Draft03 && !q.All {
			err = errors.New("empty array expected")
		}
		if err != nil {
			f.failf("label %d: %w", legacyGetPubKeys, err)
		}
		j.GetPubKeys = q
	}
	if f.err == nil && j.ClientCred != nil && (j.CNonce == nil || j.ClientCredVerify == nil) {
		f.fail(errors.New("client_cred without cnonce or client_cred_verify"))
	}
	if f.err != nil {
		return nil, f.err
	}
	return j, nil
}

// EncodeLegacyPubKeyUpdate gives the body of POST nodes/NODENAME/pub-key of
// hackathon-109 (draft-ietf-ace-key-groupcomm-10, Section 4.1.7.1); ClientCred is
// an encoded COSE_Key.
func EncodeLegacyPubKeyUpdate(c *CredUpdate) []byte {
	return cose.MustMarshal(map[int64]any{
		legacyClientCred: c.ClientCred, legacyCNonce: c.CNonce, legacyClientCredVerify: c.ClientCredVerify,
	})
}

// DecodeLegacyPubKeyUpdate reads the map; all three members are required.
func DecodeLegacyPubKeyUpdate(b []byte) (*CredUpdate, error) {
	return decodeCredUpdate("public key update", b, legacyClientCred, legacyCNonce, legacyClientCredVerify)
}

// legacyQuery gives the value of 'get_pub_keys': in draft-03 a list of Sender IDs,
// empty for all (draft-ietf-ace-key-groupcomm-03, Section 4.1.2.1); in
// hackathon-109 null for all, or [roles, Sender IDs]
// (draft-ietf-ace-key-groupcomm-10, Section 4.1.2.1).
func legacyQuery(d Interface, q *GetCreds) any {
	if d == Draft03 {
		if q.All {
			return []SenderID{}
		}
		return q.IDs
	}
	if q.All {
		return nil
	}
	return []any{q.Roles, q.IDs}
}

func decodeLegacyQuery(d Interface, b []byte) (*GetCreds, error) {
	q := &GetCreds{Inclusion: true}
	var err error
	if d == Draft03 {
		if q.IDs, err = decodeArray(b, asSenderID); err != nil {
			return nil, err
		}
		if len(q.IDs) == 0 {
			return &GetCreds{All: true}, nil
		}
		return q, nil
	}
	if cose.IsNull(b) {
		return &GetCreds{All: true}, nil
	}
	items, err := cose.DecodeArray(b)
	if err != nil {
		return nil, errors.New("null or array expected")
	}
	if len(items) != 2 {
		return nil, errors.New("array of two elements expected")
	}
	if q.Roles, err = decodeArray(items[0], asRoles); err != nil {
		return nil, err
	}
	if q.IDs, err = decodeArray(items[1], asSenderID); err != nil {
		return nil, err
	}
	if len(q.Roles) == 0 && len(q.IDs) == 0 {
		return nil, errors.New("nothing is asked for")
	}
	return q, nil
}

// EncodeLegacyPubKeyRequest gives the body of a Public Key Request: {101: query}.
func EncodeLegacyPubKeyRequest(d Interface, q *GetCreds) []byte {
	return cose.MustMarshal(map[int64]any{legacyGetPubKeys: legacyQuery(d, q)})
}

// DecodeLegacyPubKeyRequest reads the body of a Public Key Request. Asking for
// nothing in particular is malformed (draft-ietf-ace-key-groupcomm-03, Section
// 4.1.3.1).
func DecodeLegacyPubKeyRequest(d Interface, b []byte) (*GetCreds, error) {
	f := decodeFields("public key request", b)
	f.need(legacyGetPubKeys)
	if d != Draft03 && d != Hackathon109 {
		f.fail(errNotLegacy)
	}
	if f.err != nil {
		return nil, f.err
	}
	q, err := decodeLegacyQuery(d, f.m[legacyGetPubKeys])
	if err == nil && q.All {
		err = errors.New("no Sender ID")
	}
	if err != nil {
		f.failf("label %d: %w", legacyGetPubKeys, err)
		return nil, f.err
	}
	return q, nil
}
