package audit

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/seed4911071e/groupgate/store"
)

// Migrations is the schema of this room.
//
// audit_records: at is in milliseconds; class 1 are refusals, 0 the rest; data
// is JSON of what has no column.
//
// audit_state: one row. next is the id of the next record, event the last event
// that has its record, pseudonyms the sealed key.
func Migrations() store.Migrations {
	return store.Migrations{Room: "audit", Steps: []string{`
CREATE TABLE audit_records (
	id         INTEGER NOT NULL PRIMARY KEY,
	at         INTEGER NOT NULL,
	class      INTEGER NOT NULL,
	kind       TEXT    NOT NULL,
	group_name TEXT    NOT NULL,
	data       TEXT    NOT NULL
);
CREATE INDEX audit_records_class ON audit_records (class, id);
CREATE INDEX audit_records_at ON audit_records (at);
CREATE TABLE audit_state (
	id         INTEGER NOT NULL PRIMARY KEY,
	next       INTEGER NOT NULL,
	event      INTEGER NOT NULL,
	pseudonyms BLOB    NOT NULL
);
`}}
}

// write stores records; those of events up to event, unless they are stored
// already.
func (l *Log) write(ctx context.Context, list []Record, event int64) error {
	data := make([]string, len(list))
	for i := range list {
		data[i] = list[i].encode()
	}
	var written []string
	err := l.st.Update(ctx, func(tx *store.Tx) error {
		written = written[:0]
		// The row is locked from here on: several gateways may share the table.
		if _, err := tx.Exec(`UPDATE audit_state SET next = next + ? WHERE id = 1`, len(list)); err != nil {
			return err
		}
		var next, seen int64
		if err := tx.QueryRow(`SELECT next, event FROM audit_state WHERE id = 1`).Scan(&next, &seen); err != nil {
			return err
		}
		next -= int64(len(list))
		for i := range list {
			r := &list[i]
			if event > 0 && r.event <= seen {
				continue
			}
			class := 0
			if r.refused() {
				class = 1
			}
			_, err := tx.Exec(`INSERT INTO audit_records (id, at, class, kind, group_name, data) VALUES (?, ?, ?, ?, ?, ?)`,
				next+int64(i), r.At.UnixMilli(), class, r.Kind, r.Group, data[i])
			if err != nil {
				return err
			}
			written = append(written, r.Kind)
		}
		if event <= seen {
			return nil
		}
		_, err := tx.Exec(`UPDATE audit_state SET event = ? WHERE id = 1`, event)
		return err
	})
	if err == nil {
		for _, kind := range written {
			l.met.records.WithLabelValues(kind).Inc()
		}
	}
	return err
}

// trim deletes what is too old or too much, in small steps.
func (l *Log) trim(ctx context.Context, now time.Time) error {
	for more := true; more; {
		err := l.st.Update(ctx, func(tx *store.Tx) error {
			old, err := tx.Exec(`DELETE FROM audit_records WHERE id IN (SELECT id FROM audit_records WHERE at < ? ORDER BY at LIMIT ?)`,
				now.Add(-l.cfg.Retention).UnixMilli(), trimBatch)
			if err != nil {
				return err
			}
			more = old == trimBatch
			for class, limit := range []int{l.cfg.MaxRecords - l.cfg.MaxRecords/refusedShare, l.cfg.MaxRecords / refusedShare} {
				var n int64
				if err := tx.QueryRow(`SELECT COUNT(*) FROM audit_records WHERE class = ?`, class).Scan(&n); err != nil {
					return err
				}
				over := min(n-int64(limit), trimBatch)
				if over <= 0 {
					continue
				}
				more = more || over == trimBatch
				if _, err := tx.Exec(`DELETE FROM audit_records WHERE id IN
					(SELECT id FROM audit_records WHERE class = ? ORDER BY id LIMIT ?)`, class, over); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Query selects records. Zero values select everything.
type Query struct {
	Group string
	Kinds []string
	Since time.Time
	After int64 // records with a higher ID only
	Limit int   // the first so many; at least 1

	// Full shows addresses, identities, node names and Sender IDs as they are.
	// The reading is recorded first.
	Full bool
}

// Records reads records in the order in which they were written.
func (l *Log) Records(ctx context.Context, q Query) ([]Record, error) {
	if q.Full {
		if err := l.Operator(ctx, KindFullRead, 0, q.describe()); err != nil {
			return nil, err
		}
	}
	var where strings.Builder
	where.WriteString(`id > ? AND at >= ?`)
	since := int64(0)
	if !q.Since.IsZero() {
		since = q.Since.UnixMilli()
	}
	args := []any{q.After, since}
	if q.Group != "" {
		where.WriteString(` AND group_name = ?`)
		args = append(args, q.Group)
	}
	if len(q.Kinds) > 0 {
		where.WriteString(` AND kind IN (?` + strings.Repeat(`, ?`, len(q.Kinds)-1) + `)`)
		for _, k := range q.Kinds {
			args = append(args, k)
		}
	}
	args = append(args, max(1, q.Limit))
	var list []Record
	err := l.st.View(ctx, func(tx *store.Tx) error {
		list = nil
		rows, err := tx.Query(`SELECT id, at, kind, group_name, data FROM audit_records WHERE `+where.String()+` ORDER BY id LIMIT ?`, args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var r Record
			var at int64
			var data string
			if err := rows.Scan(&r.ID, &at, &r.Kind, &r.Group, &data); err != nil {
				return err
			}
			if err := json.Unmarshal([]byte(data), &r); err != nil {
				return fmt.Errorf("record %d: %w", r.ID, err)
			}
			r.At = time.UnixMilli(at)
			list = append(list, r)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	if !q.Full {
		for i := range list {
			l.redact(&list[i])
		}
	}
	return list, nil
}

// describe is a query for the record of its being asked.
func (q *Query) describe() string {
	var parts []string
	if q.Group != "" {
		parts = append(parts, "group "+q.Group)
	}
	if len(q.Kinds) > 0 {
		parts = append(parts, "kinds "+strings.Join(q.Kinds, ","))
	}
	if !q.Since.IsZero() {
		parts = append(parts, "since "+q.Since.UTC().Format(time.RFC3339))
	}
	return strings.Join(parts, ", ")
}
