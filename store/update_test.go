package store

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
)

var errMine = errors.New("mine")

// Many callers at once: those that fail leave nothing, those that do not lose
// nothing, and the hooks come in the order of the transactions.
func TestUpdateConcurrent(t *testing.T) {
	const callers, each = 64, 20
	s := openTest(t, newDir(t))
	var hooked []int64 // the hooks come one after the other
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for i := range each {
				id := c*each + i
				err := s.Update(t.Context(), func(tx *Tx) error {
					if err := put(id, "x")(tx); err != nil {
						return err
					}
					if id%3 == 0 {
						tx.AfterCommit(func() { t.Error("hook of a failed update") })
						return errMine
					}
					var n int64
					if err := tx.QueryRow("SELECT COUNT(*) FROM notes_note").Scan(&n); err != nil {
						return err
					}
					tx.AfterCommit(func() { hooked = append(hooked, n) })
					return nil
				})
				if want := id%3 == 0; errors.Is(err, errMine) != want || !want && err != nil {
					t.Errorf("update %d: %v", id, err)
				}
			}
		})
	}
	wg.Wait()
	var ids []int
	if err := s.View(t.Context(), func(tx *Tx) error {
		rows, err := tx.Query("SELECT id FROM notes_note")
		if err != nil {
			return err
		}
		for rows.Next() {
			var id int
			if err := rows.Scan(&id); err != nil {
				return err
			}
			ids = append(ids, id)
		}
		return rows.Err()
	}); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if id%3 == 0 {
			t.Errorf("note %d of a failed update is there", id)
		}
	}
	if want := callers * each * 2 / 3; len(ids) != want {
		t.Errorf("%d notes, want %d", len(ids), want)
	}
	for i, n := range hooked {
		if n != int64(i+1) {
			t.Fatalf("hook %d belongs to transaction %d", i+1, n)
		}
	}
	if len(hooked) != len(ids) {
		t.Errorf("%d hooks for %d notes", len(hooked), len(ids))
	}
}

// hold keeps the committer busy until the returned function is called, so that
// what is queued meanwhile shares a commit.
func hold(t *testing.T, s *Store) (release func()) {
	t.Helper()
	running, free, over := make(chan struct{}), make(chan struct{}), make(chan error)
	started := sync.OnceFunc(func() { close(running) }) // it may run again
	go func() {
		over <- s.Update(context.Background(), func(*Tx) error {
			started()
			<-free
			return nil
		})
	}()
	<-running
	return func() {
		close(free)
		if err := <-over; err != nil {
			t.Errorf("held update: %v", err)
		}
	}
}

// queued starts an Update and returns once it waits in the queue.
func queued(s *Store, ctx context.Context, fn func(*Tx) error) <-chan error {
	length := func() int {
		s.queue.mu.Lock()
		defer s.queue.mu.Unlock()
		return len(s.queue.waiting)
	}
	before := length()
	result := make(chan error, 1)
	go func() { result <- s.Update(ctx, fn) }()
	for length() == before {
		runtime.Gosched()
	}
	return result
}

// In the bubble time stands still, so that the batch's time bound does not cut
// it on a slow machine.
func TestUpdatesShareACommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openTest(t, newDir(t))
		before := commits(t, s)
		release := hold(t, s)
		var results []<-chan error
		for i := range 64 {
			results = append(results, queued(s, t.Context(), put(i, "x")))
		}
		release()
		for _, r := range results {
			if err := <-r; err != nil {
				t.Fatal(err)
			}
		}
		if n := commits(t, s) - before; n != 1 {
			t.Errorf("%d commits for 65 updates, want 1", n)
		}
		if n := count(t, s); n != 64 {
			t.Errorf("%d notes", n)
		}
	})
}

// The batch is bounded, in updates and in bytes.
func TestBatchBounds(t *testing.T) {
	s := openTest(t, newDir(t))
	before := commits(t, s)
	release := hold(t, s)
	body := strings.Repeat("x", maxBatchBytes/2)
	var results []<-chan error
	for i := range 8 {
		results = append(results, queued(s, t.Context(), put(i, body)))
	}
	release()
	for _, r := range results {
		if err := <-r; err != nil {
			t.Fatal(err)
		}
	}
	if n := commits(t, s) - before; n < 4 {
		t.Errorf("%d commits for 8 halves of a batch", n)
	}
}

