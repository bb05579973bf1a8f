package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/seed4911071e/groupgate/admin"
)

// auditCmd reads the audit log.
type auditCmd struct {
	where
	Group  string        `placeholder:"NAME" help:"Only this group."`
	Kind   []string      `sep:"," placeholder:"KIND" help:"Only these kinds, for instance group.joined or request.refused; may be repeated."`
	Since  time.Duration `default:"24h" help:"From this long ago on."`
	Follow bool          `help:"Go on with what happens from now on."`
	Full   bool          `help:"Show addresses, identities, node names and Sender IDs, and not pseudonyms for them. That it was shown is recorded."`
	JSON   bool          `help:"Print one JSON object per line."`
}

// Validate keeps a reader that never ends from filling the log with its own
// reading; argv calls it.
func (c *auditCmd) Validate() error {
	if c.Follow && c.Full {
		return errors.New("--full does not go with --follow: each reading of full records is recorded")
	}
	return nil
}

// followEvery is how often --follow asks.
const followEvery = time.Second

// Run prints the records.
func (c *auditCmd) Run(e *env) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	q := admin.AuditQuery{Group: c.Group, Kinds: c.Kind, Since: time.Now().Add(-c.Since), Full: c.Full}
	until := time.Now() // a reading of full records makes a record itself
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		list, err := client.Audit(e.ctx, q)
		if e.ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		for _, r := range list {
			if err := c.print(e.stdout, r); err != nil {
				return err
			}
			q.After = r.ID
		}
		switch {
		case !c.Follow && (len(list) == 0 || list[len(list)-1].At.After(until)):
			if q.After == 0 {
				c.nothing(e.stderr)
			}
			return nil
		case len(list) > 0:
			continue
		}
		select {
		case <-tick.C:
		case <-e.ctx.Done():
			return nil
		}
	}
}

// nothing says that no record fits: silence may mean a word that is misspelled.
func (c *auditCmd) nothing(w io.Writer) {
	asked := ""
	if c.Group != "" {
		asked += " of group " + c.Group
	}
	if len(c.Kind) > 0 {
		asked += " of kind " + strings.Join(c.Kind, ",") + ", if there is such a kind: docs/audit.md lists them"
	}
	_, _ = fmt.Fprintf(w, "no record of the last %s%s\n", rough(c.Since), asked)
}

func (c *auditCmd) print(w io.Writer, r admin.AuditRecord) error {
	if c.JSON {
		return json.NewEncoder(w).Encode(r)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", r.At.Format("2006-01-02T15:04:05.000Z"), r.Kind)
	text := func(name, value string) {
		if value != "" {
			if strings.ContainsAny(value, " \"=") {
				value = fmt.Sprintf("%q", value)
			}
			fmt.Fprintf(&b, " %s=%s", name, value)
		}
	}
	text("group", r.Group)
	text("node", r.Node)
	text("peer", r.Peer)
	text("subject", r.Subject)
	if r.SenderID != nil {
		fmt.Fprintf(&b, " sender_id=%s", *r.SenderID)
	}
	text("roles", strings.Join(r.Roles, ","))
	if r.Version != nil {
		fmt.Fprintf(&b, " version=%d", *r.Version)
	}
	text("gid", r.Gid)
	text("method", r.Method)
	text("path", r.Path)
	text("code", r.Code)
	if r.Error != nil {
		fmt.Fprintf(&b, " error=%d", *r.Error)
	}
	text("reason", r.Reason)
	if r.Count > 0 {
		fmt.Fprintf(&b, " count=%d", r.Count)
	}
	_, err := fmt.Fprintln(w, b.String())
	return err
}
