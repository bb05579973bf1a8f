package store

import (
	"errors"
	"strings"
	"testing"
)

func steps(room string, steps ...string) func(*Options) {
	return func(o *Options) { o.Migrations = append(o.Migrations, Migrations{Room: room, Steps: steps}) }
}

const (
	stepOne = `CREATE TABLE m_t (a INTEGER); INSERT INTO m_t VALUES (1);`
	stepTwo = `ALTER TABLE m_t ADD COLUMN b TEXT NOT NULL DEFAULT 'two'; INSERT INTO m_t VALUES (2, 'x');`
)

// at opens the directory with some steps and closes it again.
func at(t *testing.T, dir string, change ...func(*Options)) error {
	t.Helper()
	s, err := open(t, dir, change...)
	if err == nil {
		err = s.Close()
	}
	return err
}

func TestMigrate(t *testing.T) {
	dir := newDir(t)
	if err := at(t, dir, steps("m", stepOne)); err != nil {
		t.Fatal(err)
	}
	if err := at(t, dir, steps("m", stepOne)); err != nil {
		t.Fatalf("nothing to do: %v", err)
	}
	s := openTest(t, dir, steps("m", stepOne, stepTwo), steps("other", "CREATE TABLE other_t (a INTEGER)"),
		func(o *Options) { o.Program = "test 2" })
	if err := s.View(t.Context(), func(tx *Tx) error {
		var n, version int
		var b, program string
		if err := tx.QueryRow("SELECT COUNT(*), MAX(b) FROM m_t").Scan(&n, &b); err != nil {
			return err
		}
		if n != 2 || b != "x" {
			t.Errorf("%d rows, %q", n, b)
		}
		for room, want := range map[string]string{"m": "2 test 2", "other": "1 test 2", "notes": "1 test 1", "store": "3 test 1"} {
			if err := tx.QueryRow("SELECT version, program FROM store_schema WHERE room = ?", room).Scan(&version, &program); err != nil {
				return err
			}
			if got := string(rune('0'+version)) + " " + program; got != want {
				t.Errorf("%s: schema %s, want %s", room, got, want)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestMigrateNewer(t *testing.T) {
	dir := newDir(t)
	if err := at(t, dir, steps("m", stepOne, stepTwo), func(o *Options) { o.Program = "groupgate v2.1" }); err != nil {
		t.Fatal(err)
	}
	err := at(t, dir, steps("m", stepOne), steps("early", "CREATE TABLE early_t (a INTEGER)"), func(o *Options) { o.Program = "groupgate v1.9" })
	if !errors.Is(err, ErrNewerSchema) {
		t.Fatalf("got %v", err)
	}
	for _, part := range []string{"v2.1", "v1.9", "schema 2", "up to 1"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in %q", part, err)
		}
	}
	s := openTest(t, dir)
	if hasTable(t, s, "early_t") {
		t.Error("another room was migrated all the same")
	}
}

// A step that fails half-way leaves nothing, and can be taken again.
func TestMigrateFails(t *testing.T) {
	dir := newDir(t)
	err := at(t, dir, steps("m", stepOne, "INSERT INTO m_t VALUES (3); INSERT INTO nowhere VALUES (1);"))
	if err == nil || !strings.Contains(err.Error(), "m to schema 2") {
		t.Fatalf("got %v", err)
	}
	s := openTest(t, dir, steps("m", stepOne, stepTwo))
	if err := s.View(t.Context(), func(tx *Tx) error {
		var n int
		err := tx.QueryRow("SELECT COUNT(*) FROM m_t").Scan(&n)
		if n != 2 {
			t.Errorf("%d rows", n)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}
