package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/plugin"
)

// TestKeyTreeMigrates: a group with a key tree goes to another database and on from
// there, twice.
func TestKeyTreeMigrates(t *testing.T) {
	t.Parallel()
	treeMigrates(t, "sqlite:second.db", "sqlite:third.db")
}

// treeMigrates brings a gateway with a key tree to one database after the other. Its
// members go on without joining again: the next rekey, which is for a leave from before
// the move, reaches all, and what left for the broker before and after has no two
// messages under one key and nonce. Who left reads nothing newer.
func treeMigrates(t *testing.T, stores ...string) {
	hook := &tap{}
	addr, _ := operatorBroker(t, anyPort, hook)
	g := serve(t, external(addr), keyTree, func(c *config.Config) { c.Groups[0].Rekey.BatchWindow = 5 * time.Minute })
	members := mates(g, 5+len(stores), viaMQTT, seldom)
	g.all(g.rekey(), "mqtt", members...)
	view := func() admin.DeliveryTree {
		t.Helper()
		d, err := g.admin.Delivery(soon(t), group, false)
		if err != nil || d.Tree == nil {
			t.Fatal(d, err)
		}
		tree := *d.Tree
		tree.Published, tree.Sent, tree.Multicasts = nil, nil, 0 // of the process
		return tree
	}
	gone := map[*member]groupcomm.Version{} // the first version that is not for it
	for _, to := range stores {
		leaver := members[len(members)-1]
		members = members[:len(members)-1]
		if err := leaver.Leave(soon(t)); err != nil {
			t.Fatal(err)
		}
		before := view()
		if before.Waiting != 1 {
			t.Errorf("a leave waits: %+v", before)
		}
		gone[leaver] = g.show().Version + 1
		if err := g.stop(); err != nil {
			t.Fatal(err)
		}
		next, err := g.cfg.WithStore(to)
		if err != nil {
			t.Fatal(err)
		}
		moved, err := plugin.MoveStore(t.Context(), g.cfg, to, nil)
		if err != nil || moved.Rows == 0 {
			t.Fatalf("to %s: %+v, %v", to, moved, err)
		}
		g.cfg = next
		g.cfg.Listen.CoAPS, g.cfg.Listen.CoAP = g.at.CoAPS, g.at.CoAP
		g.start(t)
		if after := view(); after != before {
			t.Errorf("the tree that came to %s: %+v, it was %+v", to, after, before)
		}
		g.all(g.rekey(), "mqtt", members...)
		if after := view(); after.ID != before.ID || after.Waiting != 0 || after.Version != before.Version+1 {
			t.Errorf("after the rekey: %+v", after)
		}
		// Newcomers find a place in it.
		members = append(mates(g, 1, viaMQTT, seldom), members...)
		g.all(g.rekey(), "mqtt", members...)
	}
	for _, m := range members {
		if n := len(m.wire.joins); n != 1 {
			t.Errorf("joined %d times", n)
		}
	}
	for m, first := range gone {
		if got := spied(t, m, hook); len(got) == 0 || slices.ContainsFunc(got, func(v uint64) bool { return v >= first }) {
			t.Errorf("one who left before version %d reads %v", first, got)
		}
	}
	if n := distinct(t, hook); n < 4*len(stores) {
		t.Errorf("only %d messages were seen", n)
	}
}

// distinct counts what passed a broker, and holds that no two messages are under one
// key and nonce.
func distinct(t *testing.T, hook *tap) int {
	t.Helper()
	// The Base IV belongs to the key, so the Partial IV tells nonces apart.
	wire := map[string]string{}
	for _, pk := range hook.messages(0) {
		if len(pk.Payload) == 0 || !strings.HasSuffix(pk.TopicName, "/rekey") && !strings.Contains(pk.TopicName, "/tree/") {
			continue
		}
		m, err := cose.DecodeEncrypt0(pk.Payload)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(pk.Payload)
		nonce := hex.EncodeToString(m.KID()) + "/" + hex.EncodeToString(m.Unprotected.PartialIV)
		if old, ok := wire[nonce]; ok && old != string(sum[:]) {
			t.Errorf("two messages under key and nonce %s", nonce)
		}
		wire[nonce] = string(sum[:])
	}
	return len(wire)
}

// TestKeyTreeRollback: the database is put back from a backup after members were given
// keys that it does not know. The recovery reaches them by the tree all the same, they
// follow it from there, and no key protects two messages of one nonce.
func TestKeyTreeRollback(t *testing.T) {
	t.Parallel()
	hook := &tap{}
	addr, _ := operatorBroker(t, anyPort, hook)
	g := serve(t, external(addr), keyTree)
	members := mates(g, 6, viaMQTT, seldom)
	g.all(g.rekey(), "mqtt", members...)
	again := func(opts ...plugin.Option) {
		t.Helper()
		g.cfg.Listen.CoAPS, g.cfg.Listen.CoAP, g.opts = g.at.CoAPS, g.at.CoAP, opts
		g.start(t)
	}
	db := g.cfg.Path("groupgate.db")
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	backup := []byte(read(t, db))
	again()
	// What the backup lacks: leaves, with many versions of keys.
	for range 2 {
		last := members[len(members)-1]
		members = members[:len(members)-1]
		g.all(g.goes(last), "mqtt", members...)
	}
	g.all(g.rekey(), "mqtt", members...)
	lost := g.show().Version
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(db, backup, 0o600); err != nil {
		t.Fatal(err)
	}
	again(plugin.WithAcceptedRollback())
	v := g.show().Version
	if v <= lost+1<<19 {
		t.Fatalf("version %d after %d", v, lost)
	}
	for _, m := range members {
		m.reaches(v)
	}
	g.all(g.rekey(), "mqtt", members...)
	if n := distinct(t, hook); n < 10 {
		t.Errorf("only %d messages were seen", n)
	}
	for _, m := range members {
		if n := len(m.wire.joins); n != 1 {
			t.Errorf("joined %d times", n)
		}
	}
}
