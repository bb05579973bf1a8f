package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/oscore"
)

// talking is a member of this process that speaks in its group.
type talking struct {
	*member
	traffic *node.Traffic
	served  atomic.Int64
}

// talking joins, follows the rekeys, and protects with what it holds.
func (d *door) talking(edit ...func(*node.Config)) *talking {
	d.t.Helper()
	k := &talking{}
	var mu sync.Mutex
	sync := func() {
		mu.Lock()
		defer mu.Unlock()
		if k.traffic == nil {
			return
		}
		if err := k.traffic.Sync(); err != nil {
			d.t.Errorf("new keys are of no use: %v", err)
		}
	}
	k.member = d.join(append(edit, func(c *node.Config) { c.OnEvent = func(node.Event) { sync() } })...)
	tr, err := node.NewTraffic(k.Member, node.TrafficConfig{Grace: time.Minute})
	if err != nil {
		d.t.Fatal(err)
	}
	mu.Lock()
	k.traffic = tr
	mu.Unlock()
	sync()
	k.follow()
	return k
}

// serves answers requests of the group.
func (k *talking) serves() string {
	k.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s, err := node.ListenGroup(ctx, node.GroupServerConfig{Traffic: k.traffic, Handle: func(*coap.Message, *oscore.GroupRequest) *coap.Message {
		k.served.Add(1)
		return &coap.Message{Code: coap.Content, Payload: []byte("here")}
	}})
	if err != nil {
		k.t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Run(ctx) })
	k.t.Cleanup(func() { cancel(); wg.Wait() })
	return s.Addr().String()
}

