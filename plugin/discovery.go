package plugin

import (
	"context"
	"strings"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/gm"
	"github.com/seed4911071e/groupgate/rd"
)

// wellKnown lists what can be discovered (RFC 6690, Section 4;
// draft-ietf-ace-key-groupcomm-oscore-21, Section 8, for the resource type).
// The answer is never empty of meaning: no match is 2.05 without payload.
func (g *Gateway) wellKnown(ctx context.Context, r *rooms, req *coap.Request) (*coap.Response, error) {
	if req.Code != coap.GET {
		return nil, coap.Errorf(coap.MethodNotAllowed, "only GET")
	}
	if accept, ok := req.Options.Uint(coap.Accept); ok && accept != uint32(coap.LinkFormat) {
		return nil, coap.Errorf(coap.NotAcceptable, "links have Content-Format 40")
	}
	links := withAuthority(r.groups.Links(ctx), r.tokenURIs, "")
	if r.proxy != nil {
		links = append(links, r.proxy.Links(ctx, req.Peer)...)
	}
	body, err := coap.EncodeLinks(coap.FilterLinks(links, gm.CurrentQueries(req.Options.Queries())))
	if err != nil {
		return nil, err
	}
	resp := &coap.Response{Code: coap.Content, Payload: body}
	resp.Options.SetContentFormat(coap.LinkFormat)
	if req.Peer.Via == coap.Plain {
		g.receives.bound(req, resp, time.Now())
	}
	return resp, nil
}

// withAuthority adds to each group-membership resource the links to its
// Authorization Servers: the target is a token endpoint, the anchor the
// resource, relative to base
// (draft-tiloca-core-oscore-discovery).
func withAuthority(links []coap.WebLink, tokenURIs []string, base string) []coap.WebLink {
	var out []coap.WebLink
	for _, l := range links {
		out = append(out, l)
		if rt, _ := l.Attr("rt"); rt != "core.osc.gm" {
			continue
		}
		for _, uri := range tokenURIs {
			out = append(out, coap.WebLink{Target: uri, Attrs: []coap.LinkAttr{
				{Name: "rel", Value: "authorization-server"}, {Name: "anchor", Value: base + l.Target},
			}})
		}
	}
	return out
}

// registrar makes the room that keeps the groups registered at a Resource
// Directory; nil when none is configured. Only the membership resources are
// registered, with their Authorization Servers.
func (g *Gateway) registrar(groups groups) (*rd.Registrar, *outbound, error) {
	c := g.cfg.ResourceDirectory
	if c.URI == "" {
		return nil, nil, nil
	}
	client, path, err := newOutbound(c.URI, c.Identity, c.Key)
	if err != nil {
		return nil, nil, err
	}
	base := g.rdBase(c)
	uris := g.tokenEndpoints()
	r := rd.New(rd.Config{Path: path, Endpoint: c.Endpoint, Sector: c.D, Base: base, Lifetime: c.Lifetime}, rd.Deps{
		Client: client,
		Links: func(ctx context.Context) []coap.WebLink {
			return withAuthority(coap.FilterLinks(groups.Links(ctx), []string{"rt=core.osc.gm"}), uris, base)
		},
		Log: g.log.With("part", "rd"), Registerer: g.registry,
	})
	return r, client, nil
}

func (g *Gateway) rdBase(c config.ResourceDirectory) string {
	if c.Base != "" {
		return strings.TrimSuffix(c.Base, "/")
	}
	return ownBase(g.cfg.Listen.CoAPS)
}
