package gm

import (
	"bytes"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/gm/gmtest"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
	"github.com/seed4911071e/groupgate/store/storetest"
)

func onJoin() groupcomm.GroupConfig {
	c := groupConfig("g1")
	c.RekeyOnJoin = true
	c.BatchWindow = time.Minute
	return c
}

// newest is the rekey message of the newest version.
func (f *fixture) newest(version uint64) *groupcomm.RekeyMessage {
	f.t.Helper()
	num, body, err := f.m.RekeyMessage(f.t.Context(), "g1")
	if err != nil || num != version {
		f.t.Fatalf("rekey message of version %d: %v", num, err)
	}
	r, err := groupcomm.DecodeRekeyMessage(body)
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}

// joinAll has all join at once and gives their Sender IDs, "" for who failed.
func (f *fixture) joinAll(nodes ...*gmtest.Joiner) []string {
	ids := make([]string, len(nodes))
	var wg sync.WaitGroup
	for i, j := range nodes {
		wg.Go(func() {
			if d, err := j.Join(f.t.Context(), f.m, "g1", both); err == nil {
				ids[i] = fmt.Sprintf("id %s", d.Key.SenderID)
			}
		})
	}
	wg.Wait()
	return ids
}

// draft-ietf-ace-key-groupcomm-oscore-21, Section 11.1: the rekey that joins cause
// tells of the newcomers, with the Sender IDs that they then have.
func TestRekeyTellsOfNewcomers(t *testing.T) {
	bubble(t, onJoin(), func(f *fixture) {
		f.member("first", "g1")
		nodes := []*gmtest.Joiner{f.joiner("a", "g1", both), f.joiner("b", "g1", both), f.joiner("c", "g1", both)}
		monitor := f.joiner("m", "g1", groupcomm.Monitor)
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := monitor.Join(f.t.Context(), f.m, "g1", groupcomm.Monitor); err != nil {
				f.t.Error(err)
			}
		})
		ids := f.joinAll(nodes...)
		wg.Wait()
		r := f.newest(1)
		if len(r.Creds) != len(nodes) {
			f.t.Fatalf("%d newcomers", len(r.Creds))
		}
		for i, j := range nodes {
			told := false
			for k, cred := range r.Creds {
				told = told || bytes.Equal(cred, j.Cred) && ids[i] == "id "+r.PeerIdentifiers[k].String() && r.PeerRoles[k] == both
			}
			if !told {
				f.t.Errorf("%s with %s is not told of: %v", j.Peer.Subject.ID, ids[i], r.PeerIdentifiers)
			}
		}
		f.rekey("g1")
		if r := f.newest(2); len(r.Creds) != 0 || len(r.Stale) != 0 {
			f.t.Errorf("an ordinary rekey tells of %d newcomers, stale %v", len(r.Creds), r.Stale)
		}
	})
}

// A Sender ID that was told of and not taken, because the join failed or the
// process ended, is given to nobody under that Gid, and stale with the next.
func TestReservedSenderIDNotTaken(t *testing.T) {
	for _, crash := range []bool{false, true} {
		bubble(t, onJoin(), func(f *fixture) {
			f.member("first", "g1")
			late := f.joinerWith("late", cose.AlgEdDSA, groupcomm.Scope{{Group: "g1", Roles: both}}, time.Now().Add(time.Second))
			ids := f.joinAll(late, f.joiner("a", "g1", both))
			r := f.newest(1)
			if ids[0] != "" || ids[1] == "" || len(r.Creds) != 2 {
				f.t.Fatalf("joined %q, told of %d", ids, len(r.Creds))
			}
			reserved := r.PeerIdentifiers[0]
			if bytes.Equal(r.Creds[1], late.Cred) {
				reserved = r.PeerIdentifiers[1]
			}
			if crash {
				f.reopen(storetest.Crash(f.t, f.st, Migrations()))
			}
			f.rekey("g1")
			if r := f.newest(2); len(r.Stale) != 1 || r.Stale[0].String() != reserved.String() {
				f.t.Errorf("stale %v, want %s", r.Stale, reserved)
			}
			// It is free under the new Gid.
			f.rekey("g1")
			if got := f.joinAll(f.joiner("b", "g1", both))[0]; got != "id "+reserved.String() {
				f.t.Errorf("next newcomer has %s, want %s", got, reserved)
			}
		})
	}
}

