//go:build interop

package interop

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/oscore"
)

// aiocoapEnv names a Python with aiocoap.
const aiocoapEnv = "GROUPGATE_TEST_AIOCOAP"

// patience bounds each test: what is local answers at once.
const patience = 30 * time.Second

func python(t *testing.T) string {
	t.Helper()
	p := os.Getenv(aiocoapEnv)
	if p == "" {
		t.Skipf("%s names no Python with aiocoap; .ci/run interop makes one", aiocoapEnv)
	}
	return p
}

// start runs a peer until the test ends; its errors go to the test's log.
func start(t *testing.T, name string, args ...string) *bufio.Scanner {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
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
		rest, _ := io.ReadAll(out)
		err := cmd.Wait()
		cancel()
		if err != nil || t.Failed() {
			t.Errorf("peer: %v\n%s\n%s", err, rest, stderr.String())
		}
	})
	return bufio.NewScanner(out)
}

// await reads lines until one is as wanted.
func await(t *testing.T, out *bufio.Scanner, want string) {
	t.Helper()
	for out.Scan() {
		if out.Text() == want {
			return
		}
	}
	t.Fatalf("the peer ended without %q", want)
}

// suite is a combination of parameters that both sides take.
type suite struct {
	name      string
	aead      int64
	aiocoap   string // its name there
	hkdf      int64
	hash      string
	idContext []byte
}

var suites = []suite{
	{"AES-CCM-16-64-128", cose.AlgAESCCM16_64_128, "AES-CCM-16-64-128", cose.AlgHMAC256, "sha256", nil},
	{"ID Context", cose.AlgAESCCM16_64_128, "AES-CCM-16-64-128", cose.AlgHMAC256, "sha256", []byte("context")},
	{"AES-CCM-16-128-128", cose.AlgAESCCM16_128_128, "AES-CCM-16-128-128", cose.AlgHMAC256, "sha256", nil},
	{"A128GCM", cose.AlgA128GCM, "A128GCM", cose.AlgHMAC256, "sha256", nil},
	{"A256GCM, SHA-512", cose.AlgA256GCM, "A256GCM", cose.AlgHMAC512, "sha512", nil},
	{"ChaCha20/Poly1305", cose.AlgChaCha20Poly1305, "ChaCha20/Poly1305", cose.AlgHMAC256, "sha256", nil},
}

var (
	ourID  = []byte{0x01}
	peerID = []byte{0x02, 0x03}
)

// context makes our end.
func (s *suite) context(t *testing.T, change func(*oscore.Params)) *oscore.Context {
	t.Helper()
	p := oscore.Params{
		MasterSecret: cose.NewSecret(masterSecret), MasterSalt: masterSalt, SenderID: ourID, RecipientID: peerID,
		IDContext: s.idContext, AEAD: s.aead, HKDF: s.hkdf,
	}
	if change != nil {
		change(&p)
	}
	c, err := oscore.New(p)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// folder makes the other end, as aiocoap keeps it. lost: it was not shut down
// orderly.
func (s *suite) folder(t *testing.T, lost bool) string {
	t.Helper()
	dir := t.TempDir()
	settings := map[string]any{
		"secret_hex": hex.EncodeToString(masterSecret), "salt_hex": hex.EncodeToString(masterSalt),
		"sender-id_hex": hex.EncodeToString(peerID), "recipient-id_hex": hex.EncodeToString(ourID),
		"algorithm": s.aiocoap, "kdf-hashfun": s.hash,
	}
	if s.idContext != nil {
		settings["id-context_hex"] = hex.EncodeToString(s.idContext)
	}
	write := func(name string, v any) {
		b, err := json.Marshal(v)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	write("settings.json", settings)
	if lost {
		write("sequence.json", map[string]any{"next-to-send": 300, "received": "unknown"})
	}
	return dir
}
