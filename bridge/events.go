package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// handle works on a run of the event log. It may see an event twice: after a
// crash the cursor is behind. All of it is harmless to repeat.
//
// Only the newest state matters (RFC 7641, Section 4.4), so several rekeys of
// one group in a run are one notification.
func (b *Bridge) handle(ctx context.Context, events []store.Event) error {
	rekeyed := map[string]store.Event{}
	var order []string
	for _, e := range events {
		switch e.Kind {
		case groupcomm.EventLeft, groupcomm.EventEvicted, groupcomm.EventJoined:
			if b.store.Shared() && b.publisher != nil {
				b.publisher.wakeRevoked() // by another gateway, perhaps
			}
		}
		switch e.Kind {
		case eventRevoked:
			b.revoked(e.Key)
			continue
		case eventLease, groupcomm.EventRekeyed, groupcomm.EventEvicted, groupcomm.EventLeft, groupcomm.EventTokenExpired, groupcomm.EventDeleted,
			groupcomm.EventState, groupcomm.EventCreated:
		default:
			continue
		}
		ev, err := groupcomm.DecodeEvent(e.Data)
		if err != nil {
			// Retrying cannot mend it, and it must not stop what comes after.
			b.log.ErrorContext(ctx, "unreadable event", "id", e.ID, "kind", e.Kind, "err", err)
			continue
		}
		switch e.Kind {
		case groupcomm.EventRekeyed:
			group := e.Key
			if !slices.Contains(order, group) {
				order = append(order, group)
			}
			rekeyed[group] = e
		case eventLease:
			b.leased(ctx, ev)
		case groupcomm.EventEvicted:
			b.leases.forget(member{e.Key, ev.Node})
			b.holds.forget(member{e.Key, ev.Node})
			b.rolls.strike(e.Key, ev.Subject)
			b.evictedMember(e.Key, ev.Node)
		case groupcomm.EventLeft:
			b.rolls.strike(e.Key, ev.Subject)
			b.leases.forget(member{e.Key, ev.Node})
			b.holds.forget(member{e.Key, ev.Node})
			b.controls.take(member{e.Key, ev.Node})
			b.ended(e.Key, ev.Node, nil)
		case groupcomm.EventTokenExpired:
			b.expired(ev.Subject)
		case groupcomm.EventState:
			topic := activeTopic(e.Key)
			b.hub.Publish(topic, b.small(ctx, nil, e.Key, topic, ev.Version, groupcomm.EncodeActive(ev.Reason == groupcomm.StateActive)))
		case groupcomm.EventCreated:
			b.knowGroup(e.Key)
		case groupcomm.EventDeleted:
			delete(rekeyed, e.Key) // what came before is for nobody any more
			b.deleted(ctx, e.Key)
		}
	}
	for _, group := range order {
		if _, ok := rekeyed[group]; !ok {
			continue
		}
		if err := b.rekeyed(ctx, group, rekeyed[group]); err != nil {
			if ctx.Err() != nil {
				return ctx.Err() // stopping is no trouble: the event comes again after the start
			}
			// One group in trouble must not hold up the others.
			b.log.ErrorContext(ctx, "cannot deliver a rekey, trying again", "group", group, "err", err)
			b.later.add(group, rekeyed[group])
		}
	}
	return ctx.Err()
}

// backlog holds rekeys whose delivery failed and is tried again. A crash
// forgets it, and with it the observations that it is for; messages over MQTT
// do not depend on it. The zero value is not ready: use newBacklog.
type backlog struct {
	wake chan struct{} // one slot

	mu     sync.Mutex
	groups map[string]store.Event
}

func newBacklog() *backlog {
	return &backlog{wake: make(chan struct{}, 1), groups: map[string]store.Event{}}
}

func (l *backlog) add(group string, e store.Event) {
	l.mu.Lock()
	l.groups[group] = e
	l.mu.Unlock()
	signal(l.wake)
}

func (l *backlog) take() map[string]store.Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.groups
	l.groups = map[string]store.Event{}
	return out
}

