package plugin

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	dtls "github.com/pion/dtls/v3"
	coapdtls "github.com/plgd-dev/go-coap/v3/dtls"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/message/pool"
	"github.com/plgd-dev/go-coap/v3/mux"
	coapnet "github.com/plgd-dev/go-coap/v3/net"
	"github.com/plgd-dev/go-coap/v3/options"
	"github.com/plgd-dev/go-coap/v3/udp"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/rd/rdtest"
	"github.com/seed4911071e/groupgate/test/ports"
)

// handles makes a function of ours a handler of a stock go-coap server. An
// error is no answer at all.
func handles(do func(context.Context, *coap.Request) (*coap.Response, error)) mux.Handler {
	return mux.HandlerFunc(func(w mux.ResponseWriter, r *mux.Message) {
		m, err := fromPool(r.Message)
		if err != nil {
			return
		}
		resp, err := do(r.Context(), &coap.Request{Code: m.Code, Options: m.Options, Payload: m.Payload})
		if err != nil {
			w.SetMessage(pool.NewMessage(r.Context()))
			return
		}
		_ = w.SetResponse(codes.Code(resp.Code), message.TextPlain, bytes.NewReader(resp.Payload))
		fill(w.Message(), &coap.Message{Code: resp.Code, Options: resp.Options, Payload: resp.Payload})
	})
}

// stopper has serve run until the test ends or stop is called, once or more.
func stopper(t *testing.T, serve func() error, end func(), closed func() error) (stop func()) {
	over := make(chan struct{})
	go func() { defer close(over); _ = serve() }()
	stop = sync.OnceFunc(func() {
		end()
		_ = closed()
		<-over
	})
	t.Cleanup(stop)
	return stop
}

// serveCoAP serves h over plain UDP and returns the address.
func serveCoAP(t *testing.T, addr string, h mux.Handler) (at string, stop func()) {
	t.Helper()
	l, err := coapnet.NewListenUDP("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := udp.NewServer(options.WithMux(h), options.WithErrors(func(error) {}))
	return l.LocalAddr().String(), stopper(t, func() error { return s.Serve(l) }, s.Stop, l.Close)
}

// serveCoAPS serves h over DTLS to one peer with a pre-shared key.
func serveCoAPS(t *testing.T, addr, identity string, key []byte, h mux.Handler) (at string, stop func()) {
	t.Helper()
	psk := func(id []byte) ([]byte, error) {
		if string(id) != identity {
			return nil, errors.New("unknown identity")
		}
		return key, nil
	}
	l, err := coapnet.NewDTLSListener("udp", addr, coapnet.NewDTLSServerOptions(dtls.WithPSK(psk), dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_CCM_8)))
	if err != nil {
		t.Fatal(err)
	}
	s := coapdtls.NewServer(options.WithMux(h), options.WithErrors(func(error) {}))
	return l.Addr().String(), stopper(t, func() error { return s.Serve(l) }, s.Stop, l.Close)
}

// running starts a gateway without sockets of its own; stop waits for its end.
func running(t *testing.T, c *config.Config) (g *Gateway, stop func()) {
	t.Helper()
	c.DataDir = filepath.Join(t.TempDir(), "data")
	c.Listen.HTTP, c.Listen.MQTT, c.Listen.CoAP = "", "", ""
	g = gatewayOf(t, c)
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- g.Run(ctx) }()
	select {
	case <-g.Ready():
	case err := <-over:
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cancel()
			if err := <-over; err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(stop)
	return g, stop
}

func discoverable(t *testing.T) *config.Config {
	t.Helper()
	c := config.Embedded()
	c.Listen.CoAPS = "192.0.2.1:5684"
	c.Groups[0].AppGroups = []string{"lights", "floor 1"}
	hidden := config.DefaultGroup()
	hidden.Name, hidden.List = "hidden", false
	c.Groups = append(c.Groups, hidden)
	return c
}

