//go:build interop

package interop

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/oscore"
	"github.com/seed4911071e/groupgate/plugin"
	"github.com/seed4911071e/groupgate/plugin/host"
	"github.com/seed4911071e/groupgate/test/ports"
)

// gateway is the whole gateway, in the test's process.
type gateway struct {
	t   *testing.T
	cfg *config.Config
	at  host.Addrs
	log bytes.Buffer
	mu  sync.Mutex // of log
}

func (g *gateway) Write(b []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.log.Write(b)
}

// run starts the gateway until stop is called.
func (g *gateway) run() (stop func()) {
	g.t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(g.t.Context()))
	ready, over := make(chan struct{}), make(chan struct{})
	var failed error
	go func() {
		defer close(over)
		failed = host.Serve(ctx, g.cfg, slog.New(slog.NewTextHandler(g, nil)), func(_ *plugin.Gateway, at host.Addrs) {
			g.at = at
			close(ready)
		})
	}()
	stop = sync.OnceFunc(func() { cancel(); <-over })
	g.t.Cleanup(func() {
		stop()
		if g.t.Failed() {
			g.t.Logf("%v\n%s", failed, &g.log)
		}
	})
	select {
	case <-ready:
	case <-over:
		g.t.Fatalf("the gateway does not start: %v", failed)
	}
	l := &g.cfg.Listen // the ports of the first life are those of all
	l.CoAPS, l.CoAP, l.HTTP, l.MQTT = g.at.CoAPS, g.at.CoAP, g.at.HTTP, g.at.MQTT
	return stop
}

// peer is a program that is told what to do, line by line.
type peer struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Scanner
}

type told struct{ Step, Code, Payload string }

func (p *peer) next() told {
	p.t.Helper()
	if !p.out.Scan() {
		p.t.Fatal("the peer ended")
	}
	var v told
	if err := json.Unmarshal(p.out.Bytes(), &v); err != nil {
		p.t.Fatalf("%s: %v", p.out.Text(), err)
	}
	return v
}

func (p *peer) do(line, code string) []byte {
	p.t.Helper()
	if _, err := fmt.Fprintln(p.in, line); err != nil {
		p.t.Fatal(err)
	}
	return p.take(line, code)
}

func (p *peer) take(step, code string) []byte {
	p.t.Helper()
	return p.read(p.next(), step, code)
}

func (p *peer) read(v told, step, code string) []byte {
	p.t.Helper()
	if v.Step != step || v.Code != code {
		p.t.Fatalf("%+v, want %s to %q", v, code, step)
	}
	b, err := hex.DecodeString(v.Payload)
	if err != nil {
		p.t.Fatal(err)
	}
	return b
}

// contextFolder is a client's Security Context of the OSCORE profile as aiocoap
// keeps it.
func contextFolder(t *testing.T, s *oscore.Setup) string {
	t.Helper()
	dir := t.TempDir()
	b, err := json.Marshal(map[string]any{
		"secret_hex": hex.EncodeToString(s.MasterSecret.Bytes()), "salt_hex": hex.EncodeToString(s.MasterSalt()),
		"sender-id_hex": hex.EncodeToString(s.ID2), "recipient-id_hex": hex.EncodeToString(s.ID1),
		"algorithm": "AES-CCM-16-64-128", "kdf-hashfun": "sha256",
	})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "settings.json"), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestAiocoapGateway: aiocoap reads and observes a group of the gateway, with a
