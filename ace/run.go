package ace

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/rarely"
	"github.com/seed4911071e/groupgate/store"
)

// Run ends tokens when they expire, drops what nobody proved, writes down which
// keys were, and follows the lists of revoked tokens. It returns when ctx ends
// and all is written.
func (s *Server) Run(ctx context.Context) error {
	var lists sync.WaitGroup
	defer lists.Wait()
	for i := range s.cfg.Entries {
		if e := &s.cfg.Entries[i]; e.Revocation != nil {
			lists.Go(func() { s.followTRL(ctx, e) })
		}
	}
	if s.hub != nil && s.cfg.AS != nil {
		lists.Go(func() { s.tellTRL(ctx) })
	}
	// A disk that takes nothing is told of, but not every time.
	var late, unmarked rarely.Line
	warn := func(l *rarely.Line, what string, err error) {
		if n := l.Event(time.Now()); n > 0 {
			s.log.WarnContext(ctx, what, "n", n, "err", err)
		}
	}
	mark := func() {
		if err := s.flushTouched(ctx); err != nil && ctx.Err() == nil {
			warn(&unmarked, "proved keys are not marked yet", err)
		}
	}
	flush := time.NewTicker(flushEvery)
	defer flush.Stop()
	for {
		next, err := s.purge(ctx)
		if err != nil && ctx.Err() == nil {
			// Grants look at the clock themselves: an expired token gives
			// nothing, only its members are told later.
			warn(&late, "expired tokens are not ended yet", err)
			next = time.Now().Add(flushEvery)
		}
		timer := time.NewTimer(time.Until(next))
		for due := false; !due; {
			select {
			case <-timer.C:
				due = true
			case <-s.wake:
				due = true
			case <-flush.C:
				mark()
			case <-s.flush:
				mark()
			case <-ctx.Done():
				timer.Stop()
				last, cancel := context.WithTimeout(context.WithoutCancel(ctx), subjectTimeout)
				defer cancel()
				return s.flushTouched(last)
			}
		}
		timer.Stop()
	}
}

