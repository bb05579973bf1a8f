// Package crash kills the real gateway again and again while nodes join, leave
// and are rekeyed over real DTLS, on one data folder, and looks for anything
// that the gateway acknowledged and does not keep.
//
//	go test ./test/crash
//	go test ./test/crash -run TestCrash -v -crash.rounds 5000 -crash.seed 7 -timeout 0
//
// Start at TestCrash; ledger_test.go has the invariants, client_test.go the
// load and what is known of requests that were cut off. A seed repeats the
// moments and the choices, not the interleaving.
package crash

import (
	"context"
	"flag"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"
)

var (
	roundsFlag = flag.Int("crash.rounds", defaultRounds, "how often TestCrash kills the gateway")
	treeRounds = flag.Int("crash.tree", 0, "how often TestTreeCrash kills the gateway; 0: as often as fits the build")
	seedFlag   = flag.Uint64("crash.seed", 0, "seed of the moments and choices; 0: a new one")
)

// binary is the gateway.
var binary string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(build(m))
}

func build(m *testing.M) int {
	dir, err := os.MkdirTemp("", "groupgate-crash-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if binary, err = buildGateway(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func seed(t testing.TB) uint64 {
	s := *seedFlag
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d (-crash.seed)", s)
	return s
}

// TestCrash: whatever the gateway acknowledged outlives SIGKILL.
func TestCrash(t *testing.T) {
	w := newWorld(t, binary, seed(t))
	for n := 1; n <= *roundsFlag; n++ {
		w.run(t, n, round{
			audit:    w.rng.IntN(2) == 0,
			early:    w.rng.IntN(10) == 0,
			onAnswer: w.rng.IntN(4) == 0,
		})
	}
	w.finish(t)
	t.Log(w.summary())
}

// TestRestart: SIGTERM among SIGKILL under load loses nothing either, and a
// start changes nothing: no rekey, no member, no Sender ID.
func TestRestart(t *testing.T) {
	w := newWorld(t, binary, seed(t))
	rounds := 16
	if raceDetector {
		rounds = 4
	}
	for n := 1; n <= rounds; n++ {
		w.run(t, n, round{audit: true, gracefully: n%2 == 0, onAnswer: n%4 == 0})
	}
	w.finish(t)

	// With nothing due, a start is no event. Members that come back are none.
	before := map[string]uint64{}
	for _, group := range w.load.groups {
		before[group] = w.ledger.floor(group)
	}
	for n := range 6 {
		w.ledger.startRound(rounds + 2 + n)
		w.start(t)
		w.audit(t)
		w.everybody(t, func(ctx context.Context, c *client) bool {
			if c.at == inside {
				c.look(ctx)
				c.poll(ctx)
			}
			return true
		})
		w.audit(t)
		for _, group := range w.load.groups {
			if v := w.ledger.floor(group); v != before[group] {
				w.ledger.breach(group, "a start brought version %d, it was %d", v, before[group])
			}
		}
		w.stop(t, n%2 == 0)
		w.check(t)
	}
	t.Log(w.summary())
}

// finish settles what is uncertain, has nodes leave under a last kill, and looks
// at everything once more. The gateway is stopped afterwards.
func (w *world) finish(t testing.TB) {
	t.Helper()
	w.ledger.startRound(w.count.rounds + 1)
	w.start(t)
	w.audit(t)
	w.everybody(t, func(ctx context.Context, c *client) bool {
		switch {
		case c.at == uncertain:
			c.look(ctx)
			if c.at == uncertain && c.doubt == joining {
				c.join(ctx)
			}
			return false // what it is now comes next
		case c.at == outside:
			if c.life.stored {
				c.trespass(ctx)
			}
			if !c.anchor && c.id < 2*len(w.load.groups) || c.anchor {
				c.join(ctx) // somebody stays, somebody leaves
				return c.at == inside
			}
		default:
			c.look(ctx)
			c.poll(ctx)
		}
		return true
	})
	w.check(t)

	// The second client of each group leaves, and the gateway is killed with the
	// acknowledgement, before any rekey.
	leavers := w.clients[len(w.load.groups) : 2*len(w.load.groups)]
	for _, c := range leavers {
		w.leaveAndKill(t, c)
		w.start(t)
	}
	w.audit(t) // waits for the rekeys that are owed
	w.everybody(t, func(ctx context.Context, c *client) bool {
		switch c.at {
		case inside:
			w.upToDate(ctx, c)
		case outside:
			if c.life.stored {
				c.trespass(ctx)
			}
		}
		return true
	})
	w.forgotten(t)
	w.audit(t)
	w.stop(t, false)
	w.check(t)
}

// everybody has every client do something until it says that it is done.
func (w *world) everybody(t testing.TB, do func(context.Context, *client) (done bool)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), quietTime)
	defer cancel()
	var wg sync.WaitGroup
	for _, c := range w.clients {
		wg.Go(func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			defer c.hangUp()
			for {
				if c.life == nil || c.life.transport() == nil {
					c.connect(ctx)
				}
				if c.life.transport() != nil && do(ctx, c) {
					return
				}
				if ctx.Err() != nil {
					w.ledger.breach(c.group, "client %d cannot finish", c.id)
					return
				}
				c.think(ctx)
			}
		})
	}
	wg.Wait()
}

// leaveAndKill kills the gateway with the acknowledgement of a leave.
func (w *world) leaveAndKill(t testing.TB, c *client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), quietTime)
	defer cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.hangUp()
	c.connect(ctx)
	if c.life.transport() == nil || c.at != inside {
		w.fail(t, fmt.Errorf("client %d has no membership to end", c.id))
	}
	c.leave(ctx)
	w.stop(t, false)
	if c.at != outside {
		w.fail(t, fmt.Errorf("client %d could not leave", c.id))
	}
}

// upToDate: a remaining member gets the newest version.
func (w *world) upToDate(ctx context.Context, c *client) {
	owed := w.ledger.owed(c.group)
	c.poll(ctx)
	m := c.life.member
	s, ok := m.State()
	if !ok {
		c.rejoin(ctx)
		s, ok = m.State()
	}
	if !ok || !s.Installed || s.Version < owed {
		w.ledger.breach(c.group, "client %d (%s) does not get version %d", c.id, c.node, owed)
	}
}

// forgotten: no more messages wait at the broker than there are members that
// want them.
func (w *world) forgotten(t testing.TB) {
	t.Helper()
	members := 0
	for _, c := range w.clients {
		if c.mqtt && c.at == inside {
			members++
		}
	}
	err := until(t.Context(), func() (bool, error) { return w.broker.retainedTopics() <= members, nil })
	if err != nil {
		w.ledger.breach("", "the broker keeps %d messages for %d members: %v", w.broker.retainedTopics(), members, err)
	}
}
