package oscore

import (
	"errors"

	"github.com/seed4911071e/groupgate/coap"
)

// defaultUnknownPeerMaxAge is when a client whose credential is not known yet may
// try again, in seconds: what it takes to ask the Group Manager.
const defaultUnknownPeerMaxAge = 5

// Why a message of a group was not accepted, beside [ErrOption], [ErrContext],
// [ErrReplay], [ErrNotFresh], [ErrDecrypt] and [ErrInner]. A signature that does not verify is
// ErrDecrypt as well: nobody is told which of the two failed.
//
// draft-ietf-core-oscore-groupcomm-28, Sections 6, 7.2 and 8.4.
var (
	// ErrMode: the group does not use the mode of the message.
	ErrMode = failure(coap.BadOption, "Mode of Group OSCORE not used in the group")
	// ErrUnknownPeer: there is no credential for the Sender ID. Ask the Group
	// Manager for it, then try the same message again.
	ErrUnknownPeer = errors.New("oscore: no credential for the Sender ID of the peer")
	// ErrOwnMessage: the Sender ID in the message is the own one.
	ErrOwnMessage = failure(coap.Unauthorized, "Security context not found")
	// ErrWrongServer: the response is authentic, but of another server than the
	// request was for, or of one that changed its Sender ID within the exchange.
	ErrWrongServer = errors.New("oscore: response of another server")
	// ErrTooMany: more servers answered than an exchange has room for.
	ErrTooMany = errors.New("oscore: too many servers answer")
)

// Errors of a caller.
var (
	errNoRequest  = errors.New("oscore: the message is no request")
	errNoResponse = errors.New("oscore: the message is no response")
	errOwnPeer    = errors.New("oscore: the request is for the own Sender ID")
	errEchoMode   = errors.New("oscore: a request that echoes a challenge goes to one server, in pairwise mode")
	errInstalled  = errors.New("oscore: this keying material was installed before")
)

// ErrorResponse is what a server may answer, unprotected, to a request that
// [Group.UnprotectRequest] refused; nil is silence. Nothing is answered to a request
// that came by multicast, or that may have: many servers would do the same.
// [ErrNotFresh] has a protected answer instead: [GroupRequest.Challenge].
//
// draft-ietf-core-oscore-groupcomm-28, Section 7.
func (g *Group) ErrorResponse(err error, multicast bool) *coap.Response {
	switch {
	case err == nil || multicast || errors.Is(err, ErrNotFresh):
		return nil
	case errors.Is(err, ErrUnknownPeer):
		r := &coap.Response{Code: coap.ServiceUnavailable}
		r.Options.SetUint(coap.MaxAge, g.cfg.MaxAge)
		return r
	}
	return coap.ErrorResponse(err)
}
