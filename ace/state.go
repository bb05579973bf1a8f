package ace

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// Slots of ace_tokens.
const (
	inForce = 0
	waiting = 1
)

// keyRow is a row of ace_keys with its tokens.
type keyRow struct {
	subject    coap.Subject
	kid        []byte
	origin     string
	sealed     []byte
	public     []byte // SubjectPublicKeyInfo; nil: a symmetric key
	derived    bool
	challenges challenges
	used       bool
	stored     int64
	gone       int64

	tokens [2]*tokenRow // by slot; nil: none
}

// tokenRow is a row of ace_tokens.
type tokenRow struct {
	core    []byte
	hash    []byte
	twin    []byte // nil: it has none
	scope   []byte
	expires int64 // 0: never
	issued  int64 // 0: not said
}

func (t *tokenRow) validAt(now time.Time) bool {
	return t != nil && (t.expires == 0 || now.Unix() < t.expires)
}

// earlier says whether a token was issued before another, so that it must not
// replace it: by iat where both say it, else by exp.
func (t *tokenRow) earlier(than *tokenRow) bool {
	if t.issued != 0 && than.issued != 0 {
		return t.issued < than.issued
	}
	return t.expires != 0 && (than.expires == 0 || t.expires < than.expires)
}

// newest is a token of the key that is valid now, the one that waits first.
func (k *keyRow) newest(now time.Time) *tokenRow {
	for _, slot := range []int{waiting, inForce} {
		if k.tokens[slot].validAt(now) {
			return k.tokens[slot]
		}
	}
	return nil
}

// subjectBytes is a subject as a key of tables and events.
func subjectBytes(s coap.Subject) []byte { return append([]byte{byte(s.Kind)}, s.ID...) }

// sealContext binds a sealed key to its row.
func sealContext(s coap.Subject) string { return fmt.Sprintf("ace_keys/%x", subjectBytes(s)) }

const keyColumns = `SELECT subject, kid, origin, sealed, public, derived, challenges, used, stored, gone FROM ace_keys `

// keyBySubject reads a key and its tokens: store.ErrNotFound when there is none.
func keyBySubject(tx *store.Tx, s coap.Subject) (*keyRow, error) {
	return readKey(tx, tx.QueryRow(keyColumns+`WHERE subject = ?`, subjectBytes(s)))
}

// keyByKID reads the key that has an identifier.
func keyByKID(tx *store.Tx, kid []byte) (*keyRow, error) {
	return readKey(tx, tx.QueryRow(keyColumns+`WHERE kid = ?`, kid))
}

func readKey(tx *store.Tx, row *store.Row) (*keyRow, error) {
	k, err := scanKey(row.Scan)
	if err != nil {
		return nil, err
	}
	rows, err := tx.Query(tokenColumns+`WHERE subject = ?`, subjectBytes(k.subject))
	if err != nil {
		return nil, err
	}
	return k, scanTokens(rows, func([]byte) *keyRow { return k })
}

