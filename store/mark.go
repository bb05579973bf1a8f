package store

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/durable"
	"github.com/seed4911071e/groupgate/rarely"
)

// The high-water mark tells a database from an older copy of itself. The
// database counts its changes (store_mark.seq, one more in every transaction
// that changes anything); a small file beside it, in the data directory, says
// how far that count had come, and of which database. A database that is behind
// its mark was put back from a backup, and would give identifiers, versions and
// nonces a second time.
//
// The file is written after the commit, at most once in markEvery, and at Close:
// it is never ahead of the disk, and a copy that is younger than markEvery may
// pass for the original. A copy of the whole data directory takes its mark
// along and is not told from the original at all.
//
// Gateways that share a database have a mark each, which follows what all of
// them commit. Still one that was down while another worked knows less, so an
// accepted rollback of a shared database counts as one of unknownLoss changes at
// least: whichever gateway comes first recovers for all, and the others' marks
// are then behind. A gateway that runs while the database goes back, because a
// standby took over that lacked the newest changes, finds the count below what
// it saw and writes no more: see [Store.Behind].

const (
	markName    = "groupgate.mark"
	markHeader  = "groupgate mark 1"
	markEvery   = time.Second
	markIDBytes = 16
	maxMark     = 128 // bytes of the file
)

// markSchema is a step of the store's own schema, alike in all databases.
const markSchema = `CREATE TABLE store_mark (
	one INTEGER PRIMARY KEY,
	id  TEXT    NOT NULL,
	seq INTEGER NOT NULL
);`

// unknownLoss stands for the changes that were lost when nobody knows: the
// database is another one, or its mark is unreadable.
const unknownLoss = 1 << 20

// mark is the content of the file.
type mark struct {
	id  string // of the database, hex
	seq uint64 // changes
}

func (m mark) encode() []byte { return fmt.Appendf(nil, "%s\n%s\n%d\n", markHeader, m.id, m.seq) }

var errMark = errors.New("store: the file is no high-water mark")

// decodeMark reads exactly what encode writes.
func decodeMark(b []byte) (mark, error) {
	lines := strings.Split(string(b), "\n")
	if len(b) > maxMark || len(lines) != 4 || lines[0] != markHeader || lines[3] != "" {
		return mark{}, errMark
	}
	id, err := hex.DecodeString(lines[1])
	if err != nil || len(id) != markIDBytes {
		return mark{}, errMark
	}
	seq, err := strconv.ParseUint(lines[2], 10, 63)
	if err != nil {
		return mark{}, errMark
	}
	m := mark{id: lines[1], seq: seq}
	if string(m.encode()) != string(b) {
		return mark{}, errMark
	}
	return m, nil
}

// marker keeps the file.
type marker struct {
	path string // "": there is no data directory, and no mark
	log  *slog.Logger

	mu      sync.Mutex
	id      string
	seq     uint64      // guarded by mu: committed
	written uint64      // guarded by mu: in the file
	timer   *time.Timer // guarded by mu; nil: no write is planned
	kept    bool        // guarded by mu: the file is ours to write
	fell    bool        // guarded by mu: the count was below seq
	closed  bool        // guarded by mu
	line    rarely.Line // guarded by mu: writes that failed

	behind chan struct{} // closed when fell is set

	// Not written after Open.
	rolledBack bool   // accepted although it is older
	lost       uint64 // changes, at the most
}

