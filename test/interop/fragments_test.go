//go:build interop

package interop

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/record"
)

// piece is one fragment of a handshake message.
type piece struct {
	kind        byte // of the message
	seq, offset int
}

// piecesIn lists the fragments of messages that are in the records of a datagram
// that are not protected, without whole messages.
func piecesIn(b []byte) (out []piece) {
	for len(b) > 0 {
		r, rest, err := record.Next(b, 0)
		if err != nil || r.Type != record.Handshake || r.Epoch != 0 {
			return out
		}
		number := func(b []byte) int { return int(b[0])<<16 | int(b[1])<<8 | int(b[2]) }
		for m := r.Fragment; len(m) >= 12; m = m[12+min(number(m[9:]), len(m)-12):] {
			if number(m[1:]) != number(m[9:]) {
				out = append(out, piece{kind: m[0], seq: int(m[4])<<8 | int(m[5]), offset: number(m[6:])})
			}
		}
		b = rest
	}
	return out
}

// A trouble is what happens to the second fragment of the ClientHello that has the
// cookie.
type trouble string

const (
	none trouble = "in order"
	lost trouble = "one is lost"
	late trouble = "one comes late"
)

// narrow is a path from a client whose datagrams are small; cut counts the fragments
// of its messages, by type.
func narrow(t *testing.T, to string, what trouble) (addr string, cut *[256]atomic.Int64) {
	cut = new([256]atomic.Int64)
	n := newNAT(t, to)
	troubled, held := what == none, []byte(nil)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tap = func(b []byte) [][]byte {
		out := [][]byte{b}
		later := false
		for _, p := range piecesIn(b) {
			cut[p.kind].Add(1)
			later = later || p.kind == 1 && p.seq == 1 && p.offset > 0
		}
		if held != nil {
			out, held = append(out, held), nil
		}
		if !troubled && later {
			troubled, out = true, nil
			if what == late {
				held = bytes.Clone(b)
			}
		}
		return out
	}
	return n.addr(), cut
}