// asks sends requests to a server, one after the other, until stop, which tells how
// many were sent and answered.
func (k *talking) asks(server string) (stop func() (sent, answered int)) {
	k.t.Helper()
	c, err := node.DialGroup(k.t.Context(), k.traffic, "", "")
	if err != nil {
		k.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var sent, answered int
	wg.Go(func() {
		req := &coap.Message{Code: coap.GET}
		req.Options.SetPath("a")
		for ctx.Err() == nil {
			got := false
			err := c.Send(context.Background(), netip.MustParseAddrPort(server), nil, req, patience, func(a node.Answer) { got = got || a.Err == nil && a.Message.Code == coap.Content })
			if err != nil {
				k.t.Errorf("request: %v", err)
				return
			}
			sent++
			if got {
				answered++
			}
		}
	})
	stop = sync.OnceValues(func() (int, int) { cancel(); wg.Wait(); _ = c.Close(); return sent, answered })
	k.t.Cleanup(func() { stop() })
	return stop
}

// TestPhases: scheduled rekeys while a group talks without a pause. With two phases no
// message meets a member without its keys: not with members of two phases, by
// observation and over MQTT, nor with one that knows nothing of phases. Without them
// some do, and have to be asked for at the gateway.
func TestPhases(t *testing.T) {
	t.Parallel()
	for _, phased := range []bool{true, false} {
		t.Run(fmt.Sprintf("phased %t", phased), func(t *testing.T) {
			t.Parallel()
			g := serve(t) // with time enough for all to confirm
			in := func(c *node.Config) { c.Phased = phased }
			servers := []*talking{g.talking(in), g.talking(in, viaMQTT), g.talking()}
			client := g.talking(in, func(c *node.Config) { c.Roles = groupcomm.Requester })
			all := append(slices.Clone(servers), client)
			var stops []func() (int, int)
			for _, s := range servers {
				stops = append(stops, client.asks(s.serves()))
			}
			talk := func() {
				t.Helper()
				for _, s := range servers {
					from := s.served.Load()
					eventually(t, "more answers", func() bool { return s.served.Load() >= from+20 })
				}
			}
			talk()
			misses := func() (n uint64) {
				for _, k := range all {
					n += k.traffic.Misses()
				}
				return n
			}
			before := misses()
			for range 2 {
				r, err := g.admin.RekeyScheduled(soon(t), group, "spring")
				if err != nil {
					t.Fatal(err)
				}
				for _, k := range all {
					k.reaches(r.Version)
					eventually(t, "it begins", func() bool {
						return k.state().Before == nil && string(k.traffic.Group().Gid()) == string(k.state().Gid)
					})
				}
				talk()
			}
			sent, answered := 0, 0
			for _, stop := range stops {
				s, a := stop()
				sent, answered = sent+s, answered+a
			}
			n := misses() - before
			t.Logf("phased %t: %d requests, %d answered, %d messages without their keys", phased, sent, answered, n)
			if phased && (n != 0 || answered != sent) {
				t.Errorf("%d messages met a member without their keys, %d of %d requests were answered", n, answered, sent)
			}
			if !phased && n == 0 {
				t.Error("nothing went wrong without phases: what does this measure?")
			}
		})
	}
}

// TestPhasesLeave: a leave is told at once and in one phase, whoever was still held.
func TestPhasesLeave(t *testing.T) {
	t.Parallel()
	g := serve(t, func(c *config.Config) { c.Groups[0].Activation.Spread = time.Hour })
	phased := g.talking(func(c *node.Config) { c.Phased = true })
	idle := g.join() // a responder that nobody can tell: all wait for it
	other := g.talking(func(c *node.Config) { c.Roles = groupcomm.Requester })
	leaver := g.join()
	r, err := g.admin.RekeyScheduled(soon(t), group, "spring")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the keys are held for later", func() bool { s := phased.state(); return s.Version == r.Version && s.Before != nil })
	why, err := g.admin.Why(soon(t), other.state().Node, group)
	if err != nil || len(why.Groups) != 1 || why.Groups[0].Delivery.HeldUntil == nil {
		t.Errorf("why: %+v, %v", why, err)
	}
	d, err := g.admin.Delivery(soon(t), group, true)
	if err != nil || d.Held == 0 || d.HeldUntil == nil {
		t.Errorf("delivery: %+v, %v", d, err)
	}
	if err := leaver.Leave(soon(t)); err != nil {
		t.Fatal(err)
	}
	for _, k := range []*talking{phased, other} {
		k.reaches(r.Version + 1)
		if k.state().Before != nil {
			t.Error("a leave in phases")
		}
	}
	if err := idle.Poll(soon(t)); err != nil {
		t.Fatal(err)
	}
	idle.reaches(r.Version + 1)
}

// TestPhasesCrash: a node and the gateway are killed between the phases. Both go on
// there: the node with two contexts, the gateway with the same time, at which it tells
// the others to begin; and they talk afterwards.
func TestPhasesCrash(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.group = "    activation: {spread: 6s}\n"
	s.configure()
	gw := s.run()
	s.door().join() // a responder that nobody can tell: the phases last as long as they may
	file := filepath.Join(s.dir, "node.state")
	server := s.talk("serve", "server", "--multicast", "none", "--state", file)
	at := server.event(func(e step) bool { return e.Event == "serving" }).Addr
	sender := s.talk("send", "sender", "--to", at, "--count", "0", "--every", "100ms", "--wait", "1s")
	first := sender.answered(nil, "server")

	out := run(t, 0, "group", "rekey", "sensors", "--scheduled", "--json", "--config", s.config).out.String()
	version := decode[admin.RekeyResult](t, out).Version
	prepared := func(e step) bool { return e.Event == "prepared" && *e.Version == version }
	server.event(prepared)
	sender.event(prepared)
	server.signal(syscall.SIGKILL)
	gw.signal(syscall.SIGKILL)
	s.run()
	server = &player{child: start(t, "node", "serve", "--config", s.config, "--client", s.client, "--name", "server", "--json",
		"--multicast", "none", "--state", file, "--bind", at)}
	server.event(func(e step) bool { return e.Event == "serving" })
	for _, p := range []*player{server, sender} {
		p.event(func(e step) bool { return e.Event == "rekeyed" && *e.Version == version })
	}
	if second := sender.answered([]string{first}, "server"); second == first {
		t.Error("under the Gid before")
	}
	for _, e := range sender.steps() {
		if e.Event == "rekeyed" && e.Via == node.ViaPoll {
			t.Errorf("it had to ask: %+v", e)
		}
	}
}
