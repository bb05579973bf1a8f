package bridge

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/coaptest"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// posts is what goes to a control_uri, lost or not.
type posts struct {
	mu   sync.Mutex
	lost bool        // nothing arrives there
	mute bool        // no answer arrives from there
	sent []postsSent // in order
}

type postsSent struct {
	code  coap.Code
	num   uint64
	token string
	id    uint16
	at    time.Time
}

func (p *posts) lose(toServer bool, m *coap.Message) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if toServer {
		return p.mute && (m.Type == coap.Acknowledgement || m.Code.IsResponse())
	}
	if m.Code.IsRequest() {
		s := postsSent{code: m.Code, token: string(m.Token), id: m.ID, at: time.Now()}
		if n, err := groupcomm.DecodeRekeyMessage(m.Payload); err == nil {
			s.num = uint64(n.Num)
		}
		p.sent = append(p.sent, s)
	}
	return p.lost
}

func (p *posts) set(lost, mute bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lost, p.mute = lost, mute
}

func (p *posts) take() []postsSent {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := p.sent
	p.sent = nil
	return out
}

// caller is a member with a control_uri, over a link that posts watches.
func (h *house) caller(node string) (*coaptest.Link, *posts, *controlled) {
	h.t.Helper()
	h.m.join(h.t, h.b, node, nil)
	h.uris[node] = "coap://n/rek"
	h.m.change(node, func(m *groupcomm.Member) { m.ControlURI = "coap://n/rek" })
	return h.callerOver(node, "link-"+node)
}

func (h *house) callerOver(node, id string) (*coaptest.Link, *posts, *controlled) {
	h.t.Helper()
	p, c := &posts{}, &controlled{code: coap.Changed}
	l := coaptest.NewLink(h.srv, coap.Peer{Link: coap.LinkID(id), Via: coap.DTLSPSK, Subject: subject(node)},
		coaptest.Options{Handler: c, Lose: p.lose})
	h.links = append(h.links, l)
	if _, err := l.Do(h.t.Context(), coaptest.NewRequest(coap.GET, "/ace-group/sensors", nil)); err != nil {
		h.t.Fatal(err)
	}
	return l, p, c
}

// A rekey that is under way to a control_uri is given up for a newer one, which goes out
// at once as a request of its own; what is older is not sent again, and counts as no
// failure (docs/protocol.md, Section 4).
func TestCallOvertaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		_, p, got := h.caller("n")
		p.set(true, false)
		h.m.rekey(t, h.b)
		settle(10 * time.Second) // it is sent again meanwhile
		old := p.take()
		if len(old) < 2 {
			t.Fatalf("%d messages of the first rekey", len(old))
		}
		var newest uint64
		var began time.Time
		for range 3 {
			began = time.Now()
			newest = h.m.rekey(t, h.b)
			settle(100 * time.Millisecond)
		}
		settle(time.Second)
		now := p.take()
		if len(now) == 0 {
			t.Fatal("nothing newer is sent")
		}
		last := now[len(now)-1]
		if last.num != newest || last.at.Sub(began) > 100*time.Millisecond {
			t.Errorf("version %d after %v, want %d at once", last.num, last.at.Sub(began), newest)
		}
		for _, s := range now {
			if s.token == old[0].token || s.id == old[0].id || s.num == old[0].num {
				t.Errorf("%+v is of the first request", s)
			}
		}
		if e := h.entry("n"); e.Attempts != 0 || e.LastError != "" || e.State != StatePending {
			t.Errorf("what was given up is no failure: %+v", e)
		}
		p.set(false, false)
		settle(time.Minute)
		if e := h.entry("n"); e.State != StateCurrent || e.Confirmed != newest || e.ConfirmedBy != channelControl {
			t.Errorf("after it hears again: %+v", e)
		}
		if n := len(got.requests()); n != 1 {
			t.Errorf("the member got %d requests, want the newest alone", n)
		}
		for _, s := range p.take() {
			if s.num != newest {
				t.Errorf("version %d was sent after %d", s.num, newest)
			}
		}
	})
}

// What answers a request that was given up comes late, and is no confirmation of the
// newer version.
func TestCallAnsweredLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		_, p, got := h.caller("n")
		p.set(false, true) // the member has it, and its answers are lost
		h.m.rekey(t, h.b)
		settle(time.Second)
		first := p.take()[0]
		if len(got.requests()) != 1 {
			t.Fatal("the member did not get the first")
		}
		p.set(true, false)
		newest := h.m.rekey(t, h.b)
		settle(time.Second)
		late := &coap.Message{Type: coap.Acknowledgement, Code: coap.Changed, ID: first.id, Token: []byte(first.token)}
		b, err := late.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		h.links[0].Inject(true, b)
		settle(time.Second)
		if e := h.entry("n"); e.Shown || e.State != StatePending {
			t.Errorf("after a late answer: %+v", e)
		}
		p.set(false, false)
		settle(time.Minute)
		if e := h.entry("n"); e.State != StateCurrent || e.Confirmed != newest {
			t.Errorf("in the end: %+v", e)
		}
	})
}

