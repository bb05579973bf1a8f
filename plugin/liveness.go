package plugin

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/coap"
)

var _ admin.Liveness = (*operator)(nil)

// subjects are the subjects of a group's members, by node.
func (o *operator) subjects(ctx context.Context, group string) (map[string]coap.Subject, error) {
	members, err := o.gm.Members(ctx, group)
	if err != nil {
		return nil, err
	}
	out := make(map[string]coap.Subject, len(members))
	for _, m := range members {
		out[m.Node] = m.Subject
	}
	return out, nil
}

// Liveness joins what is known of members with their associations.
func (o *operator) Liveness(ctx context.Context, group, node string) (*admin.LivenessInfo, error) {
	subjects, err := o.subjects(ctx, group)
	if err != nil {
		return nil, err
	}
	ledger, err := o.bridge.Ledger(ctx, group)
	if err != nil {
		return nil, err
	}
	out := &admin.LivenessInfo{Group: group, GatewayTime: time.Now().UTC().Truncate(time.Second), Members: []admin.NodeLiveness{}}
	for _, e := range ledger {
		if node != "" && e.Node != node {
			continue
		}
		n := admin.NodeLiveness{
			Node: e.Node, State: e.State, Channel: e.Channel, LastHeard: admin.TimeOrNil(e.LastHeard),
			AwakeUntil: admin.TimeOrNil(e.AwakeUntil), NextWake: admin.TimeOrNil(e.NextWake), Associations: []admin.Association{},
		}
		if e.UsualGap > 0 {
			s := e.UsualGap.Seconds()
			n.UsualGap = &s
		}
		n.Associations, n.Handshakes = o.links(subjects[e.Node])
		for _, a := range n.Associations {
			n.Lost += a.Lost
			if a.LastHeard != nil && (n.LastHeard == nil || a.LastHeard.After(*n.LastHeard)) {
				n.LastHeard = a.LastHeard
			}
		}
		out.Members = append(out.Members, n)
	}
	if node != "" && len(out.Members) == 0 {
		return nil, &admin.Problem{Status: http.StatusNotFound, Detail: fmt.Sprintf("no member %q in group %q", node, group), Hint: "`gateway group show NAME` has the names of members"}
	}
	return out, nil
}

// associations tells how the associations of a subject stand, and how many
// handshakes it made while it had one.
func (g *Gateway) associations(s coap.Subject) ([]admin.Association, int) {
	links, handshakes := g.crowd.associations(s)
	out := make([]admin.Association, 0, len(links))
	for _, l := range links {
		p := l.Peer()
		a := admin.Association{Peer: p.Addr.String(), Via: securityName(p.Via)}
		a.Observations, a.Lost = g.server.Watching(p.Link)
		if own, ok := l.(*ownLink); ok {
			st := own.peer.Status()
			a.Since, a.LastHeard = utc(st.Began), utc(st.Heard)
			a.AddressChanges, a.Hibernated, a.Restored, a.Stale = st.Moves, st.Hibernated, st.Restored, st.Stale
		}
		out = append(out, a)
	}
	return out, handshakes
}

// contexts tells how the Security Contexts of a subject stand: associations that
// belong to no transport. Those that only rest on disk are not among them.
func (b *built) contexts(s coap.Subject) []admin.Association {
	found := b.secure.Of(s)
	out := make([]admin.Association, 0, len(found))
	for _, c := range found {
		a := admin.Association{Via: securityName(c.Peer.Via), LastHeard: utc(c.Used)}
		if c.Peer.Addr.IsValid() {
			a.Peer = c.Peer.Addr.String()
		}
		a.Observations, a.Lost = b.g.server.Watching(c.Peer.Link)
		out = append(out, a)
	}
	return out
}

func utc(t time.Time) *time.Time { return admin.TimeOrNil(t.UTC().Truncate(time.Second)) }
