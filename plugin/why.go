package plugin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/ace"
	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/bridge"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
)

var _ admin.Explainer = (*operator)(nil)

// Why gathers from the rooms what decides whether a node can read a group now. It
// goes by any name that an operator has for it.
func (o *operator) Why(ctx context.Context, node, group string) (*admin.WhyInfo, error) {
	if w, err := o.whyDelegate(ctx, node, group); w != nil || err != nil {
		return w, err
	}
	groups, err := o.gm.Groups(ctx)
	if err != nil {
		return nil, err
	}
	if group != "" {
		groups = slices.DeleteFunc(groups, func(g groupcomm.GroupStatus) bool { return g.Name != group })
		if len(groups) == 0 {
			return nil, &admin.Problem{Status: http.StatusNotFound, Detail: fmt.Sprintf("no group %q", group), Hint: "`gateway group list` shows the groups"}
		}
	}
	out := &admin.WhyInfo{Node: node, GatewayTime: time.Now().UTC().Truncate(time.Second), Groups: []admin.WhyGroup{}}
	err = o.whyMembers(ctx, out, groups, func(m *groupcomm.Member) bool { return m.Node == node })
	if err != nil {
		return nil, err
	}
	if len(out.Groups) == 0 {
		if err := o.whyClient(ctx, out, groups, group != ""); err != nil {
			return nil, err
		}
	}
	if len(out.Groups) == 0 && out.Client == nil {
		p := &admin.Problem{Status: http.StatusNotFound, Detail: fmt.Sprintf("no node %q is a member of any group, was one, or may become one", node),
			Hint: "`gateway group show NAME` has the names of members, `gateway node list` the identities of enrolled nodes"}
		if h := o.tries.newest([]byte(node)); h != nil {
			p.Detail += fmt.Sprintf("; a DTLS handshake with this identity was refused at %s", h.At.Format(time.RFC3339))
			p.Hint = "is the identity misspelled in the node? `gateway node list` has those that are enrolled, the section psk of the configuration the others"
		}
		return nil, p
	}
	return out, nil
}

// maxWhy bounds the memberships that one answer explains: many nodes may share a
// client.
const maxWhy = 50

// whyMembers explains the memberships of whom is says so.
func (o *operator) whyMembers(ctx context.Context, out *admin.WhyInfo, groups []groupcomm.GroupStatus, is func(*groupcomm.Member) bool) error {
	for _, g := range groups {
		members, err := o.gm.Members(ctx, g.Name)
		if err != nil {
			return err
		}
		var ledger []bridge.LedgerEntry // read where somebody was found
		for i := range members {
			m := &members[i]
			if !is(m) {
				continue
			}
			if len(out.Groups) == maxWhy {
				out.More++
				continue
			}
			if ledger == nil {
				if _, ledger, err = o.bridge.Progress(ctx, g.Name); err != nil {
					return err
				}
			}
			w, err := o.whyMember(ctx, m, g, ledger)
			if err != nil {
				return err
			}
			if out.Groups = append(out.Groups, *w); out.ClockHint == "" {
				out.ClockHint = clockHint(time.Now(), w.Token)
			}
		}
	}
	return nil
}

// whyMember explains one membership.
func (o *operator) whyMember(ctx context.Context, m *groupcomm.Member, g groupcomm.GroupStatus, ledger []bridge.LedgerEntry) (*admin.WhyGroup, error) {
	w := newWhyGroup(g)
	w.Node = m.Node
	w.Member = &admin.WhyMember{Roles: admin.RoleNames(m.Roles), JoinedAt: &m.JoinedAt, Lapsed: m.Lapsed}
	if m.SenderID != nil {
		id := m.SenderID.String()
		w.Member.SenderID = &id
	}
	w.Token = o.whyToken(ctx, m)
	w.Associations, _ = o.links(m.Subject)
	w.Associations = append(w.Associations, o.contexts(m.Subject)...)
	w.Refused = o.whyRefused(m.Subject)
	w.Handshake = o.tries.newest(ace.HandshakeIdentity(m.Subject))
	var err error
	if w.Client, err = o.ace.ClientOf(ctx, m.Subject); err != nil {
		return nil, err
	}
	for _, e := range ledger {
		if e.Node == m.Node {
			d := deliveryMember(e)
			w.Delivery, w.Held = &d, d.Version
			twins, err := o.twins(ctx, g.Name, ledger, sameNode(m))
			if err != nil {
				return nil, err
			}
			d.Twin = twins[e.Node]
			if w.Tree, err = o.whyTree(ctx, g.Name, &e); err != nil {
				return nil, err
			}
		}
	}
	verdict(w, m, g, time.Now())
	return w, nil
}

