package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/groupcomm/keytree/keytreetest"
	"github.com/seed4911071e/groupgate/node"
)

func keyTree(c *config.Config) {
	c.Groups[0].Rekey.Scheme, c.Groups[0].Rekey.TreeDegree = "key-tree", 2
}

// mates makes members that follow.
func mates(g *gateway, n int, edit ...func(*node.Config)) []*member {
	out := make([]*member, n)
	for i := range out {
		out[i] = g.join(edit...)
		out[i].follow()
	}
	return out
}

// all waits until every member confirmed a version over a channel.
func (g *gateway) all(v groupcomm.Version, channel string, members ...*member) {
	g.t.Helper()
	for _, m := range members {
		m.reaches(v)
	}
	eventually(g.t, fmt.Sprintf("all have confirmed version %d over %s", v, channel), func() bool {
		info := g.show()
		for _, m := range members {
			r := row(info, m.state().Node)
			if r == nil || r.State != "current" || r.Version != v || channel != "" && r.Channel != channel {
				return false
			}
		}
		return true
	})
}

// goes has a member leave, and returns the version that follows.
func (g *gateway) goes(m *member) groupcomm.Version {
	g.t.Helper()
	v := g.show().Version
	if err := m.Leave(soon(g.t)); err != nil {
		g.t.Fatal(err)
	}
	eventually(g.t, "the leave rekeys", func() bool { return g.show().Version > v })
	return g.show().Version
}

// seldom has a node learn nothing by asking.
func seldom(c *node.Config) { c.PollEvery = time.Hour }

// TestKeyTree: members on the embedded broker follow a key tree through
// everything that happens to a group.
func TestKeyTree(t *testing.T) {
	t.Parallel()
	g := serve(t, keyTree)
	members := mates(g, 9, viaMQTT, seldom)
	if s := members[0].wire.joins[0].RekeyingScheme; s == nil || *s != groupcomm.SchemeKeyTree {
		t.Fatalf("rekeying_scheme %v", s)
	}
	g.all(g.rekey(), "mqtt", members...)
	for range 3 {
		last := members[len(members)-1]
		members = members[:len(members)-1]
		g.all(g.goes(last), "mqtt", members...)
		members = append(members, mates(g, 1, viaMQTT, seldom)...)
		g.all(g.rekey(), "mqtt", members...)
	}
	if err := members[3].Rejoin(soon(t)); err != nil {
		t.Fatal(err)
	}
	g.all(g.rekey(), "mqtt", members...)

	// A restart: the same tree, the next version.
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	l := &g.cfg.Listen
	l.CoAPS, l.CoAP, l.MQTT = g.at.CoAPS, g.at.CoAP, g.at.MQTT
	g.start(t)
	v := g.show().Version
	if _, err := g.admin.Evict(soon(t), group, []string{members[0].state().Node, members[5].state().Node}, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the eviction rekeys", func() bool { return g.show().Version > v })
	left := append(append([]*member{}, members[1:5]...), members[6:]...)
	g.all(g.show().Version, "", left...)
	for _, m := range []*member{members[0], members[5]} {
		if s, ok := m.State(); ok && s.Version > v {
			t.Error("one who was evicted has the newest keys")
		}
	}
}

// TestKeyTreeAsleep: one that sleeps finds its way at the broker, whatever it
// missed in between.
func TestKeyTreeAsleep(t *testing.T) {
	t.Parallel()
	g := serve(t, keyTree)
	sleeper := g.join(viaMQTT, seldom)
	awake := mates(g, 6, viaMQTT)
	for range 3 {
		last := awake[len(awake)-1]
		awake = awake[:len(awake)-1]
		g.all(g.goes(last), "mqtt", awake...)
	}
	sleeper.follow()
	g.all(g.show().Version, "mqtt", append(awake, sleeper)...)
}

// TestKeyTreeCast: members that listen to IP multicast, one of which only wakes
// now and then.
func TestKeyTreeCast(t *testing.T) {
	t.Parallel()
	g := serve(t, keyTree, func(c *config.Config) {
		c.Groups[0].Rekey.Multicast = fmt.Sprintf("coap://239.77.3.9:%d/keys", 20000+rand.IntN(20000))
		c.Multicast.Interface = "lo"
	})
	cast := func(c *node.Config) { c.Multicast, c.MulticastInterface = true, "lo" }
	members := mates(g, 5, cast, seldom)
	sleeper := g.join(cast)
	ctx, stop := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- sleeper.Listen(ctx) }()
	defer func() { stop(); <-over }()
	v := g.rekey()
	g.all(v, "multicast", members...)
	sleeper.reaches(v) // heard it, and said nothing
	if err := sleeper.Wake(soon(t), time.Minute); err != nil {
		t.Fatal(err)
	}
	g.all(v, "multicast", append(members, sleeper)...)
	g.all(g.goes(members[4]), "multicast", members[:4]...)
}

// ways are all that a node was ever given of a key tree.
type ways struct {
	mu    sync.Mutex
	given []keytreetest.Given
}

func (w *ways) hear(r *coap.Response) {
	if w == nil || !r.Code.IsSuccess() || len(r.Payload) == 0 {
		return
	}
	d, err := groupcomm.DecodeKeyDistribution(r.Payload)
	if err != nil || d.RekeyingScheme == nil || *d.RekeyingScheme != groupcomm.SchemeKeyTree {
		return
	}
	if g, err := keytreetest.Parse(d.MgtKeyMaterial); err == nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.given = append(w.given, g)
	}
}

