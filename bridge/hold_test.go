package bridge

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/coaptest"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// spread is that of the tests: one second a step.
const spread = steps * time.Second

var ordered = groupcomm.Activation{RespondersFirst: true, Spread: spread}

// with gives a member roles.
func (m *manager) with(node string, roles groupcomm.Roles) {
	m.change(node, func(v *groupcomm.Member) { v.Roles = roles })
}

// endings counts the rekeys that ended so.
func endings(t *testing.T, b *Bridge, how string) float64 {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(b.met.activations)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == how {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

// A hold against its definition: everybody is released once, when the waves before
// its own have confirmed and its slot has come, or when the time is up.
func TestHoldModel(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 6))
		began := time.Unix(1_700_000_000, 0)
		h := newHold(7, began, began.Add(spread))
		type one struct {
			wave     wave
			awaited  bool
			released bool
		}
		members := map[string]*one{}
		for i := range rng.IntN(20) {
			node := fmt.Sprintf("n%d", i)
			members[node] = &one{wave: wave(rng.IntN(int(waves))), awaited: rng.IntN(4) > 0}
			h.add("g", node, members[node].wave)
			if members[node].awaited {
				h.await(node, members[node].wave)
			}
		}
		h.order()
		confirmed := map[string]bool{}
		open := func(w wave, now time.Time) bool {
			if !now.Before(h.until) {
				return true
			}
			for node, m := range members {
				if m.wave < w && m.wave < waveOthers && m.awaited && !confirmed[node] {
					return false
				}
			}
			return true
		}
		activations := 0
		for now := began; !now.After(h.until); now = now.Add(time.Duration(rng.IntN(1500)) * time.Millisecond) {
			for node := range members {
				if rng.IntN(60) == 0 {
					h.confirmed(node)
					confirmed[node] = true
				}
			}
			out, next, activated := h.take(now)
			if activated {
				activations++
			}
			if !next.IsZero() && !next.After(now) {
				t.Fatalf("seed %d: to look again at %v, it is %v", seed, next, now)
			}
			for _, node := range out {
				if members[node].released {
					t.Fatalf("seed %d: %s is released twice", seed, node)
				}
				members[node].released = true
			}
			for node, m := range members {
				w := m.wave
				if w == wavePhased {
					w = waveOthers
				}
				may := open(w, now) && (m.wave != waveOthers || !now.Before(h.places[node].slot) || !now.Before(h.until))
				if may != m.released {
					t.Fatalf("seed %d at %v: %s released %t, want %t", seed, now.Sub(began), node, m.released, may)
				}
				until, waits := h.turn(node, now)
				if m.wave == wavePhased {
					// Told at once, but not to begin yet.
					if waits || h.dormant(node, now) == may {
						t.Fatalf("seed %d at %v: %s waits %t, dormant %t", seed, now.Sub(began), node, waits, !may)
					}
					continue
				}
				if waits == may || waits && (until.After(h.until) || !until.After(now)) {
					t.Fatalf("seed %d at %v: %s waits %t until %v", seed, now.Sub(began), node, waits, until)
				}
			}
			if (activations == 1) != open(waveOthers, now) || activations > 1 {
				t.Fatalf("seed %d at %v: %d activations", seed, now.Sub(began), activations)
			}
		}
	}
}