// TestFragments: clients whose datagrams are small send their ClientHellos, and
// what else they say in a handshake, in fragments, and come in, with a fragment
// lost or late too.
func TestFragments(t *testing.T) {
	dir := t.TempDir()
	certifiedWith(t, dir, func(c *x509.Certificate) {
		for i := range 40 { // 2 kB
			if c.Subject.CommonName == "node" {
				c.DNSNames = append(c.DNSNames, fmt.Sprintf("a-long-name-of-some-host-%d.example", i))
			}
		}
	}, "gateway", "node")
	file := func(name string) string { return filepath.Join(dir, name) }
	g := newRawGateway(t, cose.AlgES256, func(cfg *config.Config) {
		l := &cfg.Listen
		l.CoAPSCertFile, l.CoAPSKeyFile, l.CoAPSRootsFile = file("gateway.pem"), file("gateway.key"), file("ca.pem")
		for _, name := range []string{"a", "b"} { // their names make an access token long
			other := cfg.Groups[0]
			other.Name = strings.Repeat(name, 50)
			cfg.Groups = append(cfg.Groups, other)
			p := &cfg.AuthorizationServer.Policies[0]
			p.Scope = append(p.Scope, config.ScopeEntry{Group: other.Name, Roles: []string{"requester"}})
		}
	})
	client, err := node.LoadClient(g.cfg.Path(node.ClientFile))
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(g.signer)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]*pem.Block{"raw.pub": {Type: "PUBLIC KEY", Bytes: g.spki}, "raw.key": {Type: "PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(file(name), pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	key := hex.EncodeToString(client.Key.Bytes())
	openssl := func(addr, cipher string, more ...string) []string {
		return append([]string{"openssl", "s_client", "-dtls1_2", "-mtu", "256", "-connect", addr, "-cipher", cipher + ":@SECLEVEL=0", "-quiet"}, more...)
	}
	gnutls := func(addr, mtu, priority string, more ...string) []string {
		host, port, _ := net.SplitHostPort(addr) // of a socket
		return append([]string{"gnutls-cli", "--udp", "--mtu", mtu, "--port", port, "--logfile", os.DevNull, "--priority", priority}, append(more, host)...)
	}
	const wide = "NORMAL:-VERS-ALL:+VERS-DTLS1.2:-CIPHER-ALL:+AES-128-CCM-8:-KX-ALL:"
	// What makes the ClientHello of OpenSSL long: 40 protocols.
	var protocols []string
	for i := range 40 {
		protocols = append(protocols, fmt.Sprintf("protocol-number-%d", i))
	}
	alpn := strings.Join(protocols, ",")
	longIdentity, longKey := g.longIdentity()

	var served atomic.Int64
	t.Run("peers", func(t *testing.T) {
		for _, c := range []struct {
			name    string
			command func(addr string) []string
			cut     []byte // types of messages
		}{
			{"OpenSSL, PSK", func(addr string) []string {
				return openssl(addr, "PSK-AES128-CCM8", "-psk", key, "-psk_identity", client.Identity, "-alpn", alpn)
			}, []byte{1}},
			{"OpenSSL, access token as psk_identity", func(addr string) []string {
				return openssl(addr, "PSK-AES128-CCM8", "-psk", longKey, "-psk_identity", longIdentity, "-alpn", alpn)
			}, []byte{1, 16}},
			{"OpenSSL, certificate", func(addr string) []string {
				return openssl(addr, "ECDHE-ECDSA-AES128-CCM8", "-cert", file("node.pem"), "-key", file("node.key"), "-CAfile", file("ca.pem"),
					"-verify_return_error", "-verify_hostname", "gateway", "-alpn", alpn)
			}, []byte{1, 11}},
			{"GnuTLS, PSK", func(addr string) []string {
				return gnutls(addr, "120", wide+"+PSK", "--insecure", "--no-ca-verification", "--pskusername", client.Identity, "--pskkey", key)
			}, []byte{1}},
			{"GnuTLS, certificate", func(addr string) []string {
				return gnutls(addr, "120", wide+"+ECDHE-ECDSA", "--x509cafile", file("ca.pem"), "--x509certfile", file("node.pem"),
					"--x509keyfile", file("node.key"), "--verify-hostname", "gateway", "--sni-hostname", "gateway")
			}, []byte{1, 11}},
			{"GnuTLS, raw public key", func(addr string) []string {
				return gnutls(addr, "120", wide+"+ECDHE-ECDSA:-CTYPE-ALL:+CTYPE-CLI-RAWPK:+CTYPE-SRV-RAWPK", "--insecure", "--no-ca-verification",
					"--rawpkfile", file("raw.pub"), "--rawpkkeyfile", file("raw.key"))
			}, []byte{1}},
		} {
			for _, what := range []trouble{none, lost, late} {
				t.Run(fmt.Sprint(c.name, ", ", what), func(t *testing.T) {
					t.Parallel()
					addr, cut := narrow(t, g.at.CoAPS, what)
					args := c.command(addr)
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					defer cancel()
					exchange(t, exec.CommandContext(ctx, commandOf(t, args[0]), args[1:]...), wellKnownCore(t), func(r *coap.Message) bool {
						return r.Code == coap.Content && bytes.Contains(r.Payload, []byte("/ace-group"))
					})
					for _, kind := range c.cut {
						if cut[kind].Load() < 2 {
							t.Errorf("no message of type %d came in fragments", kind)
						}
					}
					served.Add(1)
				})
			}
		}
		for _, what := range []trouble{none, lost} {
			t.Run(fmt.Sprint("Scandium, raw public key, ", what), func(t *testing.T) {
				classes := californiumClasses(t)
				t.Parallel()
				addr, cut := narrow(t, g.at.CoAPS, what)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				out, err := exec.CommandContext(ctx, "java", "-XX:TieredStopAtLevel=1", "-Dmtu=150", "-cp", classes, "RawKeyPeer", "EC",
					hex.EncodeToString(der), hex.EncodeToString(g.spki), hex.EncodeToString(g.server), "6", "GET", "coaps://"+addr+"/.well-known/core", "-").Output()
				if err != nil || !strings.HasPrefix(string(out), "2.05 ") {
					t.Fatalf("%s, %v", out, err)
				}
				if cut[1].Load() < 2 {
					t.Error("no ClientHello came in fragments")
				}
				served.Add(1)
			})
		}
	})
	if n := int64(g.gathered()); n < served.Load() {
		t.Errorf("the endpoint gathered %d ClientHellos of %d clients", n, served.Load())
	}
}

// longIdentity is a psk_identity that is an access token as it is (RFC 9202, Section
// 3.3.1), and its key.
func (g *rawGateway) longIdentity() (identity, key string) {
	g.t.Helper()
	client, err := node.LoadClient(g.cfg.Path(node.ClientFile))
	if err != nil {
		g.t.Fatal(err)
	}
	as, err := node.DialDTLS(g.t.Context(), g.at.CoAPS, []byte(client.Identity), client.Key.Bytes())
	if err != nil {
		g.t.Fatal(err)
	}
	defer as.Close()
	var scope groupcomm.Scope
	for _, group := range g.cfg.Groups {
		scope = append(scope, groupcomm.ScopeEntry{Group: group.Name, Roles: groupcomm.Requester})
	}
	for {
		a, err := node.RequestToken(g.t.Context(), as, node.TokenRequest{
			Audience: client.Audience, Scope: scope,
		})
		if err != nil {
			g.t.Fatal(err)
		}
		if bytes.IndexByte(a.Token, 0) < 0 { // it goes by a command line
			return string(a.Token), hex.EncodeToString(a.Key.Bytes())
		}
	}
}

var gatheredHellos = regexp.MustCompile(`(?m)^groupgate_endpoint_fragmented_hellos_total\{listener="coaps",result="whole"\} (\d+)`)

// gathered is how many ClientHellos came in fragments and became whole.
func (g *gateway) gathered() int {
	g.t.Helper()
	r, err := http.Get("http://" + g.at.HTTP + "/metrics")
	if err != nil {
		g.t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	m := gatheredHellos.FindSubmatch(b)
	if m == nil {
		return 0
	}
	n, err := strconv.Atoi(string(m[1]))
	if err != nil {
		g.t.Fatal(err)
	}
	return n
}
