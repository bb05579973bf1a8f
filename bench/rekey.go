package bench

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/bench/peer"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/node/swarm"
)

// Shape of the rekey benchmark.
const (
	rekeyJoinGap  = 10 * time.Millisecond // between their beginnings, at least
	rekeyLook     = 10 * time.Millisecond // between looks at the progress, at least
	rekeyMany     = 10_000                // from so many members on they are worth a thought
	rekeyTime     = 3 * time.Minute       // for one rekey to reach everybody
	rekeySetup    = 2 * time.Hour         // for members to join
	observeGroup  = "bench-observe"
	overMQTTGroup = "bench-over-mqtt"
	overTreeGroup = "bench-over-tree"
	newcomerGroup = "bench-newcomers"
)

// In tests there are fewer.
var (
	rekeyRounds = 5   // the median counts
	rekeyJoins  = 400 // joins at most while one rekey is delivered
)

// RekeyConfig says what [Rekey] measures.
type RekeyConfig struct {
	Observing int // members that observe the group; 0: none
	MQTT      int // members on the embedded broker, told one by one and by a key tree; 0: none
	Sleeping  int // members of a key tree of which one leaves while the others sleep; 0: none
	// NotifyRPS is limits.notify_rps; 0: no limit.
	NotifyRPS float64
}

// Rekey measures how long a rekey takes to reach every member of a group and to be
// confirmed by it, on disk; what that sends; and how long joins into another group
// take meanwhile. Members observe the group over DTLS, are told over MQTT one by
// one, or follow a key tree there after one of them is evicted; the peer of the key
// tree are the members that are told one by one, in the same run.
//
// Each kind has a gateway of its own, whole and in a process of its own, with its
// data below dir: start is to run [ServeGateway] for [KindGateway]. The nodes are
// real: each has a token, shook hands, joined with its proof of possession, and
// acknowledges on its own association. They are in this process, so that two cores
// are shared by both sides. Of those who observe each message is compared with the
// rekey message that the node that joined first decoded.
//
// messages_sent and bytes_sent are those of one rekey: messages handed to the
// network or the broker, and the bytes of the rekey in them, without the headers
// of CoAP, DTLS and MQTT. rss_bytes_per_member is the resident memory of the
// gateway after a collection with all members idle, less that without, by their
// number. The gateway is killed in the middle of a last rekey, and started again.
//
// progress may be nil.
func Rekey(ctx context.Context, start Start, dir string, c RekeyConfig, progress func(string)) (out []Result, err error) {
	if c.Observing <= 0 && c.MQTT <= 0 && c.Sleeping <= 0 {
		return nil, errors.New("bench: no members make no benchmark")
	}
	if progress == nil {
		progress = func(string) {}
	}
	run := func(k rekeyKind) (rows []Result, err error) {
		if k.n <= 0 {
			return nil, nil
		}
		b := &rekeyBench{kind: k, progress: progress}
		defer func() { err = errors.Join(err, b.close()) }()
		if err := b.open(ctx, start, filepath.Join(dir, k.bench), c.NotifyRPS); err != nil {
			return nil, err
		}
		if k.asleep {
			return b.leave(ctx)
		}
		return b.measure(ctx)
	}
	if out, err = run(rekeyKind{bench: "rekey-observe", group: observeGroup, channel: "observe", n: c.Observing}); err != nil {
		return nil, err
	}
	alone, err := run(rekeyKind{bench: "rekey-mqtt", group: overMQTTGroup, channel: "mqtt", n: c.MQTT, mqtt: true})
	if err != nil {
		return nil, err
	}
	tree, err := run(rekeyKind{bench: "rekey-tree", group: overTreeGroup, channel: "mqtt", n: c.MQTT, mqtt: true, leave: true})
	if err != nil {
		return nil, err
	}
	compared := []string{"seconds_to_all_confirmed", "messages_sent", "bytes_sent", "join_p99_ms_meanwhile", "gateway_cpu_us_per_member"}
	for i, r := range tree {
		if !slices.Contains(compared, r.Metric) {
			continue
		}
		if j := slices.IndexFunc(alone, func(a Result) bool { return a.Metric == r.Metric }); j >= 0 {
			tree[i] = r.below("point-to-point", alone[j].Ours)
		}
	}
	asleep, err := run(rekeyKind{bench: "rekey-tree-leave", group: overTreeGroup, channel: "mqtt", n: c.Sleeping, mqtt: true, leave: true, asleep: true})
	if err != nil {
		return nil, err
	}
	return slices.Concat(out, alone, tree, asleep), nil
}

