package bridge

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/seed4911071e/groupgate/groupcomm/keytree"
	"github.com/seed4911071e/groupgate/store"
)

// What an operator sees of key trees: places and versions of nodes, and no key.

// TreeStatus is the key tree of a group, and how its newest rekey went out.
type TreeStatus struct {
	ID       string // hex of what names the tree in the identifiers of its keys
	Topic    string // what the topics of its nodes begin with; "": no MQTT
	Degree   uint32
	Height   uint8
	Leaves   int64
	Version  uint64 // the newest that was rendered; 0: none was
	Messages int64  // of that version
	// Taken is how many of them the broker took, in the session that is; nil: this
	// gateway has none.
	Taken *int
	Casts int       // how often they were multicast
	Sent  time.Time // since when all are under way; zero: they are not
	// Out are leaves that were taken out since, and Dirty the nodes whose keys the
	// next rekey draws anew for them.
	Out, Dirty int64
	Homeless   int64 // members that get a place when they ask for the keying material
}

// Why a member cannot have the newest version by the tree.
const (
	CatchUpPlace = "no-place"    // it has no place in the tree, and gets one when it asks
	CatchUpLink  = "missed-link" // it had the time and did not show the version: it missed a link of the chain
	CatchUpAsked = "asked"       // it took its way by GET since, and did not show the version yet
)

// TreeLeaf is the place of a member in a key tree.
type TreeLeaf struct {
	Leaf    int64  // -1: none
	CatchUp string // "": nothing is known to be missed
}

// TreeWay is how a member comes from its leaf to the keys of the group.
type TreeWay struct {
	TreeLeaf
	Nodes []TreeNode // from the leaf to the root; none without a place
}

// TreeNode is a node on the way.
type TreeNode struct {
	keytree.ID
	KeyVersion uint32
	Step       uint8
	Told       uint64 // newest version of which a message is under its key; 0: none is
	Topic      string // "": no MQTT
}

// linkTime is how long a member that is there may take to show a version before a
// link of the chain counts as missed.
const linkTime = 5 * time.Second

// treeSent is how the newest version of a group's key tree went out.
type treeSent struct {
	num   uint64
	at    time.Time // when all messages were under way to all; zero: they are not
	mqtt  bool      // there is a session with the broker
	taken int       // messages that the broker took in it
	all   bool      // and these are all that there are
	casts int       // how often they were multicast
}

// changeSent gives fn what is known of a version of a group's tree; older ones are
// over.
func (b *Bridge) changeSent(group string, num uint64, fn func(*treeSent)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	g, ok := b.groups[group]
	if !ok || g.tree.num > num {
		return
	}
	if g.tree.num != num {
		g.tree = treeSent{num: num, mqtt: g.tree.mqtt}
	}
	fn(&g.tree)
	b.groups[group] = g
}

// treeRelayed notes that the messages of a version are on their way to all members
// of a tree at once.
func (b *Bridge) treeRelayed(group string, num uint64, at time.Time) {
	b.changeSent(group, num, func(s *treeSent) {
		if s.at.IsZero() {
			s.at = at
		}
	})
}

// treesLost notes that the session with the broker is over.
func (b *Bridge) treesLost() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for name, g := range b.groups {
		g.tree.mqtt, g.tree.taken, g.tree.all = false, 0, false
		b.groups[name] = g
	}
}

// leaf is what is known of a member of a tree.
func (g *groupState) leaf(r route, e *LedgerEntry, t *trace, now time.Time) *TreeLeaf {
	if !r.follows {
		return nil
	}
	l := &TreeLeaf{Leaf: r.leaf}
	if e.State == StateCurrent || e.State == StateLapsed {
		return l
	}
	since := later(g.tree.at, t.heard)
	there := r.channel == channelMQTT && t.online && t.connected || t.heard.After(g.tree.at)
	over := r.channel == channelMulticast && g.tree.casts >= castTimes
	switch sent := !g.tree.at.IsZero(); {
	case !r.tree:
		l.CatchUp = CatchUpPlace
	case sent && t.asked.After(g.tree.at):
		l.CatchUp = CatchUpAsked
	case sent && now.Sub(since) > linkTime && (there || over):
		l.CatchUp = CatchUpLink
	}
	return l
}

// Tree tells of the key tree of a group; nil: it has none.
func (b *Bridge) Tree(ctx context.Context, group string) (*TreeStatus, error) {
	var t *tree
	s := &TreeStatus{}
	err := b.store.View(ctx, func(tx *store.Tx) (err error) {
		if t, err = treeOf(tx, group); err != nil || t == nil {
			return err
		}
		if err := tx.QueryRow(`SELECT COUNT(*) FROM bridge_tree_node WHERE tid = ? AND dirty = 1`, t.tid).Scan(&s.Dirty); err != nil {
			return err
		}
		return tx.QueryRow(`SELECT COUNT(*) FROM bridge_registration WHERE grp = ? AND leaf < 0 AND tid <> ''`, group).Scan(&s.Homeless)
	})
	if err != nil {
		return nil, fmt.Errorf("bridge: key tree of %q: %w", group, err)
	}
	if t == nil {
		return nil, nil
	}
	s.ID, s.Degree, s.Height = hex.EncodeToString(t.id()), t.Degree, t.Height
	s.Leaves, s.Version, s.Messages, s.Out = int64(t.next)-t.spare, t.num, t.messages, t.out
	if b.publisher != nil {
		s.Topic = treeTopic(b.cfg.Prefix, t.tid)
	}
	b.mu.Lock()
	sent := b.groups[group].tree
	b.mu.Unlock()
	taken := 0
	if sent.num == t.num {
		taken, s.Casts, s.Sent = sent.taken, sent.casts, sent.at
		if sent.all { // some may be deleted by now
			taken = int(t.messages)
		}
	}
	if sent.mqtt {
		s.Taken = &taken
	}
	return s, nil
}

// TreeWay tells of a member's way in the key tree of its group, by what is in its
// entry of the ledger; nil: it does not follow one.
func (b *Bridge) TreeWay(ctx context.Context, group string, e *LedgerEntry) (*TreeWay, error) {
	if e.Tree == nil {
		return nil, nil
	}
	var w *TreeWay
	err := b.store.View(ctx, func(tx *store.Tx) error {
		w = &TreeWay{TreeLeaf: *e.Tree}
		t, err := treeOf(tx, group)
		if err != nil || t == nil || w.Leaf < 0 {
			return err
		}
		rows := b.treeRows(tx, t.tid)
		rows.blind = true // no key is looked at
		path, err := keytree.Open(t.Shape, rows).Path(uint32(w.Leaf))
		if errors.Is(err, keytree.ErrPlace) {
			return nil // left meanwhile
		}
		if err != nil {
			return err
		}
		for _, n := range path {
			v := TreeNode{ID: n.ID, KeyVersion: n.Version, Step: n.Step}
			if b.publisher != nil {
				v.Topic = nodeTreeTopic(b.cfg.Prefix, t.tid, n.ID)
			}
			err := tx.QueryRow(`SELECT num FROM bridge_tree_message WHERE tid = ? AND pos = ? AND LENGTH(body) > 0`, t.tid, position(n.ID)).Scan(&v.Told)
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return err
			}
			w.Nodes = append(w.Nodes, v)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("bridge: way in the key tree of %q: %w", group, err)
	}
	return w, nil
}