// Who shows a version elsewhere is sent no more of it, and who shows an older one is
// sent the newer still.
func TestCallElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		_, p, got := h.caller("n")
		p.set(true, false)
		old := h.m.rekey(t, h.b)
		settle(time.Second)
		newest := h.m.rekey(t, h.b)
		settle(time.Second)
		p.take()
		h.b.Held(t.Context(), testGroup, "n", groupcomm.Version(old))
		settle(20 * time.Second)
		again := p.take()
		if len(again) == 0 {
			t.Error("an older version was shown, and the newer is sent no more")
		}
		if e := h.entry("n"); e.LastError != "" {
			t.Errorf("%+v", e)
		}
		h.b.Held(t.Context(), testGroup, "n", groupcomm.Version(newest))
		settle(time.Second)
		p.take()
		p.set(false, false)
		settle(5 * time.Minute)
		if n := len(p.take()); n != 0 || len(got.requests()) != 0 {
			t.Errorf("%d messages after the version was shown", n)
		}
		if e := h.entry("n"); e.State != StateCurrent || e.Confirmed != newest || e.LastError != "" {
			t.Errorf("%+v", e)
		}
	})
}

// A member that comes over another association is told there at once, whatever is still
// under way over the one that it left.
func TestCallMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		_, before, _ := h.caller("n")
		before.set(true, false)
		h.m.rekey(t, h.b)
		settle(time.Second)
		_, after, _ := h.callerOver("n", "link-n-2")
		newest := h.m.rekey(t, h.b)
		settle(time.Second)
		sent := after.take()
		if len(sent) == 0 || sent[0].num != newest {
			t.Errorf("over the new association: %+v", sent)
		}
		before.take()
		settle(2 * time.Minute)
		if n := len(before.take()); n != 0 {
			t.Errorf("%d messages over the old one", n)
		}
	})
}

// The notice that a membership is over does not wait behind a rekey that nobody answers.
func TestCallOver(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, h *house) coap.Code{
		"evicted": func(t *testing.T, h *house) coap.Code {
			h.m.end(t, h.b, "n", groupcomm.EventEvicted)
			return coap.DELETE
		},
		"deleted": func(t *testing.T, h *house) coap.Code {
			h.m.remove(t, h.b, true)
			return coap.POST
		},
		"left": func(t *testing.T, h *house) coap.Code {
			h.m.end(t, h.b, "n", groupcomm.EventLeft)
			return coap.Empty
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t)
				_, p, _ := h.caller("n")
				p.set(true, false)
				v := h.m.rekey(t, h.b)
				settle(time.Second)
				p.take()
				want := end(t, h)
				settle(time.Second)
				sent := p.take()
				settle(3 * time.Minute)
				sent = append(sent, p.take()...)
				if slices.ContainsFunc(sent, func(s postsSent) bool { return s.num == v }) {
					t.Errorf("the rekey goes on: %+v", sent)
				}
				switch {
				case want == coap.Empty && len(sent) > 0:
					t.Errorf("%+v after it left", sent)
				case want != coap.Empty && (len(sent) == 0 || sent[0].code != want):
					t.Errorf("%+v, want %v at once", sent, want)
				}
				h.b.activity.mu.Lock()
				defer h.b.activity.mu.Unlock()
				if tr := h.b.activity.traces[member{testGroup, "n"}]; name != "deleted" && tr != nil {
					t.Errorf("a trace of who is no member: %+v", tr)
				}
			})
		})
	}
}

// Only what is newer, or elsewhere, takes the place of a call.
func TestCalling(t *testing.T) {
	t.Parallel()
	m := member{testGroup, "n"}
	for _, c := range []struct {
		old, new call
		ok       bool
	}{
		{call{version: 2, link: "a"}, call{version: 3, link: "a"}, true},
		{call{version: 3, link: "a"}, call{version: 2, link: "b"}, false},
		{call{version: 3, link: "a"}, call{version: 3, link: "a"}, false},
		{call{version: 3, link: "a"}, call{version: 3, link: "b"}, true},
		{call{version: 3, link: "a"}, call{version: 3, link: "a", begins: true}, true},
		{call{version: 3, link: "a", begins: true}, call{version: 3, link: "b"}, false},
	} {
		t.Run(fmt.Sprint(c.old.version, c.old.begins, c.new.version, c.new.begins, c.new.link), func(t *testing.T) {
			a := newActivity()
			var why error
			c.old.giveUp = func(err error) { why = err }
			c.new.giveUp = func(err error) { t.Errorf("the newer is given up: %v", err) }
			if !a.calling(m, &c.old) {
				t.Fatal("the first may not begin")
			}
			if ok := a.calling(m, &c.new); ok != c.ok || ok != errors.Is(why, errOvertaken) {
				t.Errorf("%v, the old one: %v", ok, why)
			}
			a.called(m, &c.old) // does not end another
			if has := a.of(m).call != nil; has != c.ok {
				t.Errorf("under way after the old one ended: %v", has)
			}
		})
	}
}
