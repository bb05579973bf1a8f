package e2e

import (
	"runtime"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/test/ports"
)

// TestShards: members are rekeyed by a gateway with several shards, and are served
// over the associations that they have whatever the number of shards after a restart.
func TestShards(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux spreads datagrams among sockets")
	}
	g := serve(t, func(c *config.Config) {
		c.Endpoint.Shards = 3
		c.Listen.CoAPS = ports.Addr(t) // the same in all lives
	})
	members := make([]*member, 8)
	stops := make([]func(), len(members))
	for i := range members {
		members[i] = g.join()
		stops[i] = members[i].follow()
	}
	version := g.show().Version
	if _, err := g.admin.Rekey(soon(t), group, ""); err != nil {
		t.Fatal(err)
	}
	for i, m := range members {
		m.reaches(version + 1)
		stops[i]() // nothing is under way when the gateway stops
	}
	req := &coap.Request{Code: coap.GET}
	req.Options.SetPath("ace-group", group)
	for _, shards := range []int{1, 2, 0, 3} {
		if err := g.stop(); err != nil {
			t.Fatal(err)
		}
		g.cfg.Endpoint.Shards = shards
		g.start(t)
		for i, m := range members {
			if r, err := m.wire.Do(soon(t), req); err != nil || r.Code != coap.Content {
				t.Errorf("%d shards: the association of member %d: %v, %v", shards, i, r, err)
			}
		}
	}
}
