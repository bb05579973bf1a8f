package bridge

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/coaptest"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// announce sends PUT /gw/me and wants 2.04.
func (h *house) announce(l *coaptest.Link, a groupcomm.Announcement) *groupcomm.Pending {
	h.t.Helper()
	resp, err := l.Do(h.t.Context(), coaptest.NewRequest(coap.PUT, "/gw/me", a.Encode()))
	if err != nil {
		h.t.Fatal(err)
	}
	if resp.Code != coap.Changed {
		h.t.Fatalf("announcement: %v %s", resp.Code, resp.Payload)
	}
	p, err := groupcomm.DecodePending(resp.Payload)
	if err != nil {
		h.t.Fatal(err)
	}
	return p
}

// A node that announced that it sleeps is left alone until the moment for which
// it announced that it wakes; only the newest rekey goes out then.
func TestAnnouncedSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		l, posts := h.control("posted", "coap://n/x", coap.Changed)
		watching, _ := h.control("watching", "", coap.Changed)
		w := h.observe(watching, "/ace-group/sensors")
		for _, link := range []*coaptest.Link{l, watching} {
			h.announce(link, groupcomm.Announcement{AwakeFor: 10, NextWake: 600})
		}
		settle(time.Minute)
		began := time.Now()
		h.m.rekey(t, h.b)
		settle(time.Minute)
		version := h.m.rekey(t, h.b)
		settle(time.Minute)
		if n := len(posts.requests()) + len(w.responses()) - 1; n != 0 {
			t.Errorf("sleepers were sent %d messages", n)
		}
		for _, node := range []string{"posted", "watching"} {
			if e := h.entry(node); e.State != StateAsleep || e.NextWake.IsZero() || !e.Since.Before(began) || e.Attempts != 0 {
				t.Errorf("%s: %+v", node, e)
			}
		}
		settle(10 * time.Minute)
		if n := len(posts.requests()); n != 1 {
			t.Errorf("%d requests at the announced moment", n)
		}
		if n := len(w.responses()); n != 2 {
			t.Errorf("%d responses of the observed group", n)
		}
		for _, node := range []string{"posted", "watching"} {
			if e := h.entry(node); e.State != StateCurrent || e.Confirmed != version {
				t.Errorf("%s: %+v", node, e)
			}
		}
	})
}

// Any authenticated request is a sign of life, also over another association:
// what was sent in vain goes out again.
func TestSignOfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		l, posts := h.control("posted", "coap://n/x", coap.Changed)
		l.Cut(true, true)
		version := h.m.rekey(t, h.b)
		settle(100 * time.Second)
		if e := h.entry("posted"); e.State != StateAsleep || e.Attempts != 1 || e.LastError == "" {
			t.Errorf("after no answer: %+v", e)
		}
		again := coaptest.NewLink(h.srv, coap.Peer{Link: "another", Via: coap.DTLSPSK, Subject: subject("posted")}, coaptest.Options{Handler: posts})
		h.links = append(h.links, again)
		if p := h.announce(again, groupcomm.Announcement{AwakeFor: 10, NextWake: 600}); len(p.Groups) != 1 || p.Groups[0] != (groupcomm.PendingGroup{Name: testGroup, Num: version}) {
			t.Errorf("pending: %+v", p)
		}
		settle(time.Second)
		if len(posts.requests()) != 1 {
			t.Errorf("%d requests", len(posts.requests()))
		}
		if p := h.announce(again, groupcomm.Announcement{AwakeFor: 0, NextWake: 600}); len(p.Groups) != 0 {
			t.Errorf("still pending: %+v", p)
		}
	})
}

// A member that does not answer is tried again by itself, in growing distances,
// for as long as the policy says; observing, it stays registered.
func TestRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		l, posts := h.control("posted", "coap://n/x", coap.ServiceUnavailable)
		watching, _ := h.control("watching", "", coap.Changed)
		w := h.observe(watching, "/ace-group/sensors")
		watching.Cut(true, true)
		version := h.m.rekey(t, h.b)
		settle(23 * time.Hour)
		n := len(posts.requests())
		if n < 20 || n > 40 {
			t.Errorf("%d attempts in a day", n)
		}
		settle(72 * time.Hour)
		if late := len(posts.requests()) - n; late > 2 {
			t.Errorf("%d attempts after the end of the policy", late)
		}
		watching.Cut(false, false)
		h.announce(watching, groupcomm.Announcement{AwakeFor: 60})
		settle(time.Second)
		if got := w.responses(); len(got) != 2 {
			t.Errorf("%d responses of the observed group", len(got))
		}
		if e := h.entry("watching"); e.State != StateCurrent || e.Confirmed != version {
			t.Errorf("%+v", e)
		}
		_ = l
	})
}

