package e2e

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
)

// arrivals are the notifications of rekeys in the order in which nodes got them.
type arrivals struct {
	mu    sync.Mutex
	order []int // groups
}

func (a *arrivals) add(group int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.order = append(a.order, group)
}

func (a *arrivals) all() []int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.order)
}

// storm is a gateway with many groups and a small budget for what it sends unasked.
type storm struct {
	*gateway
	groups, nodes int
	members       [][]*member // by group
	came          arrivals
}

const quietGroup = "quiet" // is not rekeyed

func newStorm(t *testing.T, groups, nodes int, rps float64) *storm {
	t.Helper()
	s := &storm{groups: groups, nodes: nodes, members: make([][]*member, groups)}
	s.gateway = serve(t, func(c *config.Config) {
		c.Limits.NotifyRPS = rps
		first := c.Groups[0]
		c.Groups = nil
		scope := &c.AuthorizationServer.Policies[0].Scope
		*scope = nil
		for i := range groups + 1 {
			g := first
			if g.Name = s.name(i); i == groups {
				g.Name = quietGroup
			}
			c.Groups = append(c.Groups, g)
			*scope = append(*scope, config.ScopeEntry{Group: g.Name, Roles: []string{"requester", "responder"}})
		}
	})
	var all errgroup.Group
	all.SetLimit(8)
	for i := range groups {
		s.members[i] = make([]*member, nodes)
		for j := range nodes {
			all.Go(func() error {
				s.members[i][j] = s.enters(s.name(i), func(c *node.Config) {
					c.OnEvent = func(e node.Event) {
						if e.Kind == node.Rekeyed && e.Via == node.ViaObserve {
							s.came.add(i)
						}
					}
				})
				return nil
			})
		}
	}
	_ = all.Wait()
	if t.Failed() {
		t.FailNow()
	}
	for i := range groups {
		for _, m := range s.members[i] {
			m.follow()
		}
	}
	eventually(t, "everybody observes", func() bool {
		for i := range groups {
			d, err := s.admin.Delivery(soon(t), s.name(i), true)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range d.Ledger {
				if m.Channel != "observe" {
					return false
				}
			}
		}
		return true
	})
	return s
}

func (s *storm) name(i int) string { return fmt.Sprint("group", i) }

// enters joins a new node to a group.
func (s *storm) enters(name string, edit func(*node.Config)) *member {
	tr := s.dial([]byte(s.client.Identity), s.client.Key.Bytes())
	a, err := node.RequestToken(soon(s.t), tr, node.TokenRequest{
		Audience: s.client.Audience, Scope: groupcomm.Scope{{Group: name, Roles: both}},
	})
	if err != nil {
		s.t.Errorf("token: %v", err)
		return nil
	}
	c := s.config(a)
	c.Group, c.WantCreds = name, false
	seldom(&c)
	edit(&c)
	// The token goes in psk_identity: posts from one address are few.
	return s.enter(a, c, s.dial(a.Token, a.Key.Bytes()))
}

// blow rekeys every group at once, so many times, and returns when all were.
func (s *storm) blow(times int) {
	s.t.Helper()
	var all sync.WaitGroup
	for i := range s.groups {
		all.Go(func() {
			for range times {
				if _, err := s.admin.Rekey(soon(s.t), s.name(i), "storm"); err != nil {
					s.t.Errorf("rekey: %v", err)
				}
			}
		})
	}
	all.Wait()
}

// over waits until everybody has the newest version of its group, and the gateway
// knows.
func (s *storm) over(version groupcomm.Version) {
	s.t.Helper()
	eventually(s.t, "everybody has the newest version", func() bool {
		for i := range s.groups {
			d, err := s.admin.Delivery(soon(s.t), s.name(i), false)
			if err != nil {
				s.t.Fatal(err)
			}
			if d.Version != version || d.Delivered != s.nodes {
				return false
			}
		}
		return true
	})
	for i := range s.members {
		for _, m := range s.members[i] {
			if st, ok := m.State(); !ok || st.Version != version || !st.Installed {
				s.t.Errorf("a node of %s: version %d of %d", s.name(i), st.Version, version)
			}
		}
	}
}

// fair judges by the order of arrivals, from when all groups wait: no group gets
// ahead of one that still waits by more than slack notifications.
func (s *storm) fair(order []int, from, slack int) {
	s.t.Helper()
	total, since := make([]int, s.groups), make([]int, s.groups)
	for n, g := range order {
		total[g]++
		if n < from {
			continue
		}
		since[g]++
		least, most := len(order), 0
		for i := range s.groups {
			if total[i] < s.nodes {
				least = min(least, since[i])
			}
			most = max(most, since[i])
		}
		if least != len(order) && most-least > slack {
			s.t.Fatalf("after %d of %d notifications one group got %d and another %d of those since all wait: %v of %v", n+1, len(order), most, least, since, total)
		}
	}
}

// weather: a storm is shared fairly, joins to another group are served meanwhile, and
// everybody has the newest version in the end, with at most one notification for
// each rekey.
func weather(t *testing.T, groups, nodes int, rps float64) {
	s := newStorm(t, groups, nodes, rps)
	s.blow(1)
	from := len(s.came.all())
	all := groups * nodes
	const newcomers = 3
	during := 0
	for range newcomers {
		s.enters(quietGroup, func(*node.Config) {})
		if len(s.came.all()) < all {
			during++
		}
	}
	s.over(1)
	order := s.came.all()
	if len(order) != all {
		t.Errorf("%d notifications for %d members", len(order), all)
	}
	if from >= all/2 {
		t.Errorf("%d of %d notifications had come before all groups were rekeyed", from, all)
	}
	if during == 0 {
		t.Errorf("no join was served before the storm was over")
	}
	s.fair(order, from, max(3, nodes/2))
	t.Logf("%d of %d notifications had come when all groups were rekeyed; %d of %d joins were served meanwhile", from, all, during, newcomers)

	// Three rekeys of each group at once: only the newest is sent to who waits.
	s.blow(3)
	s.over(4)
	if n := len(s.came.all()) - all; n < all || n > 3*all {
		t.Errorf("%d notifications of three rekeys", n)
	}
}

// TestStorm: many groups are rekeyed at once.
func TestStorm(t *testing.T) {
	t.Parallel()
	weather(t, 12, 6, 40)
}
