// Package journal keeps small records over restarts and crashes: a snapshot and
// an append-only log behind it in one folder, sealed with AES-256-GCM because
// the records hold keys.
//
// Its owners keep the state; the journal keeps what they append, writes many
// records with one synchronisation of the disk, and asks the owners for
// everything they have when the log has grown (see [Options.Dump]), while
// records go on being appended. Reading applies the snapshot and what was
// appended since, so a record must say "this is so now": applied twice, or after
// a newer one that came from the snapshot, it must do no harm.
//
// A [Journal] also counts the starts of its folder: [Journal.Boot] is a number
// that no start before had, on disk before Open returns (docs/protocol.md, Section
// 10). Who numbers messages under a key that is restored begins them with it.
//
// What is where:
//
//	journal.go   Open, Append, Commit, Run, Close
//	boot.go      the number of the start
//	format.go    files: header, sealed frames, records
//	read.go      reading all of it
//	compact.go   a new snapshot, while the log goes on
//	fs.go        the few operations on files that this needs
package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed4911071e/groupgate/rarely"
)

var (
	// ErrClosed is the error of a journal that was closed.
	ErrClosed = errors.New("journal: closed")
	// ErrStarts says that the number of the start cannot grow any more.
	ErrStarts = errors.New("journal: the number of starts is used up")
)

// KeySize is the length of the sealing key, in bytes.
const KeySize = 32

// Options are what a [Journal] is made of.
type Options struct {
	// Dir is the folder, created 0700; nobody else may use it at the same time.
	Dir string
	// Key seals the records; the keys of files are derived from it.
	Key []byte
	// Dump gives every record of the present state to emit; it is called beside
	// Append, in a goroutine of Run. What is in a record that was appended before
	// must be in the state. It returns false when it could not give all, because what
	// is kept is given up, or the process ends: then what was written before stays.
	// nil: the log is never compacted.
	Dump func(emit func(kind byte, rec []byte)) (whole bool)
	// Log gets what matters to an operator; nil discards it.
	Log *slog.Logger
	// Registerer gets the metrics groupgate_journal_…. nil means a private one.
	Registerer prometheus.Registerer

	files files            // nil: those of the system
	now   func() time.Time // nil: time.Now
}

// Found is what Open read.
type Found struct {
	// Records is how many there were.
	Records int
	// Stale says why nothing was read although there was something; "" where it
	// was, or where there was nothing.
	Stale string
	// Torn is how many bytes at the ends of logs were given up: what a crash cut.
	Torn int64
}

// Journal is an open folder.
type Journal struct {
	o    Options
	fs   files
	log  *slog.Logger
	met  *metrics
	boot uint32
	wake chan struct{} // something is to be written now

	mu      sync.Mutex
	buf     []byte       // guarded by mu: records that are not written yet
	waiters []chan error // guarded by mu: who waits for them
	closed  bool         // guarded by mu
	failed  error        // guarded by mu: something is not on disk; nil: all is well
	mending bool         // guarded by mu: it failed, and a snapshot is under way that makes that good

	one sync.Mutex // held while a snapshot is made; before write

	write   sync.Mutex  // held while a file is written; before mu
	out     *writer     // guarded by write; nil after a failure
	gen     uint64      // guarded by write: of the newest log
	snapped uint64      // guarded by write: of the newest snapshot of this start
	mark    bootMark    // guarded by write: what the file "boot" says
	place   int64       // guarded by write: where the next mark goes in it
	spare   []byte      // guarded by write
	base    int64       // guarded by write: bytes of the newest snapshot
	owing   bool        // guarded by write: a snapshot failed, and is tried again
	line    rarely.Line // guarded by one: snapshots that failed
}

