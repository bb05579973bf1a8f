package proxy

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/serve"
)

// What becomes of a request at an upstream.
var (
	errSilent  = errors.New("no answer")                 // not even an acknowledgement
	errReset   = errors.New("the request was rejected")  // by a Reset
	errGone    = errors.New("it had ended before")       // nothing was sent
	errRefused = errors.New("nobody listens there")      // by ICMP
	errEnded   = errors.New("the association ended")     // by either end
	errGarbage = errors.New("the answer makes no sense") // see RFC 7252, Section 5.9.3.3
	errName    = errors.New("the name leads nowhere")
	errPlace   = errors.New("the address is not one to be proxied to")
	errLarge   = errors.New("the request is larger than what the server takes")
	errShake   = errors.New("no association could be made")
)

// busyFor is the Max-Age of what is refused for want of room, in seconds.
const busyFor = 2

var (
	errBusy    = unavailable(busyFor*time.Second, errors.New("proxy: too many requests wait for upstreams"))
	errClosing = unavailable(busyFor*time.Second, errors.New("proxy: the proxy ends"))
)

// unavailable is 5.03 with the time to wait (RFC 7252, Section 5.9.3.4).
func unavailable(d time.Duration, cause error) error {
	r := &coap.Response{Code: coap.ServiceUnavailable}
	setMaxAge(r, max(d, time.Second))
	return coap.Respond(r, cause)
}

// badGateway is 5.02: the upstream answered, but not in a way that could be
// passed on (RFC 7252, Section 5.9.3.3).
func badGateway(err error) error { return fresh(coap.BadGateway, err) }

// fresh is an error with a diagnostic text and Max-Age 0: what a proxy met a
// moment ago says nothing about the resource.
func fresh(code coap.Code, err error) error { return freshBut(code, err, err) }

// freshBut is fresh with a cause that is for the log alone.
func freshBut(code coap.Code, err, cause error) error {
	r := &coap.Response{Code: code, Payload: []byte(err.Error())}
	setMaxAge(r, 0)
	return coap.Respond(r, fmt.Errorf("proxy: %w", cause))
}

// shown names where a request is to go as its client does: what is behind a path or a host
// name is the operator's business.
func (f *forwarded) shown() string {
	switch f.kind {
	case "host":
		return f.rule.Name
	case "path":
		return path(f.rule.Prefix)
	}
	return f.target.String()
}

// failure makes the response of what went wrong on the way to a target, and the cause for
// the log, which has all of it.
func (f *forwarded) failure(err error) error {
	if coap.Deliberate(err) || errors.Is(err, coap.ErrSilent) || errors.Is(err, context.Canceled) {
		return err
	}
	named := func(code coap.Code, why error) error {
		return freshBut(code, fmt.Errorf("%s: %w", f.shown(), why), fmt.Errorf("%s: %w", f.target, err))
	}
	var no *shakeError
	switch {
	case errors.As(err, &no):
		code := coap.BadGateway
		if no.silent {
			code = coap.GatewayTimeout
		}
		return named(code, fmt.Errorf("%w: %s (%s)", errShake, no.why, no.hint))
	case errors.Is(err, errPlace):
		// RFC 7252, Section 5.10.2: "unable or unwilling".
		return named(coap.ProxyingNotSupported, errPlace)
	case errors.Is(err, errSilent), errors.Is(err, context.DeadlineExceeded):
		return named(coap.GatewayTimeout, errors.New("no answer in time"))
	case errors.Is(err, serve.ErrBlockwise):
		return named(coap.BadGateway, errors.New("blockwise transfer failed"))
	case errors.Is(err, errGarbage): // what came over the association, and nothing else
		return named(coap.BadGateway, err)
	}
	for _, why := range []error{errShake, errName, errRefused, errReset, errEnded, errLarge} {
		if errors.Is(err, why) {
			return named(coap.BadGateway, why)
		}
	}
	return named(coap.BadGateway, errors.New("not reached"))
}
