package bridge

import (
	"context"
	"errors"
	"sync"

	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// Where gateways share a store, a member's deliveries belong to the one that has
// its newest association (protocol.md, Section 10): a member that registers as an
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
// known: by the number of the lease, 0 while it is being taken. The zero value is
// ready.
type leases struct {
	mu  sync.Mutex
	own map[member]uint64
}

// begin says whether the lease of m is to be taken: it is not ours yet.
func (l *leases) begin(m member) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.own[m]; ok {
		return false
	}
	if l.own == nil {
		l.own = map[member]uint64{}
	}
	l.own[m] = 0
	return true
}

func (l *leases) taken(m member, n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.own[m] = n
}

// lost notes lease number n of another gateway, and says whether what is here of
// the member is older than it.
func (l *leases) lost(m member, n uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	mine, ok := l.own[m]
	if ok && (mine == 0 || mine > n) {
		return false // the newest association is here
	}
	delete(l.own, m)
	return true
}

func (l *leases) forget(m member) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.own, m)
}

// lease has the deliveries of m be ours, some time soon.
func (b *Bridge) lease(m member) {
	if b.store.Shared() && b.leases.begin(m) {
		b.calls.add(func(ctx context.Context) { b.takeLease(ctx, m) })
	}
}

// takeLease writes the lease. Numbers only grow while a member is one.
func (b *Bridge) takeLease(ctx context.Context, m member) {
	var n uint64
	err := b.store.Update(ctx, func(tx *store.Tx) error {
		var holder string
		err := tx.QueryRow(`SELECT gateway, n FROM bridge_lease WHERE grp = ? AND node = ?`, m.group, m.node).Scan(&holder, &n)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if holder == b.store.Gateway() {
			return nil // from before a restart
		}
		n++
		if _, err := tx.Exec(`INSERT INTO bridge_lease (grp, node, gateway, n) VALUES (?, ?, ?, ?)
			ON CONFLICT (grp, node) DO UPDATE SET gateway = excluded.gateway, n = excluded.n`,
			m.group, m.node, b.store.Gateway(), n); err != nil {
			return err
		}
		return tx.Emit(eventLease, m.group, groupcomm.Event{
			Group: m.group, Node: m.node, Version: n, Reason: b.store.Gateway(),
		}.Encode())
	})
	if err != nil {
		b.leases.forget(m) // its next registration tries again
		if ctx.Err() == nil {
			b.log.WarnContext(ctx, "deliveries to a member may come from two gateways", "group", m.group, "node", m.node, "err", err)
		}
		return
	}
	b.leases.taken(m, n)
}

// leased lets a member go that associated with another gateway. Its observations
// here end without a word: nobody listens.
func (b *Bridge) leased(ctx context.Context, e *groupcomm.Event) {
	m := member{e.Group, e.Node}
	if e.Reason == b.store.Gateway() || !b.leases.lost(m, e.Version) {
		return
	}
	b.log.DebugContext(ctx, "a member is with another gateway now", "group", m.group, "node", m.node)
	b.controls.take(m)
	b.ended(m.group, m.node, nil)
	b.activity.unobserved(m)
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
