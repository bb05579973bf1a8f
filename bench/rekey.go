package bench

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/plugin/host"
)

// Shape of the rekey benchmark.
const (
	rekeyRounds   = 5                     // the median counts
	rekeyJoins    = 40                    // joins at most while one rekey is delivered
	rekeyLook     = 10 * time.Millisecond // between looks at the progress
	rekeyTime     = 2 * time.Minute       // for one rekey to reach everybody
	observeGroup  = "bench-observe"
	overMQTTGroup = "bench-over-mqtt"
	newcomerGroup = "bench-newcomers"
)

// Rekey measures how long a rekey takes to reach every member of a group of n
// and to be confirmed by it, on disk: once for members that observe the group
// over DTLS, once for members on the embedded broker; what that sends; and how
// long joins into another group take meanwhile, one after the other. Nodes and
// gateway share this process, so the figures include the nodes' own work.
//
// messages_sent and bytes_sent are those of one rekey: messages handed to the
// network or the broker, and the bytes of the rekey in them, without the headers
// of CoAP, DTLS and MQTT.
//
// dir is an empty folder for the gateway's data; progress may be nil.
func Rekey(ctx context.Context, dir string, n int, progress func(string)) ([]Result, error) {
	if n <= 0 {
		return nil, fmt.Errorf("bench: %d members make no benchmark", n)
	}
	if progress == nil {
		progress = func(string) {}
	}
	groups := []string{observeGroup, overMQTTGroup, newcomerGroup}
	return withGateway(ctx, dir, groups, func(ctx context.Context, cfg *config.Config, at host.Addrs) (out []Result, err error) {
		b := &rekeyBench{cfg: cfg, at: at, n: n, progress: progress, api: admin.NewClient(at.HTTP, string(cfg.AdminToken.Bytes()))}
		for _, kind := range []struct {
			bench, group, channel string
			mqtt                  bool
		}{{"rekey-observe", observeGroup, "observe", false}, {"rekey-mqtt", overMQTTGroup, "mqtt", true}} {
			rows, err := b.measure(ctx, kind.bench, kind.group, kind.channel, kind.mqtt)
			if err != nil {
				return nil, err
			}
			out = append(out, rows...)
		}
		return out, nil
	})
}

type rekeyBench struct {
	cfg      *config.Config
	at       host.Addrs
	api      *admin.Client
	n        int
	progress func(string)
	made     int // nodes so far
}

// measure fills a group with nodes that follow it, and rekeys it.
func (b *rekeyBench) measure(ctx context.Context, bench, group, channel string, mqtt bool) (rows []Result, err error) {
	b.progress(fmt.Sprintf("%d nodes join %s", b.n, group))
	members, err := b.nodes(ctx, b.n, group, mqtt, true)
	defer closeAll(members)
	if err != nil {
		return nil, err
	}
	following, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer func() { stop(); wg.Wait() }()
	for _, m := range members {
		wg.Go(func() { _ = m.Follow(following) }) // ends with the benchmark
	}
	b.progress("a first rekey, until everybody is reached")
	if _, err := b.rekey(ctx, group, nil); err != nil {
		return nil, err
	}

	var took, joins []time.Duration
	var messages, bytes float64
	for round := range rekeyRounds {
		b.progress(fmt.Sprintf("rekey %d of %d", round+1, rekeyRounds))
		newcomers, err := b.nodes(ctx, rekeyJoins, newcomerGroup, false, false)
		if err != nil {
			closeAll(newcomers)
			return nil, err
		}
		before, err := b.sent(ctx, channel)
		if err == nil {
			var r rekeyRound
			if r, err = b.rekey(ctx, group, newcomers); err == nil {
				took, joins = append(took, r.took), append(joins, r.joins...)
			}
		}
		closeAll(newcomers)
		if err != nil {
			return nil, err
		}
		after, err := b.sent(ctx, channel)
		if err != nil {
			return nil, err
		}
		messages += (after.messages - before.messages) / rekeyRounds
		bytes += (after.bytes - before.bytes) / rekeyRounds
	}
	row := func(metric, unit string, value float64) Result {
		return Result{Bench: bench, Metric: metric, Unit: unit, N: b.n, Ours: value}
	}
	return []Result{
		row("seconds_to_all_confirmed", "s", percentile(took, 50).Seconds()),
		row("messages_sent", "1", messages),
		row("bytes_sent", "B", bytes),
		row("join_p99_ms_meanwhile", "ms", float64(percentile(joins, 99).Microseconds())/1000),
	}, nil
}

