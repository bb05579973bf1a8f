package oscore

import (
	"bytes"
	"container/list"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/seed4911071e/groupgate/cose"
)

// groupContext is what was derived from one GroupMaterial. The group's lock
// guards the fields from sender on; the rest never changes.
type groupContext struct {
	gid, gmCred []byte
	credFormat  int64
	suite       *groupSuite
	secret      cose.Secret
	salt        []byte
	stored      string // name of the material in storage
	commonIV    []byte
	keystream   keystreamKey

	epoch      uint64 // order of installation
	life       uint64 // membership that it belongs to
	sender     *groupSender
	recipients map[string]*list.Element
	recency    list.List         // of *groupRecipient, the latest first
	purged     bool              // a Recipient Context was deleted
	changes    uint64            // new own Sender IDs under this material
	known      map[string][]byte // credentials taken over at a rekey, by kid
}

// groupSender is a Sender Context.
type groupSender struct {
	id, cred []byte
	key      *cose.Key
	member   cose.Secret // Sender Key
	cipher   *groupCipher
	sign     func(dst, msg []byte) ([]byte, error)
	seq      *Sequence
	change   uint64
}

// newGroupContext derives what belongs to no member.
func newGroupContext(m GroupMaterial) (*groupContext, error) {
	suite, err := newGroupSuite(m.Algorithms)
	if err != nil {
		return nil, err
	}
	if len(m.Gid) > maxGid {
		return nil, fmt.Errorf("oscore: Gid of %d bytes", len(m.Gid))
	}
	if m.MasterSecret.IsZero() {
		return nil, errors.New("oscore: no Master Secret")
	}
	if len(m.GMCred) == 0 || len(m.GMCred) > maxGroupCred {
		return nil, fmt.Errorf("oscore: credential of the Group Manager of %d bytes", len(m.GMCred))
	}
	gmCred, err := endEntity(m.CredFormat, m.GMCred)
	if err != nil {
		return nil, fmt.Errorf("oscore: credential of the Group Manager: %w", err)
	}
	c := &groupContext{
		gid: append([]byte{}, m.Gid...), gmCred: bytes.Clone(gmCred), credFormat: m.CredFormat, suite: suite,
		secret: m.MasterSecret, salt: bytes.Clone(m.MasterSalt),
		recipients: map[string]*list.Element{}, known: map[string][]byte{},
	}
	c.stored = c.name("material", nil)
	secret := m.MasterSecret.Bytes()
	if c.commonIV, err = suite.commonIV(secret, c.salt, c.gid); err != nil {
		return nil, err
	}
	if suite.group {
		k, err := suite.signatureEncryptionKey(secret, c.salt, c.gid)
		if err != nil {
			return nil, err
		}
		c.keystream = keystreamKey{suite, k}
	}
	return c, nil
}

// sameKeys says whether two contexts derive the same keys.
func (c *groupContext) sameKeys(o *groupContext) bool {
	return bytes.Equal(c.gid, o.gid) && bytes.Equal(c.salt, o.salt) && c.secret.Equal(o.secret)
}

// memberKeyOf derives the key of one member's messages in group mode, which is the
// salt of its pairwise keys as well.
func (c *groupContext) memberKeyOf(id []byte) ([]byte, error) {
	return c.suite.memberKey(c.secret.Bytes(), c.salt, c.gid, id)
}

// newSender derives a Sender Context but for its sequence numbers.
func (c *groupContext) newSender(in *GroupSender) (*groupSender, error) {
	if in == nil || in.Key == nil || !in.Key.IsPrivate() {
		return nil, errors.New("oscore: a sender needs a private key")
	}
	if len(in.ID) > c.suite.maxID {
		return nil, fmt.Errorf("oscore: Sender ID of %d bytes, at most %d are possible", len(in.ID), c.suite.maxID)
	}
	cred, key, err := c.suite.memberCredential(c.credFormat, in.Cred)
	if err != nil {
		return nil, err
	}
	if !key.SamePublic(in.Key) {
		return nil, errors.New("oscore: the sender's credential is not for its key")
	}
	s := &groupSender{id: append([]byte{}, in.ID...), cred: bytes.Clone(cred), key: in.Key}
	member, err := c.memberKeyOf(s.id)
	if err != nil {
		return nil, err
	}
	s.member = cose.NewSecret(member)
	if c.suite.group {
		s.sign = in.Key.AppendSigner()
		if s.cipher, err = newGroupCipher(c.suite.GroupEnc, member); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// nextPIV takes the next Sender Sequence Number, and writes it to b as a Partial IV.
func (s *groupSender) nextPIV(ctx context.Context, b []byte) ([]byte, error) {
	n, err := s.seq.Next(ctx)
	if errors.Is(err, ErrExhausted) {
		// draft-ietf-core-oscore-groupcomm-28, Section 2.6.2.
		return nil, fmt.Errorf("%w: ask the Group Manager for a new Sender ID", err)
	}
	if err != nil {
		return nil, err
	}
	return appendPIV(b, n), nil
}

// openSequence opens the sequence numbers of a Sender Context that was never used.
func (g *Group) openSequence(c *groupContext, id []byte) (*Sequence, error) {
	name := c.nameOf(id)
	g.mu.Lock()
	used := slices.Contains(g.spent, name)
	if !used {
		g.spent = append(g.spent, name)
		if len(g.spent) > maxSpent {
			g.spent = slices.Delete(g.spent, 0, len(g.spent)-maxSpent)
		}
	}
	g.mu.Unlock()
	if used {
		return nil, ErrReused
	}
	cfg := SequenceConfig{Limit: g.cfg.SequenceLimit}
	if g.cfg.Sequences != nil {
		reserved, store, err := g.cfg.Sequences.Open(name)
		if err != nil {
			g.mu.Lock()
			g.spent = slices.DeleteFunc(g.spent, func(n string) bool { return n == name })
			g.mu.Unlock()
			return nil, fmt.Errorf("oscore: sequence numbers: %w", err)
		}
		if reserved != 0 && !g.cfg.Resume && g.cfg.Store == nil {
			return nil, ErrContextLost
		}
		cfg.Start, cfg.Store = reserved, store
	}
	return NewSequence(cfg)
}

// nameOf is the name of a Sender Context in storage: a digest of what it is derived
// from, from which nothing of that can be had.
func (c *groupContext) nameOf(id []byte) string { return c.name("sender context", id) }

func (c *groupContext) name(what string, id []byte) string {
	h := hmac.New(sha256.New, c.secret.Bytes())
	h.Write(cose.MustMarshal([]any{what, c.suite.keyAlg, c.suite.HKDF, c.salt, c.gid, id}))
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// takeOver keeps the credentials of the context before, but for those of stale
// Sender IDs.
func (c *groupContext) takeOver(before *groupContext, stale [][]byte, limit int) {
	keep := func(kid string, cred []byte) {
		if len(c.known) < limit && !slices.ContainsFunc(stale, func(id []byte) bool { return string(id) == kid }) {
			c.known[kid] = cred
		}
	}
	for kid, e := range before.recipients {
		keep(kid, e.Value.(*groupRecipient).cred)
	}
	for kid, cred := range before.known {
		if _, newer := c.known[kid]; !newer {
			keep(kid, cred)
		}
	}
}
