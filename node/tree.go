package node

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/groupcomm/keytree"
)

// In a group with a key tree a rekey is one message for many: a member listens
// to those of the nodes on its way from its leaf to the root, over MQTT or IP
// multicast, and asks for its way when it missed one.

// linkPatience is how long a member waits for a message that it seems to have
// missed, at least, before it asks; all that missed it do not ask at once.
const linkPatience = time.Second

// treeAhead is how many levels above the root a member listens to: a tree that
// grows finds it there.
const treeAhead = 2

// readBranch reads what a Join Response gives of a key tree.
func readBranch(b []byte) (*groupcomm.MgtKeyMaterial, *keytree.Follower, error) {
	const op = "key tree"
	g, err := groupcomm.DecodeMgtKeyMaterial(b)
	if err != nil {
		return nil, nil, badAnswer(op, "%v", err)
	}
	if g.Broker != "" {
		if g, err = readMgt(b); err != nil {
			return nil, nil, err
		}
		if !usableTopic(g.TreeTopic) {
			return nil, nil, badAnswer(op, "unusable topic %q", printable(g.TreeTopic))
		}
	}
	m, err := keytree.DecodeMaterial(g.Tree)
	if err != nil {
		return nil, nil, badAnswer(op, "%v", err)
	}
	return g, keytree.NewFollower(g.Alg, g.BaseIV, m), nil
}

// topics are those that a member subscribes to.
func (m *Member) topics(mgt *groupcomm.MgtKeyMaterial) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mgt != mgt || m.tree == nil {
		return []string{mgt.Topic}
	}
	var out []string
	path := m.tree.Path()
	for range treeAhead {
		path = append(path, keytree.ID{Level: path[len(path)-1].Level + 1})
	}
	for _, id := range path {
		out = append(out, fmt.Sprintf("%s/%d/%d", mgt.TreeTopic, id.Level, id.Index))
	}
	return out
}

// pathLen is how many topics are of nodes whose keys the member knows; 0 without a
// key tree.
func (m *Member) pathLen(mgt *groupcomm.MgtKeyMaterial) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mgt != mgt || m.tree == nil {
		return 0
	}
	return len(m.tree.Path())
}

// openBranch takes a message of the key tree.
func (m *Member) openBranch(payload []byte, via string) error {
	const op = "rekey by key tree"
	if len(payload) > maxMQTT {
		return badAnswer(op, "%d bytes", len(payload))
	}
	m.mu.Lock()
	kdc := m.kdc
	m.mu.Unlock()
	e, err := cose.ReadRekey(kdc, payload)
	if err != nil {
		return badAnswer(op, "%v", err)
	}
	m.mu.Lock()
	if m.tree == nil {
		m.mu.Unlock()
		return nil // left meanwhile
	}
	height := m.tree.Height()
	opened, err := m.tree.Take(e)
	behind, grown := m.tree.Behind(), m.tree.Height() > height
	m.mu.Unlock()
	if via == ViaMulticast && err != nil {
		return nil // everybody hears what is for others
	}
	if err != nil {
		return badAnswer(op, "%v", err)
	}
	if grown {
		m.signalAck() // there is one more topic
	}
	if err := m.takeOpened(opened, via); err != nil {
		return err
	}
	if behind {
		signalOne(m.behind)
	}
	return nil
}

// takeOpened takes keying material that came by the key tree.
func (m *Member) takeOpened(opened []keytree.Opened, via string) error {
	for _, k := range opened {
		o, err := offerRekey(k.Plain, via)
		if err != nil {
			return err
		}
		if o.num != k.Num {
			return badAnswer("rekey by key tree", "version %d inside, %d outside", o.num, k.Num)
		}
		m.mu.Lock()
		if !m.acked.any || o.num > m.acked.seen {
			m.acked.seen, m.acked.any = o.num, true
		}
		m.mu.Unlock()
		m.take(o)
		m.signalAck()
		if via == ViaMulticast {
			signalOne(m.show)
		}
	}
	return nil
}

// renewBranch asks for the keying material and the way in the key tree: GET on the
// node resource (RFC 9594, Section 4.8.1).
func (m *Member) renewBranch(ctx context.Context) error {
	s, t, err := m.joined()
	if err != nil {
		return err
	}
	resp, err := t.Do(ctx, m.groupRequest(coap.GET, "nodes", s.Node))
	if err != nil {
		return fmt.Errorf("ask for the key tree: %w", err)
	}
	if resp.Code != coap.Content {
		return m.concern(refused("ask for the key tree", resp))
	}
	o, err := offerFull(resp.Payload, ViaPoll)
	if err != nil {
		return err
	}
	m.take(o)
	return nil
}

// learnBranch takes what a GET says of the member's way in the key tree, which it
// said with the keying material of version num.
func (m *Member) learnBranch(b []byte, num groupcomm.Version) {
	fresh, f, err := readBranch(b)
	if err != nil {
		m.emit(Event{Kind: Refused, Via: ViaPoll, Err: err})
		return
	}
	m.mu.Lock()
	if m.tree == nil || m.mgt == nil {
		m.mu.Unlock()
		return
	}
	opened, err := m.tree.Renew(f)
	if err != nil {
		m.tree, opened = f, nil // another place, or another tree: as after a join
	}
	m.tree.Forget(num)
	if old := m.mgt; !bytes.Equal(old.Key, fresh.Key) || old.Broker != fresh.Broker || old.Password != fresh.Password ||
		old.AckTopic != fresh.AckTopic || old.TreeTopic != fresh.TreeTopic {
		m.mgt = fresh
	}
	m.mu.Unlock()
	if err := m.takeOpened(opened, ViaPoll); err != nil {
		m.emit(Event{Kind: Refused, Via: ViaPoll, Err: err})
	}
	m.signalAck() // there may be more topics
	m.signal()
}

// patience draws how long to wait for a link, the n-th time in a row.
func patience(n int) time.Duration {
	d := linkPatience << min(n, 6)
	return d + rand.N(d)
}

func signalOne(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// isBehind says whether a link of the key tree is missed.
func (m *Member) isBehind() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.tree != nil && m.tree.Behind()
}
