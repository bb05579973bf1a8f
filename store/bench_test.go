package store

import (
	"fmt"
	"sync/atomic"
	"testing"
)

// joinSchema and join do what a join to a group does: look up the group, the
// member and the grant, write the member, its credential and an event.
func joinSchema() Migrations {
	return Migrations{Room: "join", Steps: []string{`
		CREATE TABLE join_group (name TEXT PRIMARY KEY, version INTEGER NOT NULL, next INTEGER NOT NULL);
		CREATE TABLE join_grant (subject BLOB PRIMARY KEY, scope BLOB NOT NULL, challenge BLOB);
		CREATE TABLE join_member (grp TEXT NOT NULL, node TEXT NOT NULL, sid INTEGER NOT NULL, roles INTEGER NOT NULL, cred BLOB NOT NULL,
			PRIMARY KEY (grp, node));
		CREATE UNIQUE INDEX join_member_sid ON join_member (grp, sid);
		INSERT INTO join_group VALUES ('sensors', 1, 0);`}}
}

func join(tx *Tx, n int64) error {
	var version, sid int64
	if err := tx.QueryRow("SELECT version, next FROM join_group WHERE name = ?", "sensors").Scan(&version, &sid); err != nil {
		return err
	}
	node := fmt.Sprintf("node-%d", n)
	cred := make([]byte, 77)
	if _, err := tx.Exec("INSERT INTO join_grant (subject, scope) VALUES (?, ?) ON CONFLICT (subject) DO UPDATE SET challenge = NULL", []byte(node), cred[:20]); err != nil {
		return err
	}
	if err := tx.QueryRow("SELECT sid FROM join_member WHERE grp = ? AND node = ?", "sensors", node).Scan(&sid); err != nil && err != ErrNotFound {
		return err
	}
	if _, err := tx.Exec("INSERT INTO join_member (grp, node, sid, roles, cred) VALUES (?, ?, ?, ?, ?)", "sensors", node, sid, 3, cred); err != nil {
		return err
	}
	if _, err := tx.Exec("UPDATE join_group SET next = ? WHERE name = ?", sid+1, "sensors"); err != nil {
		return err
	}
	return tx.Emit("join", "sensors", cred[:40])
}

func withJoin(o *Options) { o.Migrations = append(o.Migrations, joinSchema()) }

// BenchmarkUpdateParallel: 64 callers, a join each.
func BenchmarkUpdateParallel(b *testing.B) {
	s := openTest(b, newDir(b), withJoin)
	var n atomic.Int64
	b.SetParallelism(32) // times GOMAXPROCS
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			i := n.Add(1)
			if err := s.Update(b.Context(), func(tx *Tx) error { return join(tx, i) }); err != nil {
				b.Error(err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/float64(commits(b, s)), "updates/commit")
}

// BenchmarkUpdate: one caller, so one commit and one fsync each.
func BenchmarkUpdate(b *testing.B) {
	s := openTest(b, newDir(b), withJoin)
	b.ReportAllocs()
	for i := range b.N {
		if err := s.Update(b.Context(), func(tx *Tx) error { return join(tx, int64(i)) }); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkView reads one row by key.
func BenchmarkView(b *testing.B) {
	s := openTest(b, newDir(b), withJoin)
	b.ReportAllocs()
	for range b.N {
		if err := s.View(b.Context(), func(tx *Tx) error {
			var version int64
			return tx.QueryRow("SELECT version FROM join_group WHERE name = ?", "sensors").Scan(&version)
		}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSeal(b *testing.B) {
	s := openTest(b, newDir(b))
	plain := make([]byte, 16)
	for range b.N {
		s.Seal("bench", plain)
	}
}
