// Package bridge delivers rekeys: whatever the Group Manager decided reaches
// every member over the channel that the member has, and the ledger shows who
// has it.
//
// It follows the event log with a durable cursor, so a rekey that was
// committed is delivered whatever crashes. Members that observe the group
// resource get a notification; members that asked for MQTT get a message that
// is protected for them alone and was rendered once, in the transaction of the
// rekey. Only confirmations are written: a member is pending when the version
// it confirmed is below the group's.
//
// Start at [New]; [Bridge.Setup] before readiness, then [Bridge.Run]. The
// Group Manager calls Enroll, Prepare, Remove and Held.
package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// Source is what the bridge asks the Group Manager.
type Source interface {
	// RekeyMessage returns the newest version of a group and the notification
	// that carries it; body is nil when the group was never rekeyed.
	RekeyMessage(ctx context.Context, group string) (version uint64, body []byte, err error)
	// MemberOf returns the member that s is, or groupcomm.ErrNotMember.
	MemberOf(ctx context.Context, group string, s coap.Subject) (*groupcomm.Member, error)
	Members(ctx context.Context, group string) ([]groupcomm.Member, error)
}

// Deps are the collaborators of a [Bridge].
type Deps struct {
	Store  *store.Store
	Source Source
	Hub    coap.Hub
	// Access says whether a peer's access token is still good; its error is
	// what ends an observation, 4.01. nil: always.
	Access func(context.Context, coap.Peer) error
	// Tokens reads the tokens of some who are told at once, where Access would read
	// each by itself: those in the result have one in force, until then, zero: for
	// ever. nil: Access knows without.
	Tokens func(context.Context, []coap.Subject) (map[coap.Subject]time.Time, error)
	// Warm announces that Access will be asked about very many; nil: that is of no use.
	Warm func(context.Context, []coap.Subject) error
	// Evict removes members from a group, where a policy asks for that; nil:
	// nobody is evicted.
	Evict func(ctx context.Context, group string, nodes []string) error
	// Reading takes what a sensor published. It does not wait, and does not keep
	// the payload. Required with Config.Sensors.
	Reading    func(topic string, payload []byte)
	Log        *slog.Logger          // nil: discarded
	Registerer prometheus.Registerer // nil: a private one
}

// Bridge is the room. Its methods may be called concurrently.
type Bridge struct {
	cfg    Config
	store  *store.Store
	source Source
	hub    coap.Hub
	access func(context.Context, coap.Peer) error
	tokens func(context.Context, []coap.Subject) (map[coap.Subject]time.Time, error)
	warm   func(context.Context, []coap.Subject) error
	log    *slog.Logger
	met    *metrics

	sensors   *sensors
	confirms  *confirmer
	activity  *activity
	observers observers
	broker    *broker    // nil without the embedded broker
	publisher *publisher // nil without MQTT
	acks      chan ack
	later     *backlog
	controls  controls
	leases    leases
	rolls     rolls
	doubts    doubts
	tallies   tallies
	calls     *calls
	lookups   *lookups
	alarms    *alarms
	casts     *casts
	checks    *checks
	holds     *holds
	evict     func(ctx context.Context, group string, nodes []string) error

	restored []Observer // until Run

	mu        sync.Mutex
	publicURI string
	groups    map[string]groupState
}

// New returns a bridge. It does no I/O.
func New(cfg Config, d Deps) *Bridge {
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.Access == nil {
		d.Access = func(context.Context, coap.Peer) error { return nil }
	}
	if d.Warm == nil {
		d.Warm = func(context.Context, []coap.Subject) error { return nil }
	}
	b := &Bridge{
		cfg:      cfg.withDefaults(),
		store:    d.Store,
		source:   d.Source,
		hub:      d.Hub,
		access:   d.Access,
		tokens:   d.Tokens,
		warm:     d.Warm,
		log:      d.Log,
		activity: newActivity(),
		acks:     make(chan ack, ackQueue),
		later:    newBacklog(),
		calls:    newCalls(),
		lookups:  newLookups(),
		alarms:   newAlarms(),
		casts:    newCasts(),
		checks:   newChecks(),
		holds:    newHolds(),
		evict:    d.Evict,
		groups:   map[string]groupState{},
	}
	b.met = newMetrics(d.Registerer, b)
	b.confirms = newConfirmer(d.Store, d.Log, b.met, b.checks.add)
	b.sensors = newSensors(b.cfg.Sensors, d.Reading)
	if b.cfg.embedded() {
		b.broker = newBroker(b.cfg, b.log, brokerHooks{secretHash: b.secretHash, branch: b.branch, ack: b.takeAck, present: b.present, sensors: b.sensors})
	}
	if b.cfg.mqtt() {
		b.publisher = newPublisher(b)
	}
	return b
}

// Setup binds the embedded broker's addresses and reads which groups there
// are. Whoever called Setup calls Run, which closes what Setup opened.
func (b *Bridge) Setup(ctx context.Context) error {
	if err := b.cfg.Validate(); err != nil {
		return fmt.Errorf("bridge: %w", err)
	}
	groups, err := b.knownGroups(ctx)
	if err != nil {
		return fmt.Errorf("bridge: read groups: %w", err)
	}
	b.mu.Lock()
	for _, g := range groups {
		b.groups[g] = groupState{since: time.Now()}
	}
	b.mu.Unlock()
	if err := b.remember(ctx); err != nil {
		return fmt.Errorf("bridge: read rekeys: %w", err)
	}

	uri := b.cfg.PublicURI
	if uri == "" {
		uri = b.cfg.Broker
	}
	if b.broker != nil {
		if err := b.broker.listen(ctx); err != nil {
			return err
		}
		if uri == "" {
			uri = b.broker.uri()
		}
	}
	b.mu.Lock()
	b.publicURI = uri
	b.mu.Unlock()
	if b.publisher == nil {
		return nil
	}
	err = b.publisher.setup(ctx)
	if err != nil && b.broker != nil {
		b.broker.unlisten()
	}
	return err
}

