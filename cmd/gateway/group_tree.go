package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/seed4911071e/groupgate/admin"
)

// treeLine tells of a group's key tree and how its newest rekey went out.
func treeLine(t *admin.DeliveryTree) string {
	s := fmt.Sprintf("key tree: %s, degree %d, height %d; ", count(int(t.Leaves), "member"), t.Degree, t.Height)
	if t.Version == 0 {
		s += "no rekey yet"
	} else {
		s += fmt.Sprintf("version %d by %s", t.Version, count(int(t.Messages), "message")) + treeSent(t)
	}
	if t.Waiting > 0 {
		s += fmt.Sprintf("; %s out since, %s to renew", count(int(t.Waiting), "member"), count(int(t.Dirty), "key"))
	}
	if t.Homeless > 0 {
		s += fmt.Sprintf("; %s without a place", count(int(t.Homeless), "member"))
	}
	return s
}

// treeMark is a group's key tree in one cell of a table, "-" for a group that has none.
func treeMark(t *admin.DeliveryTree) string {
	switch {
	case t == nil:
		return "-"
	case t.Version == 0:
		return count(int(t.Leaves), "member")
	}
	return fmt.Sprintf("%s, %s", count(int(t.Leaves), "member"), count(int(t.Messages), "message"))
}

// treeSent tells where the messages of the newest rekey are.
func treeSent(t *admin.DeliveryTree) (s string) {
	switch {
	case t.Topic == "":
	case t.Published == nil:
		s = ", the broker is away or with another gateway"
	case int64(*t.Published) < t.Messages:
		s = fmt.Sprintf(", %d at the broker", *t.Published)
	default:
		s = ", all at the broker"
	}
	if t.Multicasts > 0 {
		s += ", multicast " + count(t.Multicasts, "time")
	}
	return s
}

// treeTally is the part of the progress in one line: what is still to happen.
func treeTally(t *admin.DeliveryTree) (s string) {
	if t == nil {
		return ""
	}
	if t.Version != 0 {
		s = fmt.Sprintf("; key tree: %s", count(int(t.Messages), "message")) + treeSent(t)
	}
	if t.Waiting > 0 {
		s += fmt.Sprintf("; %s out since", count(int(t.Waiting), "member"))
	}
	return s
}

// missed tells why a member cannot have the newest version by the tree.
func missed(t *admin.DeliveryLeaf) string {
	if t == nil {
		return ""
	}
	switch t.CatchUp {
	case "no-place":
		return "no place in the key tree until it asks"
	case "missed-link":
		return "missed a link, until it asks"
	case "asked":
		return "asked for its way"
	}
	return ""
}

// explainTree writes a member's way in the tree.
func explainTree(line func(label, format string, args ...any), d *admin.DeliveryMember, t *admin.WhyTree) {
	if t.Group == nil {
		return
	}
	line("key tree", "%s", strings.TrimPrefix(treeLine(t.Group), "key tree: "))
	if t.Group.Sent != nil {
		line("key tree", "sent %s ago", rough(time.Since(*t.Group.Sent)))
	}
	if d.Tree != nil && d.Tree.Leaf != nil {
		line("leaf", "%d, needs %s of its way", *d.Tree.Leaf, count(t.Links, "message"))
	}
	if m := missed(d.Tree); m != "" {
		line("leaf", "%s", m)
	}
	for _, n := range t.Path {
		told := "no message yet"
		if n.Told != 0 {
			told = fmt.Sprintf("message of version %d", n.Told)
		}
		if n.Topic != "" {
			told += ", topic " + n.Topic
		}
		line("node", "%s key version %d step %d, %s", n.Node, n.KeyVersion, n.KeyStep, told)
	}
}
