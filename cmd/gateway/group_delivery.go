package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/seed4911071e/groupgate/admin"
)

// watchEvery is how often a watch asks; a gateway with a large group is asked
// less often, so that this costs it a fifth of its time at most.
const watchEvery = 250 * time.Millisecond

type groupStatusCmd struct {
	where
	Name string `arg:"" optional:"" help:"Name of the group. Default: all groups, without their members."`
	All  bool   `help:"With a name: list the members that have the newest version, too."`
	JSON bool   `help:"Print JSON."`
}

// Run tells how far the newest rekeys have come.
func (c *groupStatusCmd) Run(e *env) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	if c.Name != "" {
		d, err := client.Delivery(e.ctx, c.Name, true)
		if err != nil {
			return err
		}
		if c.JSON {
			return printJSON(e.stdout, d)
		}
		return printDelivery(e.stdout, d, c.All)
	}
	groups, err := client.Groups(e.ctx)
	if err != nil {
		return err
	}
	list := make([]*admin.DeliveryInfo, 0, len(groups))
	for _, g := range groups {
		d, err := client.Delivery(e.ctx, g.Name, false)
		if err != nil {
			return err
		}
		list = append(list, d)
	}
	if c.JSON {
		return printJSON(e.stdout, list)
	}
	t := table(e.stdout, "GROUP", "VERSION", "DELIVERED", "%", "PENDING", "ASLEEP", "UNREACHABLE", "LAPSED", "SINCE", "KEY TREE")
	for _, d := range list {
		row(t, d.Group, d.Version, fmt.Sprintf("%d/%d", d.Delivered, d.Members), percent(d), d.Pending, d.Asleep, d.Unreachable, d.Lapsed, ago(d.Since), treeMark(d.Tree))
	}
	return t.Flush()
}

func percent(d *admin.DeliveryInfo) string { return fmt.Sprintf("%.1f", d.Percent) }

// printDelivery prints a group's ledger, those first who lack something.
func printDelivery(w io.Writer, d *admin.DeliveryInfo, all bool) error {
	if _, err := fmt.Fprintf(w, "group %s, version %d since %s: %s\n", d.Group, d.Version, ago(d.Since), tally(d)); err != nil {
		return err
	}
	if d.Tree != nil {
		if _, err := fmt.Fprintln(w, treeLine(d.Tree)); err != nil {
			return err
		}
	}
	rank := map[string]int{"unreachable": 0, "asleep": 1, "pending": 2, "lapsed": 3, "current": 4}
	list := slices.Clone(d.Ledger)
	slices.SortStableFunc(list, func(a, b admin.DeliveryMember) int { return cmp.Compare(rank[a.State], rank[b.State]) })
	if !all {
		list = slices.DeleteFunc(list, func(m admin.DeliveryMember) bool { return m.State == "current" })
	}
	if len(list) == 0 {
		return nil
	}
	t := table(w, "NODE", "HOLDS", "STATE", "SINCE", "LAST HEARD", "WAKES", "ATTEMPTS", "CHANNELS", "LAST ERROR")
	for _, m := range list {
		holds, wakes := "-", "-"
		if m.Version != nil {
			holds = fmt.Sprint(*m.Version)
		}
		if m.NextWake != nil {
			wakes = due(m.NextWake)
		}
		row(t, m.Node, holds, m.State, ago(m.Since), ago(m.LastHeard), wakes, m.Attempts, channels(&m), trouble(&m))
	}
	return t.Flush()
}

// trouble is what keeps a member from the newest version, as far as is known.
func trouble(m *admin.DeliveryMember) string {
	if m.Twin == "" {
		return m.LastError
	}
	return "joined again as " + m.Twin + "?"
}

// channels lists how a member was tried, with the outcomes.
func channels(m *admin.DeliveryMember) string {
	var list []string
	for _, c := range m.Channels {
		list = append(list, c.Channel+" "+c.Result)
	}
	if list == nil {
		list = append(list, m.Channel)
	}
	if m.HeldUntil != nil {
		list = append(list, "held, "+rough(time.Until(*m.HeldUntil))+" at most")
	}
	if s := missed(m.Tree); s != "" {
		list = append(list, s)
	}
	if m.Connected != nil && !*m.Connected {
		list = append(list, "not at the broker")
	}
	if m.Want != "" {
		list = append(list, "wants "+m.Want)
	}
	return strings.Join(list, ", ")
}

// tally is the progress in one line.
func tally(d *admin.DeliveryInfo) string {
	s := fmt.Sprintf("%d of %s have it (%s %%)", d.Delivered, count(d.Members, "member"), percent(d))
	for _, part := range []struct {
		n    int
		what string
	}{{d.Pending, "pending"}, {d.Asleep, "asleep"}, {d.Unreachable, "unreachable"}, {d.Lapsed, "lapsed"}} {
		if part.n > 0 {
			s += fmt.Sprintf(", %d %s", part.n, part.what)
		}
	}
	if d.Held > 0 {
		s += fmt.Sprintf("; %d held until others have it", d.Held)
		if d.HeldUntil != nil {
			s += ", at the latest until " + d.HeldUntil.Local().Format(time.TimeOnly)
		}
	}
	return s
}

