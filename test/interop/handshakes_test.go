//go:build interop

package interop

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/node"
)

// wellKnownCore is a message for exchange.
func wellKnownCore(t *testing.T) []byte {
	t.Helper()
	m := coap.Message{Type: coap.Confirmable, Code: coap.GET, ID: 1, Token: []byte{7}}
	m.Options.SetPath(".well-known", "core")
	b, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// exchange has a program that carries its standard input over DTLS send a message
// with the identifier 1 and the token 7, and waits until it prints an answer of
// which ok says that it is the one.
func exchange(t *testing.T, cmd *exec.Cmd, request []byte, ok func(*coap.Message) bool) {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s: %s", cmd, &complaints)
		}
	}()
	if _, err := in.Write(request); err != nil {
		t.Fatal(err)
	}
	var got []byte
	b := make([]byte, 4096)
	for {
		n, err := out.Read(b)
		got = append(got, b[:n]...)
		for at := range got {
			if rest := got[at:]; len(rest) > 4 && rest[0] == 0x61 && rest[2] == 0 && rest[3] == 1 && rest[4] == 7 {
				if r, err := coap.DecodeMessage(rest); err == nil && ok(r) {
					return
				}
			}
		}
		if err != nil {
			t.Fatalf("no answer in %q: %v", got, err)
		}
	}
}

func buildPion2(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "pion2")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", name, ".")
	build.Dir = "pion2"
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build in pion2: %v\n%s", err, out)
	}
	return name
}

// TestPSKHandshakes: the clients of GnuTLS, OpenSSL and pion/dtls v2 with a
// pre-shared key, at handshakes of the gateway's own and of pion's.
func TestPSKHandshakes(t *testing.T) {
	request := wellKnownCore(t)
	pion2 := buildPion2(t)
	for _, handshake := range []string{config.HandshakeOwn, config.HandshakePion} {
		cfg := config.Embedded()
		cfg.DataDir = filepath.Join(t.TempDir(), "data")
		const free = "127.0.0.1:0"
		cfg.Listen.CoAPS, cfg.Listen.CoAP, cfg.Listen.HTTP, cfg.Listen.MQTT = free, free, free, ""
		cfg.Endpoint.Handshake = handshake
		g := &gateway{t: t, cfg: cfg}
		g.run()
		client, err := node.LoadClient(cfg.Path(node.ClientFile))
		if err != nil {
			t.Fatal(err)
		}
		key := hex.EncodeToString(client.Key.Bytes())
		host, port, err := net.SplitHostPort(g.at.CoAPS)
		if err != nil {
			t.Fatal(err)
		}
		try := func(name, program string, args ...string) {
			t.Run(handshake+"/"+name, func(t *testing.T) {
				path, err := exec.LookPath(program)
				if err != nil {
					t.Skipf("%s is not installed; .ci/run interop does it", program)
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				exchange(t, exec.CommandContext(ctx, path, args...), request, func(r *coap.Message) bool {
					return r.Code == coap.Content && bytes.Contains(r.Payload, []byte("/ace-group"))
				})
			})
		}
		for _, cipher := range []string{"AES-128-CCM-8", "AES-128-CCM", "AES-128-GCM"} {
			try("GnuTLS "+cipher, "gnutls-cli", "--udp", "--port", port, "--insecure", "--no-ca-verification", "--logfile", os.DevNull,
				"--pskusername", client.Identity, "--pskkey", key, "--priority", "NORMAL:-VERS-ALL:+VERS-DTLS1.2:-KX-ALL:+PSK:-CIPHER-ALL:+"+cipher, host)
		}
		for _, cipher := range []string{"PSK-AES128-CCM8", "PSK-AES128-CCM", "PSK-AES128-GCM-SHA256"} {
			try("OpenSSL "+cipher, "openssl", "s_client", "-dtls1_2", "-connect", g.at.CoAPS, "-psk", key, "-psk_identity", client.Identity,
				"-cipher", cipher+":@SECLEVEL=0", "-quiet")
		}
		for _, cid := range []string{"0", "6"} {
			t.Run(handshake+"/Scandium, CID "+cid, func(t *testing.T) {
				classes := californiumClasses(t)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				nat := newNAT(t, g.at.CoAPS)
				cmd := exec.CommandContext(ctx, "java", "-XX:TieredStopAtLevel=1", "-cp", classes, "RawKeyPeer", "PSK",
					client.Identity, key, cid, "coaps://"+nat.addr()+"/.well-known/core")
				in, err1 := cmd.StdinPipe()
				out, err2 := cmd.StdoutPipe()
				if err := errors.Join(err1, err2, cmd.Start()); err != nil {
					t.Fatal(err)
				}
				defer func() { _ = cmd.Wait() }() // it was killed, or ended
				lines := bufio.NewScanner(out)
				if !lines.Scan() || lines.Text() != "2.05 same" {
					t.Fatalf("%q", lines.Text())
				}
				nat.rebind()
				if _, err := in.Write([]byte{1}); err != nil {
					t.Fatal(err)
				}
				if !lines.Scan() || lines.Text() != "2.05 same" {
					t.Fatalf("from a new address: %q", lines.Text())
				}
			})
		}
		try("pion v2", pion2, g.at.CoAPS, client.Identity, key)
	}
}

// nat is between one client and a server, which sees another address after rebind.
type nat struct {
	t    *testing.T
	near *net.UDPConn
	to   string
	wg   sync.WaitGroup

	mu     sync.Mutex
	from   *net.UDPAddr // the client
	far    net.Conn
	hellos int // of the client
	// tap says what becomes of a datagram of the client; nil: it is sent on.
	tap func(b []byte) [][]byte
}

func newNAT(t *testing.T, to string) *nat {
	t.Helper()
	near, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	n := &nat{t: t, near: near, to: to}
	n.rebind()
	n.wg.Go(func() {
		b := make([]byte, 4096)
		for {
			size, from, err := near.ReadFromUDP(b)
			if err != nil {
				return
			}
			n.mu.Lock()
			n.from = from
			if size > 13 && b[0] == 22 && b[13] == 1 { // a handshake record, ClientHello
				n.hellos++
			}
			out := [][]byte{b[:size]}
			if n.tap != nil {
				out = n.tap(b[:size])
			}
			for _, b := range out {
				_, _ = n.far.Write(b) // datagrams may be lost
			}
			n.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		_ = near.Close()
		n.mu.Lock()
		_ = n.far.Close()
		n.mu.Unlock()
		n.wg.Wait()
	})
	return n
}

func (n *nat) addr() string { return n.near.LocalAddr().String() }

// handshakes counts the ClientHellos so far.
func (n *nat) handshakes() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.hellos
}

// rebind gives the client another address.
func (n *nat) rebind() {
	n.t.Helper()
	far, err := net.Dial("udp4", n.to)
	if err != nil {
		n.t.Fatal(err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.far != nil {
		_ = n.far.Close()
	}
	n.far = far
	n.wg.Go(func() {
		b := make([]byte, 4096)
		for {
			size, err := far.Read(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue // no gateway there now
			}
			n.mu.Lock()
			_, _ = n.near.WriteToUDP(b[:size], n.from)
			n.mu.Unlock()
		}
	})
}
