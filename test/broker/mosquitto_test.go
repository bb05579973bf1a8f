//go:build interop

package broker

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
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
	"github.com/seed4911071e/groupgate/test/ports"
)

const (
	patience = 60 * time.Second
	memberID = "members" // the account that the members share
	password = "secret of the members"
)

// mosquitto is the broker of Debian, with TLS and client certificates for the
// gateway and a password for the members.
type mosquitto struct {
	t          *testing.T
	dir        string
	bin        string
	tls, plain string // addresses
	cmd        *exec.Cmd
}

func find(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range []string{"", "/usr/sbin/", "/usr/bin/"} {
		if path, err := exec.LookPath(dir + name); err == nil {
			return path
		}
	}
	t.Fatalf("%s is missing: install the Debian package mosquitto", name)
	return ""
}

func newMosquitto(t *testing.T) *mosquitto {
	t.Helper()
	m := &mosquitto{t: t, dir: t.TempDir(), bin: find(t, "mosquitto"), tls: ports.Addr(t), plain: ports.Addr(t)}
	m.certificates()
	m.write("passwords", "")
	for _, user := range []string{memberID, "sensor"} {
		if out, err := exec.Command(find(t, "mosquitto_passwd"), "-b", m.file("passwords"), user, password).CombinedOutput(); err != nil {
			t.Fatalf("mosquitto_passwd: %v: %s", err, out)
		}
	}
	port := func(addr string) string { _, p, _ := net.SplitHostPort(addr); return p }
	m.access("+")
	m.write("mosquitto.conf", fmt.Sprintf(`per_listener_settings true
user root
listener %[1]s 127.0.0.1
cafile %[3]s/ca.pem
certfile %[3]s/server.pem
keyfile %[3]s/server.key
require_certificate true
use_identity_as_username true
acl_file %[3]s/acl
listener %[2]s 127.0.0.1
allow_anonymous false
password_file %[3]s/passwords
acl_file %[3]s/acl
`, port(m.tls), port(m.plain), m.dir))
	m.start()
	t.Cleanup(m.kill)
	return m
}

// access writes who may do what (docs/mqtt.md). Members read messages of a key tree
// that are for nodes of these levels.
func (m *mosquitto) access(levels ...string) {
	m.t.Helper()
	acl := `user gateway
topic readwrite groupgate/+/rekey
topic readwrite groupgate/+/ack
topic readwrite groupgate/+/presence
topic readwrite groupgate/+/tree/+/+
topic read plant/#
user sensor
topic write plant/t7
user ` + memberID + `
topic read groupgate/+/rekey
topic write groupgate/+/ack
topic write groupgate/+/presence
`
	for _, l := range levels {
		acl += "topic read groupgate/+/tree/" + l + "/+\n"
	}
	m.write("acl", acl)
}

func (m *mosquitto) file(name string) string { return filepath.Join(m.dir, name) }

