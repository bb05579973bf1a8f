package store

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed4911071e/groupgate/store/storetest/pgtest"
)

func testKey() []byte { return make([]byte, KeySize) }

// notes is the schema that the tests use.
func notes() Migrations {
	return Migrations{Room: "notes", Steps: []string{`
		CREATE TABLE notes_note (id INTEGER PRIMARY KEY, body TEXT NOT NULL, size INTEGER NOT NULL DEFAULT 0);
		CREATE TABLE notes_tag (note INTEGER NOT NULL REFERENCES notes_note(id) ON DELETE CASCADE, tag TEXT NOT NULL, PRIMARY KEY (note, tag));`}}
}

func open(t testing.TB, dir string, change ...func(*Options)) (*Store, error) {
	t.Helper()
	dsn, err := pgtest.DSN(dir)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Dir: dir, DSN: dsn, Alone: true, SealKey: testKey(), Migrations: []Migrations{notes()}, Program: "test 1"}
	for _, f := range change {
		f(&o)
	}
	return Open(context.Background(), o)
}

// onSQLite is for what only a file can show.
func onSQLite(o *Options) { o.DSN = "" }

// hasTable says whether a table exists.
func hasTable(t testing.TB, s *Store, name string) bool {
	t.Helper()
	query := "SELECT COUNT(*) FROM sqlite_schema WHERE name = ?"
	if _, ok := s.db.(*postgresDB); ok {
		query = "SELECT COUNT(*) FROM pg_tables WHERE schemaname = current_schema() AND tablename = ?"
	}
	var n int
	if err := s.View(t.Context(), func(tx *Tx) error { return tx.QueryRow(query, name).Scan(&n) }); err != nil {
		t.Fatal(err)
	}
	return n != 0
}

func newDir(t testing.TB) string { return filepath.Join(t.TempDir(), "data") }

func openTest(t testing.TB, dir string, change ...func(*Options)) *Store {
	t.Helper()
	s, err := open(t, dir, change...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func put(id int, body string) func(*Tx) error {
	return func(tx *Tx) error {
		_, err := tx.Exec("INSERT INTO notes_note (id, body) VALUES (?, ?)", id, body)
		return err
	}
}

func count(t testing.TB, s *Store) (n int) {
	t.Helper()
	if err := s.View(t.Context(), func(tx *Tx) error {
		return tx.QueryRow("SELECT COUNT(*) FROM notes_note").Scan(&n)
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestReadYourWrites(t *testing.T) {
	s := openTest(t, newDir(t))
	for i := range 10 {
		if err := s.Update(t.Context(), put(i, "x")); err != nil {
			t.Fatal(err)
		}
		if n := count(t, s); n != i+1 {
			t.Fatalf("%d notes after %d updates", n, i+1)
		}
	}
}

// metric is the value of a counter of the store.
func metric(t testing.TB, s *Store, name string) int {
	t.Helper()
	families, err := s.metrics.reg.(prometheus.Gatherer).Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return int(f.GetMetric()[0].GetCounter().GetValue())
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

func commits(t testing.TB, s *Store) int {
	t.Helper()
	return metric(t, s, "groupgate_store_commits_total")
}
