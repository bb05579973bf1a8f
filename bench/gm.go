package bench

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/seed4911071e/groupgate/bridge"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/serve"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/gm"
	"github.com/seed4911071e/groupgate/gm/gmtest"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/groupcomm/keytree"
	"github.com/seed4911071e/groupgate/store"
)

// Shape of the benchmark of the Group Manager.
const (
	pollGroup   = "bench-poll"  // its members ask, or observe
	mqttGroup   = "bench-mqtt"  // every member has a message of its own
	treeGroup   = "bench-tree"  // its members are in a key tree
	gmRounds    = 5             // of what is not done n times; the median counts
	maxFetched  = 16_000        // credentials that one answer may hold
	maxCredBody = 64 << 20      // what the reader of all credentials takes
	benchPeer   = 1_000_000_000 // requests per second: no budget is measured
)

// GM measures the Group Manager on a store, without DTLS: n joins into each of
// two groups, 64 at once and durable; a blockwise FETCH of all credentials of
// a group of n; and the rekey of a group of n, durable, once for members that
// ask or observe and once for members on MQTT, each of whom gets a message that
// is protected for it alone; and in a group with a key tree a leave and the rekey
// after it, with the number of messages and against the rekey of members one by one,
// and the deletion of that group.
//
// The floors are what cannot be done without: for a join one Ed25519
// verification and one signature, for a rekey over MQTT one signature for each
// member, both on one core; for a rekey that members fetch, one durable commit
// to the same store. Reading credentials has no floor but the bytes.
//
// dir is an empty folder; dsn is the store as in the configuration, "" for
// SQLite in dir. progress may be nil.
func GM(ctx context.Context, dir, dsn string, n int, progress func(string)) (out []Result, err error) {
	if n <= 0 {
		return nil, fmt.Errorf("bench: %d members make no benchmark", n)
	}
	if progress == nil {
		progress = func(string) {}
	}
	key := make([]byte, store.KeySize)
	rand.Read(key)
	st, err := store.Open(ctx, store.Options{
		Dir: dir, DSN: dsn, SealKey: key, Migrations: []store.Migrations{gm.Migrations(), bridge.Migrations()},
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, st.Close()) }()

	b := &gmBench{st: st, n: n, progress: progress, auth: &gmtest.Authority{}}
	late := &struct{ *gm.Manager }{}
	br := bridge.New(bridge.Config{Listen: "127.0.0.1:0"}, bridge.Deps{Store: st, Source: late, Hub: noHub{}})
	groups := []groupcomm.GroupConfig{groupcomm.DefaultGroupConfig(pollGroup), groupcomm.DefaultGroupConfig(mqttGroup), groupcomm.DefaultGroupConfig(treeGroup)}
	groups[2].KeyTree, groups[2].BatchWindow = keytree.DefaultDegree, time.Hour // the benchmark rekeys
	b.m = gm.New(gm.Config{Groups: groups}, gm.Deps{Store: st, Authority: b.auth, Delivery: br})
	late.Manager = b.m
	if err := b.m.Setup(ctx); err != nil {
		return nil, err
	}
	if err := br.Setup(ctx); err != nil {
		return nil, err
	}
	b.srv = serve.New(b.m, serve.Config{PerPeerRPS: benchPeer, PerPeerBurst: benchPeer})
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	eg, ctx := errgroup.WithContext(ctx)
	eg.Go(func() error { return br.Run(ctx) })
	eg.Go(func() error {
		defer cancel()
		var err error
		out, err = b.measure(ctx)
		return err
	})
	return out, eg.Wait()
}

// noHub is the hub of a gateway without associations.
type noHub struct{}

func (noHub) Publish(string, coap.Notification)        {}
func (noHub) Drop(string, coap.LinkID, *coap.Response) {}
func (noHub) Do(context.Context, coap.LinkID, *coap.Request) (*coap.Response, error) {
	return nil, coap.ErrGone
}

type gmBench struct {
	st       *store.Store
	m        *gm.Manager
	srv      *serve.Server
	auth     *gmtest.Authority
	n        int
	progress func(string)
}

func (b *gmBench) row(metric, unit string, value float64) Result {
	return Result{Bench: "gm", Metric: metric, Unit: unit, N: b.n, Ours: value}
}

