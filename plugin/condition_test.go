package plugin

import (
	"slices"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
)

// RFC 7252, Section 5.10.8, at what is the gateway's own. Groups are in TestConditions
// of gm.
func TestConditions(t *testing.T) {
	t.Parallel()
	g, _ := running(t, discoverable(t))
	ask := func(code coap.Code, path string, o coap.Options) *coap.Response {
		req := &coap.Request{Code: code, Options: slices.Clone(o), Peer: coap.Peer{Via: coap.DTLSPSK, Subject: coap.Subject{Kind: coap.SubjectPSK, ID: "somebody"}}}
		req.Options.SetPath(coap.PathOf(path)...)
		r, err := g.ServeCoAP(t.Context(), req)
		if err != nil {
			return coap.ErrorResponse(err)
		}
		return r
	}
	match := func(tag string) coap.Options { return coap.Options{{ID: coap.IfMatch, Value: []byte(tag)}} }
	none := coap.Options{{ID: coap.IfNoneMatch}}
	core := "/.well-known/core"
	inBlocks := string(g.server.ETag(ask(coap.GET, core, nil).Payload))
	for _, c := range []struct {
		name string
		code coap.Code
		path string
		o    coap.Options
		want coap.Code
	}{
		{"links, exist", coap.GET, core, match(""), coap.Content},
		{"links, the tag of their blocks", coap.GET, core, match(inBlocks), coap.Content},
		{"links, another tag", coap.GET, core, match("x"), coap.PreconditionFailed},
		{"links, none", coap.GET, core, none, coap.PreconditionFailed},
		{"links, PUT", coap.PUT, core, none, coap.PreconditionFailed},
		{"a token, none", coap.POST, "/authz-info", none, coap.PreconditionFailed},
		{"a token, a tag", coap.POST, "/authz-info", match("x"), coap.PreconditionFailed},
		{"a token, exists", coap.POST, "/authz-info", match(""), coap.BadRequest}, // it is empty
		{"to the token endpoint, none", coap.POST, "/token", none, coap.PreconditionFailed},
		{"introspection, a tag", coap.POST, "/introspect", match("x"), coap.PreconditionFailed},
		{"no such resource, none", coap.POST, "/nowhere", none, coap.NotFound},
		{"no such resource, a tag", coap.GET, "/nowhere", match("x"), coap.NotFound},
	} {
		if r := ask(c.code, c.path, c.o); r.Code != c.want {
			t.Errorf("%s: %v %q, want %v", c.name, r.Code, r.Payload, c.want)
		}
	}
}