// keysBySubject reads the keys of warmAtOnce subjects at most, and their tokens, in no
// order; those that there are.
func keysBySubject(tx *store.Tx, subjects []coap.Subject) ([]*keyRow, error) {
	ids := make([]any, warmAtOnce) // always as many, so that the statements stay prepared
	for i := range ids {
		ids[i] = subjectBytes(subjects[min(i, len(subjects)-1)])
	}
	in := `WHERE subject IN (?` + strings.Repeat(`, ?`, warmAtOnce-1) + `)`
	rows, err := tx.Query(keyColumns+in, ids...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var keys []*keyRow
	of := map[string]*keyRow{}
	for rows.Next() {
		k, err := scanKey(rows.Scan)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
		of[string(subjectBytes(k.subject))] = k
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	tokens, err := tx.Query(tokenColumns+in, ids...)
	if err != nil {
		return nil, err
	}
	return keys, scanTokens(tokens, func(subject []byte) *keyRow { return of[string(subject)] })
}

// scanKey reads a row of keyColumns.
func scanKey(scan func(...any) error) (*keyRow, error) {
	var k keyRow
	var subject, list []byte
	err := scan(&subject, &k.kid, &k.origin, &k.sealed, &k.public, &k.derived, &list, &k.used, &k.stored, &k.gone)
	if err != nil {
		return nil, err
	}
	if len(subject) == 0 {
		return nil, errors.New("ace: stored key without subject")
	}
	k.subject = coap.Subject{Kind: coap.SubjectKind(subject[0]), ID: string(subject[1:])}
	if k.challenges, err = decodeChallenges(list); err != nil {
		return nil, fmt.Errorf("ace: stored challenges: %w", err)
	}
	return &k, nil
}

const tokenColumns = `SELECT subject, slot, core, hash, twin, scope, expires, issued FROM ace_tokens `

// scanTokens reads rows of tokenColumns into the keys that they are of.
func scanTokens(rows *store.Rows, of func(subject []byte) *keyRow) error {
	defer rows.Close()
	for rows.Next() {
		var subject []byte
		var slot int
		var t tokenRow
		if err := rows.Scan(&subject, &slot, &t.core, &t.hash, &t.twin, &t.scope, &t.expires, &t.issued); err != nil {
			return err
		}
		if slot != inForce && slot != waiting {
			return fmt.Errorf("ace: stored token in slot %d", slot)
		}
		if k := of(subject); k != nil {
			k.tokens[slot] = &t
		}
	}
	return rows.Err()
}

func (s *Server) insertKey(tx *store.Tx, k *keyRow) error {
	var kid any // NULL with public keys
	if k.kid != nil {
		kid = k.kid
	}
	_, err := tx.Exec(`INSERT INTO ace_keys (subject, kid, origin, sealed, public, derived, challenges, used, stored, gone) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0)`,
		subjectBytes(k.subject), kid, k.origin, k.sealed, k.public, flag(k.derived), k.challenges.encode(), flag(k.used), k.stored)
	if err == nil {
		tx.AfterCommit(func() { s.count(1) })
	}
	return err
}

func (s *Server) deleteKey(tx *store.Tx, subject coap.Subject) error {
	id := subjectBytes(subject)
	if _, err := tx.Exec(`DELETE FROM ace_tokens WHERE subject = ?`, id); err != nil {
		return err
	}
	if err := s.dropContexts(tx, subject, ``); err != nil {
		return err
	}
	n, err := tx.Exec(`DELETE FROM ace_keys WHERE subject = ?`, id)
	if err == nil && n > 0 {
		tx.AfterCommit(func() {
			s.count(-1)
			s.grants.forget(subject)
		})
	}
	return err
}

func (s *Server) count(n int64) { s.metrics.stored.Set(float64(s.stored.Add(n))) }

// updateKey writes what changes in a key's life.
func (s *Server) updateKey(tx *store.Tx, k *keyRow) error {
	_, err := tx.Exec(`UPDATE ace_keys SET challenges = ?, used = ?, stored = ?, gone = ?, public = ? WHERE subject = ?`,
		k.challenges.encode(), flag(k.used), k.stored, k.gone, k.public, subjectBytes(k.subject))
	if err == nil {
		tx.AfterCommit(func() { s.grants.forget(k.subject) })
	}
	return err
}

// putToken stores a token in a slot. One that comes in force is announced.
func (s *Server) putToken(tx *store.Tx, k *keyRow, slot int, t *tokenRow) error {
	var twin any // NULL where there is none
	if t.twin != nil {
		twin = t.twin
	}
	_, err := tx.Exec(`INSERT INTO ace_tokens (subject, slot, core, hash, twin, scope, expires, issued) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (subject, slot) DO UPDATE SET core = excluded.core, hash = excluded.hash, twin = excluded.twin,
		scope = excluded.scope, expires = excluded.expires, issued = excluded.issued`,
		subjectBytes(k.subject), slot, t.core, t.hash, twin, t.scope, t.expires, t.issued)
	if err != nil {
		return err
	}
	k.tokens[slot] = t
	tx.AfterCommit(func() { s.planFor(t.expires) })
	if slot != inForce {
		return nil
	}
	return s.emit(tx, groupcomm.EventTokenStored, k.subject, t.expires, "")
}

func (s *Server) dropToken(tx *store.Tx, k *keyRow, slot int) error {
	if k.tokens[slot] == nil {
		return nil
	}
	k.tokens[slot] = nil
	_, err := tx.Exec(`DELETE FROM ace_tokens WHERE subject = ? AND slot = ?`, subjectBytes(k.subject), slot)
	if err == nil {
		tx.AfterCommit(func() { s.grants.forget(k.subject) })
	}
	return err
}

func (s *Server) emit(tx *store.Tx, kind string, subject coap.Subject, expires int64, reason string) error {
	e := groupcomm.Event{Subject: subject, Expires: expires, Reason: reason}
	return tx.Emit(kind, fmt.Sprintf("%x", subjectBytes(subject)), e.Encode())
}

// promote puts the waiting token in force: its key was proved anew.
func (s *Server) promote(tx *store.Tx, k *keyRow) error {
	t := k.tokens[waiting]
	if err := s.dropToken(tx, k, waiting); err != nil {
		return err
	}
	return s.putToken(tx, k, inForce, t)
}

// sameToken says whether two rows are one token, whatever its outer encoding.
func sameToken(a, b *tokenRow) bool {
	return a != nil && b != nil && bytes.Equal(a.core, b.core)
}

func flag(b bool) int {
	if b {
		return 1
	}
	return 0
}