// context of the OSCORE profile, and goes on after the gateway was started anew.
// The profile itself aiocoap does not speak: token, nonces and the join are ours.
func TestAiocoapGateway(t *testing.T) {
	py := python(t)
	g := &gateway{t: t, cfg: config.Embedded()}
	g.cfg.DataDir = filepath.Join(t.TempDir(), "data")
	l := &g.cfg.Listen
	l.CoAPS, l.CoAP, l.HTTP, l.MQTT = ports.Addr(t), ports.Addr(t), ports.Addr(t), ""
	g.cfg.Groups[0].Rekey.BatchWindow = 0
	stop := g.run()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	client, err := node.LoadClient(g.cfg.Path(node.ClientFile))
	must(err)
	as, err := node.DialDTLS(ctx, g.at.CoAPS, []byte(client.Identity), client.Key.Bytes())
	must(err)
	roles := groupcomm.Requester | groupcomm.Responder
	access, err := node.RequestToken(ctx, as, node.TokenRequest{
		Audience: client.Audience, Scope: groupcomm.Scope{{Group: "sensors", Roles: roles}}, OSCORE: true,
	})
	must(err)
	must(as.Close())
	tr, info, err := node.DialOSCORE(ctx, g.at.CoAP, access)
	must(err)
	m, err := node.New(node.Config{Group: "sensors", Roles: roles, Transfer: info}, tr)
	must(err)
	defer func() { _ = m.Close() }()
	must(m.Join(ctx))
	state, _ := m.State()

	// The token once more: a context for the other implementation, of the same
	// member.
	plain, err := node.DialUDP(ctx, g.at.CoAP)
	must(err)
	setup, _, err := node.SetUpOSCORE(ctx, plain, access)
	must(err)
	must(plain.Close())

	run, done := context.WithTimeout(context.WithoutCancel(t.Context()), 2*patience)
	cmd := exec.CommandContext(run, py, "testdata/aiocoap_gateway.py", "coap://"+g.at.CoAP, contextFolder(t, setup))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
	must(err)
	out, err := cmd.StdoutPipe()
	must(err)
	must(cmd.Start())
	p := &peer{t: t, in: in, out: bufio.NewScanner(out)}
	p.out.Buffer(nil, 1<<20)
	t.Cleanup(func() {
		_ = in.Close()
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Errorf("peer: %v\n%s", err, &stderr)
		}
		done()
	})

	const group = "/ace-group/sensors"
	p.do("get "+group+"/num", "2.05")
	p.do("get "+group+"/nodes/"+state.Node, "2.05")
	p.do("get "+group+"/nodes/absent", "4.03")
	p.do("delete "+group, "4.05")
	p.do("get /unknown", "4.04")
	full, err := groupcomm.DecodeKeyDistribution(p.do("observe "+group, "2.05"))
	must(err)
	if full.Num != state.Version || !bytes.Equal(full.Key.ContextID, state.Gid) {
		t.Errorf("version %d, Gid %x", full.Num, full.Key.ContextID)
	}
	api := admin.NewClient(g.at.HTTP, string(g.cfg.AdminToken.Bytes()))
	for range 3 {
		r, err := api.Rekey(ctx, "sensors", "test")
		must(err)
		msg, err := groupcomm.DecodeRekeyMessage(p.take("notified "+group, "2.05"))
		must(err)
		if msg.Num != r.Version {
			t.Errorf("notified of version %d, not %d", msg.Num, r.Version)
		}
	}
	// The gateway begins anew: the observation goes on, with what was last told once more,
	// because an acknowledgement is not protected. Requests have to be fresh.
	stop()
	g.run()
	r, err := admin.NewClient(g.at.HTTP, string(g.cfg.AdminToken.Bytes())).Rekey(ctx, "sensors", "test")
	must(err)
	for last := uint64(0); last < r.Version; {
		msg, err := groupcomm.DecodeRekeyMessage(p.take("notified "+group, "2.05"))
		must(err)
		if uint64(msg.Num) < last || uint64(msg.Num) > r.Version {
			t.Fatalf("notified of version %d after %d", msg.Num, last)
		}
		last = uint64(msg.Num)
	}
	p.do("get "+group+"/num", "2.05")
	p.do("get "+group+"/num", "2.05")
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+g.at.HTTP+"/metrics", nil)
	must(err)
	resp, err := http.DefaultClient.Do(req)
	must(err)
	defer func() { _ = resp.Body.Close() }()
	metrics, err := io.ReadAll(resp.Body)
	must(err)
	if want := `groupgate_oscore_requests_total{result="challenged"} 1`; !bytes.Contains(metrics, []byte(want)) {
		t.Errorf("no %s", want)
	}
}
