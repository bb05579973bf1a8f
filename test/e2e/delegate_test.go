package e2e

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
)

// plainNode is a legacy node: CoAP in a DTLS association that it opens, and nothing of
// ACE or OSCORE.
type plainNode struct {
	t    *testing.T
	name string
	key  []byte
	tr   node.Transport

	mu    sync.Mutex
	asked []string // "GET /t": what the gateway brought
}

// legacyNode makes the key of one.
func (s *site) legacyNode(name string) *plainNode {
	s.t.Helper()
	n := &plainNode{t: s.t, name: name, key: make([]byte, 16)}
	rand.Read(n.key)
	s.write(name+".key", hex.EncodeToString(n.key)+"\n")
	return n
}

// connect opens its association and says so.
func (n *plainNode) connect(at string) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), patience)
	defer cancel()
	tr, err := node.DialDTLS(ctx, at, []byte(n.name), n.key)
	if err != nil {
		n.t.Fatal(err)
	}
	n.use(tr)
}

// use answers and asks over an association.
func (n *plainNode) use(tr node.Transport) {
	n.t.Helper()
	n.tr = tr
	n.t.Cleanup(func() { _ = tr.Close() })
	tr.(node.Taker).Take(func(req *coap.Request) *coap.Response {
		path := "/" + strings.Join(req.Path(), "/")
		n.mu.Lock()
		n.asked = append(n.asked, req.Code.String()+" "+path)
		n.mu.Unlock()
		r := &coap.Response{Code: coap.Content, Payload: []byte(n.name + path)}
		r.Options.SetContentFormat(coap.TextPlain)
		return r
	})
	n.groups()
}

// groups is what the gateway tells the node about its groups.
func (n *plainNode) groups() string {
	n.t.Helper()
	req := &coap.Request{Code: coap.GET}
	req.Options.SetPath("gw", "groups")
	r := n.do(req)
	if r.Code != coap.Content {
		n.t.Fatalf("/gw/groups: %v", r.Code)
	}
	return string(r.Payload)
}

func (n *plainNode) do(req *coap.Request) *coap.Response {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), patience)
	defer cancel()
	r, err := n.tr.Do(ctx, req)
	if err != nil {
		n.t.Fatalf("%s: %v", n.name, err)
	}
	return r
}

// ask sends a request to a path at the gateway.
func (n *plainNode) ask(code coap.Code, path string) *coap.Response {
	n.t.Helper()
	req := &coap.Request{Code: code}
	req.Options.SetPath(coap.PathOf(path)...)
	return n.do(req)
}

func (n *plainNode) wasAsked() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.asked)
}

// delegates has the configuration name legacy nodes.
func (s *site) delegates(multicast string, more string, nodes ...*plainNode) {
	s.t.Helper()
	s.group += fmt.Sprintf("    network: {multicast: %q, leisure: 50ms, collect: 2s}\n", multicast)
	var b strings.Builder
	b.WriteString("delegates:\n")
	for _, n := range nodes {
		fmt.Fprintf(&b, `  - name: %[1]s
    auth: {psk_identity: %[1]s, psk_file: %[2]s}
    rps: 1000
%[3]s    groups:
      - {name: sensors, roles: [requester, responder], send_path: /g, resources: [{path: /t, methods: [GET]}]}
`, n.name, filepath.Join(s.dir, n.name+".key"), more)
	}
	s.more = b.String()
	s.configure()
}

// delegated waits until all delegates are joined.
func (s *site) delegated(n int) []admin.DelegateInfo {
	s.t.Helper()
	var list []admin.DelegateInfo
	eventually(s.t, "delegates joined", func() bool {
		list = *decode[[]admin.DelegateInfo](s.t, run(s.t, 0, "delegate", "list", "--json", "--config", s.config).out.String())
		joined := 0
		for _, d := range list {
			if d.State == "joined" {
				joined++
			}
		}
		return joined == n && len(list) == n
	})
	return list
}

// speaker is a member that speaks Group OSCORE itself, in this process.
type speaker struct {
	t       *testing.T
	member  *node.Member
	traffic *node.Traffic
	client  *node.GroupClient
}