// notYetError is that of a command which waited, where what it waited for has not come.
type notYetError string

func (e notYetError) Error() string { return string(e) }

// watch follows the delivery of a version, and of those that take its place, until every
// member has the newest; that it has not come so far when the time is over or the command
// is interrupted is a notYetError, and the delivery itself goes on.
func (c *groupRekeyCmd) watch(e *env, client *admin.Client, version uint64) error {
	var limit <-chan time.Time
	if c.For > 0 {
		timer := time.NewTimer(c.For)
		defer timer.Stop()
		limit = timer.C
	}
	show := c.shower(e.stdout)
	var last *admin.DeliveryInfo // nil: nothing was heard
	for {
		began := time.Now()
		d, err := client.Delivery(e.ctx, c.Name, false)
		if e.ctx.Err() != nil {
			return c.notYet(show, last, "interrupted")
		}
		switch {
		case err != nil:
			return errors.Join(show.end(""), err)
		case d.Version < version:
			return errors.Join(show.end(""), fmt.Errorf("group %s was deleted, and created anew, before all had version %d", c.Name, version))
		case d.Version > version:
			if err := show.note(fmt.Sprintf("version %d came meanwhile and takes the place of %d", d.Version, version)); err != nil {
				return err
			}
			version = d.Version
		}
		if err := show.progress(d); err != nil {
			return err
		}
		if last = d; d.Delivered == d.Members {
			return show.end("every member has it" + took(d))
		}
		timer := time.NewTimer(max(watchEvery, 4*time.Since(began)))
		select {
		case <-timer.C:
		case <-limit:
			timer.Stop()
			return c.notYet(show, last, "the time is over")
		case <-e.ctx.Done():
			timer.Stop()
			return c.notYet(show, last, "interrupted")
		}
	}
}

// notYet ends a watch before all have what it was for.
func (c *groupRekeyCmd) notYet(show *shower, d *admin.DeliveryInfo, why string) error {
	if err := show.end(why + "; the delivery goes on"); err != nil {
		return err
	}
	lack := "nothing was heard of the delivery yet"
	if d != nil {
		lack = fmt.Sprintf("version %d of group %s is not confirmed yet by %d of %s", d.Version, c.Name, d.Members-d.Delivered, count(d.Members, "member"))
	}
	return withHint(notYetError(lack),
		fmt.Sprintf("`gateway group status %s%s` lists them, `gateway why NODE %s%s` tells what one of them waits for", c.Name, c.flags(), c.Name, c.flags()))
}

// shower shows progress: a bar on a terminal, else a line for each change.
type shower struct {
	w    io.Writer
	json bool
	term bool
	last string
}

func (c *groupRekeyCmd) shower(w io.Writer) *shower {
	s := &shower{w: w, json: c.JSON}
	if f, ok := w.(*os.File); ok && !c.JSON {
		info, err := f.Stat()
		s.term = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return s
}

const barWidth = 30

func bar(d *admin.DeliveryInfo) string {
	n := 0
	if d.Members > 0 {
		n = barWidth * d.Delivered / d.Members
	}
	return strings.Repeat("█", n) + strings.Repeat("░", barWidth-n)
}

func (s *shower) progress(d *admin.DeliveryInfo) (err error) {
	if s.json {
		b, err := json.Marshal(d)
		if err != nil {
			return err
		}
		if string(b) != s.last {
			s.last = string(b)
			_, err = fmt.Fprintf(s.w, "%s\n", b)
		}
		return err
	}
	said := tally(d) + treeTally(d.Tree)
	line := fmt.Sprintf("version %d: %s", d.Version, said) // the next version may have come as far
	switch {
	case s.term:
		_, err = fmt.Fprintf(s.w, "\r\x1b[K%s %s", bar(d), said)
	case line != s.last:
		_, err = fmt.Fprintln(s.w, line)
	}
	s.last = line
	return err
}

// note says something between two lines of progress.
func (s *shower) note(text string) (err error) {
	switch {
	case s.json:
	case s.term:
		_, err = fmt.Fprintf(s.w, "\r\x1b[K%s\n", text)
	default:
		_, err = fmt.Fprintln(s.w, text)
	}
	return err
}

// end says how it ended, on a line of its own; "": elsewhere.
func (s *shower) end(how string) (err error) {
	if s.term && s.last != "" {
		_, err = fmt.Fprintln(s.w)
	}
	if err != nil || s.json || how == "" {
		return err
	}
	_, err = fmt.Fprintln(s.w, how)
	return err
}

// took tells how long a delivery took that is over.
func took(d *admin.DeliveryInfo) string {
	if d.Since == nil || d.Done == nil {
		return ""
	}
	return fmt.Sprintf(", %s after the rekey", rough(d.Done.Sub(*d.Since)))
}
