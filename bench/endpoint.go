package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/seed4911071e/groupgate/bench/peer"
	"github.com/seed4911071e/groupgate/coap"
)

// payloadSize is that of a rekey message, in bytes; bodySize that of a request.
const (
	payloadSize = 120
	bodySize    = 40
)

// rivals are whom our server is measured beside: the stock one, tuned and as its
// defaults have it, and what no server can do without.
var rivals = []struct{ kind, name string }{
	{peer.Own, ""}, {peer.Stock, stockName}, {peer.Plain, stockName + " (defaults)"}, {peer.Floor, "floor"},
}

// field starts a server of each kind, with n nodes each, all open.
func field(ctx context.Context, start Start, n int, observe bool, progress func(string)) (rigs []*rig, closeAll func() error, err error) {
	closeAll = func() (err error) {
		for _, r := range rigs {
			err = errors.Join(err, r.close())
		}
		return err
	}
	if n <= 0 {
		return nil, closeAll, fmt.Errorf("bench: %d nodes make no benchmark", n)
	}
	for _, k := range rivals {
		nodes := n
		if k.kind == peer.Stock || k.kind == peer.Plain {
			nodes = min(n, stockMost)
		}
		progress(fmt.Sprintf("%d nodes shake hands with %s", nodes, k.kind))
		r, err := newRig(ctx, start, k.kind, "", nodes)
		if err == nil {
			rigs = append(rigs, r)
			err = r.open(ctx, 0, nodes, observe, progress)
		}
		if err != nil {
			return nil, closeAll, errors.Join(err, closeAll())
		}
	}
	return rigs, closeAll, nil
}

// cost has the figures of each: ours beside every rival, and alone what we lost.
func cost(bench, of, plural string, n int, all []sample) (out []Result) {
	row := func(metric, unit string, value float64) Result {
		return Result{Bench: bench, Metric: metric, Unit: unit, N: n, Ours: value}
	}
	ours := all[0]
	for i, k := range rivals[1:] {
		r := all[i+1]
		out = append(out,
			row("cpu_us_per_"+of, "us", ours.micros()).below(k.name, r.micros()),
			row(plural+"_per_second", "1/s", ours.perSecond()).against(k.name, r.perSecond()))
	}
	return append(out, row(plural+"_lost", "1", float64(ours.lost)))
}

// Fanout measures what a notification costs the server, to n observers over DTLS:
// processor time, of a non-confirmable one and of a confirmable one with its
// acknowledgement. The stock server has 20,000 observers at most.
func Fanout(ctx context.Context, start Start, n int, progress func(string)) (out []Result, err error) {
	rigs, closeAll, err := field(ctx, start, n, true, progress)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeAll()) }()
	for _, c := range []struct {
		name    string
		confirm bool
	}{{"non", false}, {"con", true}} {
		progress("notifications, " + c.name)
		all, err := contest(rigs, func(r *rig) (sample, error) {
			return r.round(ctx, func() (int, int, error) { return r.publish(c.confirm, payloadSize) })
		})
		if err != nil {
			return nil, err
		}
		out = append(out, cost("fanout", c.name+"_notification", c.name+"_notifications", n, all)...)
		out = append(out, Result{Bench: "fanout", Metric: c.name + "_allocations_per_notification", Unit: "1", N: n, Ours: all[0].allocs()}.
			withPeer(stockName, all[1].allocs()))
	}
	return out, nil
}

func (s sample) perSecond() float64 { return float64(s.ops) / s.wall.Seconds() }
func (s sample) allocs() float64    { return float64(s.mallocs) / float64(max(s.ops, 1)) }

// requestsAtOnce is how many requests are under way: more overrun the buffer of the
// stock server's socket.
const requestsAtOnce = 128

// Requests measures what a request costs the server: CON POST with 40 bytes both
// ways, the response with the acknowledgement, of n clients in turn.
func Requests(ctx context.Context, start Start, n int, progress func(string)) (out []Result, err error) {
	rigs, closeAll, err := field(ctx, start, n, false, progress)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeAll()) }()
	progress("requests")
	all, err := contest(rigs, func(r *rig) (sample, error) {
		return r.round(ctx, func() (int, int, error) {
			o, err := r.echo(ctx, max(1000, r.nodes))
			return o.Answered, o.Failed + o.Refused, err
		})
	})
	if err != nil {
		return nil, err
	}
	return append(cost("requests", "request", "requests", n, all),
		Result{Bench: "requests", Metric: "allocations_per_request", Unit: "1", N: n, Ours: all[0].allocs()}.withPeer(stockName, all[1].allocs())), nil
}

