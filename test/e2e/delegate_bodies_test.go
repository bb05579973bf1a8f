package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/test/peers"
	"github.com/seed4911071e/groupgate/test/ports"
)

// TestDelegateBodies: two members send bodies to one resource of a legacy node in blocks
// at the same time (RFC 7959; draft-ietf-core-oscore-groupcomm-28, Section 7): each body
// arrives as it was sent, and one that is too large is refused at its first block. When
// the gateway ends, a request that is held for a node that sleeps is answered; when it is
// killed, by its next life, which asks the node for nothing of it.
func TestDelegateBodies(t *testing.T) {
	t.Parallel()
	const block = 512
	s := newSite(t)
	at, _ := overhear(t)
	meter := s.legacyNode("meter-1")
	sleeper := s.legacyNode("sleeper") // is never heard
	s.delegates(at, "", meter, sleeper)
	s.more = strings.Replace(s.more, "- name: sleeper\n", "- name: sleeper\n    sleepy: true\n    hold: 90s\n    awake: 1h\n", 1)
	for range 2 { // the same address in all lives
		s.more = strings.Replace(s.more, "roles: [requester, responder], send", fmt.Sprintf("roles: [requester, responder], listen: %q, send", ports.Addr(t)), 1)
	}
	s.more = strings.Replace(s.more, "methods: [GET]", "methods: [GET, PUT]", 2)
	s.configure()
	gw := s.run()
	where, ids := map[string]string{}, map[string]string{}
	for _, d := range s.delegated(2) {
		where[d.Delegate], ids[d.Delegate] = d.Listen, *d.SenderID
	}
	meter.connect(s.at["coaps"])
	var mu sync.Mutex
	var bodies []string // that reached the node
	meter.tr.(node.Taker).Take(func(req *coap.Request) *coap.Response {
		mu.Lock()
		defer mu.Unlock()
		bodies = append(bodies, string(req.Payload))
		return &coap.Response{Code: coap.Changed, Payload: req.Payload[:1]}
	})
	send := func(sp *speaker, to string, b coap.Block, payload []byte, more ...coap.Option) (got string) {
		t.Helper()
		req := &coap.Message{Code: coap.PUT, Payload: payload}
		req.Options.SetPath("t")
		req.Options.SetBlock(coap.Block1, b)
		for _, o := range more {
			req.Options.Add(o.ID, o.Value)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := sp.client.Send(ctx, netip.MustParseAddrPort(where[to]), nil, req, patience, func(a node.Answer) {
			if a.Err != nil {
				t.Error(a.Err)
				return
			}
			got = a.Message.Code.String() + " " + string(a.Message.Payload)
		}); err != nil {
			t.Error(err)
		}
		return got
	}
	speakers := []*speaker{s.speaker(), s.speaker()}
	const last = 4
	var want []string
	for n := range last + 1 {
		for i, sp := range speakers {
			part := bytes.Repeat([]byte{byte('a' + i)}, block)
			if n == last {
				part = part[:100]
				want = append(want, strings.Repeat(string(part[:1]), last*block+len(part)))
			}
			code := "2.31 "
			if n == last {
				code = fmt.Sprintf("2.04 %c", 'a'+i)
			}
			if got := send(sp, "meter-1", coap.Block{Num: uint32(n), More: n < last, SZX: 5}, part); got != code {
				t.Errorf("block %d of member %d: %q", n, i, got)
			}
		}
	}
	mu.Lock()
	got := append([]string(nil), bodies...)
	mu.Unlock()
	if strings.Join(got, ",") != strings.Join(want, ",") {
		t.Errorf("the node got %d bodies: %.40q", len(got), got)
	}
	size := coap.Option{ID: coap.Size1, Value: []byte{1, 0, 1}} // 64 KiB and a byte
	if got := send(speakers[0], "meter-1", coap.Block{More: true, SZX: 5}, bytes.Repeat([]byte("c"), block), size); !strings.HasPrefix(got, "4.13") {
		t.Errorf("too large a body: %q", got)
	}
	if got := send(speakers[1], "meter-1", coap.Block{Num: 1, SZX: 5}, []byte("c")); !strings.HasPrefix(got, "4.08") {
		t.Errorf("a block without the first: %q", got)
	}

	// Killed.
	put := func() (*coap.Message, func(what, want string)) {
		t.Helper()
		req := &coap.Message{Code: coap.PUT, Payload: []byte("on")}
		req.Options.SetPath("t")
		m, x, err := speakers[0].traffic.Request(soon(t), nil, req)
		if err != nil {
			t.Fatal(err)
		}
		m = m.Clone()
		client := peers.DialUDP(t, where["sleeper"])
		acknowledged := func(r *coap.Message) bool {
			return r.ID == m.ID && r.Type == coap.Acknowledgement && r.Code == coap.Empty
		}
		m.Type, m.Token = coap.Confirmable, []byte("put")
		client.Send(m)
		client.Receive("an acknowledgement", acknowledged)
		return m, func(what, want string) {
			t.Helper()
			r := client.Receive(what, func(r *coap.Message) bool { return r.Code != coap.Empty && string(r.Token) == "put" })
			client.Again(m) // the acknowledgement was lost
			client.Receive("another acknowledgement", acknowledged)
			if r.Type != coap.Confirmable {
				t.Errorf("%s: %v", what, r.Type)
			}
			client.Send(&coap.Message{Type: coap.Acknowledgement, ID: r.ID})
			inner, _, err := speakers[0].traffic.ReadResponse(soon(t), x, r)
			if err != nil {
				t.Fatalf("%s: %v: %v %q", what, err, r.Code, r.Payload)
			}
			if got := fmt.Sprintf("%v %s", inner.Code, inner.Payload); got != want || inner.Code == coap.ServiceUnavailable && !inner.Options.Has(coap.MaxAge) {
				t.Errorf("%s: %q, want %q", what, got, want)
			}
		}
	}
	_, answered := put()
	gw.signal(syscall.SIGKILL)
	gw = s.run()
	answered("held at a crash", "5.03 ")
	asked, release := make(chan string, 8), make(chan struct{})
	defer close(release)
	wake := func() {
		t.Helper()
		sleeper.connect(s.at["coaps"])
		sleeper.tr.(node.Taker).Take(func(req *coap.Request) *coap.Response {
			asked <- req.Code.String()
			<-release
			return &coap.Response{Code: coap.Changed}
		})
	}
	_, answered = put()
	wake()
	if got := <-asked; got != "PUT" {
		t.Errorf("asked for %s", got)
	}
	gw.signal(syscall.SIGKILL)
	gw = s.run()
	answered("the node was asked before a crash", "5.04 the gateway ended before the node answered")
	if len(asked) > 0 || len(sleeper.wasAsked()) > 0 {
		t.Errorf("asked %d times more, and %q", len(asked), sleeper.wasAsked())
	}

	const in = `groupgate_delegate_messages_total{direction="in",group="sensors",kind="request",mode="group"}`
	before := metric(t, s, in)
	answer := make(chan string, 1)
	go func() { answer <- speakers[0].ask(where["sleeper"], nil, coap.GET, "/t", patience)[ids["sleeper"]] }()
	eventually(t, "the request is held", func() bool { return metric(t, s, in) > before })
	if got := gw.signal(syscall.SIGTERM); got != 0 {
		t.Errorf("exit status %d", got)
	}
	if got := <-answer; !strings.HasPrefix(got, "5.03") {
		t.Errorf("held at the end of the gateway: %q", got)
	}
}
