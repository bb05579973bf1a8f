package bridge

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/groupcomm/keytree"
	"github.com/seed4911071e/groupgate/store"
)

func wantTree(channel string) *groupcomm.Delivery {
	return &groupcomm.Delivery{Channel: channel, Tree: true, Degree: 2}
}

// climber is a member of a tree.
type climber struct {
	node string
	f    *keytree.Follower
	num  uint64 // newest version that it read
}

// climbs joins a member and gives it what a Join Response would.
func (m *manager) climbs(t *testing.T, b *Bridge, node string) *climber {
	t.Helper()
	m.join(t, b, node, wantTree(channelMulticast))
	return &climber{node: node, f: material(t, b, node), num: m.version}
}

func material(t *testing.T, b *Bridge, node string) *keytree.Follower {
	t.Helper()
	mgt, err := b.Enrolled(t.Context(), testGroup, node)
	if err != nil || mgt == nil {
		t.Fatalf("material of %s: %x, %v", node, mgt, err)
	}
	k, err := groupcomm.DecodeMgtKeyMaterial(mgt)
	if err != nil {
		t.Fatal(err)
	}
	way, err := keytree.DecodeMaterial(k.Tree)
	if err != nil {
		t.Fatal(err)
	}
	return keytree.NewFollower(k.Alg, k.BaseIV, way)
}

// reads takes what is stored, which is what the broker retains, the highest first.
func (c *climber) reads(t *testing.T, b *Bridge, m *manager) uint64 {
	t.Helper()
	for _, body := range stored(t, b) {
		e, err := cose.ReadRekey(m.key.Public(), body)
		if err != nil {
			t.Fatal(err)
		}
		opened, err := c.f.Take(e)
		if err != nil && !errors.Is(err, keytree.ErrForeign) {
			t.Fatal(err)
		}
		for _, o := range opened {
			c.num = max(c.num, o.Num)
		}
	}
	return c.num
}

