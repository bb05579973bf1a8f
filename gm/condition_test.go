package gm

import (
	"fmt"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// RFC 7252, Section 5.10.8: a request whose conditions do not hold does nothing; who
// may not make it is told that, and not whether they hold.
func TestConditions(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	a, b := f.member("a", "g1"), f.member("b", "g1")
	other := f.joiner("other", "g1", both)
	num := f.rekey("g1")
	now, old := versionTag(num), versionTag(num-1)
	group := []string{"ace-group", "g1"}
	match := func(tags ...[]byte) (o coap.Options) {
		for _, tag := range tags {
			o.Add(coap.IfMatch, tag)
		}
		return o
	}
	none := coap.Options{{ID: coap.IfNoneMatch}}
	gids := (&groupcomm.GidRequest{Gids: []groupcomm.Gid{{1}}}).Encode()
	for _, c := range []struct {
		name string
		code coap.Code
		path []string
		body []byte
		o    coap.Options
		want coap.Code
	}{
		{"group, this version", coap.GET, group, nil, match(now), coap.Content},
		{"group, the last and this", coap.GET, group, nil, match(old, now), coap.Content},
		{"group, exists", coap.GET, group, nil, match(nil), coap.Content},
		{"group, the last", coap.GET, group, nil, match(old), coap.PreconditionFailed},
		{"group, none", coap.GET, group, nil, none, coap.PreconditionFailed},
		{"num, this version", coap.GET, append(group, "num"), nil, match(now), coap.Content},
		{"num, the last", coap.GET, append(group, "num"), nil, match(old), coap.PreconditionFailed},
		{"policies have no tag", coap.GET, append(group, "policies"), nil, match(now), coap.PreconditionFailed},
		{"policies exist", coap.GET, append(group, "policies"), nil, match(nil), coap.Content},
		{"names of groups", coap.FETCH, []string{"ace-group"}, gids, none, coap.PreconditionFailed},
		{"a new Sender ID, the last version", coap.POST, a.Path, nil, match(old), coap.PreconditionFailed},
		{"a new Sender ID, none", coap.POST, a.Path, nil, none, coap.PreconditionFailed},
		{"another credential", coap.POST, append(a.Path, "cred"), nil, none, coap.PreconditionFailed},
		{"a join, none", coap.POST, group, nil, none, coap.PreconditionFailed},
		{"a join, the last version", coap.POST, group, nil, match(old), coap.PreconditionFailed},
		{"leave, the last version", coap.DELETE, a.Path, nil, match(old), coap.PreconditionFailed},
		{"leave, none", coap.DELETE, a.Path, nil, none, coap.PreconditionFailed},
		{"no such resource", coap.GET, append(group, "nowhere"), nil, none, coap.NotFound},
		{"no such method", coap.PUT, group, nil, none, coap.MethodNotAllowed},
		{"the node of another", coap.DELETE, b.Path, nil, none, coap.Forbidden},
		{"leave, this version", coap.DELETE, a.Path, nil, match(now), coap.Deleted},
	} {
		before := f.dump()
		req := a.Request(c.code, c.body, c.path...)
		for _, o := range c.o {
			req.Options.Add(o.ID, o.Value)
		}
		r := &coap.Response{}
		if got, err := f.m.ServeCoAP(t.Context(), req); err == nil {
			r = got
		} else {
			r = coap.ErrorResponse(err)
		}
		if r.Code != c.want {
			t.Errorf("%s: %v %q, want %v", c.name, r.Code, r.Payload, c.want)
		}
		if c.want == coap.PreconditionFailed && f.dump() != before {
			t.Errorf("%s: changed the state", c.name)
		}
	}
	// A stranger joins on conditions too, also where the state is guessed.
	for name, o := range map[string]coap.Options{"none": none, "the last version": match(old)} {
		req := other.Request(coap.POST, nil, group...)
		for _, x := range o {
			req.Options.Add(x.ID, x.Value)
		}
		_, err := f.m.ServeCoAP(t.Context(), req)
		if got := fmt.Sprint(coap.ErrorResponse(err).Code); err == nil || got != coap.PreconditionFailed.String() {
			t.Errorf("a join of a stranger, %s: %v", name, err)
		}
	}
}
