package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/oscore"
)

// wiretap passes datagrams between a client and a server of a group, and looks at
// every nonce. It never stops: clients and servers come and go.
type wiretap struct {
	t    *testing.T
	conn *net.UDPConn

	mu     sync.Mutex
	server netip.AddrPort                  // zero: it is down, and what comes for it waits
	held   []func(netip.AddrPort)          // what waits
	ups    map[netip.AddrPort]*net.UDPConn // to the server, by client
	nonces map[string][]byte               // what each protected
	asked  map[string]*coap.Message        // requests, by token
	served []*coap.Message                 // requests that were answered, in this order
	passed int
	hook   func() // called for each message before it goes on; nil: nothing
	wg     sync.WaitGroup
}

func newWiretap(t *testing.T) *wiretap {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	w := &wiretap{
		t: t, conn: conn, ups: map[netip.AddrPort]*net.UDPConn{}, nonces: map[string][]byte{}, asked: map[string]*coap.Message{},
	}
	w.wg.Go(w.fromClients)
	t.Cleanup(func() {
		_ = conn.Close()
		w.mu.Lock()
		for _, up := range w.ups {
			_ = up.Close()
		}
		w.mu.Unlock()
		w.wg.Wait()
	})
	return w
}

func (w *wiretap) addr() string { return w.conn.LocalAddr().String() }

// hold has what comes for the server wait, and says where that was.
func (w *wiretap) hold() (server string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	server = w.server.String()
	w.server = netip.AddrPort{}
	return server
}

// to says where the server is now.
func (w *wiretap) to(addr string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.server = netip.MustParseAddrPort(addr)
	for _, send := range w.held {
		send(w.server)
	}
	w.held = nil
}

func (w *wiretap) fromClients() {
	buf := make([]byte, 2048)
	for {
		n, from, err := w.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		w.look(buf[:n])
		w.mu.Lock()
		up := w.ups[from]
		if up == nil {
			if up, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
				w.mu.Unlock()
				w.t.Error(err)
				return
			}
			w.ups[from] = up
			w.wg.Go(func() { w.fromServer(up, from) })
		}
		b := bytes.Clone(buf[:n])
		send := func(server netip.AddrPort) { _, _ = up.WriteToUDPAddrPort(b, server) }
		if w.server.IsValid() {
			send(w.server)
		} else {
			w.held = append(w.held, send)
		}
		w.mu.Unlock()
	}
}

func (w *wiretap) fromServer(up *net.UDPConn, client netip.AddrPort) {
	buf := make([]byte, 2048)
	for {
		n, _, err := up.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		w.look(buf[:n])
		_, _ = w.conn.WriteToUDPAddrPort(buf[:n], client)
	}
}