// Roles, reason and channel: a scheduled rekey reaches responders first and the others
// when those have it, or when the time is up; any other reaches all at once.
func TestActivation(t *testing.T) {
	for _, c := range []struct {
		name   string
		how    groupcomm.Activation
		deaf   bool // the responder does not answer
		others [2]time.Duration
	}{
		{"scheduled", ordered, false, [2]time.Duration{0, spread}},
		{"scheduled, responder away", ordered, true, [2]time.Duration{spread, spread}},
		{"scheduled, no order", groupcomm.Activation{Spread: spread}, true, [2]time.Duration{0, spread}},
		{"leave", groupcomm.Activation{}, true, [2]time.Duration{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t)
				h.m.how = c.how
				first, _ := h.control("first", "", coap.Changed)
				h.m.with("first", groupcomm.Requester|groupcomm.Responder)
				watched := map[string]*watcher{"first": h.observe(first, "/ace-group/sensors")}
				posts := map[string]*controlled{}
				var polls *coaptest.Link
				for i := range 12 {
					node := fmt.Sprintf("asks%d", i)
					if i%2 == 0 {
						polls, posts[node] = h.control(node, "coap://n/x", coap.Changed)
					} else {
						l, _ := h.control(node, "", coap.Changed)
						watched[node] = h.observe(l, "/ace-group/sensors")
						w := h.observe(l, "/ace-group/sensors/num")
						watched[node+" num"] = w
					}
					h.m.with(node, groupcomm.Requester)
				}
				settle(time.Second)
				first.Cut(c.deaf, c.deaf)
				began := time.Now()
				version := h.m.rekey(t, h.b)
				told := map[string]time.Duration{}
				look := func() {
					synctest.Wait()
					now := time.Since(began)
					for node, w := range watched {
						if _, ok := told[node]; !ok && len(w.responses()) > 1 {
							told[node] = now
						}
					}
					for node, p := range posts {
						if _, ok := told[node]; !ok && len(p.requests()) > 0 {
							told[node] = now
						}
					}
				}
				time.Sleep(500 * time.Millisecond) // longer than what the links delay
				look()
				if _, ok := told["first"]; !ok && !c.deaf {
					t.Error("the responder waits")
				}
				if c.how.Spread != 0 {
					p, _, err := h.b.Progress(t.Context(), testGroup)
					if err != nil || p.Held == 0 || p.HeldUntil.After(began.Add(spread)) {
						t.Errorf("progress: %+v, %v", p, err)
					}
					// Asking gives the newest at any time.
					r, err := polls.Do(t.Context(), coaptest.NewRequest(coap.GET, "/ace-group/sensors", nil))
					if err != nil || string(r.Payload) != "full map" {
						t.Errorf("poll: %v, %v", r, err)
					}
				}
				for range int(spread/time.Second) + 1 {
					time.Sleep(time.Second)
					look()
				}
				moments := map[time.Duration]bool{}
				for node := range watched {
					if _, ok := told[node]; !ok && !(c.deaf && node == "first") {
						t.Errorf("%s was never told", node)
					}
				}
				for node, at := range told {
					at = at.Truncate(time.Second)
					if node == "first" {
						continue
					}
					moments[at] = true
					if at < c.others[0] || at > c.others[1] {
						t.Errorf("%s was told after %v", node, at)
					}
				}
				if c.others[0] != c.others[1] && len(moments) < 4 {
					t.Errorf("not spread: %v", moments)
				}
				for node := range posts {
					if e := h.entry(node); e.State != StateCurrent || e.Confirmed != version || !e.HeldUntil.IsZero() {
						t.Errorf("%s: %+v", node, e)
					}
				}
				ended := endConfirmed
				if c.deaf {
					ended = endSpread
				}
				if c.how == ordered {
					if n := endings(t, h.b, ended); n != 1 {
						t.Errorf("%v rekeys ended by %s", n, ended)
					}
				}
			})
		})
	}
}

// A leave, and what comes after it before everybody has that, is never held up.
func TestActivationAfterLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		responder, _ := h.control("answers", "", coap.Changed)
		h.m.with("answers", groupcomm.Responder)
		h.observe(responder, "/ace-group/sensors")
		responder.Cut(true, true)
		behind, _ := h.control("behind", "", coap.Changed)
		had, _ := h.control("had", "", coap.Changed)
		for _, n := range []string{"behind", "had"} {
			h.m.with(n, groupcomm.Requester)
		}
		late, inTime := h.observe(behind, "/ace-group/sensors"), h.observe(had, "/ace-group/sensors")
		behind.Cut(true, true)
		h.m.rekey(t, h.b) // a leave
		settle(time.Second)
		behind.Cut(false, false)
		h.m.how = ordered
		version := h.m.rekey(t, h.b)
		settle(10 * time.Second)
		if e := h.entry("behind"); e.State != StateCurrent || len(late.responses()) == 1 {
			t.Errorf("it holds what a leaver holds, and waits: %+v", e)
		}
		if e := h.entry("had"); e.HeldUntil.IsZero() || len(inTime.responses()) != 2 {
			t.Errorf("it does not wait: %+v", e)
		}
		// The next leave ends all waiting.
		h.m.how = groupcomm.Activation{}
		h.m.rekey(t, h.b)
		settle(time.Second)
		if e := h.entry("had"); e.State != StateCurrent || e.Confirmed != version+1 {
			t.Errorf("a leave is held up: %+v", e)
		}
		if n := endings(t, h.b, endOvertaken); n != 1 {
			t.Errorf("%v rekeys were overtaken", n)
		}
	})
}

