package bridge

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/coaptest"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// controlled is a member's control_uri: it records what it is sent.
type controlled struct {
	mu   sync.Mutex
	got  []*coap.Request
	code coap.Code
}

func (c *controlled) ServeCoAP(_ context.Context, req *coap.Request) (*coap.Response, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.got = append(c.got, req.Clone())
	return &coap.Response{Code: c.code}, nil
}

func (c *controlled) requests() []*coap.Request {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.got)
}

// control is a link whose client serves a control_uri, and has asked once.
func (h *house) control(node, uri string, code coap.Code) (*coaptest.Link, *controlled) {
	h.t.Helper()
	h.m.join(h.t, h.b, node, nil)
	h.uris[node] = uri
	h.m.change(node, func(m *groupcomm.Member) { m.ControlURI = uri })
	c := &controlled{code: code}
	l := coaptest.NewLink(h.srv, coap.Peer{Link: coap.LinkID("link-" + node), Via: coap.DTLSPSK, Subject: subject(node)},
		coaptest.Options{Handler: c})
	h.links = append(h.links, l)
	if _, err := l.Do(h.t.Context(), coaptest.NewRequest(coap.GET, "/ace-group/sensors", nil)); err != nil {
		h.t.Fatal(err)
	}
	return l, c
}

// RFC 9594, Section 6.1: a member that gave a control_uri and does not observe
// gets the rekey by POST there, and its answer is the confirmation.
func TestRekeyByControlURI(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		_, posted := h.control("posted", "coap://[2001:db8::1]/grp/rek?a=1&b=%26", coap.Changed)
		_, none := h.control("none", "coap://node.example", coap.Changed)
		_, refuses := h.control("refuses", "coap://n/x", coap.NotFound)
		watching, both := h.control("both", "coap://n/y", coap.Changed)
		w := h.observe(watching, "/ace-group/sensors")
		_, lapsed := h.control("lapsed", "coap://n/z", coap.Changed)
		h.mu.Lock()
		h.expired["lapsed"] = true
		h.mu.Unlock()
		version := h.m.rekey(t, h.b)
		settle(time.Second)

		_, body, _ := h.m.RekeyMessage(t.Context(), testGroup)
		for what, tc := range map[string]struct {
			c           *controlled
			path, query []string
		}{
			"a path": {posted, []string{"grp", "rek"}, []string{"a=1", "b=&"}},
			"none":   {none, []string{"ace-group", testGroup, "node"}, nil},
		} {
			got := tc.c.requests()
			if len(got) != 1 {
				t.Errorf("%s: %d requests", what, len(got))
				continue
			}
			r := got[0]
			f, _ := r.Options.ContentFormat()
			if r.Code != coap.POST || !slices.Equal(r.Path(), tc.path) || !slices.Equal(r.Options.Strings(coap.UriQuery), tc.query) ||
				f != coap.ACEGroupcomm || !bytes.Equal(r.Payload, body) {
				t.Errorf("%s: %v %v %v, format %d", what, r.Code, r.Path(), r.Options.Strings(coap.UriQuery), f)
			}
		}
		for node, want := range map[string]string{"posted": StateCurrent, "none": StateCurrent, "refuses": StateAsleep, "both": StateCurrent} {
			e := h.entry(node)
			if e.State != want || want == StateCurrent && e.Confirmed != version {
				t.Errorf("%s: %+v, want %s", node, e, want)
			}
		}
		if e := h.entry("posted"); e.Channel != channelControl {
			t.Errorf("channel %s", e.Channel)
		}
		if len(refuses.requests()) != 1 || len(both.requests()) != 0 || len(lapsed.requests()) != 0 {
			t.Error("a request where there should be none, or none where there should be one")
		}
		if len(w.responses()) != 2 {
			t.Errorf("the observer got %d responses", len(w.responses()))
		}
	})
}

// draft-ietf-ace-key-groupcomm-oscore-21, Section 10: an evicted member is told
// by exactly one way.
func TestEvictionByControlURI(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		_, asked := h.control("asked", "coap://n/rek", coap.Deleted)
		watching, both := h.control("both", "coap://n/rek", coap.Deleted)
		w := h.observe(watching, "/ace-group/sensors/nodes/both")
		group, observer := h.control("group", "coap://n/rek", coap.Deleted)
		g := h.observe(group, "/ace-group/sensors")
		_, left := h.control("left", "coap://n/rek", coap.Deleted)
		for _, n := range []string{"asked", "both", "group"} {
			h.m.end(t, h.b, n, groupcomm.EventEvicted)
		}
		h.m.end(t, h.b, "left", groupcomm.EventLeft)
		h.m.rekey(t, h.b)
		settle(time.Second)
		for what, c := range map[string]*controlled{"control_uri": asked, "observer of the group": observer} {
			if got := c.requests(); len(got) != 1 || got[0].Code != coap.DELETE || strings.Join(got[0].Path(), "/") != "rek" || len(got[0].Payload) != 0 {
				t.Errorf("%s: %d requests", what, len(got))
			}
		}
		if len(both.requests()) != 0 || w.last().Code != coap.NotFound {
			t.Errorf("observer of the node resource: %d requests, %v", len(both.requests()), w.last().Code)
		}
		if len(left.requests()) != 0 {
			t.Error("who left is told")
		}
		if n := len(g.responses()); n != 1 {
			t.Errorf("the observation of the group got %d responses", n)
		}
	})
}

