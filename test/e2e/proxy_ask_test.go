package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/oscore"
)

// TestAsk: `gateway node ask` as programs: one observes a server through the gateway,
// another asks the group, and one server, as the member that a node before it was, with
// Group OSCORE from end to end; each ends what it observes.
func TestAsk(t *testing.T) {
	t.Parallel()
	g := newGrouped(t)
	ask := func(args ...string) *child {
		return start(t, append([]string{"node", "ask", "--config", g.s.config}, args...)...)
	}
	asClient := []string{"--client", g.s.client}
	fails := func(c *child, why string) {
		if status := c.wait(); status != 1 || !strings.Contains(c.err.String(), why) {
			t.Errorf("%s: exit status %d: %s%s", c.name, status, &c.out, &c.err)
		}
	}
	unobserved := func() {
		eventually(t, "the gateway is told that nobody observes", func() bool { return metric(t, g.s, "groupgate_serve_observations") == 0 })
	}

	// A server by itself, until there is enough, and until Ctrl-C.
	one := "coap://" + g.servers.Addr(0).String() + "/lamp"
	counted, watching := ask(append(asClient, one, "--observe", "--count", "2")...), ask(append(asClient, one, "--observe", "--json")...)
	counted.says(`  2\.05 "lamp 0 is on"$`)
	watching.says(`lamp 0 is on`)
	g.servers.Say(0, g.state(g.newest(), 0, 2, "off"))
	counted.says(`  2\.05 "lamp 0 is off"$`)
	if status := counted.wait(); status != 0 {
		t.Errorf("exit status %d: %s", status, &counted.err)
	}
	watching.says(`lamp 0 is off`)
	if n := metric(t, g.s, "groupgate_serve_observations"); n != 1 {
		t.Errorf("%v observations", n)
	}
	if status := watching.signal(syscall.SIGINT); status != 0 {
		t.Errorf("exit status %d: %s", status, &watching.err)
	}
	unobserved()
	fails(ask(append(asClient, "/none", "--observe")...), "refused with 4.04")

	// Members of the group in the servers' place.
	members := g.s.door().traffic(3)
	var mu sync.Mutex
	watched := map[int]*oscore.GroupRequest{} // guarded by mu
	protect := func(i int, x *oscore.GroupRequest, number uint32, r *coap.Message, asked *coap.Message) *coap.Message {
		p, err := x.Protect(t.Context(), nil, r)
		if err != nil {
			t.Errorf("member %d: %v", i, err)
			return nil
		}
		p = p.Clone()
		p.Type, p.ID, p.Token = coap.NonConfirmable, uint16(i)<<8|uint16(number), asked.Token
		return p
	}
	state := func(number uint32, what string) *coap.Message {
		r := &coap.Message{Code: coap.Content, Payload: []byte(what)}
		if number > 0 {
			r.Options.SetUint(coap.ObserveOption, number)
		}
		return r
	}
	g.mu.Lock()
	g.reply = func(i int, m *coap.Message) *coap.Message {
		inner, x, err := members[i].ReadRequest(t.Context(), m)
		if err != nil {
			return &coap.Message{Type: coap.NonConfirmable, Code: coap.BadRequest, Token: m.Token} // the end of an observation, again
		}
		what, number := fmt.Sprintf("member %d has /%s", i, strings.Join(inner.Options.Path(), "/")), uint32(0)
		if v, ok := inner.Options.Uint(coap.ObserveOption); ok && v == 0 {
			number = 1
			mu.Lock()
			watched[i] = x
			mu.Unlock()
		}
		return protect(i, x, number, state(number, what), m)
	}
	g.mu.Unlock()

	file := filepath.Join(g.s.dir, "asker.state")
	fails(ask(one, "--state", file), "node join --state")
	node := g.s.join("asker", "--state", file)
	if status := node.signal(syscall.SIGINT); status != 0 {
		t.Errorf("exit status %d: %s", status, &node.err)
	}
	all := fmt.Sprintf("coap://%s/lamp?x=1", g.servers.At)
	c := ask(all, "--wait", "1s", "--state", file)
	if status := c.wait(); status != 0 {
		t.Errorf("exit status %d: %s", status, &c.err)
	}
	var ids []string
	for i := range 3 {
		ids = append(ids, c.says(fmt.Sprintf(`Sender ID (.+) at %v answers in group mode under Gid [0-9a-f]+: 2\.05 "member %d has /lamp"\.$`, g.servers.Addr(i), i))[1])
	}
	sid := strings.TrimPrefix(ids[0], "(empty)")
	c = ask(one, "--state", file, "--pairwise", "--peer", sid)
	c.says(`answers in pairwise mode under Gid [0-9a-f]+: 2\.05 "member 0 has /lamp"\.$`)
	if status := c.wait(); status != 0 {
		t.Errorf("exit status %d: %s", status, &c.err)
	}
	fails(ask(one, "--state", file, "--pairwise"), "name one by --peer")
	fails(ask(one, "--state", file, "--pairwise", "--peer", "abcdef"), "no member has the Sender ID")
	fails(ask("coap://192.0.2.1/x", "--state", file), "it came in clear")

	// Observed, over an association of the client's.
	c = ask(append(asClient, all, "--wait", "1s", "--observe", "--count", "4", "--state", file)...)
	for i := range 3 {
		c.says(fmt.Sprintf(`"member %d has /lamp"`, i))
	}
	registered := g.newest()
	g.over("the time of the registration")
	mu.Lock()
	x := watched[1]
	mu.Unlock()
	g.servers.Say(1, protect(1, x, 2, state(2, "it went off"), registered))
	c.says(`"it went off"`)
	if status := c.wait(); status != 0 {
		t.Errorf("exit status %d: %s", status, &c.err)
	}
	eventually(t, "the group is told that nobody observes", func() bool {
		m := g.newest()
		v, ok := m.Options.Uint(coap.ObserveOption)
		return ok && v == 1 && string(m.Token) == string(registered.Token)
	})
}
