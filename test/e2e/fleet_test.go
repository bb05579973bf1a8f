package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
)

// relay passes datagrams between nodes and the gateway, each node by a socket of
// its own, and loses some of them.
type relay struct {
	t    testing.TB
	conn *net.UDPConn
	to   *net.UDPAddr
	loss atomic.Int64 // of a hundred datagrams, in each direction
	wg   sync.WaitGroup
	lost atomic.Int64

	mu    sync.Mutex
	paths map[string]*net.UDPConn
}

func newRelay(t testing.TB, to string) *relay {
	t.Helper()
	addr, err := net.ResolveUDPAddr("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadBuffer(4 << 20)
	r := &relay{t: t, conn: conn, to: addr, paths: map[string]*net.UDPConn{}}
	r.wg.Go(r.run)
	t.Cleanup(func() {
		_ = conn.Close()
		r.mu.Lock()
		for _, c := range r.paths {
			_ = c.Close()
		}
		r.mu.Unlock()
		r.wg.Wait()
	})
	return r
}

func (r *relay) addr() string { return r.conn.LocalAddr().String() }

func (r *relay) drops() bool {
	if rand.Int64N(100) < r.loss.Load() {
		r.lost.Add(1)
		return true
	}
	return false
}

func (r *relay) run() {
	buf := make([]byte, 2048)
	for {
		n, from, err := r.conn.ReadFromUDP(buf)
		if err != nil {
			return
		}
		path := r.path(from)
		if path == nil || r.drops() {
			continue
		}
		_, _ = path.Write(buf[:n])
	}
}

// move gives every second of the nodes another address, as the gateway sees it: a
// NAT that forgot them, or another network.
func (r *relay) move() (moved int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for from, c := range r.paths {
		if moved++; moved%2 == 0 {
			continue
		}
		_ = c.Close()
		delete(r.paths, from)
	}
	return (moved + 1) / 2
}

func (r *relay) path(from *net.UDPAddr) *net.UDPConn {
	key := from.String()
	r.mu.Lock()
	defer r.mu.Unlock()
	if c, ok := r.paths[key]; ok {
		return c
	}
	c, err := net.DialUDP("udp", nil, r.to)
	if err != nil {
		return nil
	}
	r.paths[key] = c
	r.wg.Go(func() {
		buf := make([]byte, 2048)
		for {
			n, err := c.Read(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil && !r.drops() { // nobody listens while the gateway is down
				_, _ = r.conn.WriteToUDP(buf[:n], from)
			}
		}
	})
	return c
}

// Kinds of members of a fleet.
const (
	kindObserver = iota
	kindMQTT
	kindSleeper
	kinds
)

// fleetNode is one node of a fleet, and everything that it was ever given.
type fleetNode struct {
	kind int
	m    *member

	mu       sync.Mutex
	secrets  map[groupcomm.Version]cose.Secret
	states   map[groupcomm.Version]node.State
	newest   groupcomm.Version
	backward bool // was told of an older version after a newer
	shown    groupcomm.Version
	notified int // how often an observation brought keying material
}

// heard reads what an observation brings, before the node does: that may ignore what
// is old.
func (n *fleetNode) heard(r *coap.Response) {
	if r.Code != coap.Content || len(r.Payload) == 0 {
		return
	}
	var num groupcomm.Version
	if m, err := groupcomm.DecodeRekeyMessage(r.Payload); err == nil {
		num = m.Num
	} else if d, err := groupcomm.DecodeKeyDistribution(r.Payload); err == nil {
		num = d.Num
	} else {
		return // of the node resource
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.notified++
	n.backward = n.backward || num < n.shown
	n.shown = max(n.shown, num)
}

// learned keeps what the node holds now.
func (n *fleetNode) learned(e node.Event) {
	if e.Kind != node.Rekeyed && e.Kind != node.Joined {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if e.Version < n.newest {
		n.backward = true
	}
	n.newest = max(n.newest, e.Version)
}

func (n *fleetNode) keep() (version groupcomm.Version, ok bool) {
	s, ok := n.m.State()
	if !ok || !s.Installed {
		return 0, false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.secrets[s.Version], n.states[s.Version] = s.MasterSecret, s
	return s.Version, true
}

// impatience is how long a node tries a handshake or a request before it begins
// anew: retransmissions come ever later.
const impatience = 3 * time.Second

// fleet is a gateway, a broker outside of it, a network that loses, and nodes.
type fleet struct {
	t     *testing.T
	s     *site
	gw    *child
	relay *relay
	d     *door
	hook  *tap
	nodes []*fleetNode
	wake  time.Duration // a sleeper sleeps between none and twice that
}

func newFleet(t *testing.T, n int, wake time.Duration, scheme string) *fleet {
	t.Helper()
	f := &fleet{t: t, s: newSite(t), hook: &tap{}, wake: wake}
	f.s.scheme = ", scheme: " + scheme
	addr, _ := operatorBroker(t, anyPort, f.hook)
	f.s.at["mqtt"] = "" // the broker is the operator's
	f.s.group = fmt.Sprintf("mqtt: {broker: \"mqtt://%s\"}\nlog: {level: warn}\nlimits: {handshakes: 1024}\n", addr)
	f.s.configure()
	delete(f.s.at, "mqtt")
	f.gw = f.s.run()
	f.d = f.s.door()
	f.relay = newRelay(t, f.d.coaps)
	f.d.coaps = f.relay.addr()
	f.nodes = make([]*fleetNode, n)
	g, _ := errgroup.WithContext(t.Context())
	g.SetLimit(16)
	for i := range n {
		g.Go(func() error {
			fn := &fleetNode{kind: i % kinds, secrets: map[groupcomm.Version]cose.Secret{}, states: map[groupcomm.Version]node.State{}}
			a := f.d.token()
			c := f.d.config(a)
			c.MQTT = fn.kind == kindMQTT
			c.PollEvery = time.Second
			c.WantCreds = false
			c.OnEvent = fn.learned
			dial := c.Redial
			c.Redial = func(ctx context.Context) (node.Transport, error) {
				ctx, cancel := context.WithTimeout(ctx, impatience)
				defer cancel()
				tr, err := dial(ctx)
				if err != nil {
					return nil, err
				}
				return &wire{Transport: tr, heard: fn.heard}, nil
			}
			// The token goes in psk_identity: posts from one address are few.
			fn.m = f.d.enter(a, c, &wire{Transport: f.d.dial(a.Token, a.Key.Bytes()), heard: fn.heard})
			f.nodes[i] = fn
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	var stops []func()
	for _, fn := range f.nodes {
		stops = append(stops, f.live(fn))
	}
	t.Cleanup(func() { // all at once: goodbyes take a moment each
		var wg sync.WaitGroup
		for _, stop := range stops {
			wg.Go(stop)
		}
		wg.Wait()
	})
	return f
}

// live keeps a node following, or waking now and then, until stop is called.
func (f *fleet) live(n *fleetNode) (stop func()) {
	if n.kind != kindSleeper {
		return n.m.follow()
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan struct{})
	go func() {
		defer close(over)
		for {
			nap := time.NewTimer(rand.N(2 * f.wake))
			select {
			case <-ctx.Done():
				nap.Stop()
				return
			case <-nap.C:
			}
			n.keep()
			awake, stop := context.WithTimeout(ctx, impatience)
			err := n.m.Wake(awake, f.wake)
			stop()
			if errors.Is(err, node.ErrNotMember) || errors.Is(err, node.ErrEvicted) {
				return // its membership is over
			}
			if err != nil {
				_ = n.m.Reconnect(ctx) // or at the next time
			}
		}
	}()
	return func() { cancel(); <-over }
}

// kill ends the gateway without a word and starts it again. Nodes notice as from
// an unreachable port: their associations are closed.
func (f *fleet) kill() {
	f.t.Helper()
	if status := f.gw.signal(syscall.SIGKILL); status != -1 {
		f.t.Fatalf("killed, but ended with status %d", status)
	}
	for _, n := range f.nodes {
		if n.kind != kindSleeper {
			_ = n.m.Close()
		}
	}
	f.gw = f.s.run()
}

func (f *fleet) progress() admin.DeliveryInfo {
	f.t.Helper()
	token := strings.TrimSpace(read(f.t, filepath.Join(f.s.dir, "data", config.AdminTokenFile)))
	d, err := admin.NewClient(f.s.at["http"], token).Delivery(soon(f.t), "sensors", false)
	if err != nil {
		f.t.Fatal(err)
	}
	return *d
}

// everybody waits until all but those out hold a version, for as long as it
// takes, and until the gateway knows.
func (f *fleet) everybody(version groupcomm.Version, out map[*fleetNode]bool, limit time.Duration) {
	f.t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		missing := 0
		for _, n := range f.nodes {
			v, ok := n.keep()
			if !out[n] && (!ok || v != version) {
				missing++
			}
		}
		if missing == 0 {
			break
		}
		if time.Now().After(end) {
			f.t.Fatalf("%d nodes have not got version %d", missing, version)
		}
	}
	for end := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		d := f.progress()
		if d.Version == version && d.Percent == 100 && d.Members == len(f.nodes)-len(out) {
			return
		}
		if time.Now().After(end) {
			f.t.Fatalf("the gateway does not know that everybody has version %d: %+v", version, d)
		}
	}
}

// proveDelivery: with nodes that observe, that are on MQTT and that sleep, 20 %
// of the datagrams lost, addresses that change and the gateway killed in mid-fan-out, everybody has the
// newest keys in the end, nobody was told of older ones after newer, and those
// evicted can read nothing that is newer.
//
// After lossy the network recovers, never for zero. scheme is how the group is
// rekeyed.
func proveDelivery(t *testing.T, n int, scheme string, wake, lossy, limit time.Duration) {
	f := newFleet(t, n, wake, scheme)
	first := f.s.rekey()
	began := time.Now()
	phase := func(what string) { t.Logf("%s after %.1f s", what, time.Since(began).Seconds()) }
	f.everybody(first, nil, limit)
	phase("the first rekey is everywhere")

	// One of each kind goes; from now on the network loses.
	f.relay.loss.Store(20)
	out := map[*fleetNode]bool{}
	args := []string{"group", "evict", "sensors"}
	for kind := range kinds {
		out[f.nodes[kind]] = true
		args = append(args, f.nodes[kind].m.state().Node)
	}
	leaver := f.nodes[kindMQTT].m.mgt(0)
	run(t, 0, append(args, "--config", f.s.config)...)
	last := first + 1
	eventually(t, "the rekey is under way", func() bool { d := f.progress(); return d.Version == last && d.Delivered > 0 })
	before := f.progress()
	f.kill()
	phase("killed and up again")
	t.Logf("%d of the nodes change their address", f.relay.move())
	wander := time.AfterFunc(2*time.Second, func() { f.relay.move() }) // and some once more
	defer wander.Stop()
	if after := f.progress(); after.Version != last || after.Delivered < before.Delivered {
		t.Errorf("after the kill: %+v, before: %+v", after, before)
	}
	if lossy != 0 {
		recovery := time.AfterFunc(lossy, func() { f.relay.loss.Store(0) })
		defer recovery.Stop()
	}
	f.everybody(last, out, limit)
	phase("the second rekey is everywhere")
	f.relay.loss.Store(0)

	var secret cose.Secret
	notified := 0
	for _, n := range f.nodes {
		n.mu.Lock()
		s, ok := n.secrets[last]
		notified += n.notified
		switch {
		case n.backward:
			t.Error("a node was told of an older version after a newer")
		case out[n] && (ok || n.newest >= last):
			t.Error("a node that was evicted holds the newest version")
		case !out[n] && secret.IsZero():
			secret = s
		case !out[n] && !s.Equal(secret):
			t.Error("two nodes hold different keys of one version")
		}
		n.mu.Unlock()
	}
	if notified < n/kinds {
		t.Errorf("only %d notifications and first answers were seen", notified)
	}
	for n := range out {
		n.mu.Lock()
		for version, s := range n.secrets {
			if s.Equal(secret) {
				t.Errorf("version %d has the Master Secret of version %d", version, last)
			}
		}
		n.mu.Unlock()
	}
	f.proveTraffic(last, out)
	// What passed the broker opens with a member's keys only, whatever the leaver
	// was given.
	if scheme == "key-tree" {
		f.proveTree(last, out)
		return
	}
	stays := f.nodes[kinds+kindMQTT].m.mgt(0)
	opened := 0
	for _, pk := range f.hook.messages(0) {
		if r, err := stays.open(pk.Payload); err == nil && r.Num == last {
			opened++
		}
		if r, err := leaver.open(pk.Payload); err == nil && r.Num >= last {
			t.Error("one who was evicted can open a newer rekey")
		}
	}
	if opened == 0 {
		t.Error("a member cannot open its own rekey")
	}
	t.Logf("%d nodes, %d datagrams lost", n, f.relay.lost.Load())
}

// proveTree: one who was evicted opens nothing of the last version, by whatever
// chain of keys; members on MQTT learned of it by the tree, and what they were
// given opens it.
func (f *fleet) proveTree(last groupcomm.Version, out map[*fleetNode]bool) {
	f.t.Helper()
	opened, messages := 0, 0
	for _, n := range f.nodes {
		if n.kind != kindMQTT {
			continue
		}
		got := spied(f.t, n.m, f.hook)
		switch reads := slices.Contains(got, last); {
		case reads && out[n]:
			f.t.Error("one who was evicted can open a newer rekey")
		case reads:
			opened++
		case !out[n]:
			f.t.Errorf("a member opens %v", got)
		}
	}
	for _, pk := range f.hook.messages(0) {
		if strings.Contains(pk.TopicName, "/tree/") && len(pk.Payload) > 0 {
			messages++
		}
	}
	f.t.Logf("%d nodes, %d datagrams lost; %d members of the tree, %d messages in it", len(f.nodes), f.relay.lost.Load(), opened, messages)
}

// TestFleet is the proof in small, with a network that recovers: with losses to
// the end the last of the nodes waits for a minute.
func TestFleet(t *testing.T) {
	t.Parallel()
	proveDelivery(t, 60, "point-to-point", 300*time.Millisecond, 2*time.Second, patience)
}

// TestFleetTree is it in a group with a key tree.
func TestFleetTree(t *testing.T) {
	t.Parallel()
	proveDelivery(t, 60, "key-tree", 300*time.Millisecond, 2*time.Second, patience)
}
