package ace

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/secure"
	"github.com/seed4911071e/groupgate/oscore"
	"github.com/seed4911071e/groupgate/store"
)

// Security Contexts of the OSCORE profile (RFC 9203). /authz-info is open to
// everybody, so that whoever caught a token can have contexts made of it that he
// cannot use. A context therefore replaces the one in use only when a request
// protected with it came, which proves that its owner made it; until then the
// older one stays. Of those that are not proved the last four are kept, the newest
// for as long as the token is valid, the others for ten minutes: as with
// challenges.
//
//	token post ──▶ open ──── first request ────▶ in use ──▶ replaced by a newer one
//	                │                                  └──▶ token ended
//	                └──▶ pushed out, or ten minutes over
//
// What must survive a crash is two numbers. reserved is one more than the last
// sequence number that may have been used: it is written before the first of them
// is. epoch counts who took the context: what requests were accepted is in the
// memory of whoever took it last, so the next to take it, after a restart or on
// another gateway, knows nothing of it and asks for freshness with Echo (RFC 8613,
// Appendix B.1.2); the one before sees at its next request that the epoch is
// another, and serves it no more.

// contextRow is a row of ace_contexts.
type contextRow struct {
	subject  coap.Subject
	nonce1   []byte
	nonce2   []byte
	id1      []byte
	id2      []byte   // the kid of requests, and the key of the table
	spare    [][]byte // other values for id2, in case that is taken
	made     int64    // nanoseconds since 1970
	proved   bool
	reserved int64
	epoch    int64
}

// Sizes of what this end gives to a Security Context, in bytes.
const (
	setupNonceSize = 8 // RFC 9203, Section 4.2: 64 bits are recommended
	recipientSize  = 4 // of a Recipient ID, where the algorithm allows it
	recipientTries = 8 // Recipient IDs that may all be taken before it is an error
	openContexts   = challengeSlots
)

// newContext makes N2 and ID2 for a token post; it says what is wrong with N1
// and ID1.
func newContext(m *oscore.Material, nonce1, id1 []byte) (*contextRow, error) {
	c := &contextRow{nonce1: nonce1, id1: id1, nonce2: random(setupNonceSize)}
	size := min(recipientSize, m.MaxID())
	for len(c.spare) < recipientTries {
		// RFC 9203, Section 4.2: ID2 differs from ID1.
		if id := random(size); !bytes.Equal(id, id1) {
			c.spare = append(c.spare, id)
		}
	}
	c.id2, c.spare = c.spare[0], c.spare[1:]
	s := c.setup(m)
	return c, s.Check()
}

func (c *contextRow) setup(m *oscore.Material) oscore.Setup {
	return oscore.Setup{Material: *m, Nonce1: c.nonce1, Nonce2: c.nonce2, ID1: c.id1, ID2: c.id2}
}

// link names a context for ever: Recipient IDs are given out again, nonces are not.
func (c *contextRow) link() coap.LinkID {
	return coap.LinkID("oscore-" + hex.EncodeToString(c.id2) + "-" + hex.EncodeToString(c.nonce2))
}

// addContext stores an open context. It sets id2 to the value that was free.
func (s *Server) addContext(tx *store.Tx, subject coap.Subject, c *contextRow, now time.Time) error {
	free := false
	for _, id := range append([][]byte{c.id2}, c.spare...) {
		var one int
		err := tx.QueryRow(`SELECT 1 FROM ace_contexts WHERE id2 = ?`, id).Scan(&one)
		if errors.Is(err, store.ErrNotFound) {
			c.id2, free = id, true
			break
		}
		if err != nil {
			return err
		}
	}
	if !free {
		return coap.Errorf(coap.ServiceUnavailable, "no free Recipient ID")
	}
	// The times tell which is the newest, also when the clock was set back since the last.
	var newest int64
	if err := tx.QueryRow(`SELECT COALESCE(MAX(made), 0) FROM ace_contexts WHERE subject = ?`, subjectBytes(subject)).Scan(&newest); err != nil {
		return err
	}
	_, err := tx.Exec(`INSERT INTO ace_contexts (id2, subject, nonce1, nonce2, id1, made, proved, reserved, epoch) VALUES (?, ?, ?, ?, ?, ?, 0, 0, 0)`,
		c.id2, subjectBytes(subject), c.nonce1, c.nonce2, c.id1, max(now.UnixNano(), newest+1))
	if err != nil {
		return err
	}
	_, err = tx.Exec(`DELETE FROM ace_contexts WHERE subject = ? AND proved = 0 AND id2 NOT IN (
		SELECT id2 FROM ace_contexts WHERE subject = ? AND proved = 0 ORDER BY made DESC, id2 LIMIT ?)`,
		subjectBytes(subject), subjectBytes(subject), openContexts)
	return err
}

