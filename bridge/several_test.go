package bridge

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// confirmations are how often a bridge counted one, by channel.
func confirmations(t *testing.T, b *Bridge) map[string]int {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(b.met.confirmations)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			out[m.GetLabel()[0].GetValue()] = int(m.GetCounter().GetValue())
		}
	}
	return out
}

// counted wants confirmations by channel, and who the ledger says was first.
func (h *house) counted(what, node string, version uint64, by string, want map[string]int) {
	h.t.Helper()
	settle(time.Second)
	e := h.entry(node)
	if e.Confirmed != version || !e.Shown || e.ConfirmedBy != by {
		h.t.Errorf("%s: version %d by %q, want %d by %q", what, e.Confirmed, e.ConfirmedBy, version, by)
	}
	got := confirmations(h.t, h.b)
	for channel, n := range want {
		if got[channel] != n {
			h.t.Errorf("%s: %d confirmations over %s, want %d: %v", what, got[channel], channel, n, got)
		}
	}
}

// A member that observes, has a control_uri and is on MQTT: whichever channel shows a
// version first has it, and what the others show later is not counted again, nor does
// it change the ledger; what was not sent yet over them is not sent any more.
func TestFirstConfirmationWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		link, posts := h.control("n1", "coap://n/x", coap.Changed)
		w := h.observe(link, "/ace-group/sensors")
		m := member{testGroup, "n1"}

		// The notification is first; MQTT and a poll follow.
		v := h.m.rekey(t, h.b)
		h.counted("notified", "n1", v, channelObserve, map[string]int{channelObserve: 1})
		done := 0
		h.b.confirm(m, v, channelMQTT, func() { done++ })
		h.b.Held(t.Context(), testGroup, "n1", v)
		h.counted("twice more", "n1", v, channelObserve, map[string]int{channelObserve: 1, channelMQTT: 0, channelPoll: 0})
		if done != 1 {
			t.Errorf("the broker got %d answers", done)
		}
		if e := h.entry("n1"); len(e.Channels) != 3 { // each was tried with an outcome
			t.Errorf("channels: %+v", e.Channels)
		}

		// It does not answer on its association, and shows the version over MQTT. Back
		// again, it acknowledges what was sent meanwhile.
		link.Cut(true, true)
		v = h.m.rekey(t, h.b)
		settle(time.Second)
		h.b.confirm(m, v, channelMQTT, nil)
		h.counted("by MQTT", "n1", v, channelMQTT, map[string]int{channelObserve: 1, channelMQTT: 1})
		before, posted := len(w.responses()), len(posts.requests())
		link.Cut(false, false)
		settle(2 * time.Minute) // what was on its way is sent again, and acknowledged
		h.counted("acknowledged later", "n1", v, channelMQTT, map[string]int{channelObserve: 1, channelMQTT: 1, channelControl: 0})
		if n := len(w.responses()); n > before+1 || len(posts.requests()) != posted {
			t.Errorf("%d notifications more, %d requests more", n-before, len(posts.requests())-posted)
		}

		// A confirmation of an older version comes late, after a newer one.
		old := v
		v = h.m.rekey(t, h.b)
		h.counted("the next", "n1", v, channelObserve, map[string]int{channelObserve: 2})
		h.b.confirm(m, old, channelMQTT, func() { done++ })
		h.counted("of an older version", "n1", v, channelObserve, map[string]int{channelObserve: 2, channelMQTT: 1})
		if e := h.entry("n1"); e.State != StateCurrent || done != 2 {
			t.Errorf("%+v, %d answers to the broker", e, done)
		}

		// Shown before the notification's turn came: that is not sent any more, unless it was
		// under way, which happens on PostgreSQL.
		link.Cut(true, true)
		gone := h.m.rekey(t, h.b)
		settle(200 * time.Second) // it was tried in vain
		link.Cut(false, false)
		before, posted = len(w.responses()), len(posts.requests())
		h.b.Held(t.Context(), testGroup, "n1", gone)
		settle(time.Second) // until that is known
		h.b.Alive(link.Port().Peer())
		settle(30 * time.Minute)
		h.counted("a poll was quicker", "n1", gone, channelPoll, map[string]int{channelPoll: 1, channelObserve: 2, channelControl: 0})
		if n := len(w.responses()) - before; n > 1 || len(posts.requests()) != posted {
			t.Errorf("%d notifications and %d requests after the version was shown", n, len(posts.requests())-posted)
		}
		// And the next rekey comes as ever.
		v = h.m.rekey(t, h.b)
		h.counted("the last", "n1", v, channelObserve, map[string]int{channelObserve: 3})
	})
}

// A crash between two confirmations of one version: the first stays, if it was on
// disk; else the second is the first. An older one of before does no harm.
func TestConfirmationsOverACrash(t *testing.T) {
	for name, tc := range map[string]struct {
		written bool // before the crash
		by      string
		counted int // by the later process
	}{
		"written":     {true, channelMQTT, 0},
		"not written": {false, channelControl, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, s := newManager(t), open(t)
				k := member{testGroup, "n1"}
				before := New(Config{}, Deps{Store: s, Source: m, Hub: nobody{}})
				m.join(t, before, "n1", nil)
				old := m.rekey(t, before)
				v := m.rekey(t, before)
				before.confirm(k, v, channelMQTT, nil)
				if tc.written && !before.confirms.flush(t.Context()) {
					t.Fatal("not written")
				}
				// The process is gone; another hears the same of the other channel.
				after := New(Config{}, Deps{Store: s, Source: m, Hub: nobody{}})
				done := false
				after.confirm(k, v, channelControl, func() { done = true })
				after.confirm(k, old, channelObserve, nil)
				if !after.confirms.flush(t.Context()) || !done {
					t.Fatal("not written")
				}
				e := entry(t, after, "n1")
				if e.State != StateCurrent || e.Confirmed != v || e.ConfirmedBy != tc.by {
					t.Errorf("%+v", e)
				}
			})
		})
	}
}

// TestSeveralChannelsInAnyOrder: whatever order confirmations come in, each version
// is counted once and the ledger only grows.
func TestSeveralChannelsInAnyOrder(t *testing.T) {
	m, s := newManager(t), open(t)
	b := New(Config{}, Deps{Store: s, Source: m, Hub: nobody{}})
	m.join(t, b, "n1", nil)
	k := member{testGroup, "n1"}
	for range 4 {
		m.rekey(t, b)
	}
	shown, total := uint64(0), 0
	for _, c := range []struct {
		version uint64
		channel string
	}{
		{2, channelMQTT}, {2, channelObserve}, {4, channelControl}, {3, channelObserve}, {2, channelPoll}, {4, channelMQTT}, {5, channelPoll}, {5, channelControl}, {4, channelObserve},
	} {
		if c.version > shown {
			shown = c.version
			total++
		}
		b.confirm(k, c.version, c.channel, nil)
		if !b.confirms.flush(t.Context()) {
			t.Fatal("not written")
		}
		if e := entry(t, b, "n1"); e.Confirmed != shown {
			t.Errorf("after %d over %s: %d", c.version, c.channel, e.Confirmed)
		}
		n := 0
		for _, v := range confirmations(t, b) {
			n += v
		}
		if n != total {
			t.Errorf("after %d over %s: %d counted, want %d", c.version, c.channel, n, total)
		}
	}
	m.end(t, b, "n1", groupcomm.EventLeft)
}
