package oscore

import (
	"bytes"
	"container/list"
	"time"

	"github.com/seed4911071e/groupgate/cose"
)

// groupRecipient is a Recipient Context. What the group's lock guards is in state,
// which a recipient shares with the one that replaces it when the credential
// changed; pair is replaced as a whole; the rest never changes.
type groupRecipient struct {
	id, cred []byte
	key      *cose.Key
	member   cose.Secret // Recipient Key
	cipher   *groupCipher
	verify   func(msg, sig []byte) error
	pair     *pairCiphers // guarded by the group's lock
	state    *recipientState
}

// recipientState is the varying part of a Recipient Context.
type recipientState struct {
	window *Window
	echo   []byte
	echoAt time.Time
	told   uint64 // which change of the own Sender ID this peer was told
}

// pairCiphers are the two pairwise keys that are shared with one peer.
//
// draft-ietf-core-oscore-groupcomm-28, Section 2.5.
type pairCiphers struct {
	sender        *groupSender // whose keys they are
	send, receive *groupCipher
}

// newRecipient derives the Recipient Context of a member.
func (c *groupContext) newRecipient(id, cred []byte) (*groupRecipient, error) {
	own, key, err := c.suite.memberCredential(c.credFormat, cred)
	if err != nil {
		return nil, err
	}
	r := &groupRecipient{id: append([]byte{}, id...), cred: bytes.Clone(own), key: key}
	member, err := c.memberKeyOf(r.id)
	if err != nil {
		return nil, err
	}
	r.member = cose.NewSecret(member)
	if c.suite.group {
		r.verify = key.Verifier()
		if r.cipher, err = newGroupCipher(c.suite.GroupEnc, member); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// newPair derives the pairwise keys that s and r share.
func (c *groupContext) newPair(s *groupSender, r *groupRecipient) (*pairCiphers, error) {
	z, err := s.key.ECDH(r.key)
	if err != nil {
		return nil, err
	}
	defer clear(z)
	p := &pairCiphers{sender: s}
	k, err := c.suite.pairwiseKey(s.member.Bytes(), s.id, c.gid, s.cred, r.cred, z)
	if err != nil {
		return nil, err
	}
	if p.send, err = newGroupCipher(c.suite.AEAD, k); err != nil {
		return nil, err
	}
	if k, err = c.suite.pairwiseKey(r.member.Bytes(), r.id, c.gid, r.cred, s.cred, z); err != nil {
		return nil, err
	}
	p.receive, err = newGroupCipher(c.suite.AEAD, k)
	return p, err
}

// pairOf gives the pairwise keys shared with r, derived at most once for each own
// Sender Context.
func (g *Group) pairOf(c *groupContext, s *groupSender, r *groupRecipient) (*pairCiphers, error) {
	g.mu.Lock()
	p := r.pair
	g.mu.Unlock()
	if p != nil && p.sender == s {
		return p, nil
	}
	p, err := c.newPair(s, r)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	r.pair = p
	g.mu.Unlock()
	return p, nil
}

// recipientLocked finds a Recipient Context.
func (c *groupContext) recipientLocked(kid []byte) *groupRecipient {
	if e := c.recipients[string(kid)]; e != nil {
		return e.Value.(*groupRecipient)
	}
	return nil
}

// candidates calls try with each Recipient Context that may be that of kid beside
// failed, the one at hand, until one fits: one for the credential that was known
// before a rekey, then one for what the source of credentials knows. What is new is
// not installed: keepLocked does that, once a message verified.
//
// Without any credential the error is [ErrUnknownPeer].
func (g *Group) candidates(c *groupContext, kid []byte, failed *groupRecipient, try func(*groupRecipient) error) (*groupRecipient, error) {
	var last error
	if failed == nil {
		g.mu.Lock()
		known := c.known[string(kid)]
		g.mu.Unlock()
		if known != nil {
			if r, err := c.newRecipient(kid, known); err == nil {
				if last = try(r); last == nil {
					return r, nil
				}
				failed = r
			}
		}
	} else {
		last = ErrDecrypt
	}
	cred, ok := g.cfg.Creds.Credential(c.gid, bytes.Clone(kid))
	if !ok || len(cred) > maxGroupCred {
		if last == nil {
			last = ErrUnknownPeer
		}
		return nil, last
	}
	if failed != nil {
		if own, err := endEntity(c.credFormat, cred); err != nil || bytes.Equal(own, failed.cred) {
			return nil, last // nothing new
		}
	}
	fresh, err := c.newRecipient(kid, cred)
	if err != nil {
		return nil, ErrUnknownPeer
	}
	if err := try(fresh); err != nil {
		return nil, err
	}
	return fresh, nil
}

// keepLocked installs a Recipient Context with which a message verified, and
// returns the varying part that counts. The varying part stays when
// only the credential changed: the keys of group mode, and so the nonces, are of
// the Sender ID.
//
// draft-ietf-core-oscore-groupcomm-28, Sections 2.6.1.2 and 2.6.3.
func (g *Group) keepLocked(c *groupContext, r *groupRecipient) *recipientState {
	if e := c.recipients[string(r.id)]; e != nil {
		c.recency.MoveToFront(e)
		at := e.Value.(*groupRecipient)
		if at != r {
			r.state = at.state
			e.Value = r
		}
		return r.state
	}
	if r.state == nil {
		r.state = &recipientState{window: g.windowOf(c, r.id)}
	}
	c.recipients[string(r.id)] = c.recency.PushFront(r)
	delete(c.known, string(r.id))
	for c.recency.Len() > g.cfg.MaxRecipients {
		c.deleteLocked(c.recency.Back())
	}
	return r.state
}

// deleteLocked deletes a Recipient Context for good.
func (c *groupContext) deleteLocked(e *list.Element) {
	c.recency.Remove(e)
	delete(c.recipients, string(e.Value.(*groupRecipient).id))
	c.purged = true
}

// Window is the Replay Window for the requests of a member, under the newest
// material; nil when it has no Recipient Context.
func (g *Group) Window(kid []byte) *Window {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.now == nil {
		return nil
	}
	if r := g.now.recipientLocked(kid); r != nil {
		return r.state.window
	}
	return nil
}

// Forget deletes the Recipient Context of a member, in all material at hand. When
// it is derived again its Replay Window is what the [GroupStore] has, or without one
// invalid until the member proves freshness, or until the next rekey.
func (g *Group) Forget(kid []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range []*groupContext{g.now, g.next, g.old} {
		if c == nil {
			continue
		}
		delete(c.known, string(kid))
		if e := c.recipients[string(kid)]; e != nil {
			c.deleteLocked(e)
		}
	}
}
