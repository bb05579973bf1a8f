// Package gmtest has what tests of the Group Manager and of its neighbours
// need: an [Authority] in memory that keeps the real rules for challenges, and
// a [Joiner] with real keys that makes valid requests for any coap.Handler.
package gmtest

import (
	"context"
	"crypto/rand"
	"errors"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// Bounds of challenges: docs/protocol.md, Section 2.
const (
	challengesKept = 4
	challengeLife  = 10 * time.Minute
	challengeLen   = 8
)

// Authority is a gm.Authority in memory: tokens come from Allow instead of the
// network, all else is as with the real one. Its zero value is ready to use.
type Authority struct {
	mu     sync.Mutex
	tokens map[coap.Subject]*token // guarded by mu
}

type token struct {
	scope      groupcomm.Scope
	expires    time.Time
	public     *cose.Key
	challenges []challenge // newest first
}

type challenge struct {
	ns   []byte
	at   time.Time
	used bool // a proof covered it: it stays until it is replaced
}

// Allow gives the subject a token, in place of an earlier one whose challenges
// it keeps. A zero expires is never.
func (a *Authority) Allow(s coap.Subject, scope groupcomm.Scope, expires time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.tokens == nil {
		a.tokens = map[coap.Subject]*token{}
	}
	t := &token{scope: scope, expires: expires}
	if old := a.tokens[s]; old != nil {
		t.challenges = old.challenges
	}
	a.tokens[s] = t
}

// Confirm has the subject's token confirm a public key, or none.
func (a *Authority) Confirm(s coap.Subject, public *cose.Key) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tokens[s].public = public
}

// Revoke takes the subject's token away.
func (a *Authority) Revoke(s coap.Subject) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.tokens, s)
}

// ForgetChallenges loses all N_S of a subject, as a restart might.
func (a *Authority) ForgetChallenges(s coap.Subject) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if t := a.tokens[s]; t != nil {
		t.challenges = nil
	}
}

var errNoToken = errors.New("gmtest: no valid token")

// find returns the subject's valid token.
func (a *Authority) findLocked(s coap.Subject) (*token, error) {
	t := a.tokens[s]
	if t == nil || !t.expires.IsZero() && !time.Now().Before(t.expires) {
		r := &coap.Response{Code: coap.Unauthorized, Payload: []byte{0xa0}}
		r.Options.SetContentFormat(coap.ACE)
		return nil, coap.Respond(r, errNoToken)
	}
	return t, nil
}

// Grant tells what the peer's subject may do.
func (a *Authority) Grant(_ context.Context, p coap.Peer) (*groupcomm.Grant, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := p.Subject
	if p.Via == coap.Plain { // nobody proved anything
		s = coap.Subject{}
	}
	t, err := a.findLocked(s)
	if err != nil {
		return nil, err
	}
	g := &groupcomm.Grant{Token: p.Subject.ID, Subject: p.Subject, Scope: t.scope, Expires: t.expires, PublicKey: t.public}
	for _, c := range t.challenges {
		if c.used || time.Since(c.at) < challengeLife {
			g.Challenges = append(g.Challenges, c.ns)
		}
	}
	return g, nil
}

// NewChallenge makes a new N_S.
func (a *Authority) NewChallenge(_ context.Context, s coap.Subject) ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t, err := a.findLocked(s)
	if err != nil {
		return nil, err
	}
	ns := make([]byte, challengeLen)
	rand.Read(ns)
	t.challenges = append([]challenge{{ns: ns, at: time.Now()}}, t.challenges...)
	if len(t.challenges) > challengesKept {
		t.challenges = t.challenges[:challengesKept]
	}
	return ns, nil
}

// UsedChallenge keeps ns alone once the transaction is on disk.
func (a *Authority) UsedChallenge(tx *store.Tx, s coap.Subject, ns []byte) error {
	tx.AfterCommit(func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if t := a.tokens[s]; t != nil {
			t.challenges = []challenge{{ns: ns, at: time.Now(), used: true}}
		}
	})
	return nil
}