// Handshakes measures handshakes with a pre-shared key, 64 at once, each with one
// request; and, while ClientHellos without a cookie come from invented addresses,
// how many honest ones succeed and what the server keeps of each such hello.
func Handshakes(ctx context.Context, start Start, n int, progress func(string)) (out []Result, err error) {
	if n < rounds+1 {
		return nil, fmt.Errorf("bench: %d handshakes make no benchmark", n)
	}
	per := max(1, n/(rounds+1))
	rigs := map[string]*rig{}
	defer func() {
		for _, r := range rigs {
			err = errors.Join(err, r.close())
		}
	}()
	for _, kind := range []string{peer.Own, peer.Stock} {
		// Each node shakes hands once: a stock server takes no second one.
		r, err := newRig(ctx, start, kind, "", (rounds+1)*per+floodHonest)
		if err != nil {
			return nil, err
		}
		rigs[kind] = r
	}
	progress(fmt.Sprintf("%d handshakes with each", (rounds+1)*per))
	measure := func(r *rig) func() (sample, error) {
		next := 0
		return func() (s sample, err error) {
			before, err := r.ask("usage")
			if err != nil {
				return s, err
			}
			begin := time.Now()
			err = r.open(ctx, next, next+per, false, progress)
			next += per
			s.ops, s.wall = per, time.Since(begin)
			if err != nil {
				return s, err
			}
			after, err := r.ask("usage")
			s.cpu, s.mallocs = after.CPU-before.CPU, after.Mallocs-before.Mallocs
			return s, err
		}
	}
	own, stock := measure(rigs[peer.Own]), measure(rigs[peer.Stock])
	all, err := contest([]*rig{rigs[peer.Own], rigs[peer.Stock]}, func(r *rig) (sample, error) {
		if r.kind == peer.Own {
			return own()
		}
		return stock()
	})
	if err != nil {
		return nil, err
	}
	a, b := all[0], all[1]
	row := func(metric, unit string, value float64) Result {
		return Result{Bench: "handshakes", Metric: metric, Unit: unit, N: n, Ours: value}
	}
	out = []Result{
		row("cpu_us_per_handshake", "us", a.micros()).below(stockName, b.micros()),
		row("handshakes_per_second", "1/s", a.perSecond()).against(stockName, b.perSecond()),
	}
	flood := map[string]flooded{}
	for _, kind := range []string{peer.Own, peer.Stock} {
		progress(fmt.Sprintf("a flood of ClientHellos at %s", kind))
		f, err := rigs[kind].flood(ctx, (rounds+1)*per)
		if err != nil {
			return nil, err
		}
		flood[kind] = f
	}
	f, g := flood[peer.Own], flood[peer.Stock]
	return append(out,
		row("honest_handshakes_in_flood", "%", f.honest).against(stockName, g.honest),
		row("bytes_per_unverified_hello", "B", f.bytes).withPeer(stockName, g.bytes),
		row("cpu_us_per_unverified_hello", "us", f.micros).below(stockName, g.micros),
	), nil
}

// Shape of the flood.
const (
	floodRate   = 10_000 // hellos per second
	floodTime   = 3 * time.Second
	floodHonest = 200
)

type flooded struct {
	honest        float64 // per cent
	bytes, micros float64 // per hello
}

// flood sends ClientHellos from invented addresses while the nodes from first on
// shake hands, evenly over the time.
func (r *rig) flood(ctx context.Context, first int) (f flooded, err error) {
	if _, err = r.ask("collect"); err != nil {
		return f, err
	}
	before, err := r.ask("usage")
	if err != nil {
		return f, err
	}
	flooding, stop := context.WithTimeout(ctx, floodTime)
	defer stop()
	type result struct {
		sent int
		err  error
	}
	ch := make(chan result, 1)
	go func() {
		sent, err := r.swarm.Flood(flooding, floodRate)
		ch <- result{sent, err}
	}()
	over := make(chan error, floodHonest)
	t := time.NewTicker(floodTime / floodHonest)
	defer t.Stop()
	for i := range floodHonest {
		select {
		case <-t.C:
		case <-ctx.Done():
			return f, ctx.Err()
		}
		go func() { over <- r.openOne(ctx, first+i, false) }()
	}
	sent := <-ch
	if sent.err != nil {
		return f, sent.err
	}
	after, err := r.ask("usage")
	if err != nil {
		return f, err
	}
	ok := 0
	for range floodHonest {
		if e := <-over; e == nil {
			ok++
		}
	}
	return flooded{
		honest: 100 * float64(ok) / floodHonest,
		bytes:  float64(max(0, after.RSS-before.RSS)) / float64(max(1, sent.sent)),
		micros: float64((after.CPU - before.CPU).Nanoseconds()) / 1000 / float64(max(1, sent.sent)),
	}, nil
}

// Restart kills our server with n observers, starts it again and counts who is
// reached by a confirmable notification and whose request is answered, without any
// new handshake. dir is an empty folder for the journal.
func Restart(ctx context.Context, start Start, dir string, n int, progress func(string)) (out []Result, err error) {
	if n <= 0 {
		return nil, fmt.Errorf("bench: %d nodes make no benchmark", n)
	}
	progress(fmt.Sprintf("%d nodes shake hands", n))
	r, err := newRig(ctx, start, peer.Own, dir, n)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	if err := r.open(ctx, 0, n, true, progress); err != nil {
		return nil, err
	}
	if !wait(ctx, settled) {
		return nil, ctx.Err()
	}
	before := r.swarm.Stats()
	progress("kill -9")
	if err := r.kill(); err != nil {
		return nil, err
	}
	took, err := r.restart(ctx, start, dir)
	if err != nil {
		return nil, err
	}
	progress("a notification to each, and a request of each")
	got, _, err := r.publish(true, payloadSize)
	if err != nil {
		return nil, err
	}
	m := &coap.Message{Code: coap.GET}
	m.Options.SetPath("state")
	o, err := r.swarm.Load(ctx, loadOf(m, n, requestsAtOnce))
	if err != nil {
		return nil, err
	}
	after := r.swarm.Stats()
	row := func(metric, unit string, value float64) Result {
		return Result{Bench: "restart", Metric: metric, Unit: unit, N: n, Ours: value}
	}
	return []Result{
		row("sessions_surviving_kill9", "%", 100*float64(o.Answered)/float64(n)),
		row("observations_surviving_kill9", "%", 100*float64(got)/float64(n)),
		row("restart_seconds", "s", took.Seconds()),
		row("new_handshakes", "1", float64(after.Handshakes-before.Handshakes)),
		row("records_with_a_number_used_twice", "1", float64(after.Undecipherable-before.Undecipherable)),
	}, nil
}
