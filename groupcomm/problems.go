package groupcomm

import "github.com/seed4911071e/groupgate/coap"

// Errors of the ACE Groupcomm Errors registry (RFC 9594, Section 9;
// draft-ietf-ace-key-groupcomm-oscore-21, Section 13;
// draft-ietf-ace-oscore-gm-admin), each with its one code.
var (
	ErrNotMember     = &coap.Problem{Code: coap.Forbidden, ID: 0, Title: "Operation permitted only to group members"}
	ErrRoles         = &coap.Problem{Code: coap.BadRequest, ID: 1, Title: "Request inconsistent with the current roles"}
	ErrCredential    = &coap.Problem{Code: coap.BadRequest, ID: 2, Title: "Authentication credential incompatible with the group configuration"}
	ErrPoP           = &coap.Problem{Code: coap.BadRequest, ID: 3, Title: "Invalid proof-of-possession evidence"}
	ErrNoSenderID    = &coap.Problem{Code: coap.ServiceUnavailable, ID: 4, Title: "No available individual keying material"}
	ErrTerminated    = &coap.Problem{Code: coap.NotFound, ID: 5, Title: "Group membership terminated"}
	ErrGroupDeleted  = &coap.Problem{Code: coap.NotFound, ID: 6, Title: "Group deleted"}
	ErrNoSignatures  = &coap.Problem{Code: coap.BadRequest, ID: 7, Title: "Signatures not used in the group"}
	ErrVerifiersOnly = &coap.Problem{Code: coap.Forbidden, ID: 8, Title: "Operation permitted only to signature verifiers"}
	ErrInactive      = &coap.Problem{Code: coap.ServiceUnavailable, ID: 9, Title: "Group not active"}
	ErrActive        = &coap.Problem{Code: coap.BadRequest, ID: 10, Title: "Group currently active"}
	ErrNoName        = &coap.Problem{Code: coap.ServiceUnavailable, ID: 11, Title: "Group name cannot be determined"}
	ErrUnsupported   = &coap.Problem{Code: coap.ServiceUnavailable, ID: 12, Title: "Group configuration not supported"}
)

// ErrorTitle is the text of the registry for an error identifier; "" for one that
// is not in it.
func ErrorTitle(id int) string {
	for _, p := range []*coap.Problem{
		ErrNotMember, ErrRoles, ErrCredential, ErrPoP, ErrNoSenderID, ErrTerminated, ErrGroupDeleted, ErrNoSignatures,
		ErrVerifiersOnly, ErrInactive, ErrActive, ErrNoName, ErrUnsupported,
	} {
		if p.ID == id {
			return p.Title
		}
	}
	return ""
}
