package store

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"time"
)

// Tx is a transaction. It belongs to the goroutine of the function that it was
// given to and ends with it.
type Tx struct {
	ctx   context.Context
	c     *conn
	write bool
	done  bool

	err    error // the first failure: the transaction is not to be committed
	hooks  []func()
	events int
	wrote  bool
	bytes  int // size of the values written, about
	open   []*Rows
}

// Context is the context that View or Update was called with; a View or Update
// with it is refused, because it could wait for ever.
func (tx *Tx) Context() context.Context {
	return context.WithValue(tx.ctx, nestedKey{}, true)
}

type nestedKey struct{}

func nested(ctx context.Context) bool { return ctx.Value(nestedKey{}) != nil }

// ready says whether a statement may run.
func (tx *Tx) ready() error {
	if tx.done {
		return errTxDone
	}
	if tx.err != nil {
		return tx.err
	}
	if !tx.write {
		// An Update runs to its end once it began; a View may stop any time.
		return tx.fail(tx.ctx.Err())
	}
	return nil
}

// Exec runs a statement and returns how many rows it affected.
func (tx *Tx) Exec(query string, args ...any) (int64, error) {
	if err := tx.ready(); err != nil {
		return 0, err
	}
	if !tx.write {
		return 0, errReadOnly
	}
	if err := tx.values(args); err != nil {
		return 0, tx.fail(err)
	}
	n, err := tx.c.exec(query, args...)
	tx.wrote = tx.wrote || n > 0
	return n, tx.fail(err)
}

// Query runs a query. The rows are closed when the transaction ends, if the
// caller did not.
func (tx *Tx) Query(query string, args ...any) (*Rows, error) {
	if err := tx.ready(); err != nil {
		return nil, err
	}
	if err := tx.values(args); err != nil {
		return nil, tx.fail(err)
	}
	if tx.write && !strings.HasPrefix(query, "SELECT") {
		tx.wrote = true // … RETURNING
	}
	st, err := tx.c.prepare(query)
	if err != nil {
		return nil, tx.fail(err)
	}
	rows, err := st.s.QueryContext(background, args...)
	if err != nil {
		st.release()
		return nil, tx.fail(tx.c.wrap(err))
	}
	st.busy = true
	r := &Rows{tx: tx, st: st, rows: rows}
	tx.open = append(tx.open, r)
	return r, nil
}

// QueryRow runs a query that gives at most one row; its errors come with Scan.
func (tx *Tx) QueryRow(query string, args ...any) *Row {
	rows, err := tx.Query(query, args...)
	return &Row{rows: rows, err: err}
}

// AfterCommit has f called once the transaction is on disk, before Update
// returns: the calls of all Updates come one after the other, in the order of
// the transactions. f is short and calls no Update.
func (tx *Tx) AfterCommit(f func()) {
	tx.hooks = append(tx.hooks, f)
}

// values makes args mean the same to every database, in place.
func (tx *Tx) values(args []any) error {
	for i, a := range args {
		switch v := a.(type) {
		case bool:
			args[i] = int64(0)
			if v {
				args[i] = int64(1)
			}
		case time.Time:
			return fmt.Errorf("store: value %d is a time: columns hold unix seconds or milliseconds", i+1)
		case []byte:
			tx.bytes += len(v)
		case string:
			tx.bytes += len(v)
		}
		tx.bytes += 8
	}
	return nil
}

// fail remembers the first failure. In PostgreSQL a failed statement ends the
// transaction; SQLite would go on with half of it.
func (tx *Tx) fail(err error) error {
	if err != nil && tx.err == nil {
		tx.err = err
	}
	return err
}

// end closes what the function left open.
func (tx *Tx) end() {
	for len(tx.open) > 0 {
		tx.open[len(tx.open)-1].Close()
	}
	tx.done = true
}

// Rows are the result of a query:
//
//	defer rows.Close()
//	for rows.Next() { rows.Scan(…) }
//	return rows.Err()
type Rows struct {
	tx     *Tx
	st     *stmt
	rows   *sql.Rows
	err    error
	closed bool
}

// Next goes to the next row. false means there is none, or Err tells why.
func (r *Rows) Next() bool {
	if r.closed || r.err != nil {
		return false
	}
	if err := r.tx.ready(); err != nil {
		r.err = err
		return false
	}
	if r.rows.Next() {
		return true
	}
	if err := r.rows.Err(); err != nil {
		r.err = r.tx.fail(r.tx.c.wrap(err))
	}
	r.Close()
	return false
}

// Scan copies the row's columns to dest. An empty BLOB comes back as nil.
func (r *Rows) Scan(dest ...any) error {
	if err := r.rows.Scan(dest...); err != nil {
		// Not a failure of the database: what is read is not what was expected.
		r.err = r.tx.fail(fmt.Errorf("store: %w", err))
		return r.err
	}
	return nil
}

// Err is what ended Next early, if anything did.
func (r *Rows) Err() error { return r.err }

// Close ends the query. Closing again does nothing.
func (r *Rows) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	err := r.rows.Close()
	r.st.release()
	for i, o := range r.tx.open {
		if o == r {
			r.tx.open = append(r.tx.open[:i], r.tx.open[i+1:]...)
			break
		}
	}
	if err != nil {
		return r.tx.fail(r.tx.c.wrap(err))
	}
	return nil
}

// Row is the result of QueryRow.
type Row struct {
	rows *Rows
	err  error
}

// Scan copies the row's columns to dest. No row: [ErrNotFound].
func (r *Row) Scan(dest ...any) error {
	if r.err != nil {
		return r.err
	}
	defer r.rows.Close()
	if !r.rows.Next() {
		if err := r.rows.Err(); err != nil {
			return err
		}
		if r.rows.tx.done {
			return errTxDone
		}
		return ErrNotFound
	}
	return r.rows.Scan(dest...)
}
