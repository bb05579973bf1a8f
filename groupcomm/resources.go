package groupcomm

import (
	"errors"
	"fmt"

	"github.com/seed4911071e/groupgate/cose"
)

// GidRequest is the body of FETCH on /ace-group (RFC 9594, Section 4.2.1).
type GidRequest struct {
	Gids []Gid // 0
}

// Encode gives the map.
func (r *GidRequest) Encode() []byte { return cose.MustMarshal(map[int64]any{labelGid: r.Gids}) }

// DecodeGidRequest reads the map; at least one Gid is required.
func DecodeGidRequest(b []byte) (*GidRequest, error) {
	f := decodeFields("gid request", b)
	f.need(labelGid)
	r := &GidRequest{Gids: array(f, labelGid, asGid)}
	if f.err == nil && len(r.Gids) == 0 {
		f.fail(errors.New("no gid"))
	}
	if f.err != nil {
		return nil, f.err
	}
	return r, nil
}

// GidResponse is the answer: three arrays in step, for the Gids that are known.
type GidResponse struct {
	Gids  []Gid    // 0
	Names []string // 1
	URIs  []string // 2: paths of the group-membership resources
}

// Encode gives the map, or one zero-length byte string when no Gid is known.
func (r *GidResponse) Encode() []byte {
	if len(r.Gids) == 0 {
		return []byte{emptyAnswer}
	}
	return cose.MustMarshal(map[int64]any{labelGid: r.Gids, labelGname: r.Names, labelGuri: r.URIs})
}

// DecodeGidResponse reads the answer.
func DecodeGidResponse(b []byte) (*GidResponse, error) {
	if len(b) == 1 && b[0] == emptyAnswer {
		return &GidResponse{}, nil
	}
	f := decodeFields("gid response", b)
	f.need(labelGid, labelGname, labelGuri)
	r := &GidResponse{
		Gids:  array(f, labelGid, asGid),
		Names: array(f, labelGname, asName),
		URIs:  array(f, labelGuri, asName),
	}
	if len(r.Names) != len(r.Gids) || len(r.URIs) != len(r.Gids) {
		f.fail(errors.New("gid, gname and guri differ in length"))
	}
	if f.err != nil {
		return nil, f.err
	}
	return r, nil
}

// EncodeCredsRequest gives the body of FETCH on creds: {4: filter} (RFC 9594,
// Section 4.4.1).
func EncodeCredsRequest(g *GetCreds) []byte {
	return cose.MustMarshal(map[int64]any{labelGetCreds: g.item()})
}

// DecodeCredsRequest reads the body of FETCH on creds. A filter that filters by
// nothing is an error.
func DecodeCredsRequest(b []byte) (*GetCreds, error) {
	f := decodeFields("creds request", b)
	f.need(labelGetCreds)
	if f.err != nil {
		return nil, f.err
	}
	g, err := decodeGetCreds(f.m[labelGetCreds])
	if err != nil {
		return nil, fmt.Errorf("creds request: %w", err)
	}
	if g.Empty() {
		return nil, errors.New("creds request: empty filter")
	}
	return g, nil
}

// KDCCred is the answer of kdc-cred: the Group Manager's credential and the proof
// over [KDCPoPInput] (RFC 9594, Section 4.5.1).
type KDCCred struct {
	Cred   []byte // 17
	Nonce  []byte // 18: N_KDC
	Verify []byte // 19
}

// Encode gives the map.
func (k *KDCCred) Encode() []byte {
	return cose.MustMarshal(map[int64]any{labelKDCCred: k.Cred, labelKDCNonce: k.Nonce, labelKDCCredVerify: k.Verify})
}

// DecodeKDCCred reads the map; all three members are required.
func DecodeKDCCred(b []byte) (*KDCCred, error) {
	f := decodeFields("kdc-cred", b)
	f.need(labelKDCCred, labelKDCNonce, labelKDCCredVerify)
	k := &KDCCred{Cred: f.bytes(labelKDCCred), Nonce: f.bytes(labelKDCNonce), Verify: f.bytes(labelKDCCredVerify)}
	if f.err != nil {
		return nil, f.err
	}
	return k, nil
}

// EncodeKDCCredRequest gives the body of FETCH on kdc-cred: {6: N_C}
// (draft-ietf-ace-key-groupcomm-oscore-21, Section 8.1.1).
func EncodeKDCCredRequest(cnonce []byte) []byte {
	return cose.MustMarshal(map[int64]any{labelCNonce: cnonce})
}

// DecodeKDCCredRequest reads the body of FETCH on kdc-cred and gives N_C.
func DecodeKDCCredRequest(b []byte) (cnonce []byte, err error) {
	f := decodeFields("kdc-cred request", b)
	f.need(labelCNonce)
	cnonce = f.bytes(labelCNonce)
	return cnonce, f.err
}

// KeyRenewal is the answer to POST on the node resource: a new Sender ID
// (draft-ietf-ace-key-groupcomm-oscore-21, Section 9.2).
type KeyRenewal struct {
	SenderID SenderID // 21
}

// Encode gives the map.
func (k *KeyRenewal) Encode() []byte {
	return cose.MustMarshal(map[int64]any{labelSenderID: k.SenderID})
}

// DecodeKeyRenewal reads the map.
func DecodeKeyRenewal(b []byte) (*KeyRenewal, error) {
	f := decodeFields("key renewal", b)
	f.need(labelSenderID)
	k := &KeyRenewal{SenderID: f.bytes(labelSenderID)}
	if f.err != nil {
		return nil, f.err
	}
	return k, nil
}

// EncodeStaleIDs gives the answer of stale-sids: an array of Sender IDs, with
// Content-Format 60 (draft-ietf-ace-key-groupcomm-oscore-21, Section 8.4.1).
func EncodeStaleIDs(ids []SenderID) []byte { return cose.MustMarshal(ids) }

// DecodeStaleIDs reads the answer of stale-sids. An empty payload, which means
// that all contexts are stale, is for the caller to tell apart.
func DecodeStaleIDs(b []byte) ([]SenderID, error) {
	ids, err := decodeArray(b, asSenderID)
	if err != nil {
		return nil, fmt.Errorf("stale Sender IDs: %w", err)
	}
	return ids, nil
}

// EncodeNum gives a version as the body of num, and of FETCH on stale-sids, with
// Content-Format 60 (RFC 9594, Section 4.7.1).
func EncodeNum(v Version) []byte { return cose.MustMarshal(v) }

// DecodeNum reads a version.
func DecodeNum(b []byte) (Version, error) {
	v, err := cose.AsUint(b)
	if err != nil {
		return 0, fmt.Errorf("version: %w", err)
	}
	return v, nil
}

// EncodeActive gives the body of active, with Content-Format 60
// (draft-ietf-ace-key-groupcomm-oscore-21, Section 8.2.1).
func EncodeActive(active bool) []byte { return cose.MustMarshal(active) }

// DecodeActive reads the body of active.
func DecodeActive(b []byte) (bool, error) {
	v, err := cose.AsBool(b)
	if err != nil {
		return false, fmt.Errorf("active: %w", err)
	}
	return v, nil
}
