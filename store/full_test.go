package store

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
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
	var refused []error
	s := openTest(t, newDir(t), onSQLite, func(o *Options) { o.Refused = func(err error) { refused = append(refused, err) } })
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
	if len(refused) != 1 || !errors.Is(refused[0], ErrFull) {
		t.Errorf("told of %v, want of one full disk", refused)
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

// A full disk puts a cursor off, and neither the events nor their follower.
func TestFollowOnFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openTest(t, newDir(t), onSQLite, func(o *Options) {
			// To move a cursor takes much space.
			o.Migrations = append(o.Migrations, Migrations{Room: "greedy", Steps: []string{
				`CREATE TABLE greedy_t (a BLOB);
				CREATE TRIGGER greedy_tr AFTER UPDATE ON store_cursors BEGIN INSERT INTO greedy_t VALUES (zeroblob(400000)); END`}})
		})
		ctx, cancel := context.WithCancel(t.Context())
		var seen int
		over := make(chan error)
		go func() {
			over <- s.Follow(ctx, "a", func(_ context.Context, events []Event) error {
				seen += len(events)
				return nil
			})
		}()
		synctest.Wait()
		limit(t, s, 50)
		for i := range 5 {
			if err := s.Update(t.Context(), emit(i)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * cursorDelay)
		}
		if synctest.Wait(); seen != 5 {
			t.Errorf("%d events while the disk is full, want 5", seen)
		}
		if n := metric(t, s, "groupgate_store_write_failures_total"); n < 5 {
			t.Errorf("the disk was full %d times, want 5", n)
		}
		limit(t, s, 1000)
		time.Sleep(2 * cursorDelay)
		synctest.Wait()
		if err := s.View(t.Context(), func(tx *Tx) error {
			var id int64
			err := tx.QueryRow("SELECT id FROM store_cursors").Scan(&id)
			if id != 5 {
				t.Errorf("with space the cursor is at %d, want 5", id)
			}
			return err
		}); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-over; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
