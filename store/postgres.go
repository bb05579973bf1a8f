package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"golang.org/x/sys/unix"
)

// Bounds of what a server that hangs, or a gateway that does, may hold up.
const (
	pgMinVersion     = 130000
	pgConnectTimeout = 5 * time.Second
	pgUnanswered     = 20 * time.Second // a silent network path is given up
	pgLockTimeout    = 10 * time.Second // another gateway holds the write lock
	pgStatement      = 30 * time.Second
	// A gateway that stopped inside a transaction loses it after this, so that
	// it does not keep the write lock from the others for ever.
	pgIdleInTx = 10 * time.Second
	// A gateway that ended a moment ago may still have its session.
	pgClaim = 3 * time.Second
	// How long the outcome of a commit whose answer was lost is asked for.
	pgDoubt = 15 * time.Second
)

// postgresDB is the dialect of PostgreSQL. Several gateways may share one
// database: writing transactions come one after the other by an advisory lock
// of the schema, and so see each other whole, as with SQLite's write lock.
type postgresDB struct {
	cfg   *pgx.ConnConfig
	alone bool // nobody else writes: nothing to listen for
	log   *slog.Logger

	gateway string // our name among those that share the database

	pool  *sql.DB
	spare atomic.Pointer[conn] // a reader that nobody has yet
	name  string               // of the schema
	lock  int64                // key of the write lock
	ch    string               // channel of the wakeups

	writerPID atomic.Uint32 // whose notifications are our own
	stop      context.CancelFunc
	listening sync.WaitGroup
	broadcast
}

// newPostgres reads a URL. Its errors do not show the password.
func newPostgres(url string, o Options) (*postgresDB, error) {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err) // pgx masks the password
	}
	cfg.ConnectTimeout = pgConnectTimeout
	cfg.DialFunc = dialPostgres
	cfg.DefaultQueryExecMode = pgx.QueryExecModeExec // we prepare ourselves
	cfg.StatementCacheCapacity, cfg.DescriptionCacheCapacity = 0, 0
	for name, value := range map[string]string{
		"application_name": "groupgate",
		// Explicitly, against another default of the server's: what was
		// acknowledged is on disk.
		"synchronous_commit":                  "on",
		"default_transaction_isolation":       "read committed",
		"client_encoding":                     "UTF8",
		"standard_conforming_strings":         "on",
		"lock_timeout":                        millisText(pgLockTimeout),
		"statement_timeout":                   millisText(pgStatement),
		"idle_in_transaction_session_timeout": millisText(pgIdleInTx),
		// The server notices that we are gone as soon as we notice the server.
		"tcp_keepalives_idle":     "5",
		"tcp_keepalives_interval": "5",
		"tcp_keepalives_count":    "3",
		"tcp_user_timeout":        millisText(pgUnanswered),
	} {
		cfg.RuntimeParams[name] = value
	}
	return &postgresDB{cfg: cfg, alone: o.Alone, log: o.Log}, nil
}

func millisText(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

// dialPostgres connects so that a path that went silent is noticed.
func dialPostgres(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 5 * time.Second, Count: 3}}
	if strings.HasPrefix(network, "tcp") {
		d.Control = func(_, _ string, c syscall.RawConn) error {
			var err error
			if err2 := c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(pgUnanswered.Milliseconds()))
			}); err2 != nil {
				return err2
			}
			return err
		}
	}
	return d.DialContext(ctx, network, addr)
}

