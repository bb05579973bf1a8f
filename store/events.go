package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Bounds of the event log.
const (
	followBatch      = 256     // events given to a follower at once
	followBatchBytes = 1 << 20 // the same in bytes of data, about
	// A cursor goes to disk this many events or this long after it moved: a
	// commit for each event would double the writes.
	cursorEvents = 1024
	cursorDelay  = time.Second
	// Events that all cursors passed stay for whoever wants to look back.
	keepEvents = 7 * 24 * time.Hour
	trimEvery  = time.Hour
	trimBatch  = 1024
	// flushTime bounds the last cursor advance after the follower's context ended.
	flushTime = 5 * time.Second
)

// Event is a fact that was written in the transaction that made it true.
type Event struct {
	ID   int64 // increases, never used twice
	At   time.Time
	Kind string
	Key  string // what it is about, for instance a group's name
	Data []byte
}

// Emit appends an event to the log, in this transaction.
func (tx *Tx) Emit(kind, key string, data []byte) error {
	if data == nil {
		data = []byte{}
	}
	_, err := tx.Exec("INSERT INTO store_events (at, kind, key, data) VALUES (?, ?, ?, ?)",
		time.Now().UnixMilli(), kind, key, data)
	if err == nil {
		tx.events++
	}
	return err
}

// followers keeps two Follows from sharing a cursor, and the time of the last
// trimming.
type followers struct {
	mu      sync.Mutex
	active  map[string]bool // guarded by mu
	trimmed time.Time       // guarded by mu
}

func (f *followers) enter(cursor string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.active[cursor] {
		return fmt.Errorf("store: cursor %q is followed already", cursor)
	}
	if f.active == nil {
		f.active = make(map[string]bool)
	}
	f.active[cursor] = true
	return nil
}

func (f *followers) leave(cursor string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.active, cursor)
}

// trimDue says whether the log is to be trimmed now.
func (f *followers) trimDue(now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.trimmed.IsZero() && now.Sub(f.trimmed) < trimEvery {
		return false
	}
	f.trimmed = now
	return true
}

// Follow gives fn the events of the log in order, in batches, from where the
// cursor of that name stands, and moves the cursor when fn returns nil. It
// waits for further events until ctx ends, then returns ctx.Err(), or until fn
// fails, then returns fn's error and the cursor stays before that batch.
//
// After a crash some events that fn saw come again, never fewer. A new cursor
// starts at the oldest event kept: events are kept until every known cursor has
// passed them, and for a week.
func (s *Store) Follow(ctx context.Context, cursor string, fn func(context.Context, []Event) error) error {
	if err := s.follow.enter(cursor); err != nil {
		return err
	}
	defer s.follow.leave(cursor)
	at, err := s.registerCursor(ctx, cursor)
	if err != nil {
		return err
	}
	f := follower{s: s, cursor: cursor, at: at, saved: at}
	err = f.run(ctx, fn)
	if f.at != f.saved {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
		defer cancel()
		if err2 := f.save(ctx); err2 != nil && !errors.Is(err2, ErrClosed) {
			err = errors.Join(err, fmt.Errorf("store: advance cursor %q: %w", cursor, err2))
		}
	}
	return err
}

type follower struct {
	s         *Store
	cursor    string
	at, saved int64     // last event consumed, and on disk
	count     int       // consumed since saved
	since     time.Time // of the first consumed since saved
}

func (f *follower) run(ctx context.Context, fn func(context.Context, []Event) error) error {
	for {
		wake := f.s.db.wakeups() // before reading, so that no commit is missed
		events, err := f.s.eventsAfter(ctx, f.at)
		if err != nil {
			return err
		}
		if len(events) == 0 {
			if err := f.wait(ctx, wake); err != nil {
				return err
			}
			continue
		}
		if err := fn(ctx, events); err != nil {
			return err
		}
		if f.at == f.saved {
			f.since = time.Now()
		}
		f.at = events[len(events)-1].ID
		f.count += len(events)
		if f.count >= cursorEvents || time.Since(f.since) >= cursorDelay {
			if err := f.trySave(ctx); err != nil {
				return err
			}
		}
	}
}

