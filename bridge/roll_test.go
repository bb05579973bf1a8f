package bridge

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// TestRoll: who is on the roll of a rekey needs no look-up of its own, until it
// leaves or the roll is old; who lapsed is not on it.
func TestRoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		for _, node := range []string{"here", "leaver", "lapsed"} {
			h.m.join(t, h.b, node, nil)
		}
		h.m.change("lapsed", func(m *groupcomm.Member) { m.Lapsed = true })
		subject := map[string]coap.Subject{}
		members, err := h.m.Members(t.Context(), testGroup)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range members {
			subject[m.Node] = m.Subject
		}
		on := func(l *roll, node string) bool {
			name, ok := h.b.on(t.Context(), l, testGroup, subject[node])
			if ok && name != node {
				t.Errorf("%s is %s on the roll", node, name)
			}
			return ok
		}
		if l := h.b.rolls.begin(testGroup, false); on(l, "here") {
			t.Error("a roll that is not worth it")
		}
		l := h.b.rolls.begin(testGroup, true)
		if !on(l, "here") || !on(l, "leaver") || on(l, "lapsed") {
			t.Errorf("on the roll: %v", l.nodes)
		}
		h.b.rolls.strike(testGroup, subject["leaver"])
		if on(l, "leaver") || !on(l, "here") {
			t.Errorf("after a leave: %v", l.nodes)
		}
		time.Sleep(rollFor + time.Second)
		if on(l, "here") {
			t.Error("an old roll is believed")
		}
	})
}

// TestRollWorth: a roll is for very many observers, at a database server also for some of
// a group that is not much larger.
func TestRollWorth(t *testing.T) {
	tokens := func(context.Context, []coap.Subject) (map[coap.Subject]time.Time, error) { return nil, nil }
	m := newManager(t)
	for _, x := range []struct {
		what string
		Deps
		from int
	}{
		{"here", Deps{Source: m}, rollFrom},
		{"at a server", Deps{Source: m, Tokens: tokens}, rollFromShared},
		{"at a server, in a large group", Deps{Source: crowded{m}, Tokens: tokens}, rollFromShared + 1},
	} {
		b := New(Config{}, x.Deps)
		if b.rollWorth(t.Context(), testGroup, x.from-1) || !b.rollWorth(t.Context(), testGroup, x.from) {
			t.Errorf("%s a roll is not read from %d observers on", x.what, x.from)
		}
	}
}

// crowded is a manager of very many.
type crowded struct{ *manager }

func (crowded) Count(context.Context, string) (members, lapsed int, err error) {
	return rollShare*rollFromShared + 1, 0, nil
}

// TestDeliveredWithoutTheLast: that the one member that is missing lapses ends a
// delivery too, although nobody confirms any more.
func TestDeliveredWithoutTheLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		const n = 40
		name := func(i int) string { return fmt.Sprintf("node%02d", i) }
		for i := range n {
			h.m.join(t, h.b, name(i), nil)
		}
		confirm := func(version uint64, first, end int) {
			for i := first; i < end; i++ {
				h.b.Held(t.Context(), testGroup, name(i), version)
			}
			settle(time.Second)
		}
		done := func() bool {
			p, err := h.b.Tally(t.Context(), testGroup)
			if err != nil {
				t.Fatal(err)
			}
			return !p.Done.IsZero()
		}
		version := h.m.rekey(t, h.b)
		if confirm(version, 0, n); !done() {
			t.Error("all confirmed the first")
		}
		version = h.m.rekey(t, h.b)
		if confirm(version, 0, n-2); done() {
			t.Error("two are missing")
		}
		h.m.change(name(n-1), func(m *groupcomm.Member) { m.Lapsed = true })
		confirm(version, n-2, n-1)
		settle(2 * lackingFor)
		if !done() {
			t.Error("the last one that was waited for confirmed")
		}
	})
}

