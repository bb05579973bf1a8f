package plugin

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/proxy"
)

// TestProxyInHost: of the requests to a host's go-coap server the proxied ones and
// those that a rule leads elsewhere are ours, the rest stays the host's; without
// rules a host keeps its own proxy.
func TestProxyInHost(t *testing.T) {
	says := func(what string) func(context.Context, *coap.Request) (*coap.Response, error) {
		return func(_ context.Context, req *coap.Request) (*coap.Response, error) {
			return &coap.Response{Code: coap.Content, Payload: []byte(what + " /" + strings.Join(req.Path(), "/"))}, nil
		}
	}
	origin, _ := serveCoAP(t, "127.0.0.1:0", handles(says("origin")))
	at := netip.MustParseAddrPort(origin)
	via := config.ProxyVia{OpenToUDP: true, Timeout: 10 * time.Second, Parallel: 4, BlockSize: 1024}
	for _, active := range []bool{true, false} {
		c := config.Embedded()
		if active {
			c.Proxy.UDPRPS = 1000
			c.Proxy.Allow = []config.ProxyTarget{{Target: "coap://" + at.String(), ProxyVia: via}}
			c.Proxy.Hosts = []config.ProxyHost{{Name: "meter.example", Upstream: "coap://" + at.String(), ProxyVia: via}}
			c.Proxy.Reverse = []config.ProxyReverse{{Path: "/dev", Upstream: "coap://" + at.String() + "/v1", List: true, ProxyVia: via}}
		}
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		g, _ := running(t, c)
		addr, _ := serveCoAP(t, "127.0.0.1:0", g.Handler(handles(says("host"))))
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		tr, err := node.DialUDP(ctx, addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tr.Close() }()
		ask := func(opts ...coap.Option) string {
			t.Helper()
			req := &coap.Request{Code: coap.GET}
			for _, o := range opts {
				req.Options.Add(o.ID, o.Value)
			}
			r, err := tr.Do(ctx, req)
			if err != nil {
				t.Fatal(err)
			}
			return string(r.Payload)
		}
		path := func(s string) coap.Option { return coap.Option{ID: coap.UriPath, Value: []byte(s)} }
		uri := coap.Option{ID: coap.ProxyUri, Value: []byte("coap://" + at.String() + "/x")}
		name := coap.Option{ID: coap.UriHost, Value: []byte("meter.example")}
		for _, x := range []struct {
			opts          []coap.Option
			with, without string
		}{
			{[]coap.Option{path("own")}, "host /own", "host /own"},
			{[]coap.Option{uri}, "origin /x", "host /"},
			{[]coap.Option{name, path("y")}, "origin /y", "host /y"},
			{[]coap.Option{path("dev"), path("z")}, "origin /v1/z", "host /dev/z"},
			{[]coap.Option{path("device")}, "host /device", "host /device"},
		} {
			want := x.without
			if active {
				want = x.with
			}
			if got := ask(x.opts...); got != want {
				t.Errorf("rules: %v: %v gives %q, want %q", active, x.opts, got, want)
			}
		}
		if links := ask(path(".well-known"), path("core")); strings.Contains(links, "</dev>") != active {
			t.Errorf("rules: %v: %s", active, links)
		}
	}
}

// TestSockets: the proxy knows where the gateway itself listens.
func TestSockets(t *testing.T) {
	c := config.Embedded()
	c.Listen.MQTT = "localhost:1883"
	g, err := New(c, nil, WithListeners(map[string]string{"http": "127.0.0.1:4000"}))
	if err != nil {
		t.Fatal(err)
	}
	all := g.sockets()
	for _, want := range []proxy.Listener{
		{Scheme: "coap", Addr: netip.MustParseAddrPort("127.0.0.1:5683")}, {Scheme: "coaps", Addr: netip.MustParseAddrPort("127.0.0.1:5684")},
		{TCP: true, Addr: netip.MustParseAddrPort("127.0.0.1:4000")}, {TCP: true, Addr: netip.MustParseAddrPort("127.0.0.1:1883")},
	} {
		if !slices.Contains(all, want) {
			t.Errorf("%+v is not in %+v", want, all)
		}
	}
}
