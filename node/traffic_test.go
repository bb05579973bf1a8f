package node

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/oscore"
	"github.com/seed4911071e/groupgate/test/ports"
)

// band is a group with members that talk to each other over loopback; each has a
// fake Group Manager of its own, and all of those tell the same.
type band struct {
	t       *testing.T
	multi   netip.AddrPort
	members []*player
}

// player is one of them.
type player struct {
	gm *fakeGM
	m  *Member
	t  *Traffic
}

func newBand(t *testing.T, names ...string) *band {
	t.Helper()
	b := &band{t: t}
	// A port that nobody has; the address is that of all CoAP nodes.
	b.multi = netip.AddrPortFrom(netip.MustParseAddr("224.0.1.187"), uint16(ports.Free(t)))
	first := newFakeGM(t)
	for i := range names {
		gm := newFakeGM(t)
		gm.key, gm.cred, gm.joins = first.key, first.cred, i
		p := &player{gm: gm}
		sync := func(Event) {
			if p.t == nil {
				return
			}
			if err := p.t.Sync(); err != nil {
				t.Error(err)
			}
		}
		p.m, _ = joinedMember(t, gm, func(c *Config) { c.OnEvent = sync })
		var err error
		if p.t, err = NewTraffic(p.m, TrafficConfig{Grace: 10 * time.Second, SequenceLimit: 1000}); err != nil {
			t.Fatal(err)
		}
		if err := p.t.Sync(); err != nil {
			t.Fatal(err)
		}
		b.members = append(b.members, p)
	}
	b.introduce()
	return b
}

// introduce has the Group Managers know the credentials of all.
func (b *band) introduce() {
	var peers []Peer
	for _, p := range b.members {
		s, ok := p.m.State()
		if !ok {
			continue
		}
		peers = append(peers, Peer{SenderID: s.SenderID, Roles: s.Roles, Cred: p.m.Cred()})
	}
	for _, p := range b.members {
		p.gm.mu.Lock()
		p.gm.peers = peers
		p.gm.mu.Unlock()
	}
}

// rekey moves all Group Managers on; members learn it when they ask.
func (b *band) rekey(v groupcomm.Version) {
	for _, p := range b.members {
		p.gm.mu.Lock()
		p.gm.num = v
		p.gm.mu.Unlock()
	}
}

// serve has a member answer "its Sender ID, the path".
func (b *band) serve(p *player, change func(*GroupServerConfig)) (*GroupServer, *heard) {
	b.t.Helper()
	h := &heard{told: make(chan struct{}, 100)}
	cfg := GroupServerConfig{
		Traffic: p.t, Multicast: b.multi, Leisure: time.Millisecond, OnServed: h.add,
		Handle: func(req *coap.Message, _ *oscore.GroupRequest) *coap.Message {
			s, _ := p.m.State()
			return &coap.Message{Code: coap.Content, Payload: append(slices.Clone(s.SenderID), req.Options.Path()[0]...)}
		},
	}
	if change != nil {
		change(&cfg)
	}
	s, err := ListenGroup(b.t.Context(), cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.t.Context())
	over := make(chan error, 1)
	go func() { over <- s.Run(ctx) }()
	b.t.Cleanup(func() {
		cancel()
		if err := <-over; err != nil {
			b.t.Error(err)
		}
	})
	return s, h
}

// heard keeps what a server told.
type heard struct {
	mu   sync.Mutex
	all  []Served
	told chan struct{}
}

func (h *heard) add(s Served) {
	h.mu.Lock()
	h.all = append(h.all, s)
	h.mu.Unlock()
	h.told <- struct{}{}
}

func (h *heard) errors() (errs []error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.all {
		errs = append(errs, s.Err)
	}
	return errs
}

func (b *band) client(p *player) *GroupClient {
	b.t.Helper()
	c, err := DialGroup(b.t.Context(), p.t, "", "")
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = c.Close() })
	return c
}

func request(path string) *coap.Message {
	m := &coap.Message{Code: coap.GET}
	m.Options.SetPath(path)
	return m
}