// Open reads the folder, gives each record to apply in the order of writing, and
// begins a new log. An error of apply is that of Open: records are authentic, so
// it means that another program wrote them. Who called Open calls Close.
func Open(o Options, apply func(kind byte, rec []byte) error) (*Journal, Found, error) {
	if len(o.Key) != KeySize {
		return nil, Found{}, fmt.Errorf("journal: a key of %d bytes", len(o.Key))
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.files == nil {
		o.files = system{o.Dir}
	}
	if o.now == nil {
		o.now = time.Now
	}
	j := &Journal{o: o, fs: o.files, log: o.Log, met: newMetrics(o.Registerer), wake: make(chan struct{}, 1)}
	if err := j.fs.prepare(); err != nil {
		j.met.failed.Set(1)
		return nil, Found{}, fmt.Errorf("journal: %w", err)
	}
	found, err := j.begin(apply)
	if err != nil {
		j.met.failed.Set(1)
		return nil, found, err
	}
	return j, found, nil
}

// begin reads, takes a number for this start, and begins the first log of it.
func (j *Journal) begin(apply func(byte, []byte) error) (Found, error) {
	all, err := j.list()
	if err != nil {
		return Found{}, err
	}
	newest := all.newest()
	boot, stale, err := j.start(newest)
	if err != nil {
		return Found{}, err
	}
	j.boot = boot
	found := Found{Stale: stale}
	if stale == "" {
		if found, err = j.read(all, apply); err != nil {
			return found, err
		}
	} else if newest == 0 {
		found.Stale = "" // a new folder
	} else if err := j.removeBelow(newest + 1); err != nil {
		return found, err
	}
	j.gen = newest + 1
	if j.out, err = j.create(logName(j.gen), kindLog, j.gen); err != nil {
		j.fail(err) // what was read is there; the rest as with a disk that fills later
	} else {
		j.met.failed.Set(0)
	}
	return found, nil
}

// Boot is the number of this start, of 24 bits: greater than those of all before.
func (j *Journal) Boot() uint32 { return j.boot }

// Append has a record written soon. kind says whose it is. Append waits for
// nothing; rec is copied.
func (j *Journal) Append(kind byte, rec []byte) {
	if len(rec) > MaxRecord {
		panic("journal: internal error: record too long")
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed || j.failed != nil && !j.mending {
		j.met.lost.Inc()
		return
	}
	first := len(j.buf) == 0
	j.buf = appendRecord(j.buf, kind, rec)
	if first || len(j.buf) >= flushAt {
		j.signal()
	}
}

// Commit returns when everything that was appended is on disk.
func (j *Journal) Commit(ctx context.Context) error {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return ErrClosed
	}
	if j.failed != nil {
		err := j.failed
		j.mu.Unlock()
		return err
	}
	done := make(chan error, 1)
	j.waiters = append(j.waiters, done)
	j.signal()
	j.mu.Unlock()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (j *Journal) signal() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// Run writes until ctx ends. What is appended after that, Close writes.
func (j *Journal) Run(ctx context.Context) error {
	var compaction sync.WaitGroup
	defer compaction.Wait()
	compact := func() {
		if j.o.Dump != nil && j.one.TryLock() {
			compaction.Go(func() {
				defer j.one.Unlock()
				j.compactLocked()
			})
		}
	}
	compact() // what was read is in files of an earlier start: one snapshot of it
	retry := time.NewTicker(retryEvery)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-retry.C:
			if j.behind() {
				compact()
			}
			continue
		case <-j.wake:
		}
		if !j.urgent() {
			// Nobody waits: what others append meanwhile goes with it.
			t := time.NewTimer(commitEvery)
			select {
			case <-t.C:
			case <-ctx.Done():
			case <-j.wake: // somebody waits now, or there is much
			}
			t.Stop()
		}
		j.flush()
		j.write.Lock()
		large := j.out != nil && !j.owing && j.out.size > max(compactAt, 2*j.base)
		j.write.Unlock()
		if large {
			compact()
		}
	}
}

func (j *Journal) urgent() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.waiters) > 0 || len(j.buf) >= flushAt
}

// behind says that what is on disk lacks something that only a snapshot brings.
func (j *Journal) behind() bool {
	j.write.Lock()
	defer j.write.Unlock()
	return j.out == nil || j.owing
}

// flush writes what was appended, and tells who waits for it.
func (j *Journal) flush() {
	j.write.Lock()
	defer j.write.Unlock()
	j.flushLocked()
}

// flushLocked is flush with the right to write.
func (j *Journal) flushLocked() {
	j.mu.Lock()
	buf, waiters := j.buf, j.waiters
	j.buf, j.waiters = j.spare[:0], nil
	j.mu.Unlock()
	j.spare = buf
	if cap(buf) > spareMost {
		j.spare = nil
	}
	err := j.store(buf)
	if err != nil {
		j.fail(err)
	}
	for _, w := range waiters {
		w <- err
	}
}

// store writes records and synchronises the disk.
func (j *Journal) store(records []byte) error {
	if j.out == nil {
		j.mu.Lock()
		defer j.mu.Unlock()
		if j.failed == nil {
			return ErrClosed
		}
		return j.failed
	}
	if len(records) == 0 {
		return nil
	}
	began := j.o.now()
	if err := j.out.records(records); err != nil {
		return err
	}
	if err := j.out.sync(); err != nil {
		return err
	}
	j.met.commits.Observe(j.o.now().Sub(began).Seconds())
	j.met.bytes.Set(float64(j.base + j.out.size))
	return nil
}

// fail gives the log up: what of it is on disk nobody knows. A snapshot of
// everything makes it good, as soon as the disk takes one.
func (j *Journal) fail(err error) {
	if j.out != nil {
		_ = j.out.f.Close() // nothing more is asked of it
		j.out = nil
	}
	j.mu.Lock()
	first := j.failed == nil
	j.failed = fmt.Errorf("journal: %w", err)
	j.mending = false
	j.buf = j.buf[:0]
	waiters := j.waiters
	j.waiters = nil
	err = j.failed
	j.mu.Unlock()
	for _, w := range waiters {
		w <- err
	}
	j.met.failed.Set(1)
	if first {
		j.log.Error("sessions cannot be written to disk: what begins from now on would not survive a restart; is the disk full?",
			"hint", "free space on the disk of data_dir; nothing has to be started anew", "err", err)
	}
}

// Close writes what was appended and closes the files. Run is over by then.
func (j *Journal) Close() error {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return nil
	}
	j.closed = true
	j.mu.Unlock()
	j.write.Lock()
	defer j.write.Unlock()
	j.flushLocked()
	if j.out == nil {
		return nil
	}
	err := j.out.f.Close()
	j.out = nil
	return err
}