// PUT /gw/me changes the channel at any time; one that the member does not have
// is refused.
func TestChangeOfChannel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		l, posts := h.control("n1", "coap://n/x", coap.Changed)
		w := h.observe(l, "/ace-group/sensors")
		do := func(a groupcomm.Announcement) coap.Code {
			resp, err := l.Do(t.Context(), coaptest.NewRequest(coap.PUT, "/gw/me", a.Encode()))
			if err != nil {
				t.Fatal(err)
			}
			return resp.Code
		}
		if c := do(groupcomm.Announcement{Channel: groupcomm.ChannelMQTT}); c != coap.BadRequest {
			t.Errorf("MQTT without an enrolment: %v", c)
		}
		counts := func() [2]int { settle(time.Second); return [2]int{len(posts.requests()), len(w.responses()) - 1} }
		for _, step := range []struct {
			channel string
			want    [2]int
		}{
			{"", [2]int{0, 1}},
			{groupcomm.ChannelControl, [2]int{1, 1}},
			{groupcomm.ChannelPoll, [2]int{1, 1}},
			{"", [2]int{1, 1}}, // as before
			{groupcomm.ChannelObserve, [2]int{1, 3}},
		} {
			if c := do(groupcomm.Announcement{AwakeFor: 60, Channel: step.channel}); c != coap.Changed {
				t.Fatalf("channel %q: %v", step.channel, c)
			}
			counts()
			h.m.rekey(t, h.b)
			if got := counts(); got != step.want {
				t.Errorf("channel %q: POSTs and notifications %v, want %v", step.channel, got, step.want)
			}
		}
	})
}

func TestAnnouncementRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		l, _ := h.control("n1", "", coap.Changed)
		good := (&groupcomm.Announcement{AwakeFor: 1}).Encode()
		ask := func(code coap.Code, payload []byte, f coap.Format) coap.Code {
			req := coaptest.NewRequest(code, "/gw/me", payload)
			req.Options.SetContentFormat(f)
			resp, err := l.Do(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			return resp.Code
		}
		if c := ask(coap.POST, good, coap.CBOR); c != coap.MethodNotAllowed {
			t.Errorf("POST: %v", c)
		}
		if c := ask(coap.PUT, good, coap.ACEGroupcomm); c != coap.UnsupportedContentFormat {
			t.Errorf("format: %v", c)
		}
		for i := range good {
			if c := ask(coap.PUT, good[:i], coap.CBOR); c != coap.BadRequest {
				t.Errorf("%d bytes: %v", i, c)
			}
		}
		h.mu.Lock()
		h.expired["n1"] = true
		h.mu.Unlock()
		if c := ask(coap.PUT, good, coap.CBOR); c != coap.Unauthorized {
			t.Errorf("without a token: %v", c)
		}
		stranger := coaptest.NewLink(h.srv, coap.Peer{Link: "stranger", Via: coap.DTLSPSK, Subject: subject("stranger")}, coaptest.Options{})
		h.links = append(h.links, stranger)
		if p := h.announce(stranger, groupcomm.Announcement{AwakeFor: 1}); len(p.Groups) != 0 {
			t.Errorf("a stranger: %+v", p)
		}
	})
}

// Silence has consequences as the group's policy says: after some days a member
// is unreachable, told once, and at last evicted; a restart in between does not
// begin anew.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, s := newManager(t), open(t)
		var mu sync.Mutex
		var evicted []string // guarded by mu
		gone := func() []string { mu.Lock(); defer mu.Unlock(); return slices.Clone(evicted) }
		start := func() (*Bridge, func()) {
			b := New(Config{Policies: map[string]Policy{testGroup: {UnreachableAfter: 24 * time.Hour, EvictAfter: 72 * time.Hour}}}, Deps{
				Store: s, Source: m, Hub: nobody{},
				Evict: func(_ context.Context, group string, nodes []string) error {
					mu.Lock()
					evicted = append(evicted, nodes...)
					mu.Unlock()
					for _, n := range nodes {
						m.end(t, forgetful(s), n, groupcomm.EventEvicted)
					}
					return nil
				},
			})
			if err := b.Setup(t.Context()); err != nil {
				t.Fatal(err)
			}
			return b, run(t, b)
		}
		b, stop := start()
		m.join(t, b, "silent", nil)
		m.join(t, b, "alive", nil)
		v := m.rekey(t, b)
		b.Held(t.Context(), testGroup, "alive", v)
		settle(25 * time.Hour)
		if e := entry(t, b, "silent"); e.State != StateUnreachable || e.Since.IsZero() {
			t.Errorf("after a day: %+v", e)
		}
		if e := entry(t, b, "alive"); e.State != StateCurrent {
			t.Errorf("alive: %+v", e)
		}
		stop()
		b, stop = start()
		defer stop()
		if e := entry(t, b, "silent"); e.State != StateUnreachable {
			t.Errorf("after a restart: %+v", e)
		}
		settle(46 * time.Hour)
		if early := gone(); len(early) != 0 {
			t.Errorf("evicted early: %v", early)
		}
		settle(2 * time.Hour)
		if all := gone(); !slices.Equal(all, []string{"silent"}) {
			t.Errorf("evicted: %v", all)
		}
		if n := events(t, s, groupcomm.EventUnreachable); n != 1 {
			t.Errorf("%d events tell that a member is unreachable", n)
		}
	})
}

