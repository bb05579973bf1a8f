package store_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/seed4911071e/groupgate/store"
	"github.com/seed4911071e/groupgate/store/storetest"
	"github.com/seed4911071e/groupgate/store/storetest/pgtest"
)

// childEnv makes the test binary the process that is to be killed.
const childEnv = "GROUPGATE_STORE_TEST_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		fmt.Fprintln(os.Stderr, child(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

var crashSchema = store.Migrations{Room: "crash", Steps: []string{
	`CREATE TABLE crash_row (id INTEGER PRIMARY KEY, body TEXT NOT NULL)`}}

// write puts a row, which is on disk when write returns, with an event. The
// bodies fill the log quickly, so that checkpoints happen meanwhile.
func write(ctx context.Context, s *store.Store, id int64) error {
	body := strings.Repeat(strconv.FormatInt(id, 36), 500)
	return s.Update(ctx, func(tx *store.Tx) error {
		if _, err := tx.Exec("INSERT INTO crash_row (id, body) VALUES (?, ?)", id, body); err != nil {
			return err
		}
		return tx.Emit("row", strconv.FormatInt(id, 10), nil)
	})
}

// child writes for ever and prints what was acknowledged.
func child(dir string) error {
	ctx := context.Background()
	dsn, err := storetest.DSN(dir)
	if err != nil {
		return err
	}
	s, err := store.Open(ctx, store.Options{Dir: dir, DSN: dsn, Alone: true, SealKey: storetest.Key(), Migrations: []store.Migrations{crashSchema}})
	if err != nil {
		return err
	}
	var next atomic.Int64
	if err := s.View(ctx, func(tx *store.Tx) error {
		var last int64
		defer func() { next.Store(last) }()
		return tx.QueryRow("SELECT COALESCE(MAX(id), 0) FROM crash_row").Scan(&last)
	}); err != nil {
		return err
	}
	failed := make(chan error)
	for range 8 {
		go func() {
			for {
				id := next.Add(1)
				if err := write(ctx, s, id); err != nil {
					failed <- err
					return
				}
				// One write call a line: a kill cannot tear it.
				fmt.Fprintf(os.Stdout, "%d\n", id)
			}
		}()
	}
	return <-failed
}

// verify checks that every acknowledged row is there, and that no transaction
// is there by half.
func verify(t *testing.T, s *store.Store, acked map[int64]bool) {
	t.Helper()
	if err := s.View(t.Context(), func(tx *store.Tx) error {
		if os.Getenv(pgtest.Env) == "" {
			var ok string
			if err := tx.QueryRow("PRAGMA integrity_check").Scan(&ok); err != nil {
				return err
			}
			if ok != "ok" {
				t.Errorf("integrity: %s", ok)
			}
		}
		var alone int
		if err := tx.QueryRow(`SELECT
			(SELECT COUNT(*) FROM (SELECT CAST(id AS TEXT) FROM crash_row EXCEPT SELECT key FROM store_events) a) +
			(SELECT COUNT(*) FROM (SELECT key FROM store_events EXCEPT SELECT CAST(id AS TEXT) FROM crash_row) b)`).Scan(&alone); err != nil {
			return err
		}
		if alone != 0 {
			t.Errorf("%d halves of transactions", alone)
		}
		rows, err := tx.Query("SELECT id FROM crash_row")
		if err != nil {
			return err
		}
		have := make(map[int64]bool)
		for rows.Next() {
			var id int64
			if err := rows.Scan(&id); err != nil {
				return err
			}
			have[id] = true
		}
		for id := range acked {
			if !have[id] {
				t.Errorf("row %d was acknowledged and is gone", id)
			}
		}
		return rows.Err()
	}); err != nil {
		t.Fatal(err)
	}
}

// Killed at any moment, again and again.
func TestKill(t *testing.T) {
	kills := 20
	if raceEnabled {
		kills = 5
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "data")
	acked := make(map[int64]bool)
	for range kills {
		cmd := exec.CommandContext(t.Context(), exe)
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		left := 1 + rand.IntN(200)
		before := len(acked)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			id, err := strconv.ParseInt(lines.Text(), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			acked[id] = true
			if left--; left == 0 {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait() // it was killed
		if len(acked) == before {
			t.Fatalf("the child wrote nothing: %s", stderr.String())
		}
		s := storetest.OpenDir(t, dir, crashSchema)
		verify(t, s, acked)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d kills, %d acknowledged rows", kills, len(acked))
}

// Copies of the files of a live store, at any moment.
func TestPowerCut(t *testing.T) {
	copies := 10
	if raceEnabled {
		copies = 3
	}
	s := storetest.Open(t, crashSchema)
	ctx, cancel := context.WithCancel(t.Context())
	var next atomic.Int64
	var mu sync.Mutex
	acked := make(map[int64]bool)
	progress := make(chan struct{}, 1)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				id := next.Add(1)
				if err := write(context.WithoutCancel(ctx), s, id); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				acked[id] = true
				mu.Unlock()
				select {
				case progress <- struct{}{}:
				default:
				}
			}
		})
	}
	for range copies {
		for range 100 + rand.IntN(200) {
			<-progress
		}
		mu.Lock()
		sofar := make(map[int64]bool, len(acked))
		for id := range acked {
			sofar[id] = true
		}
		mu.Unlock()
		c := storetest.Crash(t, s, crashSchema)
		verify(t, c, sofar)
	}
	cancel()
	wg.Wait()
	verify(t, s, acked)
	t.Logf("%d copies, %d acknowledged rows", copies, len(acked))
}
