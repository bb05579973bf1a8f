package groupcomm

import (
	"errors"
	"fmt"

	"github.com/seed4911071e/groupgate/cose"
)

// idItem encodes the identifier of an info entry: one name as a text string,
// several as an array.
func idItem(groups []string) any {
	if len(groups) == 1 {
		return groups[0]
	}
	return groups
}

func decodeID(b []byte) ([]string, error) {
	if cose.IsText(b) {
		name, err := asName(b)
		return []string{name}, err
	}
	names, err := decodeArray(b, asName)
	if err != nil {
		return nil, err
	}
	if len(names) == 0 || len(names) > maxGroupNames {
		return nil, errors.New("wrong number of group names")
	}
	return names, nil
}

// credFmtItem encodes a credential format; 0 is null: not told.
func credFmtItem(f int64) any {
	if f == 0 {
		return nil
	}
	return f
}

func (e SignInfoEntry) items() []any {
	return []any{idItem(e.Groups), e.Alg, e.AlgParams, e.KeyParams, credFmtItem(e.CredFmt)}
}

// EncodeSignInfo gives the value of 'sign_info', or with ECDH values that of
// 'ecdh_info': an array of entries.
func EncodeSignInfo(entries []SignInfoEntry) []byte { return cose.MustMarshal(infoItems(entries)) }

func infoItems(entries []SignInfoEntry) []any {
	out := make([]any, 0, len(entries))
	for _, e := range entries {
		out = append(out, e.items())
	}
	return out
}

// DecodeSignInfo reads the value of 'sign_info' or 'ecdh_info'.
func DecodeSignInfo(b []byte) ([]SignInfoEntry, error) {
	v, err := decodeArray(b, decodeSignInfoEntry)
	if err != nil {
		return nil, fmt.Errorf("sign_info: %w", err)
	}
	return v, nil
}

func decodeSignInfoEntry(b []byte) (e SignInfoEntry, err error) {
	items, err := cose.DecodeArray(b)
	if err != nil {
		return e, err
	}
	if len(items) != 5 {
		return e, errors.New("array of five elements expected")
	}
	if e.Groups, err = decodeID(items[0]); err != nil {
		return e, err
	}
	if e.Alg, err = cose.AsInt(items[1]); err != nil {
		return e, err
	}
	if e.AlgParams, err = asCapabilities(items[2]); err != nil {
		return e, err
	}
	if e.KeyParams, err = asCapabilities(items[3]); err != nil {
		return e, err
	}
	if !cose.IsNull(items[4]) {
		e.CredFmt, err = cose.AsInt(items[4])
	}
	return e, err
}

// KDCDHCred is one entry of 'kdc_dh_creds': the Group Manager's Diffie-Hellman
// credential in groups that use only the pairwise mode
// (draft-ietf-ace-key-groupcomm-oscore-21, Section 5.3.2).
type KDCDHCred struct {
	Groups  []string // encoded as a text string when there is exactly one
	CredFmt int64
	Cred    []byte
}

func dhCredItems(entries []KDCDHCred) []any {
	out := make([]any, 0, len(entries))
	for _, e := range entries {
		out = append(out, []any{idItem(e.Groups), e.CredFmt, e.Cred})
	}
	return out
}

func decodeKDCDHCred(b []byte) (e KDCDHCred, err error) {
	items, err := cose.DecodeArray(b)
	if err != nil {
		return e, err
	}
	if len(items) != 3 {
		return e, errors.New("array of three elements expected")
	}
	if e.Groups, err = decodeID(items[0]); err != nil {
		return e, err
	}
	if e.CredFmt, err = cose.AsInt(items[1]); err != nil {
		return e, err
	}
	e.Cred, err = cose.AsBytes(items[2])
	return e, err
}