// BrokerURI returns what members are told to connect to; "" before Setup and
// without MQTT.
func (b *Bridge) BrokerURI() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.publicURI
}

// Run delivers until ctx ends, writes the last confirmations and returns.
func (b *Bridge) Run(ctx context.Context) error {
	// Before anything is sent.
	if err := b.resumeHolds(ctx); err != nil {
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return b.runHolds(ctx) })
	g.Go(func() error {
		// First, so that a rekey of now finds who observes.
		var all []coap.Subject
		for _, o := range b.restored {
			all = append(all, o.Peer.Subject)
		}
		if err := b.recall(ctx); err != nil {
			return err
		}
		// For the next rekey; what recall needed was read.
		g.Go(func() error { b.readTokens(ctx, all); return nil })
		return b.follow(ctx)
	})
	g.Go(func() error { return b.confirms.run(ctx) })
	g.Go(func() error { return b.verifyAcks(ctx) })
	g.Go(func() error { return b.catchUp(ctx) })
	g.Go(func() error { return b.calls.run(ctx) })
	g.Go(func() error { return b.finish(ctx) })
	g.Go(func() error { return b.recognize(ctx) })
	g.Go(func() error { return b.tryAgain(ctx) })
	g.Go(func() error { return b.castRekeys(ctx) })
	g.Go(func() error { return b.store.Lead(ctx, "bridge-patrol", b.patrol) })
	if b.broker != nil {
		g.Go(func() error { return b.broker.run(ctx) })
	}
	if b.publisher != nil {
		g.Go(func() error { return b.publish(ctx) })
	}
	err := g.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// publish brings messages to the broker. Gateways that share a store and a
// broker share its client identifier too, so one of them does it for all. Each
// embedded broker gets everything, whichever a member connects to.
func (b *Bridge) publish(ctx context.Context) error {
	if b.broker != nil {
		return b.publisher.run(ctx)
	}
	return b.store.Lead(ctx, "bridge", b.publisher.run)
}

// follow works on the event log until ctx ends. What could not be handled is
// met again: the cursor stands before it.
func (b *Bridge) follow(ctx context.Context) error {
	for delay := backoffMin; ; delay = min(2*delay, backoffMax) {
		err := b.store.Follow(ctx, b.store.OwnCursor("bridge"), func(_ context.Context, events []store.Event) error {
			if err := b.handle(ctx, events); err != nil {
				return err
			}
			delay = backoffMin
			return nil
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, store.ErrClosed) {
			return fmt.Errorf("bridge: event log: %w", err)
		}
		b.log.ErrorContext(ctx, "cannot follow the event log", "err", err, "retry_in", delay)
		pause(ctx, delay)
	}
}

// Held records that an authenticated request of node showed that it holds
// version of the group's keying material (docs/protocol.md, Section 4: only this
// and an acknowledgement of the member itself count).
func (b *Bridge) Held(_ context.Context, group, node string, version uint64) {
	b.confirm(member{group, node}, version, channelPoll, nil)
}

// Seen records that node asked for keying material over p, and whether it
// observes it from now on. That shows life and the channel, not what it holds.
// Whom to tell when a token expires, Reached says.
func (b *Bridge) Seen(_ context.Context, group, node string, p coap.Peer, observing bool) {
	channel := channelPoll
	if observing {
		channel = channelObserve
	}
	b.activity.belongs(p.Subject, member{group, node})
	now := time.Now()
	b.activity.heard(member{group, node}, channel, now)
	b.activity.change(member{group, node}, func(t *trace) { t.asked = now })
}

// confirm notes that m holds version. done, when not nil, is called after that
// is on disk. What another channel showed before counts once, for that channel.
func (b *Bridge) confirm(m member, version uint64, channel string, done func()) {
	b.knowGroup(m.group)
	news := b.activity.confirmed(m, version, channel, time.Now())
	b.holds.confirmed(m, version)
	if news {
		b.confirms.add(m, version, channel, done)
	} else if done != nil {
		b.confirms.after(done)
	}
}

// noteGroup remembers that version of a group became due at the given time and
// says whether that is news.
func (b *Bridge) noteGroup(group string, version uint64, at time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	g, ok := b.groups[group]
	if ok && g.version >= version {
		return false
	}
	if !ok {
		g.since = at
	}
	g.version = version
	g.rekeys = append(slices.DeleteFunc(slices.Clone(g.rekeys), func(r rekeyTime) bool { return r.num >= version }), rekeyTime{num: version, at: at})
	if n := len(g.rekeys); n > keptRekeys {
		g.rekeys = g.rekeys[n-keptRekeys:]
	}
	b.groups[group] = g
	return true
}

// knowGroup makes the metrics show a group that was not rekeyed yet.
func (b *Bridge) knowGroup(group string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.groups[group]; !ok {
		b.groups[group] = groupState{since: time.Now()}
	}
}

func (b *Bridge) knownGroups(ctx context.Context) (groups []string, err error) {
	err = b.store.View(ctx, func(tx *store.Tx) error {
		groups = nil
		rows, err := tx.Query(`SELECT grp FROM bridge_registration UNION SELECT grp FROM bridge_confirmed UNION SELECT grp FROM bridge_rekey
			UNION SELECT grp FROM bridge_tree WHERE grp <> ''`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var g string
			if err := rows.Scan(&g); err != nil {
				return err
			}
			groups = append(groups, g)
		}
		return rows.Err()
	})
	return groups, err
}
