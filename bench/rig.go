package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/bench/peer"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/node/swarm"
)

// Shape of the benchmarks of the endpoint.
const (
	stockName = "go-coap"
	// stockMost bounds the sessions of the stock server: some 90 kB each.
	stockMost = 20_000
	// openAtOnce is how many handshakes are under way.
	openAtOnce = 64
	// rounds is how often each side is measured, in the order ABBA; the median
	// counts.
	rounds = 5
	// stall ends the wait for deliveries when nothing comes any more.
	stall = 3 * time.Second
)

// roundCPU is how much processor time of the server one round takes at least, so
// that the clock of the process is exact enough: 2 s in all. Tests have less.
var roundCPU = 400 * time.Millisecond

// Start runs a server of package peer and returns its input and output.
type Start func(ctx context.Context, kind, dir string) (io.WriteCloser, io.ReadCloser, error)

// Command starts servers as processes of their own: this program with the given
// arguments, to which the kind and the folder are added.
func Command(args ...string) Start {
	return func(ctx context.Context, kind, dir string) (io.WriteCloser, io.ReadCloser, error) {
		self, err := os.Executable()
		if err != nil {
			return nil, nil, err
		}
		cmd := exec.CommandContext(ctx, self, append(slices.Clone(args), kind, dir)...)
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		if err != nil {
			return nil, nil, err
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			return nil, nil, err
		}
		if err := cmd.Start(); err != nil {
			return nil, nil, err
		}
		return in, &process{out, cmd}, nil
	}
}

