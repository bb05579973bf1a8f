package ace

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// Grant is what a peer may do now, by the token in force for the key that it
// proved. Without one, also when it expired, the error is a 4.01 with AS
// Request Creation Hints (RFC 9200, Section 5.3).
//
// The result is shared: callers must not change it.
func (s *Server) Grant(ctx context.Context, peer coap.Peer) (*groupcomm.Grant, error) {
	switch {
	case peer.Via == coap.Plain,
		peer.Subject.Kind != coap.SubjectPoP && peer.Subject.Kind != coap.SubjectKeyHash && peer.Subject.Kind != coap.SubjectOSCORE:
		return nil, s.unauthorized(coap.Subject{})
	}
	g, err := s.grantOf(ctx, peer.Subject)
	if errors.Is(err, store.ErrNotFound) {
		return nil, s.unauthorized(peer.Subject)
	}
	return g, err
}

// grantOf is the grant of a subject: store.ErrNotFound when no token is in
// force.
func (s *Server) grantOf(ctx context.Context, subject coap.Subject) (*groupcomm.Grant, error) {
	now := time.Now()
	// Where other gateways write too nobody tells us that a grant of before is
	// not good any more.
	if !s.store.Shared() {
		if g := s.grants.get(subject, now); g != nil {
			return g, nil
		}
	}
	return s.loadGrant(ctx, subject, now)
}

// loadGrant reads a grant and keeps it: store.ErrNotFound when no token is in
// force.
func (s *Server) loadGrant(ctx context.Context, subject coap.Subject, now time.Time) (*groupcomm.Grant, error) {
	generation := s.grants.generation()
	var k *keyRow
	err := s.store.View(ctx, func(tx *store.Tx) (err error) {
		k, err = keyBySubject(tx, subject)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ace: read grant: %w", err)
	}
	g, until, err := s.grantFrom(k, now)
	if err != nil {
		return nil, err
	}
	s.grants.put(subject, cachedGrant{grant: g, until: until}, generation)
	return g, nil
}

// grantFrom is the grant that a stored key gives, and until when; zero: for ever.
func (s *Server) grantFrom(k *keyRow, now time.Time) (g *groupcomm.Grant, until time.Time, err error) {
	t := k.tokens[inForce]
	if !t.validAt(now) {
		return nil, until, fmt.Errorf("ace: no token in force: %w", store.ErrNotFound)
	}
	if !k.used {
		s.touch(k.subject)
	}
	scope, err := groupcomm.DecodeScope(t.scope)
	if err != nil {
		return nil, until, fmt.Errorf("ace: stored scope: %w", err)
	}
	g = &groupcomm.Grant{Token: hex.EncodeToString(t.core[:16]), Subject: k.subject, Scope: scope}
	if k.public != nil {
		if g.PublicKey, err = cose.KeyFromSPKI(k.public); err != nil {
			return nil, until, fmt.Errorf("ace: stored public key: %w", err)
		}
	}
	if t.expires != 0 {
		g.Expires = time.Unix(t.expires, 0)
	}
	for _, c := range k.challenges {
		g.Exported = g.Exported || c.From == exported
	}
	values, until := k.challenges.valid(now)
	g.Challenges = values
	if until.IsZero() || !g.Expires.IsZero() && g.Expires.Before(until) {
		until = g.Expires
	}
	return g, until, nil
}

// Warm reads the grants of many subjects, some with a statement, before they are asked
// for one by one: after a start none is known, and a rekey asks for those of all who
// observe. Who has none is left out, and so are all where grants are read each time.
func (s *Server) Warm(ctx context.Context, subjects []coap.Subject) error {
	if s.store.Shared() {
		return nil
	}
	now := time.Now()
	var missing []coap.Subject
	for _, subject := range subjects {
		if s.grants.get(subject, now) == nil && len(missing) < maxCachedGrants {
			missing = append(missing, subject)
		}
	}
	return s.readGrants(ctx, missing, now, func(subject coap.Subject, g cachedGrant, generation uint64) {
		s.grants.put(subject, g, generation)
	})
}

// InForce reads which of some subjects have a token in force now, and until when at
// least; zero: for ever. It is for who asks about very many where grants are read each
// time, because other gateways write too: some are read with a statement.
func (s *Server) InForce(ctx context.Context, subjects []coap.Subject) (map[coap.Subject]time.Time, error) {
	until := make(map[coap.Subject]time.Time, len(subjects))
	err := s.readGrants(ctx, subjects, time.Now(), func(subject coap.Subject, g cachedGrant, _ uint64) {
		until[subject] = g.until
	})
	return until, err
}

// readGrants calls found for the grants of those subjects that have one. What cannot be
// read is an error for who asks for it by itself.
func (s *Server) readGrants(ctx context.Context, subjects []coap.Subject, now time.Time, found func(subject coap.Subject, g cachedGrant, generation uint64)) error {
	for part := range slices.Chunk(subjects, warmAtOnce) {
		generation := s.grants.generation()
		var keys []*keyRow
		err := s.store.View(ctx, func(tx *store.Tx) (err error) {
			keys, err = keysBySubject(tx, part)
			return err
		})
		if err != nil {
			return fmt.Errorf("ace: read grants: %w", err)
		}
		for _, k := range keys {
			if g, until, err := s.grantFrom(k, now); err == nil {
				found(k.subject, cachedGrant{grant: g, until: until}, generation)
			}
		}
	}
	return nil
}

// unauthorized is 4.01 with the hints that say where a token is to be had. They
// are sent to everybody, so they name no group: the scope that a peer needs is
// not for the gateway to tell strangers.
func (s *Server) unauthorized(subject coap.Subject) error {
	cause := errors.New("ace: no valid access token")
	if s.cfg.ASURI == "" {
		return refuse(coap.Unauthorized, "no valid access token", cause)
	}
	hints := map[int64]any{paramAS: s.cfg.ASURI}
	// RFC 9200, Section 5.3: kid is the key of the association that there is,
	// so that the client gets a token for it.
	if kid := subjectKID(subject); kid != nil {
		hints[paramHintKID] = kid
	}
	if audience := s.audience(); audience != "" {
		hints[paramAudience] = audience
	}
	r := &coap.Response{Code: coap.Unauthorized, Payload: cose.MustMarshal(hints)}
	r.Options.SetContentFormat(coap.ACE)
	r.Options.SetUint(coap.MaxAge, 0)
	return coap.Respond(r, cause)
}

// audience is the one name of this gateway; "" when it has several.
func (s *Server) audience() string {
	name := ""
	for i := range s.cfg.Entries {
		if a := s.cfg.Entries[i].Audience; name == "" {
			name = a
		} else if a != name {
			return ""
		}
	}
	return name
}

// NewChallenge replaces the challenge of a peer, for a 4.00 that asks it for
// another proof.
func (s *Server) NewChallenge(ctx context.Context, subject coap.Subject) ([]byte, error) {
	ns := newChallenge()
	err := s.store.Update(ctx, func(tx *store.Tx) error {
		k, err := keyBySubject(tx, subject)
		if err != nil {
			return err
		}
		k.challenges = k.challenges.renew(ns, time.Now())
		return s.updateKey(tx, k)
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil, s.unauthorized(subject)
	}
	if err != nil {
		return nil, fmt.Errorf("ace: new challenge: %w", err)
	}
	return ns, nil
}

// UsedChallenge says, in the transaction of what the proof was for, which
// challenge a proof of possession covered. One that is no longer known is no
// error: the proof was judged by a grant of before.
func (s *Server) UsedChallenge(tx *store.Tx, subject coap.Subject, ns []byte) error {
	id := subjectBytes(subject)
	var stored []byte
	err := tx.QueryRow(`SELECT challenges FROM ace_keys WHERE subject = ?`, id).Scan(&stored)
	if errors.Is(err, store.ErrNotFound) {
		return s.unauthorized(subject)
	}
	if err != nil {
		return fmt.Errorf("ace: used challenge: %w", err)
	}
	list, err := decodeChallenges(stored)
	if err != nil {
		return fmt.Errorf("ace: stored challenges: %w", err)
	}
	list, changed := list.use(ns)
	if !changed {
		return nil
	}
	// Who is a member must not be dropped as unused, should the mark of touch be lost.
	if _, err := tx.Exec(`UPDATE ace_keys SET challenges = ?, used = 1 WHERE subject = ?`, list.encode(), id); err != nil {
		return err
	}
	tx.AfterCommit(func() { s.grants.forget(subject) })
	return nil
}

// touch remembers that a key was proved; Run writes it down.
func (s *Server) touch(subject coap.Subject) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.touched) < s.cfg.Limits.MaxTokens {
		s.touched[subject] = struct{}{}
	}
	if s.store.Shared() {
		select {
		case s.flush <- struct{}{}: // the others go by the mark in the store
		default:
		}
	}
}

