// Package e2e tests the whole gateway over real sockets on loopback: as a
// program that is started, killed and started again, and in one process with
// the test where the test has to see both sides.
package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// patience bounds every wait. Nothing here takes that long on an idle machine,
// where only a node that has to find its association dead waits at all, for the
// 30 s or so that CoAP sends a request again; a busy machine is no failure.
const patience = 90 * time.Second

// program is the gateway as users start it, built once.
var program = sync.OnceValues(func() (string, error) {
	name := filepath.Join(buildDir, "gateway")
	out, err := exec.Command("go", "build", "-o", name, "github.com/seed4911071e/groupgate/cmd/gateway").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return name, nil
})

var buildDir string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if buildDir, err = os.MkdirTemp("", "groupgate-e2e-"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(buildDir) }()
		return m.Run()
	}())
}

// eventually looks again and again until what should come true does.
func eventually(t testing.TB, what string, look func() bool) {
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
		case <-t.Context().Done():
			t.Fatalf("test ended while waiting: %s", what)
		}
	}
}
