package coap

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// What became of a message that a [Link] was to send.
var (
	ErrReset   = errors.New("coap: reset by the peer")
	ErrTimeout = errors.New("coap: no acknowledgement")
	ErrGone    = errors.New("coap: link is gone")

	// ErrOvertaken is what became of a message that gave way to a newer one, and was
	// neither acknowledged nor rejected late ([Yielder]).
	ErrOvertaken = errors.New("coap: given up for a newer message")

	// ErrWithheld is an ErrTimeout that the peer has no part in: too little is known
	// of where it is to send it there.
	ErrWithheld = fmt.Errorf("%w: the address has not shown yet that it receives", ErrTimeout)
)

// responder is an error that knows its response. The outermost one in a chain
// decides; detail is the text of [Detail], if any.
type responder interface {
	error
	response(detail string) *Response
}

// StatusError is a failure that the peer may see as a plain code with a
// diagnostic payload (RFC 7252, Section 5.5.2). [Errorf] makes one.
type StatusError struct {
	Code Code
	Text string // goes on the wire: deliberate, no secrets
	Err  error  // what a %w in Errorf wrapped; nil if nothing
}

// Errorf makes a [StatusError]. Everything in the text reaches the peer, also
// the text of an error formatted into it: internal context belongs into a
// fmt.Errorf around the result.
func Errorf(code Code, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &StatusError{Code: code, Text: err.Error(), Err: errors.Unwrap(err)}
}

func (e *StatusError) Error() string {
	if e.Text == "" {
		return "coap: " + e.Code.String()
	}
	return e.Code.String() + " " + e.Text
}

func (e *StatusError) Unwrap() error { return e.Err }

func (e *StatusError) response(detail string) *Response {
	text := e.Text
	switch {
	case text == "":
		text = detail
	case detail != "":
		text += ": " + detail
	}
	return &Response{Code: e.Code, Payload: []byte(diagnostic(text))}
}

// Detail adds deliberate text for the peer to an error that wraps a [*Problem]
// or a [*StatusError]; on other errors the text stays internal. nil stays nil.
func Detail(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &detailError{err: err, text: fmt.Sprintf(format, args...)}
}

type detailError struct {
	err  error
	text string
}

func (e *detailError) Error() string { return e.err.Error() + ": " + e.text }
func (e *detailError) Unwrap() error { return e.err }

// Respond makes an error that carries its own response, for failures whose
// body is neither text nor problem details. cause is for logs and errors.Is; it
// may be nil.
func Respond(r *Response, cause error) error {
	if r == nil {
		panic("coap: internal error: Respond without a response")
	}
	return &responseError{r: r, cause: cause}
}

type responseError struct {
	r     *Response
	cause error
}

func (e *responseError) Error() string {
	if e.cause == nil {
		return "coap: " + e.r.Code.String()
	}
	return e.r.Code.String() + " " + e.cause.Error()
}

func (e *responseError) Unwrap() error { return e.cause }

func (e *responseError) response(string) *Response {
	r := *e.r
	return &r
}

// ErrorResponse is the one conversion of errors to responses. Of the failures
// made for the peer ([*Problem], [*StatusError], [Respond]) the outermost in
// the chain decides; a context that ended is 5.03; everything else is an empty
// 5.00, so that internal text never reaches the wire.
func ErrorResponse(err error) *Response {
	if r, ok := errors.AsType[responder](err); ok {
		text := ""
		if d, ok := errors.AsType[*detailError](err); ok {
			text = diagnostic(d.text)
		}
		return r.response(text)
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return &Response{Code: ServiceUnavailable}
	}
	return &Response{Code: InternalServerError}
}

// Deliberate says whether err was made for the peer, so that it is no surprise
// to anyone who reads a log.
func Deliberate(err error) bool {
	_, ok := errors.AsType[responder](err)
	return ok
}

// diagnostic makes text fit for the wire: UTF-8 of bounded length.
func diagnostic(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= maxDiagnostic {
		return s
	}
	n := maxDiagnostic
	for !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
