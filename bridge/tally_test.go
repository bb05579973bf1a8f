package bridge

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/groupcomm"
)

// listed counts how often the list of members is read.
type listed struct {
	legacyManager
	n *atomic.Int64
}

func (l listed) Members(ctx context.Context, group string) ([]groupcomm.Member, error) {
	l.n.Add(1)
	return l.legacyManager.Members(ctx, group)
}

func (listed) DeliveryPolicy(string) (groupcomm.DeliveryPolicy, bool) {
	return groupcomm.DeliveryPolicy{UnreachableAfter: time.Hour}, true
}

// TestTalliedAsListed: whatever becomes of the members, what the metrics tell of a large
// group is what the list of them says as soon as the delivery rests; while it goes on the
// list is not read, and who has the version is exact where nobody lapsed.
func TestTalliedAsListed(t *testing.T) {
	for seed := range uint64(2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testTallied(t, rand.New(rand.NewPCG(seed, 1))) })
		})
	}
}

func testTallied(t *testing.T, r *rand.Rand) {
	var lists atomic.Int64
	h := newHouse(t, func(d *Deps) { d.Source = listed{d.Source.(legacyManager), &lists} })
	h.b.tallies.many = 10
	var members []string
	next, lapsed, version := 0, 0, uint64(1)
	join := func() {
		name := fmt.Sprint("node", next)
		next++
		h.m.join(t, h.b, name, nil)
		members = append(members, name)
	}
	look := func() (p Progress, read bool) {
		t.Helper()
		before := lists.Load()
		p, err := h.b.tallied(t.Context(), testGroup)
		if err != nil {
			t.Fatal(err)
		}
		return p, lists.Load() != before
	}
	list := func() Progress {
		t.Helper()
		p, _, err := h.b.Progress(t.Context(), testGroup)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	for range 30 {
		join()
	}
	h.m.rekey(t, h.b)
	counted := 0
	for range 80 {
		some := members[r.IntN(len(members))]
		rush := false
		switch k := r.IntN(20); {
		case k == 0 && len(members) < 40:
			join()
		case k == 1 && len(members) > 20:
			i := r.IntN(len(members))
			if m, err := h.m.MemberOf(t.Context(), testGroup, subject(members[i])); err != nil {
				t.Fatal(err)
			} else if m.Lapsed {
				lapsed--
			}
			h.m.end(t, h.b, members[i], groupcomm.EventLeft)
			members = append(members[:i], members[i+1:]...)
		case k == 2:
			h.m.change(some, func(m *groupcomm.Member) {
				if m.Lapsed = !m.Lapsed; m.Lapsed {
					lapsed++
				} else {
					lapsed--
				}
			})
		case k < 6:
			version, rush = h.m.rekey(t, h.b), true
		case k < 8: // it sleeps, and may be gone
			h.b.activity.attempted(member{testGroup, some}, channelObserve, context.DeadlineExceeded)
		case k == 8: // who lacks it becomes unreachable
			time.Sleep(time.Duration(r.IntN(3)) * time.Hour)
		default:
			for range 1 + r.IntN(10) {
				h.b.Held(t.Context(), testGroup, members[r.IntN(len(members))], version)
			}
		}
		settle(time.Second)
		was := list()
		p, read := look()
		if rush && read && r.IntN(2) == 0 {
			// An old list is read again, in whatever rush.
			p, read = look()
		}
		if p.Members != was.Members || p.Version != was.Version || p.Lapsed != was.Lapsed ||
			p.Delivered+p.Pending+p.Asleep+p.Unreachable != p.Members || lapsed == 0 && p.Delivered != was.Delivered {
			t.Fatalf("counted %+v, of the list it is %+v", p, was)
		}
		if !read {
			counted++
		}
		if r.IntN(3) == 0 { // a second look: it rests
			if p, _ = look(); p != list() {
				t.Fatalf("at rest %+v, of the list it is %+v", p, list())
			}
		}
	}
	if counted < 26 {
		t.Errorf("%d looks of 80 went without the list", counted)
	}
}

// TestTallyAfter: what is counted later goes on from what the list said.
func TestTallyAfter(t *testing.T) {
	old := tally{
		Progress: Progress{Group: "g", Version: 5, Members: 17, Delivered: 8, Pending: 4, Asleep: 3, Unreachable: 2, Lapsed: 3, Held: 2},
		counts:   counts{version: 5, confirmed: 10, members: 20, lapsed: 3}, // two of those that lapsed have it
	}
	for _, x := range []struct {
		what string
		n    counts
		want Progress
	}{
		{"nothing changed", old.counts, old.Progress},
		{"some confirm", counts{5, 12, 20, 3}, Progress{Group: "g", Version: 5, Members: 17, Delivered: 10, Pending: 2, Asleep: 3, Unreachable: 2, Lapsed: 3, Held: 2}},
		{"nearly all", counts{5, 16, 20, 3}, Progress{Group: "g", Version: 5, Members: 17, Delivered: 14, Asleep: 1, Unreachable: 2, Lapsed: 3, Held: 2}},
		{"all, and one more lapsed", counts{5, 19, 20, 4}, Progress{Group: "g", Version: 5, Members: 16, Delivered: 16, Lapsed: 4}},
		{"the next version", counts{6, 4, 20, 3}, Progress{Group: "g", Version: 6, Members: 17, Delivered: 4, Pending: 8, Asleep: 3, Unreachable: 2, Lapsed: 3, Held: 2}},
		{"most left", counts{5, 1, 2, 0}, Progress{Group: "g", Version: 5, Members: 2, Unreachable: 2, Held: 2}},
	} {
		if got := old.after(x.n); got != x.want {
			t.Errorf("%s: %+v, want %+v", x.what, got, x.want)
		}
	}
}
