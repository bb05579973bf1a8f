package bench

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/plugin/host"
)

// Shape of the join benchmark.
const (
	joinGroupSize = 1000 // members of one group at most
	joinAtOnce    = 64
	floorTime     = time.Second
	setupTime     = 5 * time.Minute
)

// Join measures joins over DTLS: every one a new member of a group of at most
// 1,000, every one durable before its answer, 64 at once; associations, tokens
// and the nodes' keys stand before the clock. Client and gateway share this
// process, so the figures include the nodes' own work: one signature, one
// verification, their half of DTLS and CoAP.
//
// The floor is what the Group Manager cannot do without: one Ed25519
// verification and one signature for each join, on one core.
//
// dir is an empty folder for the gateway's data; progress hears what is going
// on and may be nil.
func Join(ctx context.Context, dir string, n int, progress func(string)) ([]Result, error) {
	if n <= 0 {
		return nil, fmt.Errorf("bench: %d joins make no benchmark", n)
	}
	if progress == nil {
		progress = func(string) {}
	}
	progress("measuring the floor")
	floor := joinFloor()

	groups := make([]string, (n+joinGroupSize-1)/joinGroupSize)
	for i := range groups {
		groups[i] = fmt.Sprintf("bench-%d", i)
	}
	return withGateway(ctx, dir, groups, func(ctx context.Context, cfg *config.Config, at host.Addrs) ([]Result, error) {
		return measureJoins(ctx, cfg, at, n, floor, progress)
	})
}