// speaker joins and follows.
func (s *site) speaker() *speaker {
	s.t.Helper()
	sp := &speaker{t: s.t}
	var mu sync.Mutex
	j := s.door().join(func(c *node.Config) {
		c.WantCreds = true
		c.OnEvent = func(node.Event) {
			mu.Lock()
			defer mu.Unlock()
			if sp.traffic != nil {
				if err := sp.traffic.Sync(); err != nil {
					s.t.Error(err)
				}
			}
		}
	})
	sp.member = j.Member
	j.follow()
	traffic, err := node.NewTraffic(j.Member, node.TrafficConfig{Grace: patience})
	if err != nil {
		s.t.Fatal(err)
	}
	mu.Lock()
	sp.traffic = traffic
	mu.Unlock()
	if err := traffic.Sync(); err != nil {
		s.t.Fatal(err)
	}
	if sp.client, err = node.DialGroup(s.t.Context(), traffic, "", ""); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = sp.client.Close() })
	return sp
}

// ask sends a request and tells what came: "code payload" by Sender ID.
func (sp *speaker) ask(to string, peer *groupcomm.SenderID, code coap.Code, path string, wait time.Duration) map[string]string {
	sp.t.Helper()
	req := &coap.Message{Code: code}
	req.Options.SetPath(coap.PathOf(path)...)
	got := map[string]string{}
	ctx, cancel := context.WithTimeout(sp.t.Context(), patience)
	defer cancel()
	err := sp.client.Send(ctx, netip.MustParseAddrPort(to), peer, req, wait, func(a node.Answer) {
		if a.Err != nil {
			sp.t.Logf("answer from %v: %v", a.From, a.Err)
			return
		}
		got[groupcomm.SenderID(a.Who.KID).String()] = a.Message.Code.String() + " " + string(a.Message.Payload)
	})
	if err != nil {
		sp.t.Fatal(err)
	}
	return got
}

