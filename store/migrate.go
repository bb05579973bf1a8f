package store

import (
	"errors"
	"fmt"
	"time"
)

// ownRoom is the owner of the store's own tables.
const ownRoom = "store"

// migration is what is to be done to bring the schemas up to date.
type migration struct {
	w       *conn
	program string
	rooms   map[string]Migrations
	from    map[string]int // the version that each room's schema has
}

// planMigrations reads the versions of all schemas. When one is newer than we
// know, nothing is to be done to any.
func planMigrations(w *conn, program string, rooms []Migrations) (*migration, error) {
	if err := transact(w, func() error { return w.script(w.db.ddl(schemaTable)) }); err != nil {
		return nil, fmt.Errorf("store: migrate: %w", err)
	}
	m := &migration{w: w, program: program, rooms: make(map[string]Migrations), from: make(map[string]int)}
	var errs []error
	for _, r := range rooms {
		if _, twice := m.rooms[r.Room]; twice || r.Room == "" {
			return nil, fmt.Errorf("store: internal error: migrations of room %q given twice or without a name", r.Room)
		}
		version, writer, err := schemaVersion(w, r.Room)
		if err != nil {
			return nil, fmt.Errorf("store: migrate %s: %w", r.Room, err)
		}
		m.rooms[r.Room], m.from[r.Room] = r, version
		if version > len(r.Steps) {
			errs = append(errs, fmt.Errorf("%w: %s has schema %d, written by %s, and %s knows schemas up to %d: "+
				"start %s or newer, or put back the backup from before the upgrade",
				ErrNewerSchema, r.Room, version, writer, program, len(r.Steps), writer))
		}
	}
	return m, errors.Join(errs...)
}

// apply takes the steps that a room lacks, each in a transaction with the
// record of it.
func (m *migration) apply(room string) error {
	r := m.rooms[room]
	for v := m.from[room]; v < len(r.Steps); v++ {
		if err := migrateStep(m.w, m.program, r, v); err != nil {
			return fmt.Errorf("store: migrate %s to schema %d: %w", room, v+1, err)
		}
	}
	return nil
}

const schemaTable = `CREATE TABLE IF NOT EXISTS store_schema (
	room    TEXT PRIMARY KEY,
	version INTEGER NOT NULL,
	program TEXT NOT NULL,
	at      INTEGER NOT NULL)`

// migrateStep takes one step, unless another gateway took it meanwhile.
func migrateStep(w *conn, program string, r Migrations, v int) error {
	return transact(w, func() error {
		if have, _, err := schemaVersion(w, r.Room); err != nil || have > v {
			return err
		}
		if err := w.script(w.db.ddl(r.Steps[v])); err != nil {
			return err
		}
		_, err := w.exec(`INSERT INTO store_schema (room, version, program, at) VALUES (?, ?, ?, ?)
			ON CONFLICT (room) DO UPDATE SET version = excluded.version, program = excluded.program, at = excluded.at`,
			r.Room, v+1, program, time.Now().Unix())
		return err
	})
}

// transact runs f in a writing transaction.
func transact(w *conn, f func() error) error {
	if err := w.db.begin(w, true); err != nil {
		return err
	}
	err := f()
	if err == nil {
		err = w.db.commit(w, false)
	}
	if err != nil {
		_, _ = w.exec("ROLLBACK")
	}
	return err
}

// schemaVersion is the version of a room's schema, 0 when it has none, and the
// program that brought it there.
func schemaVersion(w *conn, room string) (version int, writer string, err error) {
	tx := &Tx{ctx: background, c: w}
	defer tx.end()
	err = tx.QueryRow("SELECT version, program FROM store_schema WHERE room = ?", room).Scan(&version, &writer)
	if errors.Is(err, ErrNotFound) {
		return 0, "", nil
	}
	return version, writer, err
}
