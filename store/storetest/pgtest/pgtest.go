// Package pgtest gives each test folder a schema of its own on a PostgreSQL
// server, so that tests written for a folder with a database in it run on
// either kind of database.
package pgtest

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/url"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
)

// Env names the variable with the URL of the server; without it tests run on
// SQLite. The role may create schemas in the database; they are left there, so
// the server should be one to throw away.
const Env = "GROUPGATE_TEST_POSTGRES"

// schema is the name of a folder's schema: the one that it was lent, or one for
// good that every process finds.
func schema(dir string) string {
	if name := lentTo(dir); name != "" {
		return name
	}
	return ownSchema(dir)
}

func ownSchema(dir string) string {
	return fmt.Sprintf("t_%x", sha256.Sum256([]byte(absolute(dir))))[:24]
}

// create makes a schema, with the one function of SQLite that tests look at
// tables with.
const create = `DO $$ BEGIN
	IF to_regnamespace('%[1]s') IS NULL THEN
		CREATE SCHEMA %[1]s;
		CREATE FUNCTION %[1]s.hex(bytea) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT upper(encode(coalesce($1, ''''), ''hex''))';
	END IF;
END $$`

// DSN is the store of a folder, whose schema is made when absent: "" when
// there is no server to test with.
func DSN(dir string) (string, error) {
	base := os.Getenv(Env)
	if base == "" {
		return "", nil
	}
	name := lentTo(dir)
	if name == "" {
		name = ownSchema(dir)
		if err := exec(fmt.Sprintf(create, name)); err != nil {
			return "", err
		}
	}
	u, err := url.Parse(base)
	if err != nil {
		return "", err
	}
	q := u.Query()
	q.Set("search_path", name)
	u.RawQuery = q.Encode()
	return u.String(), nil
}

// Copy makes the schema of one folder a copy of another's as it is committed
// at this moment.
func Copy(from, to string) error {
	ctx := context.Background()
	p, err := connect(ctx)
	if err != nil {
		return err
	}
	defer p.Close(ctx)
	return pgx.BeginTxFunc(ctx, p, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) error {
		a, b := schema(from), schema(to)
		rows, err := tx.Query(ctx, "SELECT tablename::text FROM pg_tables WHERE schemaname = $1", a)
		if err != nil {
			return err
		}
		tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		for _, t := range tables {
			if _, err := tx.Exec(ctx, fmt.Sprintf(`CREATE TABLE IF NOT EXISTS %[2]s.%[3]s (LIKE %[1]s.%[3]s INCLUDING ALL);
				DELETE FROM %[2]s.%[3]s;
				INSERT INTO %[2]s.%[3]s OVERRIDING SYSTEM VALUE SELECT * FROM %[1]s.%[3]s`, a, b, t)); err != nil {
				return err
			}
		}
		_, err = tx.Exec(ctx, fmt.Sprintf(`SELECT setval(pg_get_serial_sequence('%s.store_events', 'id'),
			(SELECT last_value + 1000 FROM %s.store_events_id_seq), false)`, b, a))
		return err
	})
}

// exec runs a statement on a connection of its own: one that is kept would
// outlive the synctest bubble that it was opened in.
func exec(sql string) error {
	ctx := context.Background()
	p, err := connect(ctx)
	if err != nil {
		return err
	}
	defer p.Close(ctx)
	_, err = p.Exec(ctx, sql)
	return err
}

func connect(ctx context.Context) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(os.Getenv(Env))
	if err != nil {
		return nil, err
	}
	cfg.ConnectTimeout = 10 * time.Second
	return pgx.ConnectConfig(ctx, cfg)
}
