package bridge

import (
	"log/slog"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed4911071e/groupgate/store"
)

// TestConfirmedAndLeft: what a member confirmed that leaves while it is written is
// taken back: the ledger has members alone.
func TestConfirmedAndLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := open(t)
		c := newConfirmer(st, slog.New(slog.DiscardHandler), newMetrics(prometheus.NewRegistry(), &Bridge{}), func(string) {})
		rows := func() (n int) {
			t.Helper()
			err := st.View(t.Context(), func(tx *store.Tx) error {
				return tx.QueryRow(`SELECT COUNT(*) FROM bridge_confirmed`).Scan(&n)
			})
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
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
