package store

import "context"

// dialect is what one kind of database does in its own way; all else in this
// package, and all SQL of the rooms, is common.
type dialect interface {
	// create makes the database when it is absent.
	create(ctx context.Context) error
	// created makes sure that what the first start created stays: called once
	// the schema is in place.
	created() error
	// connect opens one connection, to write or only to read.
	connect(ctx context.Context, write bool) (*conn, error)
	// checkpoint tidies up before the last connection closes.
	checkpoint(w *conn) error
	close() error

	// schema is the store's own schema, as migration steps.
	schema() []string
	// ddl turns a room's migration step into the database's own words.
	ddl(script string) string
	// begin starts a transaction. A writing one holds the write lock at once, so
	// that it cannot fail half-way for the lack of it; a reading one sees one
	// snapshot throughout.
	begin(c *conn, write bool) error
	// commit ends a writing transaction; events says whether it wrote any. nil
	// means that it is on disk.
	commit(c *conn, events bool) error
	// rebind turns ? placeholders into the database's own.
	rebind(query string) string
	// classify says what an error of the driver means.
	classify(err error) class

	// place names the database without secrets, alike at every call.
	place() string
	// tables is the query for the names of all tables. keepIDs goes into an INSERT
	// that gives store_events its identifiers; restart has the next one be next.
	tables() string
	keepIDs() string
	restart(next int64) []string

	// shared says whether other processes may write too; lead is [Store.Lead]
	// among them.
	shared() bool
	lead(ctx context.Context, name string, run func(context.Context) error) error

	// announce wakes all followers after a commit with events; wakeups returns
	// the channel that the next announce closes. SQLite has one process and does
	// with a broadcast, PostgreSQL adds NOTIFY and LISTEN.
	announce()
	wakeups() <-chan struct{}
}
