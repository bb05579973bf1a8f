package plugin

import (
	"context"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/audit"
)

// did records what an operator did. It is done by now, so that a record that
// cannot be written changes nothing.
func (o *operator) did(ctx context.Context, kind string, count int, detail string) {
	if err := o.audit.Operator(ctx, kind, count, detail); err != nil {
		o.log.ErrorContext(ctx, "an operator's act is not in the audit log", "kind", kind, "n", count, "err", err)
	}
}

// AuditRecords reads the audit log.
func (o *operator) AuditRecords(ctx context.Context, q admin.AuditQuery) ([]admin.AuditRecord, error) {
	records, err := o.audit.Records(ctx, audit.Query(q))
	if err != nil {
		return nil, err
	}
	list := make([]admin.AuditRecord, len(records))
	for i, r := range records {
		list[i] = admin.AuditRecord{
			ID: r.ID, At: r.At.UTC(), Kind: r.Kind, Group: r.Group, Node: r.Node, Peer: r.Peer, Subject: r.Subject,
			SenderID: r.SenderID, Roles: r.Roles, Version: r.Version, Gid: r.Gid, Reason: r.Reason,
			Method: r.Method, Path: r.Path, Code: r.Code, Error: r.Error, Count: r.Count,
		}
	}
	return list, nil
}
