package plugin

import (
	"context"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/bridge"
)

var _ admin.Deliveries = (*operator)(nil)

// Delivery tells how far the newest rekey of a group has come.
func (o *operator) Delivery(ctx context.Context, group string, members bool) (*admin.DeliveryInfo, error) {
	var entries []bridge.LedgerEntry
	p, err := o.bridge.Tally(ctx, group)
	if err == nil && members {
		p, entries, err = o.bridge.Progress(ctx, group)
	}
	if err != nil {
		return nil, err
	}
	out := &admin.DeliveryInfo{
		Group: group, Version: p.Version, Since: admin.MomentOrNil(p.Since), Done: admin.MomentOrNil(p.Done),
		Members: p.Members, Delivered: p.Delivered, Pending: p.Pending, Asleep: p.Asleep, Unreachable: p.Unreachable,
		Lapsed: p.Lapsed, Percent: p.Percent(), Held: p.Held, HeldUntil: admin.TimeOrNil(p.HeldUntil),
	}
	tree, err := o.bridge.Tree(ctx, group)
	if err != nil {
		return nil, err
	}
	out.Tree = deliveryTree(tree)
	if !members {
		return out, nil
	}
	twins, err := o.twins(ctx, group, entries, func(*bridge.LedgerEntry) bool { return true })
	if err != nil {
		return nil, err
	}
	out.Ledger = make([]admin.DeliveryMember, len(entries))
	for i, e := range entries {
		out.Ledger[i] = deliveryMember(e)
		out.Ledger[i].Twin = twins[e.Node]
	}
	return out, nil
}

func deliveryMember(e bridge.LedgerEntry) admin.DeliveryMember {
	m := admin.DeliveryMember{
		Node: e.Node, State: e.State, Since: admin.TimeOrNil(e.Since), LastHeard: admin.TimeOrNil(e.LastHeard),
		NextWake: admin.TimeOrNil(e.NextWake), HeldUntil: admin.TimeOrNil(e.HeldUntil), Attempts: e.Attempts, LastError: e.LastError, Connected: e.Online, Want: e.Want, Channel: e.Channel,
	}
	if e.Shown {
		m.Version, m.By = &e.Confirmed, e.ConfirmedBy
	}
	if e.Tree != nil {
		m.Tree = &admin.DeliveryLeaf{CatchUp: e.Tree.CatchUp}
		if e.Tree.Leaf >= 0 {
			m.Tree.Leaf = &e.Tree.Leaf
		}
	}
	for _, a := range e.Channels {
		m.Channels = append(m.Channels, admin.DeliveryChannel{Channel: a.Channel, Result: a.Result, At: a.At.UTC(), Error: a.Error})
	}
	return m
}

func deliveryTree(t *bridge.TreeStatus) *admin.DeliveryTree {
	if t == nil {
		return nil
	}
	return &admin.DeliveryTree{
		ID: t.ID, Topic: t.Topic, Degree: t.Degree, Height: t.Height, Leaves: t.Leaves, Version: t.Version,
		Messages: t.Messages, Published: t.Taken, Multicasts: t.Casts, Sent: admin.TimeOrNil(t.Sent),
		Waiting: t.Out, Dirty: t.Dirty, Homeless: t.Homeless,
	}
}
