// Package peer has the servers that the benchmarks of the endpoint compare: the
// gateway's own endpoint under the server core; a stock go-coap server over
// pion/dtls, tuned and as its manual has it; and the floor, which only moves and
// seals datagrams. All serve the same two resources to the same pre-shared key, each in a process of its own, which is told what to do by lines
// on its standard input and answers by lines of JSON.
//
//	/state   GET, observable; what Publish published
//	/echo    POST, answers with the body
package peer

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/seed4911071e/groupgate/endpoint"
)

// Key is the pre-shared key of every identity: the benchmarks are about nothing
// that is secret.
var Key = []byte("groupgate-bench!")

// Kinds of servers.
const (
	Own   = "own"
	Stock = "stock" // tuned as well as we know
	Plain = "plain" // the stock server as its defaults have it
	Floor = "floor" // see floor
)

// sharded is the beginning of kinds with several shards.
const sharded = Own + ":"

// Sharded is the kind of our own endpoint with n shards, which keeps nothing.
func Sharded(n int) string { return sharded + strconv.Itoa(n) }

// Server is what a kind of server offers to the benchmarks.
type Server interface {
	Addr() netip.AddrPort
	// Publish sends size bytes to all observers.
	Publish(confirm bool, size int)
	Close()
}

// Usage is what a server has used.
type Usage struct {
	CPU        time.Duration `json:"cpu"`        // user and system, since the start
	RSS        int64         `json:"rss"`        // bytes
	Heap       int64         `json:"heap"`       // bytes in use
	Goroutines int           `json:"goroutines"` // now
	Mallocs    uint64        `json:"mallocs"`    // since the start
}

// Hello is the first line of a server.
type Hello struct {
	Addr netip.AddrPort `json:"addr"`
}

// Options of a server.
type Options struct {
	Dir string // for what is to be kept; "": nothing is
}

// New starts a server of a kind.
func New(ctx context.Context, kind string, opts Options) (Server, error) {
	if n, ok := strings.CutPrefix(kind, sharded); ok {
		shards, err := strconv.Atoi(n)
		if err != nil || shards < 1 || shards > endpoint.MaxShards {
			return nil, fmt.Errorf("peer: %q shards", n)
		}
		return newOwn(ctx, opts, shards)
	}
	switch kind {
	case Own:
		return newOwn(ctx, opts, 1)
	case Stock:
		return newStock(true)
	case Plain:
		return newStock(false)
	case Floor:
		return newFloor()
	}
	return nil, fmt.Errorf("peer: no server %q", kind)
}

// Serve runs a server of a kind until its input ends.
func Serve(ctx context.Context, kind string, opts Options, in io.Reader, out io.Writer) error {
	s, err := New(ctx, kind, opts)
	if err != nil {
		return err
	}
	defer s.Close()
	enc := json.NewEncoder(out)
	if err := enc.Encode(Hello{s.Addr()}); err != nil {
		return err
	}
	for lines := bufio.NewScanner(in); lines.Scan(); {
		words := strings.Fields(lines.Text())
		if len(words) == 3 && words[0] == "publish" {
			size, err := strconv.Atoi(words[2])
			if err != nil || size < 0 || size > 1024 {
				return fmt.Errorf("peer: size %q", words[2])
			}
			s.Publish(words[1] == "con", size)
			words = []string{"usage"}
		}
		u, err := Tell(strings.Join(words, " "))
		if err != nil {
			return err
		}
		if err := enc.Encode(u); err != nil {
			return err
		}
	}
	return nil
}

// Tell says what this process has used; "collect": after a collection, which
// "usage" does without.
func Tell(what string) (Usage, error) {
	switch what {
	case "collect":
		runtime.GC()
		debug.FreeOSMemory()
	case "usage":
	default:
		return Usage{}, fmt.Errorf("peer: what is %q", what)
	}
	return usage(), nil
}

func usage() Usage {
	var u Usage
	var r syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &r) == nil {
		u.CPU = time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	u.Heap, u.Mallocs, u.Goroutines = int64(m.HeapAlloc), m.Mallocs, runtime.NumGoroutine()
	b, err := os.ReadFile("/proc/self/statm")
	if f := strings.Fields(string(b)); err == nil && len(f) > 1 {
		pages, _ := strconv.ParseInt(f[1], 10, 64) // 0 says that it is not known
		u.RSS = pages * int64(os.Getpagesize())
	}
	return u
}