func (b *gmBench) measure(ctx context.Context) ([]Result, error) {
	b.progress("measuring the floors")
	floor := joinFloor()
	commit, err := b.commitFloor(ctx)
	if err != nil {
		return nil, err
	}
	sign, err := signFloor()
	if err != nil {
		return nil, err
	}

	readers, perSecond, err := b.joins(ctx, pollGroup, nil)
	if err != nil {
		return nil, err
	}
	out := []Result{b.row("joins_per_second", "1/s", perSecond).against("floor", floor.perSecond)}
	_, perSecond, err = b.joins(ctx, mqttGroup, &groupcomm.Delivery{Channel: "mqtt"})
	if err != nil {
		return nil, err
	}
	out = append(out, b.row("mqtt_joins_per_second", "1/s", perSecond).against("floor", floor.perSecond))

	if b.n <= maxFetched {
		b.progress(fmt.Sprintf("FETCH of %d credentials", b.n))
		took, size, err := b.fetchCreds(ctx, readers[0])
		if err != nil {
			return nil, err
		}
		out = append(out, b.row("fetch_creds", "ms", milliseconds(took)), b.row("fetch_creds_size", "kB", float64(size)/1000))
	}

	b.progress(fmt.Sprintf("rekeys of %d members", b.n))
	took, err := b.rekeys(ctx, pollGroup)
	if err != nil {
		return nil, err
	}
	out = append(out, b.row("rekey", "ms", milliseconds(took)).below("commit", milliseconds(commit)))
	if took, err = b.rekeys(ctx, mqttGroup); err != nil {
		return nil, err
	}
	out = append(out, b.row("rekey_mqtt", "ms", milliseconds(took)).below("floor", milliseconds(sign)*float64(b.n)))
	rows, err := b.tree(ctx, floor.perSecond, milliseconds(took))
	return append(out, rows...), err
}

// tree measures leaves in a group with a key tree; alone is how long the rekey of
// members takes that are told one by one.
func (b *gmBench) tree(ctx context.Context, floor, alone float64) ([]Result, error) {
	leavers, perSecond, err := b.joins(ctx, treeGroup, &groupcomm.Delivery{Channel: "mqtt", Tree: true})
	if err != nil {
		return nil, err
	}
	if _, err := b.m.Rekey(ctx, treeGroup, "benchmark"); err != nil {
		return nil, err
	}
	b.progress(fmt.Sprintf("leaves in a key tree of %d members", b.n))
	var took, cpu []time.Duration
	messages := 0
	for i := range min(gmRounds, b.n-1) {
		j := leavers[i*b.n/gmRounds]
		begin, busy := time.Now(), cpuTime()
		r, err := b.m.ServeCoAP(ctx, j.Request(coap.DELETE, nil, "ace-group", treeGroup, "nodes", j.Path[3]))
		if err == nil && r.Code != coap.Deleted {
			err = fmt.Errorf("bench: a leave is answered %v", r.Code)
		}
		if err != nil {
			return nil, err
		}
		num, err := b.m.Rekey(ctx, treeGroup, "benchmark")
		if err != nil {
			return nil, err
		}
		took, cpu = append(took, time.Since(begin)), append(cpu, cpuTime()-busy)
		n, err := b.treeMessages(ctx, num)
		if err != nil {
			return nil, err
		}
		messages = max(messages, n)
	}
	b.progress(fmt.Sprintf("deletion of a key tree of %d members", b.n))
	if err := b.m.SetActive(ctx, treeGroup, false); err != nil {
		return nil, err
	}
	begin, busy := time.Now(), cpuTime()
	if err := b.m.DeleteGroup(ctx, treeGroup); err != nil {
		return nil, err
	}
	gone, goneCPU := time.Since(begin), cpuTime()-busy
	return []Result{
		b.row("tree_delete", "ms", milliseconds(gone)),
		b.row("tree_delete_cpu", "ms", milliseconds(goneCPU)),
		b.row("tree_joins_per_second", "1/s", perSecond).against("floor", floor),
		b.row("tree_leave", "ms", milliseconds(percentile(took, 50))).below("point-to-point", alone),
		b.row("tree_leave_cpu", "ms", milliseconds(percentile(cpu, 50))),
		b.row("tree_leave_messages", "1", float64(messages)).below("point-to-point", float64(b.n)),
	}, nil
}

