package groupcomm

import (
	"errors"
	"fmt"
	"strings"
)

// allRoles are the roles that the registry knows.
const allRoles = Requester | Responder | Monitor | Verifier

var roleNames = [...]struct {
	role Roles
	name string
}{
	{Requester, "requester"},
	{Responder, "responder"},
	{Monitor, "monitor"},
	{Verifier, "verifier"},
}

// String lists the roles by name, as in "requester,responder". Bits without a
// name are shown as a number, and no role at all as "none".
func (r Roles) String() string {
	if r == 0 {
		return "none"
	}
	var names []string
	for _, n := range roleNames {
		if r&n.role != 0 {
			names = append(names, n.name)
		}
	}
	if rest := r &^ allRoles; rest != 0 {
		names = append(names, fmt.Sprintf("%#x", uint32(rest)))
	}
	return strings.Join(names, ",")
}

// ParseRoles reads a comma-separated list of role names.
func ParseRoles(s string) (Roles, error) {
	var r Roles
next:
	for name := range strings.SplitSeq(s, ",") {
		name = strings.TrimSpace(name)
		for _, n := range roleNames {
			if n.name == name {
				r |= n.role
				continue next
			}
		}
		return 0, fmt.Errorf("%q is not a role (requester, responder, monitor, verifier)", name)
	}
	return r, nil
}

// Has reports whether all the roles of want are included.
func (r Roles) Has(want Roles) bool { return r&want == want }

// MonitorOnly reports whether the only role is monitor: such a member has no
// Sender ID and no credential in the group.
func (r Roles) MonitorOnly() bool { return r == Monitor }

// ValidJoin reports why a set of roles cannot be joined with.
// draft-ietf-ace-key-groupcomm-oscore-21, Section 6.1: a monitor has no other
// role. A verifier does not join, and neither odd values, which are of the
// administrative interface, nor unknown roles mean anything here.
func (r Roles) ValidJoin() error {
	switch {
	case r == 0:
		return errors.New("no role")
	case r&^allRoles != 0:
		return errors.New("unknown roles")
	case r&Verifier != 0:
		return errors.New("a signature verifier does not join")
	case r&Monitor != 0 && r != Monitor:
		return errors.New("the role monitor excludes other roles")
	}
	return nil
}

// admin reports whether a Tperm is one of the administrative interface
// (draft-ietf-ace-oscore-gm-admin: the least significant bit is 1).
func (r Roles) admin() bool { return r&1 != 0 }
