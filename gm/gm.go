// Package gm is the Group Manager: it admits nodes to OSCORE groups, gives out
// identifiers and keying material, and renews the material when it must
// (RFC 9594, draft-ietf-ace-key-groupcomm-oscore-21).
//
// Start at [New]. A [Manager] is a CoAP handler for everything under
// /ace-group and /group-oscore; [Manager.Setup] brings the declared groups into being and
// [Manager.Run] works off rekeys that became due. One request takes this path:
// gate.go asks who may use which method on which resource, the resource's own
// file answers. join.go is the decision table of a Join Request, rekey.go the
// engine that renews keys, group.go the states of a group. legacy.go serves the
// same groups in the dialects of 2019 and 2020, under /group-oscore.
//
// What the Group Manager decides is on disk before anybody hears of it, and
// every change writes an event in its own transaction: the room that delivers
// rekeys follows those events. Keys, tokens and proofs never reach a log.
package gm

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// Authority knows what a peer may do: the Resource Server side of ACE.
type Authority interface {
	// Grant looks up the rights of a peer. The error of a peer without any is
	// its whole response: 4.01, perhaps with AS Request Creation Hints.
	Grant(ctx context.Context, p coap.Peer) (*groupcomm.Grant, error)
	// NewChallenge makes a new N_S for the subject and stores it.
	NewChallenge(ctx context.Context, s coap.Subject) ([]byte, error)
	// UsedChallenge records, in the transaction of a join, that a proof of
	// possession covered ns.
	UsedChallenge(tx *store.Tx, s coap.Subject, ns []byte) error
}

// Delivery brings rekeys to members. A Delivery that is also a
// [holder] is told what members' requests show.
type Delivery interface {
	// Enroll prepares what a member needs for the channel that it asked for at
	// join: commit runs in the join's transaction, and may run again; what mgt
	// gives after that goes into label 27, mgt is nil when there is none. A nil want
	// ends an earlier enrolment.
	Enroll(ctx context.Context, group, node string, want *groupcomm.Delivery) (mgt func() []byte, commit func(*store.Tx) error, err error)
	// Enrolled gives mgt again, for a member that asks for its keying material;
	// nil when there is none.
	Enrolled(ctx context.Context, group, node string) (mgt []byte, err error)
	// Prepare renders the messages of a rekey that is about to happen; commit
	// stores them in its transaction, and may run again.
	Prepare(ctx context.Context, plan groupcomm.RekeyPlan) (commit func(*store.Tx) error, err error)
	// Remove forgets a member that left or was evicted.
	Remove(tx *store.Tx, group, node string) error
	// RemoveAll forgets all members of a group that is deleted.
	RemoveAll(tx *store.Tx, group string, nodes []string) error
}

// mover is the optional part of a Delivery that brings along how members are told
// when their group moves to another gateway.
type mover interface {
	// Branches lists the members that follow the key tree of a group, with the
	// channel that each asked for.
	Branches(tx *store.Tx, group string) (channels map[string]string, err error)
	// Replant has members follow the key tree of a group that is about to come
	// into being: with new keys, which they get when they ask for their keying
	// material. commit belongs into the transaction.
	Replant(ctx context.Context, group string, channels map[string]string) (commit func(*store.Tx) error, err error)
}

// phaser is the optional part of a Delivery that tells scheduled rekeys in two phases.
type phaser interface {
	// Dormant is in how many seconds, at the latest, a member that asked for two phases
	// begins to use a version that it has; 0: at once.
	Dormant(group, node string, num uint64) uint64
}

// holder is the optional part of a Delivery: it hears what requests show.
type holder interface {
	// Held: the member showed that it holds this version.
	Held(ctx context.Context, group, node string, version uint64)
	// Seen: the member asked for keying material over p, once or, if observing,
	// to be told of changes to the group or its node resource.
	Seen(ctx context.Context, group, node string, p coap.Peer, observing bool)
	// Reached: an authenticated request of the member came over p. It is called
	// for members that gave a control_uri, and for those that observe.
	Reached(group, node string, p coap.Peer, controlURI string, observing bool)
}

// greeter is the optional part of a Delivery that hears of joins.
type greeter interface {
	// Joined: the node was given the newest keying material with its join.
	Joined(group, node string)
}

