package gm

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store/storetest"
)

// Only a rekey that nobody has to be kept out by is told in an order: not one with
// which anything else was due (protocol.md, Section 7).
func TestActivationByReason(t *testing.T) {
	g := &group{cfg: &groupcomm.GroupConfig{KeyLifetime: 720 * time.Hour, Activation: groupcomm.Activation{RespondersFirst: true, Spread: time.Minute}}}
	for _, r := range reasonNames {
		want := groupcomm.Activation{}
		if r.bit == byLifetime || r.bit == byPlan {
			want = g.cfg.Activation
		}
		if got := activation(g, r.bit); got != want {
			t.Errorf("%s: %+v", r.name, got)
		}
		if got := activation(g, r.bit|byLifetime|byEviction); got != (groupcomm.Activation{}) {
			t.Errorf("%s with an eviction: %+v", r.name, got)
		}
	}
	if activation(g, 0) != (groupcomm.Activation{}) {
		t.Error("no reason at all")
	}
	// The keys before must not expire while members wait: half of what is left.
	g.cfg.KeyLifetime = 5 * time.Minute
	if got := activation(g, byLifetime).Spread; got != 15*time.Second {
		t.Errorf("with keys of 5 min: %v", got)
	}
}

// What the delivery is told: the order for a renewal in time and for an operator who
// plans, none for a leave, also one that an operator's plan meets.
func TestActivationOfRekeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &rendering{}
		f := newFixtureWith(t, storetest.Open(t, Migrations()), d, groupConfig("g1"))
		stop := f.run()
		defer stop()
		synctest.Wait()
		f.member("a", "g1")
		b, c := f.member("b", "g1"), f.member("c", "g1")
		last := func(what string, want groupcomm.Activation) {
			t.Helper()
			synctest.Wait()
			if got := d.plans[len(d.plans)-1].Activation; got != want {
				t.Errorf("%s: %+v", what, got)
			}
		}
		order := groupcomm.DefaultGroupConfig("").Activation
		scheduled := func() {
			t.Helper()
			if _, err := f.m.RekeyScheduled(t.Context(), "g1", "spring cleaning"); err != nil {
				t.Fatal(err)
			}
		}
		f.rekey("g1")
		last("operator", groupcomm.Activation{})
		scheduled()
		last("operator's plan", order)
		f.leave(b)
		after(3 * time.Second)
		last("leave", groupcomm.Activation{})
		f.leave(c)
		scheduled()
		last("a plan that does a leave with it", groupcomm.Activation{})
		after(700 * time.Hour)
		last("key lifetime", order)
	})
}
