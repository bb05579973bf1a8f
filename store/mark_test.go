package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func change(t *testing.T, s *Store) {
	t.Helper()
	if err := s.Update(t.Context(), func(tx *Tx) error {
		_, err := tx.Exec("INSERT INTO notes_note (body) VALUES ('x')")
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// copyFile copies a file of a closed database.
func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func closed(t *testing.T, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// An older copy of the database does not open beside the mark of the newer.
func TestRollback(t *testing.T) {
	dir := newDir(t)
	db, backup := filepath.Join(dir, "groupgate.db"), filepath.Join(t.TempDir(), "backup")
	s := openTest(t, dir, onSQLite)
	change(t, s)
	closed(t, s)
	copyFile(t, db, backup)
	s = openTest(t, dir, onSQLite) // the copy is as new as the mark still
	for range 3 {
		change(t, s)
	}
	closed(t, s)

	restore := func() {
		t.Helper()
		copyFile(t, backup, db)
	}
	restore()
	_, err := open(t, dir, onSQLite)
	if !errors.Is(err, ErrRolledBack) || !strings.Contains(err.Error(), "newest 3 changes") {
		t.Fatalf("got %v", err)
	}
	accept := func(o *Options) { o.AcceptRollback = true }
	s = openTest(t, dir, onSQLite, accept)
	if lost, yes := s.RolledBack(); lost != 3 || !yes {
		t.Errorf("lost %d, %v", lost, yes)
	}
	change(t, s)
	closed(t, s) // before anybody dealt with it
	if _, err := open(t, dir, onSQLite); !errors.Is(err, ErrRolledBack) {
		t.Fatalf("got %v", err)
	}
	s = openTest(t, dir, onSQLite, accept)
	if err := s.Recovered(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, yes := s.RolledBack(); yes {
		t.Error("still rolled back")
	}
	change(t, s)
	closed(t, s)
	s = openTest(t, dir, onSQLite)
	if _, yes := s.RolledBack(); yes {
		t.Error("rolled back without a rollback")
	}
	closed(t, s)
	restore()
	if _, err := open(t, dir, onSQLite); !errors.Is(err, ErrRolledBack) {
		t.Fatalf("got %v", err)
	}
}

// A new database in place of the old one is older, too; so is whatever a mark
// says that nobody can read.
func TestRollbackToNothing(t *testing.T) {
	dir := newDir(t)
	s := openTest(t, dir, onSQLite)
	change(t, s)
	closed(t, s)
	if err := os.Remove(filepath.Join(dir, "groupgate.db")); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, dir, onSQLite); !errors.Is(err, ErrRolledBack) || !strings.Contains(err.Error(), "another database") {
		t.Fatalf("got %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, markName), []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, dir, onSQLite); !errors.Is(err, ErrRolledBack) || !strings.Contains(err.Error(), "damaged") {
		t.Fatalf("got %v", err)
	}
	s = openTest(t, dir, onSQLite, func(o *Options) { o.AcceptRollback = true })
	if lost, yes := s.RolledBack(); lost != unknownLoss || !yes {
		t.Errorf("lost %d, %v", lost, yes)
	}
	if err := s.Recovered(t.Context()); err != nil {
		t.Fatal(err)
	}
	closed(t, s)
	closed(t, openTest(t, dir, onSQLite))
	// Whoever means to begin anew takes the mark away.
	if err := os.Remove(filepath.Join(dir, markName)); err != nil {
		t.Fatal(err)
	}
	closed(t, openTest(t, dir, onSQLite))
}

// A backup that is put into a new directory has no mark beside it. It may be older
// than what was in use, so it is refused like one that is.
func TestRestoredElsewhere(t *testing.T) {
	need := func(o *Options) { o.NeedMark = true }
	dir, other := newDir(t), newDir(t)
	s := openTest(t, dir, onSQLite, need)
	closed(t, s)
	closed(t, openTest(t, dir, onSQLite, need)) // nothing happened yet, and the mark is there
	s = openTest(t, dir, onSQLite, need)
	change(t, s)
	closed(t, s)
	if err := os.MkdirAll(other, 0o700); err != nil {
		t.Fatal(err)
	}
	copyFile(t, filepath.Join(dir, "groupgate.db"), filepath.Join(other, "groupgate.db"))
	if _, err := open(t, other, onSQLite, need); !errors.Is(err, ErrNoMark) || !strings.Contains(err.Error(), markName) {
		t.Fatalf("got %v", err)
	}
	s = openTest(t, other, onSQLite, need, func(o *Options) { o.AcceptRollback = true })
	if lost, yes := s.RolledBack(); lost != unknownLoss || !yes {
		t.Errorf("lost %d, %v", lost, yes)
	}
	if err := s.Recovered(t.Context()); err != nil {
		t.Fatal(err)
	}
	closed(t, s)
	closed(t, openTest(t, other, onSQLite, need))
	// To accept what is no rollback does nothing.
	s = openTest(t, newDir(t), onSQLite, need, func(o *Options) { o.AcceptRollback = true })
	if _, yes := s.RolledBack(); yes {
		t.Error("a new database was rolled back")
	}
	closed(t, s)
}

// A first start that ends between the mark and the commit is no rollback, nor is the
// next one.
func TestFirstStartEnded(t *testing.T) {
	need := func(o *Options) { o.NeedMark = true }
	dir := newDir(t)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	left := mark{id: strings.Repeat("5a", markIDBytes)}
	if err := os.WriteFile(filepath.Join(dir, markName), left.encode(), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s := openTest(t, dir, onSQLite, need)
		if s.mark.id != left.id {
			t.Errorf("the database is %s, want %s", s.mark.id, left.id)
		}
		if _, yes := s.RolledBack(); yes {
			t.Error("rolled back")
		}
		change(t, s)
		closed(t, s)
	}
}

// The mark follows the commits within a second; a transaction without a change
// counts for nothing, and one that failed neither.
func TestMarkFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := newDir(t)
		s := openTest(t, dir, onSQLite)
		at := func() uint64 {
			t.Helper()
			m, err := readMark(filepath.Join(dir, markName))
			if err != nil {
				t.Fatal(err)
			}
			return m.seq
		}
		start := at()
		change(t, s)
		change(t, s)
		if err := s.Update(t.Context(), func(*Tx) error { return nil }); err != nil {
			t.Fatal(err)
		}
		failed := errors.New("no")
		if err := s.Update(t.Context(), func(tx *Tx) error {
			if _, err := tx.Exec("INSERT INTO notes_note (body) VALUES ('y')"); err != nil {
				return err
			}
			return failed
		}); !errors.Is(err, failed) {
			t.Fatal(err)
		}
		if got := at(); got != start {
			t.Errorf("written at once: %d", got-start)
		}
		time.Sleep(markEvery)
		synctest.Wait()
		if got := at(); got != start+2 {
			t.Errorf("%d changes in the mark, want 2", got-start)
		}
		closed(t, s)
	})
}

func TestMarkPrefixes(t *testing.T) {
	b := mark{id: strings.Repeat("0a", markIDBytes), seq: 12}.encode()
	if m, err := decodeMark(b); err != nil || m.seq != 12 {
		t.Fatal(m, err)
	}
	for n := range b {
		if _, err := decodeMark(b[:n]); err == nil {
			t.Errorf("%q is a mark", b[:n])
		}
	}
}

func FuzzMark(f *testing.F) {
	f.Add(mark{id: strings.Repeat("0a", markIDBytes), seq: 12}.encode())
	f.Add(fmt.Appendf(nil, "%s\n%s\n%d\n", markHeader, strings.Repeat("0A", markIDBytes), uint64(1)<<63))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := decodeMark(b); err == nil && !bytes.Equal(m.encode(), b) {
			t.Errorf("%q came back as %q", b, m.encode())
		}
	})
}