// Deps are the rooms and services that a Manager works with.
type Deps struct {
	Store      *store.Store
	Authority  Authority
	Delivery   Delivery              // nil: members poll or observe
	Log        *slog.Logger          // nil: silent
	Registerer prometheus.Registerer // nil: a private one
	// Note is told what belongs into the audit log and changes nothing; nil:
	// nobody is. It does not wait.
	Note func(kind string, e groupcomm.Event)
	// Changed is called when what [Manager.Links] tells may have changed; nil:
	// nobody is told. It does not wait.
	Changed func()
}

// Manager is the Group Manager of all its groups. Use [New].
type Manager struct {
	cfg     Config
	st      *store.Store
	auth    Authority
	note    func(kind string, e groupcomm.Event)
	changed func()
	deliver Delivery
	log     *slog.Logger
	met     *metrics

	renewals *limiter
	wake     chan struct{} // one slot: something may have become due earlier

	planting sync.Mutex // held while a group comes or goes at run time

	mu     sync.RWMutex
	groups map[string]*group // guarded by mu; never modified once set
}

// New makes a Manager. It does no I/O: call [Manager.Setup] before the first
// request.
func New(cfg Config, d Deps) *Manager {
	cfg = cfg.withDefaults()
	log := d.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	changed := d.Changed
	if changed == nil {
		changed = func() {}
	}
	return &Manager{
		changed:  changed,
		cfg:      cfg,
		st:       d.Store,
		auth:     d.Authority,
		note:     d.Note,
		deliver:  d.Delivery,
		log:      log,
		met:      newMetrics(d.Registerer),
		renewals: newLimiter(cfg.RenewalInterval, renewalBurst, maxLimiters),
		wake:     make(chan struct{}, 1),
		groups:   map[string]*group{},
	}
}

// Run works off due rekeys and expired memberships until ctx ends. It returns
// nil then.
func (m *Manager) Run(ctx context.Context) error {
	eg, ctx := errgroup.WithContext(ctx)
	eg.Go(func() error { return m.followTokens(ctx) })
	eg.Go(func() error { return m.schedule(ctx) })
	if m.st.Shared() {
		eg.Go(func() error { return m.followGroups(ctx) })
	}
	err := eg.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// poke makes the scheduler look again. It never blocks.
func (m *Manager) poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// GroupConfigs tells the configurations of the named groups in the order
// asked; unknown names are left out.
func (m *Manager) GroupConfigs(ctx context.Context, names []string) ([]groupcomm.GroupConfig, error) {
	var out []groupcomm.GroupConfig
	for _, n := range names {
		switch g, err := m.find(ctx, n); {
		case err == nil:
			out = append(out, *g.cfg)
		case !errors.Is(err, ErrNoGroup):
			return nil, err
		}
	}
	return out, nil
}

// KDCDHCreds tells the Group Manager's Diffie-Hellman credentials in those of
// the named groups that use the pairwise mode only, in the order asked.
func (m *Manager) KDCDHCreds(ctx context.Context, names []string) ([]groupcomm.KDCDHCred, error) {
	var out []groupcomm.KDCDHCred
	for _, n := range names {
		g, err := m.find(ctx, n)
		switch {
		case errors.Is(err, ErrNoGroup):
			continue
		case err != nil:
			return nil, err
		}
		if e, ok := g.dhCred(); ok {
			out = append(out, e)
		}
	}
	return out, nil
}

// RekeyMessage returns the version of a group's current keying material and
// the rekey message that announces it, byte for byte as it was first encoded;
// nil when the group was never rekeyed. It is a secret. The error for a group
// that does not exist is [ErrNoGroup].
func (m *Manager) RekeyMessage(ctx context.Context, name string) (uint64, []byte, error) {
	g, err := m.find(ctx, name)
	if err != nil {
		return 0, nil, err
	}
	mat, err := m.current(ctx, g)
	if err != nil {
		return 0, nil, err
	}
	if mat.num == 0 {
		return 0, nil, nil // members have it from their Join Response
	}
	return mat.num, mat.message.Bytes(), nil
}

// ErrNoGroup is the error for the name of a group that does not exist.
var ErrNoGroup = coap.Errorf(coap.NotFound, "no such group")

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}
