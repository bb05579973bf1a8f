package crash

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// What the load is.
const (
	issuer     = "as1"
	audience   = "rs"
	clients    = 12
	maxThink   = 12 * time.Millisecond // of a client between two requests
	operatorIn = 25 * time.Millisecond // of the operator, at most
	followPoll = 60 * time.Millisecond // of a member that follows
	minLife    = 20 * time.Millisecond // of the gateway after it is ready
	maxLife    = 400 * time.Millisecond
	quietTime  = 20 * time.Second // for what must come true without load
)

// load is which groups there are, and who their nodes are.
type load struct {
	groups []string
	yaml   string // of the groups, and of what follows them in the configuration
	client func(w *world, i int, seed uint64) *client
}

// ordinary is a load of groups that are each special in something.
var ordinary = &load{
	groups: []string{"plain", "on-join", "es256"},
	yaml: `
  - {name: plain, rekey: {batch_window: 20ms}}
  - {name: on-join, rekey: {batch_window: 20ms, on_join: true}}
  - {name: es256, sign_alg: ES256, rekey: {batch_window: 20ms}}
`,
	client: newClient,
}

// world is one data folder, the lives of its gateway, and everybody who deals
// with it.
type world struct {
	bin, config string
	load        *load
	at          doors
	pair        []*site // two gateways that share one store; nil: there is one
	rng         *mathrand.Rand
	issuerKey   []byte
	adminToken  string
	ledger      *ledger
	broker      *tappedBroker
	forest      *forest // what is known of key trees; nil: there is none
	clients     []*client
	gw          *gateway
	began       time.Time

	down     atomic.Bool   // the gateway is being ended
	inFlight atomic.Int64  // requests that change something and have no answer
	answered chan struct{} // one slot: one of them was answered
	count    counters
}

// counters are for the summary.
type counters struct {
	rounds, early, inFlight                                  int
	starts                                                   time.Duration
	joins, rejoins, renewals, leaves, evictions, rekeys      atomic.Int64
	cutOff, lost, unavailable, posts, handshakes, trespasses atomic.Int64
	otherNS                                                  atomic.Int64 // proofs over another N_S than the gateway's
	observed, polled, byMQTT, byCast                         atomic.Int64
}

// learned counts how a member got new material.
func (c *counters) learned(via string) {
	switch via {
	case "observe":
		c.observed.Add(1)
	case "mqtt":
		c.byMQTT.Add(1)
	case "multicast":
		c.byCast.Add(1)
	default:
		c.polled.Add(1)
	}
}

// newWorld makes a data folder, interrupts its very first starts, and lets the
// gateway get ready once.
func newWorld(t testing.TB, bin string, seed uint64) *world {
	t.Helper()
	return newWorldOn(t, bin, seed, t.TempDir(), "sqlite:groupgate.db", ordinary)
}

// newWorldOn does it for a store and a load.
func newWorldOn(t testing.TB, bin string, seed uint64, dir, store string, load *load) *world {
	t.Helper()
	w := &world{
		bin: bin, config: filepath.Join(dir, "gateway.yaml"), at: freeDoors(t), ledger: newLedger(load.groups...), load: load,
		rng: mathrand.New(mathrand.NewPCG(seed, 0)), answered: make(chan struct{}, 1), began: time.Now(),
	}
	w.broker = startBroker(t, w.ledger)
	data := filepath.Join(dir, "data")
	w.configure(t, w.config, data, w.at, store)
	for i := range clients {
		w.clients = append(w.clients, load.client(w, i, seed))
	}
	for range 5 {
		w.stillborn(t)
	}
	w.start(t)
	w.stop(t, false)
	w.issuerKey = w.readHex(t, filepath.Join(data, config.IssuerKeyFile))
	token, err := os.ReadFile(filepath.Join(data, config.AdminTokenFile))
	if err != nil {
		t.Fatal(err)
	}
	w.adminToken = strings.TrimSpace(string(token))
	return w
}