// TestDelegates: three legacy nodes are in the group by what the gateway does for
// them; members that speak Group OSCORE themselves ask them by multicast and by
// unicast, in either mode, and get answers of three Sender IDs; the legacy nodes ask
// the group in plain CoAP. A rekey changes nothing, nor does the gateway's end by
// SIGKILL; and a node that is taken from the configuration leaves.
func TestDelegates(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	at, _ := overhear(t)
	nodes := []*plainNode{s.legacyNode("meter-1"), s.legacyNode("meter-2"), s.legacyNode("meter-3")}
	s.delegates(at, "", nodes...)
	gw := s.run()
	list := s.delegated(3)
	ids := map[string]string{} // Sender ID → name
	names := map[string]bool{}
	for _, d := range list {
		ids[*d.SenderID], names[d.Node] = d.Delegate, true
	}
	if len(ids) != 3 || len(names) != 3 {
		t.Fatalf("Sender IDs %v, node names %v", ids, names)
	}
	for _, n := range nodes {
		n.connect(s.at["coaps"])
		if got := n.groups(); got != "sensors joined 0\n" {
			t.Errorf("/gw/groups %q", got)
		}
	}
	server := s.talk("serve", "server", "--multicast", at)
	server.event(func(e step) bool { return e.Event == "serving" })
	sp := s.speaker()
	exchange := func(what string) {
		t.Helper()
		eventually(t, what+": answers of all legacy nodes", func() bool {
			got := sp.ask(at, nil, coap.GET, "/t", 700*time.Millisecond)
			n := 0
			for id, answer := range got {
				if name, ok := ids[id]; ok && answer == "2.05 "+name+"/t" {
					n++
				}
			}
			return n == 3
		})
		for _, d := range s.delegated(3) {
			id := senderOf(t, d)
			for mode, peer := range map[string]*groupcomm.SenderID{"group": nil, "pairwise": &id} {
				got := sp.ask(d.Listen, peer, coap.GET, "/t", 10*time.Second)
				if len(got) != 1 || got[*d.SenderID] != "2.05 "+d.Delegate+"/t" {
					t.Errorf("%s: %s mode, unicast: %v", what, mode, got)
				}
			}
		}
		for _, n := range nodes {
			r := n.ask(coap.GET, "/g/name")
			if r.Code != coap.Content || string(r.Payload) != "server" {
				t.Errorf("%s: %s asks the group: %v %q", what, n.name, r.Code, r.Payload)
			}
		}
	}
	exchange("at first")
	for path, want := range map[string]string{"/other": "4.04 ", "/t/below": "4.04 ", "/gw/groups": "4.04 "} {
		if got := sp.ask(list[0].Listen, nil, coap.GET, path, 10*time.Second); got[*list[0].SenderID] != want {
			t.Errorf("GET %s: %v, want %s", path, got, want)
		}
	}
	if got := sp.ask(list[0].Listen, nil, coap.PUT, "/t", 10*time.Second); got[*list[0].SenderID] != "4.05 " {
		t.Errorf("PUT /t: %v", got)
	}
	for _, n := range nodes {
		if slices.ContainsFunc(n.wasAsked(), func(what string) bool { return what != "GET /t" }) {
			t.Errorf("%s was asked %v", n.name, n.wasAsked())
		}
	}

	run(t, 0, "group", "rekey", "sensors", "--config", s.config)
	eventually(t, "delegates follow the rekey", func() bool {
		return !slices.ContainsFunc(s.delegated(3), func(d admin.DelegateInfo) bool { return d.Version != 1 })
	})
	server.holds(1)
	exchange("after a rekey")

	if why := run(t, 0, "why", "meter-1", "--config", s.config).out.String(); !strings.HasPrefix(why, "meter-1 can read sensors: the gateway is a member for it") {
		t.Errorf("why: %s", why)
	}
	if show := run(t, 0, "delegate", "show", "meter-1", "--config", s.config).out.String(); !strings.Contains(show, "meter-1 in sensors: joined\n") || !strings.Contains(show, "is connected") {
		t.Errorf("show: %s", show)
	}

	gw.signal(syscall.SIGKILL)
	gw = s.run()
	for _, d := range s.delegated(3) {
		if ids[*d.SenderID] != d.Delegate {
			t.Errorf("after a restart %s has the Sender ID %s: %v", d.Delegate, *d.SenderID, ids)
		}
	}
	for _, n := range nodes {
		n.connect(s.at["coaps"])
	}
	exchange("after a crash")

	if got := gw.signal(syscall.SIGTERM); got != 0 {
		t.Errorf("exit status %d", got)
	}
	s.more = s.more[:strings.Index(s.more, "  - name: meter-3")]
	s.configure()
	gw = s.run()
	s.delegated(2)
	s.shown("the third has left", func(g *admin.GroupInfo) bool {
		return !slices.ContainsFunc(g.Members, func(m admin.MemberInfo) bool { return m.SenderID != nil && ids[*m.SenderID] == "meter-3" }) && g.Version > 1
	})

	// With other roles a node is another member, after it was the one before no more,
	// whatever the gateway comes to meanwhile.
	before := s.delegated(2)
	gw.signal(syscall.SIGTERM)
	s.more = strings.Replace(s.more, "roles: [requester, responder], send_path: /g", "roles: [responder]", 1)
	s.configure()
	gw = s.run()
	roles := func(d admin.DelegateInfo) bool { return d.Delegate == "meter-1" && len(d.Roles) == 1 }
	gw.signal(syscall.SIGKILL)
	gw = s.run()
	changed := s.delegated(2)
	gw.signal(syscall.SIGKILL)
	s.run()
	now := s.delegated(2)
	for i, d := range now {
		if !slices.ContainsFunc(now, roles) || *d.SenderID != *changed[i].SenderID {
			t.Errorf("after a restart: %+v, before it %+v", d, changed[i])
		}
	}
	s.shown("no other member is left of it", func(g *admin.GroupInfo) bool {
		return !slices.ContainsFunc(g.Members, func(m admin.MemberInfo) bool { return m.Node == before[0].Node })
	})
}

func senderOf(t *testing.T, d admin.DelegateInfo) groupcomm.SenderID {
	t.Helper()
	b, err := hex.DecodeString(*d.SenderID)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
