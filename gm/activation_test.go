package gm

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store/storetest"
)

// Only a rekey that nobody has to be kept out by is told in an order: not one with
// which anything else was due (docs/protocol.md, Section 7).
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
			d.mu.Lock()
			defer d.mu.Unlock()
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

// A member that asked for two phases has them until its next join: the delivery sees
// that wherever it looks, and what such a member observes has two states a version.
func TestPhasedMember(t *testing.T) {
	f := newFixtureWith(t, storetest.Open(t, Migrations()), &dormancy{left: 7}, groupConfig("g1"))
	j := f.joiner("n", "g1", both)
	join := func(d *groupcomm.Delivery) {
		t.Helper()
		msg, err := j.JoinMessage("g1", both)
		if err != nil {
			t.Fatal(err)
		}
		msg.Delivery = d
		if _, err := j.Accept(j.Send(t.Context(), f.m, "g1", msg)); err != nil {
			t.Fatal(err)
		}
	}
	check := func(phased bool) {
		t.Helper()
		all, err := f.m.Members(t.Context(), "g1")
		if err != nil || len(all) != 1 || all[0].Phased != phased {
			t.Errorf("members: %+v, %v", all, err)
		}
		if one, err := f.m.MemberOf(t.Context(), "g1", all[0].Subject); err != nil || one.Phased != phased {
			t.Errorf("member: %+v, %v", one, err)
		}
		r := f.do(j, coap.GET, nil, "ace-group", "g1")
		k, err := groupcomm.DecodeKeyDistribution(r.Payload)
		if err != nil {
			t.Fatal(err)
		}
		want, in := coap.Observation{Topic: "gm/g1"}, uint64(0)
		if phased {
			want, in = coap.Observation{Topic: "gm/g1/phased"}, 7
		}
		if r.Observe == nil || *r.Observe != want || k.ActivateIn != in {
			t.Errorf("observes %+v, begins in %d s", r.Observe, k.ActivateIn)
		}
	}
	join(&groupcomm.Delivery{Phased: true})
	check(true)
	join(nil)
	check(false)
}

// dormancy is a delivery in the first phase of a switch.
type dormancy struct {
	held
	left uint64
}

func (d *dormancy) Dormant(string, string, uint64) uint64 { return d.left }
