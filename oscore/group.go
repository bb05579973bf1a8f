package oscore

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/cose"
)

// Defaults and limits of a [Group].
const (
	// defaultMaxRecipients bounds the Recipient Contexts of a group: each takes
	// about a kilobyte.
	defaultMaxRecipients = 1024
	// maxGid is what the length byte of the kid context can say.
	maxGid = 255
	// maxGroupCred bounds a credential: a certificate takes less.
	maxGroupCred = 8192
	// maxSpent bounds the memory of own Sender Contexts: a Group Manager that comes
	// back to one, or a caller that installs old material, does it soon.
	maxSpent = 4096
)

// GroupMaterial is the Common Context of a group, as the Group Manager gives it.
//
// draft-ietf-core-oscore-groupcomm-28, Section 2.1.
type GroupMaterial struct {
	Gid          []byte // Group Identifier, the ID Context
	Algorithms   GroupAlgorithms
	CredFormat   int64  // COSE header label of the kind of credentials
	GMCred       []byte // of the Group Manager, whose possession of the key was proven
	MasterSecret cose.Secret
	MasterSalt   []byte // nil: none
}

// GroupSender is what a member needs to protect messages.
type GroupSender struct {
	ID   []byte    // Sender ID
	Key  *cose.Key // private key, for signatures and key agreement
	Cred []byte    // own credential, byte for byte as others have it
}

// Format prints a sender without its key.
func (s GroupSender) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "sender %x", s.ID) }

// LogValue keeps the key out of logs.
func (s GroupSender) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(s)) }

// GroupConfig says how a [Group] works. Creds is required.
type GroupConfig struct {
	Creds CredentialSource
	// Sequences keeps Sender Sequence Numbers across restarts. nil: in memory only,
	// for a member that joins anew after each start.
	Sequences GroupSequences
	// Resume goes on with a Sender Context that was used before a restart, behind
	// the numbers that Sequences has reserved, in place of [ErrContextLost]. What
	// came from others before is forgotten, so under that material every Replay
	// Window is invalid until its owner answered a challenge.
	//
	// draft-ietf-core-oscore-groupcomm-28, Sections 2.6.1.2 and 9.
	Resume bool
	// Store keeps the Replay Windows as well: with it, in place of Sequences and
	// Resume, a member goes on after a restart with the keying material that it had,
	// and challenges nobody.
	Store GroupStore
	// SequenceLimit is one more than the last Sender Sequence Number; 0: 2^40. Some
	// algorithms allow fewer messages with one key than that.
	SequenceLimit uint64
	// MaxRecipients bounds the Recipient Contexts; 0: 1024. Beyond it the one used
	// longest ago is deleted, and from then on every new one, until the next
	// rekey, starts with an invalid Replay Window.
	MaxRecipients int
	// Grace is how long messages under the material before the newest are still
	// read; 0: not at all. Nothing is ever protected with it.
	Grace time.Duration
	// MaxAge is what a 5.03 says when the credential of a sender is not known, in
	// seconds; 0: 5.
	MaxAge uint32
}

// GroupSequences makes the Sender Sequence Numbers of a group durable.
type GroupSequences interface {
	// Open gives the largest number that was ever reserved for a Sender Context, 0
	// for a new one, and where to reserve more. name is a digest of its Master
	// Secret, Master Salt, Gid and Sender ID, safe to show. With
	// [GroupConfig.Resume] a name that was opened before is never new, though
	// nothing was reserved, and Open is asked about the material without a Sender
	// ID as well, of which nothing is reserved.
	Open(name string) (reserved uint64, store Reserver, err error)
}

