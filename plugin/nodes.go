package plugin

import (
	"context"
	"errors"

	"github.com/seed4911071e/groupgate/ace"
	"github.com/seed4911071e/groupgate/admin"
)

// EnrollNodes makes nodes clients of the embedded Authorization Server.
func (o *operator) EnrollNodes(ctx context.Context, nodes []admin.NodeSpec, opts admin.EnrollOptions) (*admin.EnrollResult, error) {
	list := make([]ace.Node, len(nodes))
	for i, n := range nodes {
		list[i] = ace.Node{Identity: n.Identity, Key: n.Key, Scope: n.Scope}
	}
	out, err := o.ace.Enroll(ctx, list, ace.EnrollOptions{
		Audience: opts.Audience, Lifetime: opts.Lifetime, Replace: opts.Replace, DryRun: opts.DryRun,
	})
	if wrong, ok := errors.AsType[ace.NodeFaults](err); ok {
		faults := make(admin.LineFaults, len(wrong))
		for i, f := range wrong {
			faults[i] = admin.LineFault{Line: nodes[f.Index].Line, Detail: f.Text}
		}
		return nil, faults
	}
	if err != nil {
		return nil, err
	}
	if !opts.DryRun {
		o.did(ctx, "operator.nodes-enrolled", out.Added, "")
		if out.Replaced > 0 {
			o.did(ctx, "operator.nodes-replaced", out.Replaced, "")
		}
	}
	return &admin.EnrollResult{Audience: out.Audience, Enrolled: out.Added, Replaced: out.Replaced, Revoked: out.Revoked}, nil
}

// ListNodes lists enrolled nodes.
func (o *operator) ListNodes(ctx context.Context, after string, limit int) ([]admin.NodeStatus, error) {
	nodes, err := o.ace.Nodes(ctx, after, limit)
	if err != nil {
		return nil, err
	}
	list := make([]admin.NodeStatus, len(nodes))
	for i, n := range nodes {
		list[i] = admin.NodeStatus(n)
	}
	return list, nil
}

// EnableNodes lets disabled nodes have tokens again.
func (o *operator) EnableNodes(ctx context.Context, identities []string) (int, error) {
	n, err := o.ace.EnableNodes(ctx, identities)
	if err == nil {
		o.did(ctx, "operator.nodes-enabled", n, "")
	}
	return n, err
}

// DisableNodes shuts nodes out.
func (o *operator) DisableNodes(ctx context.Context, identities []string) (int, error) {
	n, err := o.ace.DisableNodes(ctx, identities)
	if err == nil {
		o.did(ctx, "operator.nodes-disabled", n, "")
	}
	return n, err
}

// RemoveNodes forgets nodes.
func (o *operator) RemoveNodes(ctx context.Context, identities []string) (int, error) {
	n, err := o.ace.RemoveNodes(ctx, identities)
	if err == nil {
		o.did(ctx, "operator.nodes-removed", n, "")
	}
	return n, err
}