func newWhyGroup(g groupcomm.GroupStatus) *admin.WhyGroup {
	return &admin.WhyGroup{Group: g.Name, Version: g.Version, Next: []string{}, Associations: []admin.Association{}}
}

// whyRefused is the newest refused request of any of them.
func (o *operator) whyRefused(subjects ...coap.Subject) (w *admin.WhyRefusal) {
	for _, s := range subjects {
		if r, ok := o.refused(s); ok && (w == nil || r.at.After(w.At)) {
			w = &admin.WhyRefusal{At: r.at.UTC(), Method: r.method, Path: r.path, Code: r.code, Error: r.reason}
		}
	}
	return w
}

// whyToken tells what a member's token is worth in its group.
func (o *operator) whyToken(ctx context.Context, m *groupcomm.Member) *admin.WhyToken {
	t := &admin.WhyToken{Roles: []string{}, Expires: admin.TimeOrNil(m.Expires)}
	grant, err := o.ace.Grant(ctx, coap.Peer{Via: coap.Internal, Subject: m.Subject})
	switch {
	case err != nil && coap.Deliberate(err):
		t.Error = "no token of its key is in force: expired, revoked, or never posted here"
	case err != nil:
		t.Error = "the token could not be looked up"
		if errors.Is(err, context.DeadlineExceeded) {
			t.Error = "the token could not be looked up in time"
		}
	default:
		t.Valid, t.Roles, t.Expires = true, admin.RoleNames(grant.Scope.RolesFor(m.Group)), admin.TimeOrNil(grant.Expires)
	}
	return t
}

