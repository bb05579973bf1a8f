//go:build interop

package interop

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/test/ports"
)

// buildGateway makes the program as it is released.
func buildGateway(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "gateway")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", name, "github.com/seed4911071e/groupgate/cmd/gateway")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return name
}

// program is a gateway in a process of its own, with the same ports in all its
// lives. It has the group sensors; tokens for that come from its own
// Authorization Server.
type program struct {
	t              *testing.T
	path, config   string
	coaps, coap    string
	http           string
	client         node.Client
	api            *admin.Client
	cmd            *exec.Cmd
	mu             sync.Mutex // of log
	log            strings.Builder
	ready, stopped chan struct{}
}

// newProgram starts a gateway; alg is the signature algorithm of the group, psk
// more lines of that section.
func newProgram(t *testing.T, path string, alg int64, psk string) *program {
	t.Helper()
	dir := t.TempDir()
	key := make([]byte, 16)
	rand.Read(key)
	p := &program{t: t, path: path, config: filepath.Join(dir, "gateway.yaml"), coaps: ports.Addr(t), coap: ports.Addr(t)}
	p.client = node.Client{Identity: "clientA", Key: cose.NewSecret(key), Audience: "rs"}
	signing := "EdDSA, ecdh_curve: X25519"
	if alg == cose.AlgES256 {
		signing = "ES256, ecdh_curve: P-256"
	}
	p.http = ports.Addr(t)
	for name, content := range map[string]string{
		"client.key": hex.EncodeToString(key),
		"gateway.yaml": fmt.Sprintf(`data_dir: "%[1]s/data"
listen: {coaps: %[2]q, coap: %[3]q, http: %[4]q, mqtt: ""}
tokens: [{issuer: as1, audience: rs, symmetric_key_file: as.key}]
psk:
  - {identity: clientA, key_file: "%[1]s/client.key", may: [token]}
%[6]sauthorization_server:
  issuer: as1
  policies: [{client: clientA, audience: rs, scope: [{group: sensors, roles: [requester, responder]}], lifetime: 24h}]
groups: [{name: sensors, sign_alg: %[5]s, rekey: {batch_window: 0s}}]
`, dir, p.coaps, p.coap, p.http, signing, psk),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		p.end(syscall.SIGKILL)
		if t.Failed() {
			p.mu.Lock()
			defer p.mu.Unlock()
			t.Logf("the gateway:\n%s", &p.log)
		}
	})
	p.run()
	token, err := os.ReadFile(filepath.Join(dir, "data", config.AdminTokenFile))
	if err != nil {
		t.Fatal(err)
	}
	p.api = admin.NewClient(p.http, strings.TrimSpace(string(token)))
	return p
}

func (p *program) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.log.Write(b)
	if strings.Contains(p.log.String(), " is ready, ") {
		select {
		case <-p.ready:
		default:
			close(p.ready)
		}
	}
	return len(b), nil
}

// run begins a life, and waits until the gateway serves.
func (p *program) run() {
	p.t.Helper()
	p.mu.Lock()
	p.log.Reset()
	p.ready, p.stopped = make(chan struct{}), make(chan struct{})
	p.mu.Unlock()
	cmd := exec.Command(p.path, "run", "--config", p.config)
	cmd.Stdout, cmd.Stderr = p, p
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.cmd = cmd
	go func() {
		defer close(p.stopped)
		_ = cmd.Wait() // who ended it knows why
	}()
	select {
	case <-p.ready:
	case <-p.stopped:
		p.t.Fatal("the gateway does not start")
	}
}

// end ends a life with a signal.
func (p *program) end(sig syscall.Signal) {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Signal(sig) // it may be over
	<-p.stopped
}

// token gets and posts a token, for a public key or, without, for a new symmetric
// key. ok says whether the peer can use that: until then there are more.
func (p *program) token(ctx context.Context, key *cose.Key, ok func(*node.Access) bool) (*node.Access, *groupcomm.TokenTransferResponse) {
	p.t.Helper()
	fail := func(err error) {
		p.t.Helper()
		if err != nil {
			p.t.Fatal(err)
		}
	}
	as, err := node.DialDTLS(ctx, p.coaps, []byte(p.client.Identity), p.client.Key.Bytes())
	fail(err)
	defer as.Close()
	var a *node.Access
	for a == nil || !ok(a) {
		a, err = node.RequestToken(ctx, as, node.TokenRequest{
			Audience: p.client.Audience, Key: key,
			Scope: groupcomm.Scope{{Group: "sensors", Roles: groupcomm.Requester | groupcomm.Responder}},
		})
		fail(err)
	}
	plain, err := node.DialUDP(ctx, p.coap)
	fail(err)
	defer plain.Close()
	info, err := node.PostToken(ctx, plain, a)
	fail(err)
	return a, info
}

// metrics are those of the endpoint that are not zero, to say why a test failed.
func (p *program) metrics() string {
	r, err := http.Get("http://" + p.http + "/metrics")
	if err != nil {
		return err.Error()
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return err.Error()
	}
	var lines []string
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "groupgate_endpoint_") && !strings.HasSuffix(line, " 0\n") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}
