package bridge

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/coaptest"
	"github.com/seed4911071e/groupgate/coap/serve"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// house is a server core with a bridge behind it and no MQTT, inside a bubble.
type house struct {
	t   *testing.T
	m   *manager
	s   *store.Store
	srv *serve.Server
	b   *Bridge

	mu      sync.Mutex
	expired map[string]bool   // nodes whose token expired
	trouble bool              // nobody can say whose did
	uris    map[string]string // control_uri by node; not written once requests come
	links   []*coaptest.Link
}

func newHouse(t *testing.T, change ...func(*Deps)) *house {
	h := &house{t: t, m: newManager(t), s: open(t), expired: map[string]bool{}, uris: map[string]string{}}
	h.srv = serve.New(coap.HandlerFunc(func(_ context.Context, req *coap.Request) (*coap.Response, error) {
		topic := groupTopic(testGroup)
		path := req.Path()
		h.b.Alive(req.Peer) // as the router does
		switch {
		case path[0] == "gw":
			return h.b.Me().ServeCoAP(t.Context(), req)
		case len(path) == 4:
			topic = nodeTopic(testGroup, path[3])
		case len(path) == 3 && path[2] == "active":
			return &coap.Response{Code: coap.Content, Payload: groupcomm.EncodeActive(true),
				Observe: &coap.Observation{Topic: activeTopic(testGroup), Version: 0}}, h.reached(t, req)
		case len(path) == 3:
			topic = numTopic(testGroup)
		}
		if path[0] == "group-oscore" {
			accept, _ := req.Options.Uint(coap.Accept)
			topic = groupcomm.LegacyTopic(testGroup, coap.Format(accept))
		}
		// As the Group Manager tells of requests for keying material.
		register, _ := req.Observe()
		h.b.Seen(t.Context(), testGroup, req.Peer.Subject.ID, req.Peer, register && topic != numTopic(testGroup))
		if err := h.reached(t, req); err != nil {
			return nil, err
		}
		version, _, _ := h.m.RekeyMessage(t.Context(), testGroup)
		if m, err := h.m.MemberOf(t.Context(), testGroup, req.Peer.Subject); err == nil && m.Phased && topic == groupTopic(testGroup) {
			topic, version = groupcomm.PhasedTopic(testGroup), groupcomm.PhasedVersion(version, h.b.Dormant(testGroup, m.Node, version) == 0)
		}
		return &coap.Response{Code: coap.Content, Payload: []byte("full map"),
			Observe: &coap.Observation{Topic: topic, Version: version}}, nil
	}), serve.Config{})
	d := Deps{Store: h.s, Source: legacyManager{h.m}, Hub: h.srv, Access: func(_ context.Context, p coap.Peer) error {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.trouble {
			return errors.New("the disk does not answer")
		}
		if h.expired[p.Subject.ID] {
			return coap.Errorf(coap.Unauthorized, "")
		}
		return nil
	}}
	for _, f := range change {
		f(&d)
	}
	h.b = New(Config{}, d)
	if err := h.b.Setup(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := h.b.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	wg.Go(func() { _ = h.srv.Run(ctx) })
	t.Cleanup(func() {
		for _, l := range h.links {
			l.Close()
		}
		cancel()
		wg.Wait()
	})
	return h
}

// change changes what the house is like.
func (h *house) change(fn func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	fn()
}

// legacyManager is a manager whose group speaks a legacy dialect too.
type legacyManager struct{ *manager }

func (m legacyManager) LegacyFormats(group string) []coap.Format {
	if group != testGroup {
		return nil
	}
	return groupcomm.LegacyFormats
}

func (m legacyManager) LegacyRekey(ctx context.Context, group string) (uint64, []byte, error) {
	version, body, err := m.RekeyMessage(ctx, group)
	if body != nil {
		body = []byte("legacy rekey")
	}
	return version, body, err
}

// reached tells the bridge of a request as the Group Manager does.
func (h *house) reached(t *testing.T, req *coap.Request) error {
	t.Helper()
	register, _ := req.Observe()
	h.b.Reached(testGroup, req.Peer.Subject.ID, req.Peer, h.uris[req.Peer.Subject.ID], register)
	return nil
}

// watcher is an observer of one resource.
type watcher struct {
	link *coaptest.Link
	mu   sync.Mutex
	got  []*coap.Response
}

func (w *watcher) responses() []*coap.Response {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.got)
}

func (w *watcher) last() *coap.Response {
	all := w.responses()
	return all[len(all)-1]
}

func (h *house) link(node string) *coaptest.Link {
	l := coaptest.NewLink(h.srv, coap.Peer{Link: coap.LinkID("link-" + node), Via: coap.DTLSPSK, Subject: subject(node)}, coaptest.Options{})
	h.links = append(h.links, l)
	return l
}

