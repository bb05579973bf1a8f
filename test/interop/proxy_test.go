//go:build interop

package interop

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/test/ports"
)

// libcoapEnv names the folder with libcoap's example programs.
const libcoapEnv = "GROUPGATE_TEST_LIBCOAP"

// libcoapProgram is coap-client or coap-server, with DTLS.
func libcoapProgram(t *testing.T, name string) string {
	t.Helper()
	dir := os.Getenv(libcoapEnv)
	if dir == "" {
		t.Skipf("%s names no folder with libcoap's programs; .ci/run interop installs them", libcoapEnv)
	}
	for _, kind := range []string{"-openssl", "-gnutls", ""} {
		if path := filepath.Join(dir, name+kind); isFile(path) {
			return path
		}
	}
	t.Fatalf("no %s in %s", name, dir)
	return ""
}

func isFile(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular()
}

const (
	proxyUser = "user"
	proxyKey  = "0123456789abcdef"
	originKey = "secretPKsecretPK"
)

// libcoapServer runs coap-server: UDP and TCP at a port, DTLS and TLS at the next.
func libcoapServer(t *testing.T, args ...string) (port int) {
	t.Helper()
	program := libcoapProgram(t, "coap-server")
	port = ports.Row(t, 2)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	cmd := exec.CommandContext(ctx, program, append([]string{"-A", "127.0.0.1", "-p", fmt.Sprint(port), "-d", "100", "-k", originKey, "-v", "3"}, args...)...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // killed
		if t.Failed() {
			t.Log(out.String())
		}
	})
	answers(t, fmt.Sprint("127.0.0.1:", port))
	return port
}

// answers waits until a CoAP server answers.
func answers(t *testing.T, addr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for ctx.Err() == nil {
		tr, err := node.DialUDP(ctx, addr)
		if err != nil {
			t.Fatal(err)
		}
		one, free := context.WithTimeout(ctx, 200*time.Millisecond) // before it listens nobody answers
		_, err = tr.Do(one, &coap.Request{Code: coap.GET})
		free()
		_ = tr.Close()
		if err == nil {
			return
		}
	}
	t.Fatalf("no server at %s", addr)
}

// edge runs a gateway with a proxy section; kind is that of its endpoint.
func edge(t *testing.T, kind string, change func(*config.Proxy)) *gateway {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]string{"user.key": proxyKey, "origin.key": originKey} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(hex.EncodeToString([]byte(key))), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := config.Default() // the embedded one has a psk entry of its own
	c.DataDir, c.Endpoint.Kind = dir, kind
	l := &c.Listen
	l.CoAPS, l.CoAP, l.HTTP, l.MQTT = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", ""
	c.PSK = append(c.PSK, config.PSK{Identity: proxyUser, KeyFile: "user.key", May: []string{"proxy"}})
	change(&c.Proxy)
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	g := &gateway{t: t, cfg: c}
	g.run()
	return g
}

func via(change func(*config.ProxyVia)) config.ProxyVia {
	v := config.ProxyVia{Timeout: 20 * time.Second, Parallel: 16, BlockSize: 256}
	if change != nil {
		change(&v)
	}
	return v
}

