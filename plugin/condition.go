package plugin

import (
	"context"

	"github.com/seed4911071e/groupgate/coap"
)

// conditioned serves a request to a resource of the gateway's own, on the conditions
// that it names (RFC 7252, Section 5.10.8). Those on what is forwarded the upstream
// judges, those on what is in a group the Group Manager, whose versions are its
// entity tags.
func (g *Gateway) conditioned(ctx context.Context, r *rooms, req *coap.Request) (*coap.Response, error) {
	path := req.Path()
	if !coap.Conditional(req.Options) || groupPath(path) {
		return g.serveOwn(ctx, r, req)
	}
	safe := req.Code == coap.GET || req.Code == coap.FETCH
	if !safe && (discovery(path) || ours(path) && (path[0] == pathAuthzInfo || mePath(path) || g.cfg.AuthorizationServer.Enabled)) {
		// It is there, and what takes such a method here has no entity tag.
		if err := coap.Precondition(req.Options); err != nil {
			return nil, err
		}
	}
	conditions := req.Options
	resp, err := g.serveOwn(ctx, r, req)
	if !safe || err != nil || !resp.Code.IsSuccess() {
		return resp, err
	}
	tag, ok := resp.Options.Get(coap.ETag)
	if !ok {
		tag = g.server.ETag(resp.Payload) // which it gets when it goes out in blocks
	}
	if err := coap.Precondition(conditions, tag); err != nil {
		return nil, err
	}
	return resp, nil
}
