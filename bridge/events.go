package bridge

import (
	"context"
	"errors"
	"fmt"

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
	type due struct {
		at store.Event
		ev groupcomm.Event
	}
	rekeyed := map[string]due{}
	var order []string
	for _, e := range events {
		switch e.Kind {
		case groupcomm.EventRekeyed, groupcomm.EventEvicted, groupcomm.EventLeft, groupcomm.EventTokenExpired:
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
			if _, ok := rekeyed[group]; !ok {
				order = append(order, group)
			}
			rekeyed[group] = due{e, *ev}
		case groupcomm.EventEvicted:
			b.gone(e.Key, ev.Node, evicted())
		case groupcomm.EventLeft:
			b.gone(e.Key, ev.Node, nil)
		case groupcomm.EventTokenExpired:
			b.expired(ev.Subject)
		}
	}
	for _, group := range order {
		if err := b.rekeyed(ctx, group, rekeyed[group].at); err != nil {
			return err
		}
	}
	return nil
}

// rekeyed hands the newest rekey of a group to the hub and to MQTT.
func (b *Bridge) rekeyed(ctx context.Context, group string, e store.Event) error {
	version, body, err := b.source.RekeyMessage(ctx, group)
	if errors.Is(err, store.ErrNotFound) {
		b.log.DebugContext(ctx, "group is gone before its rekey was delivered", "group", group)
		return nil
	}
	if err != nil {
		return fmt.Errorf("bridge: rekey message of %q: %w", group, err)
	}
	if b.publisher != nil {
		// Also for a version that is known: a repeated event may follow messages
		// that were not there before.
		b.publisher.wakeGroup(group)
	}
	if body == nil || !b.noteGroup(group, version, e.At) {
		return nil
	}
	b.log.InfoContext(ctx, "delivering rekey", "group", group, "version", version)
	b.hub.Publish(groupTopic(group), b.notification(ctx, group, version, body))
	return nil
}

// evicted is what a node resource tells its observers last: "Group membership
// terminated" (draft-ietf-ace-key-groupcomm-oscore-21, Section 10).
func evicted() *coap.Response { return coap.ErrorResponse(groupcomm.ErrTerminated) }