func TestPanicStaysWithItsCaller(t *testing.T) {
	s := openTest(t, newDir(t))
	for _, place := range []string{"first", "later"} {
		t.Run(place, func(t *testing.T) {
			base := count(t, s)
			release := hold(t, s)
			var good []<-chan error
			if place == "later" {
				good = append(good, queued(s, t.Context(), put(10*base+1, "x")))
			}
			caught := make(chan any)
			for _, end := range []func(){func() { panic("mine") }, runtime.Goexit} {
				go func() {
					defer func() { caught <- recover() }()
					_ = s.Update(context.Background(), func(tx *Tx) error {
						_ = put(1000, "never")(tx)
						end()
						return nil
					})
				}()
			}
			good = append(good, queued(s, t.Context(), put(10*base+2, "x")))
			release()
			a, b := <-caught, <-caught
			if !(a == "mine" && b == nil || a == nil && b == "mine") {
				t.Errorf("callers caught %v and %v", a, b)
			}
			for _, r := range good {
				if err := <-r; err != nil {
					t.Error(err)
				}
			}
			if n := count(t, s); n != base+len(good) {
				t.Errorf("%d notes, want %d", n, base+len(good))
			}
		})
	}
}

func TestPanicInHook(t *testing.T) {
	s := openTest(t, newDir(t))
	func() {
		defer func() {
			if r := recover(); r != "mine" {
				t.Errorf("caught %v", r)
			}
		}()
		_ = s.Update(t.Context(), func(tx *Tx) error {
			tx.AfterCommit(func() { panic("mine") })
			return put(1, "x")(tx)
		})
	}()
	if n := count(t, s); n != 1 {
		t.Error("the committed note is gone")
	}
	if err := s.Update(t.Context(), put(2, "x")); err != nil {
		t.Error(err)
	}
}

func TestCancelled(t *testing.T) {
	s := openTest(t, newDir(t))
	ctx, cancel := context.WithCancel(t.Context())
	release := hold(t, s)
	waiting := queued(s, ctx, func(*Tx) error {
		t.Error("a cancelled update ran")
		return nil
	})
	cancel()
	if err := <-waiting; !errors.Is(err, context.Canceled) {
		t.Errorf("while queued: %v", err)
	}
	release()
	if err := s.Update(ctx, put(1, "x")); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before: %v", err)
	}
	if n := count(t, s); n != 0 {
		t.Errorf("%d notes", n)
	}

	// Once it runs, the outcome is what happened.
	ctx, cancel = context.WithCancel(t.Context())
	if err := s.Update(ctx, func(tx *Tx) error {
		cancel()
		return put(1, "x")(tx)
	}); err != nil {
		t.Errorf("cancelled while running: %v", err)
	}
	if n := count(t, s); n != 1 {
		t.Errorf("%d notes", n)
	}
}

// A failed statement fails the update, even when fn looks away.
func TestFailedStatementFailsUpdate(t *testing.T) {
	s := openTest(t, newDir(t))
	err := s.Update(t.Context(), func(tx *Tx) error {
		if err := put(1, "x")(tx); err != nil {
			return err
		}
		_ = put(1, "again")(tx)
		_ = put(2, "x")(tx)
		return nil
	})
	if !errors.Is(err, ErrConstraint) {
		t.Errorf("got %v", err)
	}
	if n := count(t, s); n != 0 {
		t.Errorf("%d notes", n)
	}
}

// A transaction that breaks a deferred constraint fails at the commit, which
// others share: they run again and succeed.
func TestCommitFailsOneMember(t *testing.T) {
	s := openTest(t, newDir(t), func(o *Options) {
		o.Migrations = append(o.Migrations, Migrations{Room: "late", Steps: []string{
			`CREATE TABLE late_ref (note INTEGER NOT NULL REFERENCES notes_note(id) DEFERRABLE INITIALLY DEFERRED)`}})
	})
	release := hold(t, s)
	bad := queued(s, t.Context(), func(tx *Tx) error {
		_, err := tx.Exec("INSERT INTO late_ref (note) VALUES (?)", 4711)
		return err
	})
	var good []<-chan error
	for i := range 5 {
		good = append(good, queued(s, t.Context(), put(i, "x")))
	}
	release()
	if err := <-bad; !errors.Is(err, ErrConstraint) {
		t.Errorf("got %v", err)
	}
	for _, r := range good {
		if err := <-r; err != nil {
			t.Error(err)
		}
	}
	if n := count(t, s); n != 5 {
		t.Errorf("%d notes", n)
	}
}

func TestNestedIsRefused(t *testing.T) {
	s := openTest(t, newDir(t))
	if err := s.Update(t.Context(), func(tx *Tx) error {
		return s.Update(tx.Context(), func(*Tx) error { return nil })
	}); !errors.Is(err, errNested) {
		t.Errorf("Update in Update: %v", err)
	}
	if err := s.View(t.Context(), func(tx *Tx) error {
		return s.View(tx.Context(), func(*Tx) error { return nil })
	}); !errors.Is(err, errNested) {
		t.Errorf("View in View: %v", err)
	}
}

