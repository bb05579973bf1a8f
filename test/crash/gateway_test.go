package crash

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"github.com/seed4911071e/groupgate/test/ports"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// startTime bounds a start, recovery of the database included.
const startTime = 30 * time.Second

// buildGateway builds the real binary, with the race detector when the test has
// it.
func buildGateway(dir string) (string, error) {
	bin := filepath.Join(dir, "gateway")
	args := []string{"build", "-o", bin}
	if raceDetector {
		args = append(args, "-race")
	}
	out, err := exec.Command("go", append(args, "github.com/seed4911071e/groupgate/cmd/gateway")...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return bin, nil
}

// gateway is one life of the process.
type gateway struct {
	cmd    *exec.Cmd
	ready  chan struct{} // closed when it says that it is ready
	ended  chan struct{} // closed when it is gone
	err    error         // of Wait; set before ended is closed
	stderr output
}

// launch starts the process and returns at once.
func launch(bin, config string) (*gateway, error) {
	g := &gateway{ready: make(chan struct{}), ended: make(chan struct{})}
	g.cmd = exec.Command(bin, "run", "--config", config)
	g.cmd.Env = append(os.Environ(), "GORACE=halt_on_error=1")
	g.cmd.Stderr = &g.stderr
	out, err := g.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := g.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		lines := bufio.NewScanner(out)
		for said := false; lines.Scan(); {
			if !said && strings.Contains(lines.Text(), " is ready") {
				said = true
				close(g.ready)
			}
		}
		_, _ = io.Copy(io.Discard, out)
		g.err = g.cmd.Wait()
		close(g.ended)
	}()
	return g, nil
}

// await waits until the gateway serves.
func (g *gateway) await() error {
	late := time.NewTimer(startTime)
	defer late.Stop()
	select {
	case <-g.ready:
		return nil
	case <-g.ended:
		return fmt.Errorf("the gateway ended while it started: %w\n%s", g.err, g.stderr.String())
	case <-late.C:
		g.kill()
		return fmt.Errorf("the gateway is not ready after %v\n%s", startTime, g.stderr.String())
	}
}

// alive says that the process did not end yet.
func (g *gateway) alive() bool {
	select {
	case <-g.ended:
		return false
	default:
		return true
	}
}

// kill ends the process with SIGKILL and waits for it: its ports and the lock
// of its folder are free then.
func (g *gateway) kill() {
	_ = g.cmd.Process.Kill()
	<-g.ended
}

// terminate ends the process with SIGTERM and waits for it.
func (g *gateway) terminate() error {
	if err := g.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	late := time.NewTimer(startTime)
	defer late.Stop()
	select {
	case <-g.ended:
	case <-late.C:
		g.kill()
		return errors.New("the gateway did not stop")
	}
	if g.err != nil {
		return fmt.Errorf("the gateway stopped with %w\n%s", g.err, g.stderr.String())
	}
	return nil
}

// complaint returns what no life of a gateway may write to its standard error.
func (g *gateway) complaint() string {
	for line := range strings.Lines(g.stderr.String()) {
		for _, bad := range []string{"panic", "fatal error", "DATA RACE", "level=ERROR", "internal error"} {
			if strings.Contains(line, bad) {
				return line
			}
		}
	}
	return ""
}

// output keeps the beginning of what a process writes.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

const maxOutput = 1 << 20

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.b.Len() < maxOutput {
		o.b.Write(p)
	}
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// doors are the addresses of the gateway, the same in all its lives.
type doors struct{ coaps, coap, http string }

func freeDoors(t testing.TB) doors {
	t.Helper()
	return doors{coaps: ports.Addr(t), coap: ports.Addr(t), http: ports.Addr(t)}
}
