package bridge

import (
	"context"
	"fmt"
	"time"

	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// States of a member in the ledger.
const (
	StateCurrent     = "current"     // confirmed the group's version
	StatePending     = "pending"     // does not have it yet, or did not say so
	StateAsleep      = "asleep"      // pending, and the last attempt found nobody
	StateUnreachable = "unreachable" // pending for too long
	StateLapsed      = "lapsed"      // its token expired; gets no newer key
)

// LedgerEntry is what is known of one member's deliveries.
type LedgerEntry struct {
	Node      string
	Channel   string // observe, control, mqtt, poll or none
	Confirmed uint64 // newest version that the member is known to hold; 0 also when none is
	Shown     bool   // whether it showed one
	// ConfirmedBy is the channel that showed it first: there may be several.
	ConfirmedBy string
	State       string
	Since       time.Time // of the state; zero: not known
	LastHeard   time.Time // zero: never
	NextWake    time.Time // announced; zero: not known
	// AwakeUntil is announced as well, and UsualGap is learned: between the ends of
	// its silences. Zero: not known.
	AwakeUntil time.Time
	UsualGap   time.Duration
	HeldUntil  time.Time // so long it may wait for its turn; zero: it does not
	Attempts   int       // since the member was last heard
	LastError  string
	Online     *bool     // whether it has a session at the MQTT broker; nil: not known
	Want       string    // channel that the member asked for; "": all that it has
	Channels   []Attempt // newest outcome of each channel since the gateway started
	Tree       *TreeLeaf // nil: it does not follow a key tree
}

// Ledger returns the deliveries of a group's members, in the order of the
// Group Manager's list. It is derived: members from the Group Manager, versions
// from confirmations, the rest from what this process saw. A confirmation is
// shown once it is on disk: what an operator was shown, a crash does not undo.
func (b *Bridge) Ledger(ctx context.Context, group string) ([]LedgerEntry, error) {
	entries, _, err := b.ledger(ctx, group)
	return entries, err
}

// ledger tells what the entries are derived from, too.
func (b *Bridge) ledger(ctx context.Context, group string) ([]LedgerEntry, *standing, error) {
	st, err := b.standing(ctx, group, false)
	if err != nil {
		return nil, nil, fmt.Errorf("bridge: ledger of %q: %w", group, err)
	}
	entries := make([]LedgerEntry, 0, len(st.members))
	for _, m := range st.members {
		c, shown := st.confirmed[m.Node] // the first version is 0
		a := b.activity.of(member{group, m.Node})
		e := LedgerEntry{
			Node:      m.Node,
			Channel:   channelNone,
			Confirmed: c.version,
			Shown:     shown,

			ConfirmedBy: c.channel,
			LastHeard:   later(c.at, a.heard),
			NextWake:    a.wakeAt,
			AwakeUntil:  a.asleepAt,
			UsualGap:    a.gap,
			Attempts:    a.attempts,
			LastError:   a.lastError,
			Want:        a.want,
			Channels:    a.tried,
		}
		route := st.routes[m.Node]
		if a.online && route.channel == channelMQTT {
			e.Online = &a.connected
		}
		st.group.byTree(route, st.version, &a)
		switch {
		case route.channel != "":
			e.Channel = route.channel
		case a.channel != "":
			e.Channel = a.channel
		case c.channel != "":
			e.Channel = c.channel
		}
		e.State, e.Since = st.of(m, c, shown, a)
		if e.State != StateCurrent && e.State != StateLapsed {
			e.HeldUntil, _ = b.held(member{group, m.Node})
		}
		e.Tree = st.group.leaf(route, &e, &a, st.now)
		entries = append(entries, e)
	}
	return entries, st, nil
}

// standing is what the state of a group's members is derived from.
type standing struct {
	judge
	members   []groupcomm.Member
	confirmed map[string]confirmation // by node
	routes    map[string]route        // likewise
}

// standing reads it; brief: without the channels of confirmations.
func (b *Bridge) standing(ctx context.Context, group string, brief bool) (*standing, error) {
	members, err := b.source.Members(ctx, group)
	if err != nil {
		return nil, err
	}
	version, _, err := b.source.RekeyMessage(ctx, group)
	if err != nil {
		return nil, err
	}
	confirmed, routes, err := b.readLedger(ctx, group, brief)
	if err != nil {
		return nil, err
	}
	state, err := b.upTo(ctx, group, version)
	if err != nil {
		return nil, err
	}
	j := judge{version: version, group: state, policy: b.policy(group), asleepAfter: b.cfg.AsleepAfter, now: time.Now()}
	return &standing{j, members, confirmed, routes}, nil
}

// judge says in which state a member is:
//
//	current      it confirmed the group's version
//	pending      it did not, and may be under way
//	asleep       it announced that it sleeps, does so by habit, or does not answer
//	unreachable  behind and silent for longer than the policy allows
//	lapsed       its token expired
type judge struct {
	version     uint64
	group       groupState
	policy      Policy
	asleepAfter time.Duration
	now         time.Time
}

func (j judge) of(m groupcomm.Member, c confirmation, shown bool, t trace) (state string, since time.Time) {
	switch {
	case m.Lapsed:
		return StateLapsed, m.Expires
	case shown && c.version >= j.version:
		return StateCurrent, c.at
	}
	due := j.due(m, c, shown)
	// Silence begins when there was something to hear, or with what it announced.
	silent := later(later(due, later(c.at, t.heard)), t.wakeAt)
	if over := silent.Add(j.policy.UnreachableAfter); !silent.IsZero() && j.now.After(over) {
		return StateUnreachable, over
	}
	switch {
	case t.asleep(j.now):
		return StateAsleep, t.asleepAt
	case !t.failed.IsZero():
		return StateAsleep, t.failed
	case !t.relayed.IsZero() && j.now.Sub(t.relayed) > j.asleepAfter:
		return StateAsleep, t.relayed
	case t.gap >= learnedSleep && j.now.Sub(t.heard) >= shortestSleep:
		return StateAsleep, t.heard
	}
	if due.IsZero() {
		return StatePending, t.heard
	}
	return StatePending, due
}

// due is when the first version became due that a member does not hold, zero when
// it was given the newest with its join and did not show it yet: it has something to
// hear from the next rekey on.
func (j judge) due(m groupcomm.Member, c confirmation, shown bool) time.Time {
	given := m.JoinedAt
	if shown {
		given = max(given, c.version)
	}
	if at, ok := j.group.after(given); ok || !shown {
		return at
	}
	return j.group.since
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// route is how an enrolled member is told.
type route struct {
	channel string
	follows bool  // it follows the group's key tree
	tree    bool  // and has a place in it
	leaf    int64 // that
}

// byTree notes in a trace what was sent to all of a key tree at once.
func (g *groupState) byTree(r route, version uint64, t *trace) {
	if r.tree && t.relayed.IsZero() && g.tree.num == version && g.tree.at.After(t.heard) {
		t.relayed = g.tree.at
	}
}

// readLedger reads the confirmations of a group and who is enrolled; brief: without
// the channels.
func (b *Bridge) readLedger(ctx context.Context, group string, brief bool) (confirmed map[string]confirmation, routes map[string]route, err error) {
	err = b.store.View(ctx, func(tx *store.Tx) error {
		confirmed, routes = map[string]confirmation{}, map[string]route{}
		what := `channel`
		if brief {
			what = `''`
		}
		rows, err := tx.Query(`SELECT node, version, `+what+`, at FROM bridge_confirmed WHERE grp = ?`, group)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var node, channel string
			var version, at int64
			if err := rows.Scan(&node, &version, &channel, &at); err != nil {
				return err
			}
			confirmed[node] = confirmation{uint64(version), channel, time.Unix(at, 0)}
		}
		if err := rows.Err(); err != nil {
			return err
		}
		regs, err := tx.Query(`SELECT node, route, leaf, tid FROM bridge_registration WHERE grp = ?`, group)
		if err != nil {
			return err
		}
		defer regs.Close()
		for regs.Next() {
			var node, tid string
			var r route
			if err := regs.Scan(&node, &r.channel, &r.leaf, &tid); err != nil {
				return err
			}
			r.follows, r.tree = tid != "", r.leaf >= 0
			routes[node] = r
		}
		return regs.Err()
	})
	return confirmed, routes, err
}
