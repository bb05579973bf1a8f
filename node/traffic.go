package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/oscore"
	"golang.org/x/time/rate"
)

// How often the Group Manager is asked because of a message that cannot be read, and
// how often in a row: anybody can send such messages, so their number must not be
// that of the questions.
const (
	askUnknown, burstUnknown = time.Second, 5      // for a Sender ID or Gid that is not known
	askChanged, burstChanged = 10 * time.Second, 2 // for a credential that may have been replaced
)

// Traffic protects what a member sends to its group and reads what it gets from
// there, with the keying material that the member holds: call [Traffic.Sync] in
// [Config.OnEvent], so that it follows. Whose credential is missing, and what was
// rekeyed without this member having heard of it yet, it asks the Group Manager.
//
// draft-ietf-core-oscore-groupcomm-28.
type Traffic struct {
	m *Member
	g *oscore.Group

	sync    sync.Mutex // one installation at a time
	version groupcomm.Version
	gid     []byte
	sid     groupcomm.SenderID
	cred    []byte
	held    bool // something is installed
	next    groupcomm.Version
	coming  bool // next is prepared

	misses atomic.Uint64

	creds, material, changed question
}

// question is one that the Group Manager is asked because of messages.
type question struct {
	mu    sync.Mutex // one at a time
	limit *rate.Limiter
	asked time.Time // guarded by mu: when it was answered
}

// TrafficConfig says how a member's traffic is protected.
type TrafficConfig struct {
	// Grace is how long messages under the material before the newest are still
	// read; 0: not at all.
	Grace time.Duration
	// SequenceLimit is how many messages with a number of their own are protected
	// under one Sender ID before the member asks for another; 0: 2^40.
	SequenceLimit uint64
	// Store keeps sequence numbers and Replay Windows over a restart, for a membership
	// that goes on after it ([Config.Saved]) as if nothing had been; nil: nowhere.
	Store oscore.GroupStore
}

// NewTraffic makes the traffic of a member, whether it has joined yet or not.
func NewTraffic(m *Member, cfg TrafficConfig) (*Traffic, error) {
	t := &Traffic{m: m}
	t.creds.limit = rate.NewLimiter(rate.Every(askUnknown), burstUnknown)
	t.material.limit = rate.NewLimiter(rate.Every(askUnknown), burstUnknown)
	t.changed.limit = rate.NewLimiter(rate.Every(askChanged), burstChanged)
	var err error
	t.g, err = oscore.NewGroup(oscore.GroupConfig{
		Creds: t, Grace: cfg.Grace, SequenceLimit: cfg.SequenceLimit,
		Store: cfg.Store,
	})
	return t, err
}

// Format prints traffic without keys.
func (t *Traffic) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "traffic of %v", t.m) }

// Group is the Security Context.
func (t *Traffic) Group() *oscore.Group { return t.g }

// Credential is the credential of a member with a Sender ID under a Gid, as far as
// the member knows. It makes Traffic an [oscore.CredentialSource].
func (t *Traffic) Credential(gid, kid []byte) ([]byte, bool) {
	s, ok := t.m.State()
	of := func(peers []Peer) ([]byte, bool) {
		for _, p := range peers {
			if bytes.Equal(p.SenderID, kid) {
				return p.Cred, true
			}
		}
		return nil, false
	}
	switch {
	case !ok:
	case bytes.Equal(s.Gid, gid):
		return of(s.Peers)
	case s.Before != nil && bytes.Equal(s.Before.Gid, gid):
		if cred, ok := of(s.Before.Peers); ok {
			return cred, true
		}
		return of(s.Peers) // who was asked for since
	}
	// Under an older Gid a Sender ID may be that of somebody else.
	return nil, false
}

// Misses counts messages that could not be read when they came, for want of their
// keying material.
func (t *Traffic) Misses() uint64 { return t.misses.Load() }

// Sync installs the keying material that the member holds now, if it is other than
// what is installed: a new version, a new Sender ID, or a new credential. Without a
// membership, or while missed rekeys are made up for, nothing is protected or read
// any more.
func (t *Traffic) Sync() error {
	t.sync.Lock()
	defer t.sync.Unlock()
	s, ok := t.m.State()
	if !ok || !s.Installed {
		if t.held && !ok {
			t.g.Leave()
		} else if t.held {
			t.g.Suspend()
		}
		t.held, t.coming = false, false
		return nil
	}
	cred := t.m.Cred()
	if s.Before != nil {
		return t.prepare(s, cred)
	}
	if t.coming && t.held && t.next == s.Version && bytes.Equal(t.g.Prepared(), s.Gid) {
		if err := t.g.Activate(); err != nil {
			return fmt.Errorf("node: begin with version %d: %w", s.Version, err)
		}
		t.version, t.gid, t.coming = s.Version, s.Gid, false
	}
	if t.held && s.Version == t.version && bytes.Equal(s.Gid, t.gid) {
		if s.SenderID == nil || bytes.Equal(s.SenderID, t.sid) && bytes.Equal(cred, t.cred) {
			return nil
		}
		if err := t.g.SetSender(t.sender(s, cred)); err != nil {
			return fmt.Errorf("node: new Sender ID: %w", err)
		}
		t.sid, t.cred = s.SenderID, cred
		return nil
	}
	// What is known of the others is the member's to say, and it forgot stale ones.
	if err := t.g.Install(Material(s), t.sender(s, cred), nil, true); err != nil {
		return fmt.Errorf("node: install version %d: %w", s.Version, err)
	}
	t.version, t.gid, t.sid, t.cred, t.held, t.coming = s.Version, s.Gid, s.SenderID, cred, true, false
	return nil
}

