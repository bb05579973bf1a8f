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
// cost more than the rekey. A batch goes to the disk in the order of the table,
// so that it touches each page once, and in transactions that are over soon: who
// joins meanwhile has its turn between them.
type confirmer struct {
	store *store.Store
	log   *slog.Logger
	met   *metrics
	wrote func(group string) // confirmations of members of a group are on disk
	wake  chan struct{}      // one slot: something waits
	full  chan struct{}      // one slot: a batch is full
	rows  int                // that are written by a transaction; for flush alone

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
		rows:    confirmFew,
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
		c.gather(ctx)
		if ctx.Err() == nil && !c.flush(ctx) {
			// The disk may be full: keep what waits, do not spin.
			signal(c.wake)
			pause(ctx, time.Second)
		}
	}
}

// gather waits until a batch is worth writing: a moment, and longer while very many
// come at once and nobody waits for them. The more of a large group are written
// together, the fewer pages are written for each.
func (c *confirmer) gather(ctx context.Context) {
	delay := time.NewTimer(confirmDelay)
	defer delay.Stop()
	for n, began := 0, time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-c.full:
			return
		case <-delay.C:
		}
		c.mu.Lock()
		now, awaited := len(c.pending), len(c.waiters) > 0
		c.mu.Unlock()
		if awaited || now-n < confirmSpate || time.Since(began) >= confirmMost {
			return
		}
		n = now
		delay.Reset(confirmDelay)
	}
}

// flush writes what waits and says whether that worked.
func (c *confirmer) flush(ctx context.Context) bool {
	c.mu.Lock()
	batch, waiters, gone := c.pending, c.waiters, c.gone
	c.pending, c.waiters, c.gone = map[member]confirmation{}, nil, map[member]confirmation{}
	c.last = batch
	c.mu.Unlock()
	// One order for all: no two writers wait for each other's rows.
	left := slices.SortedFunc(maps.Keys(batch), func(a, b member) int {
		return cmp.Or(cmp.Compare(a.group, b.group), cmp.Compare(a.node, b.node))
	})
	err := c.takeBack(ctx, gone)
	if err == nil {
		clear(gone)
	}
	for err == nil && len(left) > 0 {
		part := left[:min(c.rows, len(left))]
		if err = c.write(ctx, part, batch); err == nil {
			left = left[len(part):]
			c.written(part, batch)
		}
	}
	if err == nil {
		for _, done := range waiters {
			done()
		}
		return true
	}
	if !errors.Is(err, context.Canceled) { // the stop interrupted it: run tries once more
		c.log.ErrorContext(ctx, "cannot write confirmations", "members", len(left), "err", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range left {
		if _, left := c.gone[m]; left {
			continue
		}
		if now, ok := c.pending[m]; !ok || now.version < batch[m].version {
			c.pending[m] = batch[m]
		}
	}
	maps.Copy(c.gone, gone)
	c.waiters = append(waiters, c.waiters...)
	return false
}

// takeBack deletes what was written for members that had left.
func (c *confirmer) takeBack(ctx context.Context, gone map[member]confirmation) error {
	for part := range slices.Chunk(slices.Collect(maps.Keys(gone)), confirmFew) {
		err := c.store.Update(ctx, func(tx *store.Tx) error {
			for _, m := range part {
				if _, err := tx.Exec(`DELETE FROM bridge_confirmed WHERE grp = ? AND node = ? AND version <= ?`, m.group, m.node, int64(gone[m].version)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// write writes a part of a batch, and learns how large the next may be.
func (c *confirmer) write(ctx context.Context, part []member, batch map[member]confirmation) error {
	var began, ended time.Time
	err := c.store.Update(ctx, func(tx *store.Tx) error {
		began = time.Now()
		var values [5 * confirmRows]any
		for rest := part; len(rest) > 0; {
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
		ended = time.Now()
		return nil
	})
	if err == nil {
		c.rows = rowsAfter(c.rows, len(part), ended.Sub(began), time.Since(ended))
	}
	return err
}

// rowsAfter is how many confirmations a transaction may write after one that might
// have had so many rows, had n, kept the others waiting for took, and whose commit took
// so long: one that is slow in itself is worth more of them. Less than a whole one says
// only whether it was too much, and none says more than by half: it may have met
// a busy moment.
func rowsAfter(rows, n int, took, commit time.Duration) int {
	hold := min(max(confirmHold, commit), confirmHoldMost)
	next := 2 * rows
	switch {
	case took > hold || n == rows && took > 0:
		next = min(next, int(int64(n)*int64(hold)/int64(took)))
	case n < rows:
		return rows
	}
	return min(max(next, rows/2, confirmFew), confirmBatch)
}

// written tells that a part of a batch is on disk.
func (c *confirmer) written(part []member, batch map[member]confirmation) {
	for i, m := range part {
		c.met.confirmations.WithLabelValues(batch[m].channel).Inc()
		if i == 0 || part[i-1].group != m.group {
			c.wrote(m.group)
		}
	}
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
