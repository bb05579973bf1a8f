//go:build interop

package interop

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
)

// rawGateway is a gateway with a group for a signature algorithm, and a client of
// another program with a token for its public key.
type rawGateway struct {
	*gateway
	key    *cose.Key
	signer crypto.Signer
	spki   []byte
	server []byte // what the gateway has to show
}

func newRawGateway(t *testing.T, alg int64, change ...func(*config.Config)) *rawGateway {
	t.Helper()
	cfg := config.Embedded()
	cfg.DataDir = filepath.Join(t.TempDir(), "data")
	const free = "127.0.0.1:0"
	cfg.Listen.CoAPS, cfg.Listen.CoAP, cfg.Listen.HTTP, cfg.Listen.MQTT = free, free, free, ""
	if alg == cose.AlgES256 {
		cfg.Groups[0].SignAlg, cfg.Groups[0].ECDHCurve = "ES256", "P-256"
	}
	for _, f := range change {
		f(cfg)
	}
	g := &rawGateway{gateway: &gateway{t: t, cfg: cfg}}
	g.run()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	g.key, err = cose.GenerateKey(alg)
	must(err)
	g.signer, err = g.key.PrivateKey()
	must(err)
	g.spki, err = g.key.SPKI()
	must(err)
	client, err := node.LoadClient(cfg.Path(node.ClientFile))
	must(err)
	as, err := node.DialDTLS(t.Context(), g.at.CoAPS, []byte(client.Identity), client.Key.Bytes())
	must(err)
	defer as.Close()
	a, err := node.RequestToken(t.Context(), as, node.TokenRequest{
		Audience: client.Audience, Key: g.key,
		Scope: groupcomm.Scope{{Group: "sensors", Roles: groupcomm.Requester | groupcomm.Responder}},
	})
	must(err)
	g.server, err = a.ServerKey.SPKI()
	must(err)
	plain, err := node.DialUDP(t.Context(), g.at.CoAP)
	must(err)
	defer plain.Close()
	_, err = node.PostToken(t.Context(), plain, a)
	must(err)
	return g
}

// joinRequest is one without proof: that is in the handshake.
func (g *rawGateway) joinRequest() []byte {
	nonce := make([]byte, 8)
	rand.Read(nonce)
	m := groupcomm.JoinRequest{
		Scope:      groupcomm.ScopeEntry{Group: "sensors", Roles: groupcomm.Requester | groupcomm.Responder}.Encode(),
		CNonce:     nonce,
		ClientCred: cose.EncodeCCS("peer", g.key.Public()), ClientCredVerify: []byte{},
	}
	return m.Encode()
}

// isMaterial wants a Join Response with keying material.
func isMaterial(body []byte) error {
	d, err := groupcomm.DecodeKeyDistribution(body)
	if err == nil && len(d.Key.MasterSecret) == 0 {
		err = errors.New("no keying material")
	}
	return err
}

