package e2e

import (
	"fmt"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// TestDelegatesUpstream: the Group Manager is another gateway, reached with the DTLS
// profile or the OSCORE profile, and so is the Authorization Server. Two legacy nodes
// behind one edge are two members there; they exchange messages with a member that
// joined by itself, across a rekey of that Group Manager and a crash of the edge.
func TestDelegatesUpstream(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"coaps", "coap"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			up, edge := newSite(t), newSite(t)
			up.run()
			at, _ := overhear(t)
			nodes := []*plainNode{edge.legacyNode("meter-1"), edge.legacyNode("meter-2")}
			edge.group = fmt.Sprintf("    gm: %s://%s\n    upstream: {as: \"coaps://%s/token\", audience: rs, identity: clientA, key_file: %s}\n",
				scheme, up.at[scheme], up.at["coaps"], filepath.Join(up.dir, "client.key"))
			edge.delegates(at, "", nodes...)
			gw := edge.run()
			list := edge.delegated(2)
			members := up.show().Members
			for _, d := range list {
				i := slices.IndexFunc(members, func(m admin.MemberInfo) bool { return m.Node == d.Node })
				if i < 0 || *members[i].SenderID != *d.SenderID {
					t.Errorf("%s is no member: %+v", d.Delegate, members)
				}
			}
			if len(members) != 2 || *list[0].SenderID == *list[1].SenderID || list[0].Node == list[1].Node {
				t.Fatalf("members %+v, delegates %+v", members, list)
			}
			for _, n := range nodes {
				n.connect(edge.at["coaps"])
			}
			server := up.talk("serve", "server", "--multicast", at)
			server.event(func(e step) bool { return e.Event == "serving" })
			sp := up.speaker()
			exchange := func(what string) {
				t.Helper()
				for _, d := range edge.delegated(2) {
					id := senderOf(t, d)
					for mode, peer := range map[string]*groupcomm.SenderID{"group": nil, "pairwise": &id} {
						if got := sp.ask(d.Listen, peer, coap.GET, "/t", 10*time.Second); got[*d.SenderID] != "2.05 "+d.Delegate+"/t" {
							t.Errorf("%s: %s mode: %v", what, mode, got)
						}
					}
				}
				for _, n := range nodes {
					if r := n.ask(coap.GET, "/g/name"); r.Code != coap.Content || string(r.Payload) != "server" {
						t.Errorf("%s: %s asks the group: %v %q", what, n.name, r.Code, r.Payload)
					}
				}
			}
			exchange("at first")
			run(t, 0, "group", "rekey", "sensors", "--config", up.config)
			eventually(t, "delegates follow the rekey", func() bool {
				return !slices.ContainsFunc(edge.delegated(2), func(d admin.DelegateInfo) bool { return d.Version != 1 })
			})
			server.holds(1)
			exchange("after a rekey")

			// While the edge is down the group is rekeyed twice.
			gw.signal(syscall.SIGKILL)
			run(t, 0, "group", "rekey", "sensors", "--config", up.config)
			run(t, 0, "group", "rekey", "sensors", "--config", up.config)
			edge.run()
			eventually(t, "delegates catch up", func() bool {
				return !slices.ContainsFunc(edge.delegated(2), func(d admin.DelegateInfo) bool { return d.Version != 3 })
			})
			server.holds(3)
			for i, d := range edge.delegated(2) {
				if d.Node != list[i].Node || *d.SenderID != *list[i].SenderID {
					t.Errorf("after a crash %+v, before %+v", d, list[i])
				}
			}
			for _, n := range nodes {
				n.connect(edge.at["coaps"])
			}
			exchange("after a crash")

			// An eviction is the Group Manager's to decide, and stays.
			run(t, 0, "group", "evict", "sensors", list[0].Node, "--config", up.config)
			eventually(t, "the eviction is noticed", func() bool {
				all := *decode[[]admin.DelegateInfo](t, run(t, 0, "delegate", "list", "--json", "--config", edge.config).out.String())
				return slices.ContainsFunc(all, func(d admin.DelegateInfo) bool { return d.Delegate == list[0].Delegate && d.State == "evicted" })
			})
			if r := nodes[0].ask(coap.GET, "/g/name"); r.Code != coap.ServiceUnavailable {
				t.Errorf("an evicted node asks the group: %v", r.Code)
			}
			run(t, 0, "delegate", "rejoin", list[0].Delegate, "--config", edge.config)
			if d := edge.delegated(2)[0]; d.Node == list[0].Node {
				t.Errorf("joined again as the node of before: %+v", d)
			}
		})
	}
}