// check compares the database with its mark, and refuses one that is older.
func (s *Store) checkMark(ctx context.Context, o Options) error {
	k := &s.mark
	k.log = o.Log
	if o.Dir != "" {
		k.path = filepath.Join(o.Dir, markName)
	}
	err := s.Update(ctx, func(tx *Tx) error {
		err := tx.QueryRow(`SELECT id FROM store_mark`).Scan(&k.id)
		if errors.Is(err, ErrNotFound) {
			err = s.firstMark(tx, o)
		}
		if err != nil {
			return err
		}
		var seq int64
		if err := tx.QueryRow(`SELECT id, seq FROM store_mark`).Scan(&k.id, &seq); err != nil {
			return err
		}
		k.seq = uint64(seq)
		return nil
	})
	if err != nil || k.path == "" {
		return err
	}
	have, err := readMark(k.path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && (k.seq == 0 || s.Shared() && !o.AcceptRollback):
		// A new database, one from before there were marks, or a gateway that joins others.
	case errors.Is(err, fs.ErrNotExist) && !o.NeedMark && !o.AcceptRollback:
		// Nobody asks.
	case errors.Is(err, fs.ErrNotExist) && !o.AcceptRollback:
		return fmt.Errorf("%w: it was in use, and without %s nobody can tell whether it is the newest copy", ErrNoMark, k.path)
	case err == nil && have.id == k.id && have.seq <= k.seq:
		k.written = have.seq
	case !o.AcceptRollback && errors.Is(err, errMark):
		return fmt.Errorf("%w: %s is damaged, so that nobody can tell whether the database is", ErrRolledBack, k.path)
	case !o.AcceptRollback && err != nil:
		return fmt.Errorf("store: high-water mark: %w", err)
	case !o.AcceptRollback && have.id != k.id:
		return fmt.Errorf("%w: %s is the mark of another database", ErrRolledBack, k.path)
	case !o.AcceptRollback:
		return fmt.Errorf("%w: it lacks the newest %d changes that %s knows of", ErrRolledBack, have.seq-k.seq, k.path)
	default:
		k.rolledBack, k.lost = true, unknownLoss
		if err == nil && have.id == k.id {
			k.lost = have.seq - k.seq
		}
		k.seq = max(k.seq, have.seq)
		if s.Shared() {
			k.lost = max(k.lost, unknownLoss)
			k.seq += unknownLoss // above the others' marks
		}
		o.Log.WarnContext(ctx, "the database is older than its high-water mark, and was accepted", "changes_lost", k.lost)
		return nil
	}
	k.keep()
	if err != nil && o.NeedMark { // the first: without it the next start would be refused
		return k.write()
	}
	k.tryWrite()
	return nil
}

// firstMark gives a new database its name. One that needs a mark has it in the file
// before: a start that ends in between goes on with that name.
func (s *Store) firstMark(tx *Tx, o Options) error {
	b := make([]byte, markIDBytes)
	rand.Read(b)
	id := hex.EncodeToString(b)
	if path := s.mark.path; path != "" && o.NeedMark && !s.Shared() {
		switch have, err := readMark(path); {
		case err == nil && have.seq == 0:
			id = have.id
		case errors.Is(err, fs.ErrNotExist):
			err := durable.Replace(path, mark{id: id}.encode())
			if isDiskError(err) {
				return fmt.Errorf("%w: high-water mark: %w", ErrFull, err)
			}
			if err != nil {
				return fmt.Errorf("store: high-water mark: %w", err)
			}
		}
	}
	_, err := tx.Exec(`INSERT INTO store_mark (one, id, seq) VALUES (1, ?, 0) ON CONFLICT (one) DO NOTHING`, id)
	return err
}

// keep makes the file ours: what the database holds is not older.
func (k *marker) keep() {
	k.mu.Lock()
	k.kept = true
	k.mu.Unlock()
}

func readMark(path string) (mark, error) {
	f, err := os.Open(path)
	if err != nil {
		return mark{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxMark+1))
	if err != nil {
		return mark{}, err
	}
	return decodeMark(b)
}

// RolledBack says whether the database was accepted although it is older than
// its mark, and how many changes it lost at the most. Until [Store.Recovered]
// the mark stays as it was.
func (s *Store) RolledBack() (lost uint64, yes bool) {
	s.mark.mu.Lock()
	defer s.mark.mu.Unlock()
	return s.mark.lost, s.mark.rolledBack && !s.mark.kept
}

// Recovered says that nothing which the lost changes gave out can be given out
// again: the database counts on from its mark.
func (s *Store) Recovered(ctx context.Context) error {
	k := &s.mark
	k.mu.Lock()
	k.seq++
	seq := k.seq
	k.mu.Unlock()
	err := s.Update(ctx, func(tx *Tx) error {
		_, err := tx.Exec(`UPDATE store_mark SET seq = ? WHERE seq < ?`, int64(seq), int64(seq))
		return err
	})
	if err != nil {
		return err
	}
	k.keep()
	return k.write()
}