// wait waits for further events; meanwhile the cursor goes to disk.
func (f *follower) wait(ctx context.Context, wake <-chan struct{}) error {
	var due <-chan time.Time
	if f.at != f.saved {
		t := time.NewTimer(time.Until(f.since.Add(cursorDelay)))
		defer t.Stop()
		due = t.C
	}
	select {
	case <-wake:
		return nil
	case <-due:
		return f.trySave(ctx)
	case <-ctx.Done():
		return ctx.Err()
	case <-f.s.closed:
		return ErrClosed
	}
}

// trySave saves the cursor, later when the disk is full: events are then still
// delivered, and would only come again after a crash.
func (f *follower) trySave(ctx context.Context) error {
	err := f.save(ctx)
	if errors.Is(err, ErrFull) {
		f.since, f.count = time.Now(), 0
		return nil
	}
	return err
}

func (f *follower) save(ctx context.Context) error {
	now := time.Now()
	trim := f.s.follow.trimDue(now)
	more := false
	err := f.s.Update(ctx, func(tx *Tx) error {
		if _, err := tx.Exec(`INSERT INTO store_cursors (name, id, seen) VALUES (?, ?, ?)
			ON CONFLICT (name) DO UPDATE SET id = excluded.id, seen = excluded.seen WHERE excluded.id > store_cursors.id`,
			f.cursor, f.at, now.UnixMilli()); err != nil {
			return err
		}
		if !trim {
			return nil
		}
		if err := dropDead(tx, now); err != nil {
			return err
		}
		n, err := trimLog(tx, now.Add(-keepEvents))
		more = n == trimBatch
		return err
	})
	if err != nil {
		return err
	}
	f.saved, f.count = f.at, 0
	if more {
		f.s.follow.mu.Lock()
		f.s.follow.trimmed = time.Time{} // go on at the next save
		f.s.follow.mu.Unlock()
	}
	return nil
}

// trimLog deletes events from before that all cursors passed, a bounded number.
func trimLog(tx *Tx, before time.Time) (int64, error) {
	return tx.Exec(`DELETE FROM store_events WHERE id IN (
		SELECT id FROM store_events
		WHERE id <= (SELECT MIN(id) FROM store_cursors) AND at < ?
		ORDER BY id LIMIT ?)`, before.UnixMilli(), trimBatch)
}

func (s *Store) registerCursor(ctx context.Context, cursor string) (at int64, err error) {
	const query = "SELECT id FROM store_cursors WHERE name = ?"
	err = s.View(ctx, func(tx *Tx) error { return tx.QueryRow(query, cursor).Scan(&at) })
	if !errors.Is(err, ErrNotFound) {
		return at, err
	}
	return 0, s.Update(ctx, func(tx *Tx) error {
		_, err := tx.Exec(`INSERT INTO store_cursors (name, id, seen) VALUES (?, 0, ?)
			ON CONFLICT (name) DO NOTHING`, cursor, time.Now().UnixMilli())
		return err
	})
}

// DropCursor forgets a cursor that nobody will follow again: until then it
// keeps the log from being trimmed.
func (s *Store) DropCursor(ctx context.Context, cursor string) error {
	if err := s.follow.enter(cursor); err != nil {
		return err
	}
	defer s.follow.leave(cursor)
	return s.Update(ctx, func(tx *Tx) error {
		_, err := tx.Exec("DELETE FROM store_cursors WHERE name = ?", cursor)
		return err
	})
}

// eventsAfter reads the next batch.
func (s *Store) eventsAfter(ctx context.Context, id int64) ([]Event, error) {
	var events []Event
	err := s.View(ctx, func(tx *Tx) error {
		rows, err := tx.Query("SELECT id, at, kind, key, data FROM store_events WHERE id > ? ORDER BY id LIMIT ?", id, followBatch)
		if err != nil {
			return err
		}
		defer rows.Close()
		size := 0
		for size < followBatchBytes && rows.Next() {
			var e Event
			var at int64
			if err := rows.Scan(&e.ID, &at, &e.Kind, &e.Key, &e.Data); err != nil {
				return err
			}
			e.At = time.UnixMilli(at)
			events = append(events, e)
			size += len(e.Data)
		}
		return rows.Err()
	})
	return events, err
}
