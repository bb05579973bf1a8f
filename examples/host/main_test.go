package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/store"
	"github.com/seed4911071e/groupgate/test/ports"
)

const patience = 30 * time.Second

// eventually looks again and again until what should come true does.
func eventually(t *testing.T, what string, look func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(patience)
	defer late.Stop()
	for !look() {
		select {
		case <-tick.C:
		case <-late.C:
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// TestReadme: the lines between the marks are few, and those of README.md.
func TestReadme(t *testing.T) {
	source, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(source), "// -- groupgate begins --\n")
	block, _, found := strings.Cut(rest, "\t// -- groupgate ends --")
	if !found {
		t.Fatal("main.go lacks the marks")
	}
	block = strings.TrimPrefix(strings.ReplaceAll(block, "\n\t", "\n"), "\t")
	if n := strings.Count(block, "\n"); n > 15 {
		t.Errorf("%d lines to mount the gateway, 15 are promised", n)
	}
	readme, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(readme), "```go\n"+block+"```\n") {
		t.Errorf("README.md does not show these lines:\n%s", block)
	}
}

// example is the running program.
type example struct {
	t    *testing.T
	addr string
	dir  string
	http string
}

var operator = peers{"operator": []byte("0123456789abcdef")}

func start(t *testing.T) *example {
	t.Helper()
	e := &example{t: t, dir: filepath.Join(t.TempDir(), "data"), http: ports.Addr(t)} // it takes no listeners
	ctx, cancel := context.WithCancel(context.Background())
	bound, over := make(chan string, 1), make(chan error, 1)
	go func() {
		over <- run(ctx, config.Listen{CoAPS: "127.0.0.1:0", HTTP: e.http, MQTT: "127.0.0.1:0"}, e.dir, operator.psk,
			func(addr string) { bound <- addr })
	}()
	select {
	case e.addr = <-bound:
	case err := <-over:
		t.Fatalf("run: %v", err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-over; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	if err := admin.NewClient(e.http, "").WaitReady(e.soon()); err != nil {
		t.Fatal(err)
	}
	return e
}

func (e *example) soon() context.Context {
	ctx, cancel := context.WithTimeout(e.t.Context(), patience)
	e.t.Cleanup(cancel)
	return ctx
}

func (e *example) dial(identity, psk []byte) node.Transport {
	e.t.Helper()
	tr, err := node.DialDTLS(e.soon(), e.addr, identity, psk)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { _ = tr.Close() })
	return tr
}

func (e *example) get(tr node.Transport, path ...string) *coap.Response {
	e.t.Helper()
	req := &coap.Request{Code: coap.GET}
	req.Options.SetPath(path...)
	resp, err := tr.Do(e.soon(), req)
	if err != nil {
		e.t.Fatalf("GET %v: %v", path, err)
	}
	return resp
}

// access is a token of the gateway's Authorization Server.
func (e *example) access() *node.Access {
	e.t.Helper()
	client, err := node.LoadClient(filepath.Join(e.dir, node.ClientFile))
	if err != nil {
		e.t.Fatal(err)
	}
	a, err := node.RequestToken(e.soon(), e.dial([]byte(client.Identity), client.Key.Bytes()), node.TokenRequest{
		Audience: client.Audience, Scope: groupcomm.Scope{{Group: "sensors", Roles: groupcomm.Requester | groupcomm.Responder}},
	})
	if err != nil {
		e.t.Fatal(err)
	}
	return a
}

// join joins with the token in psk_identity: this host serves no plain CoAP.
func (e *example) join() (*node.Member, node.Transport) {
	e.t.Helper()
	a := e.access()
	tr := e.dial(a.Token, a.Key.Bytes())
	m, err := node.New(node.Config{Group: "sensors", Roles: a.Scope[0].Roles, WantCreds: true}, tr)
	if err != nil {
		e.t.Fatal(err)
	}
	if err := m.Join(e.soon()); err != nil {
		e.t.Fatalf("join: %v", err)
	}
	return m, tr
}

// TestHostKeepsItsOwn: what the host did before it does still, for its own
// peers and for members alike.
func TestHostKeepsItsOwn(t *testing.T) {
	t.Parallel()
	e := start(t)
	_, member := e.join()
	for name, tr := range map[string]node.Transport{"operator": e.dial([]byte("operator"), operator["operator"]), "member": member} {
		t.Run(name, func(t *testing.T) {
			if r := e.get(tr, "temperature"); r.Code != coap.Content || string(r.Payload) != "21.5" {
				t.Errorf("temperature: %v %q", r.Code, r.Payload)
			}
			r := e.get(tr, ".well-known", "core")
			for _, want := range []string{"</temperature>", "</ace-group/sensors>"} {
				if r.Code != coap.Content || !strings.Contains(string(r.Payload), want) {
					t.Errorf("discovery lacks %s: %v %s", want, r.Code, r.Payload)
				}
			}
			if r := e.get(tr, "nowhere"); r.Code != coap.NotFound {
				t.Errorf("the host's unknown path: %v", r.Code)
			}
		})
	}
	// The host's own peer has no token: it is told where to get one.
	tr := e.dial([]byte("operator"), operator["operator"])
	if r := e.get(tr, "ace-group", "sensors"); r.Code != coap.Unauthorized {
		t.Errorf("a peer without token: %v %s", r.Code, r.Payload)
	} else if f, _ := r.Options.ContentFormat(); f != coap.ACE {
		t.Errorf("no AS Request Creation Hints, but Content-Format %d %s", f, r.Payload)
	}
	// And can hand one in over its association.
	a := e.access()
	if _, err := node.PostToken(e.soon(), tr, a); err != nil {
		t.Errorf("a token posted over the host's own association: %v", err)
	}
	if _, err := node.DialDTLS(e.soon(), e.addr, []byte("nobody"), []byte("0123456789abcdef")); err == nil {
		t.Error("a peer that nobody knows is let in")
	}
}

// TestFollow: a member behind go-coap's defaults gets a rekey and its
// confirmation arrives.
func TestFollow(t *testing.T) {
	t.Parallel()
	e := start(t)
	token, err := os.ReadFile(filepath.Join(e.dir, config.AdminTokenFile))
	if err != nil {
		t.Fatal(err)
	}
	client := admin.NewClient(e.http, strings.TrimSpace(string(token)))
	m, _ := e.join()
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- m.Follow(ctx) }()
	state, _ := m.State()
	channel := func() string {
		g, err := client.Group(e.soon(), "sensors")
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(g.Members, func(m admin.MemberInfo) bool { return m.Node == state.Node })
		return g.Members[i].Channel
	}
	eventually(t, "the member observes", func() bool { return channel() == "observe" })
	r, err := client.Rekey(e.soon(), "sensors", "test")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the rekey arrives", func() bool {
		s, _ := m.State()
		return s.Version == r.Version && s.Installed
	})
	eventually(t, "the gateway knows", func() bool {
		g, err := client.Group(e.soon(), "sensors")
		return err == nil && g.Members[0].State == "current" && g.Members[0].Version == r.Version
	})
	cancel()
	<-over
	if err := m.Leave(e.soon()); err != nil {
		t.Errorf("leave: %v", err)
	}
}