// TestLibcoapThroughProxy: coap-client of libcoap asks coap-server of libcoap
// through the proxy: GET, PUT, DELETE, blocks both ways, observation, over UDP with
// Echo and over DTLS, to coap, coaps and coap+tcp, by proxy option and by path.
func TestLibcoapThroughProxy(t *testing.T) {
	client := libcoapProgram(t, "coap-client")
	for _, kind := range []string{config.EndpointOwn, config.EndpointStock} {
		t.Run(kind, func(t *testing.T) {
			port := libcoapServer(t)
			origin := fmt.Sprint("127.0.0.1:", port)
			g := edge(t, kind, func(p *config.Proxy) {
				p.UDPRPS = 1000
				p.Allow = []config.ProxyTarget{
					{Target: "coap://" + origin, ProxyVia: via(func(v *config.ProxyVia) { v.OpenToUDP = true })},
					{Target: "coap+tcp://" + origin, ProxyVia: via(nil)},
					{Target: fmt.Sprint("coaps://127.0.0.1:", port+1), ProxyVia: via(func(v *config.ProxyVia) { v.Identity, v.KeyFile = "CoAP", "origin.key" })},
				}
				p.Reverse = []config.ProxyReverse{{Path: "/dev", Upstream: "coap://" + origin, List: true, ProxyVia: via(nil)}}
			})
			run := func(args ...string) string {
				t.Helper()
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				out, err := exec.CommandContext(ctx, client, append([]string{"-B", "10", "-v", "4"}, args...)...).CombinedOutput()
				if err != nil {
					t.Fatalf("%v: %v\n%s", args, err, out)
				}
				return strings.TrimSpace(string(out))
			}
			plain := []string{"-P", "coap://" + g.at.CoAP}
			secure := []string{"-u", proxyUser, "-k", proxyKey, "-P", "coaps://" + g.at.CoAPS}
			file := filepath.Join(t.TempDir(), "body")
			body := strings.Repeat("0123456789", 300)
			if err := os.WriteFile(file, []byte(body), 0o600); err != nil {
				t.Fatal(err)
			}
			for name, door := range map[string][]string{"udp": plain, "dtls": secure} {
				ask := func(args ...string) string { t.Helper(); return run(append(append([]string{}, door...), args...)...) }
				if got := ask("-m", "get", "coap://"+origin+"/"); !strings.Contains(got, "libcoap") {
					t.Errorf("%s: GET: %q", name, got)
				}
				uri := "coap://" + origin + "/" + name
				if got := ask("-m", "put", "-f", file, uri); got != "" {
					t.Errorf("%s: PUT: %q", name, got)
				}
				for _, block := range []string{"1024", "64"} {
					if got := ask("-b", block, "-m", "get", uri); got != body {
						t.Errorf("%s: GET in blocks of %s: %d bytes", name, block, len(got))
					}
				}
				if got := ask("-m", "put", "-e", "changed", uri); got != "" {
					t.Errorf("%s: PUT: %q", name, got)
				}
				if got := ask("-m", "get", uri); got != "changed" { // not from the cache
					t.Errorf("%s: GET after PUT: %q", name, got)
				}
				if got := ask("-m", "delete", uri); got != "" {
					t.Errorf("%s: DELETE: %q", name, got)
				}
				if got := ask("-m", "get", uri); !strings.Contains(got, "4.04") {
					t.Errorf("%s: GET after DELETE: %q", name, got)
				}
				// The resource tells the time, each second.
				if got := ask("-s", "3", "-m", "get", "coap://"+origin+"/time"); strings.Count(got, ":") < 4 {
					t.Errorf("%s: observed: %q", name, got)
				}
			}
			for _, uri := range []string{"coap+tcp://" + origin + "/", fmt.Sprintf("coaps://127.0.0.1:%d/", port+1)} {
				if got := run(append(secure, "-m", "get", uri)...); !strings.Contains(got, "libcoap") {
					t.Errorf("%s: %q", uri, got)
				}
				if got := run(append(plain, "-m", "get", uri)...); !strings.Contains(got, "4.01") {
					t.Errorf("%s over UDP, which is not open: %q", uri, got)
				}
			}
			// What no rule names, and the gateway's own admin API.
			for _, uri := range []string{"coap://127.0.0.1:1/", "coap+tcp://" + g.at.HTTP + "/"} {
				if got := run(append(secure, "-m", "get", uri)...); !strings.Contains(got, "5.05") {
					t.Errorf("%s: %q", uri, got)
				}
			}
			if got := run("-u", proxyUser, "-k", proxyKey, "-m", "get", "coaps://"+g.at.CoAPS+"/dev/"); !strings.Contains(got, "libcoap") {
				t.Errorf("reverse: %q", got)
			}
		})
	}
}

