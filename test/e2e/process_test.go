package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/test/ports"
)

// output collects what a program writes.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// child is a started program.
type child struct {
	t    *testing.T
	name string
	cmd  *exec.Cmd
	out  output // standard output
	err  output // standard error
	over chan struct{}
}

// start runs the gateway program with args.
func start(t *testing.T, args ...string) *child {
	t.Helper()
	name, err := program()
	if err != nil {
		t.Fatal(err)
	}
	c := &child{t: t, name: strings.Join(args, " "), over: make(chan struct{})}
	c.cmd = exec.Command(name, args...)
	c.cmd.Stdout, c.cmd.Stderr = &c.out, &c.err
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(c.over)
		_ = c.cmd.Wait() // the status is in ProcessState
	}()
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill()
		<-c.over
		if t.Failed() {
			t.Logf("gateway %s\n--- stdout\n%s--- stderr\n%s", c.name, &c.out, &c.err)
		}
	})
	return c
}

// running says whether the program still runs.
func (c *child) running() bool {
	select {
	case <-c.over:
		return false
	default:
		return true
	}
}

// says waits for a line of standard output that matches and returns its
// submatches.
func (c *child) says(pattern string) []string {
	c.t.Helper()
	re := regexp.MustCompile("(?m)" + pattern)
	var m []string
	eventually(c.t, fmt.Sprintf("gateway %s says %q", c.name, pattern), func() bool {
		ended := !c.running() // before the look: what it said last counts
		m = re.FindStringSubmatch(c.out.String())
		if m == nil && ended {
			c.t.Fatalf("gateway %s ended without saying %q:\n%s%s", c.name, pattern, &c.out, &c.err)
		}
		return m != nil
	})
	return m
}

// signal sends sig and waits for the end; it returns the exit status.
func (c *child) signal(sig syscall.Signal) int {
	c.t.Helper()
	if err := c.cmd.Process.Signal(sig); err != nil {
		c.t.Fatal(err)
	}
	return c.wait()
}

func (c *child) wait() int {
	c.t.Helper()
	eventually(c.t, "end of gateway "+c.name, func() bool { return !c.running() })
	return c.cmd.ProcessState.ExitCode()
}

// run runs the program to its end and wants the exit status.
func run(t *testing.T, status int, args ...string) *child {
	t.Helper()
	c := start(t, args...)
	if got := c.wait(); got != status {
		t.Fatalf("gateway %s: exit status %d, want %d\n%s%s", c.name, got, status, &c.out, &c.err)
	}
	return c
}

// site is the folder of one gateway: a configuration, the credential of an AS
// client, and the data folder.
type site struct {
	t      *testing.T
	dir    string
	config string
	client string
	at     map[string]string
	group  string // more lines about the group, for the configuration
	scheme string // more about its rekeys
	more   string // more sections
	may    string // more of what the client may
}

const anyPort = "127.0.0.1:0"

// newSite writes a configuration with ports that are the same in all lives.
func newSite(t *testing.T) *site {
	t.Helper()
	dir := t.TempDir()
	key := make([]byte, 16)
	rand.Read(key)
	s := &site{t: t, dir: dir, config: filepath.Join(dir, "gateway.yaml"), client: filepath.Join(dir, "client.json")}
	s.at = map[string]string{"coaps": ports.Addr(t), "coap": ports.Addr(t), "http": ports.Addr(t), "mqtt": ports.Addr(t)}
	s.write("client.key", hex.EncodeToString(key)+"\n")
	if err := node.SaveClient(s.client, node.Client{Identity: "clientA", Key: cose.NewSecret(key), Audience: "rs"}); err != nil {
		t.Fatal(err)
	}
	s.configure()
	return s
}

func (s *site) write(name, content string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(content), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) configure() {
	s.t.Helper()
	s.write("gateway.yaml", fmt.Sprintf(`data_dir: %[1]s/data
listen: {coaps: %[2]q, coap: %[3]q, http: %[4]q, mqtt: %[5]q}
tokens:
  - {issuer: as1, audience: rs, symmetric_key_file: as.key}
psk:
  - {identity: clientA, key_file: %[1]s/client.key, may: [token%[9]s]}
authorization_server:
  issuer: as1
  policies:
    - {client: clientA, audience: rs, scope: [{group: sensors, roles: [requester, responder]}], lifetime: 24h}
groups:
  - name: sensors
    rekey: {batch_window: 50ms%[8]s}
%[6]s%[7]s`, s.dir, s.at["coaps"], s.at["coap"], s.at["http"], s.at["mqtt"], s.group, s.more, s.scheme, s.may))
}

