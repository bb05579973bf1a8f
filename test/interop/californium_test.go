//go:build interop

package interop

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// californiumJars is the folder that has the jars of californium/pom.xml.
const californiumJars = "GROUPGATE_TEST_CALIFORNIUM"

var compiled struct {
	once sync.Once
	err  error
}

// californiumClasses is the class path of the peers, which are compiled once: from
// their sources they start several times slower.
func californiumClasses(t *testing.T) string {
	t.Helper()
	jars := os.Getenv(californiumJars)
	if jars == "" {
		t.Skipf("%s names no folder with the peer's jars; .ci/run interop makes one", californiumJars)
	}
	compiled.once.Do(func() {
		out, err := exec.Command("javac", "-cp", jars+"/*", "-d", jars+"/classes", "californium/Peer.java", "californium/NodePeer.java", "californium/RawKeyPeer.java").CombinedOutput()
		if err != nil {
			compiled.err = fmt.Errorf("javac: %w\n%s", err, out)
		}
	})
	if compiled.err != nil {
		t.Fatal(compiled.err)
	}
	return jars + "/*:" + jars + "/classes"
}

// californium is a command that runs the peer.
func californium(ctx context.Context, t *testing.T, mode string, sender, recipient []byte, args ...string) *exec.Cmd {
	t.Helper()
	classes := californiumClasses(t)
	all := append([]string{"-XX:TieredStopAtLevel=1", "-cp", classes, "Peer", mode,
		hex.EncodeToString(masterSecret), hex.EncodeToString(masterSalt), orDash(sender), orDash(recipient)}, args...)
	return exec.CommandContext(ctx, "java", all...)
}

func orDash(b []byte) string {
	if len(b) == 0 {
		return "-"
	}
	return hex.EncodeToString(b)
}

// large is the long body of Peer.java.
func large() []byte {
	b := make([]byte, 3000)
	for i := range b {
		b[i] = byte('a' + i%26)
	}
	return b
}

func sumOf(b []byte) string {
	n := 0
	for _, c := range b {
		n += int(c)
	}
	return fmt.Sprintf("%d bytes, sum %d", len(b), n)
}

// Our client at Californium's server: whole messages, inner blocks both ways,
// and an observation.
func TestCaliforniumServer(t *testing.T) {
	c := newClient(t, startCalifornium(t))

	if r := c.ask(coap.GET, "hello", nil); r.Code != coap.Content || string(r.Payload) != "Hello World!" {
		t.Errorf("GET: %v %q", r.Code, r.Payload)
	}
	if r := c.ask(coap.POST, "hello", []byte("some text")); r.Code != coap.Changed || string(r.Payload) != "some text" {
		t.Errorf("POST: %v %q", r.Code, r.Payload)
	}
	if r := c.ask(coap.POST, "hello", large()); r.Code != coap.Changed || !bytes.Equal(r.Payload, large()) {
		t.Errorf("POST in blocks: %v, %d bytes", r.Code, len(r.Payload))
	}
	if r := c.ask(coap.GET, "large", nil); r.Code != coap.Content || !bytes.Equal(r.Payload, large()) {
		t.Errorf("GET in blocks: %v, %d bytes", r.Code, len(r.Payload))
	}

	m := &coap.Message{Code: coap.GET}
	m.Options.SetPath("counter")
	m.Options.SetUint(coap.ObserveOption, 0)
	ex, token, err := c.send(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		r, err := c.next(ex, token)
		if err != nil {
			t.Fatalf("notification %d: %v", i, err)
		}
		if want := fmt.Sprintf("count %d", i); string(r.Payload) != want || !r.Options.Has(coap.ObserveOption) {
			t.Errorf("notification %d: %v %q", i, r.Options, r.Payload)
		}
		post := &coap.Message{Code: coap.POST}
		post.Options.SetPath("counter")
		if _, _, err := c.send(t.Context(), post); err != nil {
			t.Fatal(err)
		}
	}
}

// startCalifornium runs the peer as a server until the test is over, and returns
// its address.
func startCalifornium(t *testing.T, args ...string) string {
	t.Helper()
	cmd := californium(context.WithoutCancel(t.Context()), t, "server", serverID, clientID, args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	var port int
	line, err := bufio.NewReader(out).ReadString('\n')
	if _, err2 := fmt.Sscanf(line, "ready %d", &port); err != nil || err2 != nil {
		t.Fatalf("the peer says %q", line)
	}
	return fmt.Sprintf("127.0.0.1:%d", port)
}

// Californium's client at our server. It does not observe here: of notifications
// whose inner Observe option is empty, as RFC 8613, Section 4.1.3.5.2 demands, it
// takes the first only, since it orders them by that value and not by their
// Partial IVs.
func TestCaliforniumClient(t *testing.T) {
	h := coap.HandlerFunc(func(_ context.Context, req *coap.Request) (*coap.Response, error) {
		switch path := strings.Join(req.Options.Path(), "/"); {
		case path == "hello" && req.Code == coap.GET:
			return &coap.Response{Code: coap.Content, Payload: []byte("Hello World!")}, nil
		case path == "hello" && req.Code == coap.POST:
			return &coap.Response{Code: coap.Changed, Payload: bytes.Clone(req.Payload)}, nil
		case path == "large":
			return &coap.Response{Code: coap.Content, Payload: large()}, nil
		}
		return nil, coap.Errorf(coap.NotFound, "nothing here")
	})
	addr := startServer(t, h)
	for i, c := range []struct {
		path, operation string
		want            []string
	}{
		{"hello", "get", []string{"2.05 Hello World!"}},
		{"hello", "post", []string{"2.04 some text"}},
		{"hello", "post-large", []string{"2.04 " + sumOf(large())}},
		{"large", "get", []string{"2.05 " + sumOf(large())}},
		{"nowhere", "get", []string{"4.04 nothing here"}},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
		cmd := californium(ctx, t, "client", clientID, serverID, "coap://"+addr+"/"+c.path, c.operation, fmt.Sprint(100*i))
		out, err := cmd.Output()
		cancel()
		if got := strings.TrimSpace(string(out)); err != nil || got != strings.Join(c.want, "\n") {
			t.Errorf("%s %s: %v\n%s", c.operation, c.path, err, got)
		}
	}
}