func stored(t *testing.T, b *Bridge) (bodies [][]byte) {
	t.Helper()
	err := b.store.View(t.Context(), func(tx *store.Tx) error {
		bodies = nil
		rows, err := tx.Query(`SELECT body FROM bridge_tree_message ORDER BY pos DESC`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var body []byte
			if err := rows.Scan(&body); err != nil {
				return err
			}
			if len(body) > 0 {
				bodies = append(bodies, body)
			}
		}
		return rows.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	return bodies
}

// TestTreeRows: a tree in the database goes through joins, leaves, expired tokens
// that come back, re-joins and its own end; and another bridge on the same rows
// goes on with it.
func TestTreeRows(t *testing.T) {
	m, s := newManager(t), open(t)
	b := New(Config{}, Deps{Store: s, Source: m, Hub: nobody{}})
	all := map[string]*climber{}
	everybody := func(what string, out ...string) {
		t.Helper()
		v := m.rekey(t, b)
		for node, c := range all {
			if got := c.reads(t, b, m); !slices.Contains(out, node) && got != v {
				t.Fatalf("%s: %s reads version %d of %d", what, node, got, v)
			} else if slices.Contains(out, node) && got == v {
				t.Fatalf("%s: %s reads version %d", what, node, v)
			}
		}
	}
	for i := range 9 {
		node := fmt.Sprint("n", i)
		all[node] = m.climbs(t, b, node)
		if i%4 == 0 {
			everybody("joins")
		}
	}
	everybody("joined")
	m.end(t, b, "n3", groupcomm.EventLeft)
	everybody("one left", "n3")
	m.end(t, b, "n5", groupcomm.EventEvicted)
	m.end(t, b, "n6", groupcomm.EventEvicted)
	everybody("two evicted", "n3", "n5", "n6")
	for _, gone := range []string{"n3", "n5", "n6"} {
		delete(all, gone)
	}

	b = New(Config{}, Deps{Store: s, Source: m, Hub: nobody{}}) // a restart
	m.change("n1", func(v *groupcomm.Member) { v.Lapsed = true })
	everybody("a token expired", "n1")
	m.change("n1", func(v *groupcomm.Member) { v.Lapsed = false })
	all["n1"].f = material(t, b, "n1") // asks with a new token
	everybody("a new token")
	all["n2"] = m.climbs(t, b, "n2") // joins again
	everybody("joined again")

	// A plan that was overtaken is not written.
	p := m.plan()
	commit, err := b.Prepare(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	all["late"] = m.climbs(t, b, "late")
	if err := s.Update(t.Context(), commit); !errors.Is(err, groupcomm.ErrPlanMoved) {
		t.Fatalf("overtaken: %v", err)
	}
	everybody("prepared again")

	// The end of the tree, and another one.
	for node := range all {
		m.end(t, b, node, groupcomm.EventLeft)
	}
	clear(all)
	if left := stored(t, b); len(left) != 0 {
		t.Errorf("%d messages of nobody", len(left))
	}
	m.rekey(t, b)
	all["new"] = m.climbs(t, b, "new")
	everybody("a new tree")
}

// TestTreeTransactions: what a leave and its rekey write does not grow with the
// group but with the height of its tree.
func TestTreeTransactions(t *testing.T) {
	m, s := newManager(t), open(t)
	b := New(Config{}, Deps{Store: s, Source: m, Hub: nobody{}})
	for i := range 64 {
		m.join(t, b, fmt.Sprint("n", i), wantTree(channelMulticast))
	}
	m.rekey(t, b)
	m.end(t, b, "n20", groupcomm.EventLeft)
	r, err := b.prepareTree(t.Context(), m.plan())
	if err != nil {
		t.Fatal(err)
	}
	const height = 6
	if n := len(r.messages) / 2; n != 2*height {
		t.Errorf("%d messages", n)
	}
	if n := len(r.write.nodes)/6 + len(r.write.gone); n > 2*height {
		t.Errorf("%d nodes written", n)
	}
}

// TestReplant: members of a tree at one gateway follow another tree at another,
// each from when it asks on; who never asks costs no message.
func TestReplant(t *testing.T) {
	m := newManager(t)
	s := open(t)
	b := New(Config{}, Deps{Store: s, Source: m, Hub: nobody{}})
	for i := range 9 {
		m.join(t, b, fmt.Sprint("n", i), wantTree(channelMulticast))
	}
	m.rekey(t, b)
	var channels map[string]string
	if err := s.View(t.Context(), func(tx *store.Tx) (err error) {
		channels, err = b.Branches(tx, testGroup)
		return err
	}); err != nil || len(channels) != 9 || channels["n3"] != channelMulticast {
		t.Fatal(channels, err)
	}

	s = open(t)
	there := New(Config{}, Deps{Store: s, Source: m, Hub: nobody{}})
	channels["n8"] = channelMQTT // of which there is none
	commit, err := there.Replant(t.Context(), testGroup, channels)
	if err == nil {
		err = s.Update(t.Context(), commit)
	}
	if err != nil {
		t.Fatal(err)
	}
	m.rekey(t, there)
	if n := len(stored(t, there)); n != 0 {
		t.Fatalf("%d messages for nobody", n)
	}
	all := map[string]*climber{}
	for _, node := range []string{"n0", "n5", "n7"} {
		all[node] = &climber{node: node, f: material(t, there, node)}
	}
	v := m.rekey(t, there)
	for node, c := range all {
		if got := c.reads(t, there, m); got != v {
			t.Errorf("%s reads version %d of %d", node, got, v)
		}
	}
	if mgt, err := there.Enrolled(t.Context(), testGroup, "n8"); mgt != nil || err != nil {
		t.Errorf("without MQTT: %x, %v", mgt, err)
	}
	m.end(t, there, "n1", groupcomm.EventLeft) // it never asked
	m.end(t, there, "n5", groupcomm.EventLeft)
	v = m.rekey(t, there)
	for node, c := range all {
		if got := c.reads(t, there, m); (got == v) == (node == "n5") {
			t.Errorf("after a leave %s reads version %d of %d", node, got, v)
		}
	}
}