// verdict says what all of it means, the worst first.
func verdict(w *admin.WhyGroup, m *groupcomm.Member, g groupcomm.GroupStatus, now time.Time) {
	say := func(reads, format string, args ...any) { w.Reads, w.Because = reads, fmt.Sprintf(format, args...) }
	next := func(format string, args ...any) { w.Next = append(w.Next, fmt.Sprintf(format, args...)) }
	d := w.Delivery
	behind := d == nil || w.Held == nil || *w.Held < g.Version // not by the state: one that lapsed may hold the newest
	switch {
	case m.Lapsed && !behind:
		say("yes", "its token ended, but no rekey came since: it holds the newest version, and gets no newer one")
	case m.Lapsed, !w.Token.Valid:
		say("no", "it has no access token in force, so it gets no newer keys")
	case w.Held == nil && d != nil && m.JoinedAt == g.Version:
		say("unknown", "it was given version %d when it joined, and did not show yet that it has it", m.JoinedAt)
	case w.Held == nil:
		say("no", "the group is at version %d, and it showed none since it joined at version %d", g.Version, m.JoinedAt)
	case behind && d != nil && d.HeldUntil != nil:
		say("no", "the group is at version %d: it is held until responders have it, at most until %s; it reads what is under version %d", g.Version, d.HeldUntil.Format(time.RFC3339), *w.Held)
	case behind:
		say("no", "the group is at version %d, and the newest that it showed is %d", g.Version, *w.Held)
	case g.Exp.Before(now):
		say("no", "the group's keying material expired, and no rekey could renew it")
		next("see why by `gateway audit` and in the log: group %s should have been rekeyed", g.Name)
	default:
		say("yes", "it confirmed version %d, which is the newest", g.Version)
	}
	if !w.Token.Valid {
		next("the node gets a new token for the same key from its Authorization Server and posts it to /authz-info; within the grace it stays a member as it was")
	} else if granted, err := groupcomm.ParseRoles(joined(w.Token.Roles)); len(w.Token.Roles) == 0 || err == nil && !granted.Has(m.Roles) {
		say("no", "its token does not grant the roles any more with which it is a member")
		next("give it a token with the group and its roles in scope, or let it join again with less")
	}
	if w.Reads == "yes" || d == nil || !w.Token.Valid {
		return
	}
	poll := d.Channel == "poll" || d.Channel == "none"
	if d.HeldUntil != nil {
		next("nothing: a scheduled rekey tells responders first (activation of the group); `gateway group rekey %s` would tell everybody at once", w.Group)
		return
	}
	if d.Twin != "" && d.NextWake == nil {
		next("its client is also the member %s, which has the newest version: if both are one node, which lost its state and joined again, `gateway group evict %s %s` ends what it was; else this one ends with its token", d.Twin, w.Group, d.Node)
		return
	}
	switch d.State {
	case bridge.StateAsleep:
		then := "the newest rekey goes out"
		if poll {
			then = "it gets the newest keys if it asks for them"
		}
		if d.NextWake != nil {
			next("nothing: it sleeps, and announced that it wakes at %s; %s then", d.NextWake.Format(time.RFC3339), then)
			return
		}
		next("wake the node: %s at its next request or connection", then)
	case bridge.StatePending:
		away := len(w.Associations) == 0 // what is said of that below is what to do
		if d.Channel == "mqtt" {
			away = d.Connected != nil && !*d.Connected
		}
		if w.Held != nil && !poll && !away {
			next("nothing yet: what was sent to it by %s is not confirmed; it is sent again for as long as delivery.retry_for of the group says, and at the node's next sign of life", d.Channel)
		}
	case bridge.StateUnreachable:
		next("see that the node has power and network; if it is gone for good, `gateway group evict %s %s`", w.Group, w.Delivery.Node)
	}
	if h := w.Handshake; h != nil && h.Error != "" && len(w.Associations) == 0 {
		next("its newest handshake, at %s, was %s: %s", h.At.Format(time.RFC3339), h.Result, h.Error)
	} else if len(w.Associations) == 0 && d.Channel != "mqtt" {
		next("it has no association: nothing can be sent until it connects; is port and address of this gateway what it has configured?")
	}
	if poll {
		next("it neither observes the group nor has a control_uri or MQTT: it learns of a rekey when it asks, GET /ace-group/%s", w.Group)
	}
	switch {
	case d.Channel != "mqtt":
	case d.Connected != nil && !*d.Connected:
		next("it is not connected to the MQTT broker, where the newest rekey waits for it: see that it has network and reaches the broker that it was told")
	case w.Held == nil:
		next("see that it is connected to the MQTT broker and subscribes to its own topic")
	}
	if d.LastError != "" {
		next("the last attempt failed: %s", d.LastError)
	}
	if w.Tree != nil {
		w.Next = append(w.Next, treeNext(w)...)
	}
}

// skew is how near to now the end of a token is suspicious.
const skew = 10 * time.Minute

// clockHint tells what looks like a wrong clock.
func clockHint(now time.Time, t *admin.WhyToken) string {
	switch {
	case now.Year() < 2025:
		return "the clock of this gateway is wrong: tokens and keys cannot be judged"
	case t.Expires == nil:
		return ""
	case !t.Valid && now.Sub(*t.Expires) >= 0 && now.Sub(*t.Expires) < skew:
		return "its token ended a few minutes ago by this gateway's clock: if the node or its Authorization Server still takes it for valid, compare their clocks"
	case !t.Valid && t.Expires.After(now):
		return "its token should be valid still by this gateway's clock: it was revoked or replaced, or a clock was set back"
	}
	return ""
}

func securityName(s coap.Security) string {
	switch s {
	case coap.DTLSPSK:
		return "dtls-psk"
	case coap.DTLSCert:
		return "dtls-certificate"
	case coap.DTLSRPK:
		return "dtls-raw-public-key"
	case coap.OSCORE:
		return "oscore"
	case coap.Internal:
		return "internal"
	}
	return "plain"
}

func joined(names []string) string {
	out := ""
	for i, n := range names {
		if i > 0 {
			out += ","
		}
		out += n
	}
	return out
}
