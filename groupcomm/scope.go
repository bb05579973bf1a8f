package groupcomm

import (
	"errors"
	"fmt"

	"github.com/seed4911071e/groupgate/cose"
)

// RolesFor is the union of the roles that the scope gives for a group; 0 when
// it gives none.
func (s Scope) RolesFor(group string) Roles {
	var r Roles
	for _, e := range s {
		if e.Group == group {
			r |= e.Roles
		}
	}
	return r
}

// Groups lists the group names of the scope, each once, in order.
func (s Scope) Groups() []string {
	var names []string
	seen := make(map[string]bool, len(s))
	for _, e := range s {
		if !seen[e.Group] {
			seen[e.Group] = true
			names = append(names, e.Group)
		}
	}
	return names
}

func (e ScopeEntry) items() []any { return []any{e.Group, uint32(e.Roles)} }

// Encode gives [gname, roles]: the content of the byte string 'scope' (label 3)
// of a Join Request, which is one entry and not an array of entries.
func (e ScopeEntry) Encode() []byte { return cose.MustMarshal(e.items()) }

// DecodeScopeEntry reads one user entry.
func DecodeScopeEntry(b []byte) (ScopeEntry, error) {
	e, err := decodeScopeEntry(b)
	if err == nil && e.Roles.admin() {
		err = errors.New("not a user entry")
	}
	if err != nil {
		return ScopeEntry{}, fmt.Errorf("scope entry: %w", err)
	}
	return e, nil
}

// decodeScopeEntry reads an entry. Of an administrative one only the roles are
// set: its group may be a name, a pattern or any.
func decodeScopeEntry(b []byte) (ScopeEntry, error) {
	items, err := cose.DecodeArray(b)
	if err != nil {
		return ScopeEntry{}, err
	}
	if len(items) != 2 {
		return ScopeEntry{}, errors.New("array of two elements expected")
	}
	roles, err := asRoles(items[1])
	if err != nil {
		return ScopeEntry{}, err
	}
	if roles.admin() {
		return ScopeEntry{Roles: roles}, nil
	}
	group, err := asName(items[0])
	if err != nil {
		return ScopeEntry{}, err
	}
	return ScopeEntry{Group: group, Roles: roles}, nil
}

// EncodeScope gives AIF-OSCORE-GROUPCOMM: an array of entries
// (draft-ietf-ace-key-groupcomm-oscore-21, Section 3). In a token and in an
// authorization request it is wrapped in a byte string: [EncodeTokenScope].
func EncodeScope(s Scope) []byte {
	entries := make([]any, 0, len(s))
	for _, e := range s {
		entries = append(entries, e.items())
	}
	return cose.MustMarshal(entries)
}

// DecodeScope reads an array of entries. Administrative entries are left out, so
// the result may be empty.
func DecodeScope(b []byte) (Scope, error) {
	all, err := decodeArray(b, decodeScopeEntry)
	if err != nil {
		return nil, fmt.Errorf("scope: %w", err)
	}
	if len(all) > maxScopeEntries {
		return nil, errors.New("scope: too many entries")
	}
	s := make(Scope, 0, len(all))
	for _, e := range all {
		if !e.Roles.admin() {
			s = append(s, e)
		}
	}
	return s, nil
}

// EncodeTokenScope gives the value of the scope claim and parameter: a byte
// string around the entries, tagged when extended (RFC 9594, Section 7).
func EncodeTokenScope(s Scope, extended bool) []byte {
	b := cose.MustMarshal(EncodeScope(s))
	if extended {
		return cose.AppendTag(TagScope, b)
	}
	return b
}

// DecodeTokenScope reads the value of the scope claim: a byte string, with or
// without the tag of an extended scope. Another tag is a scope of another
// application.
func DecodeTokenScope(b []byte) (Scope, error) {
	if tag, content, ok := cose.DecodeTag(b); ok {
		if tag != TagScope {
			return nil, fmt.Errorf("scope: CBOR tag %d is not supported", tag)
		}
		b = content
	}
	inner, err := cose.AsBytes(b)
	if err != nil {
		return nil, fmt.Errorf("scope: %w", err)
	}
	return DecodeScope(inner)
}
