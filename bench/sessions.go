package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/bench/peer"
)

// settled is how long sessions are left alone before the server is killed: what
// came within a moment before a crash may be lost with it.
const settled = 2 * time.Second

// held is what a server has of each session, by its number.
type held struct{ rss, heap, goroutines float64 }

func heldBetween(before, after peer.Usage, n int) held {
	per := func(a, b int64) float64 { return float64(b-a) / float64(n) }
	return held{per(before.RSS, after.RSS), per(before.Heap, after.Heap), per(int64(before.Goroutines), int64(after.Goroutines))}
}

// Sessions measures what an association that does nothing costs: the resident memory
// of the server after a collection, with n of them, less that without, by n. idle is
// how long they do nothing before. There are three kinds:
//
//   - observers, beside those of the stock server, which has 20,000 at most;
//   - members of a group that observe it, in a whole gateway: what the Group Manager,
//     the delivery of rekeys and the tokens keep is counted too;
//   - persisted: observers that were brought back by a start after kill -9, before
//     anybody says or is told anything.
//
// The stock server knows no members and keeps nothing: its observers are the peer of
// those as well. Afterwards each has to show that it is still there, by acknowledging
// a notification or a rekey. Up to 10,000 sessions there are five rounds, in the
// order ABCDDCBA, of which the median counts. dir is an empty folder for what is kept.
func Sessions(ctx context.Context, start Start, dir string, n int, idle time.Duration, progress func(string)) (out []Result, err error) {
	if n <= 0 {
		return nil, fmt.Errorf("bench: %d nodes make no benchmark", n)
	}
	observer := func(kind string, n int) side {
		return func(string) (held, error) {
			return observers(ctx, start, kind, "", n, progress, func(r *rig) error {
				progress(fmt.Sprintf("%s idle for %v", kind, idle))
				wait(ctx, idle)
				return ctx.Err()
			})
		}
	}
	all, err := alternate(dir, roundsOf(n), []side{
		observer(peer.Own, n),
		observer(peer.Stock, min(n, stockMost)),
		func(dir string) (held, error) {
			return observers(ctx, start, peer.Own, dir, n, progress, func(r *rig) error { return r.crash(ctx, start, dir, progress) })
		},
		func(dir string) (held, error) { return members(ctx, start, dir, n, idle, progress) },
	})
	if err != nil {
		return nil, err
	}
	ours, stock, back, member := all[0], all[1], all[2], all[3]
	row := func(metric, unit string, value float64) Result {
		return Result{Bench: "sessions", Metric: metric, Unit: unit, N: n, Ours: value}
	}
	return []Result{
		row("rss_bytes_per_session", "B", ours.rss).below(stockName, stock.rss),
		row("heap_bytes_per_session", "B", ours.heap).below(stockName, stock.heap),
		row("goroutines_per_session", "1", ours.goroutines).withPeer(stockName, stock.goroutines),
		row("rss_bytes_per_session_member", "B", member.rss).below(stockName, stock.rss),
		row("heap_bytes_per_session_member", "B", member.heap).below(stockName, stock.heap),
		row("rss_bytes_per_session_persisted", "B", back.rss).below(stockName, stock.rss),
		row("heap_bytes_per_session_persisted", "B", back.heap).below(stockName, stock.heap),
	}, nil
}

// side measures one kind, in an empty folder.
type side func(dir string) (held, error)

// fewSessions is up to how many there is more than one round: what differs from one
// to the next is what the process as a whole takes, which many sessions share.
const fewSessions = 10_000

// sessionRounds is as [rounds]; tests have one.
var sessionRounds = rounds

func roundsOf(n int) int {
	if n > fewSessions {
		return 1
	}
	return sessionRounds
}

// alternate measures each side in turn, every other time in the inverse order (with
// two ABBA), and returns the round of each that is the median, by resident memory.
// Every server is one of its own, so nothing has to warm up.
func alternate(dir string, rounds int, sides []side) ([]held, error) {
	all := make([][]held, len(sides))
	for i := range rounds {
		for j := range sides {
			if i%2 == 1 {
				j = len(sides) - 1 - j
			}
			own := filepath.Join(dir, fmt.Sprintf("%d-%d", i, j))
			if err := os.Mkdir(own, 0o700); err != nil {
				return nil, err
			}
			h, err := sides[j](own)
			if err = errors.Join(err, os.RemoveAll(own)); err != nil {
				return nil, err
			}
			all[j] = append(all[j], h)
		}
	}
	out := make([]held, len(sides))
	for j, hs := range all {
		slices.SortFunc(hs, func(a, b held) int { return cmp.Compare(a.rss, b.rss) })
		out[j] = hs[len(hs)/2]
	}
	return out, nil
}

// observers is what a server has of each of n observers after meanwhile.
func observers(ctx context.Context, start Start, kind, dir string, n int, progress func(string), meanwhile func(*rig) error) (h held, err error) {
	progress(fmt.Sprintf("%d nodes shake hands with %s", n, kind))
	r, err := newRig(ctx, start, kind, dir, n)
	if err != nil {
		return h, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	before, err := r.collected()
	if err == nil {
		err = r.open(ctx, 0, n, true, progress)
	}
	if err == nil {
		err = meanwhile(r)
	}
	if err != nil {
		return h, err
	}
	after, err := r.collected()
	if err != nil {
		return h, err
	}
	// All are still there: each gets one notification and acknowledges it.
	got, lost, err := r.publish(true, payloadSize)
	if err == nil && lost > 0 {
		err = fmt.Errorf("bench: %s reached %d observers of %d after the pause", kind, got, n)
	}
	return heldBetween(before, after, n), err
}

// crash kills the server once what it keeps is on disk, and starts it again.
func (r *rig) crash(ctx context.Context, start Start, dir string, progress func(string)) error {
	if !wait(ctx, settled) {
		return ctx.Err()
	}
	progress("kill -9")
	if err := r.kill(); err != nil {
		return err
	}
	_, err := r.restart(ctx, start, dir)
	return err
}

// members is what a whole gateway has of each of n members that observe their group.
func members(ctx context.Context, start Start, dir string, n int, idle time.Duration, progress func(string)) (h held, err error) {
	b := &rekeyBench{kind: rekeyKind{bench: "sessions", group: observeGroup, channel: "observe", n: n}, progress: progress}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.open(ctx, start, dir, 0); err != nil {
		return h, err
	}
	progress(fmt.Sprintf("members idle for %v", idle))
	if !wait(ctx, idle) {
		return h, ctx.Err()
	}
	after, err := b.g.collected()
	if err != nil {
		return h, err
	}
	progress("a rekey, until everybody is reached")
	if _, err := b.rekey(ctx, "", nil); err != nil {
		return h, err
	}
	return heldBetween(b.empty, after, n), nil
}
