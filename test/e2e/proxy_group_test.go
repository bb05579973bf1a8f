package e2e

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/test/peers"
)

// Options of draft-ietf-core-groupcomm-proxy-07, with the numbers that it asks for.
const (
	multicastTimeout coap.OptionID = 2
	groupETag        coap.OptionID = 24
	replyFrom        coap.OptionID = 248
)

// grouped is three servers in a group behind a gateway, and a client of its proxy
// over DTLS.
type grouped struct {
	t       *testing.T
	s       *site
	servers *peers.Servers
	client  *peers.Peer

	mu    sync.Mutex
	asked []*coap.Message                            // by multicast, as the first server got it
	mute  bool                                       // the servers do not answer
	reply func(i int, m *coap.Message) *coap.Message // nil: state
}

func newGrouped(t *testing.T) *grouped {
	t.Helper()
	g := &grouped{t: t, s: newSite(t)}
	g.servers = peers.Group(t, "239.255.77.4", 3, func(i int, m *coap.Message) []*coap.Message {
		g.mu.Lock()
		defer g.mu.Unlock()
		if i == 0 {
			g.asked = append(g.asked, m)
		}
		if g.mute {
			return nil
		}
		if g.reply != nil {
			return []*coap.Message{g.reply(i, m)}
		}
		return []*coap.Message{g.state(m, i, 1, "on")}
	})
	g.s.may = ", proxy"
	g.s.more = fmt.Sprintf(`proxy:
  allow:
    - {target: "coap://%s", interface: lo, addresses: [239.255.77.4/32, 127.0.0.0/8]}
    - {target: "coap://%s"}
  reverse:
    - {path: /lamps, upstream: "coap://%s/lamp", interface: lo, addresses: [239.255.77.4/32, 127.0.0.0/8]}
`, g.servers.At, g.servers.Addr(0), g.servers.At)
	g.s.configure()
	g.s.run()
	own, err := node.LoadClient(g.s.client)
	if err != nil {
		t.Fatal(err)
	}
	g.client = peers.Dial(t, g.s.at["coaps"], own.Identity, own.Key.Bytes())
	return g
}

// state is what the i-th server says in answer to a request, with its number where
// that observes.
func (g *grouped) state(asked *coap.Message, i int, number uint32, what string) *coap.Message {
	m := &coap.Message{Type: coap.NonConfirmable, ID: uint16(i)<<8 | uint16(number), Code: coap.Content, Token: asked.Token, Payload: fmt.Appendf(nil, "lamp %d is %s", i, what)}
	if v, ok := asked.Options.Uint(coap.ObserveOption); ok && v == 0 {
		m.Options.SetUint(coap.ObserveOption, number)
	}
	m.Options.Add(groupETag, []byte("lie"))
	return m
}

// request is one to the group; timeout below 0: without Multicast-Timeout.
func (g *grouped) request(token string, timeout int) *coap.Message {
	m := &coap.Message{Type: coap.Confirmable, Code: coap.GET, Token: []byte(token)}
	m.Options.AddString(coap.ProxyUri, fmt.Sprintf("coap://%s/lamp", g.servers.At))
	m.Options.Add(groupETag, []byte("old"))
	if timeout >= 0 {
		m.Options.SetUint(multicastTimeout, uint32(timeout))
	}
	return m
}

func (g *grouped) newest() *coap.Message {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.asked[len(g.asked)-1]
}

func (g *grouped) over(what string) {
	g.t.Helper()
	eventually(g.t, what, func() bool { return metric(g.t, g.s, "groupgate_proxy_waiting") == 0 })
}

// all wants the responses of all servers, each with who it is from.
func (g *grouped) all(token string) { g.t.Helper(); g.allOf(g.client, token) }

func (g *grouped) allOf(client *peers.Peer, token string) {
	g.t.Helper()
	for body, m := range client.Responses(3, token) {
		var i int
		if _, err := fmt.Sscanf(body, "lamp %d is on", &i); err != nil {
			g.t.Fatalf("%q", body)
		}
		cri, _ := m.Options.Get(replyFrom)
		at := g.servers.Addr(i)
		want := append(append([]byte{0x82, 0x20, 0x82, 0x44}, at.Addr().AsSlice()...), 25, byte(at.Port()>>8), byte(at.Port()))
		if m.Code != coap.Content || string(cri) != string(want) || m.Options.Has(groupETag) {
			g.t.Errorf("%q: %v %v", body, m.Code, m.Options)
		}
	}
}

// asks runs the commands of docs/proxy.md, at once.
func (g *grouped) asks() {
	g.t.Helper()
	_, port, err := net.SplitHostPort(g.s.at["coaps"])
	if err != nil {
		g.t.Fatal(err)
	}
	here := strings.NewReplacer("192.0.2.5/temperature", g.servers.Addr(0).String()+"/lamp", " 1m", " 1s",
		"239.1.2.3:5693", g.servers.At.String(), " 5s", " 1s", "--gateway 192.0.2.1", "--gateway 127.0.0.1 --coaps-port "+port,
		"--identity client", "--identity clientA", "client.key", filepath.Join(g.s.dir, "client.key"))
	var all []*child
	for line := range strings.Lines(read(g.t, "../../docs/proxy.md")) {
		if args, ok := strings.CutPrefix(line, "gateway node ask "); ok {
			all = append(all, start(g.t, append([]string{"node", "ask"}, strings.Fields(here.Replace(args))...)...))
		}
	}
	if len(all) != 3 {
		g.t.Fatalf("%d commands in docs/proxy.md", len(all))
	}
	watching := all[2]
	watching.says(`2\.05 "lamp 0 is on"$`)
	if status := watching.wait(); status != 0 {
		g.t.Errorf("%s: exit status %d\n%s%s", watching.name, status, &watching.out, &watching.err)
	}
	for _, c := range all[:2] {
		if status := c.wait(); status != 0 {
			g.t.Errorf("%s: exit status %d\n%s%s", c.name, status, &c.out, &c.err)
		}
		for i := range 3 {
			c.says(fmt.Sprintf(`%v answers: 2\.05 "lamp %d is on"$`, g.servers.Addr(i), i))
		}
		if n := strings.Count(c.out.String(), "\n"); n != 3 {
			g.t.Errorf("%d lines:\n%s", n, &c.out)
		}
	}
	// A group, without saying for how long.
	c := run(g.t, 1, append([]string{"node", "ask"}, strings.Fields(here.Replace("/lamps --gateway 192.0.2.1 --identity client --key-file client.key"))...)...)
	if !strings.Contains(c.err.String(), "--wait") {
		g.t.Errorf("%s", &c.err)
	}
}

