// Package ports finds ports for tests that have to name one before it is bound: for
// another program, for a server that is stopped and started again, or for a place where
// nobody answers. Where the test itself binds a socket once, port 0 is better.
//
// A port that the kernel chose, and that was closed again, is one that the kernel
// chooses again, for any socket of any process. Those given here lie outside of
// its range, and each belongs to the process that asked until it ends.
package ports

import (
	"fmt"
	"net"
	"os"
	"sync"
	"testing"
)

// Where ports are looked for, unless the kernel's range begins within.
const (
	first = 20000
	last  = 32767
)

// Addr is an address on 127.0.0.1 that is free for UDP and TCP.
func Addr(t testing.TB) string {
	t.Helper()
	return fmt.Sprint("127.0.0.1:", Free(t))
}

// Free is a port that is free for UDP and TCP.
func Free(t testing.TB) int {
	t.Helper()
	return Row(t, 1)
}

// Row is the first of n free ports in a row.
func Row(t testing.TB, n int) int {
	t.Helper()
	mu.Lock()
	defer mu.Unlock()
	low, high := bounds()
	if next == 0 {
		next = low + os.Getpid()*61%(high-low+1) // processes start apart
	}
	for range high - low + 1 {
		port := next
		if next++; next > high {
			next = low
		}
		if port+n-1 > high {
			continue
		}
		got := 0
		for got < n && take(port+got) {
			got++
		}
		if got == n {
			return port
		}
	}
	t.Fatalf("no %d free ports between %d and %d", n, low, high)
	return 0
}

var (
	mu   sync.Mutex
	next int
	mine []net.Listener // never closed: the process's end gives the ports back
)

// take makes a port ours if it is free. An abstract Unix socket tells the other
// processes that ask here: it lives as long as this one.
func take(port int) bool {
	l, err := net.Listen("unix", fmt.Sprint("@groupgate-test-port-", port))
	if err != nil {
		return false
	}
	if !free(port) {
		_ = l.Close()
		return false
	}
	mine = append(mine, l)
	return true
}

// free asks for all addresses: that fails when one of them is in use.
func free(port int) bool {
	at := fmt.Sprint(":", port)
	u, err := net.ListenPacket("udp", at)
	if err != nil {
		return false
	}
	defer func() { _ = u.Close() }()
	l, err := net.Listen("tcp", at)
	if err != nil {
		return false
	}
	return l.Close() == nil
}

// bounds are the first and the last port to try.
func bounds() (low, high int) {
	var from, to int
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err == nil {
		_, err = fmt.Sscan(string(b), &from, &to)
	}
	if err != nil {
		return first, last
	}
	return outside(from, to)
}

// outside is a range of at least a thousand ports without those of the kernel; where there is
// none, the usual one: a port of it may then be taken by others after all.
func outside(from, to int) (low, high int) {
	const enough, unprivileged, top = 1000, 1024, 65535
	switch {
	case from > last || to < first:
		return first, last
	case from-first >= enough:
		return first, from - 1
	case top-to >= enough:
		return to + 1, top
	case from-unprivileged >= enough:
		return unprivileged, from - 1
	}
	return first, last
}