func (h *house) observe(l *coaptest.Link, path string) *watcher {
	h.t.Helper()
	return h.observeAs(l, path, coap.CBOR)
}

func (h *house) observeAs(l *coaptest.Link, path string, f coap.Format) *watcher {
	h.t.Helper()
	w := &watcher{link: l}
	req := coaptest.NewRequest(coap.GET, path, nil)
	req.Options.SetUint(coap.Accept, uint32(f))
	_, err := l.Observe(h.t.Context(), req, func(r *coap.Response) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.got = append(w.got, r)
	})
	if err != nil {
		h.t.Fatalf("observe: %v", err)
	}
	return w
}

func (h *house) entry(node string) LedgerEntry { h.t.Helper(); return entry(h.t, h.b, node) }

// settle lets d pass and everything due in it happen.
func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestObserverConfirms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		h.m.join(t, h.b, "n1", nil)
		w := h.observe(h.link("n1"), "/ace-group/sensors")
		if e := h.entry("n1"); e.State != StatePending || e.Channel != channelObserve {
			t.Fatalf("before the first rekey: %+v", e)
		}
		num := h.m.rekey(t, h.b)
		settle(time.Second)
		r := w.last()
		_, body, _ := h.m.RekeyMessage(t.Context(), testGroup)
		if r.Code != coap.Content || !bytes.Equal(r.Payload, body) {
			t.Fatalf("notification %v with %x, want the reduced rekey map", r.Code, r.Payload)
		}
		if cf, ok := r.Options.ContentFormat(); !ok || cf != coap.ACEGroupcomm {
			t.Errorf("Content-Format %d", cf)
		}
		if age, ok := r.Options.Uint(coap.MaxAge); !ok || age != 0 {
			t.Errorf("Max-Age %d, %t; what carries keys is stale at once", age, ok)
		}
		if tag, _ := r.Options.Get(coap.ETag); !bytes.Equal(tag, []byte{byte(num)}) {
			t.Errorf("ETag %x", tag)
		}
		if e := h.entry("n1"); e.State != StateCurrent || e.Confirmed != num || e.Channel != channelObserve {
			t.Fatalf("after the acknowledgement: %+v", e)
		}
	})
}

func TestSleepingObserverStaysPending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		h.m.join(t, h.b, "n1", nil)
		w := h.observe(h.link("n1"), "/ace-group/sensors")
		w.link.Cut(true, true)
		num := h.m.rekey(t, h.b)
		settle(2 * time.Minute)
		e := h.entry("n1")
		if e.State != StateAsleep || e.Attempts == 0 || e.LastError == "" {
			t.Fatalf("a sleeper that did not answer: %+v", e)
		}
		settle(8 * 24 * time.Hour)
		if e := h.entry("n1"); e.State != StateUnreachable {
			t.Fatalf("after a week: %+v", e)
		}
		// It wakes and shows by an authenticated request what it holds.
		w.link.Cut(false, false)
		h.b.Held(t.Context(), testGroup, "n1", num)
		settle(time.Second)
		if e := h.entry("n1"); e.State != StateCurrent || e.Confirmed != num || e.LastError != "" {
			t.Fatalf("after it was heard: %+v", e)
		}
	})
}

func TestEvictedObserver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		for _, n := range []string{"out", "left", "stay"} {
			h.m.join(t, h.b, n, nil)
		}
		out, left, stay := h.link("out"), h.link("left"), h.link("stay")
		outGroup, outNode := h.observe(out, "/ace-group/sensors"), h.observe(out, "/ace-group/sensors/nodes/out")
		leftGroup, leftNode := h.observe(left, "/ace-group/sensors"), h.observe(left, "/ace-group/sensors/nodes/left")
		stayGroup := h.observe(stay, "/ace-group/sensors")

		h.m.end(t, h.b, "out", groupcomm.EventEvicted)
		h.m.end(t, h.b, "left", groupcomm.EventLeft)
		h.m.rekey(t, h.b)
		settle(time.Second)
		// draft-ietf-ace-key-groupcomm-oscore-21, Section 10: the notice goes to
		// the node resource, exactly once.
		r := outNode.last()
		if _, observe := r.Options.Uint(coap.ObserveOption); r.Code != coap.NotFound || observe || !bytes.Equal(r.Payload, evicted().Payload) {
			t.Errorf("notice of eviction: %v %x", r.Code, r.Payload)
		}
		for name, w := range map[string]*watcher{"evicted, group": outGroup, "left, group": leftGroup, "left, node": leftNode} {
			if n := len(w.responses()); n != 1 {
				t.Errorf("%s: %d responses, want only the first", name, n)
			}
		}
		if n := len(stayGroup.responses()); n != 2 {
			t.Errorf("the member that stays got %d responses", n)
		}
		if got := h.srv.Observers(groupTopic(testGroup)); len(got) != 1 {
			t.Errorf("observers left: %v", got)
		}
	})
}

