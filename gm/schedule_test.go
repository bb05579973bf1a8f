package gm

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/gm/gmtest"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
	"github.com/seed4911071e/groupgate/store/storetest"
)

// bubble runs a test in fake time with a running manager. Its store lives in
// the bubble, too.
func bubble(t *testing.T, c groupcomm.GroupConfig, fn func(f *fixture)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, c)
		stop := f.run()
		synctest.Wait()
		fn(f)
		stop()
	})
}

// after lets the fake time go on and everything due in it happen.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (f *fixture) wantVersion(want uint64) {
	f.t.Helper()
	if got := f.status().Version; got != want {
		f.t.Fatalf("version %d, want %d", got, want)
	}
}

// Leaves within the batch window cause one rekey, at the end of the window.
func TestBatchWindow(t *testing.T) {
	bubble(t, groupConfig("g1"), func(f *fixture) {
		a, b := f.member("a", "g1"), f.member("b", "g1")
		f.member("c", "g1")
		f.leave(a)
		after(time.Second)
		f.leave(b)
		after(time.Second - time.Millisecond)
		f.wantVersion(0)
		after(2 * time.Millisecond)
		f.wantVersion(1)
		after(time.Minute)
		f.wantVersion(1)
		_, body, err := f.m.RekeyMessage(f.t.Context(), "g1")
		if err != nil {
			f.t.Fatal(err)
		}
		if msg, err := groupcomm.DecodeRekeyMessage(body); err != nil || len(msg.Stale) != 2 {
			f.t.Errorf("%d stale Sender IDs, %v", len(msg.Stale), err)
		}
	})
}

// A rekey that was due when the process died happens after the restart, and
// nothing else does.
func TestDueRekeySurvivesCrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, groupConfig("g1"))
		a := f.member("a", "g1")
		f.member("b", "g1")
		f.leave(a)
		f.reopen(storetest.Crash(t, f.st, Migrations()))
		if !f.status().Due {
			t.Fatal("nothing is due")
		}
		stop := f.run()
		after(3 * time.Second)
		f.wantVersion(1)
		stop()
		f.reopen(f.st)
		stop = f.run()
		after(time.Hour)
		f.wantVersion(1) // docs/protocol.md, Section 1: a restart never rekeys
		stop()
	})
}

// docs/protocol.md, Section 3: key renewal while a rekey is due answers with the rekey
// message, however long the batch window still is; an expiry waits for its batch
// (Section 2), and the renewal gives a Sender ID.
func TestRenewalWhileDue(t *testing.T) {
	c := groupConfig("g1")
	c.BatchWindow = time.Minute
	bubble(t, c, func(f *fixture) {
		a, b, d := f.member("a", "g1"), f.member("b", "g1"), f.member("d", "g1")
		f.leave(b)
		r := f.do(a, coap.POST, nil, a.Path...)
		if msg, err := groupcomm.DecodeRekeyMessage(r.Payload); err != nil || msg.Num != 1 {
			f.t.Fatalf("%v, %v: want the rekey message of version 1", r.Code, err)
		}
		f.tokenEvent(groupcomm.EventTokenExpired, d, time.Now())
		synctest.Wait()
		if !f.status().Due {
			f.t.Fatal("no rekey is due for the expiry")
		}
		r = f.do(a, coap.POST, nil, a.Path...)
		if _, err := groupcomm.DecodeKeyRenewal(r.Payload); err != nil {
			f.t.Errorf("%v, %v: want a Sender ID", r.Code, err)
		}
		f.wantVersion(1)
	})
}

// Material is renewed before it expires.
func TestKeyLifetime(t *testing.T) {
	c := groupConfig("g1")
	c.KeyLifetime = 100 * time.Hour
	bubble(t, c, func(f *fixture) {
		f.member("a", "g1")
		after(90*time.Hour - 2*time.Second)
		f.wantVersion(0)
		after(3 * time.Second)
		f.wantVersion(1)
		after(89 * time.Hour)
		f.wantVersion(1)
		after(time.Hour)
		f.wantVersion(2)
	})
}

