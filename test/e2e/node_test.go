package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/pion/dtls/v3"
	dtlsnet "github.com/pion/dtls/v3/pkg/net"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/plugin"
	"github.com/seed4911071e/groupgate/plugin/host"
)

const (
	group = "sensors"
	both  = groupcomm.Requester | groupcomm.Responder
)

// door is a gateway as nodes see it.
type door struct {
	t           testing.TB
	coap, coaps string
	client      node.Client
}

// door opens the site's gateway to nodes in this process.
func (s *site) door() *door {
	s.t.Helper()
	c, err := node.LoadClient(s.client)
	if err != nil {
		s.t.Fatal(err)
	}
	return &door{t: s.t, coap: s.at["coap"], coaps: s.at["coaps"], client: c}
}

// soon is a context for one step.
func soon(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// token asks the embedded Authorization Server.
func (d *door) token() *node.Access {
	d.t.Helper()
	tr := d.dial([]byte(d.client.Identity), d.client.Key.Bytes())
	a, err := node.RequestToken(soon(d.t), tr, node.TokenRequest{
		Audience: d.client.Audience, Scope: groupcomm.Scope{{Group: group, Roles: both}},
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return a
}

// dial opens DTLS.
func (d *door) dial(identity, psk []byte) node.Transport {
	d.t.Helper()
	tr, err := node.DialDTLS(soon(d.t), d.coaps, identity, psk)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = tr.Close() })
	return tr
}

// plain opens CoAP without protection.
func (d *door) plain() node.Transport {
	d.t.Helper()
	tr, err := node.DialUDP(soon(d.t), d.coap)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = tr.Close() })
	return tr
}

// post transfers a token over plain CoAP.
func (d *door) post(a *node.Access) *groupcomm.TokenTransferResponse {
	d.t.Helper()
	r, err := node.PostToken(soon(d.t), d.plain(), a)
	if err != nil {
		d.t.Fatal(err)
	}
	return r
}

// as opens DTLS with the key of a posted token.
func (d *door) as(a *node.Access) node.Transport {
	d.t.Helper()
	return d.dial(a.Identity(), a.Key.Bytes())
}

// member is a node of this process with what it holds.
type member struct {
	*node.Member
	t      testing.TB
	d      *door
	access *node.Access
	wire   *wire
	ways   *ways
}

// wire is a transport whose join answers are kept.
type wire struct {
	node.Transport
	mu    sync.Mutex
	joins []*groupcomm.KeyDistribution
	tries int // join requests, refused ones too

	ways *ways // what is given of a key tree is kept there; nil: nowhere

	heard func(*coap.Response) // told of what observations bring; nil: nobody
}

func (w *wire) Do(ctx context.Context, req *coap.Request) (*coap.Response, error) {
	resp, err := w.Transport.Do(ctx, req)
	if err == nil {
		w.ways.hear(resp)
	}
	if req.Code != coap.POST || len(req.Path()) != 2 {
		return resp, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tries++
	if err == nil && resp.Code.IsSuccess() {
		if k, err := groupcomm.DecodeKeyDistribution(resp.Payload); err == nil {
			w.joins = append(w.joins, k)
		}
	}
	return resp, err
}

// Observe hears what is given in notifications.
func (w *wire) Observe(ctx context.Context, req *coap.Request, fn func(*coap.Response)) (func(context.Context) error, error) {
	return w.Transport.Observe(ctx, req, func(r *coap.Response) {
		w.ways.hear(r)
		if w.heard != nil {
			w.heard(r)
		}
		fn(r)
	})
}

// Done keeps the transport's own notice of its end.
func (w *wire) Done() <-chan struct{} { return w.Transport.(node.Doner).Done() }

// Take keeps the transport's way for requests of the gateway.
func (w *wire) Take(fn func(*coap.Request) *coap.Response) { w.Transport.(node.Taker).Take(fn) }

// ExportEmptyContext keeps the transport's exporter.
func (w *wire) ExportEmptyContext(label string, n int) ([]byte, error) {
	return w.Transport.(interface {
		ExportEmptyContext(string, int) ([]byte, error)
	}).ExportEmptyContext(label, n)
}

// config is what a node of this process joins with.
func (d *door) config(a *node.Access) node.Config {
	return node.Config{
		Group: group, Roles: both, WantCreds: true,
		Redial: func(ctx context.Context) (node.Transport, error) {
			return node.DialDTLS(ctx, d.coaps, a.Identity(), a.Key.Bytes())
		},
	}
}

// join takes a node all the way from token to membership.
func (d *door) join(edit ...func(*node.Config)) *member {
	d.t.Helper()
	a := d.token()
	cfg := d.config(a)
	cfg.Transfer = d.post(a)
	for _, e := range edit {
		e(&cfg)
	}
	return d.enter(a, cfg, d.as(a))
}

// enter joins over an association.
func (d *door) enter(a *node.Access, cfg node.Config, tr node.Transport) *member {
	d.t.Helper()
	heard := &ways{}
	w := &wire{Transport: tr, ways: heard}
	if dial := cfg.Redial; dial != nil {
		cfg.Redial = func(ctx context.Context) (node.Transport, error) {
			tr, err := dial(ctx)
			if err != nil || !cfg.MQTT {
				return tr, err
			}
			return &wire{Transport: tr, ways: heard}, nil
		}
	}
	m, err := node.New(cfg, w)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = m.Close() })
	if err := m.Join(soon(d.t)); err != nil {
		d.t.Fatalf("join: %v", err)
	}
	return &member{Member: m, t: d.t, d: d, access: a, wire: w, ways: heard}
}