// create makes sure that this is a database that we can work with. It creates
// nothing: database and role are the administrator's.
func (d *postgresDB) create(ctx context.Context) error {
	d.pool = sql.OpenDB(&pgConnector{stdlib.GetConnector(*d.cfg)})
	d.pool.SetMaxIdleConns(0) // conn keeps them; what it gives back is to be closed
	c, err := d.connect(ctx, false)
	if err != nil {
		return err
	}
	defer d.spare.Store(c) // the first reader
	var version int
	var schema, encoding sql.NullString
	if err := c.c.QueryRowContext(background, `SELECT current_setting('server_version_num')::int, current_schema(),
		current_setting('server_encoding')`).Scan(&version, &schema, &encoding); err != nil {
		return d.wrap("open", err)
	}
	switch {
	case version < pgMinVersion:
		return fmt.Errorf("store: PostgreSQL %d is too old: 13 or newer is needed", version/10000)
	case encoding.String != "UTF8":
		return fmt.Errorf("store: the database has encoding %s: create it with UTF8", encoding.String)
	case !schema.Valid:
		return errors.New("store: no schema of search_path exists in the database: create it, or name another by ?search_path= in the URL")
	}
	d.name = schema.String
	d.lock = d.key("write lock")
	d.ch = fmt.Sprintf("groupgate_%016x", uint64(d.lock))
	return nil
}

// key makes a name within our schema the key of an advisory lock: those belong
// to the whole database.
func (d *postgresDB) key(name string) int64 {
	sum := sha256.Sum256([]byte("groupgate " + name + " of " + d.name))
	return int64(binary.BigEndian.Uint64(sum[:]))
}

func (d *postgresDB) created() error {
	if d.alone {
		return nil
	}
	ctx, stop := context.WithCancel(background)
	d.stop = stop
	d.listening.Go(func() { d.listen(ctx) })
	return nil
}

func (d *postgresDB) connect(ctx context.Context, write bool) (*conn, error) {
	// As with SQLite: a context that ends in the middle would cost the connection.
	ctx = context.WithoutCancel(ctx)
	if !write {
		if c := d.spare.Swap(nil); c != nil {
			return c, nil
		}
	}
	sc, err := d.pool.Conn(ctx)
	if err != nil {
		// The error names host, user and database, and never the password.
		return nil, d.wrap("connect", err)
	}
	c := newConn(sc, d)
	if write {
		if err := d.claim(c); err != nil {
			return nil, errors.Join(err, c.close())
		}
	}
	return c, nil
}

