package proxy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/seed4911071e/groupgate/coap"
)

// forwarded is a request on its way.
type forwarded struct {
	req    *coap.Request
	rule   *Rule
	target Target
	place  string       // the target as a part of keys
	opts   coap.Options // for the upstream, but for Hop-Limit and ETag

	kind      string // of rule, in metrics
	cacheable bool   // what comes back may be kept
	key       cacheKey
	resource  resourceKey
	protected bool // by OSCORE
	hops      byte // left
}

// Diagnostics that say what to do.
const (
	textClosed = "no rule lets you reach this target: see proxy.allow of the gateway, and whether your psk entry there has may: [proxy]"
	textPlain  = "the proxy needs CoAP over DTLS, or OSCORE"
)

// ServeCoAP forwards a request that [Proxy.Takes], and returns the response.
func (p *Proxy) ServeCoAP(ctx context.Context, req *coap.Request) (*coap.Response, error) {
	if earlyStop(req.Options) {
		return nil, p.stopEarly(ctx, req)
	}
	f, local, err := p.classify(ctx, req)
	if err != nil {
		p.metrics.refused.WithLabelValues(reason(err)).Inc()
		return nil, err
	}
	if local != nil {
		// RFC 7252, Section 5.7.2: a request whose authority is the proxy itself is
		// treated as one without proxy options.
		return p.deps.Local.ServeCoAP(ctx, local)
	}
	r, err := p.forward(ctx, f)
	code := coap.Empty
	if err != nil {
		if err = f.failure(err); !errors.Is(err, coap.ErrSilent) {
			code = coap.ErrorResponse(err).Code
		}
	} else {
		code = r.Code
	}
	p.metrics.answered(f.kind, code)
	return r, err
}

// closed is the answer to who has no rule for a target.
func closed(t Target) error {
	if a, ok := t.addr(); ok && a.IsMulticast() {
		// draft-ietf-core-groupcomm-proxy, Section 5.2.1, step 2.
		return coap.Errorf(coap.Unauthorized, textClosed)
	}
	return coap.Errorf(coap.ProxyingNotSupported, textClosed)
}

func reason(err error) string { return coap.ErrorResponse(err).Code.String() }

// classify finds the rule for a request and makes sure that its peer may use it;
// or the request that this gateway is to serve itself.
func (p *Proxy) classify(ctx context.Context, req *coap.Request) (f *forwarded, local *coap.Request, err error) {
	f = &forwarded{req: req, kind: "forward", protected: req.Options.Has(coap.OSCOREOption)}
	var rules []*Rule
	var opts coap.Options
	if in := p.standsIn(req.Options); in || Proxied(req.Options) {
		asked := req.Options
		if in {
			asked = asked.Clone()
			asked.AddString(coap.ProxyScheme, CoAP)
		}
		if f.target, opts, err = destination(asked); err != nil {
			return nil, nil, err
		}
		if f.target.Port == 0 {
			return nil, nil, coap.Errorf(coap.ProxyingNotSupported, "scheme %s", f.target.Scheme)
		}
		if p.isMe(f.target) {
			own := *req
			own.Options = opts
			return nil, &own, nil
		}
		path := opts.Path()
		for _, r := range p.rules {
			if r.forward() && r.covers(f.target, path) {
				rules = append(rules, r)
			}
		}
		if len(rules) == 0 && req.Peer.Via != coap.Plain {
			return nil, nil, closed(f.target)
		}
		if _, isAddr := f.target.addr(); !isAddr {
			opts.Set(coap.UriHost, []byte(f.target.Host)) // RFC 7252, Section 6.4, step 5
		}
	} else {
		r := p.reverse(req.Options)
		if r == nil {
			return nil, nil, coap.Errorf(coap.NotFound, "no such resource")
		}
		rules, f.target, f.kind = []*Rule{r}, r.Upstream, "host"
		opts = slices.Clone(req.Options)
		if r.Name == "" {
			f.kind = "path"
			opts = without(opts, coap.UriHost, coap.UriPort)
			opts.SetPath(slices.Concat(r.Path, req.Options.Path()[len(r.Prefix):])...)
		} else {
			opts.Set(coap.UriHost, []byte(r.Name)) // in one spelling, as it is a part of keys
		}
		if slices.ContainsFunc(opts.Path(), func(s string) bool { return s == "." || s == ".." }) { // RFC 7252, Section 5.10.1
			return nil, nil, coap.Errorf(coap.BadRequest, "path")
		}
	}
	i := slices.IndexFunc(rules, func(r *Rule) bool { return p.admits(ctx, r, req.Peer) })
	if i < 0 {
		if req.Peer.Via == coap.Plain {
			return nil, nil, coap.Errorf(coap.Unauthorized, textPlain)
		}
		if f.kind != "forward" {
			return nil, nil, coap.Errorf(coap.Forbidden, "this is for others")
		}
		return nil, nil, closed(f.target)
	}
	f.rule = rules[i]
	if j := slices.IndexFunc(rules[i:], func(r *Rule) bool { return r.allowed(req.Code) && p.admits(ctx, r, req.Peer) }); j >= 0 {
		f.rule = rules[i+j]
	} else {
		return nil, nil, coap.Errorf(coap.MethodNotAllowed, "%v is not forwarded there", req.Code)
	}
	if err := checkRequest(req.Options); err != nil {
		return nil, nil, err
	}
	if err := p.hop(&opts); err != nil {
		return nil, nil, err
	}
	if !f.protected && len(req.Payload) > 0 && (req.Code == coap.GET || req.Code == coap.DELETE) {
		// RFC 7252, Section 5.5: who gets one ignores it. A server that does not would
		// answer who sent it, and by the cache, which goes by the options, everybody.
		own := *req
		own.Payload = nil
		f.req = &own
	}
	hops, _ := opts.Get(coap.HopLimit)
	f.opts = toUpstream(opts)
	f.opts.Set(coap.HopLimit, hops)
	f.hops = hops[0]
	p.authority(f)
	return f, nil, nil
}