// run starts the gateway and waits until it serves.
func (s *site) run() *child {
	s.t.Helper()
	c := start(s.t, "run", "--config", s.config)
	c.says(`is ready, data in (.*)$`)
	c.says(`^Next, in another terminal:\n.+\n`)
	for name := range s.at {
		s.at[name] = c.says(`^  ` + name + ` +(127\.0\.0\.1:\d+) `)[1]
	}
	s.configure()
	return c
}

// join plays a node that stays; it tells its steps as JSON.
func (s *site) join(name string, flags ...string) *player {
	s.t.Helper()
	args := append([]string{"node", "join", "--config", s.config, "--client", s.client, "--name", name, "--json"}, flags...)
	p := &player{child: start(s.t, args...)}
	p.joined = p.event(func(e step) bool { return e.Event == "joined" })
	return p
}

// player is a simulated node.
type player struct {
	*child
	joined step
}

// step is one line of a node's story.
type step struct {
	Event    string  `json:"event"`
	NodeName string  `json:"node_name"`
	SenderID *string `json:"sender_id"`
	Gid      string  `json:"gid"`
	Version  *uint64 `json:"version"`
	Via      string  `json:"via"`
	Error    string  `json:"error"`
	Addr     string  `json:"addr"`
	Mode     string  `json:"mode"`
	Code     string  `json:"code"`
	Payload  string  `json:"payload"`
}

func (p *player) steps() []step {
	var out []step
	for line := range strings.Lines(p.out.String()) {
		var e step
		if strings.HasSuffix(line, "\n") && json.Unmarshal([]byte(line), &e) == nil {
			out = append(out, e)
		}
	}
	return out
}

// event waits for a step.
func (p *player) event(want func(step) bool) (found step) {
	p.t.Helper()
	eventually(p.t, "a step of "+p.name, func() bool {
		ended := !p.running()
		for _, e := range p.steps() {
			if want(e) {
				found = e
				return true
			}
		}
		if ended {
			p.t.Fatalf("gateway %s ended:\n%s%s", p.name, &p.out, &p.err)
		}
		return false
	})
	return found
}

// holds waits until the node says that it has a version.
func (p *player) holds(version uint64) step {
	p.t.Helper()
	return p.event(func(e step) bool {
		return (e.Event == "rekeyed" || e.Event == "joined") && *e.Version == version
	})
}

// show asks the gateway for a group.
func (s *site) show() *admin.GroupInfo {
	s.t.Helper()
	c := run(s.t, 0, "group", "show", "sensors", "--json", "--config", s.config)
	return decode[admin.GroupInfo](s.t, c.out.String())
}

func decode[T any](t *testing.T, text string) *T {
	t.Helper()
	v := new(T)
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return v
}

// shown waits until the gateway shows the group as wanted.
func (s *site) shown(what string, want func(*admin.GroupInfo) bool) *admin.GroupInfo {
	s.t.Helper()
	var g *admin.GroupInfo
	eventually(s.t, what, func() bool {
		g = s.show()
		return want(g)
	})
	return g
}

func row(g *admin.GroupInfo, node string) *admin.MemberInfo {
	for i := range g.Members {
		if g.Members[i].Node == node {
			return &g.Members[i]
		}
	}
	return nil
}

func (s *site) rekey() uint64 {
	s.t.Helper()
	c := run(s.t, 0, "group", "rekey", "sensors", "--json", "--config", s.config)
	return decode[admin.RekeyResult](s.t, c.out.String()).Version
}

var errShape = errors.New("other members than expected")

// keysOf checks that a JSON object has exactly these members.
func keysOf(raw json.RawMessage, want ...string) (map[string]json.RawMessage, error) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, err
	}
	for _, k := range want {
		if _, ok := m[k]; !ok {
			return nil, fmt.Errorf("%w: %q is missing in %s", errShape, k, raw)
		}
	}
	if len(m) != len(want) {
		return nil, fmt.Errorf("%w: %d instead of %d in %s", errShape, len(m), len(want), raw)
	}
	return m, nil
}
