//go:build interop

package interop

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/test/ports"
)

// embedded is a gateway on ports of the system.
func embedded(t *testing.T) *gateway {
	t.Helper()
	g := &gateway{t: t, cfg: config.Embedded()}
	g.cfg.DataDir = t.TempDir()
	l := &g.cfg.Listen
	l.CoAPS, l.CoAP, l.HTTP, l.MQTT = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	g.cfg.Groups[0].Rekey.BatchWindow = 0
	return g
}

func (g *gateway) admin() *admin.Client {
	return admin.NewClient(g.at.HTTP, string(g.cfg.AdminToken.Bytes()))
}

// delegates waits until all are joined with a version.
func (g *gateway) delegates(n int, version uint64) []admin.DelegateInfo {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), groupPatience)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		list, err := g.admin().Delegates(ctx)
		if err != nil {
			g.t.Fatal(err)
		}
		ready := 0
		for _, d := range list {
			if d.State == "joined" && d.Version == version {
				ready++
			}
		}
		if ready == n {
			return list
		}
		<-tick.C
	}
}

// legacyNode is plain CoAP in DTLS; it answers with its name and what it was sent.
func legacyNode(t *testing.T, at, name string, key []byte) node.Transport {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), groupPatience)
	defer cancel()
	tr, err := node.DialDTLS(ctx, at, []byte(name), key)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tr.Close() })
	tr.(node.Taker).Take(func(req *coap.Request) *coap.Response {
		return &coap.Response{Code: coap.Changed, Payload: append([]byte(name+", "), req.Payload...)}
	})
	hello := &coap.Request{Code: coap.GET}
	hello.Options.SetPath("gw", "groups")
	if _, err := tr.Do(ctx, hello); err != nil {
		t.Fatal(err)
	}
	return tr
}

// TestAiocoapDelegates: three legacy nodes and two independent members of aiocoap in one
// group, of the gateway's own Group Manager and of another gateway's: requests and
// responses in both directions and both modes, before and after a rekey.
func TestAiocoapDelegates(t *testing.T) {
	python(t)
	for _, where := range []string{"local", "upstream"} {
		t.Run(where, func(t *testing.T) {
			multicast := netip.AddrPortFrom(netip.MustParseAddr("224.0.1.187"), uint16(ports.Free(t)))
			edge := embedded(t)
			gm := edge
			group := &edge.cfg.Groups[0]
			group.Network.Multicast, group.Network.Leisure, group.Network.Collect = multicast.String(), time.Millisecond, 3*time.Second
			if where == "upstream" {
				gm = embedded(t)
				gm.run()
				client, err := node.LoadClient(gm.cfg.Path(node.ClientFile))
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(edge.cfg.Path("up.key"), []byte(hex.EncodeToString(client.Key.Bytes())), 0o600); err != nil {
					t.Fatal(err)
				}
				group.GM = "coaps://" + gm.at.CoAPS
				group.Upstream.AS, group.Upstream.Audience = "coaps://"+gm.at.CoAPS+"/token", client.Audience
				group.Upstream.Identity, group.Upstream.KeyFile = client.Identity, "up.key"
			}
			keys := map[string][]byte{}
			for i := range 3 {
				name := fmt.Sprintf("meter-%d", i)
				keys[name] = make([]byte, 16)
				rand.Read(keys[name])
				if err := os.WriteFile(edge.cfg.Path(name+".key"), []byte(hex.EncodeToString(keys[name])), 0o600); err != nil {
					t.Fatal(err)
				}
				resource := func(path string) config.Resource { return config.Resource{Path: path, Methods: []string{"POST"}} }
				edge.cfg.Delegates = append(edge.cfg.Delegates, config.Delegate{
					Name: name, Auth: config.DelegateAuth{PSKIdentity: name, PSKFile: name + ".key"}, Awake: time.Minute, Hold: time.Second, RPS: 1000,
					Groups: []config.DelegateGroup{{
						Name: "sensors", Roles: []string{"requester", "responder"}, SendPath: "/g",
						Resources: []config.Resource{resource("/group"), resource("/pairwise")},
					}},
				})
			}
			edge.run()
			edge.delegates(3, 0)
			nodes := map[string]node.Transport{}
			for name, key := range keys {
				nodes[name] = legacyNode(t, edge.at.CoAPS, name, key)
			}
			exchangeAiocoap(t, edge, gm, nodes, multicast, 0)
			if _, err := gm.admin().Rekey(t.Context(), "sensors", "test"); err != nil {
				t.Fatal(err)
			}
			exchangeAiocoap(t, edge, gm, nodes, multicast, 1)
		})
	}
}

func exchangeAiocoap(t *testing.T, edge, gm *gateway, nodes map[string]node.Transport, multicast netip.AddrPort, version uint64) {
	t.Helper()
	// Members whose sequence numbers begin at 0, as aiocoap's do here.
	server, client := joinGroup(t, gm.at, gm.cfg, "server"), joinGroup(t, gm.at, gm.cfg, "client")
	list := edge.delegates(3, version)
	targets := []map[string]any{}
	for _, d := range list {
		port := netip.MustParseAddrPort(d.Listen).Port()
		targets = append(targets, map[string]any{"to": *d.SenderID, "ports": map[string]uint16{"group": port, "pairwise": port}})
	}
	asks := startGroupPeer(t, "client", client, map[string]any{"targets": targets})
	for _, d := range list {
		for _, mode := range []string{"group", "pairwise"} {
			for _, path := range []string{"group", "pairwise"} {
				var got struct{ Request, Path, Response, Payload string }
				asks.tells(t, &got)
				if want := d.Delegate + ", by " + mode; got.Request != mode || got.Path != path || got.Response != mode || got.Payload != want {
					t.Errorf("%s asked by aiocoap in %s mode: %+v", d.Delegate, mode, got)
				}
			}
		}
	}
	answers := startGroupPeer(t, "server", server, map[string]any{"multicast": multicast.Addr().String(), "multicast_port": multicast.Port()})
	var ready struct{ Port uint16 }
	answers.tells(t, &ready)
	for _, d := range list {
		for _, mode := range []string{"group", "pairwise"} {
			req := &coap.Request{Code: coap.POST, Payload: []byte("from " + d.Delegate)}
			if mode == "group" {
				req.Options.SetPath("g", "server") // which no legacy node has; answered in pairwise mode
			} else { // it was heard there by now; answered in group mode
				req.Options.Add(coap.ProxyUri, fmt.Appendf(nil, "coap://127.0.0.1:%d/group", ready.Port))
			}
			ctx, cancel := context.WithTimeout(t.Context(), groupPatience)
			r, err := nodes[d.Delegate].Do(ctx, req)
			cancel()
			if err != nil {
				t.Fatal(err)
			}
			if want := strings.Join([]string{mode, *d.SenderID, "from " + d.Delegate}, " "); r.Code != coap.Changed || string(r.Payload) != want {
				t.Errorf("aiocoap answers %s in %s mode: %v %q", d.Delegate, mode, r.Code, r.Payload)
			}
		}
	}
}
