package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/seed4911071e/groupgate/admin"
)

// delegateCmd is about legacy nodes.
type delegateCmd struct {
	List   delegateListCmd   `cmd:"" help:"List legacy nodes with the groups that they are in."`
	Show   delegateShowCmd   `cmd:"" help:"Show one legacy node."`
	Rejoin delegateRejoinCmd `cmd:"" help:"Have a node join again that its Group Manager evicted."`
	Trust  delegateTrustCmd  `cmd:"" help:"Take the next credential that the Group Manager of a group proves, in place of the one known."`
}

type delegateListCmd struct {
	where
	JSON bool `help:"Print JSON."`
}

// Run lists all memberships.
func (c *delegateListCmd) Run(e *env) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	list, err := client.Delegates(e.ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(e.stdout, list)
	}
	if len(list) == 0 {
		_, err := fmt.Fprintln(e.stdout, "No delegates: docs/delegates.md tells how to have some.")
		return err
	}
	w := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "DELEGATE\tGROUP\tSTATE\tSENDER ID\tVERSION\tLAST HEARD\tGROUP MANAGER\tERROR")
	for _, d := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n", d.Delegate, d.Group, d.State, senderID(d.SenderID, "-"), d.Version, ago(d.LastHeard), d.GM, brief(d.Error))
	}
	return w.Flush()
}

// senderID is a Sender ID of the admin API, in hex, for people: there may be none.
func senderID(hex *string, none string) string {
	if hex == nil {
		return none
	}
	return shownHex(*hex)
}

// brief cuts a text for a table.
func brief(s string) string {
	const most = 60
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

type delegateShowCmd struct {
	where
	Name string `arg:"" help:"Name of the delegate."`
	JSON bool   `help:"Print JSON."`
}

// Run shows the memberships of one node.
func (c *delegateShowCmd) Run(e *env) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	all, err := client.Delegates(e.ctx)
	if err != nil {
		return err
	}
	list := []admin.DelegateInfo{}
	for _, d := range all {
		if d.Delegate == c.Name {
			list = append(list, d)
		}
	}
	if len(list) == 0 {
		return fmt.Errorf("no delegate %q: `gateway delegate list` shows them", c.Name)
	}
	if c.JSON {
		return printJSON(e.stdout, list)
	}
	var b strings.Builder
	for i, d := range list {
		if i > 0 {
			b.WriteByte('\n')
		}
		describeDelegate(&b, d)
	}
	_, err = io.WriteString(e.stdout, b.String())
	return err
}

func describeDelegate(b *strings.Builder, d admin.DelegateInfo) {
	fmt.Fprintf(b, "%s in %s: %s\n", d.Delegate, d.Group, d.State)
	line := func(label, format string, args ...any) {
		fmt.Fprintf(b, "  %-14s %s\n", label, fmt.Sprintf(format, args...))
	}
	line("group manager", "%s", d.GM)
	if d.Node != "" {
		line("membership", "node %s, Sender ID %s, %s", d.Node, senderID(d.SenderID, "-"), strings.Join(d.Roles, ","))
		line("version", "%d, Gid %s, keys end %s", d.Version, d.Gid, ahead(d.KeyEnds))
	}
	if d.Node != "" || d.TokenEnds != nil {
		line("token", "ends %s", ahead(d.TokenEnds))
	}
	here := "is connected"
	if !d.Connected {
		here = "is not connected"
	}
	line("legacy node", "%s, last heard %s", here, ago(d.LastHeard))
	if d.Listen != "" {
		line("members reach", "it at %s", d.Listen)
	}
	if d.Error != "" {
		line("error", "%s: %s", ago(d.ErrorAt), d.Error)
	}
	if d.State == "evicted" {
		line("next", "find out why; then `gateway delegate rejoin %s`", d.Delegate)
	}
}

type delegateRejoinCmd struct {
	where
	Name string `arg:"" help:"Name of the delegate."`
}

// Run has the node join again.
func (c *delegateRejoinCmd) Run(e *env) error {
	client, err := c.client()
	if err == nil {
		err = client.RejoinDelegate(e.ctx, c.Name)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.stdout, "%s joins again; `gateway delegate show %s` tells how it goes.\n", c.Name, c.Name)
	return err
}

type delegateTrustCmd struct {
	where
	Group string `arg:"" help:"Name of the group."`
}

// Run forgets the pinned credential.
func (c *delegateTrustCmd) Run(e *env) error {
	client, err := c.client()
	if err == nil {
		err = client.TrustGM(e.ctx, c.Group)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.stdout, "The next credential that the Group Manager of %s proves is kept.\n", c.Group)
	return err
}