// A member that was up to date may be silent for as long as there is nothing to hear:
// its silence begins with the rekey, also while the event that tells of it is on its way.
func TestSilenceBeginsWithRekey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t)
		b := New(Config{Policies: map[string]Policy{testGroup: {UnreachableAfter: 24 * time.Hour, EvictAfter: 72 * time.Hour}}}, Deps{
			Store: open(t), Source: m, Hub: nobody{},
			Evict: func(_ context.Context, _ string, nodes []string) error { t.Errorf("evicted: %v", nodes); return nil },
		})
		if err := b.Setup(t.Context()); err != nil {
			t.Fatal(err)
		}
		stop := run(t, b)
		m.join(t, b, "quiet", nil)
		m.join(t, b, "new", nil)
		b.Held(t.Context(), testGroup, "quiet", m.rekey(t, b))
		settle(time.Second)
		stop() // nobody follows the events now
		settle(100 * time.Hour)
		m.rekey(t, b)
		check := func(since time.Duration) {
			t.Helper()
			for _, node := range []string{"quiet", "new"} {
				if e := entry(t, b, node); node == "quiet" && (e.State != StatePending || time.Since(e.Since) != since) || node == "new" && e.State != StateUnreachable {
					t.Errorf("%s, %v after the rekey: %s since %v", node, since, e.State, time.Since(e.Since))
				}
			}
			p, err := b.Tally(t.Context(), testGroup)
			if err != nil || p.Pending != 1 || p.Unreachable != 1 || time.Since(p.Since) != since {
				t.Errorf("%v after the rekey: %+v, %v", since, p, err)
			}
		}
		check(0)
		settle(time.Hour)
		check(time.Hour)
		m.change("new", func(v *groupcomm.Member) { v.Lapsed = true }) // only the other is judged
		if err := b.patrolGroup(t.Context(), testGroup); err != nil {
			t.Error(err)
		}
	})
}

// A newcomer is not behind because the group was rekeyed long ago: its silence begins
// with its join, and, when it never showed what it was given, does not begin anew with
// each rekey.
func TestSilenceBeginsWithJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t)
		b := New(Config{Policies: map[string]Policy{testGroup: {UnreachableAfter: 24 * time.Hour}}}, Deps{Store: open(t), Source: m, Hub: nobody{}})
		if err := b.Setup(t.Context()); err != nil {
			t.Fatal(err)
		}
		defer run(t, b)()
		m.rekey(t, b)
		settle(100 * time.Hour)
		m.join(t, b, "n", nil)
		b.Joined(testGroup, "n")
		check := func(when, want string, since time.Duration) {
			t.Helper()
			if e := entry(t, b, "n"); e.State != want || time.Since(e.Since) != since {
				t.Errorf("%s: %s since %v, want %s since %v", when, e.State, time.Since(e.Since), want, since)
			}
		}
		check("at the join", StatePending, 0)
		settle(12 * time.Hour)
		check("after half a day", StatePending, 12*time.Hour)
		m.rekey(t, b)
		settle(23 * time.Hour)
		m.rekey(t, b)
		settle(2 * time.Hour)
		check("a day after the first rekey that it did not hear of", StateUnreachable, time.Hour)
	})
}

// forgetful is a bridge that forgets members and nothing else.
func forgetful(s *store.Store) *Bridge {
	return New(Config{}, Deps{Store: s, Hub: nobody{}})
}

// events counts the entries of a kind in the event log.
func events(t testing.TB, s *store.Store, kind string) (n int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stop := time.AfterFunc(time.Second, cancel)
	defer stop.Stop()
	err := s.Follow(ctx, "count-"+kind+time.Now().String(), func(_ context.Context, list []store.Event) error {
		for _, e := range list {
			if e.Kind == kind {
				n++
			}
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	return n
}