// With on_join all newcomers of a window are let in by one rekey that comes
// first.
func TestRekeyOnJoin(t *testing.T) {
	c := groupConfig("g1")
	c.RekeyOnJoin = true
	c.BatchWindow = time.Minute // joins wait for two seconds nevertheless
	bubble(t, c, func(f *fixture) {
		first := f.joiner("first", "g1", both)
		if d := f.join(first, "g1", both); d.Num != 0 {
			f.t.Errorf("never used material was replaced: num %d", d.Num)
		}
		start := time.Now()
		var wg sync.WaitGroup
		for _, name := range []string{"a", "b", "c"} {
			j := f.joiner(name, "g1", both)
			wg.Go(func() {
				d, err := j.Join(f.t.Context(), f.m, "g1", both)
				if err != nil || d.Num != 1 {
					f.t.Errorf("%s: %v", name, err)
				}
				if waited := time.Since(start); waited != 2*time.Second {
					f.t.Errorf("%s waited %v", name, waited)
				}
			})
		}
		wg.Wait()
		f.wantVersion(1)
		// A member that joins again knows the keys.
		if d := f.join(first, "g1", both); d.Num != 1 {
			f.t.Errorf("num %d", d.Num)
		}
		// A rekey for another reason ends the window.
		j := f.joiner("d", "g1", both)
		start = time.Now()
		wg.Go(func() {
			if d, err := j.Join(f.t.Context(), f.m, "g1", both); err != nil || d.Num != 2 {
				f.t.Errorf("d: %v", err)
			}
			if waited := time.Since(start); waited != time.Second {
				f.t.Errorf("d waited %v", waited)
			}
		})
		after(time.Second)
		f.rekey("g1")
		wg.Wait()
		f.wantVersion(2)
		// A request that is given up leaves nothing behind.
		ctx, cancel := context.WithTimeout(f.t.Context(), time.Second)
		defer cancel()
		if _, err := f.joiner("e", "g1", both).Join(ctx, f.m, "g1", both); err == nil {
			f.t.Error("a join that was given up succeeded")
		}
		after(time.Hour)
		f.wantVersion(2)
	})
}

// expiring makes a member whose token lives for d.
func (f *fixture) expiring(name string, d time.Duration) *gmtest.Joiner {
	f.t.Helper()
	j := f.joinerWith(name, cose.AlgEdDSA, groupcomm.Scope{{Group: "g1", Roles: both}}, time.Now().Add(d))
	f.join(j, "g1", both)
	return j
}

// tokenEvent writes the event of a token as ace does.
func (f *fixture) tokenEvent(kind string, j *gmtest.Joiner, expires time.Time) {
	f.t.Helper()
	e := groupcomm.Event{Subject: j.Peer.Subject, Expires: expires.Unix()}
	if err := f.st.Update(f.t.Context(), func(tx *store.Tx) error { return tx.Emit(kind, "subject", e.Encode()) }); err != nil {
		f.t.Fatal(err)
	}
	synctest.Wait()
}

func (f *fixture) memberOf(j *gmtest.Joiner) *groupcomm.Member {
	f.t.Helper()
	mb, err := f.m.MemberOf(f.t.Context(), "g1", j.Peer.Subject)
	if err != nil {
		f.t.Fatal(err)
	}
	return mb
}

// docs/protocol.md, Section 2: expiries cause one rekey per batch; a lapsed member
// is restored within the grace and evicted after it.
func TestTokenExpiry(t *testing.T) {
	bubble(t, groupConfig("g1"), func(f *fixture) {
		start := time.Now()
		stay := f.member("stay", "g1")
		a, b := f.expiring("a", time.Hour), f.expiring("b", time.Hour+time.Minute)
		sid := f.memberOf(a).SenderID
		after(time.Hour)
		f.tokenEvent(groupcomm.EventTokenExpired, a, start.Add(time.Hour))
		if mb := f.memberOf(a); !mb.Lapsed {
			f.t.Error("a has not lapsed")
		}
		if r := f.do(a, coap.GET, nil, "ace-group", "g1"); r.Code != coap.Unauthorized {
			f.t.Errorf("a gets %v", r.Code)
		}
		after(time.Minute)
		f.tokenEvent(groupcomm.EventTokenExpired, b, start.Add(time.Hour+time.Minute))
		after(58 * time.Minute)
		f.wantVersion(0)
		after(2 * time.Minute)
		f.wantVersion(1)
		// A new token for the same key and roles restores a as it was.
		f.auth.Allow(a.Peer.Subject, groupcomm.Scope{{Group: "g1", Roles: both}}, time.Now().Add(100*time.Hour))
		f.tokenEvent(groupcomm.EventTokenStored, a, time.Now().Add(100*time.Hour))
		mb := f.memberOf(a)
		if mb.Lapsed || mb.SenderID.String() != sid.String() || time.Until(mb.Expires) < 99*time.Hour {
			f.t.Errorf("a was restored as %+v", mb)
		}
		if r := f.do(a, coap.GET, nil, "ace-group", "g1"); r.Code != coap.Content {
			f.t.Errorf("a gets %v", r.Code)
		}
		// b's grace ends; its eviction joins a batch.
		after(23*time.Hour - time.Minute)
		f.memberOf(b)
		after(2 * time.Minute)
		if _, err := f.m.MemberOf(f.t.Context(), "g1", b.Peer.Subject); err != groupcomm.ErrNotMember {
			f.t.Errorf("b is still a member: %v", err)
		}
		f.wantVersion(1)
		after(time.Hour)
		f.wantVersion(2)
		if r := f.do(stay, coap.GET, nil, "ace-group", "g1"); r.Code != coap.Content {
			f.t.Errorf("the member with a valid token gets %v", r.Code)
		}
	})
}