// One that is awake for less than it would have to wait is told now; one whose turn
// comes while it is awake waits, and who sleeps is not waited for.
func TestActivationSleepers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		sleeper, _ := h.control("sleeps", "", coap.Changed)
		h.m.with("sleeps", groupcomm.Responder)
		h.observe(sleeper, "/ace-group/sensors")
		h.announce(sleeper, groupcomm.Announcement{AwakeFor: 1, NextWake: 3600})
		deaf, _ := h.control("deaf", "", coap.Changed)
		h.m.with("deaf", groupcomm.Responder)
		h.observe(deaf, "/ace-group/sensors")
		settle(5 * time.Second)
		deaf.Cut(true, true)

		var links []*coaptest.Link
		var seen []*watcher
		for _, node := range []string{"short", "long"} {
			l, _ := h.control(node, "", coap.Changed)
			h.m.with(node, groupcomm.Requester)
			links, seen = append(links, l), append(seen, h.observe(l, "/ace-group/sensors"))
		}
		posted, post := h.control("posted", "coap://n/x", coap.Changed)
		h.m.with("posted", groupcomm.Requester)
		h.m.how = ordered
		h.m.rekey(t, h.b)
		settle(time.Second)
		if _, awaited := h.b.holds.awaitedOf(testGroup); !slices.Equal(awaited, []string{"deaf"}) {
			t.Errorf("waiting for %v", awaited)
		}
		for i, awake := range []uint64{5, 3600} {
			h.announce(links[i], groupcomm.Announcement{AwakeFor: awake, NextWake: 7200})
		}
		h.announce(posted, groupcomm.Announcement{AwakeFor: 5, NextWake: 7200})
		settle(2 * time.Second)
		if len(seen[0].responses()) != 2 || len(post.requests()) != 1 {
			t.Error("it sleeps through its turn")
		}
		if len(seen[1].responses()) != 1 {
			t.Error("it has time to wait, and was told")
		}
		settle(spread)
		if e := h.entry("long"); e.State != StateCurrent || len(seen[1].responses()) != 2 {
			t.Errorf("%+v", e)
		}
	})
}

// A restart in the middle goes on: the same members wait, for the same time.
func TestActivationRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		answers, _ := h.control("answers", "", coap.Changed)
		h.m.with("answers", groupcomm.Responder)
		h.observe(answers, "/ace-group/sensors")
		answers.Cut(true, true)
		for i := range 5 {
			node := fmt.Sprintf("asks%d", i)
			h.control(node, "coap://n/x", coap.Changed)
			h.m.with(node, groupcomm.Requester)
		}
		h.m.how = ordered
		h.m.rekey(t, h.b)
		settle(3 * time.Second)
		again := New(Config{}, Deps{Store: h.s, Source: h.m, Hub: nobody{}})
		if err := again.Setup(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := again.resumeHolds(t.Context()); err != nil {
			t.Fatal(err)
		}
		for i := range 5 {
			m := member{testGroup, fmt.Sprintf("asks%d", i)}
			before, after := h.b.holds.groups[testGroup].places[m.node], again.holds.groups[testGroup].places[m.node]
			one, waits := h.b.held(m)
			if two, stillWaits := again.held(m); !waits || !stillWaits || !one.Equal(two) || !before.slot.Equal(after.slot) {
				t.Errorf("%s: %v %t, then %v %t", m.node, one, waits, two, stillWaits)
			}
		}
		settle(spread)
		late := New(Config{}, Deps{Store: h.s, Source: h.m, Hub: nobody{}})
		if err := late.Setup(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := late.resumeHolds(t.Context()); err != nil || len(late.holds.all()) != 0 {
			t.Errorf("a hold of the past: %v, %v", late.holds.all(), err)
		}
	})
}

// Over MQTT too: what is held back is not given to the broker, whatever asks it to
// publish, until those are confirmed that are waited for.
func TestActivationMQTT(t *testing.T) {
	m := newManager(t)
	b, _ := running(t, open(t), m, nil, nil)
	asks, answers := m.join(t, b, "asks", wantMQTT), m.join(t, b, "answers", wantMQTT)
	m.with("asks", groupcomm.Requester)
	m.with("answers", groupcomm.Responder)
	m.how = groupcomm.Activation{RespondersFirst: true, Spread: time.Hour}
	held, first := connect(t, asks), connect(t, answers)
	version := m.rekey(t, b)
	first.next()
	b.publisher.wakeGroup(testGroup)
	if e := entry(t, b, "asks"); e.HeldUntil.IsZero() || e.State != StatePending || len(held.got) != 0 {
		t.Errorf("it does not wait: %+v", e)
	}
	if err := first.ack(version); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the responder confirmed", func() bool { return entry(t, b, "answers").State == StateCurrent })
	// Its slot is somewhere in that hour; an announced sleep comes before.
	me := member{testGroup, "asks"}
	if until, waits := b.held(me); !waits || len(held.got) != 0 {
		t.Errorf("held until %v %t", until, waits)
	}
	b.activity.change(me, func(tr *trace) { tr.asleepAt = time.Now() })
	b.release(testGroup, []string{me.node})
	if _, num := held.open(m.key, held.next()); num != version {
		t.Errorf("version %d", num)
	}
}