// sensitive are paths of which nothing is cached or merged, whatever the server
// says about it (docs/protocol.md, Section 8).
var sensitive = []string{"ace-group", "group-oscore", "authz-info", "token", "introspect", "manage"}

// authority names what the response to a request depends on besides its options
// (docs/protocol.md, Section 8: "A client is served only what was fetched with its own
// authority").
func (p *Proxy) authority(f *forwarded) {
	f.place = f.target.String()
	path := f.opts.Path()
	f.cacheable = !f.protected && (len(path) == 0 || !slices.Contains(sensitive, path[0]))
	if !f.cacheable || f.req.Code != coap.GET && f.req.Code != coap.FETCH {
		if !f.protected {
			f.resource = resourceOf(f.place, f.opts)
		}
		return
	}
	who := ""
	if f.target.secure() && !f.rule.Public {
		s := f.req.Peer.Subject
		who = fmt.Sprintf("%d:%x", s.Kind, s.ID)
		if s == (coap.Subject{}) {
			who = string(f.req.Peer.Link)
		}
	}
	f.resource = resourceOf(f.place, f.opts)
	f.key = keyOf(f.place+" "+f.rule.owner+" "+who, f.req.Code, f.opts, f.req.Payload)
}

// forward asks the upstream, or the cache.
func (p *Proxy) forward(ctx context.Context, f *forwarded) (*coap.Response, error) {
	if f.req.Peer.Via == coap.Plain {
		return p.forwardPlain(ctx, f)
	}
	return p.forwardProven(ctx, f)
}

func (p *Proxy) forwardProven(ctx context.Context, f *forwarded) (*coap.Response, error) {
	register, present := f.req.Observe()
	a, isAddr := f.target.addr()
	switch {
	case isAddr && a.IsMulticast():
		return p.forwardGroup(ctx, f, a)
	case f.protected && present:
		return p.observeProtected(ctx, f, register)
	case f.cacheable && present && register:
		return p.observe(ctx, f)
	case f.cacheable && (f.req.Code == coap.GET || f.req.Code == coap.FETCH):
		return p.fetch(ctx, f)
	}
	done, err := p.wait()
	if err != nil {
		return nil, err
	}
	defer done()
	r, err := p.ask(ctx, f, nil)
	if err == nil && r.Code.IsSuccess() && !f.protected && f.req.Code != coap.GET && f.req.Code != coap.FETCH {
		p.changed(f.resource)
		p.moved(f, r)
	}
	return r, err
}

// moved has what was created forgotten (RFC 7252, Section 5.9.1.1), and gives the
// place of it as the client sees it.
func (p *Proxy) moved(f *forwarded, r *coap.Response) {
	at := r.Options.Strings(coap.LocationPath)
	if len(at) == 0 {
		return
	}
	var o coap.Options
	o.SetPath(at...)
	for _, q := range r.Options.Strings(coap.LocationQuery) {
		o.AddString(coap.UriQuery, q)
	}
	if host, ok := f.opts.Get(coap.UriHost); ok {
		o.Add(coap.UriHost, host)
	}
	p.changed(resourceOf(f.place, o))
	if f.kind == "path" && hasPrefix(at, f.rule.Path) {
		r.Options.Remove(coap.LocationPath)
		for _, s := range slices.Concat(f.rule.Prefix, at[len(f.rule.Path):]) {
			r.Options.AddString(coap.LocationPath, s)
		}
	}
}

// request is what goes to the upstream.
func (f *forwarded) request(etag []byte) *coap.Request {
	opts := f.opts
	if etag != nil && !slices.ContainsFunc(opts.Values(coap.ETag), func(b []byte) bool { return string(b) == string(etag) }) {
		opts.Add(coap.ETag, etag)
	}
	return &coap.Request{Code: f.req.Code, Options: opts, Payload: f.req.Payload, Peer: f.req.Peer}
}

// ask sends the request to the upstream. etag is that of what is stored.
func (p *Proxy) ask(ctx context.Context, f *forwarded, etag []byte) (*coap.Response, error) {
	u, err := p.upstream(f.rule, f.target)
	if err != nil {
		return nil, err
	}
	r, err := u.do(ctx, f.request(etag))
	if err != nil {
		return nil, f.failure(err)
	}
	if r, err = p.fromUpstream(r); err != nil {
		return nil, f.failure(err)
	}
	return r, nil
}

// isMe says whether a target is this gateway.
func (p *Proxy) isMe(t Target) bool {
	if p.deps.Listeners == nil || p.deps.Local == nil || strings.HasSuffix(t.Scheme, "+tcp") {
		return false
	}
	a, ok := t.addr()
	if !ok {
		return false
	}
	for _, l := range p.deps.Listeners() {
		if l.Scheme == t.Scheme && l.Addr.Port() == t.Port && p.reaches(l, a) {
			return true
		}
	}
	return false
}