// All tokens were renewed in time: no rekey.
func TestTokenRenewedBeforeRekey(t *testing.T) {
	bubble(t, groupConfig("g1"), func(f *fixture) {
		start := time.Now()
		a := f.expiring("a", time.Hour)
		after(time.Hour)
		f.tokenEvent(groupcomm.EventTokenExpired, a, start.Add(time.Hour))
		if !f.status().Due {
			f.t.Error("nothing is due")
		}
		f.auth.Allow(a.Peer.Subject, groupcomm.Scope{{Group: "g1", Roles: both}}, time.Now().Add(100*time.Hour))
		f.tokenEvent(groupcomm.EventTokenStored, a, time.Now().Add(100*time.Hour))
		// An old event that comes again changes nothing.
		f.tokenEvent(groupcomm.EventTokenExpired, a, start.Add(time.Hour))
		if f.memberOf(a).Lapsed {
			f.t.Error("an old event lapsed a member with a new token")
		}
		after(2 * time.Hour)
		f.wantVersion(0)
		if f.status().Due {
			f.t.Error("a rekey is still due")
		}
	})
}

// grace: 0 is the strict reading: the member is evicted with its token.
func TestTokenExpiryWithoutGrace(t *testing.T) {
	c := groupConfig("g1")
	c.ExpiryGrace = 0
	bubble(t, c, func(f *fixture) {
		start := time.Now()
		f.member("stay", "g1")
		a := f.expiring("a", time.Hour)
		after(time.Hour)
		f.tokenEvent(groupcomm.EventTokenExpired, a, start.Add(time.Hour))
		if _, err := f.m.MemberOf(f.t.Context(), "g1", a.Peer.Subject); err != groupcomm.ErrNotMember {
			f.t.Errorf("still a member: %v", err)
		}
		after(3 * time.Second)
		f.wantVersion(1)
	})
}

// Revocation ignores grace and batch of expiries.
func TestTokenRevoked(t *testing.T) {
	bubble(t, groupConfig("g1"), func(f *fixture) {
		f.member("stay", "g1")
		expires := time.Now().Add(time.Hour)
		a := f.expiring("a", time.Hour)
		f.auth.Revoke(a.Peer.Subject)
		e := groupcomm.Event{Subject: a.Peer.Subject, Expires: expires.Unix(), Reason: "revoked"}
		if err := f.st.Update(f.t.Context(), func(tx *store.Tx) error {
			return tx.Emit(groupcomm.EventTokenExpired, "subject", e.Encode())
		}); err != nil {
			f.t.Fatal(err)
		}
		synctest.Wait()
		if _, err := f.m.MemberOf(f.t.Context(), "g1", a.Peer.Subject); err != groupcomm.ErrNotMember {
			f.t.Errorf("still a member: %v", err)
		}
		after(3 * time.Second)
		f.wantVersion(1)
	})
}

// A token that takes roles away ends the membership as an expiry does.
func TestTokenWithFewerRoles(t *testing.T) {
	bubble(t, groupConfig("g1"), func(f *fixture) {
		a := f.member("a", "g1")
		f.auth.Allow(a.Peer.Subject, groupcomm.Scope{{Group: "g1", Roles: groupcomm.Requester}}, time.Time{})
		f.tokenEvent(groupcomm.EventTokenStored, a, time.Time{})
		if !f.memberOf(a).Lapsed {
			f.t.Error("the member has not lapsed")
		}
		if d := f.join(a, "g1", groupcomm.Requester); d.Num != 0 || f.memberOf(a).Lapsed {
			f.t.Error("joining with the roles left does not restore")
		}
	})
}

