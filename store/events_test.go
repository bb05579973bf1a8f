package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func emit(n int) func(*Tx) error {
	return func(tx *Tx) error { return tx.Emit("test", fmt.Sprint(n), nil) }
}

// follow collects events until n have come, then ends.
func follow(t *testing.T, s *Store, cursor string, n int) []Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second) // what never comes fails
	defer cancel()
	var got []Event
	err := s.Follow(ctx, cursor, func(_ context.Context, events []Event) error {
		if got = append(got, events...); len(got) >= n {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	return got
}

func checkKeys(t *testing.T, events []Event, from, to int) {
	t.Helper()
	if len(events) != to-from {
		t.Fatalf("%d events, want %d", len(events), to-from)
	}
	for i, e := range events {
		if e.Key != fmt.Sprint(from+i) {
			t.Fatalf("event %d is %s, want %d", i, e.Key, from+i)
		}
		if i > 0 && e.ID <= events[i-1].ID {
			t.Fatalf("identifier %d after %d", e.ID, events[i-1].ID)
		}
		if e.Kind != "test" || time.Since(e.At) > time.Hour {
			t.Fatalf("event %+v", e)
		}
	}
}

// In order, across batches, across a reopen, each cursor for itself.
func TestFollow(t *testing.T) {
	dir := newDir(t)
	s := openTest(t, dir)
	const n = 2*followBatch + 10
	for i := range n {
		if err := s.Update(t.Context(), emit(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Update(t.Context(), func(tx *Tx) error {
		_ = tx.Emit("test", "undone", nil)
		return errMine
	}); !errors.Is(err, errMine) {
		t.Fatal(err)
	}
	checkKeys(t, follow(t, s, "a", n), 0, n)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = openTest(t, dir)
	for i := n; i < n+5; i++ {
		if err := s.Update(t.Context(), emit(i)); err != nil {
			t.Fatal(err)
		}
	}
	checkKeys(t, follow(t, s, "a", 5), n, n+5)
	checkKeys(t, follow(t, s, "b", n+5), 0, n+5)
}

// A follower that waits is woken by the commit.
func TestFollowIsWoken(t *testing.T) {
	s := openTest(t, newDir(t))
	ctx, cancel := context.WithCancel(t.Context())
	seen := make(chan Event)
	over := make(chan error)
	go func() {
		over <- s.Follow(ctx, "a", func(_ context.Context, events []Event) error {
			for _, e := range events {
				seen <- e
			}
			return nil
		})
	}()
	for i := range 20 {
		if err := s.Update(t.Context(), emit(i)); err != nil {
			t.Fatal(err)
		}
		if e := <-seen; e.Key != fmt.Sprint(i) {
			t.Fatalf("got event %s, want %d", e.Key, i)
		}
	}
	if err := s.Follow(ctx, "a", nil); err == nil {
		t.Error("two followers share a cursor")
	}
	cancel()
	if err := <-over; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// What fn did not finish comes again.
func TestFollowAtLeastOnce(t *testing.T) {
	s := openTest(t, newDir(t))
	for i := range 3 {
		if err := s.Update(t.Context(), emit(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Follow(t.Context(), "a", func(context.Context, []Event) error { return errMine }); !errors.Is(err, errMine) {
		t.Fatal(err)
	}
	checkKeys(t, follow(t, s, "a", 3), 0, 3)
}

// Close ends those who wait.
func TestFollowEndsWithTheStore(t *testing.T) {
	s, err := open(t, newDir(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Update(t.Context(), emit(0)); err != nil {
		t.Fatal(err)
	}
	first, over := make(chan struct{}), make(chan error)
	seen := sync.OnceFunc(func() { close(first) })
	go func() {
		over <- s.Follow(context.Background(), "a", func(context.Context, []Event) error { seen(); return nil })
	}()
	<-first
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-over; !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

// The log loses what is old and read by all, and nothing else; identifiers do
// not come back.
func TestTrim(t *testing.T) {
	dir := newDir(t)
	s := openTest(t, dir)
	for i := range 10 {
		if err := s.Update(t.Context(), emit(i)); err != nil {
			t.Fatal(err)
		}
	}
	all := follow(t, s, "a", 10)
	trim := func(before time.Time) (n int64) {
		t.Helper()
		if err := s.Update(t.Context(), func(tx *Tx) (err error) {
			n, err = trimLog(tx, before)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return n
	}
	later := time.Now().Add(time.Hour)
	if n := trim(time.Now().Add(-time.Hour)); n != 0 {
		t.Errorf("trimmed %d young events", n)
	}
	// b has read four.
	if err := s.Update(t.Context(), func(tx *Tx) error {
		_, err := tx.Exec("INSERT INTO store_cursors (name, id) VALUES ('b', ?)", all[3].ID)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if n := trim(later); n != 4 {
		t.Errorf("trimmed %d events, want the 4 that both read", n)
	}
	checkKeys(t, follow(t, s, "b", 6), 4, 10)
	if err := s.DropCursor(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	if n := trim(later); n != 6 {
		t.Errorf("trimmed %d events, want 6", n)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = openTest(t, dir)
	if err := s.Update(t.Context(), emit(10)); err != nil {
		t.Fatal(err)
	}
	events := follow(t, s, "a", 1)
	checkKeys(t, events, 10, 11)
	if events[0].ID <= all[9].ID {
		t.Errorf("identifier %d was used before", events[0].ID)
	}
}

// The first cursor advance trims events that are old enough.
func TestFollowTrims(t *testing.T) {
	s := openTest(t, newDir(t))
	if err := s.Update(t.Context(), func(tx *Tx) error {
		_, err := tx.Exec("INSERT INTO store_events (at, kind, key, data) VALUES (?, 'test', '0', ?)",
			time.Now().Add(-keepEvents-time.Hour).UnixMilli(), []byte{})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	follow(t, s, "a", 1)
	events, err := s.eventsAfter(t.Context(), 0)
	if err != nil || len(events) != 0 {
		t.Errorf("%d events left, %v", len(events), err)
	}
}

// The cursor goes to disk a while after it moved, and the wait for events
// costs nothing: no timer runs while all is saved.
func TestCursorIsSavedLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openTest(t, newDir(t))
		if err := s.Update(t.Context(), emit(0)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		over := make(chan error)
		go func() {
			over <- s.Follow(ctx, "a", func(context.Context, []Event) error { return nil })
		}()
		saved := func() (id int64) {
			synctest.Wait()
			if err := s.View(t.Context(), func(tx *Tx) error {
				return tx.QueryRow("SELECT id FROM store_cursors WHERE name = 'a'").Scan(&id)
			}); err != nil {
				t.Fatal(err)
			}
			return id
		}
		time.Sleep(cursorDelay - 1)
		if id := saved(); id != 0 {
			t.Errorf("saved %d too early", id)
		}
		// A trickle does not put it off.
		if err := s.Update(t.Context(), emit(1)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		time.Sleep(1 * time.Nanosecond)
		if id := saved(); id != 2 {
			t.Errorf("saved %d, want 2", id)
		}
		before := commits(t, s)
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if n := commits(t, s); n != before {
			t.Errorf("%d commits while nothing happened", n-before)
		}
		cancel()
		if err := <-over; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