const contextColumns = `SELECT id2, subject, nonce1, nonce2, id1, made, proved, reserved, epoch FROM ace_contexts `

// scanContext reads the columns of a context, and those behind them.
func scanContext(row interface{ Scan(...any) error }, more ...any) (*contextRow, error) {
	var c contextRow
	var id []byte
	into := append([]any{&c.id2, &id, &c.nonce1, &c.nonce2, &c.id1, &c.made, &c.proved, &c.reserved, &c.epoch}, more...)
	if err := row.Scan(into...); err != nil {
		return nil, err
	}
	if len(id) == 0 {
		return nil, errors.New("ace: stored context without subject")
	}
	c.subject = coap.Subject{Kind: coap.SubjectKind(id[0]), ID: string(id[1:])}
	return &c, nil
}

// usable says whether requests with the context may be accepted: it is in use,
// or open and one of the last.
func (c *contextRow) usable(tx *store.Tx, now time.Time) (bool, error) {
	if c.proved || now.Before(time.Unix(0, c.made).Add(challengeWindow)) {
		return true, nil
	}
	var newer int
	err := tx.QueryRow(`SELECT 1 FROM ace_contexts WHERE subject = ? AND proved = 0 AND made > ? LIMIT 1`,
		subjectBytes(c.subject), c.made).Scan(&newer)
	if errors.Is(err, store.ErrNotFound) {
		return true, nil
	}
	return false, err
}

// Context finds the Security Context with a Recipient ID, while a token of its key
// is valid.
func (s *Server) Context(ctx context.Context, kid []byte) (*secure.Stored, error) {
	var c *contextRow
	var k *keyRow
	ok := false
	err := s.store.View(ctx, func(tx *store.Tx) (err error) {
		if c, err = scanContext(tx.QueryRow(contextColumns+`WHERE id2 = ?`, kid)); err != nil {
			return err
		}
		if ok, err = c.usable(tx, time.Now()); err != nil || !ok {
			return err
		}
		k, err = keyBySubject(tx, c.subject)
		return err
	})
	if errors.Is(err, store.ErrNotFound) || err == nil && (!ok || k.newest(time.Now()) == nil) {
		return nil, secure.ErrNone
	}
	if err != nil {
		return nil, fmt.Errorf("ace: read context: %w", err)
	}
	return s.openContext(c, k.sealed)
}

// Take has the caller own a Security Context, or says that it still does.
func (s *Server) Take(ctx context.Context, c *secure.Stored, held bool) error {
	if !held {
		return s.takeContext(ctx, c)
	}
	// RFC 9203, Section 4.3: a context is not used after its token expired.
	if _, err := s.grantOf(ctx, c.Subject); errors.Is(err, store.ErrNotFound) {
		return secure.ErrNone
	} else if err != nil {
		return err
	}
	if !s.store.Shared() {
		return nil // nobody else is there, and who drops a context says so
	}
	var epoch int64
	err := s.store.View(ctx, func(tx *store.Tx) error {
		return tx.QueryRow(`SELECT epoch FROM ace_contexts WHERE id2 = ? AND nonce2 = ?`, c.ID2, c.Nonce2).Scan(&epoch)
	})
	switch {
	case errors.Is(err, store.ErrNotFound):
		return secure.ErrNone
	case err != nil:
		return fmt.Errorf("ace: read context: %w", err)
	case epoch != c.Epoch:
		return secure.ErrTaken
	}
	return nil
}

