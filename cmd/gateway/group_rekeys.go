package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/seed4911071e/groupgate/admin"
)

// Validate wants one group or all; argv calls it, so that a mistake is a usage error.
func (c *groupRekeyCmd) Validate() error {
	switch all := c.All || c.Match != ""; {
	case all && c.Name != "":
		return errors.New("either name a group, or rekey many with --all or --match")
	case !all && c.Name == "":
		return errors.New("name the group to rekey; --all rekeys every group, --match those whose name fits")
	case all && c.Watch:
		return errors.New("--watch is for one group; `gateway group status` shows all")
	case c.For != 0 && !c.Watch:
		return errors.New("--for is for how long to --watch")
	case c.For < 0:
		return errors.New("--for: a duration above 0")
	}
	return nil
}

// many renews the keying material of many groups. One that fails does not keep the
// others from theirs, but makes the command fail.
func (c *groupRekeyCmd) many(e *env, client *admin.Client) error {
	ask := admin.RekeysAsk{Match: c.Match, Reason: c.Reason, Scheduled: c.Sched}
	done, failed := 0, 0
	for {
		r, err := client.Rekeys(e.ctx, ask)
		if err != nil {
			if done > 0 {
				err = withHint(fmt.Errorf("%s and more may be rekeyed: %w", count(done, "group"), err), fmt.Sprintf("`gateway group status%s` tells which", c.flags()))
			}
			return err
		}
		for _, g := range r.Groups {
			if done++; g.Error != "" {
				failed++
			}
			if err := c.tell(e.stdout, &g); err != nil {
				return err
			}
		}
		if r.Next == "" {
			break
		}
		ask.After = r.Next
	}
	switch {
	case done == 0 && c.Match != "":
		return withHint(fmt.Errorf("no group fits %q", c.Match), "`gateway group list` shows the groups")
	case failed > 0:
		return withHint(fmt.Errorf("%d of %s could not be rekeyed", failed, count(done, "group")), "rekey each of them again when its cause is gone: `gateway group rekey NAME`")
	case c.JSON:
		return nil
	}
	_, err := fmt.Fprintf(e.stdout, "%s rekeyed; `gateway group status%s` tells how many members have the new keys\n", count(done, "group"), c.flags())
	return err
}

// tell writes a line about one of many rekeys.
func (c *groupRekeyCmd) tell(w io.Writer, g *admin.RekeyOutcome) (err error) {
	switch {
	case c.JSON:
		err = json.NewEncoder(w).Encode(g)
	case g.Error != "":
		_, err = fmt.Fprintf(w, "group %s is not rekeyed: %s\n", g.Group, g.Error)
	default:
		_, err = fmt.Fprintf(w, "group %s is at version %d now\n", g.Group, g.Version)
	}
	return err
}