// planFor has the purge look at a time if it would otherwise look later.
func (s *Server) planFor(at int64) {
	if at != 0 && at < s.planned.Load() {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// purge ends everything that is over and says when the next thing will be.
func (s *Server) purge(ctx context.Context) (next time.Time, err error) {
	// While it is not known when to look next, everything stored is reason to
	// look again.
	s.planned.Store(math.MaxInt64)
	if err := s.flushTouched(ctx); err != nil {
		return next, err
	}
	for more := true; more; {
		err := s.store.Update(ctx, func(tx *store.Tx) (err error) {
			more, err = s.purgeBatch(tx, time.Now().Unix())
			return err
		})
		if err != nil {
			return next, fmt.Errorf("ace: purge: %w", err)
		}
	}
	now := time.Now()
	at := now.Add(longestSleep).Unix()
	if s.store.Shared() {
		// What another gateway planned, and did not live to do.
		at = now.Add(sharedSleep).Unix()
		if err := s.countStored(ctx); err != nil {
			return next, err
		}
	}
	err = s.store.View(ctx, func(tx *store.Tx) error {
		for _, q := range []struct {
			query string
			after time.Duration
		}{
			{`SELECT COALESCE(MIN(expires), 0) FROM ace_tokens WHERE expires > 0`, 0},
			{`SELECT COALESCE(MIN(expires), 0) FROM ace_exi`, 0},
			{`SELECT COALESCE(MIN(expires), 0) FROM ace_granted WHERE revoked > 0`, 0},
			{`SELECT COALESCE(MIN(gone), 0) FROM ace_keys WHERE gone > 0`, keyLinger},
			{`SELECT COALESCE(MIN(stored), 0) FROM ace_keys WHERE used = 0`, s.cfg.Limits.UnusedAfter},
		} {
			var t int64
			if err := tx.QueryRow(q.query).Scan(&t); err != nil {
				return err
			}
			if t != 0 {
				at = min(at, t+int64(q.after/time.Second))
			}
		}
		return nil
	})
	if err != nil {
		return next, fmt.Errorf("ace: purge: %w", err)
	}
	s.planned.Store(at)
	// A key that was proved a moment ago and could not be dropped must not make
	// this a busy loop.
	return time.Unix(max(at, now.Unix()+1), 0), nil
}

// purgeBatch ends some of what is over; more says that there may be more.
func (s *Server) purgeBatch(tx *store.Tx, now int64) (more bool, err error) {
	n, err := s.expireTokens(tx, now)
	if err != nil {
		return false, err
	}
	gone, err := s.dropKeys(tx, "", `SELECT subject FROM ace_keys WHERE gone > 0 AND gone <= ? LIMIT ?`, now-int64(keyLinger/time.Second))
	if err != nil {
		return false, err
	}
	unused, err := s.dropKeys(tx, "unused", `SELECT subject FROM ace_keys WHERE used = 0 AND stored <= ? LIMIT ?`, now-int64(s.cfg.Limits.UnusedAfter/time.Second))
	if err != nil {
		return false, err
	}
	if err := expireSequences(tx, now); err != nil {
		return false, err
	}
	if _, err := tx.Exec(`DELETE FROM ace_revoked WHERE expires > 0 AND expires <= ?`, now); err != nil {
		return false, err
	}
	over, err := unlist(tx, now)
	if err != nil {
		return false, err
	}
	if err := changeList(tx, over, nil); err != nil {
		return false, err
	}
	forgotten, err := tx.Exec(`DELETE FROM ace_issued WHERE expires <= ?`, now-int64(issuedLinger/time.Second))
	if err != nil {
		return false, err
	}
	tx.AfterCommit(func() { s.issued.Add(-forgotten) })
	return n == purgeBatch || gone == purgeBatch || unused == purgeBatch, nil
}

// expireTokens ends tokens whose time is over. Of one in force the members are
// told; one that waited never gave anything.
func (s *Server) expireTokens(tx *store.Tx, now int64) (n int, err error) {
	type ended struct {
		subject coap.Subject
		slot    int
		expires int64
	}
	var all []ended
	rows, err := tx.Query(`SELECT subject, slot, expires FROM ace_tokens WHERE expires > 0 AND expires <= ? ORDER BY expires LIMIT ?`, now, purgeBatch)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	for rows.Next() {
		var e ended
		var id []byte
		if err := rows.Scan(&id, &e.slot, &e.expires); err != nil {
			return 0, err
		}
		e.subject = coap.Subject{Kind: coap.SubjectKind(id[0]), ID: string(id[1:])}
		all = append(all, e)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return 0, err
	}
	for _, e := range all {
		if err := s.endToken(tx, e.subject, e.slot, e.expires, now, "expired"); err != nil {
			return 0, err
		}
	}
	return len(all), nil
}

// endToken drops one token for a reason and tells of it when it was in force.
func (s *Server) endToken(tx *store.Tx, subject coap.Subject, slot int, expires, now int64, reason string) error {
	id := subjectBytes(subject)
	if _, err := tx.Exec(`DELETE FROM ace_tokens WHERE subject = ? AND slot = ?`, id, slot); err != nil {
		return err
	}
	_, err := tx.Exec(`UPDATE ace_keys SET gone = ? WHERE subject = ? AND NOT EXISTS (SELECT 1 FROM ace_tokens WHERE subject = ?)`, now, id, id)
	if err != nil {
		return err
	}
	tx.AfterCommit(func() {
		s.grants.forget(subject)
		s.metrics.ended.WithLabelValues(reason).Inc()
	})
	if slot != inForce {
		return nil
	}
	if err := s.endContexts(tx, subject); err != nil {
		return err
	}
	if reason == "expired" {
		reason = "" // the kind says it
	}
	return s.emit(tx, groupcomm.EventTokenExpired, subject, expires, reason)
}

// dropKeys deletes the keys that a query finds, but not those that were proved
// meanwhile.
func (s *Server) dropKeys(tx *store.Tx, reason, query string, before int64) (n int, err error) {
	var all []coap.Subject
	rows, err := tx.Query(query, before, purgeBatch)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	for rows.Next() {
		var id []byte
		if err := rows.Scan(&id); err != nil {
			return 0, err
		}
		subject := coap.Subject{Kind: coap.SubjectKind(id[0]), ID: string(id[1:])}
		if reason == "" || !s.isTouched(subject) {
			all = append(all, subject)
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return 0, err
	}
	for _, subject := range all {
		if err := s.deleteKey(tx, subject); err != nil {
			return 0, err
		}
	}
	if reason != "" {
		tx.AfterCommit(func() { s.metrics.ended.WithLabelValues(reason).Add(float64(len(all))) })
	}
	return len(all), nil
}

// expireSequences: RFC 9200, Section 5.10.3: the highest sequence number of an
// expired exi token is kept for good.
func expireSequences(tx *store.Tx, now int64) error {
	high := map[string]int64{}
	rows, err := tx.Query(`SELECT origin, MAX(seq) FROM ace_exi WHERE expires <= ? GROUP BY origin`, now)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var origin string
		var seq int64
		if err := rows.Scan(&origin, &seq); err != nil {
			return err
		}
		high[origin] = seq
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	for origin, seq := range high {
		_, err := tx.Exec(`INSERT INTO ace_exi_high (origin, seq) VALUES (?, ?)
			ON CONFLICT (origin) DO UPDATE SET seq = excluded.seq WHERE excluded.seq > ace_exi_high.seq`, origin, seq)
		if err != nil {
			return err
		}
	}
	_, err = tx.Exec(`DELETE FROM ace_exi WHERE expires <= ?`, now)
	return err
}

// flushTouched marks the keys that were proved since it last ran, so that they
// are not dropped as unused after a restart.
func (s *Server) flushTouched(ctx context.Context) error {
	for {
		s.mu.Lock()
		batch := make([]coap.Subject, 0, min(len(s.touched), purgeBatch))
		for subject := range s.touched {
			if len(batch) == purgeBatch {
				break
			}
			batch = append(batch, subject)
		}
		s.mu.Unlock()
		if len(batch) == 0 {
			return nil
		}
		err := s.store.Update(ctx, func(tx *store.Tx) error {
			for _, subject := range batch {
				if _, err := tx.Exec(`UPDATE ace_keys SET used = 1 WHERE subject = ?`, subjectBytes(subject)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("ace: mark proved keys: %w", err)
		}
		s.mu.Lock()
		for _, subject := range batch {
			delete(s.touched, subject)
		}
		s.mu.Unlock()
	}
}
