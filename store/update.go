package store

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Bounds of one commit. The first of a batch waits for the last.
const (
	maxBatch      = 256
	maxBatchBytes = 4 << 20
	maxBatchTime  = 20 * time.Millisecond
)

// Update runs fn in a transaction and returns once it is on disk.
//
// fn runs in the caller's goroutine, one fn of the store at a time, and may run
// again when the transaction that it shared with others was lost through one of
// them. An error of fn, or a panic, undoes what fn did and nothing else; the
// error is returned as it is.
//
// When ctx ends before fn began, fn is not run and ctx.Err() is returned. Once
// fn began the outcome is waited for, whatever becomes of ctx: what Update
// returns is what happened. One doubt remains: an [ErrFull] whose commit had
// reached the disk's own cache may, after a power cut at that moment, turn out
// to be committed.
func (s *Store) Update(ctx context.Context, fn func(*Tx) error) error {
	if nested(ctx) {
		return errNested
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	u := &update{ctx: ctx, fn: fn, step: make(chan step, 1), back: make(chan struct{}, 1)}
	start, err := s.queue.push(u)
	if err != nil {
		return err
	}
	if start {
		go s.commit()
	}
	ended := ctx.Done()
	for {
		select {
		case st := <-u.step:
			switch st {
			case stepRun:
				u.run()
			case stepHooks:
				u.runHooks()
			case stepDone:
				return u.err
			}
		case <-ended:
			if u.claimed.CompareAndSwap(false, true) {
				s.metrics.cancelled.Inc()
				return ctx.Err()
			}
			ended = nil // it has begun
		}
	}
}

// update is one caller of Update. The committer tells the caller by step what
// to do next and waits for back: so fn's panics, and its end by
// runtime.Goexit, happen where they belong and disturb nobody else.
type update struct {
	ctx     context.Context
	fn      func(*Tx) error
	claimed atomic.Bool // by the committer to run it, or by the caller to give up
	step    chan step
	back    chan struct{}

	// Passed to and fro with step and back.
	tx   *Tx
	err  error
	dead bool // fn did not return: its caller is gone

	tries int // transactions of it that were lost through no fault of its own
}

// maxTries bounds how often an update runs again because the database gave its
// transaction up (a conflict, a lost connection) before the commit.
const maxTries = 3

// again says whether an update whose transaction was lost may run once more.
func (u *update) again(err error) bool {
	c := classOf(err)
	if c != classRetry && c != classAway || u.dead || u.tries+1 >= maxTries {
		return false
	}
	u.tries++
	return true
}

type step uint8

const (
	stepRun step = iota
	stepHooks
	stepDone
)

// run is the caller's side of stepRun.
func (u *update) run() {
	returned := false
	defer func() {
		u.tx.end()
		u.dead = !returned
		u.back <- struct{}{}
	}()
	u.err = u.fn(u.tx)
	returned = true
}

// runHooks is the caller's side of stepHooks.
func (u *update) runHooks() {
	defer func() { u.back <- struct{}{} }()
	for _, f := range u.tx.hooks {
		f()
	}
}

// queue holds the updates that wait for the committer.
type queue struct {
	mu      sync.Mutex
	waiting []*update // guarded by mu
	running bool      // guarded by mu: a committer runs
	closed  bool      // guarded by mu
	wg      sync.WaitGroup
}

// push appends u and says whether the caller has to start the committer.
func (q *queue) push(u *update) (start bool, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false, ErrClosed
	}
	q.waiting = append(q.waiting, u)
	if q.running {
		return false, nil
	}
	q.running = true
	q.wg.Add(1)
	return true, nil
}

// pop takes the first update that still wants to run, nil when there is none.
func (q *queue) pop() *update {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.waiting) > 0 {
		u := q.waiting[0]
		q.waiting[0] = nil
		q.waiting = q.waiting[1:]
		if u.claimed.CompareAndSwap(false, true) {
			return u
		}
	}
	q.waiting = nil
	return nil
}

// idle ends the committer when nothing waits.
func (q *queue) idle() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) > 0 {
		return false
	}
	q.running = false
	return true
}

func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.wg.Wait()
}

// commit is the committer: it lives while updates wait and owns the writing
// connection.
func (s *Store) commit() {
	defer s.queue.wg.Done()
	for {
		s.commitBatch(s.queue.pop, maxBatch)
		if s.queue.idle() {
			return
		}
	}
}

// batch is one transaction and the updates in it.
type batch struct {
	s       *Store
	w       *conn // nil: no transaction is open
	members []*update
	bytes   int
	events  int
	seq     uint64 // the database's count of changes with this one; 0: it changes nothing yet
	down    error  // why no transaction could be had
}

// commitBatch runs the updates that next gives and commits them together. down
// says why no transaction could be had at all.
func (s *Store) commitBatch(next func() *update, limit int) (down error) {
	b := &batch{s: s}
	began := time.Now()
	yielded := false
	for len(b.members) < limit && b.bytes < maxBatchBytes {
		u := next()
		if u == nil {
			// Callers that the last commit released are about to come again:
			// let them, and they share this commit.
			if yielded || len(b.members) == 0 {
				break
			}
			yielded = true
			runtime.Gosched()
			continue
		}
		if lost := b.run(u); lost {
			if len(b.members) == 0 {
				return b.down
			}
			s.again(b.members)
			return nil
		}
		if time.Since(began) > maxBatchTime {
			break
		}
	}
	b.finish()
	return nil
}

// again runs each of us alone: the transaction that they shared is lost, and
// the fault may be another's.
func (s *Store) again(us []*update) {
	var down error
	for _, u := range us {
		if down != nil {
			s.reply(u, down) // each would wait as long again
			continue
		}
		down = s.commitBatch(func() *update {
			next := u
			u = nil
			return next
		}, 1)
	}
}

