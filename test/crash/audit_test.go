package crash

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// lookAgain is the pause between two looks at what must come true.
const lookAgain = 5 * time.Millisecond

// until looks again and again until look says true, an error, or time is up.
func until(ctx context.Context, look func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, quietTime)
	defer cancel()
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for {
		if ok, err := look(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// audit compares, while nobody else asks for anything, what the admin API shows
// with what was acknowledged. What is due comes first: nothing but the database
// can know of it after a kill.
func (w *world) audit(t testing.TB) {
	t.Helper()
	for _, group := range w.load.groups {
		info, err := w.settledGroup(t.Context(), group)
		if err != nil {
			w.ledger.breach(group, "no settled state: %v", err)
			continue
		}
		w.compare(group, info)
	}
}

// settledGroup shows a group after the rekeys that are owed and due.
func (w *world) settledGroup(ctx context.Context, group string) (*admin.GroupInfo, error) {
	a := w.admin()
	var info *admin.GroupInfo
	owed, since := w.ledger.owed(group), w.ledger.floor(group)
	err := until(ctx, func() (bool, error) {
		list, err := a.Groups(ctx)
		if err != nil {
			return false, err
		}
		before := list[0]
		for _, g := range list {
			if g.Name == group {
				before = g
			}
		}
		if info, err = a.Group(ctx, group); err != nil {
			return false, err
		}
		after, err := a.Group(ctx, group)
		if err != nil {
			return false, err
		}
		// Between two equal versions the members are those of that version.
		return !before.RekeyDue && before.Version == info.Version && info.Version == after.Version && info.Version >= owed, nil
	})
	if errors.Is(err, context.DeadlineExceeded) && info.Version < owed {
		err = fmt.Errorf("version is %d, but a membership that ended leads to %d: %w", info.Version, owed, err)
	}
	if err != nil {
		return nil, err
	}
	gid, err := hex.DecodeString(info.Gid)
	if err != nil {
		return nil, err
	}
	w.ledger.current(group, since, info.Version, gid, cose.Secret{})
	return info, nil
}

// compare holds the shown members against what the clients know.
func (w *world) compare(group string, info *admin.GroupInfo) {
	gid, _ := hex.DecodeString(info.Gid) // settledGroup decoded it
	shown := map[string]groupcomm.SenderID{}
	ids := map[string]string{}
	for _, m := range info.Members {
		if _, twice := shown[m.Node]; twice {
			w.ledger.breach(group, "node %s is shown twice", m.Node)
		}
		shown[m.Node] = nil
		if m.SenderID == nil {
			continue
		}
		if other, twice := ids[*m.SenderID]; twice {
			w.ledger.breach(group, "nodes %s and %s have Sender ID %q", other, m.Node, *m.SenderID)
		}
		ids[*m.SenderID] = m.Node
		sid, err := hex.DecodeString(*m.SenderID)
		if err != nil {
			w.ledger.breach(group, "node %s: %v", m.Node, err)
		}
		shown[m.Node] = append(groupcomm.SenderID{}, sid...)
	}
	strangers := 0 // that may be: first joins that were cut off
	for _, c := range w.clients {
		c.mu.Lock()
		if c.group == group {
			strangers += w.compareClient(c, gid, shown)
		}
		c.mu.Unlock()
	}
	if len(shown) > strangers {
		for node := range shown {
			if why, ok := w.endedBy(group, node); ok {
				w.ledger.breach(group, "node %s is a member in spite of its %s", node, why)
			}
		}
		w.ledger.breach(group, "%d members that nobody knows, at most %d may be: %v", len(shown), strangers, shown)
	}
}

// compareClient takes the client's membership out of shown, and returns how
// many unknown members it explains.
func (w *world) compareClient(c *client, gid groupcomm.Gid, shown map[string]groupcomm.SenderID) (strangers int) {
	if c.at == outside {
		return 0
	}
	if c.at == uncertain && c.doubt == joining {
		return 1
	}
	sid, member := shown[c.node]
	delete(shown, c.node)
	switch {
	case !member && c.at == uncertain && c.doubt == ending:
		return 0
	case !member:
		w.ledger.breach(c.group, "node %s (%s), an acknowledged member, is missing", c.node, c.who())
		return 0
	case c.at == uncertain && c.doubt == changing:
		return 0 // the client will see which
	case !bytes.Equal(sid, c.sid) || (sid == nil) != (c.sid == nil):
		w.ledger.breach(c.group, "node %s is shown with Sender ID %q, but was given %q", c.node, sid, c.sid)
		return 0
	}
	w.ledger.holds(c.group, gid, c.sid, c.who())
	return 0
}

func (w *world) endedBy(group, node string) (why string, ok bool) {
	w.ledger.mu.Lock()
	defer w.ledger.mu.Unlock()
	why, ok = w.ledger.groups[group].ended[node]
	return why, ok
}