// spied is what can be read with what a member was ever given and all that passed
// a broker.
func spied(t *testing.T, m *member, hook *tap) (versions []uint64) {
	t.Helper()
	all := keytreetest.NewLibrary(m.mgt(0).gm, keytreetest.NewNames())
	for _, pk := range hook.messages(0) {
		if len(pk.Payload) == 0 || !strings.Contains(pk.TopicName, "/tree/") {
			continue
		}
		if err := all.Add(pk.Payload); err != nil {
			t.Fatal(err)
		}
	}
	m.ways.mu.Lock()
	defer m.ways.mu.Unlock()
	versions, err := all.Opens(m.ways.given)
	if err != nil {
		t.Fatal(err)
	}
	return versions
}

// TestTreeLeaver: one who left keeps every key of the tree that it was given and
// all that passes the broker, and opens nothing that is newer, by whatever chain;
// and one who joined nothing that is older.
func TestTreeLeaver(t *testing.T) {
	t.Parallel()
	hook := &tap{}
	addr, _ := operatorBroker(t, anyPort, hook)
	g := serve(t, external(addr), keyTree)
	stays := mates(g, 4, viaMQTT)
	leaver := g.join(viaMQTT)
	leaver.follow()
	v := g.rekey()
	g.all(v, "", append(stays, leaver)...)
	late := mates(g, 1, viaMQTT)[0]
	after := g.goes(leaver)
	last := g.rekey()
	g.all(last, "", append(stays, late)...)

	if got := spied(t, leaver, hook); slices.Contains(got, after) || slices.Contains(got, last) || !slices.Contains(got, v) {
		t.Errorf("one who left at version %d reads %v", v, got)
	}
	if got := spied(t, late, hook); slices.Contains(got, v) || !slices.Contains(got, last) {
		t.Errorf("one who joined at version %d reads %v", v, got)
	}
}

// thief is an operator's broker that loses what is for the nodes of one level.
type thief struct {
	tap
	level atomic.Int32
	taken atomic.Int32
}

func (h *thief) Provides(b byte) bool { return b == mqtt.OnPublish || h.tap.Provides(b) }

func (h *thief) OnPublish(_ *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	if l := h.level.Load(); l > 0 && strings.Contains(pk.TopicName, fmt.Sprintf("/tree/%d/", l)) {
		h.taken.Add(1)
		return pk, packets.CodeSuccessIgnore
	}
	return pk, nil
}

// TestKeyTreeMissedLink: members that miss a link of the chain ask for their way,
// and follow the tree from there.
func TestKeyTreeMissedLink(t *testing.T) {
	t.Parallel()
	hook := &thief{}
	addr, _ := operatorBroker(t, anyPort, hook)
	g := serve(t, external(addr), keyTree)
	members := mates(g, 5, viaMQTT, seldom)
	g.all(g.rekey(), "mqtt", members...)
	hook.level.Store(2)
	g.all(g.goes(members[4]), "mqtt", members[:4]...)
	if hook.taken.Load() == 0 {
		t.Fatal("nothing was lost")
	}
	hook.level.Store(0)
	g.all(g.goes(members[3]), "mqtt", members[:3]...)
}

// TestKeyTreeMoves: a group with a key tree goes to another gateway, with another
// broker. Its members post their tokens there, ask for the keying material, and
// follow the tree that grows there without joining again.
func TestKeyTreeMoves(t *testing.T) {
	t.Parallel()
	for _, move := range []bool{true, false} {
		t.Run(map[bool]string{true: "move", false: "backup"}[move], func(t *testing.T) {
			t.Parallel()
			hook := &tap{}
			first, _ := operatorBroker(t, anyPort, &tap{})
			second, _ := operatorBroker(t, anyPort, hook)
			g := serve(t, external(first), keyTree)
			members := make([]*member, 5)
			var stops []func()
			for i := range members {
				members[i] = g.join(viaMQTT, seldom)
				stops = append(stops, members[i].follow())
			}
			g.all(g.rekey(), "mqtt", members...)
			file, err := g.admin.Export(soon(t), group, admin.ExportAsk{Move: move, Passphrase: "a long passphrase"})
			if err != nil {
				t.Fatal(err)
			}
			other := serve(t, external(second), func(c *config.Config) {
				c.Groups = nil
				if err := os.Mkdir(c.DataDir, 0o700); err != nil {
					t.Fatal(err)
				}
				key := []byte(read(t, g.cfg.Path(config.IssuerKeyFile)))
				if err := os.WriteFile(c.Path(config.IssuerKeyFile), key, 0o600); err != nil {
					t.Fatal(err)
				}
			})
			if _, err := other.admin.Import(soon(t), admin.ImportAsk{File: file.File, Passphrase: "a long passphrase"}); err != nil {
				t.Fatal(err)
			}
			for i, m := range members {
				stops[i]()
				other.post(m.access)
			}
			g.coaps = other.coaps
			for _, m := range members[1:] {
				if err := m.Reconnect(soon(t)); err != nil {
					t.Fatal(err)
				}
				m.follow()
			}
			other.all(other.show().Version, "", members[1:]...)
			here := other.rekey()
			other.all(here, "mqtt", members[1:]...)
			other.all(other.goes(members[1]), "mqtt", members[2:]...)
			// One that was asleep all the time.
			if err := members[0].Reconnect(soon(t)); err != nil {
				t.Fatal(err)
			}
			members[0].follow()
			v := other.show().Version
			members[0].reaches(v)
			left := append(members[2:], members[0])
			other.all(other.rekey(), "mqtt", left...)
			for _, m := range left {
				if n := len(m.wire.joins); n != 1 {
					t.Errorf("joined %d times", n)
				}
			}
			if got := spied(t, members[1], hook); !slices.Contains(got, here) || slices.ContainsFunc(got, func(w uint64) bool { return w >= v }) {
				t.Errorf("one who left between versions %d and %d reads %v", here, v, got)
			}
		})
	}
}