// TestAiocoapThroughProxy: a client and a server of aiocoap share an OSCORE context;
// between them is the proxy, over plain UDP, which they do not know of: the server
// is a host name of the gateway. Requests, errors, blocks both ways, observation.
func TestAiocoapThroughProxy(t *testing.T) {
	py := python(t)
	s := suites[0]
	n := ports.Free(t)
	await(t, start(t, py, "testdata/aiocoap_server.py", fmt.Sprint(n), s.folder(t, false)), "ready")
	g := edge(t, config.EndpointOwn, func(p *config.Proxy) {
		p.UDPRPS = 1000
		p.Hosts = []config.ProxyHost{{Name: "localhost", Upstream: fmt.Sprint("coap://127.0.0.1:", n), ProxyVia: via(func(v *config.ProxyVia) { v.OpenToUDP, v.BlockSize = true, 1024 })}}
	})
	_, port, err := net.SplitHostPort(g.at.CoAP)
	if err != nil {
		t.Fatal(err)
	}
	out := start(t, py, "testdata/aiocoap_proxied.py", "coap://localhost:"+port, s.other(t))
	for _, want := range []told{
		{"echo", "4.01", ""},
		{"get", "2.05", "hello?x=1 over OSCORE"},
		{"post", "2.04", "SMALL"},
		{"put missing", "4.04", ""},
		{"block1", "2.04", strings.Repeat("ABCDEFGH", 400)},
		{"block2", "2.05", bigBody},
		{"registered", "2.05", "0"},
		{"count", "2.04", ""}, {"notified", "2.05", "1"},
		{"count", "2.04", ""}, {"notified", "2.05", "2"},
		{"count", "2.04", ""}, {"notified", "2.05", "3"},
	} {
		if !out.Scan() {
			t.Fatalf("the client ended before %s", want.Step)
		}
		var got told
		if err := json.Unmarshal(out.Bytes(), &got); err != nil {
			t.Fatalf("%s: %v", out.Text(), err)
		}
		if want.Payload == "" {
			got.Payload = ""
		}
		if got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

// other is the folder of our end, for a client of aiocoap.
func (s *suite) other(t *testing.T) string {
	t.Helper()
	dir := s.folder(t, false)
	name := filepath.Join(dir, "settings.json")
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var v map[string]any
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	v["sender-id_hex"], v["recipient-id_hex"] = v["recipient-id_hex"], v["sender-id_hex"]
	if raw, err = json.Marshal(v); err == nil {
		err = os.WriteFile(name, raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestBesideLibcoap: coap-server of libcoap is the gateway that is there already,
// a proxy of its own; ours runs beside it. Nodes that know the old one reach the
// new one through it, and the new one shows what the old one has.
func TestBesideLibcoap(t *testing.T) {
	client := libcoapProgram(t, "coap-client")
	port := libcoapServer(t, "-P", ",none.invalid") // proxies for everybody, directly
	g := edge(t, config.EndpointOwn, func(p *config.Proxy) {
		p.Reverse = []config.ProxyReverse{{Path: "/old", Upstream: fmt.Sprint("coap://127.0.0.1:", port), List: true, ProxyVia: via(func(v *config.ProxyVia) { v.OpenToUDP = true })}}
	})
	run := func(args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		out, err := exec.CommandContext(ctx, client, append([]string{"-B", "10", "-v", "4"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	old := fmt.Sprint("coap://127.0.0.1:", port)
	if got := run("-P", old, "-m", "get", "coap://"+g.at.CoAP+"/.well-known/core"); !strings.Contains(got, "</old") {
		t.Errorf("discovery through the old gateway: %q", got)
	}
	// A token that is none: the answer is that of our /authz-info.
	if got := run("-P", old, "-m", "post", "-e", "no token", "-t", "19", "coap://"+g.at.CoAP+"/authz-info"); !strings.Contains(got, "4.0") {
		t.Errorf("/authz-info through the old gateway: %q", got)
	}
	if got := run("-m", "get", "coap://"+g.at.CoAP+"/old/"); !strings.Contains(got, "libcoap") {
		t.Errorf("the old gateway through ours: %q", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for listed := false; !listed; { // asked for in the background
		if ctx.Err() != nil {
			t.Fatal("the resources of the old gateway are not listed")
		}
		listed = strings.Contains(run("-m", "get", "coap://"+g.at.CoAP+"/.well-known/core"), "</old/time>")
	}
}

// TestAiocoapProxied: what aiocoap's own tests ask its proxies, asked by aiocoap's
// client for proxies of ours, of a server of aiocoap.
func TestAiocoapProxied(t *testing.T) {
	py := python(t)
	n := ports.Free(t)
	await(t, start(t, py, "testdata/aiocoap_server.py", fmt.Sprint(n), suites[0].folder(t, false)), "ready")
	origin := fmt.Sprint("coap://127.0.0.1:", n)
	g := edge(t, config.EndpointOwn, func(p *config.Proxy) {
		p.UDPRPS = 1000
		p.Allow = []config.ProxyTarget{{Target: origin, ProxyVia: via(func(v *config.ProxyVia) { v.OpenToUDP = true })}}
	})
	out := start(t, py, "testdata/aiocoap_forward.py", "coap://"+g.at.CoAP, origin)
	for _, want := range []told{
		{"echo", "4.01", ""},
		{"proven", "2.05", "hello"},
		{"get", "2.05", "hello?x=1"},
		{"proxy-uri", "2.05", "hello?x=2"},
		{"post", "2.04", "SMALL"},
		{"missing", "4.04", ""},
		{"method", "4.05", ""},
		{"block1", "2.04", strings.Repeat("ABCDEFGH", 400)},
		{"block2", "2.05", bigBody},
		{"slow", "2.05", "at last"},
		{"registered", "2.05", "0"}, {"registered", "2.05", "0"},
		{"count", "2.04", ""}, {"notified", "2.05", "1"}, {"notified", "2.05", "1"},
		{"count", "2.04", ""}, {"notified", "2.05", "2"}, {"notified", "2.05", "2"},
	} {
		if !out.Scan() {
			t.Fatalf("the client ended before %s", want.Step)
		}
		var got told
		if err := json.Unmarshal(out.Bytes(), &got); err != nil {
			t.Fatalf("%s: %v", out.Text(), err)
		}
		if want.Payload == "" {
			got.Payload = ""
		}
		if got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}
