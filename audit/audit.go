// Package audit is the audit log (draft-ietf-ace-key-groupcomm-oscore-21,
// Section 15.1): what happened to groups and members, which requests were
// refused, and what operators did.
//
// Start at [New]. Changes reach it through the event log, in which they stand
// since the transaction that made them, so none is lost. Refusals
// ([Log.Refused]) are too many and too cheap to cost a transaction each: they are
// collected, limited in rate, and written together. No record holds a key, a
// token or a rekey message: none of them is ever given to this package.
//
// Addresses, identities, node names and Sender IDs are personal data, or lead to
// it. [Log.Records] replaces them by pseudonyms under a key of the installation,
// so that lines can be correlated, unless the full records are asked for, which
// is itself recorded.
package audit

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/rarely"
	"github.com/seed4911071e/groupgate/store"
)

// Config says what is kept.
type Config struct {
	Retention  time.Duration // 0: the default
	MaxRecords int           // 0: the default; refusals take a quarter of it at most
}

// Defaults, and our own choices.
const (
	DefaultRetention  = 2160 * time.Hour
	DefaultMaxRecords = 1_000_000

	refusedShare = 4 // of MaxRecords, for refusals

	maxPending = 1024        // refusals and notes that wait to be written
	flushEvery = time.Second // how long they wait
	trimEvery  = time.Minute
	trimBatch  = 1000
	maxText    = 200 // bytes of a reason or detail
	keySize    = 32  // of pseudonyms
)

// Kinds of records besides those of events.
const (
	KindRefused    = "request.refused"
	KindSuppressed = "request.suppressed" // Count refusals were not recorded one by one
	KindRevoked    = "token.revoked"
	KindFullRead   = "audit.full-read"
)

// Log is the room. Its methods may be used from many goroutines.
type Log struct {
	cfg Config
	st  *store.Store
	log *slog.Logger
	met *metrics
	key []byte // of pseudonyms; set by Setup

	wake chan struct{}

	mu         sync.Mutex
	pending    []Record           // guarded by mu
	suppressed int                // guarded by mu
	rate       bucket             // guarded by mu: of refusals to all
	peers      map[string]*bucket // guarded by mu: by address
}

// Deps are the collaborators of a Log.
type Deps struct {
	Store      *store.Store
	Log        *slog.Logger          // nil: silent
	Registerer prometheus.Registerer // nil: a private one
}

// New makes the audit log; it does no I/O.
func New(cfg Config, d Deps) *Log {
	if cfg.Retention <= 0 {
		cfg.Retention = DefaultRetention
	}
	if cfg.MaxRecords <= 0 {
		cfg.MaxRecords = DefaultMaxRecords
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	return &Log{
		cfg: cfg, st: d.Store, log: d.Log, met: newMetrics(d.Registerer),
		wake: make(chan struct{}, 1), peers: map[string]*bucket{},
	}
}

// Setup makes the key of the pseudonyms at the first start, and reads it.
func (l *Log) Setup(ctx context.Context) error {
	fresh := make([]byte, keySize)
	rand.Read(fresh)
	sealed := l.st.Seal(keyContext, fresh)
	err := l.st.Update(ctx, func(tx *store.Tx) error {
		_, err := tx.Exec(`INSERT INTO audit_state (id, next, event, pseudonyms) VALUES (1, 1, 0, ?) ON CONFLICT (id) DO NOTHING`, sealed)
		return err
	})
	if err == nil {
		err = l.st.View(ctx, func(tx *store.Tx) error {
			return tx.QueryRow(`SELECT pseudonyms FROM audit_state WHERE id = 1`).Scan(&sealed)
		})
	}
	if err == nil {
		l.key, err = l.st.Unseal(keyContext, sealed)
	}
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return nil
}

const keyContext = "audit_state/pseudonyms"

// Run writes down what happens until ctx ends.
func (l *Log) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { l.follow(ctx) })
	defer wg.Wait()
	flush, trim := time.NewTicker(flushEvery), time.NewTicker(trimEvery)
	defer flush.Stop()
	defer trim.Stop()
	var late rarely.Line // the log may be on the disk that is full
	for {
		var err error
		select {
		case <-flush.C:
			err = l.flush(ctx)
		case <-l.wake:
			err = l.flush(ctx)
		case <-trim.C:
			err = l.trim(ctx, time.Now())
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastFlush)
			defer cancel()
			return l.flush(last)
		}
		if err != nil && ctx.Err() == nil {
			if n := late.Event(time.Now()); n > 0 {
				l.log.WarnContext(ctx, "audit records are not written yet", "n", n, "err", err)
			}
		}
	}
}

const lastFlush = 5 * time.Second

// follow writes the events of the rooms down.
func (l *Log) follow(ctx context.Context) {
	for delay := time.Second; ; delay = min(2*delay, time.Minute) {
		err := l.st.Follow(ctx, "audit", func(ctx context.Context, events []store.Event) error {
			if err := l.writeEvents(ctx, events); err != nil {
				return err
			}
			delay = time.Second
			return nil
		})
		if ctx.Err() != nil || errors.Is(err, store.ErrClosed) {
			return
		}
		l.log.ErrorContext(ctx, "the audit log does not follow the events", "err", err, "retry_in", delay)
		t := time.NewTimer(delay)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// writeEvents writes a record for each event that it did not see before.
func (l *Log) writeEvents(ctx context.Context, events []store.Event) error {
	var list []Record
	for _, e := range events {
		r, ok, err := recordOf(e)
		if err != nil {
			// Written by this program: nobody can repair it.
			l.log.ErrorContext(ctx, "unreadable event", "id", e.ID, "kind", e.Kind, "err", err)
		}
		if ok {
			list = append(list, r)
		}
	}
	if len(list) == 0 {
		return nil
	}
	return l.write(ctx, list, list[len(list)-1].event)
}

// recordOf makes the record of an event; ok is false for events that are none
// of this log's.
func recordOf(e store.Event) (r Record, ok bool, err error) {
	switch e.Kind {
	case groupcomm.EventRekeyed, groupcomm.EventJoined, groupcomm.EventLeft, groupcomm.EventEvicted, groupcomm.EventNewCred,
		groupcomm.EventSenderID, groupcomm.EventCreated, groupcomm.EventDeleted, groupcomm.EventConfigured, groupcomm.EventState, groupcomm.EventTokenExpired,
		groupcomm.EventUnreachable, groupcomm.EventDelivered:
	default:
		return r, false, nil
	}
	ev, err := groupcomm.DecodeEvent(e.Data)
	if err != nil {
		return r, false, err
	}
	r = fromEvent(e.Kind, *ev)
	r.At, r.event = e.At, e.ID
	if e.Kind == groupcomm.EventTokenExpired {
		r.Kind = KindRevoked
		return r, ev.Reason != "", nil // an expiry by the clock is nobody's doing
	}
	return r, true, nil
}

// Note records what changed nothing, for instance a rekey that failed. It does
// not wait for the disk.
func (l *Log) Note(kind string, e groupcomm.Event) {
	r := fromEvent(kind, e)
	r.At = time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.push(r)
}

// Operator records what an operator did; it is on disk when it returns.
func (l *Log) Operator(ctx context.Context, kind string, count int, detail string) error {
	r := Record{At: time.Now(), Kind: kind, Count: count, Reason: clip(detail)}
	if err := l.write(ctx, []Record{r}, 0); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return nil
}