// draft-ietf-ace-key-groupcomm-oscore-21, Section 13, error 6: observers of a
// group that is deleted are told, and a later group of the name starts anew.
func TestDeletedGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		for _, n := range []string{"one", "two"} {
			h.m.join(t, h.b, n, nil)
		}
		one, two := h.link("one"), h.link("two")
		watched := []*watcher{
			h.observe(one, "/ace-group/sensors"), h.observe(one, "/ace-group/sensors/nodes/one"), h.observe(two, "/ace-group/sensors"),
		}
		h.m.rekey(t, h.b) // is superseded in the same run, or was delivered before
		settle(time.Second)
		h.m.remove(t, h.b, true)
		settle(time.Second)
		for i, w := range watched {
			r := w.last()
			_, observe := r.Options.Uint(coap.ObserveOption)
			if p, err := coap.DecodeProblem(r.Payload); r.Code != coap.NotFound || observe || err != nil || p.ID != 6 {
				t.Errorf("observer %d: %v %x", i, r.Code, r.Payload)
			}
		}
		if got := h.srv.Observers(groupTopic(testGroup)); len(got) != 0 {
			t.Errorf("observers left: %v", got)
		}
		again := h.observe(one, "/ace-group/sensors")
		h.m.remove(t, h.b, false) // an event that comes late ends nothing of a group that is there now
		settle(time.Second)
		h.m.rekey(t, h.b)
		settle(time.Second)
		if got := again.responses(); len(got) != 2 || got[1].Code != coap.Content {
			t.Errorf("observer of the later group: %d responses, last %v", len(got), again.last().Code)
		}
	})
}

// docs/protocol.md, Section 2: an expired token ends access at once, 4.01 to
// observations: those that were notified, those that only registered, and those
// of the node resource.
func TestExpiredTokenEndsObservation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		for _, node := range []string{"known", "fresh", "node", "late"} {
			h.m.join(t, h.b, node, nil)
		}
		known := h.observe(h.link("known"), "/ace-group/sensors")
		h.m.rekey(t, h.b)
		settle(time.Second)
		fresh := h.observe(h.link("fresh"), "/ace-group/sensors")
		node := h.observe(h.link("node"), "/ace-group/sensors/nodes/node")
		late := h.observe(h.link("late"), "/ace-group/sensors")

		h.mu.Lock()
		for _, n := range []string{"known", "fresh", "node", "late"} {
			h.expired[n] = true
		}
		h.mu.Unlock()
		if err := h.s.Update(t.Context(), func(tx *store.Tx) error {
			for _, n := range []string{"known", "fresh", "node"} {
				if err := tx.Emit(groupcomm.EventTokenExpired, "x", groupcomm.Event{Subject: subject(n)}.Encode()); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		for name, w := range map[string]*watcher{"notified": known, "registered": fresh, "node resource": node} {
			if r := w.last(); r.Code != coap.Unauthorized || len(w.responses()) > 3 {
				t.Errorf("%s, at once after expiry: %v, %d responses", name, r.Code, len(w.responses()))
			}
		}
		if r := late.last(); r.Code != coap.Content {
			t.Errorf("without an event: %v", r.Code)
		}
		h.m.rekey(t, h.b)
		settle(time.Second)
		if r := late.last(); r.Code != coap.Unauthorized || bytes.Contains(r.Payload, []byte{0xa7}) {
			t.Errorf("at the next rekey: %v", r.Code)
		}
		if e := h.entry("late"); e.State == StateCurrent {
			t.Errorf("ledger: %+v", e)
		}
	})
}

func TestLapsedMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		h.m.join(t, h.b, "n1", nil)
		w := h.observe(h.link("n1"), "/ace-group/sensors")
		h.m.mu.Lock()
		v := h.m.members["n1"]
		v.Lapsed = true
		h.m.members["n1"] = v
		h.m.mu.Unlock()
		h.m.rekey(t, h.b)
		settle(time.Second)
		if r := w.last(); r.Code != coap.Unauthorized {
			t.Fatalf("a lapsed member got %v", r.Code)
		}
		if e := h.entry("n1"); e.State != StateLapsed {
			t.Fatalf("ledger: %+v", e)
		}
	})
}