// configure writes a gateway's configuration.
func (w *world) configure(t testing.TB, path, data string, at doors, store string) {
	t.Helper()
	yaml := fmt.Sprintf(`data_dir: %s
store: %q
listen: {coaps: %q, coap: %q, http: %q, mqtt: ""}
tokens: [{issuer: %s, audience: %s, symmetric_key_file: %s}]
limits: {per_peer_rps: 100000}
mqtt: {broker: "mqtt://%s", topic_prefix: %s}
log: {level: error}
groups:%s`, data, store, at.coaps, at.coap, at.http, issuer, audience, config.IssuerKeyFile, w.broker.addr, topicPrefix, w.load.yaml)
	if err := os.WriteFile(path, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
}

// newClient makes a client: the first of each group is its anchor, and among
// the clients of a group are such that follow over CoAP, over MQTT too, that
// only poll, and one monitor.
func newClient(w *world, i int, seed uint64) *client {
	groups := w.load.groups
	kind := i / len(groups)
	c := &client{
		w: w, id: i, group: groups[i%len(groups)], roles: groupcomm.Requester | groupcomm.Responder,
		rng: mathrand.New(mathrand.NewPCG(seed, uint64(i)+1)), anchor: kind == 0,
		pollEvery: followPoll, mqtt: kind < 2, follows: kind < 2 || kind == 2 && i%2 == 0,
	}
	if i == clients-1 {
		c.roles = groupcomm.Monitor
	}
	return c
}

func (w *world) readHex(t testing.TB, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// start starts the gateway and waits until it serves.
func (w *world) start(t testing.TB) {
	t.Helper()
	began := time.Now()
	gw, err := launch(w.bin, w.config)
	if err == nil {
		err = gw.await()
	}
	if err != nil {
		w.fail(t, err)
	}
	w.count.starts += time.Since(began)
	w.gw = gw
	w.down.Store(false)
	t.Cleanup(gw.kill)
}

// stillborn starts the gateway and kills it before it serves, most of the time.
func (w *world) stillborn(t testing.TB) {
	t.Helper()
	gw, err := launch(w.bin, w.config)
	if err != nil {
		w.fail(t, err)
	}
	t.Cleanup(gw.kill)
	end := time.NewTimer(time.Duration(w.rng.Int64N(int64(60 * time.Millisecond))))
	defer end.Stop()
	select {
	case <-end.C:
	case <-gw.ended:
		w.fail(t, fmt.Errorf("the gateway ended while it started: %w\n%s", gw.err, gw.stderr.String()))
	}
	gw.kill()
	w.count.early++
}

// stop ends the gateway, with SIGKILL unless gracefully.
func (w *world) stop(t testing.TB, gracefully bool) {
	t.Helper()
	if !w.gw.alive() {
		w.fail(t, fmt.Errorf("the gateway ended by itself: %w\n%s", w.gw.err, w.gw.stderr.String()))
	}
	w.down.Store(true)
	if w.inFlight.Load() > 0 {
		w.count.inFlight++
	}
	if gracefully {
		if err := w.gw.terminate(); err != nil {
			w.fail(t, err)
		}
	} else {
		w.gw.kill()
	}
	if line := w.gw.complaint(); line != "" {
		w.ledger.breach("", "the gateway says: %s", line)
	}
}

// fail ends the test with what the journal knows.
func (w *world) fail(t testing.TB, err error) {
	t.Helper()
	t.Fatalf("%v\n%s", err, w.summary())
}

// check ends the test when something broke.
func (w *world) check(t testing.TB) {
	t.Helper()
	broken := w.ledger.breaches()
	if len(broken) == 0 {
		return
	}
	for _, b := range broken[:min(len(broken), 10)] {
		t.Error(b)
	}
	t.Logf("%d contradictions in all", len(broken))
	for _, g := range w.load.groups {
		t.Logf("the last that is known of %s:\n%s", g, w.ledger.tail(g, 80))
	}
	t.Fatal(w.summary())
}

// round is one life of the gateway under load.
type round struct {
	gracefully bool // SIGTERM, not SIGKILL
	audit      bool // look at everything first
	early      bool // a life that ends before it serves comes first
	onAnswer   bool // the end comes with the first answer after its time
}

func (w *world) run(t testing.TB, n int, r round) {
	t.Helper()
	w.count.rounds++
	w.ledger.startRound(n)
	if r.early {
		w.stillborn(t)
	}
	w.start(t)
	if r.audit {
		w.audit(t)
		w.check(t)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	end := time.NewTimer(stretch * (minLife + time.Duration(w.rng.Int64N(int64(maxLife-minLife)))))
	defer end.Stop()
	var wg sync.WaitGroup
	for _, c := range w.clients {
		wg.Go(func() { c.run(ctx) })
	}
	op := operator{w: w, rng: mathrand.New(mathrand.NewPCG(w.rng.Uint64(), 0))}
	wg.Go(func() { op.run(ctx) })
	select {
	case <-end.C:
	case <-w.gw.ended:
	}
	if r.onAnswer {
		w.awaitAnswer()
	}
	w.stop(t, r.gracefully)
	cancel()
	wg.Wait()
	w.check(t)
}

// awaitAnswer returns with the next answer to a request that changes something.
func (w *world) awaitAnswer() {
	select {
	case <-w.answered:
	default:
	}
	late := time.NewTimer(100 * time.Millisecond)
	defer late.Stop()
	select {
	case <-w.answered:
	case <-late.C:
	}
}

// during does a request that changes something.
func (w *world) during(request func() error) error {
	w.inFlight.Add(1)
	err := request()
	w.inFlight.Add(-1)
	if err == nil {
		select {
		case w.answered <- struct{}{}:
		default:
		}
	} else if w.down.Load() {
		w.count.cutOff.Add(1)
	}
	return err
}

// cut says whether a failure is explained by the end of the gateway.
func (w *world) cut(ctx context.Context) bool { return ctx.Err() != nil || w.down.Load() }

// lost records a request without an answer while the gateway lived.
func (w *world) lost(c *client, op string, err error) {
	w.count.lost.Add(1)
	w.ledger.note(c.group, "client %d: %s has no answer: %v", c.id, op, err)
}

// admin makes a client of the admin API.
func (w *world) admin() *admin.Client {
	if s := w.somewhere(); s != nil {
		return admin.NewClient(s.at.http, w.adminToken)
	}
	return admin.NewClient(w.at.http, w.adminToken)
}

// summary tells what the test did.
func (w *world) summary() string {
	c := &w.count
	messages, different := w.ledger.counts()
	return fmt.Sprintf("%d rounds in %v: %d joins, %d re-joins, %d renewals, %d leaves, %d evictions, %d operator rekeys; "+
		"%d kills with work in flight, %d requests cut off, %d kills before readiness, %d unanswered, %d answered 5.xx; "+
		"%d handshakes, %d token posts, %d proofs anew, %d refused outsiders; rekeys learned by observe %d, mqtt %d, multicast %d, poll %d; "+
		"%d messages by MQTT and multicast, %d of them different; a start takes %v",
		c.rounds, time.Since(w.began).Round(time.Millisecond), c.joins.Load(), c.rejoins.Load(), c.renewals.Load(), c.leaves.Load(),
		c.evictions.Load(), c.rekeys.Load(), c.inFlight, c.cutOff.Load(), c.early, c.lost.Load(), c.unavailable.Load(),
		c.handshakes.Load(), c.posts.Load(), c.otherNS.Load(), c.trespasses.Load(), c.observed.Load(), c.byMQTT.Load(), c.byCast.Load(), c.polled.Load(),
		messages, different, (c.starts / time.Duration(max(1, c.rounds+1))).Round(time.Millisecond))
}

// operator rekeys and evicts by the admin API.
type operator struct {
	w   *world
	rng *mathrand.Rand
}

func (o *operator) run(ctx context.Context) {
	request := ctx
	if o.w.pair != nil {
		request = context.WithoutCancel(ctx) // a gateway that lives may still work on it
	}
	for ctx.Err() == nil {
		if o.rng.IntN(10) < 6 {
			o.rekey(request, o.w.load.groups[o.rng.IntN(len(o.w.load.groups))])
		} else {
			o.evict(request, o.w.clients[o.rng.IntN(clients)])
		}
		t := time.NewTimer(time.Duration(o.rng.Int64N(int64(operatorIn))))
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

func (o *operator) rekey(ctx context.Context, group string) {
	w := o.w
	since := w.ledger.floor(group)
	w.ledger.attempt(group)
	var r *admin.RekeyResult
	err := w.during(func() (err error) {
		r, err = w.admin().Rekey(ctx, group, "crash test")
		return err
	})
	if err != nil {
		o.judge(group, "rekey", err)
		return
	}
	w.count.rekeys.Add(1)
	w.ledger.rekeyed(group, since, r.Version)
}

// evict ends a membership, named in one of two ways.
func (o *operator) evict(ctx context.Context, c *client) {
	if c.anchor || !c.mu.TryLock() {
		return // its next request comes soon enough
	}
	defer c.mu.Unlock()
	if c.at != inside {
		return
	}
	w := o.w
	nodes, ids := []string{c.node}, []string(nil)
	if c.sid != nil && o.rng.IntN(2) == 0 {
		nodes, ids = nil, []string{c.sid.String()}
	}
	since := w.ledger.floor(c.group)
	w.ledger.attempt(c.group)
	var r *admin.EvictResult
	err := w.during(func() (err error) {
		r, err = w.admin().Evict(ctx, c.group, nodes, ids)
		return err
	})
	switch {
	case err == nil && (len(r.Evicted) != 1 || r.Evicted[0] != c.node):
		w.ledger.breach(c.group, "evicted %v instead of node %s", r.Evicted, c.node)
	case err == nil:
		w.count.evictions.Add(1)
		c.ended("eviction", since)
	case o.judge(c.group, "evict", err):
		w.settle()
		c.at, c.doubt, c.since = uncertain, ending, since
	}
}

// judge says whether a failed request may have happened; a refusal is recorded.
func (o *operator) judge(group, op string, err error) (mayHaveHappened bool) {
	var p *admin.Problem
	if errors.As(err, &p) {
		if p.Status < 500 {
			o.w.ledger.breach(group, "%s by the operator is refused: %v", op, err)
			return false
		}
		o.w.count.unavailable.Add(1)
		o.w.ledger.note(group, "%s by the operator: %v", op, err)
	}
	return true
}
