package bridge

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
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
		if l := h.b.rolls.begin(testGroup, rollFrom-1); on(l, "here") {
			t.Error("a roll for few observers")
		}
		l := h.b.rolls.begin(testGroup, rollFrom)
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
