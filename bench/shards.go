package bench

import (
	"context"
	"errors"
	"fmt"

	"github.com/seed4911071e/groupgate/bench/peer"
)

// Shards measures the endpoint with several shards beside the endpoint with one:
// requests as those of [Requests], and confirmable notifications as those of
// [Fanout], to n nodes each. With fewer cores than shards and nodes need there is
// nothing to be gained.
func Shards(ctx context.Context, start Start, n, shards int, progress func(string)) (out []Result, err error) {
	if n <= 0 || shards < 2 {
		return nil, fmt.Errorf("bench: %d nodes and %d shards make no benchmark", n, shards)
	}
	var rigs []*rig
	defer func() {
		for _, r := range rigs {
			err = errors.Join(err, r.close())
		}
	}()
	for _, kind := range []string{peer.Sharded(shards), peer.Own} {
		progress(fmt.Sprintf("%d nodes shake hands with %s", n, kind))
		r, err := newRig(ctx, start, kind, "", n)
		if err != nil {
			return nil, err
		}
		rigs = append(rigs, r)
		if err := r.open(ctx, 0, n, true, progress); err != nil {
			return nil, err
		}
	}
	for _, c := range []struct {
		of, plural string
		do         func(r *rig) (ops, lost int, err error)
	}{
		{"request", "requests", func(r *rig) (int, int, error) {
			o, err := r.echo(ctx, max(1000, r.nodes))
			return o.Answered, o.Failed + o.Refused, err
		}},
		{"con_notification", "con_notifications", func(r *rig) (int, int, error) { return r.publish(true, payloadSize) }},
	} {
		progress(c.plural)
		all, err := contest(rigs, func(r *rig) (sample, error) {
			return r.round(ctx, func() (int, int, error) { return c.do(r) })
		})
		if err != nil {
			return nil, err
		}
		row := func(metric, unit string, value float64) Result {
			return Result{Bench: fmt.Sprintf("shards-%d", shards), Metric: metric, Unit: unit, N: n, Ours: value}
		}
		out = append(out,
			row("cpu_us_per_"+c.of, "us", all[0].micros()).below("one shard", all[1].micros()),
			row(c.plural+"_per_second", "1/s", all[0].perSecond()).against("one shard", all[1].perSecond()),
			row(c.plural+"_lost", "1", float64(all[0].lost)))
	}
	return out, nil
}
