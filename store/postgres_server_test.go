//go:build postgres

package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/seed4911071e/groupgate/store/storetest/pgtest"
)

func init() {
	if os.Getenv(pgtest.Env) == "" {
		panic(pgtest.Env + " names no PostgreSQL server to test with")
	}
}

// shared opens the database of a directory beside other gateways.
func shared(t *testing.T, dir string) func(*Options) {
	dsn, err := pgtest.DSN(dir)
	if err != nil {
		t.Fatal(err)
	}
	return func(o *Options) { o.DSN, o.Alone = dsn, false }
}

// admin runs a statement on a connection of its own.
func admin(t *testing.T, sql string, args ...any) {
	t.Helper()
	p, err := pgx.Connect(t.Context(), os.Getenv(pgtest.Env))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close(context.Background())
	if _, err := p.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

// kick ends the connections of a store that does nothing right now, or only
// that of its writer, as a restarted server does.
func kick(t *testing.T, s *Store, readers bool) {
	t.Helper()
	d := s.db.(*postgresDB)
	pids := []uint32{d.writerPID.Load()}
	for range readConns {
		if !readers {
			break
		}
		c := <-s.readers
		if c != nil {
			if err := d.raw(c, func(p *pgx.Conn) error {
				pids = append(pids, p.PgConn().PID())
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		s.readers <- c
	}
	for _, pid := range pids {
		admin(t, "SELECT pg_terminate_backend($1, 5000)", int(pid))
	}
}

// Several gateways open a new database at once: one makes the schema.
func TestPostgresOpenTogether(t *testing.T) {
	dir := newDir(t)
	among := shared(t, dir)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			s, err := open(t, newDir(t), among, steps("m", stepOne, stepTwo))
			if err != nil {
				t.Error(err)
				return
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// Who wants a database alone has it alone.
func TestPostgresAlone(t *testing.T) {
	dir := newDir(t)
	for _, first := range []bool{true, false} {
		s, err := open(t, newDir(t), shared(t, dir), func(o *Options) { o.Alone = first })
		if err != nil {
			t.Fatal(err)
		}
		if s, err := open(t, newDir(t), shared(t, dir), func(o *Options) { o.Alone = !first }); s != nil || !errors.Is(err, ErrLocked) {
			t.Errorf("the second: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A data directory that was copied makes no second gateway of that name.
func TestPostgresSameGateway(t *testing.T) {
	dir, one, two := newDir(t), newDir(t), newDir(t)
	a := openTest(t, one, shared(t, dir))
	if err := os.Mkdir(two, 0o700); err != nil {
		t.Fatal(err)
	}
	id, err := os.ReadFile(filepath.Join(one, gatewayFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(two, gatewayFile), id, 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := open(t, two, shared(t, dir)); s != nil || !errors.Is(err, ErrLocked) {
		t.Errorf("the copy: %v", err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	b := openTest(t, two, shared(t, dir))
	if a.OwnCursor("x") != b.OwnCursor("x") || a.OwnCursor("x") == "x" {
		t.Errorf("cursors %q and %q", a.OwnCursor("x"), b.OwnCursor("x"))
	}
}

// The log waits for the cursor of every gateway, until one has been silent for
// long.
func TestPostgresDeadGateway(t *testing.T) {
	dir := newDir(t)
	a, b := openTest(t, newDir(t), shared(t, dir)), openTest(t, newDir(t), shared(t, dir))
	if err := a.Update(t.Context(), emit(0)); err != nil {
		t.Fatal(err)
	}
	follow(t, a, a.OwnCursor("x"), 1)
	follow(t, b, b.OwnCursor("x"), 1)
	if err := a.Update(t.Context(), emit(1)); err != nil {
		t.Fatal(err)
	}
	follow(t, a, a.OwnCursor("x"), 1)
	trim := func() (n int64) {
		t.Helper()
		if err := a.Update(t.Context(), func(tx *Tx) (err error) {
			if err := dropDead(tx, time.Now()); err != nil {
				return err
			}
			n, err = trimLog(tx, time.Now().Add(time.Hour))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := trim(); n != 1 {
		t.Errorf("trimmed %d events, want the one that both read", n)
	}
	if err := a.Update(t.Context(), func(tx *Tx) error {
		_, err := tx.Exec("UPDATE store_cursors SET seen = ? WHERE name = ?", time.Now().Add(-deadGateway-time.Minute).UnixMilli(), b.OwnCursor("x"))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if n := trim(); n != 1 {
		t.Errorf("trimmed %d events, want the one that the dead gateway did not read", n)
	}
}

// One gateway leads at a time, and another takes over when its session ends.
func TestPostgresLead(t *testing.T) {
	dir := newDir(t)
	a, b := openTest(t, newDir(t), shared(t, dir)), openTest(t, newDir(t), shared(t, dir))
	led := make(chan string)
	lead := func(ctx context.Context, s *Store, name string) error {
		return s.Lead(ctx, "x", func(ctx context.Context) error {
			led <- name
			<-ctx.Done()
			return ctx.Err()
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 2)
	go func() { over <- lead(ctx, a, "a") }()
	if name := <-led; name != "a" {
		t.Fatalf("%s leads", name)
	}
	go func() { over <- lead(ctx, b, "b") }()
	key := uint64(a.db.(*postgresDB).key("lead x"))
	classid, objid := int64(key>>32), int64(key&0xffffffff)
	admin(t, fmt.Sprintf(`DO $$ BEGIN FOR i IN 1..3000 LOOP
		EXIT WHEN EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'advisory' AND classid = %d AND objid = %d);
		PERFORM pg_sleep(0.01); END LOOP; END $$`, classid, objid))
	admin(t, fmt.Sprintf(`SELECT pg_terminate_backend(pid, 5000) FROM pg_locks
		WHERE granted AND locktype = 'advisory' AND classid = %d AND objid = %d`, classid, objid))
	if name := <-led; name != "b" {
		t.Errorf("%s leads after the session of a ended", name)
	}
	cancel()
	for range 2 {
		if err := <-over; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
}

// Writers of several gateways come one after the other, and each sees what the
// ones before it did.
func TestPostgresWritersAreSerial(t *testing.T) {
	const gateways, callers, each = 3, 8, 20
	dir := newDir(t)
	var stores []*Store
	for range gateways {
		stores = append(stores, openTest(t, newDir(t), shared(t, dir)))
	}
	if err := stores[0].Update(t.Context(), put(1, "counter")); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, s := range stores {
		for range callers {
			wg.Go(func() {
				for range each {
					err := s.Update(t.Context(), func(tx *Tx) error {
						var n int64
						if err := tx.QueryRow("SELECT size FROM notes_note WHERE id = 1").Scan(&n); err != nil {
							return err
						}
						if _, err := tx.Exec("UPDATE notes_note SET size = ? WHERE id = 1", n+1); err != nil {
							return err
						}
						return tx.Emit("test", fmt.Sprint(n), nil)
					})
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	const all = gateways * callers * each
	checkKeys(t, follow(t, stores[0], "a", all), 0, all)
	checkKeys(t, follow(t, stores[1], "b", all), 0, all)
}

// The commit of one gateway wakes the follower of another, also after the
// connection that listens was lost.
func TestPostgresWakesOthers(t *testing.T) {
	dir := newDir(t)
	a, b := openTest(t, newDir(t), shared(t, dir)), openTest(t, newDir(t), shared(t, dir))
	seen := make(chan Event)
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error)
	go func() {
		over <- b.Follow(ctx, "b", func(_ context.Context, events []Event) error {
			for _, e := range events {
				seen <- e
			}
			return nil
		})
	}()
	for i := range 20 {
		if i == 10 {
			admin(t, "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE query LIKE 'LISTEN ' || $1::text", b.db.(*postgresDB).ch)
		}
		if err := a.Update(t.Context(), emit(i)); err != nil {
			t.Fatal(err)
		}
		select {
		case e := <-seen:
			if e.Key != fmt.Sprint(i) {
				t.Fatalf("got event %s, want %d", e.Key, i)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("event %d did not come", i)
		}
	}
	cancel()
	if err := <-over; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// A server that ends connections, idle or in the middle of a transaction, is
// not noticed by the callers.
func TestPostgresConnectionsLost(t *testing.T) {
	s := openTest(t, newDir(t))
	if err := s.Update(t.Context(), put(1, "x")); err != nil {
		t.Fatal(err)
	}
	count(t, s) // a reader
	kick(t, s, true)
	if n := count(t, s); n != 1 {
		t.Errorf("%d notes", n)
	}
	if err := s.Update(t.Context(), put(2, "x")); err != nil {
		t.Errorf("after an idle connection was lost: %v", err)
	}
	runs := 0
	release := hold(t, s)
	results := []<-chan error{queued(s, t.Context(), put(3, "x")), queued(s, t.Context(), func(tx *Tx) error {
		if runs++; runs == 1 {
			kick(t, s, false)
		}
		return put(4, "x")(tx)
	}), queued(s, t.Context(), put(5, "x"))}
	release()
	for i, r := range results {
		if err := <-r; err != nil {
			t.Errorf("update %d: %v", i, err)
		}
	}
	if n := count(t, s); n != 5 || runs != 2 {
		t.Errorf("%d notes after %d runs", n, runs)
	}
}

// When the answer to a commit is lost the server is asked what became of it:
// what was committed does not run again, what was not does.
func TestPostgresCommitInDoubt(t *testing.T) {
	s := openTest(t, newDir(t), func(o *Options) {
		o.Migrations = append(o.Migrations, Migrations{Room: "late", Steps: []string{`
			CREATE TABLE late_t (a INTEGER);
			CREATE FUNCTION late_kill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
				PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(5); RETURN NULL; END $$;
			CREATE CONSTRAINT TRIGGER late_tr AFTER INSERT ON late_t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION late_kill();`}})
	})
	runs := 0
	err := s.Update(t.Context(), func(tx *Tx) error {
		if err := put(1, "x")(tx); err != nil {
			return err
		}
		if runs++; runs > 1 {
			return nil
		}
		_, err := tx.Exec("INSERT INTO late_t VALUES (1)") // the commit ends the connection
		return err
	})
	if err != nil || runs != 2 {
		t.Errorf("aborted: %v after %d runs", err, runs)
	}
	d := s.db.(*postgresDB)
	if err := s.Update(t.Context(), put(2, "x")); err != nil {
		t.Fatal(err)
	}
	if committed, err := d.outcome(s.writer.xid); err != nil || !committed {
		t.Errorf("committed: %v, %v", committed, err)
	}
}

// Rows that are being read do not keep other statements from running.
func TestPostgresInterleaved(t *testing.T) {
	s := openTest(t, newDir(t))
	if err := s.Update(t.Context(), func(tx *Tx) error {
		for i := range 10 {
			if err := put(i, "x")(tx); err != nil {
				return err
			}
		}
		rows, err := tx.Query("SELECT id FROM notes_note ORDER BY id")
		if err != nil {
			return err
		}
		defer rows.Close()
		n := 0
		for ; rows.Next(); n++ {
			var id int
			if err := rows.Scan(&id); err != nil {
				return err
			}
			if id != n {
				t.Errorf("row %d is %d", n, id)
			}
			if _, err := tx.Exec("UPDATE notes_note SET size = ? WHERE id = ?", id, id); err != nil {
				return err
			}
		}
		if n != 10 {
			t.Errorf("%d rows", n)
		}
		return rows.Err()
	}); err != nil {
		t.Fatal(err)
	}
}

// emitted makes a change that any database takes.
func emitted(t *testing.T, s *Store) {
	t.Helper()
	if err := s.Update(t.Context(), func(tx *Tx) error { return tx.Emit("x", "", nil) }); err != nil {
		t.Fatal(err)
	}
}

// restored is the database of a folder as it was when this is called, under the
// name of another folder.
func restored(t *testing.T, dir string) string {
	t.Helper()
	to := newDir(t)
	shared(t, to)
	if err := pgtest.Copy(dir, to); err != nil {
		t.Fatal(err)
	}
	return to
}

// A shared database that was put back: every gateway refuses it, one accepts it
// for all, with a loss that covers what it did not see the others do.
func TestPostgresRollbackShared(t *testing.T) {
	dir, one, two := newDir(t), newDir(t), newDir(t)
	a := openTest(t, one, shared(t, dir))
	emitted(t, a)
	b := openTest(t, two, shared(t, dir))
	old := restored(t, dir)
	for range 3 {
		emitted(t, a)
	}
	closed(t, a)
	for range 5 { // of which the first knows nothing
		emitted(t, b)
	}
	closed(t, b)
	for _, gateway := range []string{one, two} {
		if _, err := open(t, gateway, shared(t, old)); !errors.Is(err, ErrRolledBack) {
			t.Fatalf("got %v", err)
		}
	}
	accept := func(o *Options) { o.AcceptRollback = true }
	a = openTest(t, one, shared(t, old), accept)
	if lost, yes := a.RolledBack(); lost != unknownLoss || !yes {
		t.Errorf("lost %d, %v", lost, yes)
	}
	emitted(t, a)
	if _, err := open(t, two, shared(t, old)); !errors.Is(err, ErrRolledBack) {
		t.Fatalf("before the recovery: %v", err)
	}
	if err := a.Recovered(t.Context()); err != nil {
		t.Fatal(err)
	}
	emitted(t, a)
	b = openTest(t, two, shared(t, old)) // one acceptance is enough
	if _, yes := b.RolledBack(); yes {
		t.Error("the second is to recover what the first recovered")
	}
	emitted(t, b)
	emitted(t, a)
	for _, s := range []*Store{a, b} {
		select {
		case <-s.Behind():
			t.Error("behind without a reason")
		default:
		}
		closed(t, s)
	}
}

// The mark of a gateway that does nothing follows what the others commit.
func TestPostgresMarkFollows(t *testing.T) {
	dir, one := newDir(t), newDir(t)
	a, b := openTest(t, one, shared(t, dir)), openTest(t, newDir(t), shared(t, dir))
	for range 3 {
		emitted(t, b)
	}
	b.mark.mu.Lock()
	want := b.mark.seq
	b.mark.mu.Unlock()
	late := time.NewTimer(10 * time.Second)
	defer late.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		have, err := readMark(filepath.Join(one, markName))
		if err == nil && have.seq >= want {
			break
		}
		select {
		case <-tick.C:
		case <-late.C:
			t.Fatalf("the mark is %+v, %v: want %d", have, err, want)
		}
	}
	closed(t, a)
	closed(t, b)
}

// A server whose database went back, as a standby that lacked changes: who
// writes notices at once, and who only looks on soon.
func TestPostgresGoesBack(t *testing.T) {
	dir := newDir(t)
	a, b := openTest(t, newDir(t), shared(t, dir)), openTest(t, newDir(t), shared(t, dir))
	for range 4 {
		emitted(t, a)
	}
	if err := b.lookAtMark(t.Context()); err != nil {
		t.Fatal(err)
	}
	var o Options
	shared(t, dir)(&o)
	p, err := pgx.Connect(t.Context(), o.DSN)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close(context.Background())
	if _, err := p.Exec(t.Context(), `UPDATE store_mark SET seq = seq - 4`); err != nil {
		t.Fatal(err)
	}
	err = a.Update(t.Context(), func(tx *Tx) error {
		return tx.Emit("twice", "", nil)
	})
	if !errors.Is(err, ErrRolledBack) {
		t.Errorf("the writer: %v", err)
	}
	if err := b.lookAtMark(t.Context()); !errors.Is(err, ErrRolledBack) {
		t.Errorf("the other: %v", err)
	}
	for _, s := range []*Store{a, b} {
		select {
		case <-s.Behind():
		default:
			t.Error("nobody is told")
		}
	}
	var n int
	if err := b.View(t.Context(), func(tx *Tx) error {
		return tx.QueryRow("SELECT COUNT(*) FROM store_events WHERE kind = 'twice'").Scan(&n)
	}); err != nil || n != 0 {
		t.Errorf("%d rows, %v", n, err)
	}
	closed(t, a)
	closed(t, b)
}

// Everything goes to PostgreSQL, and back.
func TestPostgresMove(t *testing.T) {
	var o Options
	shared(t, newDir(t))(&o)
	testMove(t, o.DSN)

	dir := newDir(t)
	shared(t, newDir(t))(&o)
	there := func(o2 *Options) { o2.DSN, o2.Alone, o2.Migrations = o.DSN, true, []Migrations{odds} }
	s := openTest(t, dir, there)
	fill(t, s)
	want := content(t, s)
	closed(t, s)
	m, err := Move(t.Context(), Options{Dir: dir, SealKey: testKey(), DSN: o.DSN, Migrations: []Migrations{odds}}, "sqlite:back.db")
	if err != nil || m.Before {
		t.Fatalf("%+v, %v", m, err)
	}
	if _, err := open(t, dir, there); !errors.Is(err, ErrMoved) {
		t.Errorf("the source opens: %v", err)
	}
	s = openTest(t, dir, there, func(o *Options) { o.DSN = "sqlite:back.db" })
	if got := content(t, s); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	closed(t, s)
}
