package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/seed4911071e/groupgate/admin"
)

// groupCmd works on the groups of the running gateway.
type groupCmd struct {
	List  groupListCmd  `cmd:"" help:"List the groups."`
	Show  groupShowCmd  `cmd:"" help:"Show a group: its members, the versions they hold, how they are reached."`
	Rekey groupRekeyCmd `cmd:"" help:"Renew the keying material of a group now, or of many; --watch follows its delivery."`

	Status groupStatusCmd `cmd:"" help:"Tell how far the newest rekeys have come, and who lacks them."`

	Liveness groupLivenessCmd `cmd:"" help:"Tell when members were heard, when they are awake, and over which associations they are reached."`

	Evict groupEvictCmd `cmd:"" help:"Remove members and rekey, so that they read nothing newer."`

	Export     groupExportCmd     `cmd:"" help:"Write a group into a sealed file, to move it to another gateway or as a backup."`
	Import     groupImportCmd     `cmd:"" help:"Take a group from such a file, or make a new one from a fixture."`
	Create     groupCreateCmd     `cmd:"" help:"Create a group that the configuration does not declare."`
	Delete     groupDeleteCmd     `cmd:"" help:"Delete a group that is not active, with its members and keys, for good."`
	Activate   groupActivateCmd   `cmd:"" help:"Activate a group: nodes may join it."`
	Deactivate groupDeactivateCmd `cmd:"" help:"Deactivate a group: nobody joins, members can read and leave."`
}

type groupListCmd struct {
	where
	JSON bool `help:"Print JSON."`
}

// Run lists the groups.
func (c *groupListCmd) Run(e *env) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	groups, err := client.Groups(e.ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(e.stdout, groups)
	}
	t := table(e.stdout, "GROUP", "GID", "VERSION", "MEMBERS", "STATE", "KEYS EXPIRE")
	for _, g := range groups {
		state := "active"
		switch {
		case !g.Active:
			state = "inactive"
		case g.RekeyDue:
			state = "rekey due"
		}
		members := 0
		if g.MemberCount != nil {
			members = *g.MemberCount
		}
		row(t, g.Name, g.Gid, g.Version, members, state, ahead(g.Expires))
	}
	return t.Flush()
}

type groupShowCmd struct {
	where
	Name string `arg:"" help:"Name of the group."`
	JSON bool   `help:"Print JSON."`
}

// Run shows one group.
func (c *groupShowCmd) Run(e *env) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	g, err := client.Group(e.ctx, c.Name)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(e.stdout, g)
	}
	return printGroup(e.stdout, g)
}

func printGroup(w io.Writer, g *admin.GroupInfo) error {
	state := "active"
	if !g.Active {
		state = "inactive"
	}
	current := 0
	for _, m := range g.Members {
		if m.State == "current" {
			current++
		}
	}
	if _, err := fmt.Fprintf(w, "group %s, version %d, gid %s, %s; %d of %s current\n",
		g.Name, g.Version, g.Gid, state, current, count(len(g.Members), "member")); err != nil {
		return err
	}
	if len(g.Members) == 0 {
		return nil
	}
	t := table(w, "NODE", "SENDER ID", "ROLES", "VERSION", "STATE", "VIA", "CHANNEL", "LAST HEARD", "TOKEN EXPIRES")
	for _, m := range g.Members {
		id := "-"
		if m.SenderID != nil {
			id = *m.SenderID
			if id == "" {
				id = `""` // zero bytes are a Sender ID, too
			}
		}
		version := "-" // the first version is 0: only the state tells it from none
		if m.Version > 0 || m.State == "current" {
			version = fmt.Sprint(m.Version)
		}
		via := m.Via
		if via == "" {
			via = "dtls"
		}
		row(t, m.Node, id, strings.Join(m.Roles, ","), version, m.State, via, m.Channel, ago(m.LastHeard), ahead(m.Expires))
	}
	return t.Flush()
}

