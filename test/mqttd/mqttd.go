// Package mqttd is the operator's MQTT broker of the tests: none of ours, in
// this process, keeping nothing over a restart. What a real broker adds,
// test/broker looks at.
package mqttd

import (
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"
	"github.com/seed4911071e/groupgate/bridge/packetid"
)

// Start serves on l until stop is called or the test ends. Who may connect, and
// whatever else the test wants to see, is the hooks' affair; Open admits
// everybody.
func Start(t testing.TB, l net.Listener, hooks ...mqtt.Hook) (s *mqtt.Server, stop func()) {
	t.Helper()
	s = mqtt.New(&mqtt.Options{InlineClient: true, Logger: slog.New(slog.DiscardHandler)})
	for _, h := range append(hooks, &wildcards{kept: map[string]packets.Packet{}}, new(packetid.Hook)) {
		if err := s.AddHook(h, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.AddListener(listeners.NewNet("tcp", l)); err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() { _ = s.Close() })
	t.Cleanup(stop)
	return s, stop
}

// Open lets everybody do everything. A hook that embeds it adds its own calls to
// Provides.
type Open struct{ mqtt.HookBase }

// ID implements mqtt.Hook.
func (*Open) ID() string { return "open" }

// Provides implements mqtt.Hook.
func (*Open) Provides(b byte) bool { return b == mqtt.OnConnectAuthenticate || b == mqtt.OnACLCheck }

// OnConnectAuthenticate implements mqtt.Hook.
func (*Open) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }

// OnACLCheck implements mqtt.Hook.
func (*Open) OnACLCheck(*mqtt.Client, string, bool) bool { return true }

// wildcards answers a subscription to a filter with wildcards with what is
// retained. The library looks for that in its tree of topics without the lock
// under which others retain and delete: a data race, met when the gateway
// subscribes to the presence of its members while one of them says it.
type wildcards struct {
	mqtt.HookBase
	mu   sync.Mutex
	kept map[string]packets.Packet // by topic
}

// ID implements mqtt.Hook.
func (*wildcards) ID() string { return "wildcards" }

// Provides implements mqtt.Hook.
func (*wildcards) Provides(b byte) bool {
	return b == mqtt.OnRetainMessage || b == mqtt.OnSubscribe || b == mqtt.OnSubscribed
}

// OnRetainMessage implements mqtt.Hook.
func (h *wildcards) OnRetainMessage(_ *mqtt.Client, pk packets.Packet, _ int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(pk.Payload) == 0 {
		delete(h.kept, pk.TopicName)
		return
	}
	h.kept[pk.TopicName] = pk.Copy(false)
}

// OnSubscribe tells the library not to look.
func (*wildcards) OnSubscribe(_ *mqtt.Client, pk packets.Packet) packets.Packet {
	pk.Filters = slices.Clone(pk.Filters)
	for i, sub := range pk.Filters {
		if strings.ContainsAny(sub.Filter, "+#") {
			pk.Filters[i].RetainHandling = 2 // MQTT 5, Section 3.8.3.1: send none
		}
	}
	return pk
}

// OnSubscribed sends what is retained, at most once: the inflight windows are
// the library's.
func (h *wildcards) OnSubscribed(cl *mqtt.Client, pk packets.Packet, codes []byte) {
	for i, sub := range pk.Filters {
		if codes[i] > packets.CodeGrantedQos2.Code || sub.RetainHandling != 2 {
			continue
		}
		for _, m := range h.matching(sub.Filter) {
			m.FixedHeader.Qos = 0
			_ = cl.WritePacket(m) // whoever left does not miss it
		}
	}
}

func (h *wildcards) matching(filter string) (out []packets.Packet) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for topic, m := range h.kept {
		if matches(filter, topic) {
			out = append(out, m.Copy(false))
		}
	}
	return out
}

// matches follows MQTT 3.1.1, Section 4.7.
func matches(filter, topic string) bool {
	f, t := strings.Split(filter, "/"), strings.Split(topic, "/")
	if strings.HasPrefix(topic, "$") && f[0] != t[0] {
		return false
	}
	for i, level := range f {
		if level == "#" {
			return true // its own parent too
		}
		if i >= len(t) || level != "+" && level != t[i] {
			return false
		}
	}
	return len(f) == len(t)
}
