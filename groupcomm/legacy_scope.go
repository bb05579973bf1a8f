package groupcomm

import (
	"errors"
	"fmt"

	"github.com/seed4911071e/groupgate/cose"
)

// textRoles are the roles that draft-ietf-ace-key-groupcomm-oscore-03, Section
// 3.1, has names for.
const textRoles = Requester | Responder | Monitor

// EncodeTextScope gives [gname, role / [+ role]] with roles as text strings: the
// content of the byte string 'scope' of draft-03, in tokens as in Joining
// Requests.
func EncodeTextScope(e ScopeEntry) []byte {
	var names []string
	for _, n := range roleNames {
		if e.Roles&n.role != 0 {
			names = append(names, n.name)
		}
	}
	var roles any = names
	if len(names) == 1 {
		roles = names[0]
	}
	return cose.MustMarshal([]any{e.Group, roles})
}

// DecodeTextScope reads what EncodeTextScope gives. Roles may come in any order,
// each once.
func DecodeTextScope(b []byte) (ScopeEntry, error) {
	e, err := decodeTextScope(b)
	if err != nil {
		return ScopeEntry{}, fmt.Errorf("text scope: %w", err)
	}
	return e, nil
}

func decodeTextScope(b []byte) (e ScopeEntry, err error) {
	items, err := cose.DecodeArray(b)
	if err != nil {
		return e, err
	}
	if len(items) != 2 {
		return e, errors.New("array of two elements expected")
	}
	if e.Group, err = asName(items[0]); err != nil {
		return e, err
	}
	names := []cose.Item{items[1]}
	if cose.IsArray(items[1]) {
		if names, err = cose.DecodeArray(items[1]); err != nil {
			return e, err
		}
	}
	for _, item := range names {
		role, err := asTextRole(item)
		if err != nil {
			return e, err
		}
		if e.Roles&role != 0 {
			return e, errors.New("a role twice")
		}
		e.Roles |= role
	}
	if e.Roles == 0 {
		return e, errors.New("no role")
	}
	return e, nil
}

func asTextRole(b []byte) (Roles, error) {
	name, err := asName(b)
	if err != nil {
		return 0, err
	}
	for _, n := range roleNames {
		if n.name == name && n.role&textRoles != 0 {
			return n.role, nil
		}
	}
	return 0, errors.New("unknown role")
}

// EncodeTextTokenScope gives the value of the scope claim and parameter of
// draft-03: a byte string around one entry.
func EncodeTextTokenScope(e ScopeEntry) []byte { return cose.MustMarshal(EncodeTextScope(e)) }

// DecodeTextTokenScope reads the value of the scope claim of draft-03. One token
// is for one group.
func DecodeTextTokenScope(b []byte) (ScopeEntry, error) {
	inner, err := cose.AsBytes(b)
	if err != nil {
		return ScopeEntry{}, fmt.Errorf("text scope: %w", err)
	}
	return DecodeTextScope(inner)
}

// EncodeLegacyScope gives the content of the byte string 'scope' in a Joining
// Request of the dialect.
func EncodeLegacyScope(d Interface, e ScopeEntry) []byte {
	if d == Draft03 {
		return EncodeTextScope(e)
	}
	return e.Encode()
}

// DecodeLegacyScope reads what EncodeLegacyScope gives.
func DecodeLegacyScope(d Interface, b []byte) (ScopeEntry, error) {
	if d == Draft03 {
		return DecodeTextScope(b)
	}
	return DecodeScopeEntry(b)
}

// LegacyPoPInput is what client_cred_verify signs: in draft-03 N_S and N_C as
// they are (draft-ietf-ace-key-groupcomm-oscore-03, Section 4.2), in hackathon-109
// what it signs now (draft-ietf-ace-key-groupcomm-10, Section 4.1.2.1).
func LegacyPoPInput(d Interface, scope, ns, nc []byte) []byte {
	if d == Draft03 {
		return append(append([]byte{}, ns...), nc...)
	}
	return ClientPoPInput(scope, ns, nc)
}
