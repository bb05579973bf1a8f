package ace

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// Node is a node to enroll: its identity in handshakes, the pre-shared key of
// 16 to 64 bytes, and the most that its tokens may allow.
type Node struct {
	Identity string
	Key      cose.Secret
	Scope    groupcomm.Scope
}

// EnrollOptions say how nodes are enrolled.
type EnrollOptions struct {
	Audience string        // of their tokens; "": the only one that can be issued for
	Lifetime time.Duration // of their tokens, a second at least
	Replace  bool          // identities that are enrolled already get the new key and rights
	DryRun   bool          // find every fault, change nothing
}

// Enrolled is what Enroll did, or with DryRun would do.
type Enrolled struct {
	Audience string
	Added    int
	Replaced int // of which some may be as they were
	Revoked  int // of Replaced: key changed or rights shrank, so their tokens ended
}

// NodeFault is what is wrong with one of the nodes.
type NodeFault struct {
	Index int
	Text  string // quotes no key
}

// NodeFaults is the error of Enroll that lists everything that is wrong.
type NodeFaults []NodeFault

func (f NodeFaults) Error() string {
	if len(f) == 0 {
		return "ace: no faults"
	}
	return fmt.Sprintf("ace: %d nodes cannot be enrolled, the first: %s", len(f), f[0].Text)
}

// maxEnroll bounds one call: it is one transaction.
const maxEnroll = 20_000

// planned is a node and what is known about its identity already.
type plannedNode struct {
	Node
	scope   []byte
	sealed  []byte
	old     *nodeRow // nil: new
	sameKey bool
	revoke  bool
}