// look notes the nonce of a message: the Sender ID and Partial IV, under the keys of a
// Gid and of a Sender ID. A message that is repeated is the same to the last byte.
//
// draft-ietf-core-oscore-groupcomm-28, Section 3.3.
func (w *wiretap) look(b []byte) {
	m, err := coap.DecodeMessage(bytes.Clone(b))
	if err != nil {
		w.t.Errorf("no CoAP message: %v", err)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.passed++
	request := m.Code.IsRequest()
	if w.hook != nil && m.Code != coap.Empty {
		w.hook()
	}
	if !m.Options.Has(coap.OSCOREOption) {
		return
	}
	o, err := optionOf(m)
	if err != nil {
		w.t.Error(err)
		return
	}
	asked, _ := optionOf(w.asked[string(m.Token)])
	nonce := fmt.Sprintf("Gid %x, key and Partial IV %x of Sender ID %x", o.KIDContext, o.PIV, o.KID)
	switch {
	case request:
		w.asked[string(m.Token)] = m
	case o.PIV == nil:
		nonce = fmt.Sprintf("Gid %x, key of the server, Partial IV %x of Sender ID %x", asked.KIDContext, asked.PIV, asked.KID)
	case o.KIDContext == nil:
		nonce = fmt.Sprintf("Gid %x, key and Partial IV %x of the server", asked.KIDContext, o.PIV)
	}
	if before, used := w.nonces[nonce]; used && !bytes.Equal(before, m.Payload) {
		w.t.Errorf("two messages under one nonce: %s", nonce)
	}
	w.nonces[nonce] = bytes.Clone(m.Payload)
	if asked := w.asked[string(m.Token)]; !request && asked != nil {
		w.served = append(w.served, asked)
	}
}

// optionOf is the OSCORE option of a message; nil has an empty one.
func optionOf(m *coap.Message) (oscore.Option, error) {
	if m == nil {
		return oscore.Option{}, nil
	}
	value, _ := m.Options.Get(coap.OSCOREOption)
	return oscore.DecodeOption(value)
}

// kill kills a node with the n-th message that passes from now on, before that goes on.
func (w *wiretap) kill(n int, victim *life) {
	w.mu.Lock()
	defer w.mu.Unlock()
	dead := victim.now
	w.hook = func() {
		if n--; n != 0 {
			return
		}
		_ = dead.cmd.Process.Kill()
		if victim.what == "serve" {
			w.server = netip.AddrPort{}
		}
	}
}

// replay sends requests that were answered before to the server again, with other
// message IDs, and wants each refused.
func (w *wiretap) replay(t *testing.T, n int) {
	t.Helper()
	w.mu.Lock()
	server, all := w.server, w.served
	w.mu.Unlock()
	r := &raw{t: t, conn: udp(t, server.String())}
	for i := range min(n, len(all)) {
		m := all[rand.N(len(all))].Clone()
		if i == 0 {
			m = all[len(all)-1].Clone() // the newest is what a crash would forget
		}
		answer := r.send(m)
		if answer.Options.Has(coap.OSCOREOption) || answer.Code != coap.Unauthorized {
			t.Errorf("a request of before is answered %v %q", answer.Code, answer.Payload)
		}
	}
}

// life is a node that is killed and started again with one state file.
type life struct {
	s     *site
	what  string
	flags []string
	now   *player
	id    string // Sender ID, the same in all lives
	n     int    // lives
}

// start starts the node again: with the membership that it had.
func (l *life) start(flags ...string) step {
	l.s.t.Helper()
	args := []string{"node", l.what, "--config", l.s.config, "--client", l.s.client, "--name", l.what, "--json"}
	if l.n++; l.what == "send" {
		// What it says is new: the same once more under one nonce would not be seen.
		args = append(args, "--payload", fmt.Sprintf("in life %d", l.n))
	}
	l.now = &player{child: start(l.s.t, append(append(args, l.flags...), flags...)...)}
	begun := l.now.event(func(e step) bool { return e.Event == "joined" || e.Event == "resumed" })
	switch {
	case l.id == "" && begun.Event == "joined":
		l.id = *begun.SenderID
	case begun.Event != "resumed" || *begun.SenderID != l.id:
		l.s.t.Errorf("%s: %s as %s, want to go on as %s", l.what, begun.Event, *begun.SenderID, l.id)
	}
	return begun
}

// TestTalkKilled: a node that asks and a node that answers, each with a state file, are
// killed at random moments and started again. They go on as who they were, under the
// keys that they had, in group and in pairwise mode, and across a rekey; no nonce
// protects two messages, and no request is served twice.
//
// draft-ietf-core-oscore-groupcomm-28, Section 2.6.1.
func TestTalkKilled(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.run()
	tap := newWiretap(t)
	server := &life{s: s, what: "serve", flags: []string{"--state", filepath.Join(s.dir, "server"), "--multicast", "none"}}
	sender := &life{s: s, what: "send", flags: []string{
		"--state", filepath.Join(s.dir, "sender"), "--to", tap.addr(), "--count", "0", "--every", "1ms", "--wait", "60s",
		"--path", "/echo", "--method", "POST",
	}}
	serve := func() {
		server.start()
		tap.to(server.now.event(func(e step) bool { return e.Event == "serving" }).Addr)
	}
	modes := [][]string{nil, {"--pairwise", "--peer", ""}}
	answered := func(gid string) {
		t.Helper()
		sender.now.event(func(e step) bool {
			if e.Event == "answer" && e.Error != "" {
				t.Fatalf("an answer that is none: %+v", e)
			}
			return e.Event == "answer" && e.Code == coap.Changed.String() && (gid == "" || e.Gid == gid)
		})
	}
	serve()
	modes[1][2] = server.id
	gid := sender.start(modes[0]...).Gid
	answered(gid)
	for n := range talkKills {
		if n == talkKills/2 {
			// The rekey comes while the sender is away, and the server is told of it.
			sender.now.signal(syscall.SIGKILL)
			version := s.rekey()
			gid = server.now.event(func(e step) bool { return e.Event == "rekeyed" && *e.Version == version }).Gid
			sender.start(modes[n%2]...)
			answered(gid)
		}
		victim := sender
		if n%3 == 2 {
			victim = server
		}
		tap.kill(1+rand.N(20), victim)
		victim.now.wait()
		if victim == server {
			serve()
			tap.replay(t, 8)
		} else {
			sender.start(modes[n%2]...)
		}
		answered(gid)
	}
	tap.replay(t, 8)
	// A node that is stopped orderly goes on in the same way, and one that left joins
	// anew.
	if code := sender.now.signal(syscall.SIGINT); code != 0 {
		t.Errorf("exit status %d", code)
	}
	sender.start("--leave-on-exit")
	answered(gid)
	if code := sender.now.signal(syscall.SIGINT); code != 0 {
		t.Errorf("exit status %d", code)
	}
	sender.id = ""
	at := tap.hold()
	newest := *sender.start().Version
	server.now.event(func(e step) bool { return e.Event == "rekeyed" && *e.Version >= newest }) // after the leave
	tap.to(at)
	answered("")
	tap.mu.Lock()
	defer tap.mu.Unlock()
	t.Logf("%d kills, %d messages, %d nonces", talkKills, tap.passed, len(tap.nonces))
}

// TestTalkState: what does not go with a state file is refused, and says what to do.
func TestTalkState(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.run()
	file := filepath.Join(s.dir, "state")
	args := func(flags ...string) []string {
		return append([]string{"node", "join", "--config", s.config, "--client", s.client, "--state", file}, flags...)
	}
	first := start(t, args()...)
	first.says("Ctrl-C ends it")
	run(t, 1, args()...) // another process has it
	if code := first.signal(syscall.SIGINT); code != 0 {
		t.Errorf("exit status %d", code)
	}
	run(t, 1, args("--roles", "requester")...)
	run(t, 1, args("--oscore")...)
	run(t, 1, args("--mqtt")...)
	run(t, 1, args("--interface", "draft-03")...)
	second := start(t, args()...)
	second.says("Goes on with the membership")
	// Evicted, it joins anew the next time.
	for _, m := range s.show().Members {
		run(t, 0, "group", "evict", "sensors", m.Node, "--config", s.config)
	}
	if second.wait() == 0 {
		t.Error("exit status 0 after an eviction")
	}
	run(t, 0, args("--once")...)

	// The OSCORE profile goes on as well.
	file = filepath.Join(s.dir, "state of OSCORE")
	third := start(t, args("--oscore")...)
	third.says("Ctrl-C ends it")
	third.signal(syscall.SIGKILL)
	fourth := start(t, args("--oscore")...)
	fourth.says("Goes on with the membership")
	fourth.says("Ctrl-C ends it")
	s.write("state of OSCORE", "something else")
	fourth.signal(syscall.SIGKILL)
	if c := run(t, 1, args("--oscore")...); !bytes.Contains([]byte(c.err.String()), []byte("join anew")) {
		t.Errorf("a damaged file: %s", &c.err)
	}
}