// TestAcknowledgedBeforeACrash: the hub knows that a member was shown a version, and
// the confirmation did not come to the disk any more. It is told once more, who
// confirmed is not.
func TestAcknowledgedBeforeACrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		for _, node := range []string{"kept", "lost"} {
			h.m.join(t, h.b, node, nil)
		}
		kept, lost := h.observe(h.link("kept"), "/ace-group/sensors"), h.observe(h.link("lost"), "/ace-group/sensors")
		version := h.m.rekey(t, h.b)
		settle(time.Second)
		err := h.s.Update(t.Context(), func(tx *store.Tx) error {
			_, err := tx.Exec(`DELETE FROM bridge_confirmed WHERE node = 'lost'`)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		read := make(chan []coap.Subject, 10)
		again := New(Config{}, Deps{Store: h.s, Source: h.m, Hub: h.srv, Warm: func(_ context.Context, subjects []coap.Subject) error {
			read <- subjects
			return nil
		}})
		if err := again.Setup(t.Context()); err != nil {
			t.Fatal(err)
		}
		var before []Observer
		for _, node := range []string{"kept", "lost"} {
			p := coap.Peer{Link: coap.LinkID("link-" + node), Via: coap.DTLSPSK, Subject: subject(node)}
			before = append(before, Observer{Peer: p, Topics: []string{groupTopic(testGroup)}})
		}
		again.Restored(before)
		ctx, cancel := context.WithCancel(t.Context())
		over := make(chan error, 1)
		go func() { over <- again.Run(ctx) }()
		settle(time.Second)
		// The tokens of who is told are read first, then all.
		if first, then := <-read, <-read; !slices.Equal(first, []coap.Subject{subject("lost")}) || len(then) != 2 {
			t.Errorf("tokens read of %v, then of %v", first, then)
		}
		if n := len(kept.responses()); n != 2 {
			t.Errorf("who confirmed got %d responses", n)
		}
		if n := len(lost.responses()); n != 3 {
			t.Errorf("who has to confirm again got %d responses", n)
		}
		if p, err := again.Tally(t.Context(), testGroup); err != nil || p.Version != version || p.Delivered != 2 {
			t.Errorf("%+v, %v", p, err)
		}
		cancel()
		if err := <-over; err != nil {
			t.Error(err)
		}
	})
}

// TestTroubleEndsNoObservation: when nobody can say whether an observer may be told,
// it is told later.
func TestTroubleEndsNoObservation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		h.m.join(t, h.b, "node", nil)
		link := h.link("node")
		w := h.observe(link, "/ace-group/sensors")
		h.change(func() { h.trouble = true })
		version := h.m.rekey(t, h.b)
		settle(time.Second)
		if n := len(w.responses()); n != 1 {
			t.Errorf("%d responses in the trouble", n)
		}
		if n := len(h.srv.Observers(groupTopic(testGroup))); n != 1 {
			t.Errorf("%d observers after the trouble", n)
		}
		h.change(func() { h.trouble = false })
		settle(2 * time.Minute)
		if e := h.entry("node"); e.State != StateCurrent || e.Confirmed != version || len(w.responses()) != 2 {
			t.Errorf("after the trouble: %+v, %d responses", e, len(w.responses()))
		}
	})
}

// TestHeldBeforeAllowed: whether a member sleeps is known without asking whether it may
// be told, however many rekeys it slept through, and its observation is still found
// when it is evicted.
func TestHeldBeforeAllowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		h.m.join(t, h.b, "node", nil)
		link := h.link("node")
		h.observe(link, "/ace-group/sensors")
		topic := groupTopic(testGroup)
		p := coap.Peer{Link: "link-node", Via: coap.DTLSPSK, Subject: subject("node")}
		wait := h.b.waits(topic, 1)
		if wait(p) {
			t.Error("it is awake")
		}
		h.announce(link, groupcomm.Announcement{AwakeFor: 1, NextWake: 600})
		settle(10 * time.Second)
		for range 4 {
			h.b.observers.begin(topic)
			if !wait(p) {
				t.Error("it sleeps")
			}
			if m, ok := h.b.observers.member(topic, p.Link); !ok || m.node != "node" {
				t.Errorf("behind its link is %+v, %t", m, ok)
			}
		}
		if wait(coap.Peer{Link: "another", Via: coap.DTLSPSK, Subject: subject("nobody")}) {
			t.Error("nobody knows it")
		}
		h.b.observers.unregisterLocked(member{testGroup, "node"})
		if links := h.b.observers.removeMember(member{testGroup, "node"}); !slices.Equal(links, []coap.LinkID{p.Link}) {
			t.Errorf("its links: %v", links)
		}
	})
}