func TestTxAfterItsEnd(t *testing.T) {
	s := openTest(t, newDir(t))
	var kept *Tx
	var rows *Rows
	if err := s.Update(t.Context(), func(tx *Tx) (err error) {
		kept = tx
		if err := put(1, "x")(tx); err != nil {
			return err
		}
		rows, err = tx.Query("SELECT id FROM notes_note") // left open
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if rows.Next() {
		t.Error("rows outlive the transaction")
	}
	if _, err := kept.Exec("DELETE FROM notes_note"); !errors.Is(err, errTxDone) {
		t.Errorf("Exec: %v", err)
	}
	var n int
	if err := kept.QueryRow("SELECT 1").Scan(&n); !errors.Is(err, errTxDone) {
		t.Errorf("QueryRow: %v", err)
	}
}

// The same query while its rows are open: each has its own values.
func TestSameQueryNested(t *testing.T) {
	s := openTest(t, newDir(t))
	got := ""
	if err := s.Update(t.Context(), func(tx *Tx) error {
		for i := range 3 {
			if err := put(i, "x")(tx); err != nil {
				return err
			}
		}
		const query = "SELECT id FROM notes_note WHERE id >= ? ORDER BY id"
		outer, err := tx.Query(query, 0)
		if err != nil {
			return err
		}
		defer outer.Close()
		for outer.Next() {
			var a, b int
			if err := outer.Scan(&a); err != nil {
				return err
			}
			if err := tx.QueryRow(query, a).Scan(&b); err != nil {
				return err
			}
			got += fmt.Sprint(a, b, " ")
		}
		return outer.Err()
	}); err != nil {
		t.Fatal(err)
	}
	if got != "0 0 1 1 2 2 " {
		t.Errorf("got %q", got)
	}
}

// More statements than the cache holds.
func TestStatementCache(t *testing.T) {
	s := openTest(t, newDir(t))
	if err := s.View(t.Context(), func(tx *Tx) error {
		for i := range 3 * maxStatements {
			var n int
			if err := tx.QueryRow(fmt.Sprintf("SELECT %d", i)).Scan(&n); err != nil || n != i {
				return fmt.Errorf("statement %d: %d, %w", i, n, err)
			}
		}
		if n := len(tx.c.stmts); n > maxStatements {
			return fmt.Errorf("%d statements are kept", n)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

func TestValues(t *testing.T) {
	s := openTest(t, newDir(t))
	type name []byte
	if err := s.View(t.Context(), func(tx *Tx) error {
		var yes, no int
		var blob, null []byte
		var isNull, isEmptyNull int
		if err := tx.QueryRow("SELECT ?, ?, ?, ?, ? IS NULL, ? IS NULL", true, false, name("ab"), nil, []byte(nil), []byte{}).
			Scan(&yes, &no, &blob, &null, &isNull, &isEmptyNull); err != nil {
			return err
		}
		if yes != 1 || no != 0 || string(blob) != "ab" || null != nil || isNull != 1 || isEmptyNull != 0 {
			t.Errorf("got %v %v %q %v %v %v", yes, no, blob, null, isNull, isEmptyNull)
		}
		// Double quotes are names, not strings, in PostgreSQL.
		if err := tx.QueryRow(`SELECT "ab"`).Scan(&blob); err == nil {
			t.Error("a double-quoted string was taken")
		}
		return nil
	}); err == nil {
		t.Error("a failed query did not fail the view")
	}
}

func TestViewIsASnapshot(t *testing.T) {
	s := openTest(t, newDir(t))
	if err := s.View(t.Context(), func(tx *Tx) error {
		var before, after int
		if err := tx.QueryRow("SELECT COUNT(*) FROM notes_note").Scan(&before); err != nil {
			return err
		}
		if err := s.Update(t.Context(), put(1, "x")); err != nil {
			return err
		}
		if err := tx.QueryRow("SELECT COUNT(*) FROM notes_note").Scan(&after); err != nil {
			return err
		}
		if before != after {
			t.Errorf("a view saw %d notes, then %d", before, after)
		}
		if _, err := tx.Exec("DELETE FROM notes_note"); !errors.Is(err, errReadOnly) {
			t.Errorf("Exec in a view: %v", err)
		}
		return tx.Emit("k", "", nil)
	}); !errors.Is(err, errReadOnly) {
		t.Errorf("Emit in a view: %v", err)
	}
	if n := count(t, s); n != 1 {
		t.Errorf("%d notes", n)
	}
}

func TestViewCancelled(t *testing.T) {
	s := openTest(t, newDir(t))
	ctx, cancel := context.WithCancel(t.Context())
	err := s.View(ctx, func(tx *Tx) error {
		rows, err := tx.Query("SELECT 1 UNION SELECT 2")
		if err != nil {
			return err
		}
		rows.Next()
		cancel()
		if rows.Next() {
			t.Error("rows go on after the context's end")
		}
		return rows.Err()
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	count(t, s) // the connection is still good
}

func TestClosed(t *testing.T) {
	s, err := open(t, newDir(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Update(t.Context(), put(1, "x")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	if err := s.Update(t.Context(), put(1, "x")); !errors.Is(err, ErrClosed) {
		t.Errorf("Update: %v", err)
	}
	if err := s.View(t.Context(), func(*Tx) error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("View: %v", err)
	}
}
