//go:build interop

package broker

import (
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/node"
)

// TestRekey: members are rekeyed over a broker, which the gateway reaches by
// TLS with its certificate; the broker is killed in a rekey and comes back, empty or not,
// and everybody gets the newest keys, over MQTT, and says so. The last wills
// of the nodes tell that they are away.
func TestRekey(t *testing.T) { each(t, rekey) }

func rekey(t *testing.T, broker *server) {
	g := newGateway(t, broker)
	var members []*node.Member
	var stops []func()
	const n = 20
	for i := range n {
		m, stop := g.join(i)
		members, stops = append(members, m), append(stops, stop)
	}
	// Who is at the broker still observes its node resource, and no longer the group.
	settled := func() bool { return g.online() == n && g.observations() == n }
	eventually(t, "all are at the broker", settled)

	everybody := func(what string, version uint64) {
		t.Helper()
		g.delivered(what, version, n)
		for _, m := range members {
			if s, ok := m.State(); !ok || s.Version != version {
				t.Errorf("%s: a node holds version %d, want %d", what, s.Version, version)
			}
		}
	}
	// The nodes observe while they have no broker, and ask now and then: the first
	// confirmation wins, so many but not all of them come over MQTT, fewer on a busy machine.
	overMQTT := func(what string, since time.Time) {
		t.Helper()
		confirmed := 0
		for _, m := range g.delivery(true).Ledger {
			for _, c := range m.Channels {
				if c.Channel == "mqtt" && c.Result == "confirmed" && c.At.After(since) {
					confirmed++
				}
			}
		}
		if confirmed < n/5 {
			t.Errorf("%s: %d of %d members confirmed over MQTT", what, confirmed, n)
		}
	}
	since := time.Now()
	everybody("a first rekey", g.rekey())
	overMQTT("a first rekey", since)

	broker.members.cut()
	eventually(t, "the last wills are seen", func() bool { return g.online() == 0 })
	broker.members.mend()
	eventually(t, "all are at the broker after their lines were cut", settled)

	version := g.rekey()
	broker.kill()
	version = max(version, g.rekey()) // and one while it is away
	broker.start()
	everybody("after the broker was killed", version)
	eventually(t, "all are at the broker again", settled)
	since = time.Now()
	everybody("the next rekey", g.rekey())
	overMQTT("the next rekey", since)

	stops[0]()
	eventually(t, "one is away", func() bool { return g.online() == n-1 })
}
