package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
)

// TestDelegateRawKey: a legacy node is known by its raw public key, which no token
// confirms; that of another gets no handshake, and the key gives no other right.
func TestDelegateRawKey(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	at, _ := overhear(t)
	key := signKey(t, cose.AlgES256)
	spki, err := key.SPKI()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(spki)
	s.group = fmt.Sprintf("    network: {multicast: %q, leisure: 50ms, collect: 2s}\n", at)
	s.more = fmt.Sprintf("delegates:\n  - {name: meter, auth: {cert_sha256: %s}, groups: [{name: sensors, roles: [responder], resources: [{path: /t, methods: [GET]}]}]}\n",
		hex.EncodeToString(sum[:]))
	s.configure()
	s.run()
	d := s.door()
	as := d.dial([]byte(d.client.Identity), d.client.Key.Bytes())
	// What the gateway shows in handshakes is told with tokens for raw public keys.
	a, err := node.RequestToken(soon(t), as, node.TokenRequest{
		Audience: d.client.Audience, Scope: groupcomm.Scope{{Group: group, Roles: both}}, Key: signKey(t, cose.AlgES256),
	})
	if err != nil {
		t.Fatal(err)
	}
	tr, err := node.DialRawKey(soon(t), d.coaps, key, a.ServerKey)
	if err != nil {
		t.Fatal(err)
	}
	n := &plainNode{t: t, name: "meter"}
	n.use(tr)
	dg := s.delegated(1)[0]
	if got := s.speaker().ask(dg.Listen, nil, coap.GET, "/t", patience); got[*dg.SenderID] != "2.05 meter/t" {
		t.Errorf("by its raw public key: %v", got)
	}
	for path, want := range map[string]coap.Code{"/ace-group/sensors": coap.Unauthorized, "/token": coap.Unauthorized} {
		if r := n.ask(coap.POST, path); r.Code != want {
			t.Errorf("POST %s of a legacy node: %v", path, r.Code)
		}
	}
	if _, err := node.DialRawKey(soon(t), d.coaps, signKey(t, cose.AlgES256), a.ServerKey); err == nil {
		t.Error("a key that nobody knows is let in")
	}
}

// TestDelegateRenewal: with tokens of a few seconds the gateway stays the same member for
// its node: it renews them for the same key, before they end where the clock leaves time
// for that.
func TestDelegateRenewal(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"coaps", "coap"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			up := serve(t, func(c *config.Config) { c.AuthorizationServer.Policies[0].Lifetime = 3 * time.Second })
			client, err := node.LoadClient(up.cfg.Path(node.ClientFile))
			if err != nil {
				t.Fatal(err)
			}
			edge := serve(t, func(c *config.Config) {
				if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
					t.Fatal(err)
				}
				for name, key := range map[string][]byte{"up.key": client.Key.Bytes(), "meter.key": make([]byte, 16)} {
					if err := os.WriteFile(c.Path(name), []byte(hex.EncodeToString(key)), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				g := &c.Groups[0]
				g.GM = map[string]string{"coaps": "coaps://" + up.at.CoAPS, "coap": "coap://" + up.at.CoAP}[scheme]
				g.Upstream.AS, g.Upstream.Audience = "coaps://"+up.at.CoAPS+"/token", client.Audience
				g.Upstream.Identity, g.Upstream.KeyFile = client.Identity, "up.key"
				c.Delegates = []config.Delegate{{
					Name: "meter", Auth: config.DelegateAuth{PSKIdentity: "meter", PSKFile: "meter.key"}, Awake: time.Second, RPS: 10,
					Groups: []config.DelegateGroup{{Name: group, Roles: []string{"requester"}}},
				}}
			})
			var first admin.DelegateInfo
			look := func() admin.DelegateInfo {
				list, err := edge.admin.Delegates(soon(t))
				if err != nil || len(list) != 1 {
					t.Fatalf("%v, %v", list, err)
				}
				return list[0]
			}
			eventually(t, "the delegate joins", func() bool { first = look(); return first.State == "joined" })
			eventually(t, "the token is renewed twice", func() bool {
				d := look()
				if d.State == "joined" && (d.Node != first.Node || *d.SenderID != *first.SenderID) {
					t.Fatalf("another member: %+v, was %+v", d, first)
				}
				return d.State == "joined" && d.TokenEnds.Sub(*first.TokenEnds) > 4*time.Second
			})
		})
	}
}
