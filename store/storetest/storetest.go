// Package storetest opens stores for tests, and copies of them as a power cut
// would have left them.
package storetest

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/seed4911071e/groupgate/store"
	"github.com/seed4911071e/groupgate/store/storetest/pgtest"
)

const file = "groupgate.db"

// Key is the sealing key of all stores that Open opens.
func Key() []byte { return bytes.Repeat([]byte{0x5e}, store.KeySize) }

// Open opens a new store for t.TempDir and closes it when the test ends.
func Open(t testing.TB, migrations ...store.Migrations) *store.Store {
	t.Helper()
	return OpenDir(t, newDir(t, migrations), migrations...)
}

// newDir makes a directory whose database, where that is on a server, is one
// that an earlier test is done with.
func newDir(t testing.TB, migrations []store.Migrations) string {
	t.Helper()
	dir := t.TempDir()
	tables := ""
	for _, m := range migrations {
		tables += fmt.Sprintf("%s %d ", m.Room, len(m.Steps))
	}
	giveBack, err := pgtest.Lend(dir, tables)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := giveBack(); err != nil {
			t.Errorf("give a schema back: %v", err)
		}
	})
	return dir
}

// OpenDir opens the store of a directory and closes it when the test ends.
func OpenDir(t testing.TB, dir string, migrations ...store.Migrations) *store.Store {
	t.Helper()
	dsn, err := DSN(dir)
	if err != nil {
		t.Fatal(err)
	}
	return open(t, dir, dsn, migrations)
}

// OpenFile is Open for what only SQLite has: a file in every environment.
func OpenFile(t testing.TB, migrations ...store.Migrations) *store.Store {
	t.Helper()
	return open(t, t.TempDir(), "sqlite:"+file, migrations)
}

func open(t testing.TB, dir, dsn string, migrations []store.Migrations) *store.Store {
	t.Helper()
	// Test directories come with the umask's mode.
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(context.Background(), store.Options{
		Dir: dir, DSN: dsn, Alone: true, SealKey: Key(), Migrations: migrations, Program: "storetest",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close store: %v", err)
		}
	})
	return s
}

// DSN names the database of a directory: a file in it, or a schema of its own
// on the PostgreSQL server that [pgtest.Env] names.
func DSN(dir string) (string, error) {
	if dsn, err := pgtest.DSN(dir); dsn != "" || err != nil {
		return dsn, err
	}
	return "sqlite:" + file, nil
}

// Crash opens what a power cut at this moment would leave of a live store that
// Open or OpenDir opened; the store itself goes on undisturbed. Everything that
// was acknowledged before the call is in it.
func Crash(t testing.TB, s *store.Store, migrations ...store.Migrations) *store.Store {
	t.Helper()
	dir := newDir(t, migrations)
	dsn, err := pgtest.DSN(dir)
	switch {
	case err != nil:
	case dsn != "":
		// What the server acknowledged survives it: a snapshot is what is left.
		err = pgtest.Copy(s.Dir(), dir)
	default:
		err = CopyLive(s.Dir(), dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	return OpenDir(t, dir, migrations...)
}

// CopyLive copies the database files of a live store from directory to
// directory.
//
// A reader is held meanwhile, and the database is copied before its log. The
// reader keeps the log from being started over, so every page that a checkpoint
// moves while the database is copied is still in the log copied after it; at
// the log's end there may be half a transaction, as after a power cut.
func CopyLive(from, to string) (err error) {
	ctx := context.Background()
	db, err := sql.Open("sqlite", filepath.Join(from, file))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1)
	tx, err := db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return err
	}
	defer tx.Rollback()
	var n int
	if err := tx.QueryRowContext(ctx, "SELECT COUNT(*) FROM sqlite_schema").Scan(&n); err != nil {
		return err
	}
	for _, suffix := range []string{"", "-wal"} {
		if err := copyFile(filepath.Join(from, file+suffix), filepath.Join(to, file+suffix)); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // no log: it was all moved
	}
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// Load writes a database from the text of SQL statements, as earlier programs
// left it, for OpenDir.
func Load(dir, text string) (err error) {
	db, err := sql.Open("sqlite", filepath.Join(dir, file))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	_, err = db.ExecContext(context.Background(), text)
	return err
}
