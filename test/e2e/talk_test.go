package e2e

import (
	"errors"
	"net"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/oscore"
	"github.com/seed4911071e/groupgate/test/ports"
)

// ear hears what is sent to a multicast address on the loopback interface.
type ear struct {
	mu  sync.Mutex
	all []*coap.Message
}

// overhear opens a multicast address that nobody else has.
func overhear(t *testing.T) (string, *ear) {
	t.Helper()
	list, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(list, func(i net.Interface) bool { return i.Flags&net.FlagLoopback != 0 })
	if i < 0 {
		t.Fatal("no loopback interface")
	}
	at := &net.UDPAddr{IP: net.IPv4(224, 0, 1, 187), Port: ports.Free(t)}
	conn, err := net.ListenMulticastUDP("udp4", &list[i], at)
	if err != nil {
		t.Fatal(err)
	}
	e := &ear{}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 2048)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			if m, err := coap.DecodeMessage(slices.Clone(buf[:n])); err == nil {
				e.mu.Lock()
				e.all = append(e.all, m)
				e.mu.Unlock()
			}
		}
	})
	t.Cleanup(func() { _ = conn.Close(); wg.Wait() })
	return at.String(), e
}

// under waits for a request under a Gid, in hexadecimal.
func (e *ear) under(t *testing.T, gid string) (found *coap.Message) {
	t.Helper()
	eventually(t, "a request under Gid "+gid, func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		for _, m := range slices.Backward(e.all) {
			value, _ := m.Options.Get(coap.OSCOREOption)
			o, err := oscore.DecodeOption(value)
			if err == nil && o.KIDContext != nil && gid == groupcomm.Gid(o.KIDContext).String() {
				found = m
				return true
			}
		}
		return false
	})
	return found
}

// talk plays a node that serves or sends in the group.
func (s *site) talk(what, name string, flags ...string) *player {
	s.t.Helper()
	args := append([]string{"node", what, "--config", s.config, "--client", s.client, "--name", name, "--json"}, flags...)
	p := &player{child: start(s.t, args...)}
	p.joined = p.event(func(e step) bool { return e.Event == "joined" })
	return p
}

// answered waits until the sender had answers of all the given nodes under one Gid
// that is none of those before, and returns that.
func (p *player) answered(before []string, nodes ...string) (gid string) {
	p.t.Helper()
	eventually(p.t, "answers of all", func() bool {
		got := map[string][]string{}
		for _, e := range p.steps() {
			if e.Event == "answer" && e.Error == "" && !slices.Contains(before, e.Gid) {
				got[e.Gid] = append(got[e.Gid], e.Payload)
			}
		}
		for at, names := range got {
			if !slices.ContainsFunc(nodes, func(n string) bool { return !slices.Contains(names, `"`+n+`"`) }) {
				gid = at
				return true
			}
		}
		return false
	})
	return gid
}

