package bridge

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/store"
)

// Channels over which a member is reached, as the ledger names them.
const (
	channelObserve = "observe"
	channelMQTT    = "mqtt"
	channelPoll    = "poll"
	// channelMulticast is IP multicast, of a key tree.
	channelMulticast = "multicast"
	channelControl   = "control"
	channelNone      = "none"
)

// confirmation is the newest version that a member showed.
type confirmation struct {
	version uint64
	channel string
	at      time.Time
}

// confirmer gathers confirmations and writes them in batches: the
// acknowledgements of a large group come in bursts, and a commit each would
// cost more than the rekey.
type confirmer struct {
	store *store.Store
	log   *slog.Logger
	met   *metrics
	wrote func(group string) // confirmations of members of a group are on disk
	wake  chan struct{}      // one slot: something waits
	full  chan struct{}      // one slot: a batch is full

	mu      sync.Mutex
	pending map[member]confirmation
	waiters []func()
	last    map[member]confirmation // what is being written or was last
	gone    map[member]confirmation // of last, by members that left meanwhile
}

func newConfirmer(s *store.Store, log *slog.Logger, met *metrics, wrote func(group string)) *confirmer {
	return &confirmer{
		store: s, log: log, met: met, wrote: wrote,
		wake:    make(chan struct{}, 1),
		full:    make(chan struct{}, 1),
		pending: map[member]confirmation{},
		gone:    map[member]confirmation{},
	}
}

// add never blocks. done, when not nil, is called after the confirmation is on
// disk.
func (c *confirmer) add(m member, version uint64, channel string, done func()) {
	c.mu.Lock()
	if old, ok := c.pending[m]; !ok || old.version < version {
		c.pending[m] = confirmation{version, channel, time.Now()}
	}
	if done != nil {
		c.waiters = append(c.waiters, done)
	}
	full := len(c.pending) >= confirmBatch
	c.mu.Unlock()
	signal(c.wake)
	if full {
		signal(c.full)
	}
}

// after calls done when all that was added before is on disk.
func (c *confirmer) after(done func()) {
	c.mu.Lock()
	c.waiters = append(c.waiters, done)
	c.mu.Unlock()
	signal(c.wake)
}

// forget drops what waits for a membership that ended. What may be written after the
// membership went is taken back.
func (c *confirmer) forget(m member) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, m)
	if v, ok := c.last[m]; ok {
		c.gone[m] = v
		signal(c.wake)
	}
}

func (c *confirmer) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbye)
			defer cancel()
			c.flush(bye)
			return ctx.Err()
		case <-c.wake:
		}
		delay := time.NewTimer(confirmDelay)
		select {
		case <-ctx.Done():
		case <-c.full:
		case <-delay.C:
		}
		delay.Stop()
		if ctx.Err() == nil && !c.flush(ctx) {
			// The disk may be full: keep what waits, do not spin.
			signal(c.wake)
			pause(ctx, time.Second)
		}
	}
}

// flush writes what waits and says whether that worked.
func (c *confirmer) flush(ctx context.Context) bool {
	c.mu.Lock()
	batch, waiters, gone := c.pending, c.waiters, c.gone
	c.pending, c.waiters, c.gone = map[member]confirmation{}, nil, map[member]confirmation{}
	c.last = batch
	c.mu.Unlock()
	if len(batch) == 0 && len(gone) == 0 {
		for _, done := range waiters {
			done()
		}
		return true
	}
	// One order for all: no two writers wait for each other's rows.
	keys := slices.SortedFunc(maps.Keys(batch), func(a, b member) int {
		if a.group != b.group {
			return cmp.Compare(a.group, b.group)
		}
		return cmp.Compare(a.node, b.node)
	})
	err := c.store.Update(ctx, func(tx *store.Tx) error {
		for m, v := range gone {
			if _, err := tx.Exec(`DELETE FROM bridge_confirmed WHERE grp = ? AND node = ? AND version <= ?`, m.group, m.node, int64(v.version)); err != nil {
				return err
			}
		}
		var values [5 * confirmRows]any
		for rest := keys; len(rest) > 0; {
			n := confirmRows
			if len(rest) < n {
				n = 1 // two statements are enough to be kept prepared
			}
			for i, m := range rest[:n] {
				v := batch[m]
				copy(values[5*i:], []any{m.group, m.node, int64(v.version), v.channel, v.at.Unix()})
			}
			if _, err := tx.Exec(confirmStatement[n], values[:5*n]...); err != nil {
				return err
			}
			rest = rest[n:]
		}
		return nil
	})
	if err != nil {
		if !errors.Is(err, context.Canceled) { // the stop interrupted it: run tries once more
			c.log.ErrorContext(ctx, "cannot write confirmations", "members", len(batch), "err", err)
		}
		c.mu.Lock()
		for m, v := range batch {
			if _, left := c.gone[m]; left {
				continue
			}
			if now, ok := c.pending[m]; !ok || now.version < v.version {
				c.pending[m] = v
			}
		}
		for m, v := range gone {
			c.gone[m] = v
		}
		c.waiters = append(waiters, c.waiters...)
		c.mu.Unlock()
		return false
	}
	for _, v := range batch {
		c.met.confirmations.WithLabelValues(v.channel).Inc()
	}
	for _, done := range waiters {
		done()
	}
	for i, m := range keys {
		if i == 0 || keys[i-1].group != m.group {
			c.wrote(m.group)
		}
	}
	return true
}

// confirmStatement writes so many confirmations, none over a newer one.
var confirmStatement = map[int]string{1: confirmSQL(1), confirmRows: confirmSQL(confirmRows)}

func confirmSQL(rows int) string {
	return `INSERT INTO bridge_confirmed (grp, node, version, channel, at) VALUES (?, ?, ?, ?, ?)` +
		strings.Repeat(`, (?, ?, ?, ?, ?)`, rows-1) + `
		ON CONFLICT (grp, node) DO UPDATE SET version = excluded.version, channel = excluded.channel, at = excluded.at
		WHERE excluded.version > bridge_confirmed.version`
}

// signal fills a one-slot channel.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// pause waits, but not longer than ctx.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
