package e2e

import (
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/node"
)

// TestSleeper: a node announces that it sleeps, is left alone while it does, and
// learns from its next announcement what it missed.
func TestSleeper(t *testing.T) {
	t.Parallel()
	g := serve(t)
	m := g.join(func(c *node.Config) { c.ControlURI = "coap://node.example/rekey" })
	if err := m.Wake(soon(t), time.Hour); err != nil {
		t.Fatal(err)
	}
	name := m.state().Node
	is := func(state string) func() bool {
		return func() bool {
			for _, mb := range g.show().Members {
				if mb.Node == name && mb.State == state {
					return true
				}
			}
			return false
		}
	}
	eventually(t, "it showed what it holds", is("current"))
	version := g.rekey()
	eventually(t, "it is asleep", is("asleep"))
	if m.state().Version == version {
		t.Error("a node that sleeps was sent a rekey")
	}
	// Any request is a sign of life: what it answers may come after the rekey.
	if _, err := m.Sleep(soon(t), time.Minute, 0, ""); err != nil {
		t.Fatal(err)
	}
	m.reaches(version)
	eventually(t, "the gateway knows", is("current"))
	if pending, err := m.Sleep(soon(t), 0, time.Hour, ""); err != nil || pending {
		t.Errorf("up to date: pending %v, %v", pending, err)
	}
}
