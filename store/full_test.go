package store

import (
	"errors"
	"fmt"
	"testing"
)

// limit bounds the database's size in pages: SQLite then fails as on a full
// disk.
func limit(t *testing.T, s *Store, more int) {
	t.Helper()
	if err := s.Update(t.Context(), func(tx *Tx) error {
		var pages int
		if err := tx.QueryRow("PRAGMA page_count").Scan(&pages); err != nil {
			return err
		}
		var n int
		return tx.QueryRow(fmt.Sprintf("PRAGMA max_page_count = %d", pages+more)).Scan(&n)
	}); err != nil {
		t.Fatal(err)
	}
}

func TestDiskFull(t *testing.T) {
	s := openTest(t, newDir(t))
	if err := s.Update(t.Context(), put(1, "before")); err != nil {
		t.Fatal(err)
	}
	limit(t, s, 20)
	big := string(make([]byte, 200<<10))

	// One that needs more than there is, among others that do not. It fails for
	// itself, whatever it says of its failed statement.
	release := hold(t, s)
	var good []<-chan error
	good = append(good, queued(s, t.Context(), put(2, "x")))
	bad := queued(s, t.Context(), func(tx *Tx) error {
		if err := put(100, "half")(tx); err != nil {
			return err
		}
		_ = put(101, big)(tx)
		return nil
	})
	good = append(good, queued(s, t.Context(), put(3, "x")))
	release()
	if err := <-bad; !errors.Is(err, ErrFull) {
		t.Errorf("got %v, want ErrFull", err)
	}
	for _, r := range good {
		if err := <-r; err != nil {
			t.Errorf("neighbour: %v", err)
		}
	}
	if n := count(t, s); n != 3 {
		t.Errorf("%d notes, want 3", n)
	}

	// Space returns, and the same goes through.
	limit(t, s, 1000)
	if err := s.Update(t.Context(), put(101, big)); err != nil {
		t.Errorf("with space: %v", err)
	}
	if n := count(t, s); n != 4 {
		t.Errorf("%d notes, want 4", n)
	}
}
