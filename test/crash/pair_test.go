//go:build postgres

package crash

import (
	"context"
	"flag"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/store/storetest/pgtest"
)

var pairRounds = flag.Int("crash.pair", 12, "how often TestPairCrash kills one of two gateways")

// newPair makes two gateways on one PostgreSQL schema, and starts them.
func newPair(t *testing.T, load *load) *world {
	t.Helper()
	dir := t.TempDir()
	dsn, err := pgtest.DSN(dir)
	if err != nil {
		t.Fatal(err)
	}
	if dsn == "" {
		t.Fatalf("%s names no PostgreSQL server to test with", pgtest.Env)
	}
	w := newWorldOn(t, binary, seed(t), dir, dsn, load)
	second := &site{config: filepath.Join(dir, "second.yaml"), at: freeDoors(t)}
	data, data2 := filepath.Join(dir, "data"), filepath.Join(dir, "data2")
	w.configure(t, second.config, data2, second.at, dsn)
	// What gateways that share a store have in common.
	if err := os.Mkdir(data2, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"seal.key", config.IssuerKeyFile, config.AdminTokenFile} {
		b, err := os.ReadFile(filepath.Join(data, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(data2, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pair := []*site{{config: w.config, at: w.at}, second}
	w.down.Store(false)
	for _, s := range pair {
		w.startSite(t, s)
	}
	w.pair = pair
	return w
}

func (w *world) startSite(t testing.TB, s *site) {
	t.Helper()
	gw, err := launch(w.bin, s.config)
	if err == nil {
		t.Cleanup(gw.kill)
		err = gw.await()
	}
	if err != nil {
		w.fail(t, err)
	}
	s.gw = gw
	s.begin()
}

func (w *world) stopSite(t testing.TB, s *site, gracefully bool) {
	t.Helper()
	if !s.gw.alive() {
		t.Fatalf("the gateway ended by itself: %v\n%s", s.gw.err, s.gw.stderr.String())
	}
	s.down.Store(true)
	if gracefully {
		if err := s.gw.terminate(); err != nil {
			t.Fatal(err)
		}
	} else {
		s.gw.kill()
	}
	// The other's write waits until a transaction of the one that was killed is
	// over.
	for _, other := range w.pair {
		if other != s && !other.down.Load() {
			w.ledger.attempt(w.load.groups[0])
			if _, err := w.admin().Rekey(t.Context(), w.load.groups[0], "after a kill"); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.life.Load().end()
	if line := s.gw.complaint(); line != "" {
		w.ledger.breach("", "the gateway says: %s", line)
	}
}

// TestPairDelivers: two nodes join at one gateway and one at the other; one of
// the first leaves at the second. Each gateway tells its own node of the rekey.
func TestPairDelivers(t *testing.T) {
	w := newPair(t, ordinary)
	ctx, cancel := context.WithTimeout(t.Context(), quietTime)
	defer cancel()
	var group []*client
	for _, c := range w.clients {
		if c.group == "plain" && c.follows {
			c.mqtt, c.pollEvery = false, time.Hour // only notifications bring it news
			group = append(group, c)
		}
	}
	here, there, leaver := group[0], group[1], group[2]
	here.pin, there.pin, leaver.pin = w.pair[0], w.pair[1], w.pair[0]
	for _, c := range []*client{here, there, leaver} {
		c.mu.Lock()
		defer c.mu.Unlock()
		for c.at != inside && ctx.Err() == nil {
			if c.life == nil || c.life.transport() == nil {
				c.connect(ctx)
				continue
			}
			c.join(ctx)
		}
		defer c.hangUp()
	}
	here.follow(ctx)
	there.follow(ctx)
	w.check(t)

	leaver.hangUp()
	leaver.pin = w.pair[1]
	leaver.connect(ctx)
	leaver.leave(ctx)
	owed := w.ledger.owed("plain")
	if leaver.at != outside || owed == 0 {
		t.Fatalf("the leave at the other gateway was not acknowledged")
	}
	err := until(ctx, func() (bool, error) {
		for _, c := range []*client{here, there} {
			if s, ok := c.life.member.State(); !ok || !s.Installed || s.Version < owed {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil || here.observed.Load() == 0 || there.observed.Load() == 0 {
		t.Errorf("version %d does not come to both: %v", owed, err)
	}
	for _, s := range w.pair {
		w.stopSite(t, s, true)
	}
	w.check(t)
}

// TestPairCrash: one of two gateways is killed at random under load, again and
// again, while the other goes on. No Sender ID is given twice under one Gid,
// no version is left out or given twice, no acknowledged member is lost, and
// what one was to do when it died the other does.
func TestPairCrash(t *testing.T) {
	w := newPair(t, ordinary)
	w.pairRounds(t, *pairRounds)
	w.forgotten(t)
	w.stopPair(t)
	t.Log(w.summary())
}

// pairTreeRounds are fewer: what one gateway cannot do wrong, two hardly can.
const pairTreeRounds = 4

// TestPairTree is TestPairCrash in a group with a key tree: whichever gateway
// renders a rekey of the tree or brings it out, no key of it ever protects two
// messages of one nonce; with both up again everybody learns of a rekey by the tree; and
// nobody reads anything of before or after its own time.
func TestPairTree(t *testing.T) {
	cast := castAddr(t)
	w := newPair(t, treeLoad(cast))
	w.ledger.unbounded(treeGroup)
	w.plant(t, treeGroup, cast)
	w.pairRounds(t, pairTreeRounds)
	w.byTree(t)
	w.check(t)
	w.fell(t)
	w.forest.secret(t)
	w.stopPair(t)
	t.Log(w.summary())
}

func (w *world) stopPair(t *testing.T) {
	t.Helper()
	for _, s := range w.pair {
		w.stopSite(t, s, false)
	}
	w.check(t)
}

// pairRounds kills one of the two again and again, and has everybody arrive at
// the newest version.
func (w *world) pairRounds(t *testing.T, rounds int) {
	t.Helper()
	for n := 1; n <= rounds; n++ {
		w.pairRound(t, n)
	}
	w.ledger.startRound(rounds + 1)
	w.everybody(t, func(ctx context.Context, c *client) bool {
		switch {
		case c.at == uncertain:
			c.look(ctx)
			if c.at == uncertain && c.doubt == joining {
				c.join(ctx)
			}
			return false
		case c.at == inside:
			c.look(ctx)
			w.upToDate(ctx, c)
		case c.life.stored:
			c.trespass(ctx)
		}
		return true
	})
	w.audit(t)
}

// pairRound is some time of load in which one gateway is killed and comes back.
func (w *world) pairRound(t *testing.T, n int) {
	t.Helper()
	w.count.rounds++
	w.ledger.startRound(n)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	for _, c := range w.clients {
		wg.Go(func() { c.run(ctx) })
	}
	op := operator{w: w, rng: mathrand.New(mathrand.NewPCG(w.rng.Uint64(), 0))}
	opOver := make(chan struct{})
	life := func() time.Duration { return stretch * (minLife + time.Duration(w.rng.Int64N(int64(maxLife-minLife)))) }
	first, second, victim := life(), life(), w.pair[w.rng.IntN(len(w.pair))]
	gracefully := w.rng.IntN(4) == 0
	go func() { defer close(opOver); op.run(ctx) }()
	load := func(d time.Duration) {
		end := time.NewTimer(d)
		defer end.Stop()
		<-end.C
	}
	load(first)
	w.stopSite(t, victim, gracefully)
	load(second)
	w.startSite(t, victim)
	load(first)
	cancel()
	wg.Wait()
	<-opOver
	w.check(t)
	w.audit(t)
	w.check(t)
}