// TestCaliforniumRawKey: Scandium's client with a raw public key, with connection
// IDs both ways, one way and none: it knows the gateway, is known by its token, and
// joins a group without another proof.
func TestCaliforniumRawKey(t *testing.T) {
	classes := californiumClasses(t)
	for name, c := range map[string]struct {
		alg int64
		cid string
	}{
		"P-256, no CID": {cose.AlgES256, "-1"}, "P-256, CID of the gateway": {cose.AlgES256, "0"},
		"P-256, CID of both": {cose.AlgES256, "6"}, "Ed25519, CID of both": {cose.AlgEdDSA, "6"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newRawGateway(t, c.alg)
			der, err := x509.MarshalPKCS8PrivateKey(g.signer)
			if err != nil {
				t.Fatal(err)
			}
			kind := "EC"
			if c.alg == cose.AlgEdDSA {
				kind = "Ed25519"
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			ask := func(private, public []byte, more ...string) ([]string, error) {
				args := append([]string{"-XX:TieredStopAtLevel=1", "-cp", classes, "RawKeyPeer", kind,
					hex.EncodeToString(private), hex.EncodeToString(public), hex.EncodeToString(g.server), c.cid}, more...)
				out, err := exec.CommandContext(ctx, "java", args...).Output()
				return strings.Split(strings.TrimSpace(string(out)), "\n"), err
			}
			uri := "coaps://" + g.at.CoAPS
			lines, err := ask(der, g.spki, "GET", uri+"/.well-known/core", "-",
				"POST", uri+"/ace-group/sensors", hex.EncodeToString(g.joinRequest()), "GET", uri+"/ace-group/sensors/num", "-")
			if err != nil || len(lines) != 3 {
				t.Fatalf("%q, %v", lines, err)
			}
			if code, links, _ := strings.Cut(lines[0], " "); code != "2.05" || len(links) == 0 {
				t.Errorf("%s", lines[0])
			}
			code, body, _ := strings.Cut(lines[1], " ")
			b, err := hex.DecodeString(body)
			if code != "2.01" || err != nil {
				t.Fatalf("join: %s", lines[1])
			}
			if err := isMaterial(b); err != nil {
				t.Error(err)
			}
			if lines[2] != "2.05 00" {
				t.Errorf("version: %s", lines[2])
			}
			// Another key, which no token confirms.
			other, err := cose.GenerateKey(c.alg)
			if err != nil {
				t.Fatal(err)
			}
			signer, err1 := other.PrivateKey()
			spki, err2 := other.SPKI()
			der, err3 := x509.MarshalPKCS8PrivateKey(signer)
			if err := errors.Join(err1, err2, err3); err != nil {
				t.Fatal(err)
			}
			if lines, err := ask(der, spki, "GET", uri+"/.well-known/core", "-"); err == nil {
				t.Errorf("a stranger is answered %q", lines)
			}
		})
	}
}

// TestGnuTLSRawKey: the client of GnuTLS with a raw public key: what it sends is a
// Join Request without another proof, and what comes back is keying material.
func TestGnuTLSRawKey(t *testing.T) {
	cli, err := exec.LookPath("gnutls-cli")
	if err != nil {
		t.Skip("gnutls-cli is not installed; .ci/run interop does it")
	}
	for name, c := range map[string]struct {
		alg             int64
		cipher, signing string
	}{
		"P-256, CCM_8":   {cose.AlgES256, "AES-128-CCM-8", "SIGN-ECDSA-SECP256R1-SHA256"},
		"P-256, CCM":     {cose.AlgES256, "AES-128-CCM", "SIGN-ECDSA-SHA256"},
		"P-256, GCM":     {cose.AlgES256, "AES-128-GCM", "SIGN-ECDSA-SHA256"},
		"Ed25519, CCM_8": {cose.AlgEdDSA, "AES-128-CCM-8", "SIGN-EDDSA-ED25519"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newRawGateway(t, c.alg)
			der, err := x509.MarshalPKCS8PrivateKey(g.signer)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			write := func(name, kind string, der []byte) string {
				file := filepath.Join(dir, name)
				if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
					t.Fatal(err)
				}
				return file
			}
			public, private := write("pub.pem", "PUBLIC KEY", g.spki), write("key.pem", "PRIVATE KEY", der)
			host, port, err := net.SplitHostPort(g.at.CoAPS)
			if err != nil {
				t.Fatal(err)
			}
			m := coap.Message{Type: coap.Confirmable, Code: coap.POST, ID: 1, Token: []byte{7}, Payload: g.joinRequest()}
			m.Options.SetPath("ace-group", "sensors")
			m.Options.SetContentFormat(coap.ACEGroupcomm)
			request, err := m.MarshalBinary()
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, cli, "--udp", "--port", port, "--insecure", "--no-ca-verification", "--logfile", os.DevNull,
				"--rawpkfile", public, "--rawpkkeyfile", private, "--priority",
				"NONE:+VERS-DTLS1.2:+"+c.cipher+":+AEAD:+ECDHE-ECDSA:+"+c.signing+":+SIGN-ECDSA-SHA256:+GROUP-X25519:+GROUP-SECP256R1:+CTYPE-CLI-RAWPK:+CTYPE-SRV-RAWPK:+COMP-NULL", host)
			// The answer comes with the acknowledgement: 2.01 with keying material.
			exchange(t, cmd, request, func(r *coap.Message) bool { return r.Code == coap.Created && isMaterial(r.Payload) == nil })
		})
	}
}
