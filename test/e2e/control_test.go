package e2e

import (
	"errors"
	"testing"

	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/node"
)

// TestControlURI: a node that observes nothing gets rekeys by POST and the
// notice of its eviction by DELETE, over the association that it opened.
func TestControlURI(t *testing.T) { onEach(t, controlURI) }

func controlURI(t *testing.T, kind func(*config.Config)) {
	g := serve(t, kind)
	m := g.join(func(c *node.Config) { c.ControlURI = "coap://node.example/grp-rek" })
	for range 2 {
		version := g.rekey()
		m.reaches(version)
		eventually(t, "the gateway knows who has the version", func() bool {
			for _, mb := range g.show().Members {
				if mb.State == "current" && mb.Version == version && mb.Channel == "control" {
					return true
				}
			}
			return false
		})
	}
	if _, err := g.admin.Evict(soon(t), group, []string{m.state().Node}, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the node knows that it is out", func() bool {
		_, ok := m.State()
		return !ok
	})
	if _, err := m.Num(soon(t)); !errors.Is(err, node.ErrEvicted) {
		t.Errorf("after the eviction: %v", err)
	}
}
