// Package store is the gateway's SQL engine: it opens a database, migrates it,
// runs transactions, seals secrets and keeps the event log. It owns no tables
// but its own (store_…): every room brings its own schema and reads no other
// room's.
//
// Start at [Open], then [Store.View] to read and [Store.Update] to write. What
// Update acknowledged is on disk: it survives a kill and a power cut.
//
//   - Concurrent Updates share one commit, and so one fsync. Each runs in a
//     savepoint of its own, so one that fails takes nobody with it. A function
//     given to Update may run again: it touches nothing but its Tx and variables
//     that it sets anew, does no cryptography and no I/O, and is short, because
//     the others wait for it.
//   - SQL is the portable subset that SQLite and PostgreSQL share: ? as the
//     placeholder, INTEGER, TEXT and BLOB columns, INSERT … ON CONFLICT, single
//     quotes for strings; WITHOUT ROWID, which PostgreSQL is not told. Times are unix seconds or milliseconds in INTEGER. A
//     room's tables carry the room's name as prefix (gm_…, ace_…).
//   - A statement that failed fails its transaction: later statements return
//     the same error, and so does Update. Expected conflicts are for ON CONFLICT
//     and the count of affected rows.
package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// Options say what to open.
type Options struct {
	// Dir is the data directory; it is created with mode 0700 when absent.
	Dir string
	// DSN is "sqlite:FILE", FILE relative to Dir or absolute. Empty means
	// "sqlite:groupgate.db". Or "postgres://USER@HOST/DATABASE": database and
	// role exist, tables are created in the first schema of search_path. The
	// password comes with the URL, or from PGPASSWORD or the user's .pgpass.
	DSN string
	// Alone keeps other processes from a PostgreSQL database: what has it open
	// makes Open fail with [ErrLocked], and is kept out afterwards. With SQLite
	// the lock of the data directory does that.
	Alone bool
	// SealKey is the 32-byte master key of Seal. Required.
	SealKey []byte
	// AcceptRollback opens a database that is older than its high-water mark:
	// see [Store.RolledBack].
	AcceptRollback bool
	// NeedMark refuses a database of its own, not a shared one, that was in use and
	// has no high-water mark beside it: it was put back into another directory.
	NeedMark bool
	moving   bool // open it although it was moved
	// Migrations bring the rooms' schemas up to date.
	Migrations []Migrations
	// Program names the program and its version; it is recorded with every
	// schema change. Empty means "groupgate".
	Program string
	// Log hears of what an operator should know and the store coped with. nil
	// means nobody.
	Log *slog.Logger
	// Registerer takes the metrics. nil means they are kept to ourselves.
	Registerer prometheus.Registerer
	// Refused gets the error of each update that the disk or the server took nothing of
	// ([ErrFull], [ErrAway]). It must not call the store. nil: nobody.
	Refused func(error)
}

// Migrations is the schema of one room, as the steps that led to it.
type Migrations struct {
	// Room names the owner, for instance "gm".
	Room string
	// Steps are SQL scripts: Steps[i] brings the schema from version i to i+1,
	// in a transaction of its own. A published step never changes.
	Steps []string
}

// Store is an open database. Its methods may be used from many goroutines.
type Store struct {
	dir     string
	db      dialect
	gateway string // among those that share the database; "" with one of our own
	seal    sealer
	metrics *metrics
	refused func(error) // may be nil

	queue   queue
	writer  *conn // owned by the committer goroutine; nil: open one
	readers chan *conn

	follow   followers
	mark     marker
	watching sync.WaitGroup

	closing sync.Once
	closed  chan struct{}
}

