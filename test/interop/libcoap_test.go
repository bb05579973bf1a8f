//go:build interop

package interop

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/cose"

	servers "github.com/seed4911071e/groupgate/bench/peer"
)

// servedOwn is the gateway's endpoint with one pre-shared key for all.
func servedOwn(t *testing.T) (at netip.AddrPort, publish func()) {
	t.Helper()
	s, err := servers.New(t.Context(), servers.Own, servers.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s.Addr(), func() { s.Publish(true, 100) }
}

// TestLibcoap: libcoap's client over OpenSSL and over GnuTLS shakes hands with a
// pre-shared key, asks, and observes.
func TestLibcoap(t *testing.T) {
	for _, program := range []string{"coap-client-openssl", "coap-client-gnutls"} {
		t.Run(program, func(t *testing.T) {
			path := libcoapProgram(t, program)
			at, publish := servedOwn(t)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			client := func(args ...string) *exec.Cmd {
				return exec.CommandContext(ctx, path, append([]string{"-k", string(servers.Key), "-u", "libcoap"}, args...)...)
			}
			out, err := client("-m", "get", "coaps://"+at.String()+"/state").CombinedOutput()
			if err != nil || strings.TrimSpace(string(out)) != "state" {
				t.Fatalf("GET: %q, %v", out, err)
			}
			out, err = client("-m", "post", "-e", "hello", "coaps://"+at.String()+"/echo").CombinedOutput()
			if err != nil || strings.TrimSpace(string(out)) != "hello" {
				t.Fatalf("POST: %q, %v", out, err)
			}

			watch := client("-s", "20", "-m", "get", "coaps://"+at.String()+"/state")
			from, err := watch.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := watch.Start(); err != nil {
				t.Fatal(err)
			}
			r := bufio.NewReader(from)
			first := make([]byte, len("state"))
			if _, err := io.ReadFull(r, first); err != nil || string(first) != "state" {
				t.Fatalf("registration: %q, %v", first, err)
			}
			publish()
			note, zeros := []byte(nil), bytes.Repeat([]byte{0}, 100)
			for !bytes.Contains(note, zeros) {
				b, err := r.ReadByte()
				if err != nil {
					t.Fatalf("notification: %q, %v", note, err)
				}
				note = append(note, b)
			}
			_ = watch.Process.Kill() // it would observe on
			_ = watch.Wait()
		})
	}
}

// TestLibcoapConfigured: coap-client with a pre-shared key of the configuration, which
// is hexadecimal there and text here (docs/interop.md), and what it says when identity
// or key are others.
func TestLibcoapConfigured(t *testing.T) {
	libcoapProgram(t, "coap-client") // or skip before anything is built
	p := newProgram(t, buildGateway(t), cose.AlgEdDSA, fmt.Sprintf("  - {identity: sensor7, key: %q, may: [proxy]}\n", hex.EncodeToString([]byte(proxyKey))))
	for _, program := range []string{"coap-client-openssl", "coap-client-gnutls"} {
		t.Run(program, func(t *testing.T) {
			path := libcoapProgram(t, program)
			ask := func(identity, key string) string {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				// The status is 0 in any case.
				out, _ := exec.CommandContext(ctx, path, "-v", "4", "-B", "1", "-u", identity, "-k", key, "-m", "get", "coaps://"+p.coaps+"/.well-known/core").CombinedOutput()
				return string(out)
			}
			if out := ask("sensor7", proxyKey); !strings.Contains(out, "/ace-group") {
				t.Errorf("%s", out)
			}
			if out := ask("nobody", proxyKey); !strings.Contains(strings.ToLower(out), "illegal parameter") || !strings.Contains(out, "cannot send") {
				t.Errorf("unknown identity: %s", out)
			}
			if out := ask("sensor7", hex.EncodeToString([]byte(proxyKey))); !strings.Contains(out, "cannot send") {
				t.Errorf("another key: %s", out)
			}
		})
	}
	if m := p.metrics(); !strings.Contains(m, `groupgate_endpoint_handshakes_total{kind="psk",listener="coaps",result="done"} 2`) {
		t.Errorf("the gateway counts\n%s", m)
	}
}