// rig is one server and the nodes at it.
type rig struct {
	child
	hello  peer.Hello
	nodes  int
	swarm  *swarm.Swarm
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// newRig starts a server and makes nodes for it, without any association.
func newRig(ctx context.Context, start Start, kind, dir string, nodes int) (*rig, error) {
	r := &rig{child: child{kind: kind}, nodes: nodes}
	err := r.begin(ctx, start, dir)
	if err != nil {
		return nil, err
	}
	if err := r.dec.Decode(&r.hello); err != nil {
		return nil, errors.Join(fmt.Errorf("bench: the server %s did not start: %w", kind, err), r.end())
	}
	r.swarm, err = swarm.New(swarm.Config{Gateway: r.hello.Addr, Nodes: nodes})
	if err != nil {
		return nil, errors.Join(err, r.end())
	}
	ctx, r.cancel = context.WithCancel(ctx)
	r.wg.Go(func() { _ = r.swarm.Run(ctx) }) // ends with the rig
	return r, nil
}

// restart starts another server in the place of one that was killed, for the same
// nodes; it says how long that took until it serves.
func (r *rig) restart(ctx context.Context, start Start, dir string) (time.Duration, error) {
	begin := time.Now()
	err := r.begin(ctx, start, dir)
	if err != nil {
		return 0, err
	}
	before := r.hello
	if err = r.dec.Decode(&r.hello); err == nil && before != r.hello {
		err = fmt.Errorf("bench: the server came back at %v, not %v", r.hello.Addr, before.Addr)
	}
	return time.Since(begin), err
}

func (r *rig) close() error {
	if r == nil {
		return nil
	}
	r.cancel()
	r.wg.Wait()
	return r.end()
}

// open has nodes shake hands and ask once for /state, observing or not.
func (r *rig) open(ctx context.Context, first, end int, observe bool, progress func(string)) error {
	failed, err := swarm.Each(ctx, first, end, openAtOnce, func(done int) {
		if done%5000 == 0 {
			progress(fmt.Sprintf("%s: %d associations", r.kind, done))
		}
	}, func(ctx context.Context, i int) error { return r.openOne(ctx, i, observe) })
	if failed > 0 {
		return fmt.Errorf("bench: %d of %d nodes were not let in by %s: %w", failed, end-first, r.kind, err)
	}
	return err
}

func (r *rig) openOne(ctx context.Context, i int, observe bool) error {
	c := swarm.Credential{Identity: fmt.Appendf(nil, "node-%d", i), Key: peer.Key}
	if err := r.swarm.Open(ctx, i, c); err != nil {
		return err
	}
	m := &coap.Message{Code: coap.GET}
	m.Options.SetPath("state")
	if observe {
		m.Options.SetUint(coap.ObserveOption, 0)
	}
	a, err := r.swarm.Do(ctx, i, m)
	if err != nil {
		return err
	}
	if a.Code != coap.Content || observe != a.Options.Has(coap.ObserveOption) {
		return fmt.Errorf("bench: node %d got %v, observing: %v", i, a.Code, a.Options.Has(coap.ObserveOption))
	}
	return nil
}

// sample is what a round of one side took.
type sample struct {
	ops  int
	lost int
	cpu  time.Duration
	wall time.Duration
	// mallocs of the server
	mallocs uint64
}

func (s sample) micros() float64 { return float64(s.cpu.Nanoseconds()) / 1000 / float64(max(s.ops, 1)) }

// least is how much processor time a round takes. The stock server with its defaults
// waits 4 s for each acknowledgement that overran the buffer of its socket.
func (r *rig) least() time.Duration {
	if r.kind == peer.Plain {
		return roundCPU / 4
	}
	return roundCPU
}

// round repeats step until the server has used enough processor time.
func (r *rig) round(ctx context.Context, step func() (ops, lost int, err error)) (s sample, err error) {
	before, err := r.ask("usage")
	if err != nil {
		return s, err
	}
	begin := time.Now()
	for {
		ops, lost, err := step()
		if err != nil {
			return s, err
		}
		s.ops, s.lost = s.ops+ops, s.lost+lost
		now, err := r.ask("usage")
		if err != nil {
			return s, err
		}
		s.cpu, s.wall, s.mallocs = now.CPU-before.CPU, time.Since(begin), now.Mallocs-before.Mallocs
		if s.cpu >= r.least() || ctx.Err() != nil {
			return s, ctx.Err()
		}
	}
}

// contest measures each side in turn, every other time in the inverse order (with
// two ABBA), and returns the round of each that is the median, by processor time. A
// first round warms up and does not count.
func contest(sides []*rig, measure func(*rig) (sample, error)) ([]sample, error) {
	all := make([][]sample, len(sides))
	for i := range rounds + 1 {
		for j := range sides {
			if i%2 == 1 {
				j = len(sides) - 1 - j
			}
			s, err := measure(sides[j])
			if err != nil {
				return nil, err
			}
			all[j] = append(all[j], s)
		}
	}
	out := make([]sample, len(sides))
	for j := range sides {
		out[j] = median(all[j][1:])
	}
	return out, nil
}

func median(s []sample) sample {
	slices.SortFunc(s, func(a, b sample) int {
		switch d := a.micros() - b.micros(); {
		case d < 0:
			return -1
		case d > 0:
			return 1
		}
		return 0
	})
	return s[len(s)/2]
}

// publish has the server notify all observers, and waits until the last of them
// has it, or nothing comes any more.
func (r *rig) publish(confirm bool, size int) (got, lost int, err error) {
	before := r.swarm.Stats().Notifications
	kind := "non"
	if confirm {
		kind = "con"
	}
	if _, err := r.ask("publish " + kind + " " + strconv.Itoa(size)); err != nil {
		return 0, 0, err
	}
	got = await(r.nodes, stall, func() int { return int(r.swarm.Stats().Notifications - before) })
	return got, max(0, r.nodes-got), nil
}

// await waits until count has come to want, or nothing more came for so long.
func await(want int, quiet time.Duration, count func() int) (got int) {
	last, since := count(), time.Now()
	for {
		if got = count(); got >= want {
			return got
		}
		if got != last {
			last, since = got, time.Now()
		} else if time.Since(since) > quiet {
			return got
		}
		time.Sleep(time.Millisecond)
	}
}

func loadOf(m *coap.Message, requests, atOnce int) swarm.Load {
	return swarm.Load{Requests: requests, AtOnce: atOnce, Message: func(int) *coap.Message { return m }}
}

// echo has the nodes send so many requests that are answered with what they hold.
func (r *rig) echo(ctx context.Context, requests int) (swarm.Outcome, error) {
	return r.swarm.Load(ctx, loadOf(echoRequest(), requests, min(r.nodes, requestsAtOnce)))
}

func echoRequest() *coap.Message {
	m := &coap.Message{Code: coap.POST, Payload: make([]byte, bodySize)}
	m.Options.SetPath("echo")
	return m
}
