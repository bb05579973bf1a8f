package e2e

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/dtls12"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
)

// rawToken is a token for a public key of the node's own.
func (d *door) rawToken(key *cose.Key) *node.Access {
	d.t.Helper()
	a, err := node.RequestToken(soon(d.t), d.dial([]byte(d.client.Identity), d.client.Key.Bytes()), node.TokenRequest{
		Audience: d.client.Audience, Scope: groupcomm.Scope{{Group: group, Roles: both}}, Key: key,
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return a
}

func (d *door) dialRaw(a *node.Access) node.Transport {
	d.t.Helper()
	tr, err := node.DialRawKey(soon(d.t), d.coaps, a.PrivateKey, a.ServerKey)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = tr.Close() })
	return tr
}

func signKey(t testing.TB, alg int64) *cose.Key {
	t.Helper()
	k, err := cose.GenerateKey(alg)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// unwelcome wants a handshake to be refused because no token confirms the key.
func (d *door) unwelcome(a *node.Access) {
	d.t.Helper()
	_, err := node.DialRawKey(soon(d.t), d.coaps, a.PrivateKey, a.ServerKey)
	if alert, ok := errors.AsType[*dtls12.AlertError](err); !ok || !alert.Remote || alert.Alert != dtls12.CertificateUnknown {
		d.t.Errorf("want certificate_unknown: %v", err)
	}
}

// TestRawKeys: RFC 9202, Section 3.2: a node with a raw public key comes in by
// the token that confirms it, joins without another proof when its credential has
// the same key, and is rekeyed, revoked and kept out as any other.
func TestRawKeys(t *testing.T) {
	t.Parallel()
	for _, handshake := range []string{config.HandshakePion, config.HandshakeOwn} {
		t.Run(handshake, func(t *testing.T) {
			t.Parallel()
			g := serve(t, func(c *config.Config) { c.Endpoint.Handshake = handshake })
			key := signKey(t, cose.AlgEdDSA)
			a := g.rawToken(key)
			g.unwelcome(a) // its token is not there yet
			info := g.post(a)
			cfg := g.config(a)
			cfg.Transfer, cfg.Key, cfg.SameKey = info, key, true
			cfg.Redial = func(ctx context.Context) (node.Transport, error) {
				return node.DialRawKey(ctx, g.coaps, a.PrivateKey, a.ServerKey)
			}
			m := g.enter(a, cfg, g.dialRaw(a))
			if m.wire.tries != 1 {
				t.Errorf("%d join requests: the empty proof was not taken", m.wire.tries)
			}
			m.follow()
			other := g.join() // by a pre-shared key
			if len(other.state().Peers) != 1 || !other.state().Peers[0].Key.SamePublic(key) {
				t.Error("the others do not know its key")
			}
			if _, err := g.admin.Rekey(soon(t), group, ""); err != nil {
				t.Fatal(err)
			}
			m.reaches(1)

			// A P-256 key in the association, another in the credential: it proves
			// that one, and an empty proof is none.
			b := g.rawToken(signKey(t, cose.AlgES256))
			cfg = g.config(b)
			cfg.Transfer, cfg.Key, cfg.SameKey = g.post(b), signKey(t, cose.AlgEdDSA), true
			n := g.enter(b, cfg, g.dialRaw(b))
			if n.wire.tries != 2 {
				t.Errorf("%d join requests: an empty proof for another key", n.wire.tries)
			}

			// The wrong server is noticed before anything is said.
			wrong := *b
			wrong.ServerKey = signKey(t, cose.AlgES256)
			_, err := node.DialRawKey(soon(t), g.coaps, wrong.PrivateKey, wrong.ServerKey)
			if !errors.Is(err, dtls12.ErrUnknown) {
				t.Errorf("of another server: %v", err)
			}

			// Revoked: at once, and for new handshakes.
			tr := g.dialRaw(a)
			req := &coap.Request{Code: coap.GET}
			req.Options.SetPath("ace-group", group)
			if r, err := tr.Do(soon(t), req); err != nil || r.Code != coap.Content {
				t.Fatalf("%v, %v", r, err)
			}
			if _, err := g.admin.RevokeTokens(soon(t), []string{hex.EncodeToString(a.Token)}); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the token is worth nothing", func() bool {
				r, err := tr.Do(soon(t), req)
				return err != nil || r.Code == coap.Unauthorized
			})
			g.unwelcome(a)

			// The key of the gateway lasts, and so does an association.
			if err := g.stop(); err != nil {
				t.Fatal(err)
			}
			g.cfg.Listen.CoAPS = g.at.CoAPS
			g.start(t)
			if r, err := n.wire.Do(soon(t), req); err != nil || r.Code != coap.Content {
				t.Errorf("the association of before: %v, %v", r, err)
			}
			again := g.dialRaw(b)
			if r, err := again.Do(soon(t), req); err != nil || r.Code != coap.Content {
				t.Errorf("after a restart: %v, %v", r, err)
			}
		})
	}
}

// TestRawKeyProgram: the same by the commands of a user.
func TestRawKeyProgram(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.run()
	args := []string{"node", "join", "--once", "--config", s.config, "--client", s.client}
	says := func(c *child) {
		t.Helper()
		for _, part := range []string{"raw public key", "Proof of possession accepted"} {
			if !strings.Contains(c.out.String(), part) {
				t.Errorf("%q is missing:\n%s", part, &c.out)
			}
		}
	}
	says(run(t, 0, append(args, "--rpk")...))
	pemFile := filepath.Join(s.dir, "node.pem")
	der, err := x509.MarshalPKCS8PrivateKey(ecKey(t))
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, pemFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	says(run(t, 0, append(args, "--rpk-key-file", pemFile, "--name", "node-2")...))
	run(t, 2, append(args, "--rpk", "--oscore")...)

	// A token that the operator has made, for a node elsewhere.
	key := signKey(t, cose.AlgES256)
	spki, err := key.SPKI()
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, pemFile, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}))
	issued := run(t, 0, "token", "issue", "--config", s.config, "--scope", "sensors=requester", "--public-key-file", pemFile, "--json")
	var info admin.TokenInfo
	if err := json.Unmarshal([]byte(issued.out.String()), &info); err != nil || info.Key != "" {
		t.Fatalf("%s, %v", &issued.out, err)
	}
	token, err1 := hex.DecodeString(info.AccessToken)
	der, err2 := hex.DecodeString(info.ServerKey)
	server, err3 := cose.KeyFromSPKI(der)
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	d := s.door()
	a := &node.Access{Token: token, PrivateKey: key, ServerKey: server}
	d.post(a)
	req := &coap.Request{Code: coap.GET}
	req.Options.SetPath("ace-group", group)
	if r, err := d.dialRaw(a).Do(soon(t), req); err != nil || r.Code != coap.Forbidden { // no member yet
		t.Errorf("%+v, %v", r, err)
	}
}
