package soak

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/bench/peer"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/node/swarm"
)

// serverEnv has this program be the server, with its state in that folder.
const serverEnv = "GROUPGATE_SOAK_SERVER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(serverEnv); dir != "" {
		if err := peer.Serve(context.Background(), peer.Own, peer.Options{Dir: dir}, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// Sizes of notifications, which tell the last from the others.
const (
	someSize = 120
	lastSize = 77
)

// Bounds of what a process may have gained between two moments with the same sessions:
// heap after a collection, in bytes, and goroutines, of which 256 wait for work
// (endpoint/crew.go).
//
// Under load two thirds of the heap are what is remembered for copies of requests: up to
// 64 messages of each node, as many as its load of the last minutes came to, and that
// is never quite the same. So where the heap after the last load is larger than after
// the first, it is looked at once more when all of that is over, beside what it was
// before any load: what is left then was left behind.
const (
	heapGrowth    = 1.25
	heapSlack     = 2 << 20
	mostGoroutine = 320

	forgotten = 247*time.Second + 20*time.Second // EXCHANGE_LIFETIME (RFC 7252, Section 4.8.2), and sweeps
)

// grew says that a heap has more than the bound allows over an earlier one.
func grew(from, to peer.Usage) bool {
	return float64(to.Heap) > heapGrowth*float64(from.Heap)+heapSlack
}

// patience is how long the last notification may take: MAX_TRANSMIT_WAIT (RFC 7252,
// Section 4.8.2) of one before it, and of its own.
const patience = 2 * 93 * time.Second

// soak is a run of it.
type soak struct {
	t   *testing.T
	dir string
	rng *rand.Rand
	tap *tap
	s   *swarm.Swarm
	n   int

	cmd *exec.Cmd
	in  io.WriteCloser
	dec *json.Decoder

	last      []atomic.Bool // who has the last notification
	lasts     atomic.Int64
	answered  int
	refused   int
	published int
	kills     int
	stops     int
}

// start runs the server, at a port of its own.
func (k *soak) start() {
	k.t.Helper()
	_ = os.Remove(filepath.Join(k.dir, "addr")) // another may have that port by now
	self, err := os.Executable()
	if err != nil {
		k.t.Fatal(err)
	}
	k.cmd = exec.Command(self)
	k.cmd.Env = append(os.Environ(), serverEnv+"="+k.dir)
	k.cmd.Stderr = os.Stderr
	in, err := k.cmd.StdinPipe()
	if err != nil {
		k.t.Fatal(err)
	}
	out, err := k.cmd.StdoutPipe()
	if err != nil {
		k.t.Fatal(err)
	}
	if err := k.cmd.Start(); err != nil {
		k.t.Fatal(err)
	}
	k.in, k.dec = in, json.NewDecoder(bufio.NewReader(out))
	var hello peer.Hello
	if err := k.dec.Decode(&hello); err != nil {
		k.t.Fatalf("the server did not start: %v", err)
	}
	k.tap.server.Store(&hello.Addr)
}

// stop ends the server, as a crash does or as told.
func (k *soak) stop(crash bool) {
	k.t.Helper()
	if crash {
		k.kills++
		_ = k.cmd.Process.Kill()
		_ = k.cmd.Wait() // it was killed
		_ = k.in.Close()
		return
	}
	k.stops++
	_ = k.in.Close()
	if err := k.cmd.Wait(); err != nil {
		k.t.Errorf("the server ended: %v", err)
	}
}

// ask sends a line to the server.
func (k *soak) ask(line string) (u peer.Usage) {
	k.t.Helper()
	if _, err := io.WriteString(k.in, line+"\n"); err != nil {
		k.t.Fatal(err)
	}
	if err := k.dec.Decode(&u); err != nil {
		k.t.Fatal(err)
	}
	return u
}

// collected is what the server uses after a collection.
func (k *soak) collected() peer.Usage {
	k.ask("collect")
	return k.ask("collect")
}

func (k *soak) notify(size int, confirm bool) {
	kind := "non"
	if confirm {
		kind = "con"
	}
	k.ask(fmt.Sprint("publish ", kind, " ", size))
	k.published++
}

// load has nodes ask, half of them for something to be done.
func (k *soak) load(requests int) {
	k.t.Helper()
	get, post := &coap.Message{Code: coap.GET}, &coap.Message{Code: coap.POST, Payload: make([]byte, 40)}
	get.Options.SetPath("state")
	post.Options.SetPath("echo")
	i := 0
	o, err := k.s.Load(k.t.Context(), swarm.Load{Requests: requests, Message: func(int) *coap.Message {
		if i++; i%2 == 0 {
			return get
		}
		return post
	}})
	if err != nil {
		k.t.Fatal(err)
	}
	k.answered, k.refused = k.answered+o.Answered, k.refused+o.Refused
	if o.Failed > 0 || o.Refused > 0 && o.LastCode != coap.Unauthorized {
		// 4.01 asks for Echo after a restart (docs/endpoint.md).
		k.t.Errorf("of %d requests %d failed and %d were refused, one with %v", requests, o.Failed, o.Refused, o.LastCode)
	}
}

// step is one round of load: some nodes move, all are notified, many ask.
func (k *soak) step(requests int) {
	k.tap.move(20, k.rng.IntN)
	k.notify(someSize, k.published%2 == 1)
	k.load(requests)
}

// restart ends the server while notifications are under way, and if busy
// requests as well, and starts it again.
func (k *soak) restart(crash, busy bool, requests int) {
	k.notify(someSize, true)
	over := make(chan struct{})
	go func() {
		defer close(over)
		if busy {
			k.load(requests)
		}
	}()
	k.stop(crash)
	k.start()
	<-over
}

// runSoak opens n observers, and then has rounds of load: some without, some with, and
// some without restarts again, until each phase says that it is over. settle is how
// long the server is left alone before its memory is looked at: what is forgotten of
// the last requests goes at its next sweep.
func runSoak(t *testing.T, n, requests int, busy bool, settle time.Duration, phases [3]func(*soak) bool) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	k := &soak{t: t, n: n, dir: t.TempDir(), rng: rand.New(rand.NewPCG(seed, 1)), tap: newTap(t), last: make([]atomic.Bool, n)}
	k.start()
	t.Cleanup(func() { _ = k.cmd.Process.Kill(); _ = k.cmd.Wait() }) // it ended, or the test failed
	var err error
	k.s, err = swarm.New(swarm.Config{Gateway: k.tap.addr(), Nodes: n, Notified: func(i int, m *coap.Message) {
		if len(m.Payload) == lastSize && !k.last[i].Swap(true) {
			k.lasts.Add(1)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = k.s.Run(ctx) }() // ends with ctx
	defer func() { cancel(); <-ended }()
	failed, err := swarm.Each(t.Context(), 0, n, 32, func(int) {}, func(ctx context.Context, i int) error {
		if err := k.s.Open(ctx, i, swarm.Credential{Identity: fmt.Appendf(nil, "node-%d", i), Key: peer.Key}); err != nil {
			return err
		}
		m := &coap.Message{Code: coap.GET}
		m.Options.SetPath("state")
		m.Options.SetUint(coap.ObserveOption, 0)
		a, err := k.s.Do(ctx, i, m)
		if err == nil && !a.Options.Has(coap.ObserveOption) {
			err = fmt.Errorf("node %d does not observe: %v", i, a.Code)
		}
		return err
	})
	if failed > 0 || err != nil {
		t.Fatalf("%d of %d nodes were not let in: %v", failed, n, err)
	}
	opened := k.s.Stats().Handshakes
	idle := k.collected()

	for phases[0](k) {
		k.step(requests)
	}
	time.Sleep(settle)
	before := k.collected()
	for phases[1](k) {
		k.step(requests)
		k.restart(k.rng.IntN(2) == 0, busy, requests)
	}
	for phases[2](k) {
		k.step(requests)
	}
	k.load(n) // one of each: whoever moved is heard at its address
	time.Sleep(settle)
	after := k.collected()
	from := before
	if grew(before, after) {
		t.Logf("heap %d B after the first load, %d B after the last: again without any", before.Heap, after.Heap)
		time.Sleep(forgotten)
		after, from = k.collected(), idle
	}
	k.notify(lastSize, true)
	for until := time.Now().Add(patience); k.lasts.Load() < int64(n) && time.Now().Before(until); {
		time.Sleep(5 * time.Millisecond)
	}
	st := k.s.Stats()
	k.stop(false)
	k.tap.mu.Lock()
	defer k.tap.mu.Unlock()
	t.Logf("%d observers, %d requests (%d asked for Echo), %d notifications to all (%d came, %d acknowledged), %d kills and %d stops, %d moves, %d records looked at",
		n, k.answered, k.refused, k.published, st.Notifications, st.Acknowledged, k.kills, k.stops, k.tap.moves, k.tap.seen)
	t.Logf("heap %d B without load, %d B before the restarts, %d B at the end; resident %d B, %d B; %d goroutines, %d",
		idle.Heap, before.Heap, after.Heap, before.RSS, after.RSS, before.Goroutines, after.Goroutines)
	for _, bad := range k.tap.bad {
		t.Error(bad)
	}
	if got := k.lasts.Load(); got != int64(n) {
		t.Errorf("%d observers of %d got the last notification", got, n)
	}
	if st.Handshakes != opened || st.Failed != 0 || st.Closed != 0 || st.Undecipherable != 0 {
		t.Errorf("%d handshakes after the first %d, %d failed, %d associations closed, %d records that did not open or came twice",
			st.Handshakes-opened, opened, st.Failed, st.Closed, st.Undecipherable)
	}
	if grew(from, after) {
		t.Errorf("the heap grew from %d to %d bytes", from.Heap, after.Heap)
	}
	if after.Goroutines > mostGoroutine {
		t.Errorf("%d goroutines are left", after.Goroutines)
	}
}

// times is a phase of so many rounds.
func times(n int) func(*soak) bool {
	return func(*soak) bool { n--; return n >= 0 }
}

// TestSoak: through crashes, restarts and changes of address no observer is lost,
// nobody has to shake hands again, no record number is used twice, and nothing is
// left behind. TestSoakLong, with the tag long, does the same for ten minutes.
func TestSoak(t *testing.T) {
	runSoak(t, 40, 200, false, 0, [3]func(*soak) bool{times(2), times(2), times(1)})
}
