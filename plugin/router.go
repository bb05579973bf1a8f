package plugin

import (
	"context"
	"errors"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/proxy"
)

// The first path segments that are ours; every other path is the host's.
const (
	pathAuthzInfo  = "authz-info"
	pathToken      = "token"
	pathIntrospect = "introspect"
	pathRevoke     = "revoke"
	pathTRL        = "trl"
	pathGroups     = "ace-group"
	pathLegacy     = "group-oscore" // groups in the dialects of 2019 and 2020
	pathGateway    = "gw"           // what is this gateway's own
	pathMe         = "me"
	pathState      = "groups" // of a legacy node
	pathWellKnown  = ".well-known"
	pathCore       = "core"
)

// errStarting answers requests that arrive before the rooms are up.
var errStarting = coap.Respond(
	&coap.Response{Code: coap.ServiceUnavailable, Options: coap.Options{{ID: coap.MaxAge, Value: []byte{1}}}},
	errors.New("plugin: the gateway is starting"))

// ours reports whether a request with this path belongs to the gateway.
func ours(path []string) bool {
	if len(path) == 0 {
		return false
	}
	switch path[0] {
	case pathAuthzInfo, pathToken, pathIntrospect:
		return true
	}
	return groupPath(path) || mePath(path) || len(path) == 2 && path[0] == pathGateway && path[1] == pathState
}

// mePath reports whether the path is /gw/me.
func mePath(path []string) bool {
	return len(path) == 2 && path[0] == pathGateway && path[1] == pathMe
}

// groupPath reports whether the path is one of the Group Manager's.
func groupPath(path []string) bool {
	return len(path) > 0 && (path[0] == pathGroups || path[0] == pathLegacy)
}

// discovery reports whether the path is /.well-known/core.
func discovery(path []string) bool {
	return len(path) == 2 && path[0] == pathWellKnown && path[1] == pathCore
}

// ServeCoAP serves one request. It is the handler under the server core; hosts
// mount [Gateway.Handler].
func (g *Gateway) ServeCoAP(ctx context.Context, req *coap.Request) (*coap.Response, error) {
	resp, err := g.route(ctx, req)
	return resp, g.diskFull(ctx, err)
}

// fullRetry is how long peers are asked to wait for a store that takes no data.
const fullRetry = 10 // seconds

// diskFull answers 5.03 where the disk takes no data, or the database server is
// away: the peer may come again. Other errors stay as they are.
func (g *Gateway) diskFull(ctx context.Context, err error) error {
	if err == nil || !g.trouble.note(ctx, g.log, err) {
		return err
	}
	r := &coap.Response{Code: coap.ServiceUnavailable}
	r.Options.SetUint(coap.MaxAge, fullRetry)
	return coap.Respond(r, err)
}

// Requests that are for somebody else. They must not be taken for what their path
// says.
var (
	errNoProxy = coap.Errorf(coap.ProxyingNotSupported, "no proxy here")
)

// route hands a request to the room that owns its path.
func (g *Gateway) route(ctx context.Context, req *coap.Request) (*coap.Response, error) {
	r := g.rooms.Load()
	switch {
	case r != nil && r.delegates.Takes(req):
		// A legacy node's request to its group may have the form of a proxied one.
		r.alive(req.Peer)
		return r.delegates.ServeCoAP(ctx, req)
	case proxy.Proxied(req.Options) && !g.cfg.Proxy.Active():
		return nil, errNoProxy // RFC 7252, Section 5.10.2
	}
	if r == nil {
		return nil, errStarting
	}
	// Before OSCORE: what is for another server is its business to unprotect.
	if r.proxy != nil && r.proxy.Takes(req.Options) {
		if req.Peer.Via != coap.Plain {
			r.alive(req.Peer)
		}
		return r.proxy.ServeCoAP(ctx, req)
	}
	if req.Options.Has(coap.OSCOREOption) {
		// What is inside comes back here, over the link of its context.
		return r.secure.ServeCoAP(ctx, req)
	}
	// Whatever it asks for, a protected request is a sign of life: what the
	// member lacks follows the answer.
	if req.Peer.Via != coap.Plain {
		r.alive(req.Peer)
	}
	return g.conditioned(ctx, r, req)
}

// serveOwn hands a request for this gateway to the room that owns its path.
func (g *Gateway) serveOwn(ctx context.Context, r *rooms, req *coap.Request) (*coap.Response, error) {
	path := req.Path()
	switch {
	case discovery(path):
		return g.wellKnown(ctx, r, req)
	case len(path) == 1 && path[0] == pathAuthzInfo:
		// RFC 9200, Section 5.10.1: the token is posted before there is an
		// association, so the endpoint is open to plain UDP.
		return r.authzInfo.ServeCoAP(ctx, req)
	case req.Peer.Via == coap.Plain:
		// Everything else needs a protected path: keys never leave in clear.
		// The room that would serve it adds AS Request Creation Hints.
		if groupPath(path) {
			return r.groups.ServeCoAP(ctx, req)
		}
		return nil, coap.Errorf(coap.Unauthorized, "this needs CoAP over DTLS, or OSCORE")
	case len(path) == 1 && path[0] == pathToken:
		return r.token.ServeCoAP(ctx, req)
	case len(path) == 1 && path[0] == pathIntrospect:
		return r.introspect.ServeCoAP(ctx, req)
	case len(path) == 2 && path[0] == pathRevoke && path[1] == pathTRL:
		return r.revoked.ServeCoAP(ctx, req)
	case groupPath(path):
		return r.groups.ServeCoAP(ctx, req)
	case mePath(path):
		return r.me.ServeCoAP(ctx, req)
	}
	return nil, coap.Errorf(coap.NotFound, "no such resource")
}
