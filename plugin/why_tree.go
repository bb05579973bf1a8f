package plugin

import (
	"context"
	"fmt"
	"time"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/bridge"
)

// whyTree tells the way of a member in the key tree of its group; nil: it does not
// follow one.
func (o *operator) whyTree(ctx context.Context, group string, e *bridge.LedgerEntry) (*admin.WhyTree, error) {
	way, err := o.bridge.TreeWay(ctx, group, e)
	if err != nil || way == nil {
		return nil, err
	}
	tree, err := o.bridge.Tree(ctx, group)
	if err != nil {
		return nil, err
	}
	w := &admin.WhyTree{Group: deliveryTree(tree), Path: []admin.WhyTreeNode{}}
	for _, n := range way.Nodes {
		w.Path = append(w.Path, admin.WhyTreeNode{
			Node: fmt.Sprintf("%d/%d", n.Level, n.Index), KeyVersion: n.KeyVersion, KeyStep: n.Step, Told: n.Told, Topic: n.Topic,
		})
		if n.Told != 0 && (!e.Shown || n.Told > e.Confirmed) {
			w.Links++
		}
	}
	return w, nil
}

// treeNext says what to do about a member of a key tree that lacks the newest
// version.
func treeNext(w *admin.WhyGroup) (list []string) {
	next := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	ask := "GET /ace-group/" + w.Group
	d, t := w.Delivery, w.Tree.Group
	mqtt := d.Channel == "mqtt"
	switch missed := catchUp(d); {
	case t == nil:
		next("the group has no key tree any more: it learns of a rekey when it asks, %s", ask)
	case missed == bridge.CatchUpPlace:
		next("it has no place in the key tree, since its token had expired at a rekey or the group came from another gateway: it gets one when it asks, %s", ask)
	case missed == bridge.CatchUpLink && mqtt:
		next("it missed a link of the chain of keys, and gets its way anew when it asks, %s, as it should do by itself; if this comes again, see that it may subscribe to the topics of its way in the key tree", ask)
	case missed == bridge.CatchUpLink:
		next("it missed a link of the chain of keys, and gets its way anew when it asks, %s, as it should do by itself; if this comes again, see that it listens to the control_group_uri, and that multicast reaches its network", ask)
	case missed == bridge.CatchUpAsked:
		next("nothing: it asked for its way since, and shows the version with its next request that names it")
	case mqtt && t.Published == nil:
		next("this gateway is not connected to the MQTT broker, perhaps because another that shares its store is: see mqtt in the configuration and `mqtt broker is away` in the log")
	case mqtt && int64(*t.Published) < t.Messages:
		next("nothing: %d of %d messages of the rekey are with the broker yet", *t.Published, t.Messages)
	case d.Channel == "multicast" && t.Sent == nil:
		next("the rekey was not multicast yet: see control_group_uri of the group, and `cannot multicast a rekey` in the log")
	case d.Channel == "multicast" && t.Sent != nil:
		next("nothing: its rekey was multicast %s ago, and is repeated for a minute; who hears none of it asks, %s", time.Since(*t.Sent).Round(time.Second), ask)
	}
	return list
}

func catchUp(d *admin.DeliveryMember) string {
	if d.Tree == nil {
		return ""
	}
	return d.Tree.CatchUp
}
