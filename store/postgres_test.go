package store

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

func TestPostgresSQL(t *testing.T) {
	d := &postgresDB{}
	for query, want := range map[string]string{
		"SELECT 1":                      "SELECT 1",
		"SELECT ? , ?":                  "SELECT $1 , $2",
		"SELECT '?''?', \"?\", ? -- ?":  "SELECT '?''?', \"?\", $1 -- ?",
		"SELECT ? -- it's\n, ?":         "SELECT $1 -- it's\n, $2",
		"VALUES (?,?,?,?,?,?,?,?,?,?);": "VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10);",
	} {
		if got := d.rebind(query); got != want {
			t.Errorf("%q became %q, want %q", query, got, want)
		}
	}
	for script, want := range map[string]string{
		"CREATE TABLE a (b INTEGER PRIMARY KEY, c BLOB NOT NULL)": "CREATE TABLE a (b BIGINT PRIMARY KEY, c BYTEA NOT NULL)",
		"CREATE TABLE a (b TEXT PRIMARY KEY) WITHOUT ROWID;":      "CREATE TABLE a (b TEXT COLLATE \"C\" PRIMARY KEY);",
		"c TEXT NOT NULL, -- a TEXT\n d BLOB":                     "c TEXT COLLATE \"C\" NOT NULL, -- a TEXT\n d BYTEA",
		"INSERT INTO t VALUES ('BLOB', \"TEXT\", TEXTS, BLOB_1)":  "INSERT INTO t VALUES ('BLOB', \"TEXT\", TEXTS, BLOB_1)",
	} {
		if got := d.ddl(script); got != want {
			t.Errorf("%q became %q, want %q", script, got, want)
		}
	}
}

func TestPostgresClasses(t *testing.T) {
	d := &postgresDB{}
	for code, want := range map[string]class{
		"23505": classConstraint, "40001": classRetry, "40P01": classRetry, "53100": classFull, "57P01": classAway,
		"08006": classAway, "25006": classAway, "55P03": classLost, "42601": classStatement, "22021": classStatement, "": classStatement,
	} {
		if got := d.classify(fmt.Errorf("x: %w", &pgconn.PgError{Code: code})); got != want {
			t.Errorf("SQLSTATE %s is class %d, want %d", code, got, want)
		}
	}
	if got := d.classify(pgconn.ErrConnClosed); got != classAway {
		t.Errorf("a closed connection is class %d", got)
	}
	if got := d.classify(errors.New("cannot encode")); got != classStatement {
		t.Errorf("our own mistake is class %d", got)
	}
	for _, full := range []struct {
		err    error
		server bool
	}{
		{&dbError{classFull, &pgconn.PgError{Code: "53100"}}, true},
		{&dbError{classFull, errors.New("database or disk is full")}, false},
		{&dbError{classAway, &pgconn.PgError{Code: "57P01"}}, false},
	} {
		if got := errors.Is(full.err, ErrServerFull); got != full.server || got && !errors.Is(full.err, ErrFull) {
			t.Errorf("%v: the server's disk is full: %v", full.err, got)
		}
	}
}

// A server that is not there: a clear error, soon, and no password in it.
func TestPostgresAway(t *testing.T) {
	s, err := open(t, newDir(t), func(o *Options) { o.DSN = "postgres://me:hunter2@127.0.0.1:1/db" })
	if s != nil || !errors.Is(err, ErrAway) {
		t.Fatalf("got %v", err)
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Error("the password is in the error")
	}
}