// rekeyRound is one rekey.
type rekeyRound struct {
	took  time.Duration
	joins []time.Duration
}

// rekey renews a group's keys and waits until every member confirmed them, while
// newcomers join elsewhere, one after the other.
func (b *rekeyBench) rekey(ctx context.Context, group string, newcomers []*node.Member) (r rekeyRound, err error) {
	ctx, cancel := context.WithTimeout(ctx, rekeyTime)
	defer cancel()
	over, end := context.WithCancel(ctx)
	defer end()
	var g errgroup.Group
	start := time.Now()
	g.Go(func() error {
		for _, m := range newcomers {
			if over.Err() != nil {
				return nil // what joins now does not join meanwhile
			}
			began := time.Now()
			if err := m.Join(ctx); err != nil {
				return fmt.Errorf("bench: joining meanwhile: %w", err)
			}
			r.joins = append(r.joins, time.Since(began))
		}
		return nil
	})
	done, err := b.api.Rekey(ctx, group, "benchmark")
	for err == nil {
		var d *admin.DeliveryInfo
		if d, err = b.api.Delivery(ctx, group, false); err != nil || d.Version >= done.Version && d.Delivered == d.Members {
			break
		}
		select {
		case <-time.After(rekeyLook):
		case <-ctx.Done():
			err = fmt.Errorf("bench: %d of %d members confirmed: %w", d.Delivered, d.Members, ctx.Err())
		}
	}
	r.took = time.Since(start)
	end()
	return r, errors.Join(err, g.Wait())
}

// nodes makes nodes of a group; joined ones are members already.
func (b *rekeyBench) nodes(ctx context.Context, n int, group string, mqtt, joined bool) ([]*node.Member, error) {
	ctx, cancel := context.WithTimeout(ctx, setupTime)
	defer cancel()
	members := make([]*node.Member, n)
	base := b.made
	b.made += n
	err := each(ctx, n, func(ctx context.Context, i int) error {
		m, err := b.node(ctx, group, base+i, mqtt)
		if err != nil {
			return err
		}
		members[i] = m
		if joined {
			return m.Join(ctx)
		}
		return nil
	})
	if err != nil {
		return members, fmt.Errorf("bench: preparing the nodes: %w", err)
	}
	return members, nil
}

// node makes the i-th node: a token, an association opened with it, a key pair.
func (b *rekeyBench) node(ctx context.Context, group string, i int, mqtt bool) (*node.Member, error) {
	token, err := b.api.IssueToken(ctx, admin.TokenAsk{
		Audience: b.cfg.Tokens[0].Audience, Lifetime: "24h", Scope: []admin.ScopeEntry{{Group: group, Roles: []string{"requester", "responder"}}},
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
	t, err := node.DialDTLS(ctx, b.at.CoAPS, conveyed, psk)
	if err != nil {
		return nil, err
	}
	m, err := node.New(node.Config{
		Group: group, Roles: groupcomm.Requester | groupcomm.Responder, Subject: fmt.Sprintf("bench-%d", i), MQTT: mqtt, PollEvery: time.Hour,
	}, t)
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return m, nil
}

func closeAll(members []*node.Member) {
	for _, m := range members {
		if m != nil {
			_ = m.Close()
		}
	}
}

// sent is what the gateway sent over a channel so far.
type sent struct{ messages, bytes float64 }

// sent reads the gateway's metrics.
func (b *rekeyBench) sent(ctx context.Context, channel string) (s sent, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+b.at.HTTP+"/metrics", nil)
	if err != nil {
		return s, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		for metric, into := range map[string]*float64{"messages": &s.messages, "bytes": &s.bytes} {
			if name == fmt.Sprintf("groupgate_bridge_sent_%s_total{channel=%q}", metric, channel) {
				if *into, err = strconv.ParseFloat(value, 64); err != nil {
					return s, err
				}
			}
		}
	}
	return s, lines.Err()
}
