//go:build interop

package broker

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/seed4911071e/groupgate/test/certs"
	"github.com/seed4911071e/groupgate/test/ports"
)

const (
	patience = 60 * time.Second
	memberID = "members" // the account that the members share
	sensorID = "sensor"
	adminID  = "gateway"
	password = "secret of the members"
)

// product is a broker program, set up as docs/mqtt.md tells.
type product struct {
	name string
	// configure writes the configuration. It is called again, while the server is
	// stopped, when the rules change.
	configure func(s *server, rules []rule)
	command   func(s *server) *exec.Cmd

	oneDoor  bool // TLS for all: no listener of its own for members
	mapped   bool // and all show certificates, which tell who they are
	password bool // the gateway has a password and no certificate
	keeps    bool // what is retained outlives a kill
	refuses  bool // a subscription to what may not be read, and not only the messages
	literal  bool // what is retained comes to subscriptions without wildcards only
}

// products are what the scenarios run over.
var products = []product{mosquitto, nats, natsMapped, hivemq, rabbitmq}

// each runs a scenario with every broker that is installed.
func each(t *testing.T, scenario func(t *testing.T, s *server)) {
	t.Parallel()
	for _, p := range products {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			scenario(t, newServer(t, p))
		})
	}
}

// rule lets a user read or write topics: an access rule of docs/mqtt.md.
type rule struct{ user, may, filter string }

// rules are those of docs/mqtt.md, for members and the gateway, with the topics of the
// sensor. Members read messages of a key tree that are for nodes of these levels.
func rules(levels ...string) []rule {
	out := []rule{{adminID, "read", "plant/#"}, {sensorID, "write", "plant/t7"}}
	for _, topic := range []string{"+/rekey", "+/ack", "+/presence", "+/tree/+/+"} {
		out = append(out, rule{adminID, "readwrite", "groupgate/" + topic})
	}
	for _, r := range [][2]string{{"read", "+/rekey"}, {"write", "+/ack"}, {"write", "+/presence"}} {
		out = append(out, rule{memberID, r[0], "groupgate/" + r[1]})
	}
	for _, l := range levels {
		out = append(out, rule{memberID, "read", "groupgate/+/tree/" + l + "/+"})
	}
	return out
}

// server is a broker of others that runs: with TLS, a client certificate for the
// gateway where the product can tell clients with one from those without, and a
// password for the members.
type server struct {
	t          *testing.T
	product    product
	dir        string
	ca         *certs.Authority // of the broker and its users
	tls, plain string           // addresses of the listeners
	members    *relay           // the way of the members to theirs
	cmd        *exec.Cmd
}

func newServer(t *testing.T, p product) *server {
	t.Helper()
	s := &server{t: t, product: p, dir: t.TempDir(), ca: certs.New(t), tls: ports.Addr(t)}
	s.plain = s.tls
	if !p.oneDoor {
		s.plain = ports.Addr(t)
	}
	s.ca.WriteRoots(s.dir)
	for _, name := range []string{"server", adminID, memberID, sensorID} {
		s.ca.WritePair(s.dir, name)
	}
	s.write("member.password", password+"\n")
	p.configure(s, rules("+"))
	s.members = newRelay(t, s.plain)
	s.start()
	t.Cleanup(func() {
		s.kill()
		if t.Failed() {
			b, _ := os.ReadFile(s.file("log"))
			t.Logf("log of %s:\n%s", p.name, b[max(0, len(b)-20_000):])
		}
	})
	return s
}

// gatewayURI and memberURI are where each connects.
func (s *server) gatewayURI() string { return "mqtts://" + s.tls }

func (s *server) memberURI() string {
	if s.product.oneDoor {
		return "mqtts://" + s.members.addr()
	}
	return "mqtt://" + s.members.addr()
}

// clientTLS is what a client with the certificate of that name uses; "": one without.
func (s *server) clientTLS(name string) *tls.Config {
	s.t.Helper()
	c := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: s.ca.Pool()}
	if name == "" {
		return c
	}
	cert, err := tls.LoadX509KeyPair(s.file(name+".pem"), s.file(name+".key"))
	if err != nil {
		s.t.Fatal(err)
	}
	c.Certificates = []tls.Certificate{cert}
	return c
}

// sessions counts clients, so that none takes over the session of another.
var sessions atomic.Int64

// client connects to the broker as one of its users.
func (s *server) client(user string) paho.Client {
	s.t.Helper()
	o := paho.NewClientOptions().SetClientID(fmt.Sprint("test-", sessions.Add(1))).SetProtocolVersion(4).SetAutoReconnect(false).SetConnectTimeout(patience)
	door, certificate := s.gatewayURI(), ""
	if s.product.mapped || user == adminID && !s.product.password {
		certificate = user
	} else if !s.product.oneDoor {
		door = "mqtt://" + s.plain
	}
	o.AddBroker(door).SetTLSConfig(s.clientTLS(certificate))
	if user != adminID || s.product.password {
		o.SetUsername(user).SetPassword(password)
	}
	c := paho.NewClient(o)
	if tok := c.Connect(); !tok.WaitTimeout(patience) || tok.Error() != nil {
		s.t.Fatalf("%s at the broker: %v", user, tok.Error())
	}
	return c
}

func (s *server) file(name string) string { return filepath.Join(s.dir, name) }

func (s *server) read(name string) string {
	s.t.Helper()
	b, err := os.ReadFile(s.file(name))
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}

func (s *server) write(name, content string) {
	s.t.Helper()
	if err := os.WriteFile(s.file(name), []byte(content), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) start() {
	s.t.Helper()
	s.cmd = s.product.command(s)
	log, err := os.OpenFile(s.file("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	for _, addr := range []string{s.tls, s.plain} {
		eventually(s.t, s.product.name+" listens", func() bool {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				return false
			}
			return c.Close() == nil
		})
	}
}

// kill ends it without a word.
func (s *server) kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

func port(addr string) string { _, p, _ := net.SplitHostPort(addr); return p }

// program is a command that the environment names, as the CI steps do.
func program(t *testing.T, variable string) string {
	t.Helper()
	path := os.Getenv(variable)
	if path == "" {
		t.Skipf("%s is not set; .ci/run brokers sets it", variable)
	}
	return path
}

func find(t *testing.T, name, pkg string) string {
	t.Helper()
	for _, dir := range []string{"", "/usr/sbin/", "/usr/bin/"} {
		if path, err := exec.LookPath(dir + name); err == nil {
			return path
		}
	}
	t.Fatalf("%s is missing: install the Debian package %s", name, pkg)
	return ""
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}
