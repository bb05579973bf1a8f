//go:build interop

package interop

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/rd"
	"github.com/seed4911071e/groupgate/test/ports"
)

// The registrar against the Resource Directory of aiocoap: groups are found by
// their resource type, the name of the group and that of an application group, with
// their Authorization Server; what changes is replaced, and what ends is gone
// (RFC 9176, Sections 4.3, 5, 5.3 and 6).
func TestResourceDirectory(t *testing.T) {
	py := python(t)
	port := strconv.Itoa(ports.Free(t))
	await(t, start(t, py, "testdata/aiocoap_rd.py", port), "ready")
	tr, err := node.DialUDP(t.Context(), "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()

	var links atomic.Pointer[[]coap.WebLink]
	group := func(name, app string) coap.WebLink {
		return coap.WebLink{Target: "/ace-group/" + name, Attrs: []coap.LinkAttr{
			{Name: "rt", Value: "core.osc.gm"}, {Name: "if", Value: "ace.group"}, {Name: "sec-gp", Value: name},
			{Name: "app-gp", Value: app}, {Name: "sign_alg", Value: "-8"},
		}}
	}
	server := coap.WebLink{Target: "coaps://as.example.com/token", Attrs: []coap.LinkAttr{
		{Name: "rel", Value: "authorization-server"}, {Name: "anchor", Value: "coaps://gm.example.com/ace-group/gp1"},
	}}
	links.Store(&[]coap.WebLink{group("gp1", "lights"), group("gp2", "fans"), server})
	r := rd.New(rd.Config{Endpoint: "gm1", Base: "coaps://gm.example.com", Lifetime: time.Hour}, rd.Deps{
		Client: tr,
		Links:  func(context.Context) []coap.WebLink { return *links.Load() },
	})
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- r.Run(ctx) }()
	defer cancel()

	lookup := func(query ...string) []string {
		t.Helper()
		req := &coap.Request{Code: coap.GET}
		req.Options.SetPath("resource-lookup", "")
		for _, q := range query {
			req.Options.AddString(coap.UriQuery, q)
		}
		resp, err := tr.Do(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if resp.Code == coap.NotFound {
			return nil
		}
		if resp.Code != coap.Content {
			t.Fatalf("lookup of %q: %v %s", query, resp.Code, resp.Payload)
		}
		found, err := coap.ParseLinks(resp.Payload)
		if err != nil {
			t.Fatalf("%v in %q", err, resp.Payload)
		}
		var targets []string
		for _, l := range found {
			targets = append(targets, l.Target)
		}
		slices.Sort(targets)
		return targets
	}
	wait := func(what string, want []string, query ...string) {
		t.Helper()
		late := time.After(patience / 2)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			got := lookup(query...)
			if slices.Equal(got, want) {
				return
			}
			select {
			case <-tick.C:
			case <-late:
				t.Fatalf("%s: %q, want %q", what, strings.Join(got, " "), want)
			}
		}
	}
	const gp1, gp2, gp3 = "coaps://gm.example.com/ace-group/gp1", "coaps://gm.example.com/ace-group/gp2", "coaps://gm.example.com/ace-group/gp3"
	wait("registered", []string{gp1, gp2}, "rt=core.osc.gm")
	wait("by group", []string{gp2}, "rt=core.osc.gm", "sec-gp=gp2")
	wait("by application group", []string{gp1}, "rt=core.osc.gm", "app-gp=lights")
	wait("its Authorization Server", []string{"coaps://as.example.com/token"}, "rel=authorization-server", "anchor="+gp1)

	links.Store(&[]coap.WebLink{group("gp1", "lights"), group("gp3", "lights")})
	r.Look()
	wait("replaced", []string{gp1, gp3}, "rt=core.osc.gm", "app-gp=lights")
	wait("gone", nil, "sec-gp=gp2")

	cancel()
	if err := <-over; err != nil {
		t.Error(err)
	}
	wait("removed", nil, "rt=core.osc.gm")
}