// count adds one to the database's count of changes, in the transaction of w,
// and returns it; 0 while the database is not known to be the newest: it must
// not come up with its mark by being opened.
func (k *marker) count(w *conn) (uint64, error) {
	k.mu.Lock()
	kept := k.kept
	k.mu.Unlock()
	if !kept {
		return 0, nil
	}
	tx := &Tx{ctx: background, c: w, write: true}
	defer tx.end()
	var seq int64
	err := tx.QueryRow(`UPDATE store_mark SET seq = seq + 1 RETURNING seq`).Scan(&seq)
	if err == nil && (seq < 0 || seq == math.MaxInt64) {
		err = errors.New("store: internal error: the count of changes is used up")
	}
	if err != nil {
		return 0, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if uint64(seq) <= k.seq { // what was committed is not there any more
		return 0, k.fallLocked(uint64(seq) - 1)
	}
	return uint64(seq), nil
}

// fallLocked notes that the database went back to a count under our feet.
func (k *marker) fallLocked(to uint64) error {
	if !k.fell {
		k.fell = true
		k.log.Error("the database went back to an older state while the gateway ran", "changes_lost", k.seq-to)
		close(k.behind)
	}
	return fmt.Errorf("%w: it lacks the newest %d changes that were on it", ErrRolledBack, k.seq-to)
}

// Behind is closed when the database turned out to be older than it was a moment
// ago. Nothing is written from then on: Updates fail with [ErrRolledBack], and so
// does the next Open.
func (s *Store) Behind() <-chan struct{} { return s.mark.behind }

// watchMark has the mark follow what other gateways commit, until the store is
// closed.
func (s *Store) watchMark() {
	for {
		wake := s.db.wakeups()
		if err := s.lookAtMark(background); err != nil && !errors.Is(err, ErrRolledBack) && !errors.Is(err, ErrClosed) {
			s.mark.log.Debug("the count of changes is not read", "err", err) // whoever works says so louder
		}
		select {
		case <-wake:
		case <-s.closed:
			return
		}
		rest := time.NewTimer(markEvery)
		select {
		case <-rest.C:
		case <-s.closed:
			rest.Stop()
			return
		}
	}
}

// lookAtMark compares the database's count with what was seen.
func (s *Store) lookAtMark(ctx context.Context) error {
	k := &s.mark
	k.mu.Lock()
	seen, kept := k.seq, k.kept
	k.mu.Unlock()
	if !kept {
		return nil // it is older, and that is known
	}
	var seq int64
	if err := s.View(ctx, func(tx *Tx) error { return tx.QueryRow(`SELECT seq FROM store_mark`).Scan(&seq) }); err != nil {
		return err
	}
	if uint64(seq) < seen {
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.fallLocked(uint64(seq))
	}
	k.committed(uint64(seq))
	return nil
}

// committed has the mark follow a commit, some time soon.
func (k *marker) committed(seq uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.seq = max(k.seq, seq)
	if k.path == "" || k.timer != nil || !k.kept || k.closed || k.seq == k.written {
		return
	}
	k.timer = time.AfterFunc(markEvery, func() {
		k.mu.Lock()
		k.timer = nil
		k.mu.Unlock()
		k.tryWrite()
	})
}

// tryWrite writes the mark; a disk that takes nothing keeps the old one, which is
// only lower.
func (k *marker) tryWrite() {
	err := k.write()
	if err == nil {
		return
	}
	k.mu.Lock()
	n := k.line.Event(time.Now())
	k.mu.Unlock()
	if n > 0 {
		k.log.Warn("high-water mark not written: an older copy put back may pass for the newest; it is tried again with the next change", "n", n,
			"path", k.path, "err", err)
	}
}

// write brings the file up to date.
func (k *marker) write() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.path == "" || !k.kept || k.seq == k.written && k.seq != 0 {
		return nil
	}
	err := durable.Replace(k.path, mark{id: k.id, seq: k.seq}.encode())
	if isDiskError(err) {
		return fmt.Errorf("%w: high-water mark: %w", ErrFull, err)
	}
	if err != nil {
		return fmt.Errorf("store: high-water mark: %w", err)
	}
	k.written = k.seq
	return nil
}

// close writes the mark for the last time, when the store is closed.
func (k *marker) close() {
	k.mu.Lock()
	k.closed = true
	if k.timer != nil {
		k.timer.Stop()
		k.timer = nil
	}
	k.mu.Unlock()
	k.tryWrite()
}