// all sends by multicast until the given members have answered.
func (b *band) all(c *GroupClient, path string, ids ...byte) (gids [][]byte) {
	b.t.Helper()
	ctx, done := context.WithCancel(b.t.Context())
	defer done()
	var got []byte
	err := c.Send(ctx, b.multi, nil, request(path), 20*time.Second, func(a Answer) {
		if a.Err != nil {
			b.t.Errorf("answer of %v: %v", a.From, a.Err)
			return
		}
		if want := append(slices.Clone(a.Who.KID), path...); !bytes.Equal(a.Message.Payload, want) || a.Who.Mode != oscore.GroupMode {
			b.t.Errorf("answer of %x: %q in %v mode", a.Who.KID, a.Message.Payload, a.Who.Mode)
		}
		gids = append(gids, a.Who.Gid)
		if got = append(got, a.Who.KID[0]); len(got) == len(ids) {
			done()
		}
	})
	if err != nil && !errors.Is(err, context.Canceled) {
		b.t.Fatal(err)
	}
	slices.Sort(got)
	if !bytes.Equal(got, ids) {
		b.t.Fatalf("answers of %x, want %x", got, ids)
	}
	return gids
}

// TestTrafficMulticast: one member asks by IP multicast on loopback, two answer; a
// rekey in between is followed by whoever meets a Gid that it does not know; and who
// leaves reads nothing any more.
func TestTrafficMulticast(t *testing.T) {
	b := newBand(t, "client", "one", "two")
	client := b.client(b.members[0])
	b.serve(b.members[1], nil)
	_, h := b.serve(b.members[2], nil)
	b.all(client, "before", 0x26, 0x27)

	b.rekey(6)
	if err := b.members[0].m.Poll(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, gid := range b.all(client, "after", 0x26, 0x27) {
		if !bytes.Equal(gid, gidOf(6)) {
			t.Errorf("answered under %x", gid)
		}
	}
	for _, err := range h.errors() {
		if err != nil {
			t.Error(err)
		}
	}

	// The second server leaves; what it held is of no use to it.
	if err := b.members[2].m.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.rekey(7)
	if err := b.members[0].m.Poll(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.all(client, "left", 0x26)
	if gid := b.members[2].t.Group().Gid(); gid != nil {
		t.Errorf("who left holds Gid %x", gid)
	}
}

// TestTrafficUnicast: pairwise mode by unicast, a Sender ID that is not known, a
// retransmission that is answered once more with the same bytes, and a challenge that
// is answered in pairwise mode.
func TestTrafficUnicast(t *testing.T) {
	b := newBand(t, "client", "server")
	server, h := b.serve(b.members[1], func(c *GroupServerConfig) { c.Multicast = netip.AddrPort{} })
	client := b.client(b.members[0])
	id := groupcomm.SenderID{0x26}
	ask := func(to *groupcomm.SenderID) Answer {
		t.Helper()
		var got []Answer
		if err := client.Send(t.Context(), server.Addr(), to, request("x"), 20*time.Second, func(a Answer) { got = append(got, a) }); err != nil {
			t.Fatal(err)
		}
		if len(got) != 1 {
			t.Fatalf("%d answers", len(got))
		}
		return got[0]
	}
	for _, to := range []*groupcomm.SenderID{nil, &id} {
		a := ask(to)
		if a.Err != nil || string(a.Message.Payload) != "\x26x" || a.Who.Mode != oscore.Mode(len(pointed(to))) {
			t.Errorf("answer: %+v", a)
		}
		<-h.told // after the answer: else what follows may be told before
	}
	// The Recipient Context is lost: the request is repeated with the challenge.
	b.members[1].t.Group().Forget([]byte{0x25})
	if a := ask(nil); a.Err != nil || a.Message.Code != coap.Content || a.Who.Mode != oscore.PairwiseMode {
		t.Errorf("after a challenge: %+v", a)
	}
	for range 2 {
		<-h.told
	}
	if errs := h.errors(); len(errs) != 4 || !errors.Is(errs[2], oscore.ErrNotFresh) {
		t.Errorf("the server tells %v", errs)
	}

	// The same confirmable message twice is served once.
	out := request("again")
	out.Type, out.ID, out.Token = coap.Confirmable, 77, []byte{1}
	m, x, err := b.members[0].t.Request(t.Context(), &id, out)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(server.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var answers [2][]byte
	for i := range answers {
		if _, err := conn.Write(raw); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 2000)
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		answers[i] = buf[:n]
	}
	if !bytes.Equal(answers[0], answers[1]) {
		t.Error("a retransmission is answered otherwise")
	}
	r, err := coap.DecodeMessage(answers[0])
	if err != nil || r.Type != coap.Acknowledgement || r.ID != 77 {
		t.Fatalf("answer %+v: %v", r, err)
	}
	if _, _, err := x.Unprotect(nil, r); err != nil {
		t.Error(err)
	}
}

func pointed(id *groupcomm.SenderID) groupcomm.SenderID {
	if id == nil {
		return nil
	}
	return *id
}

// TestTrafficErrors: what a server may say without protection, and silence by
// multicast.
func TestTrafficErrors(t *testing.T) {
	b := newBand(t, "client", "server")
	server, h := b.serve(b.members[1], nil)
	b.members[1].gm.mu.Lock()
	b.members[1].gm.peers = nil // the Group Manager does not tell it who the client is
	b.members[1].gm.mu.Unlock()
	client := b.client(b.members[0])
	var got []Answer
	err := client.Send(t.Context(), server.Addr(), nil, request("x"), 20*time.Second, func(a Answer) { got = append(got, a) })
	if err != nil || len(got) != 1 || !errors.Is(got[0].Err, oscore.ErrUnprotected) {
		t.Fatalf("answers %+v: %v", got, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	<-h.told // the one by unicast
	go func() {
		<-h.told
		cancel()
	}()
	got = nil
	err = client.Send(ctx, b.multi, nil, request("x"), 20*time.Second, func(a Answer) { got = append(got, a) })
	if !errors.Is(err, context.Canceled) || got != nil {
		t.Errorf("by multicast: %+v, %v", got, err)
	}
	if _, err := ListenGroup(t.Context(), GroupServerConfig{}); err == nil {
		t.Error("a server without traffic")
	}
	for _, at := range []string{"127.0.0.1:5683", "224.0.1.187:0", "[ff02::fd]:5683"} {
		_, err := ListenGroup(t.Context(), GroupServerConfig{
			Traffic: b.members[0].t, Handle: func(*coap.Message, *oscore.GroupRequest) *coap.Message { return nil },
			Multicast: netip.MustParseAddrPort(at),
		})
		if err == nil {
			t.Errorf("multicast at %s", at)
		}
	}
	if _, err := DialGroup(t.Context(), b.members[0].t, "", "no-such-interface"); err == nil {
		t.Error("an interface that does not exist")
	}
}

// TestTrafficNewSenderID: numbers that are used up are answered with a new Sender ID
// from the Group Manager.
//
// draft-ietf-core-oscore-groupcomm-28, Section 2.6.2.
func TestTrafficNewSenderID(t *testing.T) {
	p := newBand(t, "client").members[0]
	var err error
	if p.t, err = NewTraffic(p.m, TrafficConfig{SequenceLimit: 2}); err != nil {
		t.Fatal(err)
	}
	if err := p.t.Sync(); err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct{ kid, piv byte }{{0x25, 0}, {0x25, 1}, {0x26, 0}, {0x26, 1}, {0x27, 0}} {
		m, _, err := p.t.Request(t.Context(), nil, request("x"))
		if err != nil {
			t.Fatal(err)
		}
		value, _ := m.Options.Get(coap.OSCOREOption)
		o, err := oscore.DecodeOption(value)
		if err != nil || !bytes.Equal(o.KID, []byte{want.kid}) || !bytes.Equal(o.PIV, []byte{want.piv}) {
			t.Errorf("request %d: %+v, %v", i, o, err)
		}
	}
}
