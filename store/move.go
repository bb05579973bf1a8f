package store

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// A store moves to another database, of either kind, while no gateway runs on
// it. Every row comes along as it is, the count of changes included, so that
// the high-water mark in the data directory goes on to hold. The source is
// marked first, and opens for nobody any more; then all rows go over in one
// transaction. What is interrupted in between is gone on with by moving again
// to the same place. So there are never two databases that a gateway could go
// on with: both would give out the same identifiers, versions and nonces.

// Rows of store_meta.
const (
	metaMoved = "moved" // in the source: number of the move, and where to
	metaCame  = "came"  // in the target: number of the move
)

// ownTables are those that a move treats otherwise, or leaves alone.
var ownTables = []string{"store_schema", "store_meta", "store_mark"}

// Moved says what a move brought over.
type Moved struct {
	To     string // place of the target, without secrets
	Tables int
	Rows   int64
	Before bool // an earlier call had done it
}

// Move brings everything from the database of Options to an empty one. It opens
// both alone.
//
// Errors besides those of Open: [ErrNotEmpty] when there is something in the
// target, [ErrMoved] when the source was moved to another place before.
func Move(ctx context.Context, from Options, to string) (m *Moved, err error) {
	from.Alone, from.moving = true, true
	target := from
	if target.DSN, err = absoluteDSN(from.Dir, to); err != nil {
		return nil, err
	}
	target.Dir = "" // the mark in the directory is that of the source until the rows are over
	dst, err := newDialect(target)
	if err != nil {
		return nil, err
	}
	src, err := newDialect(from)
	if err != nil {
		return nil, err
	}
	m = &Moved{To: dst.place()}
	if src.place() == m.To {
		return nil, fmt.Errorf("store: move: %s is where the database is", m.To)
	}
	a, err := Open(ctx, from)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	b, err := Open(ctx, target)
	if err != nil {
		return nil, fmt.Errorf("store: move: target: %w", err)
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	number, err := a.departure(ctx, b, m)
	if err != nil || m.Before {
		return m, err
	}
	err = a.View(ctx, func(read *Tx) error {
		return b.Update(ctx, func(write *Tx) error {
			m.Tables, m.Rows = 0, 0
			return copyAll(read, write, number, m)
		})
	})
	if err != nil {
		return nil, fmt.Errorf("store: move: %w", err)
	}
	return m, nil
}

// absoluteDSN makes the file of a SQLite DSN independent of the directory.
func absoluteDSN(dir, dsn string) (string, error) {
	if !strings.HasPrefix(dsn, "sqlite:") {
		return dsn, nil
	}
	db, err := newDialect(Options{Dir: dir, DSN: dsn})
	if err != nil {
		return "", err
	}
	return db.place(), nil
}

// departure marks the source as moved, once it is clear that the target takes
// it, and returns the number of the move.
func (s *Store) departure(ctx context.Context, to *Store, m *Moved) (number string, err error) {
	var where, came string
	if number, where, err = s.movedTo(ctx); err != nil {
		return "", err
	}
	if err := to.View(ctx, func(tx *Tx) error { came, err = meta(tx, metaCame); return err }); err != nil {
		return "", fmt.Errorf("store: move: %w", err)
	}
	switch {
	case number != "" && where != m.To:
		return "", fmt.Errorf("%w to %s, and moves to nowhere else", ErrMoved, where)
	case number != "" && came == number:
		m.Before = true
		return number, nil
	}
	if err := to.empty(ctx); err != nil {
		return "", err
	}
	if number != "" {
		return number, nil
	}
	id := make([]byte, markIDBytes)
	rand.Read(id) // never fails
	number = hex.EncodeToString(id)
	err = s.Update(ctx, func(tx *Tx) error {
		_, err := tx.Exec(`INSERT INTO store_meta (name, value) VALUES (?, ?)`, metaMoved, []byte(number+"\n"+m.To))
		return err
	})
	if err != nil {
		return "", fmt.Errorf("store: move: %w", err)
	}
	return number, nil
}

// movedTo reads whether the database was moved, and where to; "" when it was not.
func (s *Store) movedTo(ctx context.Context) (number, where string, err error) {
	err = s.View(ctx, func(tx *Tx) error {
		text, err := meta(tx, metaMoved)
		number, where, _ = strings.Cut(text, "\n")
		return err
	})
	return number, where, err
}

// stay refuses a database that was moved.
func (s *Store) stay(ctx context.Context) error {
	_, where, err := s.movedTo(ctx)
	if err == nil && where != "" {
		err = fmt.Errorf("%w to %s: start with that, or move again to there if the move was interrupted", ErrMoved, where)
	}
	return err
}

func meta(tx *Tx, name string) (string, error) {
	var value []byte
	err := tx.QueryRow(`SELECT value FROM store_meta WHERE name = ?`, name).Scan(&value)
	if errors.Is(err, ErrNotFound) {
		err = nil
	}
	return string(value), err
}

// empty fails when anything was ever written to the database.
func (s *Store) empty(ctx context.Context) error {
	err := s.View(ctx, func(tx *Tx) error {
		names, err := tableNames(tx)
		if err != nil {
			return err
		}
		for _, t := range names {
			var n int64
			if err := tx.QueryRow(`SELECT COUNT(*) FROM ` + t).Scan(&n); err != nil {
				return err
			}
			if n > 0 && !slices.Contains(ownTables, t) {
				return fmt.Errorf("%w: %s has %d rows", ErrNotEmpty, t, n)
			}
		}
		came, err := meta(tx, metaCame)
		if err == nil && came != "" {
			err = fmt.Errorf("%w: another database was moved here", ErrNotEmpty)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("store: move: %w", err)
	}
	return nil
}

func tableNames(tx *Tx) (names []string, err error) {
	rows, err := tx.Query(tx.c.db.tables())
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	return names, rows.Err()
}

// copyAll fills an empty database. It may run again.
func copyAll(from, to *Tx, number string, m *Moved) error {
	names, err := tableNames(from)
	if err != nil {
		return err
	}
	for _, t := range names {
		if slices.Contains(ownTables, t) {
			continue
		}
		n, err := copyTable(from, to, t)
		if err != nil {
			return fmt.Errorf("%s: %w", t, err)
		}
		m.Tables++
		m.Rows += n
	}
	// Cursors of gateways that share a database are those gateways' own.
	if _, err := to.Exec(`DELETE FROM store_cursors WHERE name LIKE '%@%'`); err != nil {
		return err
	}
	// An event that was trimmed must not come back: a cursor would pass it over.
	var last int64
	if err := to.QueryRow(`SELECT COALESCE(MAX(id), 0) FROM (SELECT id FROM store_events UNION ALL SELECT id FROM store_cursors) AS ids`).
		Scan(&last); err != nil {
		return err
	}
	for _, q := range to.c.db.restart(last + 1) {
		if _, err := to.Exec(q); err != nil {
			return err
		}
	}
	// The count of changes goes on, and so holds the mark in the data directory.
	var id string
	var seq int64
	if err := from.QueryRow(`SELECT id, seq FROM store_mark`).Scan(&id, &seq); err != nil {
		return err
	}
	if _, err := to.Exec(`UPDATE store_mark SET id = ?, seq = ?`, id, seq); err != nil {
		return err
	}
	_, err = to.Exec(`INSERT INTO store_meta (name, value) VALUES (?, ?)`, metaCame, []byte(number))
	return err
}

// copyRows is how many rows a statement writes.
const copyRows = 64

// copyTable copies all rows and counts them.
func copyTable(from, to *Tx, table string) (n int64, err error) {
	rows, err := from.Query(`SELECT * FROM ` + table)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	columns, err := rows.rows.Columns()
	if err != nil {
		return 0, err
	}
	keep := ""
	if table == "store_events" {
		keep = to.c.db.keepIDs()
	}
	one := "(" + strings.TrimSuffix(strings.Repeat("?, ", len(columns)), ", ") + ")"
	insert := func(k int) string {
		return "INSERT INTO " + table + " (" + strings.Join(columns, ", ") + ")" + keep + " VALUES " +
			strings.TrimSuffix(strings.Repeat(one+", ", k), ", ")
	}
	full := insert(copyRows)
	var values []any
	flush := func(query string) error {
		_, err := to.Exec(query, values...)
		values = values[:0]
		return err
	}
	for rows.Next() {
		row, dest := make([]any, len(columns)), make([]any, len(columns))
		for i := range row {
			dest[i] = &row[i]
		}
		if err := rows.Scan(dest...); err != nil {
			return 0, err
		}
		for _, v := range row {
			if b, ok := v.([]byte); ok && b == nil {
				v = []byte{} // empty, not NULL
			}
			values = append(values, v)
		}
		n++
		if len(values) == copyRows*len(columns) {
			if err := flush(full); err != nil {
				return 0, err
			}
		}
	}
	if err := rows.Err(); err != nil {
		return 0, err
	}
	if k := len(values) / len(columns); k > 0 {
		if err := flush(insert(k)); err != nil {
			return 0, err
		}
	}
	var there int64
	if err := to.QueryRow(`SELECT COUNT(*) FROM ` + table).Scan(&there); err != nil {
		return 0, err
	}
	if there != n {
		return 0, fmt.Errorf("%d rows of %d came over", there, n)
	}
	return n, nil
}
