package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/seed4911071e/groupgate/admin"
)

// whyCmd explains one node.
type whyCmd struct {
	where
	Node  string `arg:"" help:"The node: its name as group show prints it, its identity as node list does, or its name in delegates."`
	Group string `arg:"" optional:"" help:"Name of the group. Default: all groups of the node."`
	JSON  bool   `help:"Print JSON."`
}

// Run explains why a node can or cannot read its groups now.
func (c *whyCmd) Run(e *env) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	w, err := client.Why(e.ctx, c.Node, c.Group)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(e.stdout, w)
	}
	var b strings.Builder
	if w.Client != nil {
		explainClient(&b, w)
	}
	for i := range w.Groups {
		if b.Len() > 0 {
			b.WriteByte('\n')
		}
		explain(&b, w, &w.Groups[i])
	}
	if w.More > 0 {
		fmt.Fprintf(&b, "\nand %s more of this client: name one as `gateway group show` prints it\n", count(w.More, "membership"))
	}
	_, err = io.WriteString(e.stdout, b.String())
	return err
}

// explain writes one group: the answer first, then what it stands on.
func explain(b *strings.Builder, w *admin.WhyInfo, g *admin.WhyGroup) {
	answer := map[string]string{"yes": "can read", "no": "cannot read", "unknown": "may or may not be able to read"}[g.Reads]
	fmt.Fprintf(b, "%s %s %s: %s\n", w.Node, answer, g.Group, g.Because)
	line := func(label, format string, args ...any) {
		fmt.Fprintf(b, "  %-12s %s\n", label, fmt.Sprintf(format, args...))
	}
	if g.Node != "" && g.Node != w.Node {
		line("node", "%s", g.Node)
	}
	if g.Client != "" && g.Client != w.Node {
		line("client", "%s", g.Client)
	}
	if m := g.Member; m != nil {
		state := ""
		if m.JoinedAt != nil {
			state = fmt.Sprintf(", joined at version %d", *m.JoinedAt)
		}
		if m.Lapsed {
			state += ", lapsed"
		}
		line("membership", "%s, Sender ID %s%s", strings.Join(m.Roles, ","), senderID(m.SenderID, "none"), state)
	}
	if t := g.Token; t != nil {
		switch {
		case t.Valid:
			line("token", "in force, grants %s, ends %s", strings.Join(t.Roles, ","), ahead(t.Expires))
		default:
			line("token", "%s", t.Error)
		}
	}
	if g.Member != nil {
		held := "none shown"
		if g.Held != nil {
			held = fmt.Sprint(*g.Held)
			if d := g.Delivery; d != nil && d.By != "" {
				held += ", shown by " + d.By
			}
		}
		line("version", "group %d, node %s", g.Version, held)
		if len(g.Associations) == 0 && g.Token != nil { // a legacy node's are with another Group Manager
			line("association", "none is open")
		}
	}
	for _, a := range g.Associations {
		line("association", "%s", association(&a))
	}
	if d := g.Delivery; d != nil {
		line("delivery", "%s since %s, last heard %s, %s since then", d.State, ago(d.Since), ago(d.LastHeard), count(d.Attempts, "attempt"))
		for _, c := range d.Channels {
			text := fmt.Sprintf("%s: %s %s", c.Channel, c.Result, ago(&c.At))
			if c.Error != "" {
				text += ": " + c.Error
			}
			line("channel", "%s", text)
		}
		if len(d.Channels) == 0 {
			line("channel", "%s, not tried since the gateway started", d.Channel)
		}
		if d.Want != "" {
			line("channel", "it asked for %s only", d.Want)
		}
	}
	if t := g.Tree; t != nil {
		explainTree(line, g.Delivery, t)
	}
	if h := g.Handshake; h != nil && h.Result != "done" {
		line("handshake", "%s", handshake(h))
	}
	if g.Refused != nil {
		line("refused", "%s", refused(g.Refused))
	}
	if w.ClockHint != "" {
		line("clock", "%s", w.ClockHint)
	}
	for _, n := range g.Next {
		line("next", "%s", n)
	}
}

// explainClient writes what the node is at the embedded Authorization Server.
func explainClient(b *strings.Builder, w *admin.WhyInfo) {
	c := w.Client
	fmt.Fprintf(b, "%s is a client of the Authorization Server, %s\n", c.Identity, c.State)
	line := func(label, format string, args ...any) {
		fmt.Fprintf(b, "  %-12s %s\n", label, fmt.Sprintf(format, args...))
	}
	scope := make([]string, len(c.Scope))
	for i, e := range c.Scope {
		scope[i] = e.Group + "=" + strings.Join(e.Roles, ",")
	}
	if len(scope) == 0 {
		scope = []string{"nothing"}
	}
	line("may have", "%s", strings.Join(scope, " "))
	switch {
	case c.Token == nil:
		line("token", "none was issued")
	case c.Posted:
		line("token", "ends %s", ahead(c.Token))
	default:
		line("token", "ends %s, not seen here", ahead(c.Token))
	}
	if c.Handshake != nil {
		line("handshake", "%s", handshake(c.Handshake))
	}
	if c.Refused != nil {
		line("refused", "%s", refused(c.Refused))
	}
}

func refused(r *admin.WhyRefusal) string {
	text := fmt.Sprintf("%s %s: %s, %s", r.Method, r.Path, r.Code, ago(&r.At))
	if r.Error != "" {
		text += ": " + r.Error
	}
	return text
}

func handshake(h *admin.WhyHandshake) string {
	text := fmt.Sprintf("%s, %s", h.Result, ago(&h.At))
	if h.Error != "" {
		text += ": " + h.Error
	}
	return text
}
