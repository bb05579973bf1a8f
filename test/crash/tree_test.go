//go:build !race || long

package crash

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/test/ports"
)

// treeGroup is the group with a key tree.
const treeGroup = "tree"

// newTreeWorld is a world of one group with a key tree, whose rekeys go over MQTT
// and are multicast.
func newTreeWorld(t testing.TB, dir, store string) *world {
	t.Helper()
	cast := castAddr(t)
	w := newWorldOn(t, binary, seed(t), dir, store, treeLoad(cast))
	w.ledger.unbounded(treeGroup)
	w.plant(t, treeGroup, cast)
	return w
}

// castAddr is a multicast group that no other test uses.
func castAddr(t testing.TB) string {
	t.Helper()
	return fmt.Sprintf("239.77.%d.%d:%d", rand.IntN(256), 1+rand.IntN(254), ports.Free(t))
}

// treeLoad: the lifetime of the keys is the shortest that there is, so that the
// schedule rekeys too where the test takes so long.
func treeLoad(cast string) *load {
	return &load{
		groups: []string{treeGroup},
		yaml: fmt.Sprintf(`
  - name: %s
    key_lifetime: 1m
    rekey: {batch_window: 20ms, scheme: key-tree, tree_degree: 2, control_group_uri: "coap://%s/keys"}
multicast: {interface: %s}
`, treeGroup, cast, loopback),
		client: newTreeClient,
	}
}

// newTreeClient makes nodes on MQTT, that listen to multicast, and one that
// observes as if there were no tree. They learn nothing by asking unless a link of
// the tree is missed, or their step is to ask.
func newTreeClient(w *world, i int, seed uint64) *client {
	c := newClient(w, i, seed)
	c.follows, c.pollEvery = true, time.Hour
	c.anchor = i == 0 || i == 2 || i == 3
	c.cast = i%2 == 1
	c.mqtt = !c.cast && i != 10
	return c
}

// TestTreeCrash: in a group with a key tree the gateway is killed while nodes
// join, join again and leave, and are evicted and rekeyed. No key of the tree ever
// protects two messages of one nonce; in the end everybody holds the newest
// version, by the tree; and nobody reads anything of before or after its own time.
// It takes too long under the race detector, but for long runs.
func TestTreeCrash(t *testing.T) {
	w := newTreeWorld(t, t.TempDir(), "sqlite:groupgate.db")
	rounds := *treeRounds
	if rounds == 0 {
		rounds = defaultTreeRounds
	}
	for n := 1; n <= rounds; n++ {
		w.run(t, n, round{
			audit:      w.rng.IntN(4) == 0,
			early:      w.rng.IntN(10) == 0,
			onAnswer:   w.rng.IntN(3) == 0,
			gracefully: w.rng.IntN(8) == 0,
		})
	}
	w.finish(t)
	w.ledger.startRound(rounds + 2)
	w.start(t)
	w.byTree(t)
	w.check(t)
	w.fell(t)
	w.forest.secret(t)
	w.stop(t, true)
	w.check(t)
	t.Log(w.summary())
}

// byTree has everybody follow, and rekeys: all get it over the channel that they
// asked for.
func (w *world) byTree(t testing.TB) {
	t.Helper()
	var ready sync.WaitGroup
	ready.Add(len(w.clients))
	rekeyed := make(chan struct{})
	var version uint64
	go func() {
		ready.Wait()
		r, err := w.admin().Rekey(t.Context(), treeGroup, "for all")
		if err != nil {
			w.ledger.breach(treeGroup, "rekey: %v", err)
		} else {
			version = r.Version
		}
		close(rekeyed)
	}()
	var once [clients]sync.Once
	learned := func() int64 { return w.count.byMQTT.Load() + w.count.byCast.Load() }
	before := learned()
	w.everybody(t, func(ctx context.Context, c *client) bool {
		switch {
		case c.at == uncertain:
			c.look(ctx)
			return false
		case c.at == outside:
			c.join(ctx)
			return false
		}
		if _, ok := c.life.member.State(); !ok {
			c.rejoin(ctx) // lost it together with an earlier life of the member
			return false
		}
		c.follow(ctx)
		once[c.id].Do(ready.Done)
		<-rekeyed
		s, ok := c.life.member.State()
		return ok && s.Installed && s.Version >= version
	})
	if n := learned() - before; n < clients/2 {
		w.ledger.breach(treeGroup, "of %d members %d learned of a rekey by the tree", clients, n)
	}
}

// fell ends every membership: the tree goes, and nothing is retained of it.
func (w *world) fell(t testing.TB) {
	t.Helper()
	w.everybody(t, func(ctx context.Context, c *client) bool {
		switch c.at {
		case uncertain:
			c.look(ctx)
		case inside:
			c.leave(ctx)
		}
		return c.at == outside
	})
	err := until(t.Context(), func() (bool, error) { return w.broker.retainedBranches()+w.broker.retainedTopics() == 0, nil })
	if err != nil {
		w.ledger.breach(treeGroup, "the broker keeps %d messages for nobody: %v", w.broker.retainedBranches()+w.broker.retainedTopics(), err)
	}
}