func viaMQTT(c *node.Config) { c.MQTT = true }

// state is the membership, which must be there.
func (m *member) state() node.State {
	m.t.Helper()
	s, ok := m.State()
	if !ok {
		m.t.Fatal("no membership")
	}
	return s
}

// follow keeps the node awake until the test ends or stop is called.
func (m *member) follow() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan struct{})
	go func() {
		defer close(over)
		_ = m.Follow(ctx) // ends with ctx or the membership
	}()
	stop = func() { cancel(); <-over }
	m.t.Cleanup(stop)
	return stop
}

// reaches waits until the node holds a version.
func (m *member) reaches(v groupcomm.Version) {
	m.t.Helper()
	eventually(m.t, "the newest version is installed", func() bool {
		s, ok := m.State()
		return ok && s.Version == v && s.Installed
	})
}

// gateway runs in the test's process.
type gateway struct {
	*door
	cfg   *config.Config
	at    host.Addrs
	admin *admin.Client
	log   *output
	stop  func() error
	opts  []plugin.Option
}

// serve starts a gateway on ports of the system.
func serve(t testing.TB, edit ...func(*config.Config)) *gateway {
	t.Helper()
	g := &gateway{cfg: config.Embedded(), log: &output{}}
	g.cfg.DataDir = filepath.Join(t.TempDir(), "data")
	l := &g.cfg.Listen
	l.CoAPS, l.CoAP, l.HTTP, l.MQTT = anyPort, anyPort, anyPort, anyPort
	g.cfg.Groups[0].Rekey.BatchWindow = 0
	for _, e := range edit {
		e(g.cfg)
	}
	g.start(t)
	return g
}

// start starts it, again too. A port of the life before may be busy for a moment: a
// process that another test is starting has what is open here until it is another
// program.
func (g *gateway) start(t testing.TB) {
	t.Helper()
	var err error
	eventually(t, "the ports of the gateway are free", func() bool {
		err = g.launch()
		return !errors.Is(err, syscall.EADDRINUSE)
	})
	if err != nil {
		t.Fatalf("the gateway does not start: %v", err)
	}
	t.Cleanup(func() {
		if err := g.stop(); err != nil {
			t.Errorf("the gateway ended: %v", err)
		}
		if t.Failed() {
			t.Logf("log of the gateway:\n%s", g.log)
		}
	})
	client, err := node.LoadClient(g.cfg.Path(node.ClientFile))
	if err != nil {
		t.Fatal(err)
	}
	g.door = &door{t: t, coap: g.at.CoAP, coaps: g.at.CoAPS, client: client}
	g.admin = admin.NewClient(g.at.HTTP, string(g.cfg.AdminToken.Bytes()))
}

// launch returns when it is ready, or what ended it.
func (g *gateway) launch() error {
	log := slog.New(slog.NewTextHandler(g.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	ctx, cancel := context.WithCancel(context.Background())
	ready := make(chan struct{})
	over := make(chan struct{})
	var failed error
	go func() {
		defer close(over)
		failed = host.Serve(ctx, g.cfg, log, func(_ *plugin.Gateway, at host.Addrs) {
			g.at = at
			close(ready)
		}, g.opts...)
	}()
	g.stop = sync.OnceValue(func() error { cancel(); <-over; return failed })
	select {
	case <-ready:
		return nil
	case <-over:
		cancel()
		return failed
	}
}

// show asks the admin API for the group.
func (g *gateway) show() *admin.GroupInfo {
	g.t.Helper()
	info, err := g.admin.Group(soon(g.t), group)
	if err != nil {
		g.t.Fatal(err)
	}
	return info
}

// picture is the group without the times at which members were heard.
func (g *gateway) picture() string {
	g.t.Helper()
	info := g.show()
	for i := range info.Members {
		info.Members[i].LastHeard = nil
	}
	b, err := json.Marshal(info)
	if err != nil {
		g.t.Fatal(err)
	}
	return string(bytes.TrimSpace(b))
}

func (g *gateway) rekey() groupcomm.Version {
	g.t.Helper()
	r, err := g.admin.Rekey(soon(g.t), group, "test")
	if err != nil {
		g.t.Fatal(err)
	}
	return r.Version
}

// ask sends one request.
func ask(t testing.TB, tr node.Transport, code coap.Code, path []string, format coap.Format, payload []byte) *coap.Response {
	t.Helper()
	req := &coap.Request{Code: code, Payload: payload}
	req.Options.SetPath(path...)
	if payload != nil {
		req.Options.SetContentFormat(format)
	}
	resp, err := tr.Do(soon(t), req)
	if err != nil {
		t.Fatalf("%v %v: %v", code, path, err)
	}
	return resp
}

// udp opens a raw socket to an address.
// inside opens a bare association of pion's, with the key of a token that was posted.
func (d *door) inside(a *node.Access) *dtls.Conn {
	d.t.Helper()
	raw := udp(d.t, d.coaps)
	c, err := dtls.ClientWithOptions(dtlsnet.PacketConnFromConn(raw.(*net.UDPConn)), raw.RemoteAddr(),
		dtls.WithPSK(func([]byte) ([]byte, error) { return a.Key.Bytes(), nil }),
		dtls.WithPSKIdentityHint(a.Identity()),
		dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_CCM_8))
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = c.Close() })
	if err := c.HandshakeContext(soon(d.t)); err != nil {
		d.t.Fatal(err)
	}
	return c
}

func udp(t testing.TB, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}
