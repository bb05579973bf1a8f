package groupcomm

import (
	"errors"
	"fmt"

	"github.com/seed4911071e/groupgate/coap"
)

// Interface says in which dialects a group's interface is spoken.
type Interface uint8

// Current is RFC 9594 with draft-ietf-ace-key-groupcomm-oscore-21, under
// /ace-group. The others are of before there were registered numbers, under
// /group-oscore: Draft03 has the structure of -03 of November 2019, Hackathon109
// that of the drafts of November 2020. Both use the private numbers of the
// interoperability tests at IETF 109; legacy_labels.go has them. Both is Current
// and Draft03 over one membership.
const (
	Current Interface = iota
	Draft03
	Hackathon109
	Both
)

var interfaceNames = []string{"current", "draft-03", "hackathon-109", "both"}

// InterfaceByName gives the value for a name in a configuration file.
func InterfaceByName(name string) (Interface, bool) {
	for i, n := range interfaceNames {
		if n == name {
			return Interface(i), true
		}
	}
	return Current, false
}

func (i Interface) String() string {
	if int(i) < len(interfaceNames) {
		return interfaceNames[i]
	}
	return "unknown"
}

// SpeaksCurrent reports whether the group is served under /ace-group.
func (i Interface) SpeaksCurrent() bool { return i == Current || i == Both }

// Legacy is the dialect that is spoken under /group-oscore, Draft03 or
// Hackathon109; Current when there is none.
func (i Interface) Legacy() Interface {
	if i == Both {
		return Draft03
	}
	return i
}

// ValidLegacyJoin reports why a set of roles cannot be joined with over the
// legacy dialect of i. draft-ietf-ace-key-groupcomm-oscore-03, Section 3.1: a
// requester may be a monitor as well. Where the current interface is spoken too,
// what that forbids is refused.
func (i Interface) ValidLegacyJoin(r Roles) error {
	if i == Draft03 && r == Requester|Monitor {
		return nil
	}
	return r.ValidJoin()
}

var errNotLegacy = errors.New("groupcomm: no legacy dialect")

// LegacyFormats are the Content-Formats under /group-oscore, the default first.
var LegacyFormats = []coap.Format{coap.CBOR, coap.LegacyACEGroupcomm}

// LegacyTopic is what observers of /group-oscore/NAME observe that accept the
// given Content-Format: the rekeys of a group in its legacy dialect.
func LegacyTopic(group string, f coap.Format) string { return fmt.Sprintf("gm03/%s/%d", group, f) }
