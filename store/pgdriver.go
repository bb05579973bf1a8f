package store

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"slices"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// pgConnector opens connections that behave as SQLite's: other statements may
// run while the rows of a query are read. PostgreSQL has one open query per
// connection, so the rest of the rows is then taken into memory.
type pgConnector struct{ driver.Connector }

func (p *pgConnector) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := p.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &pgConn{Conn: c.(*stdlib.Conn)}, nil
}

type pgConn struct {
	*stdlib.Conn
	open *pgRows // the query whose rows are still on the wire
}

// clear takes the rows that are on the wire off it.
func (c *pgConn) clear() {
	if c.open != nil {
		c.open.buffer()
	}
}

// CheckNamedValue has database/sql convert values as for every driver.
func (c *pgConn) CheckNamedValue(*driver.NamedValue) error { return driver.ErrSkip }

func (c *pgConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	c.clear()
	s, err := c.Conn.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	return &pgStmt{Stmt: s.(*stdlib.Stmt), c: c}, nil
}

func (c *pgConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	c.clear()
	return c.Conn.ExecContext(ctx, query, args)
}

type pgStmt struct {
	*stdlib.Stmt
	c *pgConn
}

func (s *pgStmt) Close() error {
	s.c.clear()
	return s.Stmt.Close()
}

func (s *pgStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	s.c.clear()
	return s.Stmt.ExecContext(ctx, args)
}

func (s *pgStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	s.c.clear()
	rows, err := s.Stmt.QueryContext(ctx, args)
	if err != nil {
		return nil, err
	}
	r := &pgRows{rows: rows, c: s.c}
	s.c.open = r
	return r, nil
}

// pgRows are the rows of one query: on the wire, or in memory.
type pgRows struct {
	rows driver.Rows
	c    *pgConn

	buffered bool
	mem      [][]driver.Value
	err      error // after mem
}

func (r *pgRows) Columns() []string { return r.rows.Columns() }

func (r *pgRows) Next(dest []driver.Value) error {
	if !r.buffered {
		err := r.rows.Next(dest)
		if err != nil {
			r.off()
		}
		return err
	}
	if len(r.mem) == 0 {
		return r.err
	}
	copy(dest, r.mem[0])
	r.mem = r.mem[1:]
	return nil
}

// buffer reads the rest into memory. The columns' names must be asked for
// before the rows are closed: database/sql does so at each Next.
func (r *pgRows) buffer() {
	columns := slices.Clone(r.rows.Columns())
	for {
		row := make([]driver.Value, len(columns))
		if r.err = r.rows.Next(row); r.err != nil {
			break
		}
		for i, v := range row {
			if b, ok := v.([]byte); ok {
				row[i] = bytes.Clone(b)
			}
		}
		r.mem = append(r.mem, row)
	}
	if err := r.rows.Close(); err != nil && errors.Is(r.err, io.EOF) {
		r.err = err
	}
	r.buffered = true
	r.off()
}

// off notes that r has nothing on the wire any more.
func (r *pgRows) off() {
	if r.c.open == r {
		r.c.open = nil
	}
}

func (r *pgRows) Close() error {
	r.mem = nil
	if r.buffered {
		r.err = io.EOF
		return nil
	}
	r.off()
	return r.rows.Close()
}

// pgGone says whether err tells of a connection that ended or never came.
func pgGone(err error) bool {
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return true
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, driver.ErrBadConn) ||
		errors.Is(err, sql.ErrConnDone) || errors.Is(err, pgconn.ErrConnClosed)
}