// RFC 6690, Section 4.1, and draft-tiloca-core-oscore-discovery: what can be
// discovered at the gateway itself.
func TestWellKnown(t *testing.T) {
	t.Parallel()
	c := discoverable(t)
	c.Tokens[0].ASURI = "coaps://as.example.com/token"
	g, _ := running(t, c)
	find := func(queries ...string) (coap.Code, string) {
		req := &coap.Request{Code: coap.GET}
		req.Options.SetPath(".well-known", "core")
		for _, q := range queries {
			req.Options.AddString(coap.UriQuery, q)
		}
		resp, err := g.ServeCoAP(t.Context(), req)
		if err != nil {
			resp = coap.ErrorResponse(err)
		}
		return resp.Code, string(resp.Payload)
	}
	const (
		root  = `</ace-group>;ct=261;if="ace.groups"`
		group = `</ace-group/sensors>;ct=261;rt="core.osc.gm";if="ace.group";obs;sec-gp="sensors";app-gp="lights";app-gp="floor 1";` +
			`hkdf=5;cred_fmt=14;gp_enc_alg=10;sign_alg="-8";sign_alg_crv=6;alg=10;ecdh_alg="-27";ecdh_alg_crv=4`
		as = `<coaps://as.example.com/token>;rel="authorization-server";anchor="/ace-group/sensors",` +
			`<coaps://192.0.2.1:5684/token>;rel="authorization-server";anchor="/ace-group/sensors"`
	)
	for query, want := range map[string]string{
		"":                      root + "," + group + "," + as,
		"rt=core.osc.gm":        group,
		"rt=core.osc.*":         group,
		"if=ace.groups":         root,
		"if=ace.group*":         root + "," + group,
		"sec-gp=sensors":        group,
		"sec-gp=sens*":          group,
		"sec-gp=hidden":         "",
		"app-gp=floor 1":        group,
		"app-gp=lights&ct=261":  group,
		"app-gp=doors":          "",
		"sign_alg=-8":           group,
		"cs_alg=-8":             group, // as it was called before
		"sign_enc_alg=11":       "",
		"href=/ace-group":       root,
		"obs":                   group,
		"rel=authorization-*":   as,
		"anchor=/ace-group/s*":  as,
		"anchor=/ace-group/hid": "",
	} {
		var queries []string
		if query != "" {
			queries = strings.Split(query, "&")
		}
		if code, got := find(queries...); code != coap.Content || got != want {
			t.Errorf("%q: %v\n%s\nwant\n%s", query, code, got, want)
		}
	}
}

// RFC 9176, against a directory behind a stock go-coap server: the groups are
// found there while the gateway runs, with their Authorization Server.
func TestResourceDirectory(t *testing.T) {
	t.Parallel()
	dir := &rdtest.Directory{}
	key := []byte("0123456789abcdef")
	plain, _ := serveCoAP(t, "127.0.0.1:0", handles(dir.Do))
	secure, _ := serveCoAPS(t, "127.0.0.1:0", "gm1", key, handles(dir.Do))
	for name, rd := range map[string]config.ResourceDirectory{
		"coap, found":  {URI: "coap://" + plain},
		"coaps, named": {URI: "coaps://" + secure + "/rd", Identity: "gm1", Key: cose.NewSecret(key)},
	} {
		c := discoverable(t)
		rd.Endpoint, rd.D, rd.Lifetime = "gm1", "site", time.Hour
		c.ResourceDirectory = rd
		if rd.Identity != "" {
			c.ResourceDirectory.KeyFile = keyFile(t, key)
		}
		g, stop := running(t, c)
		eventually(t, name+": registered", func() bool { return dir.Lookup("ep=gm1", "d=site") != "" })
		if got := dir.Lookup("rt=core.osc.gm", "app-gp=lights"); !strings.HasPrefix(got, "<coaps://192.0.2.1:5684/ace-group/sensors>;ct=261;") {
			t.Errorf("%s: %s", name, got)
		}
		as := `<coaps://192.0.2.1:5684/token>;rel="authorization-server";anchor="coaps://192.0.2.1:5684/ace-group/sensors"`
		if got := dir.Lookup("rel=authorization-server", "anchor=coaps://192.0.2.1:5684/ace-group/sensors"); got != as {
			t.Errorf("%s: %s", name, got)
		}
		if got := dir.Lookup(); strings.Contains(got, "hidden") || strings.Contains(got, "ace.groups") {
			t.Errorf("%s: %s", name, got)
		}
		_ = g
		stop()
		if got := dir.Lookup(); got != "" {
			t.Errorf("%s: after the end: %s", name, got)
		}
	}
}

// A directory that is away, and one that forgot its associations, keep the
// gateway from nothing.
func TestResourceDirectoryAway(t *testing.T) {
	t.Parallel()
	dir := &rdtest.Directory{}
	at, stopDir := serveCoAP(t, ports.Addr(t), handles(dir.Do))
	stopDir()
	c := discoverable(t)
	c.ResourceDirectory = config.ResourceDirectory{URI: "coap://" + at + "/rd", Endpoint: "gm1", Lifetime: time.Hour}
	g, stop := running(t, c) // it is ready all the same
	defer stop()
	serveCoAP(t, at, handles(dir.Do))
	eventually(t, "registered", func() bool { return dir.Lookup("ep=gm1") != "" })
	_ = g
}
