package groupcomm

import (
	"github.com/seed4911071e/groupgate/cose"
)

// TokenTransfer is the body of POST /authz-info with Content-Format 19
// (RFC 9594, Section 3.3). It prints as [redacted].
type TokenTransfer struct {
	AccessToken  []byte // 1: the bytes inside the byte string
	WantSignInfo bool   // 45: null
	WantECDHInfo bool   // 47: null
	WantKDCDH    bool   // 48: null
	Nonce1       []byte // 40, OSCORE profile; nil: absent
	ID1          []byte // 43, OSCORE profile; nil: absent, may have length zero
	// RISELabels says that ecdh_info and kdc_dh_creds have the labels 92 and 93,
	// as some clients have them; the answer has them too then.
	RISELabels bool
	// What a client of a legacy dialect asks for, and is answered by LegacyInfo.
	WantLegacySignInfo  bool // 203: null
	WantLegacyPubKeyEnc bool // 204: null
}

// Encode gives the map.
func (t *TokenTransfer) Encode() []byte {
	m := map[int64]any{paramAccessToken: t.AccessToken}
	ecdh, dh := dhLabels(t.RISELabels)
	if t.WantSignInfo {
		m[paramSignInfo] = nil
	}
	if t.WantECDHInfo {
		m[ecdh] = nil
	}
	if t.WantKDCDH {
		m[dh] = nil
	}
	if t.WantLegacySignInfo {
		m[legacySignInfo] = nil
	}
	if t.WantLegacyPubKeyEnc {
		m[legacyPubKeyEnc] = nil
	}
	putBytes(m, paramNonce1, t.Nonce1)
	putBytes(m, paramClientRecvID, t.ID1)
	return cose.MustMarshal(m)
}

func dhLabels(rise bool) (ecdhInfo, kdcDHCreds int64) {
	if rise {
		return paramECDHInfoRISE, paramKDCDHCredsRISE
	}
	return paramECDHInfo, paramKDCDHCreds
}

// DecodeTokenTransfer reads the map. The parameters that ask for information
// must be null.
func DecodeTokenTransfer(b []byte) (*TokenTransfer, error) {
	f := decodeFields("token transfer", b)
	f.need(paramAccessToken)
	t := &TokenTransfer{
		AccessToken:  f.bytes(paramAccessToken),
		WantSignInfo: f.wanted(paramSignInfo),
		WantECDHInfo: f.wanted(paramECDHInfo),
		WantKDCDH:    f.wanted(paramKDCDHCreds),
		Nonce1:       f.bytes(paramNonce1),
		ID1:          f.bytes(paramClientRecvID),
		// Private labels: with another value they are unknown parameters.
		WantLegacySignInfo:  f.m.IsNull(legacySignInfo),
		WantLegacyPubKeyEnc: f.m.IsNull(legacyPubKeyEnc),
	}
	if !t.WantECDHInfo && !t.WantKDCDH {
		// Registered for nothing: with another value they are unknown parameters,
		// which are ignored.
		t.WantECDHInfo = f.m.IsNull(paramECDHInfoRISE)
		t.WantKDCDH = f.m.IsNull(paramKDCDHCredsRISE)
		t.RISELabels = t.WantECDHInfo || t.WantKDCDH
	}
	if f.err != nil {
		return nil, f.err
	}
	return t, nil
}

// wanted reads a parameter that is null or absent.
func (f *fields) wanted(label int64) bool {
	if f.m.Has(label) && !f.m.IsNull(label) {
		f.failf("label %d: null expected", label)
	}
	return f.m.Has(label)
}

// TokenTransferResponse is the body of the 2.01 to [TokenTransfer], Content-Format
// 19 (RFC 9594, Section 3.3; RFC 9203, Section 4.2 for Nonce2 and ID2). nil
// fields are absent.
type TokenTransferResponse struct {
	KDCChallenge []byte          // 46: N_S
	SignInfo     []SignInfoEntry // 45
	ECDHInfo     []SignInfoEntry // 47
	KDCDHCreds   []KDCDHCred     // 48
	Nonce2       []byte          // 42
	ID2          []byte          // 44
	RISELabels   bool            // 92 and 93 instead of 47 and 48
}

// Encode gives the map.
func (t *TokenTransferResponse) Encode() []byte {
	m := map[int64]any{}
	ecdh, dh := dhLabels(t.RISELabels)
	putBytes(m, paramKDCChallenge, t.KDCChallenge)
	putInfo(m, paramSignInfo, t.SignInfo)
	putInfo(m, ecdh, t.ECDHInfo)
	if t.KDCDHCreds != nil {
		m[dh] = dhCredItems(t.KDCDHCreds)
	}
	putBytes(m, paramNonce2, t.Nonce2)
	putBytes(m, paramServerRecvID, t.ID2)
	return cose.MustMarshal(m)
}

func putInfo(m map[int64]any, label int64, entries []SignInfoEntry) {
	if entries != nil {
		m[label] = infoItems(entries)
	}
}

// DecodeTokenTransferResponse reads the map.
func DecodeTokenTransferResponse(b []byte) (*TokenTransferResponse, error) {
	f := decodeFields("token transfer response", b)
	t := &TokenTransferResponse{
		KDCChallenge: f.bytes(paramKDCChallenge),
		SignInfo:     array(f, paramSignInfo, decodeSignInfoEntry),
		Nonce2:       f.bytes(paramNonce2),
		ID2:          f.bytes(paramServerRecvID),
	}
	t.RISELabels = !f.m.Has(paramECDHInfo) && !f.m.Has(paramKDCDHCreds) &&
		(f.m.Has(paramECDHInfoRISE) || f.m.Has(paramKDCDHCredsRISE))
	ecdh, dh := dhLabels(t.RISELabels)
	t.ECDHInfo = array(f, ecdh, decodeSignInfoEntry)
	t.KDCDHCreds = array(f, dh, decodeKDCDHCred)
	if f.err != nil {
		return nil, f.err
	}
	return t, nil
}

// InfoBody is the body of a 4.00 to a Join Request that tells the client what it
// needs for the next, Content-Format 261
// (draft-ietf-ace-key-groupcomm-oscore-21, Section 6.2). nil fields are absent.
type InfoBody struct {
	SignInfo     []SignInfoEntry // 29: in a group that uses the group mode
	KDCChallenge []byte          // 30: a new N_S
	ECDHInfo     []SignInfoEntry // 31: in a group that uses the pairwise mode
	KDCDHCreds   []KDCDHCred     // 32: in a group that uses only the pairwise mode
}

// Encode gives the map.
func (i *InfoBody) Encode() []byte {
	m := map[int64]any{}
	putInfo(m, labelSignInfo, i.SignInfo)
	putBytes(m, labelKDCChallenge, i.KDCChallenge)
	putInfo(m, labelECDHInfo, i.ECDHInfo)
	if i.KDCDHCreds != nil {
		m[labelKDCDHCreds] = dhCredItems(i.KDCDHCreds)
	}
	return cose.MustMarshal(m)
}

// DecodeInfoBody reads the map.
func DecodeInfoBody(b []byte) (*InfoBody, error) {
	f := decodeFields("information body", b)
	i := &InfoBody{
		SignInfo:     array(f, labelSignInfo, decodeSignInfoEntry),
		KDCChallenge: f.bytes(labelKDCChallenge),
		ECDHInfo:     array(f, labelECDHInfo, decodeSignInfoEntry),
		KDCDHCreds:   array(f, labelKDCDHCreds, decodeKDCDHCred),
	}
	if f.err != nil {
		return nil, f.err
	}
	return i, nil
}