type groupRekeyCmd struct {
	where
	Name   string `arg:"" optional:"" help:"Name of the group."`
	All    bool   `help:"Rekey every group."`
	Match  string `placeholder:"PATTERN" help:"Rekey the groups whose name fits, such as 'floor1-*'."`
	Reason string `default:"operator" help:"Why, for the log."`
	Sched  bool   `name:"scheduled" help:"Nobody has to be kept out: tell members in the group's order, responders first."`
	Watch  bool   `help:"Show how it reaches the members, until every one has it."`
	JSON   bool   `help:"Print JSON; with --watch one object for each change, of many groups one for each."`

	For time.Duration `placeholder:"DURATION" help:"With --watch: look on for so long at most."`
}

// Run renews the keying material of a group, or of many.
func (c *groupRekeyCmd) Run(e *env) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	if c.Name == "" {
		return c.many(e, client)
	}
	rekey := client.Rekey
	if c.Sched {
		rekey = client.RekeyScheduled
	}
	r, err := rekey(e.ctx, c.Name, c.Reason)
	if err != nil {
		return err
	}
	if c.Watch {
		if !c.JSON {
			if _, err := fmt.Fprintf(e.stdout, "group %s is at version %d now\n", r.Group, r.Version); err != nil {
				return err
			}
		}
		return c.watch(e, client, r.Version)
	}
	if c.JSON {
		return printJSON(e.stdout, r)
	}
	_, err = fmt.Fprintf(e.stdout, "group %s is at version %d now; `gateway group status %s%s` tells who has it\n", r.Group, r.Version, r.Group, c.flags())
	return err
}

type groupEvictCmd struct {
	where
	Name     string   `arg:"" help:"Name of the group."`
	Nodes    []string `arg:"" optional:"" name:"node" help:"Node names, as group show prints them."`
	SenderID []string `name:"sender-id" placeholder:"HEX" sep:"none" help:"Evict the member with this Sender ID; may be repeated."`
	JSON     bool     `help:"Print JSON."`
}

// Validate wants somebody to evict; argv calls it, so that a lack is a usage
// error.
func (c *groupEvictCmd) Validate() error {
	if len(c.Nodes)+len(c.SenderID) == 0 {
		return fmt.Errorf("name the members to evict, by node name or --sender-id")
	}
	return nil
}

// Run evicts members.
func (c *groupEvictCmd) Run(e *env) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	r, err := client.Evict(e.ctx, c.Name, c.Nodes, c.SenderID)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(e.stdout, r)
	}
	_, err = fmt.Fprintf(e.stdout, "evicted from %s: %s\n", r.Group, strings.Join(r.Evicted, ", "))
	return err
}

// printJSON prints indented JSON, for people and programs alike.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func table(w io.Writer, head ...any) *tabwriter.Writer {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row(t, head...)
	return t
}

// row writes into a tabwriter, which keeps errors for Flush.
func row(t *tabwriter.Writer, cells ...any) {
	for i, c := range cells {
		if i > 0 {
			_, _ = io.WriteString(t, "\t")
		}
		_, _ = fmt.Fprint(t, c)
	}
	_, _ = io.WriteString(t, "\n")
}

// ago and ahead tell a time by its distance from now.
func ago(t *time.Time) string {
	if t == nil {
		return "never"
	}
	return rough(time.Since(*t)) + " ago"
}

func ahead(t *time.Time) string {
	switch {
	case t == nil:
		return "never"
	case time.Until(*t) <= 0:
		return "expired"
	}
	return "in " + rough(time.Until(*t))
}

// due tells a time that was announced.
func due(t *time.Time) string {
	if t != nil && time.Until(*t) <= 0 {
		return "overdue"
	}
	return ahead(t)
}

// rough gives a duration in its largest unit that has at least two.
func rough(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", max(0, int(d.Round(time.Second).Seconds())))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d d", int(d.Hours()/24))
}
