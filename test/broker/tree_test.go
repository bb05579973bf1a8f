//go:build interop

package broker

import (
	"context"
	"testing"

	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/node"
)

// TestTree: a group with a key tree over a broker, which is killed in a
// rekey after a leave and comes back; then it withholds what is for one level of
// the tree, and members ask for the link that they miss. All get the newest keys.
func TestTree(t *testing.T) { each(t, tree) }

func tree(t *testing.T, broker *server) {
	g := newGateway(t, broker, func(c *config.Config) {
		c.Groups[0].Rekey.Scheme, c.Groups[0].Rekey.TreeDegree, c.Groups[0].Rekey.BatchWindow = "key-tree", 2, 0
	})
	var members []*node.Member
	for i := range 10 {
		m, _ := g.join(i)
		members = append(members, m)
	}
	eventually(t, "all are at the broker", func() bool { return g.online() == len(members) })
	all := func(what string, version uint64) {
		t.Helper()
		g.delivered(what, version, len(members))
		eventually(t, what, func() bool {
			for _, m := range members {
				if s, ok := m.State(); !ok || !s.Installed || s.Version != version {
					return false
				}
			}
			return true
		})
	}
	leave := func() uint64 {
		t.Helper()
		before := g.delivery(false).Version
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := members[0].Leave(ctx); err != nil {
			t.Fatal(err)
		}
		members = members[1:]
		eventually(t, "the leave rekeys", func() bool { return g.delivery(false).Version > before })
		return g.delivery(false).Version
	}
	all("the first rekey", g.rekey())

	broker.kill()
	version := leave()
	broker.start()
	all("after the broker was killed", version)
	all("a leave", leave())

	broker.kill()
	broker.product.configure(broker, rules("0", "1", "3", "4", "5", "6")) // the third level is withheld
	broker.start()
	if broker.product.refuses {
		eventually(t, "all observe the group instead", func() bool { return g.online() == 0 && g.observations() == 2*len(members) })
	} else {
		eventually(t, "all are at the broker again", func() bool { return g.online() == len(members) })
	}
	before := g.asked.Load()
	all("a link is missed", leave())
	if g.asked.Load() == before && !broker.product.refuses {
		t.Error("nobody had to ask")
	}
}
