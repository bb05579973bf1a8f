package ports

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"testing"
)

// No port twice in this process, and another process gets none that we have.
func TestFree(t *testing.T) {
	const child = "PORTS_CHILD"
	if s := os.Getenv(child); s != "" {
		if port, err := strconv.Atoi(s); err != nil || !free(port) || take(port) {
			t.Errorf("port %s is taken from another process: %v", s, err)
		}
		return
	}
	low, high := bounds()
	var mu sync.Mutex
	seen := map[int]bool{}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 20 {
				port := Free(t)
				mu.Lock()
				if seen[port] || port < low || port > high {
					t.Errorf("port %d: twice, or outside of %d to %d", port, low, high)
				}
				seen[port] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	cmd := exec.Command(os.Args[0], "-test.run=^TestFree$")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", child, Free(t)))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// A port is not given while anybody has it: another process that took it, UDP, TCP.
func TestTaken(t *testing.T) {
	held := Free(t)
	for _, network := range []string{"udp4", "tcp4"} {
		var c interface{ Close() error }
		var err error
		at := fmt.Sprint("127.0.0.1:", held)
		if network == "udp4" {
			c, err = net.ListenPacket(network, at)
		} else {
			c, err = net.Listen(network, at)
		}
		if err != nil {
			t.Fatal(err)
		}
		if free(held) {
			t.Errorf("port %d is free beside %s", held, network)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if !free(held) || take(held) {
		t.Errorf("port %d has no owner", held)
	}
	row := Row(t, 3)
	for i := range 3 {
		if take(row + i) {
			t.Errorf("port %d of a row has no owner", row+i)
		}
	}
}

func TestOutside(t *testing.T) {
	for _, c := range []struct{ from, to, low, high int }{
		{32768, 60999, 20000, 32767},
		{49152, 65535, 20000, 32767},
		{1024, 19999, 20000, 32767},
		{25000, 65535, 20000, 24999},
		{20500, 60999, 61000, 65535},
		{10000, 65535, 1024, 9999},
		{1024, 65535, 20000, 32767},
	} {
		if low, high := outside(c.from, c.to); low != c.low || high != c.high {
			t.Errorf("%d to %d: %d to %d", c.from, c.to, low, high)
		}
	}
}
