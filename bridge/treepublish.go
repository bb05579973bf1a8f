package bridge

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/seed4911071e/groupgate/groupcomm/keytree"
	"github.com/seed4911071e/groupgate/store"
)

// The topics of a tree mirror it: what is protected under the key of a node is
// published to the topic of that node, to which the members below it subscribe.
// The newest message of each is retained, so that one that slept finds there what
// leads from its leaf to the newest keys, whatever it missed in between.

// treeMessage is a stored message of a tree on its way to the broker.
type treeMessage struct {
	id   keytree.ID
	num  uint64
	at   uint32 // change of the tree with which it came
	body []byte // empty: what is retained is to be deleted
}

// publishTree hands over what changed in the tree of a group since the broker
// took everything; after a connect that is all there is.
func (p *publisher) publishTree(ctx context.Context, c *client, group string, done map[string]uint32) error {
	var t *tree
	err := p.b.store.View(ctx, func(tx *store.Tx) (err error) {
		t, err = treeOf(tx, group)
		return err
	})
	if err != nil {
		return fmt.Errorf("bridge: read key tree: %w", err)
	}
	if t == nil {
		return nil
	}
	after := done[t.tid]
	if after == 0 { // the session is new
		p.b.changeSent(group, t.num, func(s *treeSent) { s.mqtt, s.taken = true, 0 })
	}
	sent, err := p.publishBranches(ctx, c, t.tid, after, t.seq, func(num uint64) {
		p.b.changeSent(group, num, func(s *treeSent) { s.taken++ })
	})
	if err != nil {
		return err
	}
	done[t.tid] = t.seq
	p.b.changeSent(group, t.num, func(s *treeSent) { s.all = true })
	if sent > 0 {
		p.b.treeRelayed(group, t.num, time.Now())
	}
	return nil
}

// publishBranches publishes the messages of a tree that came after a change and up
// to another, and tells of each that is more than a deletion when the broker took it.
func (p *publisher) publishBranches(ctx context.Context, c *client, tid string, after, last uint32, taken func(num uint64)) (sent int, err error) {
	var w inFlight
	at, pos := after, int64(maxPosition)
	for {
		msgs, err := p.b.treeMessages(ctx, tid, at, last, pos)
		if err != nil {
			return sent, fmt.Errorf("bridge: read messages of a key tree: %w", err)
		}
		for _, m := range msgs {
			at, pos = m.at, position(m.id)
			p.b.met.sent(channelMQTT, len(m.body))
			err := w.add(ctx, c, c.publish(nodeTreeTopic(p.b.cfg.Prefix, tid, m.id), m.body), func(err error) {
				outcome := "relayed"
				if err != nil {
					outcome = "failed"
				} else if len(m.body) > 0 {
					taken(m.num)
				}
				p.b.met.published.WithLabelValues(outcome).Inc()
			})
			if err != nil {
				return sent, err
			}
			sent++
		}
		if len(msgs) < page {
			return sent, w.drain(ctx, c, 0)
		}
	}
}

// maxPosition is above that of every node.
const maxPosition = 1 << 40

// treeMessages reads a page of messages of a tree, by the change with which they
// came and the lowest first, after the given one and not after the last change.
func (b *Bridge) treeMessages(ctx context.Context, tid string, at, last uint32, pos int64) (out []treeMessage, err error) {
	err = b.store.View(ctx, func(tx *store.Tx) error {
		out = nil
		rows, err := tx.Query(`SELECT pos, num, at, body FROM bridge_tree_message
			WHERE tid = ? AND at >= ? AND at <= ? AND (at > ? OR pos > ?) ORDER BY at, pos LIMIT ?`, tid, at, last, at, pos, page)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var m treeMessage
			var pos, num int64
			if err := rows.Scan(&pos, &num, &m.at, &m.body); err != nil {
				return err
			}
			m.id, m.num = placeAt(pos), uint64(num)
			out = append(out, m)
		}
		return rows.Err()
	})
	return out, err
}

// clearTrees removes trees without members, when the broker retains nothing of
// them any more.
func (p *publisher) clearTrees(ctx context.Context, c *client) error {
	var tids []string
	err := p.b.store.View(ctx, func(tx *store.Tx) error {
		tids = nil
		rows, err := tx.Query(`SELECT tid FROM bridge_tree WHERE grp = ''`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var tid string
			if err := rows.Scan(&tid); err != nil {
				return err
			}
			tids = append(tids, tid)
		}
		return rows.Err()
	})
	if err != nil {
		return fmt.Errorf("bridge: read key trees: %w", err)
	}
	for _, tid := range tids {
		if _, err := p.publishBranches(ctx, c, tid, 0, math.MaxUint32, func(uint64) {}); err != nil {
			return err
		}
		err := p.b.store.Update(ctx, func(tx *store.Tx) error { return removeTree(tx, tid) })
		if err != nil {
			return fmt.Errorf("bridge: remove a key tree: %w", err)
		}
	}
	return nil
}
