package plugin

import (
	"context"

	"github.com/seed4911071e/groupgate/ace"
	"github.com/seed4911071e/groupgate/bridge"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// A node that lost its state asks for a token, which is for another key, and joins: it
// is another member then, since members are known by their keys (docs/protocol.md,
// Section 1). What it was before is never heard again, and stays until its token ends:
// no specification tells that the two are one node. The operator, who knows, is told of
// the other.

// maxTwins bounds the members for which one answer looks for another.
const maxTwins = 256

// twins finds for members that lack the newest version the one that the same client is
// besides, and that holds it. It is told of enrolled nodes alone: many may share a
// configured client. So it is where one is several such members.
func (o *operator) twins(ctx context.Context, group string, entries []bridge.LedgerEntry, of func(*bridge.LedgerEntry) bool) (map[string]string, error) {
	var behind []*bridge.LedgerEntry
	for i := range entries {
		e := &entries[i]
		if e.State != bridge.StateCurrent && e.State != bridge.StateLapsed && len(behind) < maxTwins && of(e) {
			behind = append(behind, e)
		}
	}
	if len(behind) == 0 {
		return nil, nil
	}
	subjects, err := o.subjects(ctx, group)
	if err != nil {
		return nil, err
	}
	current := map[coap.Subject]string{}
	for _, e := range entries {
		if s, ok := subjects[e.Node]; ok && e.State == bridge.StateCurrent {
			current[s] = e.Node
		}
	}
	out, clients := map[string]string{}, map[string]string{}
	for _, e := range behind {
		s, ok := subjects[e.Node]
		if !ok {
			continue // it went meanwhile
		}
		client, err := o.ace.ClientOf(ctx, s)
		if err != nil {
			return nil, err
		}
		if client == "" {
			continue
		}
		twin, known := clients[client]
		if !known {
			c, err := o.ace.Client(ctx, client)
			if err != nil {
				return nil, err
			}
			twin = onlyOne(c, current)
			clients[client] = twin
		}
		if twin != "" {
			out[e.Node] = twin
		}
	}
	return out, nil
}

// onlyOne is the member that a client is, by subject; "": it is none, or several.
func onlyOne(c *ace.ClientInfo, members map[coap.Subject]string) (node string) {
	if c == nil || c.State == "configured" {
		return ""
	}
	for _, s := range c.Subjects {
		n, ok := members[s]
		switch {
		case !ok || n == node:
		case node != "":
			return ""
		default:
			node = n
		}
	}
	return node
}

// sameNode selects one member.
func sameNode(m *groupcomm.Member) func(*bridge.LedgerEntry) bool {
	return func(e *bridge.LedgerEntry) bool { return e.Node == m.Node }
}
