package bridge

import (
	"context"
	"errors"
	"sync"

	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// Where gateways share a store, a member's deliveries belong to the one that has
// its newest association (docs/protocol.md, Section 10): a member that registers as an
// observer, or is heard with a control_uri, at one gateway is let go by the
// others, which would else send every rekey to an association that is nobody's
// any more, and its eviction twice. bridge_lease says who has whom, and an event
// tells of every change.
//
// A lease has no end of its own. One of a gateway that died is in nobody's way:
// what a member can be reached by was at that gateway, and the next registration
// anywhere takes the lease. Messages over MQTT are not leased: they are the same
// bytes whoever brings them out, and one gateway at a time does, see publish.

// Kinds of events of this room's own.
const (
	eventLease   = "bridge.lease"   // Node of the group has its newest association at the gateway in Reason
	eventRevoked = "bridge.revoked" // the key is the identifier of a registration that ended
)

// leases are the members that have their newest association here, as far as is
// known. The zero value is ready.
type leases struct {
	mu  sync.Mutex
	own map[member]lease
}

type lease struct {
	n      uint64 // number of the lease; 0: not written yet
	taking int    // attempts under way
	other  uint64 // newest lease of another gateway that came meanwhile
}

func (l *leases) begin(m member) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.own == nil {
		l.own = map[member]lease{}
	}
	v := l.own[m]
	v.taking++
	l.own[m] = v
}

// end notes what came of an attempt: the number of the lease, 0 for none. lost
// says that another gateway took it after us.
func (l *leases) end(m member, n uint64) (lost bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v, ok := l.own[m]
	if !ok {
		return false // the membership is over
	}
	v.taking--
	v.n = max(v.n, n)
	l.own[m] = v
	if v.taking > 0 {
		return false // the last one says
	}
	if lost = v.other > v.n; lost || v.n == 0 {
		delete(l.own, m)
	} else {
		v.other = 0
		l.own[m] = v
	}
	return lost
}

// lost notes lease number n of another gateway, and says whether what is here of
// the member is older than it. Where that cannot be said yet, end does.
func (l *leases) lost(m member, n uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	v, ok := l.own[m]
	switch {
	case ok && v.taking > 0:
		v.other = max(v.other, n)
		l.own[m] = v
		return false
	case ok && v.n > n:
		return false // the newest association is here
	}
	delete(l.own, m)
	return true
}

// unlessOurs runs fn if m is not ours, nor about to be. A registration that begins
// meanwhile waits for it, so fn takes nothing away of what comes after.
func (l *leases) unlessOurs(m member, fn func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.own[m]; !ok {
		fn()
	}
}

func (l *leases) has(m member) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	v, ok := l.own[m]
	return ok && v.n != 0
}

func (l *leases) forget(m member) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.own, m)
}

// lease has the deliveries of m be ours before it is answered: only so is the order
// of leases that of its associations, however fast it goes from one gateway to
// another and back. What this process knows of its own lease is as old as the last
// event, so each registration of an observer looks; a request of a member with a
// control_uri, of which there are more, believes it.
//
// note takes down how the member is reached. Where a lease is taken it has begun by
// then: else an older one of another gateway could have that let go.
func (b *Bridge) lease(m member, observing bool, note func()) {
	if !b.store.Shared() || !observing && b.leases.has(m) {
		note()
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookupTimeout)
	defer cancel()
	b.takeLease(ctx, m, true, note)
}

// takeLease writes the lease; one of another gateway is taken only if anyway is
// set. Numbers only grow while a member is one.
func (b *Bridge) takeLease(ctx context.Context, m member, anyway bool, note func()) {
	b.leases.begin(m)
	note()
	n, holder, err := b.writeLease(ctx, m, anyway)
	if err != nil && !errors.Is(err, context.Canceled) { // its next registration tries again
		b.log.WarnContext(ctx, "deliveries to a member may come from two gateways", "group", m.group, "node", m.node, "err", err)
	}
	elsewhere := err == nil && holder != b.store.Gateway()
	if err != nil || elsewhere {
		n = 0
	}
	if b.leases.end(m, n) || elsewhere {
		b.letGo(ctx, m)
	}
}

// writeLease returns the lease as it is then.
func (b *Bridge) writeLease(ctx context.Context, m member, anyway bool) (n uint64, holder string, err error) {
	own := b.store.Gateway()
	read := func(tx *store.Tx) error {
		n, holder = 0, ""
		err := tx.QueryRow(`SELECT gateway, n FROM bridge_lease WHERE grp = ? AND node = ?`, m.group, m.node).Scan(&holder, &n)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		return err
	}
	if err := b.store.View(ctx, read); err != nil || holder == own || holder != "" && !anyway {
		return n, holder, err
	}
	err = b.store.Update(ctx, func(tx *store.Tx) error {
		// One statement, because another gateway may write at the same time: each
		// gets a number of its own.
		change := `NOTHING`
		if anyway {
			change = `UPDATE SET gateway = excluded.gateway, n = bridge_lease.n + 1`
		}
		wrote, err := tx.Exec(`INSERT INTO bridge_lease (grp, node, gateway, n) VALUES (?, ?, ?, 1) ON CONFLICT (grp, node) DO `+change,
			m.group, m.node, own)
		if err != nil {
			return err
		}
		if err := read(tx); err != nil || wrote == 0 {
			return err
		}
		return tx.Emit(eventLease, m.group, groupcomm.Event{Group: m.group, Node: m.node, Version: n, Reason: own}.Encode())
	})
	return n, holder, err
}

// leased lets a member go that associated with another gateway. Its observations
// here end without a word: nobody listens.
func (b *Bridge) leased(ctx context.Context, e *groupcomm.Event) {
	m := member{e.Group, e.Node}
	if e.Reason == b.store.Gateway() || !b.leases.lost(m, e.Version) {
		return
	}
	b.letGo(ctx, m)
}

// letGo ends what is here of a member that is with another gateway, unless it
// comes back at this moment.
func (b *Bridge) letGo(ctx context.Context, m member) {
	b.leases.unlessOurs(m, func() {
		b.log.DebugContext(ctx, "a member is with another gateway now", "group", m.group, "node", m.node)
		b.controls.take(m)
		b.ended(m.group, m.node, nil)
		b.activity.unobserved(m)
	})
}

// revoked ends the session of a registration that ended at any gateway, and has
// its retained messages deleted from the broker that is ours alone.
func (b *Bridge) revoked(rid string) {
	if b.broker == nil {
		return
	}
	b.broker.disconnect(rid)
	b.publisher.clear(rid)
}
