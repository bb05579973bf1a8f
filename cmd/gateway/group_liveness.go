package main

import (
	"fmt"
	"strings"

	"github.com/seed4911071e/groupgate/admin"
)

type groupLivenessCmd struct {
	where
	Name string `arg:"" help:"Name of the group."`
	Node string `arg:"" optional:"" help:"Name of a member. Default: all."`
	JSON bool   `help:"Print JSON."`
}

// Run tells how members are alive.
func (c *groupLivenessCmd) Run(e *env) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	l, err := client.Liveness(e.ctx, c.Name, c.Node)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(e.stdout, l)
	}
	t := table(e.stdout, "NODE", "STATE", "CHANNEL", "LAST HEARD", "AWAKE", "HANDSHAKES", "LOST", "ASSOCIATIONS")
	for _, m := range l.Members {
		var list []string
		for _, a := range m.Associations {
			list = append(list, association(&a))
		}
		if list == nil {
			list = append(list, "none")
		}
		row(t, m.Node, m.State, m.Channel, ago(m.LastHeard), awake(&m), m.Handshakes, m.Lost, strings.Join(list, "; "))
	}
	return t.Flush()
}

// awake is when a node can be reached, as it announced it, or as it is its habit.
func awake(m *admin.NodeLiveness) string {
	switch {
	case m.NextWake != nil:
		return "wake-up " + due(m.NextWake)
	case m.AwakeUntil != nil:
		return "until " + m.AwakeUntil.Format("15:04:05")
	case m.UsualGap != nil:
		return fmt.Sprintf("every %.0f s", *m.UsualGap)
	}
	return "-"
}

// association is one in a few words.
func association(a *admin.Association) string {
	s := a.Peer + " " + a.Via
	if a.Since != nil {
		s += ", since " + strings.TrimSuffix(ago(a.Since), " ago")
	}
	if a.LastHeard != nil {
		s += ", heard " + ago(a.LastHeard)
	}
	if a.AddressChanges > 0 {
		s += ", " + count(int(a.AddressChanges), "address change")
	}
	if a.Observations > 0 {
		s += ", " + count(a.Observations, "observation")
	}
	for _, part := range []struct {
		is   bool
		what string
	}{{a.Hibernated, "hibernated"}, {a.Stale, "not heard since the restart"}, {a.Restored && !a.Stale, "outlived a restart"}} {
		if part.is {
			s += ", " + part.what
		}
	}
	return s
}
