package ace

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/store"
)

// check applies what stored state says about a token: whether its key
// identifier is free or its own, whether it was revoked, and whether its
// sequence number is used up. It returns the stored key, nil for a new one, and
// completes v: subject of a token that only names its key, end of an exi token.
func (s *Server) check(tx *store.Tx, v *verified, now time.Time) (*keyRow, error) {
	k, err := s.checkKey(tx, v)
	if err != nil {
		return nil, err
	}
	// RFC 9770, Section 11.1: a revoked token stays refused. Its core is asked for
	// as well, because its outer encoding can be changed by anybody.
	var one int
	twin := v.twin
	if twin == nil {
		twin = v.hash
	}
	err = tx.QueryRow(`SELECT 1 FROM ace_revoked WHERE digest = ? OR digest = ? OR digest = ? LIMIT 1`, v.hash, twin, v.core).Scan(&one)
	if err == nil {
		return nil, refuse(coap.Unauthorized, "token is revoked", errRevoked)
	}
	if !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	if blocked, err := s.blocked(tx, v); err != nil {
		return nil, err
	} else if blocked {
		return nil, refuse(coap.Unauthorized, "token is revoked", nil)
	}
	return k, s.checkSequence(tx, v, now)
}

func (s *Server) checkKey(tx *store.Tx, v *verified) (k *keyRow, err error) {
	if v.kid == nil {
		k, err = keyBySubject(tx, v.subject)
	} else {
		k, err = keyByKID(tx, v.kid)
	}
	if errors.Is(err, store.ErrNotFound) {
		if v.named && v.key == nil {
			return nil, refuse(coap.BadRequest, "key that the token names is not known", nil)
		}
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if k.origin != v.entry.origin() || !v.named && k.subject != v.subject {
		// A kid is unique (RFC 9202, Section 3.3.1). Were the later one let in,
		// whoever made it could take over or lock out the first.
		return nil, refuse(coap.BadRequest, "key identifier belongs to another key", nil)
	}
	if k.subject.Kind == coap.SubjectOSCORE && v.subject != k.subject {
		return nil, refuse(coap.BadRequest, "key identifier belongs to OSCORE input material", nil)
	}
	return k, nil
}

// checkSequence: RFC 9200, Section 5.10.3: an exi token lives from its first
// sight, and one that expired is never accepted again.
func (s *Server) checkSequence(tx *store.Tx, v *verified, now time.Time) error {
	if v.exi == 0 {
		return nil
	}
	origin := v.entry.origin()
	var core []byte
	var expires int64
	err := tx.QueryRow(`SELECT core, expires FROM ace_exi WHERE origin = ? AND seq = ?`, origin, v.exiSeq).Scan(&core, &expires)
	switch {
	case err == nil:
		if !bytes.Equal(core, v.core) || now.Unix() >= expires {
			return refuse(coap.Unauthorized, "sequence number is used up", nil)
		}
	case errors.Is(err, store.ErrNotFound):
		var high int64
		err := tx.QueryRow(`SELECT seq FROM ace_exi_high WHERE origin = ?`, origin).Scan(&high)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if err == nil && v.exiSeq <= high {
			return refuse(coap.Unauthorized, "sequence number is used up", nil)
		}
		expires = now.Unix() + v.exi
	default:
		return err
	}
	if v.expires == 0 || expires < v.expires {
		v.expires = expires
	}
	return nil
}

// how says by what way a token came.
type how struct {
	// peer is the subject that the sender has proved; zero: none.
	peer coap.Subject
	// conveyed: the token came in psk_identity and its key was just proved.
	conveyed bool
	// challenge is the N_S that answers; nil: none does.
	challenge []byte
	// setup is what was exchanged with the token of the OSCORE profile: a
	// Security Context is stored with it.
	setup *contextRow
}

// errFull is the answer when no token can be dropped for a new one.
var errFull = coap.Errorf(coap.ServiceUnavailable, "too many tokens")

// place stores a verified token: where, the package comment draws. It returns
// the subject of its key once that is on disk.
func (s *Server) place(ctx context.Context, v *verified, h how) (subject coap.Subject, err error) {
	var sealed []byte
	if v.key != nil {
		sealed = s.store.Seal(sealContext(v.subject), v.key)
	}
	named := *v // check completes a copy: the function may run again
	err = s.store.Update(ctx, func(tx *store.Tx) error {
		now := time.Now()
		v := named
		k, err := s.check(tx, &v, now)
		if err != nil {
			return err
		}
		t := &tokenRow{core: v.core, hash: v.hash, twin: v.twin, scope: v.scope, expires: v.expires, issued: v.issued}
		if k, err = s.rederive(tx, k, &v, t); err != nil {
			return err
		}
		if v.exi != 0 {
			if err := s.rememberSequence(tx, &v); err != nil {
				return err
			}
		}
		if k == nil {
			subject = v.subject
			err = s.placeFirst(tx, &v, t, sealed, h, now)
		} else {
			subject, k.public = k.subject, v.public
			err = s.placeNext(tx, k, t, h, now)
		}
		if err != nil || h.setup == nil {
			return err
		}
		return s.addContext(tx, subject, h.setup, now)
	})
	return subject, err
}

// rederive takes a derived key back that nobody proved yet when the same token
// comes in another encoding: the key depends on every byte, so whoever caught
// the token and posted it altered would else lock its owner out.
func (s *Server) rederive(tx *store.Tx, k *keyRow, v *verified, t *tokenRow) (*keyRow, error) {
	if k == nil || !v.derived || !k.derived || k.subject == v.subject ||
		k.used || s.isTouched(k.subject) || !sameToken(k.tokens[inForce], t) {
		return k, nil
	}
	return nil, s.deleteKey(tx, k.subject)
}

var errRevoked = errors.New("ace: token hash is stored as revoked")

// refused remembers the sequence number of a token that its revocation kept
// out, so that it is used up even when the hash has to go for others (RFC 9770,
// Section 11.1).
func (s *Server) refused(ctx context.Context, v *verified, err error) error {
	if v.exi == 0 || !errors.Is(err, errRevoked) {
		return err
	}
	row := *v
	row.expires = time.Now().Unix() + v.exi
	return errors.Join(err, s.store.Update(ctx, func(tx *store.Tx) error { return s.rememberSequence(tx, &row) }))
}

func (s *Server) rememberSequence(tx *store.Tx, v *verified) error {
	_, err := tx.Exec(`INSERT INTO ace_exi (origin, seq, core, expires) VALUES (?, ?, ?, ?) ON CONFLICT (origin, seq) DO NOTHING`,
		v.entry.origin(), v.exiSeq, v.core, v.expires)
	return err
}

// placeFirst stores the first token of a key.
func (s *Server) placeFirst(tx *store.Tx, v *verified, t *tokenRow, sealed []byte, h how, now time.Time) error {
	if s.stored.Load() >= int64(s.cfg.Limits.MaxTokens) {
		if err := s.makeRoom(tx); err != nil {
			return err
		}
	}
	k := &keyRow{
		subject: v.subject, kid: v.kid, origin: v.entry.origin(), sealed: sealed, public: v.public,
		derived: v.derived, used: h.conveyed, stored: now.Unix(),
	}
	k.challenges = k.challenges.add(h.challenge, h.from(k), now)
	if err := s.insertKey(tx, k); err != nil {
		return err
	}
	tx.AfterCommit(func() {
		s.grants.forget(k.subject)
		s.planFor(now.Add(s.cfg.Limits.UnusedAfter).Unix())
	})
	return s.putToken(tx, k, inForce, t)
}

func (h how) from(k *keyRow) uint8 {
	switch {
	case h.conveyed:
		return exported
	case h.peer == k.subject:
		return givenInside
	}
	return givenOutside
}

// placeNext stores a further token of a key, or the same again.
func (s *Server) placeNext(tx *store.Tx, k *keyRow, t *tokenRow, h how, now time.Time) error {
	k.used = k.used || h.conveyed || s.isTouched(k.subject)
	if h.challenge != nil {
		k.challenges = k.challenges.add(h.challenge, h.from(k), now)
	}
	k.stored, k.gone = now.Unix(), 0
	if err := s.updateKey(tx, k); err != nil {
		return err
	}
	force, next := k.tokens[inForce], k.tokens[waiting]
	if !force.validAt(now) {
		force = nil
	}
	if !next.validAt(now) {
		next = nil
	}
	proved := h.conveyed || h.peer == k.subject || !k.used
	switch {
	case sameToken(t, force):
		return nil
	case force != nil && t.earlier(force):
		return nil // valid, but what is stored was issued later
	case proved:
		if next != nil && (sameToken(t, next) || !t.earlier(next)) {
			next = nil
		}
		if next == nil {
			if err := s.dropToken(tx, k, waiting); err != nil {
				return err
			}
		}
		return s.putToken(tx, k, inForce, t)
	case sameToken(t, next) || next != nil && t.earlier(next):
		return nil
	}
	return s.putToken(tx, k, waiting, t)
}

// makeRoom drops the key that was stored first and never proved.
func (s *Server) makeRoom(tx *store.Tx) error {
	var id []byte
	rows, err := tx.Query(`SELECT subject FROM ace_keys WHERE used = 0 ORDER BY stored LIMIT 16`)
	if err != nil {
		return err
	}
	defer rows.Close()
	var victim *coap.Subject
	for victim == nil && rows.Next() {
		if err := rows.Scan(&id); err != nil {
			return err
		}
		if subject := (coap.Subject{Kind: coap.SubjectKind(id[0]), ID: string(id[1:])}); !s.isTouched(subject) {
			victim = &subject
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	if victim == nil {
		return errFull
	}
	tx.AfterCommit(func() { s.metrics.ended.WithLabelValues("displaced").Inc() })
	return s.deleteKey(tx, *victim)
}
