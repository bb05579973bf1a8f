package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
)

// maxStatements bounds the prepared statements of a connection. The rooms'
// queries are constants and fewer; lists of varying length would grow it.
const maxStatements = 256

// conn is one connection with its prepared statements. One goroutine uses it
// at a time.
type conn struct {
	c     *sql.Conn
	db    dialect
	stmts map[string]*stmt
	xid   string // of the writing transaction, where the database names them
}

// stmt is a prepared statement. It has one set of bound values, so while rows
// of it are open it is busy and the same query is prepared a second time.
type stmt struct {
	s    *sql.Stmt
	busy bool
	once bool // not in the cache: closed after use
}

func newConn(c *sql.Conn, db dialect) *conn {
	return &conn{c: c, db: db, stmts: make(map[string]*stmt)}
}

// The context of all statements: none that ends, see connect.
var background = context.Background()

func (c *conn) prepare(query string) (*stmt, error) {
	st := c.stmts[query]
	if st != nil && !st.busy {
		return st, nil
	}
	ps, err := c.c.PrepareContext(background, c.db.rebind(query))
	if err != nil {
		return nil, c.wrap(err)
	}
	if st != nil {
		return &stmt{s: ps, once: true}, nil
	}
	if len(c.stmts) >= maxStatements {
		c.evict()
	}
	st = &stmt{s: ps}
	c.stmts[query] = st
	return st, nil
}

// evict drops some statements, whichever come first: the cache is larger than
// the set in use, and a statement dropped by mistake is prepared again.
func (c *conn) evict() {
	n := 0
	for query, st := range c.stmts {
		if st.busy {
			continue
		}
		st.s.Close()
		delete(c.stmts, query)
		if n++; n == maxStatements/4 {
			return
		}
	}
}

func (st *stmt) release() {
	st.busy = false
	if st.once {
		st.s.Close()
	}
}

// exec runs one prepared statement.
func (c *conn) exec(query string, args ...any) (int64, error) {
	st, err := c.prepare(query)
	if err != nil {
		return 0, err
	}
	st.busy = true
	defer st.release()
	res, err := st.s.ExecContext(background, args...)
	if err != nil {
		return 0, c.wrap(err)
	}
	n, err := res.RowsAffected()
	if err != nil {
		return 0, c.wrap(err)
	}
	return n, nil
}

// script runs several statements without values.
func (c *conn) script(sql string) error {
	if _, err := c.c.ExecContext(background, sql); err != nil {
		return c.wrap(err)
	}
	return nil
}

func (c *conn) wrap(err error) error {
	return &dbError{class: c.db.classify(err), err: err}
}

// close closes the connection for good.
func (c *conn) close() error {
	var errs []error
	for _, st := range c.stmts {
		if err := st.s.Close(); err != nil && c.db.classify(err) != classAway {
			errs = append(errs, err)
		}
	}
	c.stmts = nil
	// The pool would keep a connection that is given back: tell it not to.
	_ = c.c.Raw(func(any) error { return driver.ErrBadConn })
	if err := c.c.Close(); err != nil && !errors.Is(err, sql.ErrConnDone) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