// Errors of a [Group] that are not about one message.
var (
	// ErrNoMaterial: no keying material is installed.
	ErrNoMaterial = errors.New("oscore: the group has no keying material installed")
	// ErrSilent: a member without a Sender ID protects nothing.
	ErrSilent = errors.New("oscore: a silent server protects no messages")
	// ErrContextLost: the Sender Context was used before a restart, and without a
	// [GroupStore] what it knew of others is lost. Join again, or ask for a new Sender
	// ID.
	//
	// draft-ietf-core-oscore-groupcomm-28, Section 2.6.1.1.
	ErrContextLost = errors.New("oscore: this Sender Context was used before a restart: ask the Group Manager for new parameters")
	// ErrReused: the Sender ID was used under this keying material before.
	ErrReused = errors.New("oscore: the Sender ID was used under this keying material before")
)

// Group is the Security Context of one member of an OSCORE group, through all its
// rekeys (draft-ietf-core-oscore-groupcomm-28). Make it with [NewGroup], give it
// keying material with [Group.Install], then protect requests with
// [Group.ProtectRequest] and read them with [Group.UnprotectRequest]; what those
// return protects and reads the responses.
//
// Its methods may be called from several goroutines. It prints without keys.
type Group struct {
	cfg GroupConfig

	mu     sync.Mutex
	now    *groupContext // newest material; nil: none
	next   *groupContext // to come, see Prepare; nil: none
	old    *groupContext // the one before, to read only
	until  time.Time     // when old is over
	epochs uint64        // counts what was installed
	life   uint64        // counts memberships: Leave ends one
	spent  []string      // names of Sender Contexts in use or used, the newest last
}

// NewGroup makes a group without keying material.
func NewGroup(cfg GroupConfig) (*Group, error) {
	if cfg.Creds == nil {
		return nil, errors.New("oscore: a group needs a source of credentials")
	}
	if cfg.Resume && cfg.Sequences == nil {
		return nil, errors.New("oscore: to resume, sequence numbers have to be kept")
	}
	if cfg.Store != nil {
		if cfg.Sequences != nil || cfg.Resume {
			return nil, errors.New("oscore: a group needs one place for sequence numbers: a Store keeps them as well")
		}
		cfg.Sequences = cfg.Store
	}
	if cfg.MaxRecipients < 0 || cfg.Grace < 0 {
		return nil, errors.New("oscore: a negative limit")
	}
	if cfg.SequenceLimit > maxSequence {
		return nil, errors.New("oscore: sequence numbers end at 2^40")
	}
	if cfg.MaxRecipients == 0 {
		cfg.MaxRecipients = defaultMaxRecipients
	}
	if cfg.MaxAge == 0 {
		cfg.MaxAge = defaultUnknownPeerMaxAge
	}
	return &Group{cfg: cfg}, nil
}

// Format prints a group without its keys.
func (g *Group) Format(f fmt.State, _ rune) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.now == nil {
		fmt.Fprint(f, "group without keying material")
		return
	}
	fmt.Fprintf(f, "group %x", g.now.gid)
}

// LogValue keeps keys out of logs.
func (g *Group) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(g)) }

// Gid is the Group Identifier of the newest material; nil when there is none.
func (g *Group) Gid() []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.now == nil {
		return nil
	}
	return bytes.Clone(g.now.gid)
}

// HasPairwise says whether the newest material has the pairwise mode.
func (g *Group) HasPairwise() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.now != nil && g.now.suite.pairwise
}

// HasGroupMode says whether the newest material has the group mode.
func (g *Group) HasGroupMode() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.now != nil && g.now.suite.group
}

// Install begins with new keying material: at a join, and at every rekey. sender
// is nil for a silent server. stale are the Sender IDs whose owners have them no
// more: what is known about them is forgotten; with all, everything is.
//
// Sender Sequence Number and Replay Windows begin at 0, Recipient Contexts are
// derived anew when needed, and long exchanges go on. The material before it is
// kept to read messages with for the time of [GroupConfig.Grace].
//
// draft-ietf-core-oscore-groupcomm-28, Section 2.6.3.2.
func (g *Group) Install(m GroupMaterial, sender *GroupSender, stale [][]byte, all bool) error {
	next, err := g.derive(m, sender)
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.now != nil {
		if g.now.sameKeys(next) {
			return errInstalled
		}
		if !all {
			next.takeOver(g.now, stale, g.cfg.MaxRecipients)
		}
		g.old, g.until = g.now, time.Now().Add(g.cfg.Grace)
	}
	g.epochs++
	next.epoch, next.life = g.epochs, g.life
	g.now, g.next = next, nil
	return nil
}

