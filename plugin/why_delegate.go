package plugin

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/delegate"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// whyDelegate explains a legacy node, by the name that the configuration has for it;
// nil when nobody has that name. What the local Group Manager knows of it as a member
// comes with it.
func (o *operator) whyDelegate(ctx context.Context, name, group string) (*admin.WhyInfo, error) {
	out := &admin.WhyInfo{Node: name, GatewayTime: time.Now().UTC().Truncate(time.Second), Groups: []admin.WhyGroup{}}
	known := false
	for _, s := range o.delegates.List() {
		if s.Delegate != name {
			continue
		}
		known = true
		if group != "" && s.Group != group {
			continue
		}
		w := newWhyGroup(groupcomm.GroupStatus{Name: s.Group, Version: s.Version})
		w.Node = s.Node
		if s.GM == "" && s.Node != "" {
			var err error
			if w, err = o.whyLocal(ctx, s.Node, s.Group); err != nil {
				return nil, err
			}
		}
		judgeDelegate(w, s)
		out.Groups = append(out.Groups, *w)
	}
	switch {
	case !known:
		return nil, nil
	case len(out.Groups) == 0:
		return nil, &admin.Problem{Status: http.StatusNotFound, Detail: "the delegate " + name + " is not in that group", Hint: "`gateway delegate show " + name + "` has its groups"}
	}
	return out, nil
}

// whyLocal is what the Group Manager here knows of it.
func (o *operator) whyLocal(ctx context.Context, node, group string) (*admin.WhyGroup, error) {
	groups, err := o.gm.Groups(ctx)
	if err != nil {
		return nil, err
	}
	groups = slices.DeleteFunc(groups, func(g groupcomm.GroupStatus) bool { return g.Name != group })
	var out admin.WhyInfo
	err = o.whyMembers(ctx, &out, groups, func(m *groupcomm.Member) bool { return m.Node == node })
	switch {
	case err != nil:
		return nil, err
	case len(out.Groups) > 0:
		return &out.Groups[0], nil
	}
	return newWhyGroup(groupcomm.GroupStatus{Name: group}), nil
}

// judgeDelegate says whether the node takes part in the group now.
func judgeDelegate(w *admin.WhyGroup, s delegate.Status) {
	gm := s.GM
	if gm == "" {
		gm = "this gateway"
	}
	if s.Node != "" && w.Member == nil {
		id := s.SenderID.String()
		w.Member = &admin.WhyMember{SenderID: &id, Roles: admin.RoleNames(s.Roles)}
		held := uint64(s.Version)
		w.Held = &held
	}
	switch s.State {
	case delegate.StateJoined:
		if w.Reads != "no" {
			w.Reads, w.Because = "yes", "the gateway is a member for it at "+gm
		}
	case delegate.StateEvicted:
		w.Reads, w.Because = "no", "the Group Manager, "+gm+", evicted it"
		w.Next = append(w.Next, "find out why; then `gateway delegate rejoin "+s.Delegate+"`")
	case delegate.StateLeaving:
		w.Reads, w.Because = "no", "it is not configured any more, and the gateway tries to leave for it"
	default:
		w.Reads, w.Because = "no", "the gateway has not joined for it at "+gm
	}
	if s.Error != "" {
		w.Next = append(w.Next, "the last try failed: "+s.Error)
	}
	if w.Reads == "yes" && !s.Connected {
		w.Because += "; but the node itself is not connected, so what the group asks of it waits, or is answered 5.03"
		w.Next = append(w.Next, "see that the node has power and network, and the identity and key of its delegates entry")
	}
}