// prepare has the newest material read beside that in use.
func (t *Traffic) prepare(s State, cred []byte) error {
	b := s.Before
	if t.coming && t.next == b.Version && bytes.Equal(t.g.Prepared(), b.Gid) {
		// Two switches, one right after the other: the first is over.
		if err := t.g.Activate(); err != nil {
			return fmt.Errorf("node: begin with version %d: %w", b.Version, err)
		}
		t.version, t.gid, t.coming = b.Version, b.Gid, false
	}
	if !t.held || t.version != b.Version || !bytes.Equal(t.gid, b.Gid) {
		old := s // after a restart
		old.Gid, old.MasterSecret, old.MasterSalt = b.Gid, b.MasterSecret, b.MasterSalt
		if err := t.g.Install(Material(old), t.sender(s, cred), nil, true); err != nil {
			return fmt.Errorf("node: install version %d: %w", b.Version, err)
		}
		t.version, t.gid, t.sid, t.cred, t.held, t.coming = b.Version, b.Gid, s.SenderID, cred, true, false
	}
	if t.coming && t.next == s.Version && bytes.Equal(t.g.Prepared(), s.Gid) {
		return nil
	}
	if err := t.g.Prepare(Material(s), t.sender(s, cred)); err != nil {
		return fmt.Errorf("node: prepare version %d: %w", s.Version, err)
	}
	t.next, t.coming = s.Version, true
	return nil
}

func (t *Traffic) sender(s State, cred []byte) *oscore.GroupSender {
	if s.SenderID == nil {
		return nil
	}
	return &oscore.GroupSender{ID: s.SenderID, Key: t.m.Key(), Cred: cred}
}

// Material is the keying material of a membership as package oscore takes it.
func Material(s State) oscore.GroupMaterial {
	return oscore.GroupMaterial{
		Gid: s.Gid,
		Algorithms: oscore.GroupAlgorithms{
			AEAD: s.Params.Alg, HKDF: s.Params.HKDFOrDefault(), GroupEnc: s.Params.GpEncAlg,
			Sign: s.Params.SignAlg, KeyAgreement: s.Params.ECDHAlg,
		},
		CredFormat: s.Params.CredFmt, GMCred: s.KDCCred,
		MasterSecret: s.MasterSecret, MasterSalt: s.MasterSalt,
	}
}

// Request protects a request: in group mode, or for the member with the Sender ID to
// in pairwise mode. When the Sender Sequence Numbers are used up, the member joins
// again for a new Sender ID.
//
// draft-ietf-core-oscore-groupcomm-28, Section 2.6.2.
func (t *Traffic) Request(ctx context.Context, to *groupcomm.SenderID, req *coap.Message) (*coap.Message, *oscore.GroupExchange, error) {
	protect := func() (*coap.Message, *oscore.GroupExchange, error) {
		if to == nil {
			return t.g.ProtectRequest(ctx, nil, req)
		}
		return t.g.ProtectRequestTo(ctx, nil, *to, req)
	}
	m, x, err := protect()
	switch {
	case errors.Is(err, oscore.ErrExhausted):
		if err := t.m.Rejoin(ctx); err != nil {
			return nil, nil, err
		}
		if err := t.Sync(); err != nil {
			return nil, nil, err
		}
		return protect()
	case err != nil && t.learn(ctx, err):
		return protect()
	}
	return m, x, err
}

// ReadRequest reads a protected request of another member.
func (t *Traffic) ReadRequest(ctx context.Context, req *coap.Message) (*coap.Message, *oscore.GroupRequest, error) {
	m, x, err := t.g.UnprotectRequest(nil, req)
	if err != nil && x == nil && t.learn(ctx, err) {
		return t.g.UnprotectRequest(nil, req)
	}
	return m, x, err
}

// Reopen is [oscore.Group.Reopen].
func (t *Traffic) Reopen(ctx context.Context, req *coap.Message) (*oscore.GroupRequest, error) {
	x, err := t.g.Reopen(req)
	if err != nil && t.learn(ctx, err) {
		return t.g.Reopen(req)
	}
	return x, err
}

// ReadResponse reads a protected response.
func (t *Traffic) ReadResponse(ctx context.Context, x *oscore.GroupExchange, resp *coap.Message) (*coap.Message, *oscore.GroupResponder, error) {
	m, who, err := x.Unprotect(nil, resp)
	if err != nil && t.learn(ctx, err) {
		return x.Unprotect(nil, resp)
	}
	return m, who, err
}

// learn asks the Group Manager for what was missing, and says whether the message
// is worth another try.
//
// draft-ietf-core-oscore-groupcomm-28, Sections 2.6.3, 7.2 and 14.5.
func (t *Traffic) learn(ctx context.Context, err error) bool {
	var q *question
	var ask func() error
	switch {
	case errors.Is(err, oscore.ErrUnknownPeer):
		q = &t.creds
	case errors.Is(err, oscore.ErrDecrypt):
		q = &t.changed
	case errors.Is(err, oscore.ErrContext), errors.Is(err, oscore.ErrNoMaterial):
		t.misses.Add(1)
		q, ask = &t.material, func() error {
			if err := t.m.Poll(ctx); err != nil {
				return err
			}
			return t.Sync()
		}
	default:
		return false
	}
	if ask == nil {
		ask = func() error { _, err := t.m.Creds(ctx); return err }
	}
	began := time.Now()
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.asked.After(began) {
		return true // somebody asked while this one waited
	}
	if !q.limit.Allow() {
		return false
	}
	if err := ask(); err != nil {
		t.m.log.Info("asking the Group Manager because of a message failed", "err", err)
		return false
	}
	q.asked = time.Now()
	return true
}