func (s *Server) isTouched(subject coap.Subject) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.touched[subject]
	return ok
}

// cachedGrant is valid until a time, zero for ever, or until it is forgotten.
type cachedGrant struct {
	grant *groupcomm.Grant
	until time.Time
}

// grantCache spares requests the database. Writers forget a subject after their
// commit; a reader whose read overlapped a commit does not fill the cache, so
// nothing stale stays.
type grantCache struct {
	mu     sync.RWMutex
	m      map[coap.Subject]cachedGrant // guarded by mu
	commit uint64                       // guarded by mu: counts forgets
}

func newGrantCache() *grantCache { return &grantCache{m: map[coap.Subject]cachedGrant{}} }

func (c *grantCache) get(s coap.Subject, now time.Time) *groupcomm.Grant {
	c.mu.RLock()
	e, ok := c.m[s]
	c.mu.RUnlock()
	if !ok || !e.until.IsZero() && !now.Before(e.until) {
		return nil
	}
	return e.grant
}

func (c *grantCache) generation() uint64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.commit
}

func (c *grantCache) put(s coap.Subject, e cachedGrant, generation uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.commit != generation {
		return
	}
	if len(c.m) >= maxCachedGrants {
		for victim := range c.m { // any: the next request brings it back
			delete(c.m, victim)
			break
		}
	}
	c.m[s] = e
}

func (c *grantCache) forget(s coap.Subject) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.commit++
	delete(c.m, s)
}

// logKID shows a subject in a log: kids are public names.
func logKID(s coap.Subject) string {
	if kid := subjectKID(s); kid != nil {
		return hex.EncodeToString(kid)
	}
	return hex.EncodeToString([]byte(s.ID))
}
