package ace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// ClientInfo is a client of the embedded Authorization Server as operators see it:
// the name that they know a node by, which is none in its groups.
type ClientInfo struct {
	Identity string
	State    string          // configured, enabled, disabled
	MayToken bool            // it may ask for tokens
	Scope    groupcomm.Scope // the most that it may have, for all audiences
	Until    time.Time       // end of the token that lasts longest; zero: none was issued, those that were are revoked, or ended a week ago
	Posted   bool            // this gateway has a token of it

	Association coap.Subject   // who it is over an association with its own key
	Subjects    []coap.Subject // who it is with the keys that it was given, the newest first

	kids [][]byte
}

// maxClientKeys bounds the keys that one client is known by: many nodes may share it.
const maxClientKeys = 512

// Is says whether a subject is the holder of a key that the client was given.
func (c *ClientInfo) Is(s coap.Subject) bool {
	if slices.Contains(c.Subjects, s) {
		return true
	}
	// Of a key whose tokens ended nothing is stored but its name.
	kid := subjectKID(s)
	return s.Kind == coap.SubjectPoP && slices.ContainsFunc(c.kids, func(k []byte) bool { return bytes.Equal(k, kid) })
}

// Client tells about a client, nil when nobody has the identity.
func (s *Server) Client(ctx context.Context, identity string) (*ClientInfo, error) {
	c := &ClientInfo{Identity: identity}
	n, err := s.enrolledNode(ctx, identity)
	if err != nil {
		return nil, err
	}
	switch p := s.identities[identity]; {
	case p != nil:
		c.State, c.MayToken, c.Association = "configured", p.MayToken, coap.Subject{Kind: coap.SubjectPSK, ID: identity}
		if s.cfg.AS != nil {
			for _, policy := range s.cfg.AS.Policies {
				if policy.Client == identity {
					c.Scope = append(c.Scope, policy.Scope...)
				}
			}
			c.Scope = tidy(c.Scope)
		}
	case n == nil:
		return nil, nil
	default:
		c.State, c.MayToken, c.Scope, c.Association = "enabled", n.disabled == 0 && s.cfg.AS != nil, n.scope, n.subject()
		if n.disabled != 0 {
			c.State = "disabled"
		}
	}
	if s.store == nil {
		return c, nil
	}
	err = s.store.View(ctx, func(tx *store.Tx) error { return s.keysOf(tx, c) })
	if err != nil {
		return nil, fmt.Errorf("ace: keys of a client: %w", err)
	}
	return c, nil
}

// keysOf finds what a client was given, the newest first.
func (s *Server) keysOf(tx *store.Tx, c *ClientInfo) error {
	c.kids, c.Subjects, c.Until, c.Posted = nil, nil, time.Time{}, false
	rows, err := tx.Query(`SELECT kid, expires, blocked FROM ace_issued WHERE client = ? ORDER BY expires DESC LIMIT ?`, []byte(c.Identity), maxClientKeys)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var kid []byte
		var expires, blocked int64
		if err := rows.Scan(&kid, &expires, &blocked); err != nil {
			return err
		}
		if blocked == 0 && c.Until.IsZero() {
			c.Until = time.Unix(expires, 0)
		}
		c.kids = append(c.kids, kid)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	for _, kid := range c.kids {
		k, err := issuedKeyRow(tx, kid)
		switch {
		case errors.Is(err, store.ErrNotFound):
		case err != nil:
			return err
		case s.ownOrigin(k.origin):
			c.Subjects = append(c.Subjects, k.subject)
			c.Posted = c.Posted || k.tokens[inForce] != nil || k.tokens[waiting] != nil
		}
	}
	return nil
}

// ClientOf is the identity of the client that a subject's key was given to; "": it
// was none of the embedded Authorization Server's.
func (s *Server) ClientOf(ctx context.Context, subject coap.Subject) (identity string, err error) {
	if s.store == nil || s.cfg.AS == nil {
		return "", nil
	}
	err = s.store.View(ctx, func(tx *store.Tx) error {
		identity = ""
		var names [][]byte
		switch k, err := keyBySubject(tx, subject); {
		case errors.Is(err, store.ErrNotFound):
			return nil
		case err != nil:
			return err
		case !s.ownOrigin(k.origin):
			return nil
		case subject.Kind == coap.SubjectKeyHash:
			for _, e := range s.cfg.Entries {
				names = append(names, publicKID(subject.ID, e.Audience))
			}
		default:
			names = append(names, k.kid)
		}
		for _, name := range names {
			var client []byte
			err := tx.QueryRow(`SELECT client FROM ace_issued WHERE kid = ?`, name).Scan(&client)
			if err == nil {
				identity = string(client)
				return nil
			}
			if !errors.Is(err, store.ErrNotFound) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("ace: client of a key: %w", err)
	}
	return identity, nil
}

// HandshakeIdentity is the psk_identity with which the holder of a stored token's
// key opens an association; nil: it has another kind of key.
func HandshakeIdentity(s coap.Subject) []byte {
	kid := subjectKID(s)
	if s.Kind != coap.SubjectPoP || kid == nil {
		return nil
	}
	return KIDIdentity(kid)
}