// TestProxiedGroup: a node asks a group over DTLS through the gateway: every server's
// response comes, each with who it is from, until the time that the node named; an
// Early Stop ends it before; observed, the servers' notifications follow until the node
// rejects one (draft-ietf-core-groupcomm-proxy-07).
func TestProxiedGroup(t *testing.T) {
	t.Parallel()
	g := newGrouped(t)
	c := g.client
	of := func(token string) func(*coap.Message) bool {
		return func(m *coap.Message) bool { return m.Code != coap.Empty && string(m.Token) == token }
	}

	c.Send(g.request("no time", -1))
	r := c.Receive("a refusal", of("no time"))
	if v, ok := r.Options.Get(multicastTimeout); r.Code != coap.BadRequest || !ok || len(v) != 0 || len(r.Payload) == 0 {
		t.Errorf("without Multicast-Timeout: %v %v %q", r.Code, r.Options, r.Payload)
	}

	c.Send(g.request("all", 60))
	g.all("all")
	if m := g.newest(); m.Type != coap.NonConfirmable || m.Options.Has(multicastTimeout) || m.Options.Has(groupETag) || m.Options.Has(coap.ProxyUri) || strings.Join(m.Options.Path(), "/") != "lamp" {
		t.Errorf("the group got %v %v", m.Type, m.Options)
	}

	// Early Stop: the token of the request, no address.
	stop := &coap.Message{Type: coap.Confirmable, Code: coap.GET, Token: []byte("all")}
	stop.Options.SetUint(multicastTimeout, 0)
	c.Send(stop)
	if m := c.Receive("an acknowledgement", func(m *coap.Message) bool { return m.ID == stop.ID && m.Type != coap.NonConfirmable }); m.Type != coap.Acknowledgement || m.Code != coap.Empty {
		t.Errorf("an Early Stop Request: %v %v", m.Type, m.Code)
	}
	g.over("an Early Stop")
	g.servers.Say(1, g.state(g.newest(), 1, 9, "late"))

	// The same group by a path.
	byPath := &coap.Message{Type: coap.Confirmable, Code: coap.GET, Token: []byte("path")}
	byPath.Options.SetPath("lamps")
	byPath.Options.SetUint(multicastTimeout, 1)
	c.Send(byPath)
	g.all("path")
	g.over("the time that the node named")
	g.servers.Say(1, g.state(g.newest(), 1, 9, "late"))

	g.asks()

	// Observed.
	watch := g.request("watch", 1)
	watch.Options.SetUint(coap.ObserveOption, 0)
	c.Send(watch)
	g.all("watch") // and nothing that was late before it
	registered := g.newest()
	g.over("the time of the registration")
	var last *coap.Message
	for i := range 3 {
		g.servers.Say(i, g.state(registered, i, 2, "off"))
		last = c.Receive("a notification", func(m *coap.Message) bool {
			if strings.HasSuffix(string(m.Payload), "late") {
				t.Errorf("relayed: %q", m.Payload)
			}
			return string(m.Payload) == fmt.Sprintf("lamp %d is off", i)
		})
		if v, ok := last.Options.Uint(coap.ObserveOption); !ok || v != 2 || !last.Options.Has(replyFrom) || string(last.Token) != "watch" {
			t.Errorf("%v", last.Options)
		}
	}
	c.Send(&coap.Message{Type: coap.Reset, ID: last.ID})
	eventually(t, "the group is told that nobody observes", func() bool {
		m := g.newest()
		v, ok := m.Options.Uint(coap.ObserveOption)
		return ok && v == 1 && string(m.Token) == string(registered.Token)
	})

	// Through another gateway: a chain (Section 8).
	edge := newSite(t)
	edge.may = ", proxy"
	edge.more = fmt.Sprintf("proxy:\n  allow:\n    - {target: \"coap://%s\", next: \"coaps://%s\", identity: clientA, key_file: %s}\n",
		g.servers.At, g.s.at["coaps"], filepath.Join(g.s.dir, "client.key"))
	edge.configure()
	edge.run()
	own, err := node.LoadClient(edge.client)
	if err != nil {
		t.Fatal(err)
	}
	far := peers.Dial(t, edge.at["coaps"], own.Identity, own.Key.Bytes())
	short := g.request("short", 1)
	far.Send(short)
	if r := far.Receive("a refusal", of("short")); r.Code != coap.ProxyingNotSupported || !r.Options.Has(multicastTimeout) {
		t.Errorf("too short a time for a chain: %v %v", r.Code, r.Options)
	}
	far.Send(g.request("far", 60))
	g.allOf(far, "far")
	stop.Token = []byte("far")
	far.Send(stop)
	g.over("an Early Stop through the chain")
}