// A burst of rekeys, or the same event twice after a crash, is one notification
// of the newest state.
func TestNewestStateOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		h.m.join(t, h.b, "n1", nil)
		w := h.observe(h.link("n1"), "/ace-group/sensors")
		w.link.Cut(true, true)
		h.m.rekey(t, h.b)
		h.m.rekey(t, h.b)
		num := h.m.rekey(t, h.b)
		if err := h.s.Update(t.Context(), func(tx *store.Tx) error {
			return tx.Emit(groupcomm.EventRekeyed, testGroup, groupcomm.Event{Group: testGroup, Version: 2}.Encode())
		}); err != nil {
			t.Fatal(err)
		}
		w.link.Cut(false, false)
		settle(time.Minute)
		if e := h.entry("n1"); e.Confirmed != num {
			t.Fatalf("ledger: %+v", e)
		}
		tags := map[string]int{}
		for _, r := range w.responses()[1:] {
			tag, _ := r.Options.Get(coap.ETag)
			tags[string(tag)]++
		}
		if tags[string(etag(num))] != 1 {
			t.Fatalf("notifications by version: %v", tags)
		}
	})
}

// A Group Manager that cannot answer for a moment delays a rekey, it loses none.
func TestDeliveryIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		h.m.join(t, h.b, "n1", nil)
		w := h.observe(h.link("n1"), "/ace-group/sensors")
		h.m.mu.Lock()
		h.m.broken = true
		h.m.mu.Unlock()
		num := h.m.rekey(t, h.b)
		settle(10 * time.Second)
		if n := len(w.responses()); n != 1 {
			t.Fatalf("%d responses from a broken source", n)
		}
		h.m.mu.Lock()
		h.m.broken = false
		h.m.mu.Unlock()
		settle(10 * time.Second)
		if e := h.entry("n1"); e.State != StateCurrent || e.Confirmed != num {
			t.Fatalf("ledger: %+v", e)
		}
	})
}

// The first version of a group is 0: nobody holds it before it is shown.
func TestFirstVersionIsZero(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		h.m.version = 0
		h.m.join(t, h.b, "n1", nil)
		if e := h.entry("n1"); e.State != StatePending {
			t.Fatalf("before: %+v", e)
		}
		h.b.Held(t.Context(), testGroup, "n1", 0)
		settle(time.Second)
		if e := h.entry("n1"); e.State != StateCurrent || e.Channel != channelPoll {
			t.Fatalf("shown: %+v", e)
		}
	})
}

// Who observes a legacy dialect gets the rekey in it, in the format that was
// accepted, confirms by acknowledging, and gets nothing any more after it left,
// was evicted or lost its token.
func TestLegacyObservers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		var watchers []*watcher
		for i, n := range []string{"n1", "n2", "left", "out", "expired"} {
			h.m.join(t, h.b, n, nil)
			watchers = append(watchers, h.observeAs(h.link(n), "/group-oscore/sensors", groupcomm.LegacyFormats[i%2]))
		}
		h.m.join(t, h.b, "now", nil)
		now := h.observe(h.link("now"), "/ace-group/sensors")
		num := h.m.rekey(t, h.b)
		settle(time.Second)
		for i, w := range watchers {
			r := w.last()
			if f, _ := r.Options.ContentFormat(); string(r.Payload) != "legacy rekey" || f != groupcomm.LegacyFormats[i%2] {
				t.Errorf("observer %d: %q in format %d", i, r.Payload, f)
			}
		}
		if _, body, _ := h.m.RekeyMessage(t.Context(), testGroup); !bytes.Equal(now.last().Payload, body) {
			t.Error("the others do not get the current message")
		}
		if e := h.entry("n2"); e.State != StateCurrent || e.Confirmed != num || e.Channel != channelObserve {
			t.Errorf("after the acknowledgement: %+v", e)
		}

		h.m.end(t, h.b, "left", groupcomm.EventLeft)
		h.m.end(t, h.b, "out", groupcomm.EventEvicted)
		h.mu.Lock()
		h.expired["expired"] = true
		h.mu.Unlock()
		err := h.s.Update(t.Context(), func(tx *store.Tx) error {
			return tx.Emit(groupcomm.EventTokenExpired, "k", groupcomm.Event{Subject: subject("expired")}.Encode())
		})
		if err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		if r := watchers[4].last(); r.Code != coap.Unauthorized {
			t.Errorf("an expired token: %v", r.Code)
		}
		h.m.rekey(t, h.b)
		settle(time.Second)
		for i, n := range []int{3, 3, 2, 2, 3} {
			if got := len(watchers[i].responses()); got != n {
				t.Errorf("observer %d: %d responses, want %d", i, got, n)
			}
		}
	})
}