// TestBigAnswer: with go-coap's own blockwise transfer, answers larger than a
// block arrive whole.
func TestBigAnswer(t *testing.T) {
	t.Parallel()
	e := start(t)
	var last *node.Member
	var tr node.Transport
	const others = 20
	for range others + 1 {
		last, tr = e.join()
	}
	// The Join Response has the credentials of the others.
	if state, _ := last.State(); len(state.Peers) != others {
		t.Errorf("%d credentials at the join", len(state.Peers))
	}
	r := e.get(tr, "ace-group", "sensors", "creds")
	creds, err := groupcomm.DecodeCredsResponse(r.Payload)
	if err != nil || len(creds.Creds) != others+1 || len(r.Payload) <= 1024 {
		t.Errorf("creds: %v, %d bytes, %v", r.Code, len(r.Payload), err)
	}
}

// TestGatewayFails: the host learns why the gateway cannot run.
func TestGatewayFails(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	unlock, err := store.LockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	err = run(t.Context(), config.Listen{CoAPS: "127.0.0.1:0"}, dir, operator.psk, func(string) {})
	if err == nil || !bytes.Contains([]byte(err.Error()), []byte("in use")) {
		t.Errorf("run beside another gateway: %v", err)
	}
	if err := unlock(); err != nil {
		t.Error(err)
	}
}
