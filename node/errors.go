package node

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// What ends a membership or an exchange. [Error] matches the first four by its
// code and identifier, so errors.Is works on every answer of a Group Manager.
var (
	// ErrUnauthorized: no valid access token stands behind the association
	// (4.01). Get a new token, post it, dial again.
	ErrUnauthorized = errors.New("node: not authorized")
	// ErrNotMember: only members may do this (4.03, error 0).
	ErrNotMember = errors.New("node: not a member of the group")
	// ErrEvicted: the Group Manager ended the membership (4.04, error 5).
	ErrEvicted = errors.New("node: evicted from the group")
	// ErrGroupDeleted: the group is gone (4.04, error 6).
	ErrGroupDeleted = errors.New("node: the group was deleted")

	// ErrNotJoined: the member has no Join Response, or has left.
	ErrNotJoined = errors.New("node: not joined")
	// ErrProof: the Group Manager did not prove that it has the private key of
	// the credential it sent. Whatever it sent with it was dropped.
	ErrProof = errors.New("node: the Group Manager's proof of possession does not verify")
	// ErrBadAnswer: an answer is malformed or contradicts the request. It was
	// dropped and the state is what it was before.
	ErrBadAnswer = errors.New("node: unusable answer of the Group Manager")
	// ErrMoving: the group is rekeyed faster than a member asks what became stale.
	// It holds a version of a moment ago; to ask again is all there is to do.
	ErrMoving = errors.New("node: the group is rekeyed faster than can be followed")
	// ErrUnsupported: the group uses something that this client lacks.
	ErrUnsupported = errors.New("node: unsupported group configuration")
	// ErrLost: the transport is gone; what it carried is not.
	ErrLost = errors.New("node: association lost")
)

// NoID is the ID of an [Error] without an entry of the ACE Groupcomm Errors
// registry.
const NoID = -1

// Error is an answer that refuses a request, or ends an observation.
type Error struct {
	Op     string    // what was asked for: "join", "creds", …
	Code   coap.Code // of the response
	ID     int       // ACE Groupcomm Errors identifier; NoID when there is none
	Detail string    // printable text of the peer, bounded; may be empty
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "node: %s: %s", e.Op, e.Code)
	if e.ID != NoID {
		b.WriteString(" error ")
		b.WriteString(strconv.Itoa(e.ID))
	}
	if title := title(e.Code, e.ID); title != "" {
		b.WriteString(" (" + title + ")")
	}
	if e.Detail != "" {
		b.WriteString(": " + e.Detail)
	}
	return b.String()
}

// title is the meaning of an entry of the ACE Groupcomm Errors registry.
func title(code coap.Code, id int) string {
	for _, row := range [...]*coap.Problem{
		groupcomm.ErrNotMember, groupcomm.ErrRoles, groupcomm.ErrCredential, groupcomm.ErrPoP, groupcomm.ErrNoSenderID,
		groupcomm.ErrTerminated, groupcomm.ErrGroupDeleted, groupcomm.ErrNoSignatures, groupcomm.ErrVerifiersOnly,
		groupcomm.ErrInactive,
	} {
		if row.Code == code && row.ID == id {
			return row.Title
		}
	}
	return ""
}

// Is matches the sentinels of this package and the rows of the ACE Groupcomm
// Errors registry in package groupcomm.
func (e *Error) Is(target error) bool {
	switch target {
	case ErrUnauthorized:
		return e.Code == coap.Unauthorized
	case ErrNotMember:
		return e.Code == coap.Forbidden && e.ID == 0
	case ErrEvicted:
		return e.Code == coap.NotFound && e.ID == 5
	case ErrGroupDeleted:
		return e.Code == coap.NotFound && e.ID == 6
	}
	p, ok := target.(*coap.Problem)
	return ok && e.ID != NoID && p.ID == e.ID && p.Code == e.Code
}

// oauthCodes are the error codes of RFC 9200, Section 5.8.3.
var oauthCodes = [...]string{1: "invalid_request", "invalid_client", "invalid_grant", "unauthorized_client",
	"unsupported_grant_type", "invalid_scope", "unsupported_pop_key", "incompatible_ace_profiles"}

// refused turns a response that is no success into an [*Error]. A body that
// cannot be read costs the detail only: the code alone is an answer.
func refused(op string, r *coap.Response) *Error {
	e := &Error{Op: op, Code: r.Code, ID: NoID}
	format, ok := r.Options.ContentFormat()
	switch {
	case len(r.Payload) == 0:
	case ok && format == coap.ProblemDetails:
		p, err := coap.DecodeProblem(r.Payload)
		if err != nil {
			break
		}
		e.ID = p.ID
		e.Detail = printable(p.Detail)
		if e.Detail == "" {
			e.Detail = printable(p.Title)
		}
	case ok && format == coap.ACE:
		e.Detail = aceDetail(r.Payload)
	case !ok || format == coap.TextPlain:
		e.Detail = printable(string(r.Payload)) // RFC 7252, Section 5.5.2: diagnostic payload
	}
	return e
}

// Refusal is the error of a response that is no success, with what it tells.
func Refusal(op string, r *coap.Response) error { return refused(op, r) }

// aceDetail reads the refusal of a token endpoint (RFC 9200, Section 5.8.3), or
// AS Request Creation Hints (RFC 9200, Section 5.3): {1: AS, …}.
func aceDetail(body []byte) string {
	m, err := cose.DecodeMap(body)
	if err != nil {
		return ""
	}
	if code, ok, err := m.Int(labelError); ok && err == nil {
		detail := "error " + strconv.FormatInt(code, 10)
		if code > 0 && code < int64(len(oauthCodes)) {
			detail = oauthCodes[code]
		}
		if text, ok, err := m.Text(labelErrorText); ok && err == nil {
			detail += ": " + printable(text)
		}
		return detail
	}
	if as, ok, err := m.Text(labelToken); ok && err == nil {
		return "get an access token from " + printable(as)
	}
	return ""
}

// maxDetail bounds the text of a peer in an error.
const maxDetail = 200

// printable makes text of a peer fit for a terminal and a log line.
func printable(s string) string {
	if len(s) > maxDetail {
		s = s[:maxDetail]
	}
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

func badAnswer(op, format string, args ...any) error {
	return fmt.Errorf("%w: %s: %s", ErrBadAnswer, op, fmt.Sprintf(format, args...))
}
