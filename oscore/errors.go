package oscore

import (
	"errors"

	"github.com/seed4911071e/groupgate/coap"
)

// ErrUnprotected says that a message has no OSCORE option. A client may get
// such responses from proxies and from servers that lost the context.
var ErrUnprotected = errors.New("oscore: message is not protected")

// Why a message was not accepted. They are what coap.ErrorResponse makes the
// simple, unprotected response of a server from (RFC 8613, Section 8.2); a
// client drops the response. Nothing in a context has changed.
var (
	// ErrOption: the COSE object does not decode.
	ErrOption = failure(coap.BadOption, "Failed to decode COSE")
	// ErrContext: there is no context for kid and kid context.
	ErrContext = failure(coap.Unauthorized, "Security context not found")
	// ErrReplay: the Partial IV was received before, or is too old to tell.
	ErrReplay = failure(coap.Unauthorized, "Replay detected")
	// ErrNotFresh: the request is authentic, but as the Replay Window for its sender
	// is not valid it may have been received before. It is not to be served: the
	// client is challenged with Echo, in a protected response.
	ErrNotFresh = silent(coap.Unauthorized, "the request may be an old one: challenge the client")
	// ErrDecrypt: the message is not authentic.
	ErrDecrypt = failure(coap.BadRequest, "Decryption failed")
	// ErrInner: the message is authentic, but what it carries is no CoAP request
	// or response.
	ErrInner = silent(coap.BadRequest, "the plaintext is no CoAP message")
	// ErrTooLarge: the message is larger than the context allows
	// (MAX_UNFRAGMENTED_SIZE of RFC 8613, Section 4.1.3.4.2).
	ErrTooLarge = silent(coap.RequestEntityTooLarge, "message is too large")
)

// failure makes an error whose response says the text.
func failure(code coap.Code, text string) error { return refusal(code, text, text) }

// silent makes an error whose response is the code alone.
func silent(code coap.Code, cause string) error { return refusal(code, "", cause) }

// refusal makes an error with a response that no proxy keeps (RFC 8613, Section
// 4.1.3.1).
func refusal(code coap.Code, text, cause string) error {
	r := &coap.Response{Code: code, Payload: []byte(text)}
	r.Options.SetUint(coap.MaxAge, 0)
	return coap.Respond(r, errors.New("oscore: "+cause))
}
