package bench

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
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
	overTreeGroup = "bench-over-tree"
	newcomerGroup = "bench-newcomers"
)

// Rekey measures how long a rekey takes to reach every member of a group of n
// and to be confirmed by it, on disk: once for members that observe the group
// over DTLS, once for members on the embedded broker that are told one by one, and
// once for members there that follow a key tree, after one of them is evicted; what
// that sends; and how long joins into another group take meanwhile, one after the
// other. The peer of the key tree are the members that are told one by one, in the
// same run. Nodes and gateway share this process, so the figures include the nodes'
// own work.
//
// n is the number of members that observe, mqtt that of those on the broker, 0: as
// many; each takes some descriptors.
//
// messages_sent and bytes_sent are those of one rekey: messages handed to the
// network or the broker, and the bytes of the rekey in them, without the headers
// of CoAP, DTLS and MQTT.
//
// dir is an empty folder for the gateway's data; progress may be nil.
func Rekey(ctx context.Context, dir string, n, mqtt int, progress func(string)) ([]Result, error) {
	if n <= 0 {
		return nil, fmt.Errorf("bench: %d members make no benchmark", n)
	}
	if progress == nil {
		progress = func(string) {}
	}
	if mqtt == 0 {
		mqtt = n
	}
	groups := []string{observeGroup, overMQTTGroup, overTreeGroup, newcomerGroup}
	return withGateway(ctx, dir, groups, func(ctx context.Context, cfg *config.Config, at host.Addrs) (out []Result, err error) {
		b := &rekeyBench{cfg: cfg, at: at, progress: progress, api: admin.NewClient(at.HTTP, string(cfg.AdminToken.Bytes()))}
		if out, err = b.measure(ctx, rekeyKind{bench: "rekey-observe", group: observeGroup, channel: "observe", n: n}); err != nil {
			return nil, err
		}
		alone, err := b.measure(ctx, rekeyKind{bench: "rekey-mqtt", group: overMQTTGroup, channel: "mqtt", n: mqtt, mqtt: true})
		if err != nil {
			return nil, err
		}
		tree, err := b.measure(ctx, rekeyKind{bench: "rekey-tree", group: overTreeGroup, channel: "mqtt", n: mqtt, mqtt: true, leave: true})
		if err != nil {
			return nil, err
		}
		for i := range tree {
			tree[i] = tree[i].below("point-to-point", alone[i].Ours)
		}
		return append(append(out, alone...), tree...), nil
	})
}

// rekeyKind is one way in which members are told.
type rekeyKind struct {
	bench, group, channel string
	n                     int
	mqtt                  bool
	leave                 bool // a member is evicted, instead of a rekey without a cause
}

type rekeyBench struct {
	cfg      *config.Config
	at       host.Addrs
	api      *admin.Client
	progress func(string)
	made     int // nodes so far
}

// measure fills a group with nodes that follow it, and rekeys it.
func (b *rekeyBench) measure(ctx context.Context, k rekeyKind) (rows []Result, err error) {
	b.progress(fmt.Sprintf("%d nodes join %s", k.n, k.group))
	leavers := 0
	if k.leave {
		leavers = rekeyRounds
	}
	members, err := b.nodes(ctx, k.n+leavers, k.group, k.mqtt, true)
	defer func() { closeAll(members) }()
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
	if _, err := b.rekey(ctx, k.group, "", nil); err != nil {
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
		out := ""
		if k.leave { // one in the middle of the tree
			i := len(members) / 2
			s, _ := members[i].State()
			defer closeAll([]*node.Member{members[i]})
			out, members = s.Node, slices.Delete(members, i, i+1)
		}
		before, err := b.sent(ctx, k.channel)
		if err == nil {
			var r rekeyRound
			if r, err = b.rekey(ctx, k.group, out, newcomers); err == nil {
				took, joins = append(took, r.took), append(joins, r.joins...)
			}
		}
		closeAll(newcomers)
		if err != nil {
			return nil, err
		}
		after, err := b.sent(ctx, k.channel)
		if err != nil {
			return nil, err
		}
		messages += (after.messages - before.messages) / rekeyRounds
		bytes += (after.bytes - before.bytes) / rekeyRounds
	}
	row := func(metric, unit string, value float64) Result {
		return Result{Bench: k.bench, Metric: metric, Unit: unit, N: k.n, Ours: value}
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

// rekey renews a group's keys, because the node out is evicted or, if that is "",
// for no reason, and waits until every member confirmed them, while newcomers join
// elsewhere, one after the other.
func (b *rekeyBench) rekey(ctx context.Context, group, out string, newcomers []*node.Member) (r rekeyRound, err error) {
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
	if out != "" {
		if _, err := b.api.Evict(ctx, group, []string{out}, nil); err != nil {
			return r, errors.Join(err, g.Wait())
		}
	}
	done, err := b.api.Rekey(ctx, group, "benchmark") // the one that the eviction made due, if any
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
