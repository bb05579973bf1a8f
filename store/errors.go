package store

import (
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
)

// What callers can tell apart.
var (
	// ErrNotFound: QueryRow matched no row.
	ErrNotFound = errors.New("store: not found")
	// ErrLocked: another instance uses the data directory or the database.
	ErrLocked = errors.New("store: in use")
	// ErrWrongKey: the database was sealed under another key.
	ErrWrongKey = errors.New("store: wrong sealing key")
	// ErrUnseal: a sealed value is damaged, belongs elsewhere or to another key.
	// Which of these is not told.
	ErrUnseal = errors.New("store: sealed value does not open")
	// ErrNewerSchema: a newer program wrote the database.
	ErrNewerSchema = errors.New("store: database is newer than this program")
	// ErrRolledBack: the database is older than its high-water mark.
	ErrRolledBack = errors.New("store: the database is older than it was")
	// ErrNoMark: the database was in use and has no high-water mark beside it, so that
	// nobody can tell whether it is the newest copy.
	ErrNoMark = errors.New("store: the database has no high-water mark")
	// ErrMoved: another database goes on in place of this one.
	ErrMoved = errors.New("store: the database was moved")
	// ErrNotEmpty: a database that something was to be moved to is in use.
	ErrNotEmpty = errors.New("store: the target is not empty")
	// ErrFull: the disk takes no write: it is full, read-only or failing.
	// Nothing of the transaction was applied; the store goes on working once the
	// disk does.
	ErrFull = errors.New("store: disk is full or not writable")
	// ErrServerFull: the same, and the disk is that of the database server.
	ErrServerFull = fmt.Errorf("%w at the database server", ErrFull)
	// ErrAway: the database server does not answer, or takes no writes for now.
	// Nothing of the transaction was applied, unless the error says that its
	// outcome is not known; the store goes on working once the server does.
	ErrAway = errors.New("store: database server is away")
	// ErrConstraint: a statement would have broken a constraint of its table.
	ErrConstraint = errors.New("store: constraint violated")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("store: closed")

	errTxDone   = errors.New("store: transaction used after its function returned")
	errReadOnly = errors.New("store: View cannot write")
	errNested   = errors.New("store: transaction inside a transaction")
)

// class says what an error of the database means for the transaction.
type class uint8

const (
	// classStatement: the statement failed, a rollback to a savepoint undoes it.
	classStatement class = iota
	// classConstraint: the same, because of a constraint.
	classConstraint
	// classFull: the disk failed, the transaction is lost.
	classFull
	// classLost: the transaction is lost for another reason (memory, a lock).
	classLost
	// classRetry: the transaction is lost and did nothing; it may run again.
	classRetry
	// classAway: the connection is lost, and the transaction with it.
	classAway
)

// lost says whether the whole transaction is gone.
func (c class) lost() bool { return c >= classFull }

// dbError is an error of the database with what it means.
type dbError struct {
	class class
	err   error
}

func (e *dbError) Error() string {
	switch e.class {
	case classFull:
		full := ErrFull
		if e.atServer() {
			full = ErrServerFull
		}
		return full.Error() + ": " + e.err.Error()
	case classAway:
		return ErrAway.Error() + ": " + e.err.Error()
	case classConstraint:
		return ErrConstraint.Error() + ": " + e.err.Error()
	}
	return "store: " + e.err.Error()
}

func (e *dbError) Unwrap() error { return e.err }

func (e *dbError) Is(target error) bool {
	switch target {
	case ErrFull:
		return e.class == classFull
	case ErrServerFull:
		return e.class == classFull && e.atServer()
	case ErrAway:
		return e.class == classAway
	case ErrConstraint:
		return e.class == classConstraint
	}
	return false
}

// atServer says that a database server told of the error.
func (e *dbError) atServer() bool {
	_, ok := errors.AsType[*pgconn.PgError](e.err)
	return ok
}

func classOf(err error) class {
	if e, ok := errors.AsType[*dbError](err); ok {
		return e.class
	}
	return classStatement
}
