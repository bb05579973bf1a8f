package bridge

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// A rekey has a progress, from its moment to that of the last confirmation,
// which is on disk and told once; a restart in between knows it.
func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		watching, _ := h.control("watching", "", coap.Changed)
		h.observe(watching, "/ace-group/sensors")
		h.m.join(t, h.b, "polling", nil)
		h.m.join(t, h.b, "lapsed", nil)
		h.m.change("lapsed", func(m *groupcomm.Member) { m.Lapsed = true })
		began := time.Now()
		version := h.m.rekey(t, h.b)
		settle(time.Minute)

		p, _, err := h.b.Progress(t.Context(), testGroup)
		if err != nil {
			t.Fatal(err)
		}
		want := Progress{Group: testGroup, Version: version, Since: p.Since, Members: 2, Delivered: 1, Pending: 1, Lapsed: 1}
		if p != want || p.Percent() != 50 || p.Since.Sub(began).Abs() > time.Second {
			t.Errorf("%+v, %v %%, want %+v", p, p.Percent(), want)
		}
		if tally, err := h.b.Tally(t.Context(), testGroup); err != nil || tally != want {
			t.Errorf("tally: %+v, %v, want %+v", tally, err, want)
		}
		again := New(Config{}, Deps{Store: h.s, Source: h.m, Hub: nobody{}})
		if err := again.Setup(t.Context()); err != nil {
			t.Fatal(err)
		}
		if p, _, err := again.Progress(t.Context(), testGroup); err != nil || p != want {
			t.Errorf("after a restart: %+v, %v", p, err)
		}
		reg := prometheus.NewRegistry()
		reg.MustRegister(pendingCollector{h.b})
		if families, err := reg.Gather(); err != nil || len(families) != 4 {
			t.Errorf("%d families of metrics, %v", len(families), err)
		}

		h.b.Held(t.Context(), testGroup, "polling", version)
		settle(time.Second)
		p, entries, err := h.b.Progress(t.Context(), testGroup)
		if err != nil || p.Percent() != 100 || p.Done.Sub(began) < time.Minute {
			t.Errorf("at the end: %+v, %v", p, err)
		}
		for _, e := range entries {
			if e.Node == "watching" && (len(e.Channels) != 1 || e.Channels[0].Channel != channelObserve || e.Channels[0].Result != resultConfirmed) {
				t.Errorf("channels: %+v", e.Channels)
			}
		}
		h.b.Held(t.Context(), testGroup, "polling", version)
		settle(time.Second)
		if n := events(t, h.s, groupcomm.EventDelivered); n != 1 {
			t.Errorf("%d events tell that it is done", n)
		}
	})
}

// A rekey of a group in which nobody is, after the last member left for instance, is over
// at once: who joins later did not take so long to confirm it.
func TestProgressOfNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		version := h.m.rekey(t, h.b)
		settle(time.Hour)
		h.m.join(t, h.b, "late", nil)
		h.b.Held(t.Context(), testGroup, "late", groupcomm.Version(version))
		settle(time.Minute)
		p, _, err := h.b.Progress(t.Context(), testGroup)
		if err != nil || p.Delivered != 1 || p.Members != 1 || p.Done.IsZero() || p.Done.Sub(p.Since) > time.Minute {
			t.Errorf("%+v, %v", p, err)
		}
		next := h.m.rekey(t, h.b)
		settle(time.Minute)
		if p, _, err := h.b.Progress(t.Context(), testGroup); err != nil || p.Version != next || !p.Done.IsZero() {
			t.Errorf("before the next is confirmed: %+v, %v", p, err)
		}
	})
}
