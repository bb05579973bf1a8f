package bridge

import (
	"context"
	"fmt"
	"sync"
	"time"

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
	Channel   string // observe, mqtt, poll or none
	Confirmed uint64 // newest version that the member is known to hold; 0 also when none is
	State     string
	LastHeard time.Time // zero: never
	Attempts  int       // since the member was last heard
	LastError string
}

// Ledger returns the deliveries of a group's members, in the order of the
// Group Manager's list. It is derived: members from the Group Manager, versions
// from confirmations, the rest from what this process saw. A confirmation is
// shown once it is on disk: what an operator was shown, a crash does not undo.
func (b *Bridge) Ledger(ctx context.Context, group string) ([]LedgerEntry, error) {
	members, err := b.source.Members(ctx, group)
	if err != nil {
		return nil, fmt.Errorf("bridge: ledger of %q: %w", group, err)
	}
	version, _, err := b.source.RekeyMessage(ctx, group)
	if err != nil {
		return nil, fmt.Errorf("bridge: ledger of %q: %w", group, err)
	}
	confirmed, enrolled, err := b.readLedger(ctx, group)
	if err != nil {
		return nil, fmt.Errorf("bridge: ledger of %q: %w", group, err)
	}
	b.mu.Lock()
	since := b.groups[group].since
	b.mu.Unlock()
	now := time.Now()

	entries := make([]LedgerEntry, 0, len(members))
	for _, m := range members {
		c, shown := confirmed[m.Node] // the first version is 0
		a := b.activity.of(member{group, m.Node})
		e := LedgerEntry{
			Node:      m.Node,
			Channel:   channelNone,
			Confirmed: c.version,
			LastHeard: c.at,
			Attempts:  a.attempts,
			LastError: a.lastError,
		}
		if a.heard.After(e.LastHeard) {
			e.LastHeard = a.heard
		}
		switch {
		case enrolled[m.Node]:
			e.Channel = channelMQTT
		case a.channel != "":
			e.Channel = a.channel
		case c.channel != "":
			e.Channel = c.channel
		}
		switch {
		case m.Lapsed:
			e.State = StateLapsed
		case shown && c.version >= version:
			e.State = StateCurrent
		case !since.IsZero() && now.Sub(later(since, e.LastHeard)) > b.cfg.UnreachableAfter:
			e.State = StateUnreachable
		case a.lastError != "", !a.relayed.IsZero() && now.Sub(a.relayed) > b.cfg.AsleepAfter:
			e.State = StateAsleep
		default:
			e.State = StatePending
		}
		entries = append(entries, e)
	}
	return entries, nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// readLedger reads the confirmations of a group and who is enrolled for MQTT.
func (b *Bridge) readLedger(ctx context.Context, group string) (confirmed map[string]confirmation, enrolled map[string]bool, err error) {
	err = b.store.View(ctx, func(tx *store.Tx) error {
		confirmed, enrolled = map[string]confirmation{}, map[string]bool{}
		rows, err := tx.Query(`SELECT node, version, channel, at FROM bridge_confirmed WHERE grp = ?`, group)
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
		regs, err := tx.Query(`SELECT node FROM bridge_registration WHERE grp = ?`, group)
		if err != nil {
			return err
		}
		defer regs.Close()
		for regs.Next() {
			var node string
			if err := regs.Scan(&node); err != nil {
				return err
			}
			enrolled[node] = true
		}
		return regs.Err()
	})
	return confirmed, enrolled, err
}

// trace is what this process saw of one member. It is not kept: after a
// restart a member is pending until it is tried again.
type trace struct {
	channel   string
	heard     time.Time // last sign of life
	relayed   time.Time // when the broker took the message that is pending
	attempts  int
	lastError string
}

// activity holds the traces.
type activity struct {
	mu     sync.Mutex
	traces map[member]trace
}

func newActivity() *activity { return &activity{traces: map[member]trace{}} }

func (a *activity) of(m member) trace {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.traces[m]
}

func (a *activity) forget(m member) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.traces, m)
}

// heard notes a sign of life, which ends what was tried before. A member that
// observes may ask now and then as well: that does not make it a poller.
func (a *activity) heard(m member, channel string, at time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if channel == channelPoll && a.traces[m].channel == channelObserve {
		channel = channelObserve
	}
	a.traces[m] = trace{channel: channel, heard: at}
}

// unobserved notes that an observation ended.
func (a *activity) unobserved(m member) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.traces[m]
	if t.channel == channelObserve {
		t.channel = ""
		a.traces[m] = t
	}
}

// attempted notes a failed attempt.
func (a *activity) attempted(m member, channel string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.traces[m]
	t.channel, t.lastError = channel, err.Error()
	t.attempts++
	a.traces[m] = t
}

// relayedAt notes that the broker has the message; the member does not need to.
func (a *activity) relayedAt(m member, at time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.traces[m]
	t.channel, t.relayed, t.lastError = channelMQTT, at, ""
	t.attempts++
	a.traces[m] = t
}
