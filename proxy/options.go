package proxy

import (
	"fmt"

	"github.com/seed4911071e/groupgate/coap"
)

// Options of draft-ietf-core-groupcomm-proxy-07. Their numbers are those that the
// draft asks for; nothing is registered yet.
const (
	MulticastTimeout coap.OptionID = 2   // request: seconds in which responses are wanted
	groupETag        coap.OptionID = 24  // request, response: of what a proxy has cached of a whole group
	replyFrom        coap.OptionID = 248 // response: who sent it
)

// understood says whether an option means something to this proxy.
func understood(id coap.OptionID) bool { return id.Known() || id == MulticastTimeout }

// checkRequest refuses what must not be forwarded (RFC 7252, Section 5.7.1:
// "Unsafe options in a request that are not recognized by the proxy MUST lead to
// a 4.02 (Bad Option) response").
func checkRequest(o coap.Options) error {
	for _, x := range o {
		if x.ID.Unsafe() && !understood(x.ID) {
			return coap.Errorf(coap.BadOption, "option %d is unsafe to forward", x.ID)
		}
	}
	return nil
}

// toUpstream is what of a request crosses: all that is safe to forward, known or
// not, and the Uri options. What belongs to the leg of the client stays behind:
// blockwise transfer and observation begin anew, and No-Response is heeded when
// the answer is there (RFC 7967, Section 2: it is no business of the next hop).
func toUpstream(o coap.Options) coap.Options {
	return without(o, coap.ObserveOption, coap.Block1, coap.Block2, coap.Size1, coap.Size2, coap.RequestTag,
		coap.NoResponse, coap.MaxAge, coap.HopLimit, MulticastTimeout)
}

// hop counts down the Hop-Limit (RFC 8768, Section 3).
func (p *Proxy) hop(o *coap.Options) error {
	raw, ok := o.Get(coap.HopLimit)
	if !ok {
		o.SetUint(coap.HopLimit, defaultHops)
		return nil
	}
	if len(raw) != 1 || raw[0] == 0 {
		return coap.Errorf(coap.BadRequest, "Hop-Limit must be from 1 to 255")
	}
	if raw[0] == 1 {
		return coap.Errorf(coap.HopLimitReached, "%s", p.cfg.Name)
	}
	o.SetUint(coap.HopLimit, uint32(raw[0]-1))
	return nil
}

// fromUpstream checks a response and takes out what belongs to the upstream leg
// (RFC 7252, Section 5.7.1: "Unsafe options in a response that are not recognized
// by the CoAP-to-CoAP proxy server MUST lead to a 5.02 (Bad Gateway) response").
func (p *Proxy) fromUpstream(r *coap.Response) (*coap.Response, error) {
	switch {
	case !r.Code.IsResponse() || r.Code == coap.Continue:
		return nil, fmt.Errorf("%w: code %v", errGarbage, r.Code)
	}
	for _, x := range r.Options {
		if x.ID.Unsafe() && !understood(x.ID) {
			return nil, fmt.Errorf("%w: option %d is unsafe to forward", errGarbage, x.ID)
		}
	}
	if id, bad := r.Options.Unusable(unknownSafe(r.Options)...); bad {
		return nil, fmt.Errorf("%w: option %d", errGarbage, id)
	}
	out := &coap.Response{Code: r.Code, Payload: r.Payload}
	out.Options = without(r.Options, coap.ObserveOption, coap.Block1, coap.Block2, coap.Size1, coap.Size2,
		coap.ProxyUri, coap.ProxyScheme, coap.UriHost, coap.UriPort, coap.UriPath, coap.UriQuery)
	out.Options.DropUnusable()
	if r.Code == coap.HopLimitReached {
		// RFC 8768, Section 4: each proxy on the way back puts its name in front.
		out.Payload = append([]byte(p.cfg.Name+" "), r.Payload...)
	}
	return out, nil
}

// unknownSafe lists the critical options that are forwarded although nobody here
// knows them.
func unknownSafe(o coap.Options) []coap.OptionID {
	var out []coap.OptionID
	for _, x := range o {
		if x.ID.Critical() && !x.ID.Unsafe() && !x.ID.Known() {
			out = append(out, x.ID)
		}
	}
	return out
}