// rekeyKind is one way in which members are told.
type rekeyKind struct {
	bench, group, channel string
	n                     int
	mqtt                  bool
	leave                 bool // a member is evicted, instead of a rekey without a cause
	asleep                bool // nobody listens
}

// rekeyBench is a gateway and its nodes: the members, who leaves among them, and
// newcomers.
type rekeyBench struct {
	kind     rekeyKind
	progress func(string)
	g        *gateway
	swarm    *swarm.Swarm
	running  sync.WaitGroup
	stop     context.CancelFunc

	members []*node.Member     // those who follow by themselves, on MQTT
	asleep  context.CancelFunc // has them sleep
	follow  sync.WaitGroup     // what they do meanwhile
	names   []string           // of the members, where one is evicted
	watch   *watch             // of those who observe
	empty   peer.Usage         // of the gateway without members
	http    http.Client

	strangers *swarm.Swarm   // newcomers: what the members are told does not queue at their sockets
	newcomers []*node.Member // with an association, not joined yet
	next      int            // the node of the next newcomer
}

// open starts the gateway and has the members join.
func (b *rekeyBench) open(ctx context.Context, start Start, dir string, rps float64) (err error) {
	b.g, err = newGateway(ctx, start, dir, gatewaySpec{Groups: []string{b.kind.group, newcomerGroup}, NotifyRPS: rps})
	if err != nil {
		return err
	}
	if b.empty, err = b.g.collected(); err != nil {
		return err
	}
	all := b.kind.n
	if b.kind.leave {
		all += rekeyRounds
	}
	b.watch = newWatch(all)
	nodes := swarm.Config{Gateway: b.g.coaps, Nodes: all}
	if !b.kind.mqtt { // others observe too, whether they are evicted
		nodes.Notified = b.watch.took
	}
	b.swarm, err = swarm.New(nodes)
	if err != nil {
		return err
	}
	b.strangers, err = swarm.New(swarm.Config{Gateway: b.g.coaps, Nodes: (rekeyRounds + 1) * rekeyJoins, Network: 1})
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	b.stop = stop
	for _, s := range []*swarm.Swarm{b.swarm, b.strangers} {
		b.running.Go(func() { _ = s.Run(running) }) // ends with the benchmark
	}
	b.members, b.names = make([]*node.Member, all), make([]string, all)

	b.progress(fmt.Sprintf("%d nodes join %s", all, b.kind.group))
	joining, cancel := context.WithTimeout(ctx, rekeySetup)
	defer cancel()
	failed, err := swarm.Each(joining, 0, all, openAtOnce, func(done int) {
		if done%10_000 == 0 {
			b.progress(fmt.Sprintf("%d are members", done))
		}
	}, b.join)
	if failed > 0 {
		err = fmt.Errorf("bench: %d of %d nodes did not become members: %w", failed, all, err)
	}
	b.wake(ctx)
	return err
}

// wake has the members on MQTT follow the group until they sleep or the benchmark is
// over.
func (b *rekeyBench) wake(ctx context.Context) {
	ctx, b.asleep = context.WithCancel(ctx)
	for _, m := range b.members {
		if m != nil {
			b.follow.Go(func() { _ = m.Follow(ctx) }) // what it misses the ledger tells
		}
	}
}

// sleep has them close their sessions at the broker.
func (b *rekeyBench) sleep() {
	if b.asleep != nil {
		b.asleep()
		b.follow.Wait()
	}
}