// derive makes a context that was never used.
func (g *Group) derive(m GroupMaterial, sender *GroupSender) (*groupContext, error) {
	c, err := newGroupContext(m)
	if err != nil {
		return nil, err
	}
	if g.cfg.Resume {
		// Requests may have been read under it before a restart, by another Sender
		// ID perhaps.
		before, _, err := g.cfg.Sequences.Open(c.stored)
		if err != nil {
			return nil, fmt.Errorf("oscore: sequence numbers: %w", err)
		}
		c.purged = before != 0
	}
	if sender != nil {
		s, err := c.newSender(sender)
		if err != nil {
			return nil, err
		}
		if s.seq, err = g.openSequence(c, s.id); err != nil {
			return nil, err
		}
		c.sender = s
	}
	return c, nil
}

// SetSender begins with a new Sender ID under the same keying material, or with a
// new credential under the same Sender ID. Sender Sequence Numbers begin at 0
// with an ID that is new and go on with one that stays; an ID that was given up is
// refused.
//
// draft-ietf-core-oscore-groupcomm-28, Section 2.6.3.1.
func (g *Group) SetSender(sender *GroupSender) error {
	g.mu.Lock()
	c := g.now
	g.mu.Unlock()
	if c == nil {
		return ErrNoMaterial
	}
	s, err := c.newSender(sender)
	if err != nil {
		return err
	}
	g.mu.Lock()
	same := c.sender != nil && bytes.Equal(c.sender.id, s.id)
	g.mu.Unlock()
	if !same {
		if s.seq, err = g.openSequence(c, s.id); err != nil {
			return err
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.now != c || same != (c.sender != nil && bytes.Equal(c.sender.id, s.id)) {
		return errors.New("oscore: the Sender Context changed meanwhile")
	}
	if same {
		s.seq, s.change = c.sender.seq, c.sender.change
	} else {
		c.changes++
		s.change = c.changes
	}
	c.sender = s
	return nil
}

// Suspend deletes the keying material, as a member does that missed a rekey. The
// exchanges go on with what is installed next.
func (g *Group) Suspend() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.now, g.next, g.old = nil, nil, nil
}

// Leave deletes the keying material and ends the exchanges that this member
// began. Install begins anew.
//
// draft-ietf-core-oscore-groupcomm-28, Section 5.1.
func (g *Group) Leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.now, g.next, g.old = nil, nil, nil
	g.life++
}

// oldLocked is the context before the newest, while it may still read.
func (g *Group) oldLocked() *groupContext {
	if g.old != nil && !time.Now().Before(g.until) {
		g.old = nil
	}
	return g.old
}

// contextsLocked are the contexts that may read a message with a Gid, that in use
// first; nil stands for those that may not. A nil gid means all.
func (g *Group) contextsLocked(gid []byte) [3]*groupContext {
	out := [3]*groupContext{g.now, g.next, g.oldLocked()}
	for i, c := range out {
		if c != nil && gid != nil && !bytes.Equal(c.gid, gid) {
			out[i] = nil
		}
	}
	return out
}

// senderContext is the newest material with its sender.
func (g *Group) senderContext() (*groupContext, *groupSender, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.now == nil {
		return nil, nil, ErrNoMaterial
	}
	if g.now.sender == nil {
		return nil, nil, ErrSilent
	}
	return g.now, g.now.sender, nil
}

// responseContext is that for the response to a request that came under c: the newest
// material in use, or that to come, where the client has it already.
func (g *Group) responseContext(c *groupContext) (*groupContext, *groupSender, error) {
	g.mu.Lock()
	if c == g.next && c.sender != nil {
		defer g.mu.Unlock()
		return c, c.sender, nil
	}
	g.mu.Unlock()
	return g.senderContext()
}
