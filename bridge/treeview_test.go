package bridge

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// What operators see of a tree, as it grows, is rekeyed and loses members.
func TestTreeStatus(t *testing.T) {
	m, s := newManager(t), open(t)
	b := New(Config{}, Deps{Store: s, Source: m, Hub: nobody{}})
	see := func() TreeStatus {
		t.Helper()
		v, err := b.Tree(t.Context(), testGroup)
		if err != nil || v == nil {
			t.Fatal(v, err)
		}
		return *v
	}
	way := func(node string) *TreeWay {
		t.Helper()
		e := entry(t, b, node)
		w, err := b.TreeWay(t.Context(), testGroup, &e)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	if v, err := b.Tree(t.Context(), testGroup); v != nil || err != nil {
		t.Fatalf("without a tree: %+v, %v", v, err)
	}
	m.join(t, b, "alone", nil)
	for i := range 5 {
		m.join(t, b, fmt.Sprint("n", i), wantTree(channelMulticast))
	}
	if v := see(); v.Degree != 2 || v.Height != 3 || v.Leaves != 5 || v.Version != 0 || v.Messages != 0 || v.Out != 0 || v.Topic != "" || len(v.ID) != 16 {
		t.Errorf("before a rekey: %+v", v)
	}
	first := m.rekey(t, b)
	if v := see(); v.Version != first || v.Messages == 0 || v.Out != 0 || v.Dirty != 0 {
		t.Errorf("after a rekey: %+v", v)
	}
	m.end(t, b, "n1", groupcomm.EventLeft)
	m.end(t, b, "n2", groupcomm.EventEvicted)
	if v := see(); v.Leaves != 3 || v.Out != 2 || v.Dirty < 3 || v.Version != first {
		t.Errorf("two leaves wait: %+v", v)
	}
	second := m.rekey(t, b)
	v := see()
	if v.Version != second || v.Out != 0 || v.Dirty != 0 || v.Messages != int64(len(newest(t, b, second))) {
		t.Errorf("after the rekey of the leaves: %+v", v)
	}
	w := way("n3")
	if w == nil || w.Leaf != 3 || len(w.Nodes) != 4 || w.CatchUp != "" {
		t.Fatalf("the way of n3: %+v", w)
	}
	for i, n := range w.Nodes {
		if int(n.Level) != i || n.KeyVersion == 0 || n.Topic != "" {
			t.Errorf("node %d: %+v", i, n)
		}
	}
	if root := w.Nodes[3]; root.Told != second || root.Index != 0 {
		t.Errorf("the root: %+v", root)
	}
	if w := way("alone"); w != nil {
		t.Errorf("a member without a tree: %+v", w)
	}
	// Its token expires: it loses its place with the next rekey, until it asks.
	m.change("n3", func(v *groupcomm.Member) { v.Lapsed = true })
	m.rekey(t, b)
	m.change("n3", func(v *groupcomm.Member) { v.Lapsed = false })
	if v, w := see(), way("n3"); v.Homeless != 1 || v.Leaves != 2 || w.Leaf != -1 || w.CatchUp != CatchUpPlace || len(w.Nodes) != 0 {
		t.Errorf("without a place: %+v, %+v", v, w)
	}
	material(t, b, "n3")
	if v, w := see(), way("n3"); v.Homeless != 0 || v.Leaves != 3 || w.Leaf < 0 || w.CatchUp != "" {
		t.Errorf("with another place: %+v, %+v", v, w)
	}
	// Prints no key.
	for _, v := range []any{see(), *way("n3")} {
		if text := fmt.Sprintf("%+v", v); strings.Contains(text, "Key:") {
			t.Error(text)
		}
	}
}

// newest are the messages of a version.
func newest(t *testing.T, b *Bridge, num uint64) [][]byte {
	t.Helper()
	got, _, bodies, err := b.castable(t.Context(), testGroup)
	if err != nil || got != num {
		t.Fatalf("version %d: %v", got, err)
	}
	return bodies
}

// Who had the time to show a version and did not, missed a link of the chain, until it
// asks for its way.
func TestCatchUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, s := newManager(t), open(t)
		b := New(Config{}, Deps{Store: s, Source: m, Hub: nobody{}})
		for _, node := range []string{"heard", "silent", "shows"} {
			m.join(t, b, node, wantTree(channelMulticast))
		}
		num := m.rekey(t, b)
		b.noteGroup(testGroup, num, time.Now())
		b.treeRelayed(testGroup, num, time.Now())
		is := func(node, want string) {
			t.Helper()
			if e := entry(t, b, node); e.Tree == nil || e.Tree.CatchUp != want {
				t.Errorf("%s: %+v, want %q", node, e.Tree, want)
			}
		}
		time.Sleep(time.Second)
		b.activity.heard(member{testGroup, "heard"}, "", time.Now())
		is("heard", "") // its answer may be under way
		time.Sleep(linkTime + time.Second)
		is("heard", CatchUpLink)
		is("silent", "") // it is repeated
		b.changeSent(testGroup, num, func(s *treeSent) { s.casts = castTimes })
		is("silent", CatchUpLink)
		b.Seen(context.Background(), testGroup, "silent", coap.Peer{Subject: subject("silent")}, false)
		is("silent", CatchUpAsked)

		ctx, cancel := context.WithCancel(context.Background())
		over := make(chan error, 1)
		go func() { over <- b.confirms.run(ctx) }()
		b.Held(t.Context(), testGroup, "shows", num)
		settle(time.Second)
		is("shows", "")
		if e := entry(t, b, "shows"); e.State != StateCurrent {
			t.Errorf("%+v", e)
		}
		cancel()
		<-over
		// The next rekey begins anew.
		next := m.rekey(t, b)
		b.noteGroup(testGroup, next, time.Now())
		b.treeRelayed(testGroup, next, time.Now())
		for _, node := range []string{"heard", "silent", "shows"} {
			is(node, "")
		}
	})
}
