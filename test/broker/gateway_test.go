//go:build interop

package broker

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/plugin"
	"github.com/seed4911071e/groupgate/plugin/host"
)

// gateway runs in this process, with the broker of others.
type gateway struct {
	t      *testing.T
	server *server
	cfg    *config.Config
	at     host.Addrs
	api    *admin.Client

	asked atomic.Int64 // rekeys that members learned of because they asked
}

const group = "sensors"

func newGateway(t *testing.T, s *server, edits ...func(*config.Config)) *gateway {
	t.Helper()
	g := &gateway{t: t, server: s, cfg: config.Embedded()}
	c := g.cfg
	c.DataDir = filepath.Join(t.TempDir(), "data")
	c.Listen.CoAPS, c.Listen.CoAP, c.Listen.HTTP, c.Listen.MQTT = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", ""
	c.MQTT.Broker, c.MQTT.PublicURI, c.MQTT.CAFile = s.gatewayURI(), s.memberURI(), s.file("ca.pem")
	if s.product.password {
		c.MQTT.User, c.MQTT.PasswordFile = adminID, s.file("member.password")
	} else {
		c.MQTT.CertFile, c.MQTT.KeyFile = s.file(adminID+".pem"), s.file(adminID+".key")
	}
	c.MQTT.MemberUser, c.MQTT.MemberPasswordFile = memberID, s.file("member.password")
	for _, edit := range edits {
		edit(c)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, over := make(chan struct{}), make(chan error, 1)
	go func() {
		over <- host.Serve(ctx, c, slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})), func(_ *plugin.Gateway, at host.Addrs) { g.at = at; close(ready) })
	}()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-over; err != nil {
			t.Errorf("the gateway ended: %v", err)
		}
	})
	select {
	case <-ready:
		t.Cleanup(stop)
	case err := <-over:
		t.Fatalf("the gateway does not start: %v", err)
	}
	g.api = admin.NewClient(g.at.HTTP, string(c.AdminToken.Bytes()))
	// What members say at the moment of its subscriptions, NATS may never pass on.
	eventually(t, "the gateway is at the broker", func() bool { return g.metric("groupgate_bridge_broker_connected") == 1 })
	return g
}

// join takes a node to membership on MQTT and has it follow. stop ends that.
func (g *gateway) join(i int) (m *node.Member, stop func()) {
	g.t.Helper()
	m = g.admit(i)
	return m, g.wake(m)
}

// wake has a member follow. stop ends that.
func (g *gateway) wake(m *node.Member) (stop func()) {
	following, end := context.WithCancel(context.Background())
	over := make(chan struct{})
	go func() { defer close(over); _ = m.Follow(following) }()
	stop = sync.OnceFunc(func() { end(); <-over; _ = m.Close() })
	g.t.Cleanup(stop)
	return stop
}

// admit takes a node to membership, which sleeps then.
func (g *gateway) admit(i int) *node.Member {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), patience)
	defer cancel()
	token, err := g.api.IssueToken(ctx, admin.TokenAsk{
		Audience: g.cfg.Tokens[0].Audience, Lifetime: "1h", Scope: []admin.ScopeEntry{{Group: group, Roles: []string{"requester", "responder"}}},
	})
	if err != nil {
		g.t.Fatal(err)
	}
	conveyed, _ := hex.DecodeString(token.AccessToken)
	psk, _ := hex.DecodeString(token.Key)
	tr, err := node.DialDTLS(ctx, g.at.CoAPS, conveyed, psk)
	if err != nil {
		g.t.Fatal(err)
	}
	certificate := ""
	if g.server.product.mapped {
		certificate = memberID
	}
	m, err := node.New(node.Config{
		Group: group, Roles: groupcomm.Requester | groupcomm.Responder, Subject: fmt.Sprint("node-", i), MQTT: true, PollEvery: time.Hour,
		BrokerTLS: g.server.clientTLS(certificate),
		OnEvent: func(e node.Event) {
			if e.Kind == node.Rekeyed && e.Via == node.ViaPoll {
				g.asked.Add(1)
			}
		},
	}, tr)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = m.Close() })
	if err := m.Join(ctx); err != nil {
		g.t.Fatalf("join: %v", err)
	}
	return m
}

func (g *gateway) delivery(members bool) *admin.DeliveryInfo {
	g.t.Helper()
	d, err := g.api.Delivery(context.WithoutCancel(g.t.Context()), group, members) // also when the test failed
	if err != nil {
		g.t.Fatal(err)
	}
	return d
}

// delivered waits until n members confirmed a version, and no newer one came.
func (g *gateway) delivered(what string, version uint64, n int) {
	g.t.Helper()
	g.t.Cleanup(func() {
		if g.t.Failed() {
			b, _ := json.Marshal(g.delivery(true))
			g.t.Logf("%s: %s", what, b)
		}
	})
	eventually(g.t, what, func() bool {
		d := g.delivery(false)
		return d.Version == version && d.Delivered == n
	})
}

func (g *gateway) rekey() uint64 {
	g.t.Helper()
	r, err := g.api.Rekey(g.t.Context(), group, "test")
	if err != nil {
		g.t.Fatal(err)
	}
	return r.Version
}

// online tells how many members have a session at the broker.
func (g *gateway) online() (n int) {
	for _, m := range g.delivery(true).Ledger {
		if m.Connected != nil && *m.Connected {
			n++
		}
	}
	return n
}

// observations tells how many there are.
func (g *gateway) observations() int {
	g.t.Helper()
	return g.metric("groupgate_serve_observations")
}

// metric reads one that has no labels.
func (g *gateway) metric(name string) int {
	g.t.Helper()
	r, err := http.Get("http://" + g.at.HTTP + "/metrics")
	if err != nil {
		g.t.Fatal(err)
	}
	defer r.Body.Close()
	for lines := bufio.NewScanner(r.Body); lines.Scan(); {
		if v, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			n, err := strconv.Atoi(v)
			if err != nil {
				g.t.Fatal(err)
			}
			return n
		}
	}
	g.t.Fatalf("no metric %s", name)
	return 0
}