// claim lets a writer in. One that wants to be alone keeps all others out, and
// is kept out by any: by a lock that the writing session has, so that there is
// no writing without it.
func (d *postgresDB) claim(c *conn) error {
	query, taken := "SELECT pg_try_advisory_lock_shared($1) AND pg_try_advisory_lock($2)",
		"another gateway keeps the PostgreSQL schema for itself, or has the same "+gatewayFile
	if d.alone {
		query, taken = "SELECT pg_try_advisory_lock($1) AND $2::bigint IS NOT NULL",
			"another gateway works on the same PostgreSQL schema"
	}
	if err := d.raw(c, func(p *pgx.Conn) error {
		d.writerPID.Store(p.PgConn().PID())
		return nil
	}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(background, pgClaim)
	defer cancel()
	var wait backoff
	for {
		var have bool
		if err := c.c.QueryRowContext(background, query, d.lock^1, d.key("gateway "+d.gateway)).Scan(&have); err != nil {
			return d.wrap("connect", err)
		}
		if have {
			return nil
		}
		if !wait.sleep(ctx) {
			return &dbError{classAway, fmt.Errorf("%w: %s", ErrLocked, taken)}
		}
	}
}

// raw gives f the driver's own connection.
func (d *postgresDB) raw(c *conn, f func(*pgx.Conn) error) error {
	var err error
	if err2 := c.c.Raw(func(dc any) error {
		err = f(dc.(*pgConn).Conn.Conn())
		return nil // the pool is not to judge the connection
	}); err2 != nil {
		err = err2
	}
	if err != nil {
		return c.wrap(err)
	}
	return nil
}

func (d *postgresDB) wrap(doing string, err error) error {
	return fmt.Errorf("store: PostgreSQL: %s: %w", doing, &dbError{d.classify(err), err})
}

func (d *postgresDB) checkpoint(*conn) error { return nil }

func (d *postgresDB) close() error {
	if d.stop != nil {
		d.stop()
		d.listening.Wait()
	}
	if d.pool == nil {
		return nil
	}
	var err error
	if c := d.spare.Swap(nil); c != nil {
		err = c.close()
	}
	return errors.Join(err, d.pool.Close())
}

// begin: a writer takes the schema's lock before its first snapshot. At READ
// COMMITTED each statement then sees all that the earlier holders committed,
// and nothing changes meanwhile. Its transaction id tells the outcome later.
func (d *postgresDB) begin(c *conn, write bool) error {
	script := "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
	if write {
		script = fmt.Sprintf("BEGIN; SELECT pg_advisory_xact_lock(%d); SELECT pg_current_xact_id()::text", d.lock)
	}
	return d.raw(c, func(p *pgx.Conn) error {
		results, err := p.PgConn().Exec(background, script).ReadAll()
		if err != nil {
			_, _ = p.PgConn().Exec(background, "ROLLBACK").ReadAll()
			return err
		}
		if write {
			c.xid = string(results[2].Rows[0][0])
		}
		return nil
	})
}

// commit sends the wakeup and the commit in one message. When the connection
// ends before the answer, the server is asked for the outcome.
func (d *postgresDB) commit(c *conn, events bool) error {
	script := "COMMIT"
	if events && !d.alone {
		script = "NOTIFY " + d.ch + "; COMMIT"
	}
	err := d.raw(c, func(p *pgx.Conn) error {
		results, err := p.PgConn().Exec(background, script).ReadAll()
		if err == nil && results[len(results)-1].CommandTag.String() != "COMMIT" {
			return &dbError{classStatement, errors.New("the transaction had failed before its commit")}
		}
		return err
	})
	if classOf(err) != classAway {
		return err
	}
	committed, err2 := d.outcome(c.xid)
	switch {
	case err2 != nil:
		return &dbError{classAway, fmt.Errorf("the outcome of the transaction is not known: %w", errors.Join(err, err2))}
	case !committed:
		return &dbError{classRetry, err}
	}
	return nil
}

// outcome asks what became of a transaction.
func (d *postgresDB) outcome(xid string) (committed bool, err error) {
	ctx, cancel := context.WithTimeout(background, pgDoubt)
	defer cancel()
	var wait backoff
	for {
		var status sql.NullString
		err := d.pool.QueryRowContext(ctx, "SELECT pg_xact_status($1::text::xid8)", xid).Scan(&status)
		switch {
		case err == nil && status.String == "committed":
			return true, nil
		case err == nil && status.String == "aborted":
			return false, nil
		case err == nil && !status.Valid:
			return false, errors.New("the server has forgotten it")
		case err == nil:
			err = errors.New("it is still in progress") // the server has not noticed yet
		}
		if !wait.sleep(ctx) {
			return false, err
		}
	}
}

// classify reads the SQLSTATE of an error (PostgreSQL, Appendix A).
func (d *postgresDB) classify(err error) class {
	if e, ok := errors.AsType[*dbError](err); ok {
		return e.class
	}
	e, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		// Nothing from the server: the connection, or our own use of it.
		if pgconn.Timeout(err) || errors.Is(err, net.ErrClosed) || pgGone(err) {
			return classAway
		}
		return classStatement
	}
	switch e.Code {
	case "40001", "40P01": // serialization_failure, deadlock_detected
		return classRetry
	case "53100", "58030": // disk_full, io_error
		return classFull
	case "53300", "25006", // too_many_connections, read_only_sql_transaction: a standby
		"57P01", "57P02", "57P03", "57P05", "25P03": // shutdowns and idle timeouts
		return classAway
	case "55P03", "57014": // lock_not_available, query_canceled
		return classLost
	}
	switch e.Code[:min(2, len(e.Code))] {
	case "08":
		return classAway
	case "23":
		return classConstraint
	case "53", "58", "XX":
		return classLost
	}
	return classStatement
}