func (m *mosquitto) write(name, content string) {
	m.t.Helper()
	if err := os.WriteFile(m.file(name), []byte(content), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

func (m *mosquitto) start() {
	m.t.Helper()
	m.cmd = exec.Command(m.bin, "-c", m.file("mosquitto.conf"))
	log, err := os.OpenFile(m.file("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		m.t.Fatal(err)
	}
	defer log.Close()
	m.cmd.Stdout, m.cmd.Stderr = log, log
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	eventually(m.t, "mosquitto listens", func() bool {
		c, err := net.Dial("tcp", m.plain)
		if err != nil {
			return false
		}
		return c.Close() == nil
	})
}

// kill ends it without a word; what it retained is gone.
func (m *mosquitto) kill() {
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait()
}

func (m *mosquitto) log() string {
	b, _ := os.ReadFile(m.file("log"))
	return string(b)
}

// certificates makes an authority, and certificates for the broker and the
// gateway.
func (m *mosquitto) certificates() {
	m.t.Helper()
	newKey := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			m.t.Fatal(err)
		}
		return k
	}
	caKey := newKey()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	sign := func(name string, c *x509.Certificate, key *ecdsa.PrivateKey) {
		der, err := x509.CreateCertificate(rand.Reader, c, ca, key.Public(), caKey)
		if err != nil {
			m.t.Fatal(err)
		}
		m.write(name+".pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
		p8, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			m.t.Fatal(err)
		}
		m.write(name+".key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: p8})))
	}
	sign("ca", ca, caKey)
	for i, name := range []string{"server", "gateway"} {
		c := &x509.Certificate{
			SerialNumber: big.NewInt(int64(2 + i)), Subject: pkix.Name{CommonName: name}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		}
		sign(name, c, newKey())
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// gateway runs in this process, with the broker of others.
type gateway struct {
	t   *testing.T
	cfg *config.Config
	at  host.Addrs
	api *admin.Client

	asked atomic.Int64 // rekeys that members learned of because they asked
}

const group = "sensors"

func newGateway(t *testing.T, m *mosquitto, edits ...func(*config.Config)) *gateway {
	t.Helper()
	g := &gateway{t: t, cfg: config.Embedded()}
	c := g.cfg
	c.DataDir = filepath.Join(t.TempDir(), "data")
	c.Listen.CoAPS, c.Listen.CoAP, c.Listen.HTTP, c.Listen.MQTT = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", ""
	m.write("member.password", password+"\n")
	c.MQTT.Broker, c.MQTT.PublicURI = "mqtts://"+m.tls, "mqtt://"+m.plain
	c.MQTT.CAFile, c.MQTT.CertFile, c.MQTT.KeyFile = m.file("ca.pem"), m.file("gateway.pem"), m.file("gateway.key")
	c.MQTT.MemberUser, c.MQTT.MemberPasswordFile = memberID, m.file("member.password")
	for _, edit := range edits {
		edit(c)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, over := make(chan struct{}), make(chan error, 1)
	go func() {
		over <- host.Serve(ctx, c, slog.New(slog.DiscardHandler), func(_ *plugin.Gateway, at host.Addrs) { g.at = at; close(ready) })
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
	return g
}

// join takes a node to membership on MQTT and has it follow. stop ends that.
func (g *gateway) join(i int) (m *node.Member, stop func()) {
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
	m, err = node.New(node.Config{
		Group: group, Roles: groupcomm.Requester | groupcomm.Responder, Subject: fmt.Sprint("node-", i), MQTT: true, PollEvery: time.Hour,
		OnEvent: func(e node.Event) {
			if e.Kind == node.Rekeyed && e.Via == node.ViaPoll {
				g.asked.Add(1)
			}
		},
	}, tr)
	if err != nil {
		g.t.Fatal(err)
	}
	if err := m.Join(ctx); err != nil {
		g.t.Fatalf("join: %v", err)
	}
	following, end := context.WithCancel(context.Background())
	over := make(chan struct{})
	go func() { defer close(over); _ = m.Follow(following) }()
	stop = sync.OnceFunc(func() { end(); <-over; _ = m.Close() })
	g.t.Cleanup(stop)
	return m, stop
}

func (g *gateway) delivery(members bool) *admin.DeliveryInfo {
	g.t.Helper()
	d, err := g.api.Delivery(g.t.Context(), group, members)
	if err != nil {
		g.t.Fatal(err)
	}
	return d
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
func (g *gateway) observations() (n int) {
	g.t.Helper()
	r, err := http.Get("http://" + g.at.HTTP + "/metrics")
	if err != nil {
		g.t.Fatal(err)
	}
	defer r.Body.Close()
	for lines := bufio.NewScanner(r.Body); lines.Scan(); {
		if v, ok := strings.CutPrefix(lines.Text(), "groupgate_serve_observations "); ok {
			if n, err = strconv.Atoi(v); err != nil {
				g.t.Fatal(err)
			}
			return n
		}
	}
	g.t.Fatal("no count of observations")
	return 0
}

// TestMosquitto: members are rekeyed over mosquitto, which the gateway reaches by
// TLS with its certificate; the broker is killed in a rekey and comes back empty,
// and everybody gets the newest keys, over MQTT, and says so. The last will of a
// node tells that it is away.
func TestMosquitto(t *testing.T) {
	broker := newMosquitto(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of mosquitto:\n%s", broker.log())
		}
	})
	g := newGateway(t, broker)
	var members []*node.Member
	var stops []func()
	const n = 20
	for i := range n {
		m, stop := g.join(i)
		members, stops = append(members, m), append(stops, stop)
	}
	// Who is at the broker still observes its node resource, and no longer the group.
	settled := func() bool { return g.online() == n && g.observations() == n }
	eventually(t, "all are at the broker", settled)

	everybody := func(what string, version uint64) {
		t.Helper()
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("%s: %+v", what, g.delivery(true))
			}
		})
		eventually(t, what, func() bool {
			d := g.delivery(false)
			return d.Version == version && d.Delivered == n
		})
		for _, m := range members {
			if s, ok := m.State(); !ok || s.Version != version {
				t.Errorf("%s: a node holds version %d, want %d", what, s.Version, version)
			}
		}
	}
	// The nodes observe while they have no broker, and ask now and then: the first
	// confirmation wins, so most but not all of them come over MQTT.
	overMQTT := func(what string, since time.Time) {
		t.Helper()
		confirmed := 0
		for _, m := range g.delivery(true).Ledger {
			for _, c := range m.Channels {
				if c.Channel == "mqtt" && c.Result == "confirmed" && c.At.After(since) {
					confirmed++
				}
			}
		}
		if confirmed < n/2 {
			t.Errorf("%s: %d of %d members confirmed over MQTT", what, confirmed, n)
		}
	}
	since := time.Now()
	everybody("a first rekey", g.rekey())
	overMQTT("a first rekey", since)

	version := g.rekey()
	broker.kill()
	version = max(version, g.rekey()) // and one while it is away
	broker.start()
	everybody("after the broker was killed", version)
	eventually(t, "all are at the broker again", settled)
	since = time.Now()
	everybody("the next rekey", g.rekey())
	overMQTT("the next rekey", since)

	stops[0]()
	eventually(t, "one is away", func() bool { return g.online() == n-1 })
}
