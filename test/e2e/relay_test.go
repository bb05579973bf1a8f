package e2e

import (
	"fmt"
	"github.com/seed4911071e/groupgate/test/ports"
	"net"
	"testing"
)

// TestRelay: a node behind an edge gateway is a member at the Group Manager beyond it:
// its DTLS association goes through the relay, where nobody can read it. A rekey reaches
// it on the same way, and so do its own requests.
func TestRelay(t *testing.T) {
	t.Parallel()
	up, edge := newSite(t), newSite(t)
	up.run()
	at := ports.Addr(t)
	edge.group = fmt.Sprintf("    gm: coaps://%s\n    upstream: {relay: true, relay_listen: %q}\n", up.at["coaps"], at)
	edge.configure()
	edge.run()

	eventually(t, "the relay listens", func() bool {
		c, err := net.ListenPacket("udp4", at)
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
	d := up.door()
	d.coaps = at // all that the node knows
	a := d.token()
	cfg := d.config(a)
	m := d.enter(a, cfg, d.dial(a.Token, a.Key.Bytes()))
	m.follow()
	if row(up.show(), m.state().Node) == nil {
		t.Error("it is no member there")
	}
	run(t, 0, "group", "rekey", "sensors", "--config", up.config)
	m.reaches(1)
	if err := m.Reconnect(soon(t)); err != nil { // from another address
		t.Error(err)
	}
	if err := m.Poll(soon(t)); err != nil {
		t.Error(err)
	}
	if err := m.Leave(soon(t)); err != nil {
		t.Error(err)
	}
}