// join makes node i a member.
func (b *rekeyBench) join(ctx context.Context, i int) error {
	m, err := b.node(ctx, b.swarm, b.kind.group, i, b.kind.mqtt)
	if err != nil {
		return err
	}
	if err := m.Join(ctx); err != nil {
		return err
	}
	if s, ok := m.State(); ok {
		b.names[i] = s.Node
	}
	switch {
	case b.kind.asleep && i > 0: // the first tells when it has the newest keys
	case b.kind.mqtt:
		b.members[i] = m
	default:
		// From here on a node is its association: a hundred thousand of package node
		// would take the cores that the gateway is measured on.
		return b.observe(ctx, i)
	}
	return nil
}

// node makes the i-th node of a swarm: a token, an association opened with it, a key pair.
func (b *rekeyBench) node(ctx context.Context, s *swarm.Swarm, group string, i int, mqtt bool) (*node.Member, error) {
	token, err := b.g.api.IssueToken(ctx, admin.TokenAsk{
		Audience: b.g.hello.Audience, Lifetime: "24h", Scope: []admin.ScopeEntry{{Group: group, Roles: []string{"requester", "responder"}}},
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
	if err := s.Open(ctx, i, swarm.Credential{Identity: conveyed, Key: psk, Keep: true}); err != nil {
		return nil, err
	}
	return newJoiner(s.Node(i), group, groupcomm.Requester|groupcomm.Responder, i, mqtt)
}

func (b *rekeyBench) close() error {
	b.sleep()
	if b.stop != nil {
		b.stop()
		b.running.Wait()
	}
	return b.g.close()
}

// measure rekeys the group some times while nodes join another one.
func (b *rekeyBench) measure(ctx context.Context) (rows []Result, err error) {
	b.progress("a first rekey, until everybody is reached")
	if _, err := b.rekey(ctx, "", nil); err != nil {
		return nil, err
	}
	idle, err := b.g.collected()
	if err != nil {
		return nil, err
	}
	busy, err := b.cpu(func() error {
		_, err := b.rekey(ctx, "", nil)
		return err
	})
	if err != nil {
		return nil, err
	}
	var took, joins []time.Duration
	var messages, bytes float64
	for round := range rekeyRounds {
		if err := b.prepare(ctx); err != nil {
			return nil, err
		}
		b.progress(fmt.Sprintf("rekey %d of %d", round+1, rekeyRounds))
		out := ""
		if b.kind.leave { // one in the middle of the tree
			out = b.takeOut()
		}
		before, err := b.sent(ctx)
		if err != nil {
			return nil, err
		}
		r, err := b.rekey(ctx, out, b.newcomers)
		if err != nil {
			return nil, err
		}
		b.progress(fmt.Sprintf("all confirmed after %.2f s, %d joined meanwhile", r.took.Seconds(), len(r.joins)))
		b.newcomers = b.newcomers[r.begun:]
		took, joins = append(took, r.took), append(joins, r.joins...)
		after, err := b.sent(ctx)
		if err != nil {
			return nil, err
		}
		messages += (after.messages - before.messages) / float64(rekeyRounds)
		bytes += (after.bytes - before.bytes) / float64(rekeyRounds)
	}
	rows = []Result{
		b.row("seconds_to_all_confirmed", "s", percentile(took, 50).Seconds()),
		b.row("messages_sent", "1", messages),
		b.row("bytes_sent", "B", bytes),
		b.row("join_p99_ms_meanwhile", "ms", float64(percentile(joins, 99).Microseconds())/1000),
		b.row("gateway_cpu_us_per_member", "us", float64(busy.Nanoseconds())/1000/float64(b.kind.n)),
		b.row("rss_bytes_per_member", "B", float64(idle.RSS-b.empty.RSS)/float64(b.kind.n)),
	}
	restart := b.restartObserved
	if b.kind.mqtt {
		restart = b.restartRetained
	}
	more, err := restart(ctx)
	return append(rows, more...), err
}

// cpu is the processor time of the gateway while f runs.
func (b *rekeyBench) cpu(f func() error) (time.Duration, error) {
	before, err := b.g.ask("usage")
	if err == nil {
		err = f()
	}
	if err != nil {
		return 0, err
	}
	after, err := b.g.ask("usage")
	return after.CPU - before.CPU, err
}

func (b *rekeyBench) row(metric, unit string, value float64) Result {
	return Result{Bench: b.kind.bench, Metric: metric, Unit: unit, N: b.kind.n, Ours: value}
}
