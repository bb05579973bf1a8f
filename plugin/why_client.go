package plugin

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/ace"
	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/audit"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// whyClient explains a node that no group has as a member under that name: one that
// the embedded Authorization Server knows by it, and one that was a member. asked:
// about the one group.
func (o *operator) whyClient(ctx context.Context, out *admin.WhyInfo, groups []groupcomm.GroupStatus, asked bool) error {
	c, err := o.ace.Client(ctx, out.Node)
	if err != nil {
		return err
	}
	if c != nil {
		out.Client = o.clientInfo(c)
		if err := o.whyMembers(ctx, out, groups, func(m *groupcomm.Member) bool { return c.Is(m.Subject) }); err != nil {
			return err
		}
	}
	gone, err := o.audit.Departures(ctx, func(node string, s coap.Subject) bool { return node == out.Node || c != nil && c.Is(s) })
	if err != nil {
		return err
	}
	for _, g := range groups {
		d, was := gone[g.Name]
		member := slices.ContainsFunc(out.Groups, func(w admin.WhyGroup) bool { return w.Group == g.Name })
		if member || !was && !asked && (c == nil || !has(c.Scope, g.Name)) {
			continue
		}
		w := newWhyGroup(g)
		if was {
			w.Node = d.Node
			w.Departed = &admin.WhyDeparture{At: d.At.UTC(), Evicted: d.Evicted, Reason: d.Reason}
		}
		outside(w, c, out.Client, d, time.Now())
		out.Groups = append(out.Groups, *w)
	}
	if c == nil || asked {
		return nil
	}
	for _, e := range c.Scope {
		if !slices.ContainsFunc(groups, func(g groupcomm.GroupStatus) bool { return g.Name == e.Group }) {
			w := newWhyGroup(groupcomm.GroupStatus{Name: e.Group})
			w.Reads, w.Because = "no", "there is no such group here"
			w.Next = append(w.Next, "`gateway group create "+e.Group+"`, or correct the name in what the node may have")
			out.Groups = append(out.Groups, *w)
		}
	}
	return nil
}

func (o *operator) clientInfo(c *ace.ClientInfo) *admin.WhyClient {
	w := &admin.WhyClient{Identity: c.Identity, State: c.State, Scope: []admin.ScopeEntry{}, Token: admin.TimeOrNil(c.Until), Posted: c.Posted}
	for _, e := range c.Scope {
		w.Scope = append(w.Scope, admin.ScopeEntry{Group: e.Group, Roles: admin.RoleNames(e.Roles)})
	}
	w.Handshake = o.tries.newest([]byte(c.Identity))
	w.Refused = o.whyRefused(append(c.Subjects, c.Association)...)
	return w
}

func has(scope groupcomm.Scope, group string) bool {
	return slices.ContainsFunc(scope, func(e groupcomm.ScopeEntry) bool { return e.Group == group })
}

// outside says why a node is not in a group, the first obstacle on its way first. c
// is nil when nothing is known but how its membership ended.
func outside(w *admin.WhyGroup, c *ace.ClientInfo, info *admin.WhyClient, d audit.Departure, now time.Time) {
	next := func(format string, args ...any) { w.Next = append(w.Next, fmt.Sprintf(format, args...)) }
	w.Reads, w.Because = "no", "it is not a member"
	switch {
	case !d.At.IsZero() && d.Evicted:
		w.Because = fmt.Sprintf("it was evicted at %s: %s", d.At.UTC().Format(time.RFC3339), d.Reason)
	case !d.At.IsZero():
		w.Because = fmt.Sprintf("it left at %s", d.At.UTC().Format(time.RFC3339))
	}
	if c == nil {
		next("it joins with a token whose scope has the group; `gateway audit` tells whether it was refused")
		return
	}
	also := func(text string) {
		if d.At.IsZero() {
			w.Because = text
		} else {
			w.Because += "; " + text
		}
	}
	switch {
	case c.State == "disabled":
		also("it is disabled: no handshake, no token, no membership")
		next("`gateway node enable %s` lets it in again", c.Identity)
		return
	case !c.MayToken && c.State == "configured":
		also("its psk entry may not ask for tokens")
		next("give the entry `may: [token]`, and a policy; or the node comes with a token of another Authorization Server")
		return
	case !c.MayToken:
		also("the embedded Authorization Server is not enabled, so it gets no token")
		next("set authorization_server.enabled")
		return
	case !has(c.Scope, w.Group):
		also("nothing lets it have a token for this group")
		if c.State == "configured" {
			next("add the group to a policy of the client (authorization_server.policies)")
		} else {
			next("enroll it with the group: `gateway node enroll --replace`")
		}
		return
	case c.Until.IsZero():
		also("it was given no access token, or what it was given is revoked")
	case now.After(c.Until):
		also("its newest access token ended at " + c.Until.UTC().Format(time.RFC3339))
	case !c.Posted:
		also("it was given an access token, which did not get here")
		next("it posts the token to /authz-info at listen.coap, or shows it as its psk_identity: see that it reaches that port of this gateway")
	default:
		also("it has an access token, and did not join")
		next("it sends its Join Request: POST /ace-group/%s", w.Group)
	}
	switch h := info.Handshake; {
	case info.Refused != nil:
		next("see what its newest refused request lacked")
	case c.Until.After(now):
	case h == nil:
		next("it did not come since this gateway started: see that it has power and network, and the address and port of listen.coaps")
	case h.Result == "unfinished" && c.State == "configured":
		next("compare its pre-shared key with that of the psk entry")
	case h.Result == "unfinished":
		next("compare its pre-shared key with the one that it was enrolled with; `gateway node enroll --replace` sets another")
	default:
		next("it asks the Authorization Server for a token: POST /token, over the association with its own key")
	}
}