// measureJoins prepares n nodes, then lets them join.
func measureJoins(ctx context.Context, cfg *config.Config, at host.Addrs, n int, floor floor, progress func(string)) ([]Result, error) {
	members := make([]*node.Member, n)
	defer func() {
		for _, m := range members {
			if m != nil {
				_ = m.Close()
			}
		}
	}()
	progress(fmt.Sprintf("opening %d associations", n))
	api := admin.NewClient(at.HTTP, string(cfg.AdminToken.Bytes()))
	prepCtx, cancel := context.WithTimeout(ctx, setupTime)
	defer cancel()
	err := each(prepCtx, n, func(ctx context.Context, i int) (err error) {
		members[i], err = joiner(ctx, api, cfg, at.CoAPS, i)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("bench: preparing the nodes: %w", err)
	}

	progress(fmt.Sprintf("%d joins, %d at once", n, joinAtOnce))
	took := make([]time.Duration, n)
	cpu, begin := cpuTime(), time.Now()
	err = each(ctx, n, func(ctx context.Context, i int) error {
		start := time.Now()
		err := members[i].Join(ctx)
		took[i] = time.Since(start)
		return err
	})
	elapsed, used := time.Since(begin), cpuTime()-cpu
	if err != nil {
		return nil, fmt.Errorf("bench: joining: %w", err)
	}
	if err := allJoined(ctx, api, n); err != nil {
		return nil, err
	}
	row := func(metric, unit string, value float64) Result {
		return Result{Bench: "join", Metric: metric, Unit: unit, N: n, Ours: value}
	}
	p50, p99 := percentile(took, 50), percentile(took, 99)
	return []Result{
		row("joins_per_second", "1/s", float64(n)/elapsed.Seconds()).against("floor", floor.perSecond),
		row("cpu_us_per_join", "us", float64(used.Microseconds())/float64(n)).below("floor", floor.cpuMicros),
		row("p50", "ms", float64(p50.Microseconds())/1000),
		row("p99", "ms", float64(p99.Microseconds())/1000),
	}, nil
}

// joiner makes the i-th node: a token for its group, an association opened with
// that token, a key pair; all but the join itself.
func joiner(ctx context.Context, api *admin.Client, cfg *config.Config, coaps string, i int) (*node.Member, error) {
	group := cfg.Groups[i/joinGroupSize].Name
	roles := groupcomm.Requester | groupcomm.Responder
	token, err := api.IssueToken(ctx, admin.TokenAsk{
		Audience: cfg.Tokens[0].Audience, Lifetime: "24h", Scope: []admin.ScopeEntry{{Group: group, Roles: []string{"requester", "responder"}}},
	})
	if err != nil {
		return nil, err
	}
	conveyed, err := hex.DecodeString(token.AccessToken)
	if err != nil {
		return nil, err
	}
	psk, err := hex.DecodeString(token.Key)
	if err != nil {
		return nil, err
	}
	// The token goes in psk_identity: no post, and N_S is an exporter value.
	t, err := node.DialDTLS(ctx, coaps, conveyed, psk)
	if err != nil {
		return nil, err
	}
	// The first request commits the token: it belongs before the clock.
	first := &coap.Request{Code: coap.GET}
	first.Options.SetPath("ace-group", group, "num")
	if resp, err := t.Do(ctx, first); err != nil || resp.Code != coap.Forbidden {
		return nil, errors.Join(fmt.Errorf("bench: a stranger's first request: %v, %w", resp, err), t.Close())
	}
	m, err := newJoiner(t, group, roles, i, false)
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return m, nil
}

// newJoiner is a node that knows the group's algorithms already.
func newJoiner(t node.Transport, group string, roles groupcomm.Roles, i int, mqtt bool) (*node.Member, error) {
	ns, err := node.Challenge(t)
	if err != nil {
		return nil, err
	}
	key, err := cose.GenerateKey(cose.AlgEdDSA)
	if err != nil {
		return nil, err
	}
	return node.New(node.Config{
		Group: group, Roles: roles, Key: key, Subject: fmt.Sprintf("bench-%d", i), MQTT: mqtt, PollEvery: time.Hour,
		Transfer: &groupcomm.TokenTransferResponse{KDCChallenge: ns, SignInfo: []groupcomm.SignInfoEntry{{
			Groups: []string{group}, Alg: cose.AlgEdDSA, AlgParams: []int64{cose.KtyOKP},
			KeyParams: []int64{cose.KtyOKP, cose.CrvEd25519}, CredFmt: 14,
		}}},
	}, t)
}

// allJoined makes sure that the gateway has every member that it answered.
func allJoined(ctx context.Context, api *admin.Client, n int) error {
	groups, err := api.Groups(ctx)
	if err != nil {
		return err
	}
	have := 0
	for _, g := range groups {
		if g.MemberCount != nil {
			have += *g.MemberCount
		}
	}
	if have != n {
		return fmt.Errorf("bench: %d nodes joined, the gateway has %d members", n, have)
	}
	return nil
}

// each calls f for 0 to n-1, joinAtOnce at a time, and stops at the first error.
func each(ctx context.Context, n int, f func(context.Context, int) error) error {
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range min(joinAtOnce, n) {
		g.Go(func() error {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return nil
				}
				if err := f(ctx, i); err != nil {
					return err
				}
			}
			return ctx.Err()
		})
	}
	return g.Wait()
}

// floor is what one verification and one signature take.
type floor struct {
	perSecond float64 // on one core, in the time that passes
	cpuMicros float64 // processor time of one pair: other load matters less
}

// joinFloor measures Ed25519 signatures made and verified on one core.
func joinFloor() floor {
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic("bench: internal error: " + err.Error()) // crypto/rand never fails
	}
	msg := make([]byte, 64)
	rounds, cpu, begin := 0, cpuTime(), time.Now()
	for time.Since(begin) < floorTime {
		if !ed25519.Verify(pub, msg, ed25519.Sign(priv, msg)) {
			panic("bench: internal error: a signature does not verify")
		}
		rounds++
	}
	return floor{
		perSecond: float64(rounds) / time.Since(begin).Seconds(),
		cpuMicros: float64((cpuTime() - cpu).Microseconds()) / float64(rounds),
	}
}
