package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/seed4911071e/groupgate/bench/peer"
)

const (
	// divertedPushes is how many notifications are sent while all nodes seem to be
	// where they are not.
	divertedPushes = 5
	// hush ends the wait for what may not come at all.
	hush = 500 * time.Millisecond
)

// rebound is what became of nodes that moved.
type rebound struct {
	asked, served   int     // after a move
	reached         float64 // per cent of the observers, by a confirmable notification afterwards
	pushes, perByte float64 // to an address that showed nothing: notifications and pings for each node, bytes for one from there
	meanwhile       float64 // of the same notifications, to each node itself
	again           float64 // per cent of the observers, once they were heard again
}

// Rebind has all n nodes change their port at once, as behind a NAT that lost its
// bindings, and each send one confirmable request: it measures who is served with no
// new handshake, and the processor time of that. Then somebody on the way sends a
// record of each node on from an address of his own, and the server notifies all:
// how much goes to that address, which never shows that it receives, and whether the
// nodes get the next notification once they were heard again. All observe. The stock
// server has 20,000 nodes at most.
func Rebind(ctx context.Context, start Start, n int, progress func(string)) (out []Result, err error) {
	if n <= 0 {
		return nil, fmt.Errorf("bench: %d nodes make no benchmark", n)
	}
	var rigs []*rig
	defer func() {
		for _, r := range rigs {
			err = errors.Join(err, r.close())
		}
	}()
	for kind, nodes := range map[string]int{peer.Own: n, peer.Stock: min(n, stockMost)} {
		progress(fmt.Sprintf("%d nodes shake hands with %s", nodes, kind))
		r, err := newRig(ctx, start, kind, "", nodes)
		if err != nil {
			return nil, err
		}
		if rigs = append(rigs, r); kind == peer.Own {
			rigs[0], rigs[len(rigs)-1] = r, rigs[0]
		}
		if err := r.open(ctx, 0, nodes, true, progress); err != nil {
			return nil, err
		}
	}
	progress("all change their port, again and again")
	became := map[*rig]*rebound{rigs[0]: {}, rigs[1]: {}}
	all, err := contest(rigs, func(r *rig) (sample, error) {
		return r.round(ctx, func() (int, int, error) {
			if err := r.swarm.Move(ctx); err != nil {
				return 0, 0, err
			}
			o, err := r.each(ctx)
			became[r].asked += r.nodes
			became[r].served += o
			return o, r.nodes - o, err
		})
	})
	if err != nil {
		return nil, err
	}
	for _, r := range rigs {
		progress("somebody pretends to be every node of " + r.kind)
		if err := r.rebound(ctx, became[r]); err != nil {
			return nil, err
		}
	}
	a, b := became[rigs[0]], became[rigs[1]]
	row := func(metric, unit string, value float64) Result {
		return Result{Bench: "rebind", Metric: metric, Unit: unit, N: n, Ours: value}
	}
	return []Result{
		row("served_without_handshake", "%", 100*float64(a.served)/float64(a.asked)).against(stockName, 100*float64(b.served)/float64(b.asked)),
		row("cpu_us_per_rebind", "us", all[0].micros()).below(stockName, all[1].micros()),
		row("rebinds_per_second", "1/s", all[0].perSecond()).against(stockName, all[1].perSecond()),
		row("observers_reached_after_move", "%", a.reached).against(stockName, b.reached),
		row("pushes_to_unverified_address", "1", a.pushes).withPeer(stockName, b.pushes),
		row("bytes_to_unverified_address_per_byte", "1", a.perByte).withPeer(stockName, b.perByte),
		row("pushes_to_nodes_meanwhile", "1", a.meanwhile).against(stockName, b.meanwhile),
		row("observers_reached_after_diversion", "%", a.again).against(stockName, b.again),
	}, nil
}

// each has every node send one request and says how many were answered.
func (r *rig) each(ctx context.Context) (int, error) {
	o, err := r.echo(ctx, r.nodes)
	return o.Answered, err
}

// rebound has the nodes notified where they are, where they are not, and where they
// are again.
func (r *rig) rebound(ctx context.Context, b *rebound) error {
	part := func(n int) float64 { return 100 * float64(n) / float64(r.nodes) }
	got, _, err := r.publish(true, payloadSize)
	if err != nil {
		return err
	}
	b.reached = part(got)
	// Answered after their acknowledgements, which prove where they are: else what is
	// sent on would overtake those, and their last proven address be one that they left.
	if _, err := r.each(ctx); err != nil {
		return err
	}
	m := echoRequest()
	var sent uint64
	answers := 0
	for first := 0; first < r.nodes; first += requestsAtOnce { // as many as the stock server can take
		s, err := r.swarm.Divert(first, min(first+requestsAtOnce, r.nodes), m)
		if err != nil {
			return err
		}
		sent += s.Bytes
		// The answer to the record goes there.
		answers = await(answers+int(s.Datagrams), hush, func() int { return int(r.swarm.Diverted().Datagrams) })
	}
	toNodes := r.swarm.Stats().Notifications
	for range divertedPushes {
		before := r.arrived()
		if _, err := r.ask(fmt.Sprint("publish non ", payloadSize)); err != nil {
			return err
		}
		await(before+r.nodes, hush, r.arrived)
	}
	came := r.swarm.Diverted()
	b.pushes = float64(int(came.Datagrams)-answers) / float64(r.nodes)
	b.meanwhile = float64(r.swarm.Stats().Notifications-toNodes) / float64(r.nodes)
	b.perByte = float64(came.Bytes) / float64(max(1, sent))
	if _, err := r.each(ctx); err != nil {
		return err
	}
	if got, _, err = r.publish(true, payloadSize); err != nil {
		return err
	}
	b.again = part(min(got, r.nodes)) // one may have been due, now that they were heard
	return nil
}

// arrived counts notifications, and what came to where no node is.
func (r *rig) arrived() int {
	return int(r.swarm.Stats().Notifications + r.swarm.Diverted().Datagrams)
}