// A rekey message goes to every member: it tells of as many as fit, and the
// others join all the same.
func TestManyNewcomers(t *testing.T) {
	bubble(t, onJoin(), func(f *fixture) {
		f.member("first", "g1")
		var nodes []*gmtest.Joiner
		for i := range 100 {
			nodes = append(nodes, f.joiner(fmt.Sprint("n", i), "g1", both))
		}
		seen := map[string]bool{"id ": true}
		for _, id := range f.joinAll(nodes...) {
			if id == "" || seen[id] {
				f.t.Errorf("Sender ID %q", id)
			}
			seen[id] = true
		}
		f.wantVersion(1)
		r, size := f.newest(1), 0
		for _, c := range r.Creds {
			size += len(c)
		}
		if len(r.Creds) == 0 || len(r.Creds) == len(nodes) || size > maxNewcomerCreds {
			f.t.Errorf("%d newcomers in %d bytes", len(r.Creds), size)
		}
	})
}

// A leave and a join at once cause one rekey, which tells of both: the Sender ID
// of who left may be that of who came.
func TestLeaveAndJoinAtOnce(t *testing.T) {
	bubble(t, onJoin(), func(f *fixture) {
		f.member("first", "g1")
		f.join(f.joiner("a", "g1", both), "g1", both)
		a := f.joiner("b", "g1", both)
		left := f.join(a, "g1", both).Key.SenderID
		f.leave(a)
		got := f.joinAll(f.joiner("c", "g1", both))[0]
		r := f.newest(3)
		if got != "id "+left.String() || len(r.Stale) != 1 || len(r.Creds) != 1 || r.PeerIdentifiers[0].String() != left.String() {
			f.t.Errorf("joined with %q, stale %v, newcomers %v", got, r.Stale, r.PeerIdentifiers)
		}
	})
}

// Of two gateways on one store the one that rekeys tells of those who wait at the
// other, too. What a gateway that ended left behind is not told, and cleared away.
func TestNewcomersOfAnotherGateway(t *testing.T) {
	bubble(t, onJoin(), func(f *fixture) {
		f.member("first", "g1")
		other := New(f.cfg, f.deps)
		if err := other.Setup(f.t.Context()); err != nil {
			f.t.Fatal(err)
		}
		ghosts := byte(0)
		leaveBehind := func(age time.Duration) {
			ghosts++
			j := f.joiner(fmt.Sprint("ghost", ghosts), "g1", both)
			if err := f.st.Update(f.t.Context(), func(tx *store.Tx) error {
				_, err := tx.Exec(`INSERT INTO gm_waiting (group_id, ticket, cred, roles, at) SELECT id, ?, ?, 6, ? FROM gm_groups`,
					[]byte{ghosts}, j.Cred, time.Now().Add(-age).UnixMilli())
				return err
			}); err != nil {
				f.t.Fatal(err)
			}
		}
		leaveBehind(2 * waitingLife)
		leaveBehind(-365 * 24 * time.Hour) // by a clock that was set back since
		here, there := f.joiner("here", "g1", both), f.joiner("there", "g1", both)
		var wg sync.WaitGroup
		ids := map[string]string{}
		var mu sync.Mutex
		for j, m := range map[*gmtest.Joiner]*Manager{here: f.m, there: other} {
			wg.Go(func() {
				d, err := j.Join(f.t.Context(), m, "g1", both)
				if err != nil {
					f.t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				ids[string(j.Cred)] = d.Key.SenderID.String()
			})
		}
		wg.Wait()
		r := f.newest(1)
		if len(r.Creds) != 2 {
			f.t.Fatalf("told of %d newcomers", len(r.Creds))
		}
		for i, cred := range r.Creds {
			if id, ok := ids[string(cred)]; !ok || id != r.PeerIdentifiers[i].String() {
				f.t.Errorf("told of %s, which has joined with %q", r.PeerIdentifiers[i], id)
			}
		}
		var left int
		if err := f.st.View(f.t.Context(), func(tx *store.Tx) error {
			return tx.QueryRow(`SELECT COUNT(*) FROM gm_waiting`).Scan(&left)
		}); err != nil || left != 0 {
			f.t.Errorf("%d announcements are left, %v", left, err)
		}
		f.rekey("g1")
		if r := f.newest(2); len(r.Creds) != 0 || len(r.Stale) != 0 {
			f.t.Errorf("the next rekey tells of %d newcomers, stale %v", len(r.Creds), r.Stale)
		}
		// One that is not old is told of, and forgotten with the next.
		leaveBehind(waitingLife / 2)
		f.rekey("g1")
		after(waitingLife)
		f.rekey("g1")
		if r := f.newest(4); len(r.Creds) != 0 || len(r.Stale) != 1 {
			f.t.Errorf("after a ghost: %d newcomers, stale %v", len(r.Creds), r.Stale)
		}
	})
}
