package bridge

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed4911071e/groupgate/store"
)

// TestConfirmedAndLeft: what a member confirmed that leaves while it is written is
// taken back: the ledger has members alone.
func TestConfirmedAndLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestConfirmer(t)
		rows := func() int { return confirmedRows(t, c.store) }
		const members = confirmRows + 3 // by both statements
		for i := range members {
			c.add(member{"g", string(rune('a' + i))}, 7, channelPoll, nil)
		}
		if !c.flush(t.Context()) || rows() != members {
			t.Fatalf("%d rows", rows())
		}
		left := member{"g", "a"}
		c.forget(left) // its row was deleted before it was written
		if !c.flush(t.Context()) || rows() != members-1 {
			t.Errorf("%d rows after a leave", rows())
		}
		// It comes again, under the same name.
		c.add(left, 8, channelPoll, nil)
		for range 2 {
			if !c.flush(t.Context()) {
				t.Error("nothing is written")
			}
		}
		if rows() != members {
			t.Errorf("%d rows after it came again", rows())
		}
	})
}

func newTestConfirmer(t *testing.T) *confirmer {
	return newConfirmer(open(t), slog.New(slog.DiscardHandler), newMetrics(prometheus.NewRegistry(), &Bridge{}), func(string) {})
}

func confirmedRows(t *testing.T, st *store.Store) (n int) {
	t.Helper()
	err := st.View(context.WithoutCancel(t.Context()), func(tx *store.Tx) error {
		return tx.QueryRow(`SELECT COUNT(*) FROM bridge_confirmed`).Scan(&n)
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestConfirmedInParts: a large batch leaves room for others before it is written
// whole, and nobody is told that it is before.
func TestConfirmedInParts(t *testing.T) {
	c := newTestConfirmer(t)
	const members = 3*confirmFew + 5
	between := 0
	c.wrote = func(string) {
		// A join, say: what is on disk when it has its turn.
		err := c.store.Update(t.Context(), func(tx *store.Tx) error {
			var n int
			if err := tx.QueryRow(`SELECT COUNT(*) FROM bridge_confirmed`).Scan(&n); err != nil {
				return err
			}
			if n < members {
				between++
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		c.rows = confirmFew // however quick it was
	}
	told := 0
	for i := range members {
		c.add(member{"g", fmt.Sprint(i)}, 7, channelMQTT, nil)
	}
	c.after(func() {
		if told++; confirmedRows(t, c.store) != members {
			t.Error("told before all is on disk")
		}
	})
	if !c.flush(t.Context()) || told != 1 {
		t.Errorf("told %d times", told)
	}
	if between != 3 {
		t.Errorf("others had their turn %d times before the batch was whole, want 3", between)
	}
}

// TestConfirmedInPart: where the disk gives up in the middle the rest is kept, and
// written later.
func TestConfirmedInPart(t *testing.T) {
	c := newTestConfirmer(t)
	ctx, cancel := context.WithCancel(t.Context())
	c.wrote = func(string) { cancel() }
	const members = 2 * confirmFew
	told := 0
	for i := range members {
		c.add(member{"g", fmt.Sprint(i)}, 7, channelMQTT, nil)
	}
	c.after(func() { told++ })
	if c.flush(ctx) || told != 0 {
		t.Errorf("told %d times of a part", told)
	}
	if n := confirmedRows(t, c.store); n != confirmFew || len(c.pending) != members-n {
		t.Errorf("%d rows, %d wait", n, len(c.pending))
	}
	newer := member{"g", "0"}
	c.add(newer, 8, channelPoll, nil)
	if !c.flush(t.Context()) || told != 1 || confirmedRows(t, c.store) != members || len(c.pending) != 0 {
		t.Errorf("%d rows after another try, told %d times", confirmedRows(t, c.store), told)
	}
}

func TestRowsAfter(t *testing.T) {
	const ms = time.Millisecond
	for _, x := range []struct {
		what         string
		rows, n      int
		took, commit time.Duration
		want         int
	}{
		{"as long as it may be", 1000, 1000, confirmHold, ms, 1000},
		{"quick", 1000, 1000, confirmHold / 10, ms, 2000},
		{"no time at all", 1000, 1000, 0, 0, 2000},
		{"the last part says nothing", 1000, 10, ms / 10, ms, 1000},
		{"nor that it is quick", 1000, 900, ms / 10, ms, 1000},
		{"but that it is slow", 1000, 800, confirmHold * 4 / 3, ms, 600},
		{"a busy moment", 1000, 1000, time.Second, ms, 500},
		{"slow for ever", confirmFew, confirmFew, time.Second, ms, confirmFew},
		{"a slow commit", 1000, 1000, 2 * confirmHold, 2 * confirmHold, 1000},
		{"a very slow one", 1000, 1000, 2 * confirmHoldMost, time.Minute, 500},
		{"a batch at most", confirmBatch, confirmBatch, 0, 0, confirmBatch},
	} {
		if got := rowsAfter(x.rows, x.n, x.took, x.commit); got != x.want {
			t.Errorf("%s: %d rows, want %d", x.what, got, x.want)
		}
	}
}

// TestGather: very many are gathered for longer, unless somebody waits for them.
func TestGather(t *testing.T) {
	for _, x := range []struct {
		what  string
		every int // come in each confirmDelay
		wait  bool
		want  time.Duration
	}{
		{"few", 1, false, confirmDelay},
		{"many", confirmSpate, false, confirmMost},
		{"awaited", confirmSpate, true, confirmDelay},
		{"a batch", confirmBatch/2 + 1, false, confirmDelay + confirmDelay/2},
	} {
		t.Run(x.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newConfirmer(nil, nil, nil, nil)
				ctx, cancel := context.WithCancel(t.Context())
				began, n := time.Now(), 0
				come := time.NewTimer(confirmDelay / 2)
				coming := make(chan struct{})
				go func() {
					defer close(coming)
					for ctx.Err() == nil {
						select {
						case <-come.C:
						case <-ctx.Done():
						}
						for range x.every {
							n++
							c.add(member{"g", fmt.Sprint(n)}, 7, channelMQTT, nil)
						}
						if x.wait {
							c.after(func() {})
						}
						come.Reset(confirmDelay)
					}
				}()
				c.gather(ctx)
				if took := time.Since(began); took != x.want {
					t.Errorf("gathered for %v, want %v", took, x.want)
				}
				cancel()
				<-coming
			})
		})
	}
}
