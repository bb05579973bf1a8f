package bridge

import (
	"context"
	"strings"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/store"
)

// Observer is a peer whose observations outlived a restart.
type Observer struct {
	Peer   coap.Peer
	Topics []string
}

// Restored tells of observations that outlived a restart, before Run: they are
// looked up, and sent what became due meanwhile, in Run.
func (b *Bridge) Restored(all []Observer) { b.restored = all }

// groupOf is the group that a topic is of, and the node, for its own resource.
func groupOf(topic string) (group, node string, ok bool) {
	kind, rest, ok := strings.Cut(topic, "/")
	if !ok || kind != "gm" && kind != "gm03" {
		return "", "", false
	}
	group, below, _ := strings.Cut(rest, "/")
	node, _ = strings.CutPrefix(below, "nodes/")
	if node == below {
		node = ""
	}
	return group, node, group != ""
}

// Publishes says whether a topic is one of those to which rekeys are published.
func Publishes(topic string) bool {
	_, _, ok := groupOf(topic)
	return ok
}

// repeater is the optional part of a hub that tells an observer once more.
type repeater interface {
	Again(topic string, link coap.LinkID)
}

// recall finds out whom the observers of before a restart are, and publishes the
// newest state of their groups: who was shown it already and confirmed it is not told
// again. Confirmations are written some at a time: an acknowledgement that came just
// before a crash may be known to the hub alone.
func (b *Bridge) recall(ctx context.Context) error {
	all := b.restored
	b.restored = nil
	groups := map[string][]Observer{}
	for _, o := range all {
		seen := map[string]bool{}
		for _, topic := range o.Topics {
			if group, _, ok := groupOf(topic); ok && !seen[group] {
				seen[group] = true
				groups[group] = append(groups[group], o)
			}
		}
	}
	for group, observers := range groups {
		members, err := b.source.Members(ctx, group)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			if !gone(err) {
				b.log.WarnContext(ctx, "cannot look up the observers of before the restart", "group", group, "err", err)
			}
			continue
		}
		names := make(map[coap.Subject]string, len(members))
		for _, m := range members {
			names[m.Subject] = m.Node
		}
		version, _, err := b.source.RekeyMessage(ctx, group)
		var confirmed map[string]confirmation
		if err == nil {
			confirmed, _, err = b.readLedger(ctx, group, true)
		}
		if err != nil {
			if !gone(err) {
				b.log.WarnContext(ctx, "cannot look up what the observers of before the restart confirmed", "group", group, "err", err)
			}
			continue
		}
		hub, repeats := b.hub.(repeater)
		elsewhere, err := b.leasedElsewhere(ctx, group)
		if err != nil {
			b.log.WarnContext(ctx, "cannot look up which members are with other gateways", "group", group, "err", err)
			continue // what is published to them twice does no harm
		}
		var due []coap.Subject
		for _, o := range observers {
			node, ok := names[o.Peer.Subject]
			if !ok {
				continue // the next notification ends it
			}
			m := member{group, node}
			if elsewhere[node] {
				// It went to another gateway while this one was down.
				for _, topic := range o.Topics {
					if g, _, ok := groupOf(topic); ok && g == group {
						b.hub.Drop(topic, o.Peer.Link, nil)
					}
				}
				continue
			}
			b.activity.belongs(o.Peer.Subject, m)
			b.activity.change(m, func(t *trace) {
				if t.channel == "" {
					t.channel = channelObserve
				}
			})
			if b.store.Shared() {
				b.calls.add(func(ctx context.Context) { b.takeLease(ctx, m, false, func() {}) })
			}
			b.observers.register(o.Peer.Link, m, o.Peer.Subject)
			if c, ok := confirmed[node]; ok && c.version >= version {
				continue
			}
			due = append(due, o.Peer.Subject)
			if repeats {
				for _, topic := range o.Topics {
					if g, own, ok := groupOf(topic); ok && g == group && own == "" {
						hub.Again(topic, o.Peer.Link)
					}
				}
			}
		}
		b.readTokens(ctx, due) // the others are told nothing now
		if err := b.publishNewest(ctx, group); err != nil {
			b.log.WarnContext(ctx, "cannot repeat the newest rekey to the observers of before the restart", "group", group, "err", err)
		}
	}
	return nil
}

// readTokens has the tokens of observers of before a restart read, of which nothing is
// known then.
func (b *Bridge) readTokens(ctx context.Context, subjects []coap.Subject) {
	if err := b.warm(ctx, subjects); err != nil && ctx.Err() == nil {
		b.log.WarnContext(ctx, "cannot read the tokens of the observers of before the restart: each is looked up", "err", err)
	}
}

// leasedElsewhere lists the members of a group whose newest association is with
// another gateway.
func (b *Bridge) leasedElsewhere(ctx context.Context, group string) (nodes map[string]bool, err error) {
	if !b.store.Shared() {
		return nil, nil
	}
	err = b.store.View(ctx, func(tx *store.Tx) error {
		nodes = map[string]bool{}
		rows, err := tx.Query(`SELECT node FROM bridge_lease WHERE grp = ? AND gateway <> ?`, group, b.store.Gateway())
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var node string
			if err := rows.Scan(&node); err != nil {
				return err
			}
			nodes[node] = true
		}
		return rows.Err()
	})
	return nodes, err
}

// publishNewest hands the newest rekey of a group to the hub.
func (b *Bridge) publishNewest(ctx context.Context, group string) error {
	version, body, err := b.source.RekeyMessage(ctx, group)
	if err != nil || body == nil {
		return err
	}
	formats, legacyVersion, legacyBody, err := b.legacyRekey(ctx, group)
	if err != nil {
		return err
	}
	b.tell(ctx, group, version, body, formats, legacyVersion, legacyBody)
	return nil
}