// Open opens the database, creating it when absent, checks the key and brings
// every room's schema up to date.
//
// Errors: [ErrAway] when the server does not answer, [ErrLocked] when another
// process keeps us from the database, [ErrWrongKey] when the database was
// sealed under another key, [ErrNewerSchema] when a newer program wrote it,
// [ErrRolledBack] when it is older than its high-water mark, [ErrNoMark] when that is missing (Options.NeedMark), [ErrFull] when the
// disk takes no more.
func Open(ctx context.Context, o Options) (*Store, error) {
	if len(o.SealKey) != KeySize {
		return nil, fmt.Errorf("store: the sealing key has %d bytes, it needs %d", len(o.SealKey), KeySize)
	}
	if o.Program == "" {
		o.Program = "groupgate"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	db, err := newDialect(o)
	if err != nil {
		return nil, err
	}
	m, err := newMetrics(o.Registerer)
	if err != nil {
		return nil, fmt.Errorf("store: register metrics: %w", err)
	}
	if o.Dir != "" {
		warning, err := ensureDir(o.Dir)
		if err != nil {
			return nil, err
		}
		if warning != "" {
			o.Log.WarnContext(ctx, "data directory is open to others", "path", o.Dir, "hint", warning)
		}
	}
	s := &Store{
		dir:     o.Dir,
		db:      db,
		seal:    newSealer(o.SealKey),
		metrics: m,
		refused: o.Refused,
		readers: make(chan *conn, readConns),
		closed:  make(chan struct{}),
		mark:    marker{behind: make(chan struct{})},
	}
	if db.shared() {
		if s.gateway, err = gatewayID(o.Dir); err != nil {
			m.unregister()
			return nil, err
		}
		db.(*postgresDB).gateway = s.gateway
	}
	for range readConns {
		s.readers <- nil // opened when first needed
	}
	if err := s.setup(ctx, o); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Store) setup(ctx context.Context, o Options) error {
	if err := s.db.create(ctx); err != nil {
		return err
	}
	w, err := s.db.connect(ctx, true)
	if err != nil {
		return err
	}
	s.writer = w
	own := []Migrations{{Room: ownRoom, Steps: append(s.db.schema(), markSchema, seenSchema)}}
	m, err := planMigrations(w, o.Program, append(own, o.Migrations...))
	if err != nil {
		return err
	}
	// With the wrong key nothing of the rooms is touched.
	if err := m.apply(ownRoom); err != nil {
		return err
	}
	if err := s.Update(ctx, s.seal.check); err != nil {
		return err
	}
	if !o.moving {
		if err := s.stay(ctx); err != nil {
			return err
		}
	}
	for _, r := range o.Migrations {
		if err := m.apply(r.Room); err != nil {
			return err
		}
	}
	if err := s.db.created(); err != nil {
		return err
	}
	if err := s.checkMark(ctx, o); err != nil {
		return err
	}
	if s.Shared() {
		s.watching.Go(s.watchMark)
	}
	return nil
}

// Dir is the data directory that the store was opened with.
func (s *Store) Dir() string { return s.dir }

// Close ends the store: Updates that are queued are still done, new ones are
// refused with [ErrClosed], open Views are waited for. It brings the log back
// into the database file. Closing again does nothing.
func (s *Store) Close() error {
	var err error
	s.closing.Do(func() {
		close(s.closed)
		s.watching.Wait()
		s.queue.close()
		var errs []error
		for range readConns {
			if c := <-s.readers; c != nil {
				errs = append(errs, c.close())
			}
		}
		if s.writer != nil {
			errs = append(errs, s.db.checkpoint(s.writer), s.writer.close())
			s.writer = nil
		}
		s.mark.close()
		errs = append(errs, s.db.close())
		s.metrics.unregister()
		err = errors.Join(errs...)
	})
	return err
}

// newDialect reads a DSN.
func newDialect(o Options) (dialect, error) {
	dir, dsn := o.Dir, o.DSN
	if dsn == "" {
		dsn = "sqlite:groupgate.db"
	}
	scheme, rest, _ := strings.Cut(dsn, ":")
	switch scheme {
	case "sqlite":
		if rest == "" || strings.HasSuffix(rest, "/") || strings.ContainsRune(rest, 0) || rest == ":memory:" {
			return nil, errors.New(`store: write "sqlite:FILE", FILE relative to the data directory or absolute`)
		}
		if !filepath.IsAbs(rest) {
			if dir == "" {
				return nil, fmt.Errorf("store: %q is relative to the data directory, and none is given", dsn)
			}
			rest = filepath.Join(dir, rest)
		}
		path, err := filepath.Abs(rest)
		if err != nil {
			return nil, fmt.Errorf("store: %w", err)
		}
		return newSQLite(path), nil
	case "postgres", "postgresql":
		return newPostgres(dsn, o)
	}
	// It may be a URL with a password: it is not repeated.
	return nil, errors.New(`store: unknown kind of database: use "sqlite:FILE" or "postgres://USER@HOST/DATABASE"`)
}