// run has u's function run in b. lost says that the whole transaction is gone:
// u has its answer, the members have to run again.
func (b *batch) run(u *update) (lost bool) {
	first := b.w == nil
	if err := b.enter(first); err != nil {
		if !first {
			return b.lose(u, err, err)
		}
		b.down = err
		b.s.reply(u, err)
		b.abandon()
		// Nobody can write: those who wait would each wait as long again.
		for u := b.s.queue.pop(); u != nil; u = b.s.queue.pop() {
			b.s.reply(u, err)
		}
		return true
	}
	u.tx = &Tx{ctx: u.ctx, c: b.w, write: true}
	u.step <- stepRun
	<-u.back
	err := u.err
	if err == nil {
		err = u.tx.err
	}
	if u.tx.err != nil && classOf(u.tx.err).lost() {
		return b.lose(u, u.tx.err, err)
	}
	if err == nil && !u.dead {
		if err = b.count(u); classOf(err).lost() {
			return b.lose(u, err, err)
		}
	}
	if err == nil && !u.dead {
		if !first {
			if _, err := b.w.exec("RELEASE u"); err != nil {
				return b.lose(u, err, err)
			}
		}
		b.members = append(b.members, u)
		b.bytes += u.tx.bytes
		b.events += u.tx.events
		return false
	}
	err2 := b.leave(first)
	b.s.reply(u, err)
	if err2 != nil {
		b.abandon()
		return true
	}
	return false
}

// count has the first change in b count.
func (b *batch) count(u *update) (err error) {
	if u.tx.wrote && b.seq == 0 {
		b.seq, err = b.s.mark.count(b.w)
	}
	return err
}

// lose gives the transaction up because of err, which met it while u ran. u
// runs again with the members, or has reply as its answer.
func (b *batch) lose(u *update, err, reply error) (lost bool) {
	if u.again(err) {
		b.members = append(b.members, u)
	} else {
		b.s.reply(u, reply)
	}
	b.abandon()
	return true
}

// enter opens the transaction, or a savepoint in it. The first update needs no
// savepoint: if it fails the whole transaction is its own.
func (b *batch) enter(first bool) error {
	if !first {
		_, err := b.w.exec("SAVEPOINT u")
		return err
	}
	w, err := b.s.begin()
	b.w = w
	return err
}

// leave undoes one update.
func (b *batch) leave(first bool) error {
	if first {
		_, err := b.w.exec("ROLLBACK")
		if err == nil {
			b.w = nil
		}
		return err
	}
	if _, err := b.w.exec("ROLLBACK TO u"); err != nil {
		return err
	}
	_, err := b.w.exec("RELEASE u")
	return err
}

// abandon gives the transaction up. The database may have done so already.
func (b *batch) abandon() {
	b.s.metrics.failures.Inc()
	if b.w != nil {
		_, _ = b.w.exec("ROLLBACK")
		b.w = nil
	}
}

// finish commits, answers everybody and has the hooks run.
func (b *batch) finish() {
	if b.w == nil || len(b.members) == 0 {
		if b.w != nil {
			b.abandon()
		}
		return
	}
	m := b.s.metrics
	began := time.Now()
	if err := b.s.db.commit(b.w, b.events > 0); err != nil {
		b.abandon()
		b.failed(err)
		return
	}
	m.seconds.Observe(time.Since(began).Seconds())
	m.commits.Inc()
	m.batch.Observe(float64(len(b.members)))
	if b.seq != 0 {
		b.s.mark.committed(b.seq)
	}
	if b.events > 0 {
		b.s.db.announce()
	}
	// Those without hooks need not wait for those with.
	for _, u := range b.members {
		if len(u.tx.hooks) == 0 {
			b.s.reply(u, nil)
		}
	}
	for _, u := range b.members {
		if len(u.tx.hooks) > 0 {
			u.step <- stepHooks
			<-u.back
			b.s.reply(u, nil)
		}
	}
}

// failed answers the members after a commit that failed, or has them run again.
func (b *batch) failed(err error) {
	c := classOf(err)
	// A failing disk fails all alike, and what may have been committed must not
	// run again. Any other reason, a deferred constraint say, is one member's.
	retry := c != classFull && c != classAway && len(b.members) > 1
	var us []*update
	for _, u := range b.members {
		if c == classRetry && u.again(err) || c != classRetry && retry {
			us = append(us, u)
		} else {
			b.s.reply(u, err)
		}
	}
	b.s.again(us)
}

// reply ends u's Update.
func (s *Store) reply(u *update, err error) {
	if err == nil && !u.dead {
		s.metrics.done.Inc()
	} else {
		s.metrics.failed.Inc()
	}
	if s.refused != nil && (errors.Is(err, ErrFull) || errors.Is(err, ErrAway)) {
		s.refused(err)
	}
	if !u.dead {
		u.err = err
		u.step <- stepDone
	}
}

// begin starts a writing transaction. A connection that a failure left in an
// unknown state is replaced.
func (s *Store) begin() (*conn, error) {
	if s.writer != nil {
		err := s.db.begin(s.writer, true)
		if err == nil || classOf(err) == classLost && s.clean() {
			return s.writer, err
		}
		_ = s.writer.close()
		s.writer = nil
	}
	w, err := s.db.connect(background, true)
	if err != nil {
		return nil, err
	}
	s.writer = w
	return w, s.db.begin(w, true)
}

// clean says whether the writing connection has no transaction open.
func (s *Store) clean() bool {
	_, err := s.writer.exec("ROLLBACK")
	return err != nil
}