// catchUp tries the backlog until ctx ends, a group at most maxRetries times:
// one that the Group Manager no longer knows never succeeds.
func (b *Bridge) catchUp(ctx context.Context) error {
	tries := map[string]int{}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-b.later.wake:
		}
		pause(ctx, retryDelay)
		for group, e := range b.later.take() {
			err := b.rekeyed(ctx, group, e)
			tries[group]++
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case err == nil:
				delete(tries, group)
			case tries[group] < maxRetries:
				b.later.add(group, e)
			default:
				b.log.ErrorContext(ctx, "giving up the delivery of a rekey to observers", "group", group, "err", err)
				delete(tries, group)
			}
		}
	}
}

// rekeyed hands the newest rekey of a group to the hub and to MQTT.
func (b *Bridge) rekeyed(ctx context.Context, group string, e store.Event) error {
	version, body, err := b.source.RekeyMessage(ctx, group)
	if gone(err) {
		b.log.DebugContext(ctx, "group is gone before its rekey was delivered", "group", group)
		return nil
	}
	if err != nil {
		return fmt.Errorf("bridge: rekey message of %q: %w", group, err)
	}
	if !b.holds.known(group, version) {
		// Before anybody is told.
		if err := b.beginHold(ctx, group, version); err != nil && !gone(err) {
			return err
		}
	}
	if b.publisher != nil {
		// Also for a version that is known: a repeated event may follow messages
		// that were not there before.
		b.publisher.wakeGroup(group)
	}
	b.casts.set(group, castDue{})
	// Asked for before the version is noted, so that a failure is tried again.
	formats, legacyVersion, legacyBody, err := b.legacyRekey(ctx, group)
	if err != nil {
		return fmt.Errorf("bridge: legacy rekey message of %q: %w", group, err)
	}
	if body == nil || !b.noteGroup(group, version, e.At) {
		return nil
	}
	b.log.InfoContext(ctx, "delivering rekey", "group", group, "version", version)
	b.tell(ctx, group, version, body, formats, legacyVersion, legacyBody)
	b.callRekeys(group, version)
	b.checks.add(group) // nobody may be there to confirm it
	return nil
}

// tell hands a rekey to the hub, in each form in which it is observed.
func (b *Bridge) tell(ctx context.Context, group string, version uint64, body []byte, formats []coap.Format, legacyVersion uint64, legacyBody []byte) {
	topic := groupTopic(group)
	observing := b.observers.observing(group)
	l := b.rolls.begin(group, b.rollWorth(ctx, group, len(observing)))
	n := b.notification(ctx, l, topic, group, version, coap.ACEGroupcomm, body)
	b.hub.Publish(topic, n)
	if err := b.tellPhased(ctx, l, group, version, body); err != nil {
		b.log.ErrorContext(ctx, "cannot tell members in two phases", "group", group, "err", err)
	}
	now := time.Now()
	for _, node := range observing {
		if b.holds.dormant(member{group, node}, version, now) {
			continue // activatePhased does it
		}
		// draft-ietf-ace-key-groupcomm-oscore-21, Section 9.1.2: who observes its
		// node resource without No-Response is told there too.
		b.hub.Publish(nodeTopic(group, node), n)
	}
	for _, f := range formats {
		topic := groupcomm.LegacyTopic(group, f)
		b.hub.Publish(topic, b.notification(ctx, l, topic, group, legacyVersion, f, legacyBody))
	}
	b.hub.Publish(numTopic(group), b.small(ctx, l, group, numTopic(group), version, groupcomm.EncodeNum(version)))
}

// gone says that a group is not there, for good: to try again would hold up all
// events after this one.
func gone(err error) bool {
	return errors.Is(err, store.ErrNotFound) || err != nil && coap.Deliberate(err)
}

// evicted is what a node resource tells its observers last: "Group membership
// terminated" (draft-ietf-ace-key-groupcomm-oscore-21, Section 10).
func evicted() *coap.Response { return coap.ErrorResponse(groupcomm.ErrTerminated) }