// takeContext takes the context as it was read. The first to do so proves it.
func (s *Server) takeContext(ctx context.Context, c *secure.Stored) error {
	first := c.New()
	err := s.store.Update(ctx, func(tx *store.Tx) error {
		n, err := tx.Exec(`UPDATE ace_contexts SET epoch = epoch + 1, proved = 1 WHERE id2 = ? AND nonce2 = ? AND epoch = ? AND reserved = ?`,
			c.ID2, c.Nonce2, c.Epoch, int64(c.Reserved))
		if err != nil {
			return err
		}
		if n == 0 {
			return secure.ErrTaken
		}
		if !first {
			return nil
		}
		return s.proveContext(tx, c, time.Now())
	})
	if err != nil {
		return fmt.Errorf("ace: take context: %w", err)
	}
	c.Epoch++
	return nil
}

// proveContext is for the first request with a context: it replaces those that
// were made before, and a token that waited for its key to be proved comes in
// force.
func (s *Server) proveContext(tx *store.Tx, c *secure.Stored, now time.Time) error {
	k, err := keyBySubject(tx, c.Subject)
	if errors.Is(err, store.ErrNotFound) {
		return secure.ErrNone
	}
	if err != nil {
		return err
	}
	if k.newest(now) == nil {
		return secure.ErrNone
	}
	k.used = true
	if err := s.updateKey(tx, k); err != nil {
		return err
	}
	if k.tokens[waiting].validAt(now) {
		if err := s.promote(tx, k); err != nil {
			return err
		}
	}
	return s.dropContexts(tx, c.Subject, `AND id2 <> ? AND made <= (SELECT made FROM ace_contexts WHERE id2 = ?)`, c.ID2, c.ID2)
}

// dropContexts deletes the contexts of a subject that a condition names, and has
// those who use one told.
func (s *Server) dropContexts(tx *store.Tx, subject coap.Subject, condition string, args ...any) error {
	args = append([]any{subjectBytes(subject)}, args...)
	rows, err := tx.Query(contextColumns+`WHERE subject = ? `+condition, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	var gone []coap.LinkID
	for rows.Next() {
		c, err := scanContext(rows)
		if err != nil {
			return err
		}
		gone = append(gone, c.link())
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil || len(gone) == 0 {
		return err
	}
	if _, err := tx.Exec(`DELETE FROM ace_contexts WHERE subject = ? `+condition, args...); err != nil {
		return err
	}
	if s.dropped != nil {
		tx.AfterCommit(func() { s.dropped(gone) })
	}
	return nil
}

// endContexts ends the contexts of a key whose token in force has ended: all but
// the open ones where a token waits, which the first of them will bring in force.
func (s *Server) endContexts(tx *store.Tx, subject coap.Subject) error {
	if subject.Kind != coap.SubjectOSCORE {
		return nil
	}
	return s.dropContexts(tx, subject, `AND (proved = 1 OR NOT EXISTS (SELECT 1 FROM ace_tokens WHERE subject = ?))`, subjectBytes(subject))
}

// Reserve makes it durable that sequence numbers below upTo may be used.
func (s *Server) Reserve(ctx context.Context, c *secure.Stored, upTo uint64) error {
	err := s.store.Update(ctx, func(tx *store.Tx) error {
		n, err := tx.Exec(`UPDATE ace_contexts SET reserved = ? WHERE id2 = ? AND nonce2 = ? AND epoch = ? AND reserved <= ?`,
			int64(upTo), c.ID2, c.Nonce2, c.Epoch, int64(upTo))
		if err == nil && n == 0 {
			return secure.ErrTaken
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("ace: reserve sequence numbers: %w", err)
	}
	return nil
}

var _ secure.Contexts = (*Server)(nil)