// treeMessages counts the messages of a version, of which there is one tree.
func (b *gmBench) treeMessages(ctx context.Context, num uint64) (n int, err error) {
	err = b.st.View(ctx, func(tx *store.Tx) error {
		return tx.QueryRow(`SELECT COUNT(*) FROM bridge_tree_message WHERE num = ?`, int64(num)).Scan(&n)
	})
	return n, err
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// joins makes n nodes, then has them join, and returns them.
func (b *gmBench) joins(ctx context.Context, group string, delivery *groupcomm.Delivery) ([]*gmtest.Joiner, float64, error) {
	b.progress(fmt.Sprintf("%d joins to %s", b.n, group))
	const roles = groupcomm.Requester | groupcomm.Responder
	reqs := make([]*coap.Request, b.n)
	nodes := make([]*gmtest.Joiner, b.n)
	for i := range reqs {
		j, err := gmtest.NewJoiner(fmt.Sprintf("%s-%d", group, i), cose.AlgEdDSA)
		if err != nil {
			return nil, 0, err
		}
		b.auth.Allow(j.Peer.Subject, groupcomm.Scope{{Group: group, Roles: roles}}, time.Time{})
		if j.NS, err = b.auth.NewChallenge(ctx, j.Peer.Subject); err != nil {
			return nil, 0, err
		}
		msg, err := j.JoinMessage(group, roles)
		if err != nil {
			return nil, 0, err
		}
		msg.Delivery = delivery
		reqs[i] = j.Request(coap.POST, msg.Encode(), "ace-group", group)
		nodes[i] = j
	}
	begin := time.Now()
	err := each(ctx, b.n, func(ctx context.Context, i int) error {
		r, err := b.m.ServeCoAP(ctx, reqs[i])
		if err == nil && r.Code != coap.Created {
			err = fmt.Errorf("bench: a join is answered %v", r.Code)
		}
		if err == nil {
			nodes[i].Path = r.Options.Strings(coap.LocationPath)
		}
		return err
	})
	return nodes, float64(b.n) / time.Since(begin).Seconds(), err
}

// fetchCreds reads all credentials block by block, through the server core and
// the message codec, and returns the median time and the size of the body.
func (b *gmBench) fetchCreds(ctx context.Context, j *gmtest.Joiner) (time.Duration, int, error) {
	link := &directLink{srv: b.srv, peer: j.Peer}
	var took []time.Duration
	size := 0
	for range gmRounds {
		// Everybody: whoever is not the holder of an identifier that nobody has.
		body := groupcomm.EncodeCredsRequest(&groupcomm.GetCreds{IDs: []groupcomm.SenderID{[]byte("\xff\xff\xff\xff\xff\xff\xff")}})
		req := j.Request(coap.FETCH, body, "ace-group", pollGroup, "creds")
		begin := time.Now()
		r, err := serve.RoundTrip(ctx, link, req, 1024, maxCredBody)
		if err != nil {
			return 0, 0, err
		}
		took = append(took, time.Since(begin))
		if r.Code != coap.Content {
			return 0, 0, fmt.Errorf("bench: FETCH of credentials is answered %v", r.Code)
		}
		got, err := groupcomm.DecodeCredsResponse(r.Payload)
		if err != nil {
			return 0, 0, err
		}
		if len(got.Creds) != b.n {
			return 0, 0, fmt.Errorf("bench: %d credentials came, %d are there", len(got.Creds), b.n)
		}
		size = len(r.Payload)
	}
	return percentile(took, 50), size, nil
}

// rekeys renews a group's keys some times and returns the median.
func (b *gmBench) rekeys(ctx context.Context, group string) (time.Duration, error) {
	var took []time.Duration
	for range gmRounds {
		begin := time.Now()
		if _, err := b.m.Rekey(ctx, group, "benchmark"); err != nil {
			return 0, err
		}
		took = append(took, time.Since(begin))
	}
	return percentile(took, 50), nil
}

// commitFloor is the median time of a durable commit of one event.
func (b *gmBench) commitFloor(ctx context.Context) (time.Duration, error) {
	var took []time.Duration
	for range 20 {
		begin := time.Now()
		err := b.st.Update(ctx, func(tx *store.Tx) error { return tx.Emit("bench", "bench", []byte{0xa0}) })
		if err != nil {
			return 0, err
		}
		took = append(took, time.Since(begin))
	}
	return percentile(took, 50), nil
}

// signFloor is the time of one Ed25519 signature on one core.
func signFloor() (time.Duration, error) {
	key, err := cose.GenerateKey(cose.AlgEdDSA)
	if err != nil {
		return 0, err
	}
	sign, msg := key.Signer(), make([]byte, 200)
	rounds, begin := 0, time.Now()
	for time.Since(begin) < floorTime {
		if _, err := sign(msg); err != nil {
			return 0, err
		}
		rounds++
	}
	return time.Since(begin) / time.Duration(rounds), nil
}

// directLink carries messages to the server core through the codec, and
// nothing below it.
type directLink struct {
	srv  *serve.Server
	peer coap.Peer
	mu   sync.Mutex
	id   uint16
}

func (l *directLink) Peer() coap.Peer { return l.peer }

// Send is for what the server sends unasked: nothing here.
func (l *directLink) Send(_ *coap.Message, done func(error)) { done(coap.ErrGone) }

func (l *directLink) Do(ctx context.Context, m *coap.Message) (*coap.Message, error) {
	l.mu.Lock()
	l.id++
	m.Type, m.ID, m.Token = coap.Confirmable, l.id, []byte{byte(l.id >> 8), byte(l.id)}
	l.mu.Unlock()
	wire, err := m.MarshalBinary()
	if err != nil {
		return nil, err
	}
	req, err := coap.DecodeMessage(wire)
	if err != nil {
		return nil, err
	}
	resp := l.srv.Handle(ctx, l, req)
	if resp == nil {
		return nil, errors.New("bench: no response")
	}
	if wire, err = resp.MarshalBinary(); err != nil {
		return nil, err
	}
	return coap.DecodeMessage(wire)
}