// Enroll stores nodes, all or none, in one transaction; they can have tokens
// when it returns. An identity that is enrolled already is a fault without
// Replace, one that is configured always. The error is [NodeFaults] when the
// nodes are wrong.
//
// A replaced node whose key changes or whose rights shrink loses its tokens and
// memberships at once; a disabled one stays disabled.
func (s *Server) Enroll(ctx context.Context, nodes []Node, o EnrollOptions) (*Enrolled, error) {
	if s.cfg.AS == nil {
		return nil, coap.Errorf(coap.Conflict, "no authorization server here: set authorization_server.enabled")
	}
	if len(nodes) > maxEnroll {
		return nil, coap.Errorf(coap.RequestEntityTooLarge, "more than %d nodes at once", maxEnroll)
	}
	if o.Lifetime < time.Second {
		return nil, coap.Errorf(coap.BadRequest, "lifetime is less than a second")
	}
	entry, err := s.issuer(o.Audience)
	if err != nil {
		return nil, coap.Errorf(coap.Conflict, "%s", err)
	}
	o.Audience = entry.Audience
	plan, err := s.planNodes(ctx, nodes, o)
	if err != nil {
		return nil, err
	}
	out := &Enrolled{Audience: entry.Audience}
	for _, p := range plan {
		switch {
		case p.old == nil:
			out.Added++
		case p.revoke:
			out.Revoked++
			fallthrough
		default:
			out.Replaced++
		}
	}
	if o.DryRun {
		return out, nil
	}
	for i := range plan {
		plan[i].sealed = s.store.Seal(nodeContext(plan[i].Identity), plan[i].Key.Bytes())
	}
	now := time.Now()
	err = s.store.Update(ctx, func(tx *store.Tx) error {
		if s.nodes.Load()+int64(out.Added) > int64(s.cfg.Limits.MaxNodes) {
			return coap.Errorf(coap.ServiceUnavailable, "more than %d enrolled nodes", s.cfg.Limits.MaxNodes)
		}
		for i := range plan {
			if err := s.writeNode(tx, &plan[i], o, now); err != nil {
				return err
			}
		}
		tx.AfterCommit(func() { s.countNodes(int64(out.Added)) })
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("ace: enroll: %w", err)
	}
	s.log.InfoContext(ctx, "nodes enrolled", "n", out.Added, "replaced", out.Replaced, "revoked", out.Revoked, "audience", out.Audience)
	return out, nil
}

// planNodes finds every fault, and what is stored under the identities.
func (s *Server) planNodes(ctx context.Context, nodes []Node, o EnrollOptions) ([]plannedNode, error) {
	var faults NodeFaults
	plan := make([]plannedNode, len(nodes))
	seen := make(map[string]bool, len(nodes))
	for i, n := range nodes {
		plan[i] = plannedNode{Node: n}
		plan[i].Scope = tidy(n.Scope)
		plan[i].scope = groupcomm.EncodeScope(plan[i].Scope)
		if text := s.nodeFault(n, seen); text != "" {
			faults = append(faults, NodeFault{i, text})
		}
		seen[n.Identity] = true
	}
	err := s.store.View(ctx, func(tx *store.Tx) error {
		for i := range plan {
			old, err := nodeByIdentity(tx, plan[i].Identity)
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return err
			}
			plan[i].old = old
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("ace: read nodes: %w", err)
	}
	for i := range plan {
		p := &plan[i]
		if p.old == nil {
			continue
		}
		if !o.Replace {
			faults = append(faults, NodeFault{i, fmt.Sprintf("%q is enrolled already", p.Identity)})
			continue
		}
		if p.sameKey, err = s.sameKey(p.old, p.Key); err != nil {
			return nil, err
		}
		p.revoke = !p.sameKey || !p.old.keepsRights(o.Audience, p.Scope)
	}
	if len(faults) > 0 {
		return nil, faults
	}
	return plan, nil
}

// nodeFault says what is wrong with a node, "" for nothing.
func (s *Server) nodeFault(n Node, seen map[string]bool) string {
	if text := identityFault(n.Identity); text != "" {
		return text
	}
	switch size := len(n.Key.Bytes()); {
	case seen[n.Identity]:
		return fmt.Sprintf("%q is given twice", n.Identity)
	case s.identities[n.Identity] != nil:
		return fmt.Sprintf("%q is configured in the section psk, which wins: use another identity or take it out there", n.Identity)
	case size < minPSK || size > maxPSK:
		return fmt.Sprintf("a key has %d to %d bytes", minPSK, maxPSK)
	case len(n.Scope) == 0:
		return "no group"
	case len(n.Scope) > maxScopeEntries:
		return fmt.Sprintf("more than %d groups", maxScopeEntries)
	}
	for _, e := range n.Scope {
		if !groupcomm.ValidGroupName(e.Group) {
			return fmt.Sprintf("%q is no group name", e.Group)
		}
		if !usable(e) {
			return fmt.Sprintf("group %q has no usable roles", e.Group)
		}
	}
	return ""
}

// writeNode stores one node, unless it changed since it was planned.
func (s *Server) writeNode(tx *store.Tx, p *plannedNode, o EnrollOptions, now time.Time) error {
	lifetime := int64(o.Lifetime / time.Second)
	if p.old == nil {
		n, err := tx.Exec(`INSERT INTO ace_nodes (identity, sealed, keyed, audience, scope, lifetime, disabled, enrolled, version)
			VALUES (?, ?, ?, ?, ?, ?, 0, ?, ?) ON CONFLICT (identity) DO NOTHING`,
			p.Identity, p.sealed, now.UnixNano(), o.Audience, p.scope, lifetime, now.Unix(), now.UnixNano())
		if err == nil && n == 0 {
			err = errNodeChanged
		}
		return err
	}
	keyed := p.old.keyed
	if !p.sameKey {
		keyed = now.UnixNano()
	}
	n, err := tx.Exec(`UPDATE ace_nodes SET sealed = ?, keyed = ?, audience = ?, scope = ?, lifetime = ?, enrolled = ?, version = version + 1
		WHERE identity = ? AND version = ?`,
		p.sealed, keyed, o.Audience, p.scope, lifetime, now.Unix(), p.Identity, p.old.version)
	if err == nil && n == 0 {
		err = errNodeChanged
	}
	if err != nil || !p.revoke {
		return err
	}
	return s.revokeClient(tx, p.Identity, now.Unix())
}

var errNodeChanged = coap.Errorf(coap.Conflict, "a node was enrolled, changed or removed meanwhile: try again")
