package gm

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
	"github.com/seed4911071e/groupgate/store/storetest"
)

// checkState verifies what holds in every state on disk: the Sender IDs below
// the cursor are held, stale in the current version, or free, and exactly one
// of these; every version has its stale set; the material opens and is that of
// the version.
func (f *fixture) checkState() {
	f.t.Helper()
	err := f.st.View(f.t.Context(), func(tx *store.Tx) error {
		for _, g := range f.m.byID() {
			var num, next, free, from int64
			if err := tx.QueryRow(`SELECT num, sid_next, sid_free, stale_from FROM gm_groups WHERE id = ?`, g.id).
				Scan(&num, &next, &free, &from); err != nil {
				return err
			}
			where := map[int64]string{}
			counts := map[string]int64{}
			for name, q := range map[string]string{
				"held":  `SELECT sid FROM gm_members WHERE group_id = ? AND sid IS NOT NULL`,
				"stale": `SELECT s.sid FROM gm_stale s JOIN gm_groups g ON g.id = s.group_id AND g.num = s.num WHERE g.id = ?`,
				"free":  `SELECT sid FROM gm_free WHERE group_id = ?`,
			} {
				rows, err := tx.Query(q, g.id)
				if err != nil {
					return err
				}
				for rows.Next() {
					var p int64
					if err := rows.Scan(&p); err != nil {
						return err
					}
					if other, ok := where[p]; ok {
						f.t.Errorf("place %d is %s and %s", p, name, other)
					}
					if p < 0 || p >= next {
						f.t.Errorf("place %d, which is %s, was never given out (next %d)", p, name, next)
					}
					where[p] = name
					counts[name]++
				}
				if err := rows.Err(); err != nil {
					return err
				}
			}
			if int64(len(where)) != next || counts["free"] != free {
				f.t.Errorf("%d places below the cursor %d, %d free counted as %d", len(where), next, counts["free"], free)
			}
			if num-from+1 > int64(g.cfg.MaxStaleSets) || from > num {
				f.t.Errorf("stale sets from %d to %d", from, num)
			}
			g.cur.Store(nil)
			mat, err := f.m.readMaterial(tx, g)
			if err != nil {
				return err
			}
			msg, err := groupcomm.DecodeRekeyMessage(mat.message.Bytes())
			if err != nil {
				return err
			}
			if msg.Num != mat.num || string(msg.ContextID) != string(mat.gid) || msg.Exp != mat.exp {
				f.t.Errorf("version %d has the message of %d", mat.num, msg.Num)
			}
		}
		return nil
	})
	if err != nil {
		f.t.Fatal(err)
	}
}

// TestCrashUnderLoad takes power cuts while nodes join and leave and groups are
// rekeyed. In each, everything acknowledged before is there, and the state is
// whole.
func TestCrashUnderLoad(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	var joined, left sync.Map // node name → true once acknowledged
	var stop atomic.Bool
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := 0; !stop.Load(); i++ {
				j := f.joiner(fmt.Sprintf("w%d-%d", w, i), "g1", both)
				if _, err := j.Join(t.Context(), f.m, "g1", both); err != nil {
					if strings.Contains(err.Error(), "5.03") {
						continue // rekeys overtook it too often
					}
					t.Error(err)
					return
				}
				joined.Store(j.Path[3], true)
				if i%3 == 0 {
					joined.Delete(j.Path[3]) // until the answer nobody knows
					if r := f.do(j, coap.DELETE, nil, j.Path...); r.Code != coap.Deleted {
						t.Errorf("leave: %v", r.Code)
						return
					}
					left.Store(j.Path[3], true)
				}
				if i%7 == 0 {
					if _, err := f.m.Rekey(t.Context(), "g1", "test"); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	for range 5 {
		in, out := map[any]bool{}, map[any]bool{}
		joined.Range(func(k, _ any) bool { in[k] = true; return true })
		left.Range(func(k, _ any) bool { out[k] = true; return true })
		least := f.status().Version
		after := newFixtureWith(t, storetest.Crash(t, f.st, Migrations()), nil, groupConfig("g1"))
		after.checkState()
		if v := after.status().Version; v < least {
			t.Errorf("version %d after the crash, %d before", v, least)
		}
		members, err := after.m.Members(t.Context(), "g1")
		if err != nil {
			t.Fatal(err)
		}
		have := map[any]bool{}
		for _, mb := range members {
			have[mb.Node] = true
			if out[mb.Node] {
				t.Errorf("%s has left and is back", mb.Node)
			}
		}
		for node := range in {
			// It may have left since, but for every third nobody does.
			if _, still := joined.Load(node); still && !have[node] {
				t.Errorf("%s joined and is gone", node)
			}
		}
		// The copy goes on where it stands.
		if _, err := after.m.Rekey(t.Context(), "g1", "test"); err != nil {
			t.Error(err)
		}
		after.checkState()
	}
	stop.Store(true)
	wg.Wait()
	f.checkState()
}