// A rekey leaves out members whose token has expired, though nobody has worked
// off the expiry.
func TestRekeyLeavesOutExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &rendering{}
		f := newFixtureWith(t, storetest.Open(t, Migrations()), d, groupConfig("g1"))
		f.member("stay", "g1")
		gone := f.expiring("a", time.Hour)
		f.rekey("g1")
		after(time.Hour)
		f.rekey("g1")
		if len(d.plans[0].Excluded) != 0 || len(d.plans[1].Excluded) != 1 || d.plans[1].Excluded[0] != gone.Path[3] {
			t.Errorf("plans without %q and %q", d.plans[0].Excluded, d.plans[1].Excluded)
		}
	})
}

// Run ends with its context, and nothing of it is left.
func TestRunEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, groupConfig("g1"))
		stop := f.run()
		synctest.Wait()
		stop()
	})
}

// reluctant is a Delivery that cannot forget a member at first, as with a disk
// that is full.
type reluctant struct {
	left atomic.Int64
}

func (*reluctant) Enroll(context.Context, string, string, *groupcomm.Delivery) (func() []byte, func(*store.Tx) error, error) {
	return nil, nil, nil
}

func (*reluctant) Enrolled(context.Context, string, string) ([]byte, error) { return nil, nil }

func (*reluctant) Prepare(context.Context, groupcomm.RekeyPlan) (func(*store.Tx) error, error) {
	return nil, nil
}

func (*reluctant) RemoveAll(*store.Tx, string, []string) error { return nil }

func (r *reluctant) Remove(*store.Tx, string, string) error {
	if r.left.Add(-1) >= 0 {
		return store.ErrFull
	}
	return nil
}

// An expiry that cannot be written is worked off when it can be, and the
// manager lives on meanwhile.
func TestEventTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := groupConfig("g1")
		c.ExpiryGrace = 0
		d := &reluctant{}
		d.left.Store(5)
		f := newFixtureWith(t, storetest.Open(t, Migrations()), d, c)
		stop := f.run()
		synctest.Wait()
		a := f.member("a", "g1")
		f.tokenEvent(groupcomm.EventTokenExpired, a, time.Now())
		after(time.Second)
		if n := f.status().Members; n != 1 {
			t.Fatalf("%d members: the eviction cannot have been written", n)
		}
		after(time.Minute)
		if n := f.status().Members; n != 0 {
			t.Fatalf("%d members a minute later", n)
		}
		stop()
	})
}

// The schedule looks at the clock at least every hour.
func TestNap(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		until time.Time
		want  time.Duration
	}{
		{time.Time{}, longestSleep}, {now.Add(time.Minute), time.Minute}, {now.Add(700 * time.Hour), longestSleep}, {now.Add(-time.Hour), -time.Hour},
	} {
		if got := nap(c.until, now); got != c.want {
			t.Errorf("until %v: %v, want %v", c.until, got, c.want)
		}
	}
}

// What a clock that was ahead noted as due is not held until it is that late.
func TestDueWhenClockSetBack(t *testing.T) {
	for _, c := range []struct {
		name string
		why  reasons
		wait time.Duration
		held bool
	}{
		{"leave", byLeave, time.Hour, false},
		{"leave, a year", byLeave, 365 * 24 * time.Hour, false},
		{"leave, other clock", byLeave, 9 * time.Second, true},
		{"leave beside an expiry", byLeave | byExpiry, time.Hour, false},
		{"expiry in its batch", byExpiry, time.Hour, true},
		{"expiry", byExpiry | byEviction, 25 * time.Hour, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := groupConfig("g1")
			cfg.ExpiryBatch = time.Hour
			bubble(t, cfg, func(f *fixture) {
				f.member("a", "g1")
				if err := f.st.Update(f.t.Context(), func(tx *store.Tx) error {
					_, err := tx.Exec(`UPDATE gm_groups SET due_reasons = ?, due_at = ?`, c.why, time.Now().Add(c.wait).UnixMilli())
					return err
				}); err != nil {
					f.t.Fatal(err)
				}
				f.m.poke()
				after(time.Second)
				if moved := f.status().Version > 0; moved == c.held {
					t.Errorf("rekeyed: %t", moved)
				}
			})
		})
	}
}
