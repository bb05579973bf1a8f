package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"sync"

	"modernc.org/sqlite" // also registers the driver
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/seed4911071e/groupgate/durable"
)

// Connections and their caches. A page cache is filled only as it is used.
const (
	readConns    = 4 // more only adds memory: reads are short and the machine small
	writeCacheKB = 4096
	readCacheKB  = 1024
	busyMillis   = 5000 // only a stranger with the sqlite3 shell makes us wait
	walLimit     = 16 << 20
)

// sqliteDB is the dialect of SQLite in WAL mode, pure Go.
type sqliteDB struct {
	path string
	mu   sync.Mutex
	pool [2]*sql.DB // readers, writer; guarded by mu
	broadcast
}

func newSQLite(path string) *sqliteDB { return &sqliteDB{path: path} }

// create makes the file ourselves, because SQLite would create it readable by
// all; the -wal and -shm files inherit its mode.
func (d *sqliteDB) create(context.Context) error {
	f, err := os.OpenFile(d.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return d.fileError(err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return d.fileError(err)
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("store: %s is not a regular file", d.path)
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		fi, err := os.Stat(d.path + suffix)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return d.fileError(err)
		}
		if fi.Mode().Perm()&0o077 != 0 {
			if err := os.Chmod(d.path+suffix, 0o600); err != nil {
				return d.fileError(err)
			}
		}
	}
	return d.fileError(f.Sync())
}

func (d *sqliteDB) created() error {
	return d.fileError(durable.SyncDir(filepath.Dir(d.path)))
}

func (d *sqliteDB) fileError(err error) error {
	if err == nil {
		return nil
	}
	if isDiskError(err) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return fmt.Errorf("store: %w", err)
}

func (d *sqliteDB) connect(ctx context.Context, write bool) (*conn, error) {
	pool, err := d.open(write)
	if err != nil {
		return nil, err
	}
	// A cancelled context would interrupt the connection for good, and the
	// driver starts a goroutine per statement for a context that can end.
	ctx = context.WithoutCancel(ctx)
	sc, err := pool.Conn(ctx)
	if err != nil {
		return nil, d.wrap("open "+d.path, err)
	}
	c := newConn(sc, d)
	if write {
		var mode string
		if err := sc.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&mode); err != nil {
			return nil, errors.Join(d.wrap("open "+d.path, err), c.close())
		}
		if mode != "wal" {
			return nil, errors.Join(fmt.Errorf("store: %s cannot use a write-ahead log (journal mode is %s): put it on a local file system", d.path, mode), c.close())
		}
	}
	return c, nil
}

func (d *sqliteDB) wrap(doing string, err error) error {
	return fmt.Errorf("store: %s: %w", doing, &dbError{d.classify(err), err})
}

func (d *sqliteDB) open(write bool) (*sql.DB, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	i := 0
	if write {
		i = 1
	}
	if d.pool[i] != nil {
		return d.pool[i], nil
	}
	pragma := []string{
		fmt.Sprintf("busy_timeout(%d)", busyMillis),
		"foreign_keys(ON)",
		"temp_store(MEMORY)",
		"trusted_schema(OFF)",
	}
	if write {
		pragma = append(pragma,
			fmt.Sprintf("cache_size(-%d)", writeCacheKB),
			"journal_mode(WAL)",
			fmt.Sprintf("journal_size_limit(%d)", walLimit),
			// FULL syncs the log at each commit: NORMAL would lose acknowledged
			// transactions at a power cut.
			"synchronous(FULL)",
		)
	} else {
		pragma = append(pragma, fmt.Sprintf("cache_size(-%d)", readCacheKB), "query_only(ON)")
	}
	// Double-quoted strings are no strings in PostgreSQL: refuse them here too.
	q := url.Values{"_pragma": pragma, "_dqs": {"0"}, "_defensive": {"1"}}
	u := url.URL{Scheme: "file", OmitHost: true, Path: d.path, RawQuery: q.Encode()}
	db, err := sql.Open("sqlite", u.String())
	if err != nil {
		return nil, d.wrap("open "+d.path, err)
	}
	n := 1
	if !write {
		n = readConns
	}
	db.SetMaxOpenConns(n)
	db.SetMaxIdleConns(0) // conn keeps them; what it gives back is to be closed
	d.pool[i] = db
	return db, nil
}

func (d *sqliteDB) checkpoint(w *conn) error {
	// A reader of another process may hold it up: the log then simply stays.
	_, err := w.c.ExecContext(context.Background(), "PRAGMA wal_checkpoint(TRUNCATE)")
	if err != nil {
		return d.wrap("checkpoint", err)
	}
	return nil
}

func (d *sqliteDB) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for i, db := range d.pool {
		if db != nil {
			errs = append(errs, db.Close())
			d.pool[i] = nil
		}
	}
	return errors.Join(errs...)
}

func (d *sqliteDB) begin(c *conn, write bool) error {
	query := "BEGIN"
	if write {
		query = "BEGIN IMMEDIATE"
	}
	_, err := c.exec(query)
	return err
}

func (d *sqliteDB) commit(c *conn, _ bool) error {
	_, err := c.exec("COMMIT")
	return err
}

func (d *sqliteDB) shared() bool { return false }

func (d *sqliteDB) lead(ctx context.Context, _ string, run func(context.Context) error) error {
	return run(ctx)
}

func (d *sqliteDB) place() string { return "sqlite:" + d.path }

func (d *sqliteDB) tables() string {
	return "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name"
}

func (d *sqliteDB) keepIDs() string { return "" }

func (d *sqliteDB) restart(next int64) []string {
	return []string{
		"DELETE FROM sqlite_sequence WHERE name = 'store_events'",
		fmt.Sprintf("INSERT INTO sqlite_sequence (name, seq) VALUES ('store_events', %d)", next-1),
	}
}

func (d *sqliteDB) ddl(script string) string { return script }

func (d *sqliteDB) rebind(query string) string { return query }

func (d *sqliteDB) classify(err error) class {
	e, ok := errors.AsType[*sqlite.Error](err)
	if !ok {
		if isDiskError(err) {
			return classFull
		}
		return classStatement
	}
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_CONSTRAINT:
		return classConstraint
	case sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN:
		return classFull
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_INTERRUPT,
		sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_MISUSE:
		return classLost
	}
	return classStatement
}

// schema: AUTOINCREMENT, because an identifier that was trimmed must not come
// back: a cursor would pass it over.
func (d *sqliteDB) schema() []string {
	return []string{`
		CREATE TABLE store_meta (
			name  TEXT PRIMARY KEY,
			value BLOB NOT NULL
		);
		CREATE TABLE store_events (
			id   INTEGER PRIMARY KEY AUTOINCREMENT,
			at   INTEGER NOT NULL,
			kind TEXT NOT NULL,
			key  TEXT NOT NULL,
			data BLOB NOT NULL
		);
		CREATE TABLE store_cursors (
			name TEXT PRIMARY KEY,
			id   INTEGER NOT NULL
		);`}
}

// broadcast wakes everybody who waits, in process.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{} // guarded by mu; closed by the next announce; nil: nobody waits
}

func (b *broadcast) wakeups() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *broadcast) announce() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}