// TestTalk: two nodes serve, a third sends by IP multicast on loopback, each a program
// of its own with keys from its join. They follow a rekey while they do so; a member
// that leaves reads nothing that is sent afterwards; and a server that leaves is
// missed, but not the other.
func TestTalk(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.run()
	at, heard := overhear(t)
	one := s.talk("serve", "one", "--multicast", at, "--leave-on-exit")
	two := s.talk("serve", "two", "--multicast", at)
	for _, p := range []*player{one, two} {
		p.event(func(e step) bool { return e.Event == "serving" })
	}
	leaver := s.door().join()
	traffic, err := node.NewTraffic(leaver.Member, node.TrafficConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if err := traffic.Sync(); err != nil {
		t.Fatal(err)
	}
	sender := s.talk("send", "sender", "--to", at, "--count", "0", "--every", "100ms", "--wait", "400ms")

	first := sender.answered(nil, "one", "two")
	// The leaver may have to learn of the sender and of a rekey before.
	eventually(t, "the leaver reads while it is a member", func() bool {
		if err := leaver.Poll(soon(t)); err != nil {
			t.Fatal(err)
		}
		if err := traffic.Sync(); err != nil {
			t.Fatal(err)
		}
		m, _, err := traffic.ReadRequest(soon(t), heard.under(t, leaver.state().Gid.String()))
		return err == nil && m.Code == coap.GET
	})

	run(t, 0, "group", "rekey", "sensors", "--config", s.config)
	second := sender.answered([]string{first}, "one", "two")

	// The leaver keeps what it holds, as somebody would who means no good.
	if err := leaver.Poll(soon(t)); err != nil {
		t.Fatal(err)
	}
	if err := traffic.Sync(); err != nil {
		t.Fatal(err)
	}
	held := leaver.state().Gid.String()
	if err := leaver.Leave(soon(t)); err != nil {
		t.Fatal(err)
	}
	third := sender.answered([]string{first, second, held}, "one", "two")
	if _, x, err := traffic.Group().UnprotectRequest(nil, heard.under(t, third)); x != nil || !errors.Is(err, oscore.ErrContext) {
		t.Errorf("who left reads a request: %v", err)
	}

	if code := one.signal(syscall.SIGINT); code != 0 {
		t.Errorf("exit status %d", code)
	}
	sender.answered([]string{first, second, held, third}, "two")

	// Pairwise mode, by unicast.
	serving := two.event(func(e step) bool { return e.Event == "serving" })
	pair := s.talk("send", "pair", "--to", serving.Addr, "--pairwise", "--peer", *two.joined.SenderID,
		"--path", "/echo", "--method", "POST", "--payload", "hello", "--wait", "30s")
	answer := pair.event(func(e step) bool { return e.Event == "answer" })
	if answer.Mode != "pairwise" || answer.Code != coap.Changed.String() || answer.Payload != `"hello"` || *answer.SenderID != *two.joined.SenderID {
		t.Errorf("answer in pairwise mode: %+v", answer)
	}
	if code := pair.wait(); code != 0 {
		t.Errorf("exit status %d", code)
	}
}

// TestTalkFlags: what does not go together is refused before anything is sent.
func TestTalkFlags(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, flags := range [][]string{
		{"send", "--roles", "responder"},
		{"send", "--roles", "monitor"},
		{"send", "--once"},
		{"serve", "--roles", "requester"},
		{"serve", "--sleep", "10s"},
		{"serve", "--interface", "draft-03"},
	} {
		c := run(t, 2, append([]string{"node", flags[0], "--config", s.config, "--client", s.client}, flags[1:]...)...)
		if c.out.String() != "" {
			t.Errorf("%v: it began: %s", flags, &c.out)
		}
	}
	s.run()
	for _, flags := range [][]string{
		{"send", "--pairwise"}, // to a multicast address
		{"send", "--to", "nowhere"},
		{"send", "--peer", "xyz", "--pairwise", "--to", "127.0.0.1:5700"},
		{"send", "--pairwise", "--to", "127.0.0.1:5700"}, // nobody else is in the group
		{"serve", "--multicast", "127.0.0.1:5700"},
		{"serve", "--multicast-interface", "no-such"},
	} {
		run(t, 1, append([]string{"node", flags[0], "--config", s.config, "--client", s.client, "--leave-on-exit"}, flags[1:]...)...)
	}
}

// TestTalkCTR: a group whose messages are encrypted with AES-CTR and authenticated by
// their signatures alone talks as others do.
//
// draft-ietf-core-oscore-groupcomm-28, Section 2.1.7.
func TestTalkCTR(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.group = "    gp_enc_alg: A256CTR\n"
	s.configure()
	s.run()
	server := s.talk("serve", "server", "--multicast", "none")
	at := server.event(func(e step) bool { return e.Event == "serving" }).Addr
	sender := s.talk("send", "sender", "--to", at, "--path", "/echo", "--method", "POST", "--payload", "hello", "--wait", "30s")
	answer := sender.event(func(e step) bool { return e.Event == "answer" })
	if answer.Mode != "group" || answer.Code != coap.Changed.String() || answer.Payload != `"hello"` {
		t.Errorf("answer %+v", answer)
	}
}