// A group that is deleted tells those at their control_uri who do not observe.
func TestDeletionByControlURI(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		_, asked := h.control("asked", "coap://n/rek", coap.Changed)
		_, refuses := h.control("refuses", "coap://n/rek", coap.NotFound)
		group, both := h.control("both", "coap://n/rek", coap.Changed)
		w := h.observe(group, "/ace-group/sensors")
		own, node := h.control("node", "coap://n/rek", coap.Changed)
		n := h.observe(own, "/ace-group/sensors/nodes/node")
		h.m.remove(t, h.b, true)
		settle(time.Second)
		for what, c := range map[string]*controlled{"asked": asked, "refuses": refuses} {
			got := c.requests()
			if len(got) != 1 || got[0].Code != coap.POST || strings.Join(got[0].Path(), "/") != "rek" || !groupcomm.IsDeletionNotice(got[0].Payload) {
				t.Errorf("%s: %d requests", what, len(got))
			}
		}
		for what, c := range map[string]*controlled{"both": both, "node": node} {
			if len(c.requests()) != 0 {
				t.Errorf("%s is told twice", what)
			}
		}
		for _, o := range []*watcher{w, n} {
			if p, err := coap.DecodeProblem(o.last().Payload); o.last().Code != coap.NotFound || err != nil || p.ID != 6 {
				t.Errorf("observer: %v %x", o.last().Code, o.last().Payload)
			}
		}
	})
}

// draft-ietf-ace-key-groupcomm-oscore-21, Section 9.9; RFC 9594, Section 4.7.1:
// active and num tell of changes, to members with a token only.
func TestSmallObservations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		var watched [3][2]*watcher
		names := []string{"stays", "evicted", "expired"}
		for i, n := range names {
			h.m.join(t, h.b, n, nil)
			l := h.link(n)
			watched[i] = [2]*watcher{h.observe(l, "/ace-group/sensors/num"), h.observe(l, "/ace-group/sensors/active")}
		}
		emit := func(kind string, e groupcomm.Event) {
			if err := h.s.Update(t.Context(), func(tx *store.Tx) error { return tx.Emit(kind, testGroup, e.Encode()) }); err != nil {
				t.Fatal(err)
			}
		}
		version := h.m.rekey(t, h.b)
		emit(groupcomm.EventState, groupcomm.Event{Group: testGroup, Version: 1, Reason: "inactive"})
		settle(time.Second)
		for i, w := range watched {
			num, active := w[0].last(), w[1].last()
			f, _ := num.Options.ContentFormat()
			if !bytes.Equal(num.Payload, groupcomm.EncodeNum(version)) || f != coap.CBOR {
				t.Errorf("%s: num %v %x, format %d", names[i], num.Code, num.Payload, f)
			}
			f, _ = active.Options.ContentFormat()
			if !bytes.Equal(active.Payload, groupcomm.EncodeActive(false)) || f != coap.CBOR {
				t.Errorf("%s: active %v %x, format %d", names[i], active.Code, active.Payload, f)
			}
		}
		if e := h.entry("stays"); e.State == StateCurrent || e.Channel == channelObserve {
			t.Errorf("who observes num has no keys: %+v", e)
		}

		h.m.end(t, h.b, "evicted", groupcomm.EventEvicted)
		h.mu.Lock()
		h.expired["expired"] = true
		h.mu.Unlock()
		emit(groupcomm.EventTokenExpired, groupcomm.Event{Subject: subject("expired")})
		settle(time.Second)
		emit(groupcomm.EventState, groupcomm.Event{Group: testGroup, Version: 2, Reason: groupcomm.StateActive})
		h.m.rekey(t, h.b)
		settle(time.Second)
		for i, want := range []struct {
			count int
			last  coap.Code
		}{{3, coap.Content}, {2, coap.Content}, {3, coap.Unauthorized}} {
			for _, w := range watched[i] {
				if got := w.responses(); len(got) != want.count || w.last().Code != want.last {
					t.Errorf("%s: %d responses, last %v; want %d, %v", names[i], len(got), w.last().Code, want.count, want.last)
				}
			}
		}
		for _, topic := range groupTopics(testGroup) {
			if got := h.srv.Observers(topic); len(got) > 1 {
				t.Errorf("%s is still observed by %v", topic, got)
			}
		}
	})
}

// Who observes its node resource without No-Response is told of rekeys there.
func TestNodeResourceRekeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		h.m.join(t, h.b, "n", nil)
		w := h.observe(h.link("n"), "/ace-group/sensors/nodes/n")
		version := h.m.rekey(t, h.b)
		settle(time.Second)
		_, body, _ := h.m.RekeyMessage(t.Context(), testGroup)
		if got := w.responses(); len(got) != 2 || !bytes.Equal(got[1].Payload, body) {
			t.Errorf("%d responses", len(got))
		}
		if e := h.entry("n"); e.Confirmed != version {
			t.Errorf("%+v", e)
		}
	})
}

func TestControlRequest(t *testing.T) {
	for uri, want := range map[string]string{
		"coap://h":           "ace-group/g/node",
		"coap://h/":          "ace-group/g/node",
		"coaps://h:1234/a/b": "a/b",
		"coap://h/a%2Fb/c":   "a/b/c", // two segments, see below
		"coap://h?x=1":       "ace-group/g/node",
		"coap://h/%C3%BC":    "ü",
	} {
		r, err := controlRequest(coap.DELETE, "g", uri)
		if err != nil || strings.Join(r.Path(), "/") != want {
			t.Errorf("%s: %v %v", uri, r, err)
		}
	}
	if r, err := controlRequest(coap.POST, "g", "coap://h/a%2Fb/c"); err != nil || len(r.Path()) != 2 {
		t.Errorf("an escaped slash: %v %v", r, err)
	}
	for _, uri := range []string{"coap://h/a?%zz", "://"} {
		if _, err := controlRequest(coap.DELETE, "g", uri); err == nil {
			t.Errorf("%s: accepted", uri)
		}
	}
}
