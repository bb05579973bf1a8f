package delegate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/rarely"
)

// Times of a membership.
const (
	backoffFirst = time.Second
	backoffMost  = 2 * time.Minute
	stepTimeout  = 30 * time.Second // one token, one handshake, one join
	farewell     = 10 * time.Second // leaving
	// grace is how long messages under the keying material before the newest are
	// still read: a rekey reaches members one after the other.
	grace = 30 * time.Second
	// renewAt is the part of a token's lifetime after which it is renewed.
	renewAt = 0.75
	// lookEvery is how often it is seen whether more members became known.
	lookEvery = 30 * time.Second
	// renewAgain is between two tries to renew a token.
	renewAgain = time.Minute
)

// membership is one node in one group. Its lock guards the fields from access on.
type membership struct {
	r     *Room
	node  *legacy
	group Group
	Membership
	log *slog.Logger

	seen    members
	sending chan struct{} // slots of group requests
	writing sync.Mutex    // one write at a time, so that the newest is the last
	again   chan struct{} // an operator wants to join again after an eviction
	former  *membership   // with other roles, which is over before this one begins; nil: none

	mu      sync.Mutex
	access  *node.Access
	issued  time.Time
	saved   []byte
	evicted time.Time
	live    *live  // nil: there is no membership
	failed  string // why the last try failed; "": it did not
	since   time.Time
	told    string // the kind of failure that the log told of; "": none since it was in the group
	line    rarely.Line
}

// live is a membership that holds keys.
type live struct {
	member  *node.Member
	traffic *node.Traffic
	server  *groupSide // nil: nothing of the node may be asked for
}

func newMembership(r *Room, n *legacy, g Group, m Membership) *membership {
	return &membership{r: r, node: n, group: g, Membership: m, log: n.log.With("group", g.Name), again: make(chan struct{}, 1), sending: make(chan struct{}, maxSending)}
}

// restore takes over what an earlier run kept.
func (m *membership) restore(k row) {
	m.access, m.issued, m.saved, m.evicted = k.access, k.issued, k.saved, k.evicted
}

// write keeps what there is now.
func (m *membership) write(ctx context.Context) error {
	m.writing.Lock()
	defer m.writing.Unlock()
	m.mu.Lock()
	k := row{node: m.node.Name, group: m.group.Name, gm: m.group.GM, roles: m.Roles, access: m.access, issued: m.issued, saved: m.saved, evicted: m.evicted}
	m.mu.Unlock()
	return m.r.keep.write(ctx, k)
}

// change sets fields and keeps them.
func (m *membership) change(ctx context.Context, set func()) error {
	m.mu.Lock()
	set()
	m.mu.Unlock()
	return m.write(ctx)
}

// run joins and stays until ctx ends. After an eviction it waits for an operator.
func (m *membership) run(ctx context.Context) {
	if m.former != nil {
		m.former.depart(ctx)
	}
	wait := backoff{}
	for ctx.Err() == nil {
		if m.isOut() {
			select {
			case <-ctx.Done():
				return
			case <-m.again:
				if err := m.change(ctx, func() { m.evicted = time.Time{} }); err != nil {
					m.note(err)
				}
			}
			continue
		}
		began := time.Now()
		err := m.once(ctx)
		if ctx.Err() != nil {
			return
		}
		m.note(err)
		if time.Since(began) > backoffMost {
			wait = backoff{}
		}
		if !m.isOut() {
			wait.sleep(ctx, m.again)
		}
	}
}

// isOut says whether the Group Manager evicted the node.
func (m *membership) isOut() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.evicted.IsZero()
}

// note tells of a failure: in the log, once until it is of another kind, and not more
// than once a minute.
func (m *membership) note(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	now := time.Now()
	m.mu.Lock()
	m.failed, m.since = text, now
	kind, n := rarely.Kind(text), 0                                       // each try has a port of its own
	if err != nil && kind != m.told && !errors.Is(err, node.ErrEvicted) { // which is told already, and tried no more
		if n = m.line.Event(now); n > 0 {
			m.told = kind
		}
	}
	inside := m.live != nil
	m.mu.Unlock()
	if err != nil {
		m.r.metrics.failures.WithLabelValues(m.group.Name).Inc()
	}
	if n > 0 {
		what := "not in the group for the node, trying again"
		if inside {
			what = "something failed for the node, which is in the group still; trying again"
		}
		m.log.Warn(what, "n", n, "err", err)
	}
}

// once is one stay in the group: it returns when that is over, or cannot begin.
func (m *membership) once(ctx context.Context) (err error) {
	if err := m.ensureToken(ctx); err != nil {
		return err
	}
	changed := make(chan struct{}, 1) // the membership changed
	poke := func(node.Event) {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	member, err := m.enter(ctx, poke)
	if err != nil {
		return err
	}
	defer func() { _ = member.Close() }()
	kept, err := loadContexts(ctx, sequences{m.r.keep, m.node.Name, m.group.Name})
	if err != nil {
		return err
	}
	traffic, err := node.NewTraffic(member, node.TrafficConfig{Grace: grace, Store: kept})
	if err != nil {
		return err
	}
	// On disk before it is used.
	if err := m.keepState(ctx, member); err != nil {
		return err
	}
	if err := traffic.Sync(); err != nil {
		return err
	}
	server, err := m.listen(ctx, traffic)
	if err != nil {
		return err
	}
	l := &live{member: member, traffic: traffic, server: server}
	m.mu.Lock()
	m.live, m.failed, m.told = l, "", ""
	m.mu.Unlock()
	ctx, stop := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer func() {
		stop()
		work.Wait()
		m.mu.Lock()
		m.live = nil
		m.mu.Unlock()
		traffic.Group().Leave()
	}()
	work.Go(func() { m.follow(ctx, member, traffic, changed) })
	work.Go(func() { m.renew(ctx, member) })
	if server != nil {
		work.Go(func() {
			defer stop()
			if err := server.run(ctx); err != nil && ctx.Err() == nil {
				m.note(err)
			}
		})
	}
	return m.stay(ctx, member)
}

// stay follows the membership until it is over.
func (m *membership) stay(ctx context.Context, member *node.Member) error {
	for {
		err := member.Follow(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, node.ErrUnauthorized):
			m.note(err)
			if err := m.newToken(ctx); err != nil {
				return err
			}
			step, cancel := context.WithTimeout(ctx, stepTimeout)
			err := member.Reconnect(step)
			cancel()
			if err != nil {
				return err
			}
		case errors.Is(err, node.ErrEvicted):
			m.log.Warn("the Group Manager evicted the node; it joins again only when told to")
			return errors.Join(err, m.change(ctx, func() { m.saved, m.evicted = nil, time.Now() }))
		case errors.Is(err, node.ErrNotMember), errors.Is(err, node.ErrGroupDeleted):
			return errors.Join(err, m.change(ctx, func() { m.saved = nil }))
		default:
			return err
		}
	}
}

// follow keeps each new state, and then begins to use it.
func (m *membership) follow(ctx context.Context, member *node.Member, traffic *node.Traffic, changed <-chan struct{}) {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	known := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-look.C:
			// Who else is in the group is asked for when it is needed, and no event.
			if s, _ := member.State(); len(s.Peers) == known {
				continue
			}
		}
		if s, ok := member.State(); ok {
			known = len(s.Peers)
		}
		if err := m.keepState(ctx, member); err != nil {
			if ctx.Err() == nil {
				m.note(err)
			}
			continue
		}
		if err := traffic.Sync(); err != nil {
			m.note(err)
		}
	}
}

// keepState writes what the member holds now.
func (m *membership) keepState(ctx context.Context, member *node.Member) error {
	saved := member.Save()
	if saved == nil {
		return nil // it ended, and stay says how
	}
	return m.change(ctx, func() { m.saved = saved })
}

// enter makes the member: of what was kept, or by a join.
func (m *membership) enter(ctx context.Context, hear func(node.Event)) (*node.Member, error) {
	pin, err := m.r.keep.pinned(ctx, m.group.GM, m.group.Name)
	if err != nil {
		return nil, err
	}
	cfg := node.Config{
		Group: m.group.Name, Roles: m.Roles, WantCreds: true, Phased: true, KDCCred: pin, Log: m.node.log, OnEvent: hear,
		Redial: func(ctx context.Context) (node.Transport, error) {
			t, _, err := m.dial(ctx)
			return t, err
		},
	}
	m.mu.Lock()
	saved := m.saved
	m.mu.Unlock()
	if saved != nil {
		cfg.Saved = saved
		member, err := node.New(cfg, lost{}) // Follow dials
		if err == nil {
			return member, nil
		}
		m.log.Warn("the kept membership is of no use, joining anew", "err", err)
		cfg.Saved = nil
	}
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	t, transfer, err := m.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("reach the Group Manager: %w", err)
	}
	cfg.Transfer = transfer
	member, err := node.New(cfg, t)
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	if err := member.Join(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("join: %w", err), member.Close())
	}
	s, _ := member.State()
	if err := m.r.keep.pin(ctx, m.group.GM, m.group.Name, s.KDCCred); err != nil {
		return nil, errors.Join(err, member.Close())
	}
	m.log.Info("joined for the node", "sender_id", s.SenderID.String(), "version", s.Version)
	m.r.metrics.joins.WithLabelValues(m.group.Name).Inc()
	return member, nil
}

// dial opens an association with the Group Manager.
func (m *membership) dial(ctx context.Context) (node.Transport, *groupcomm.TokenTransferResponse, error) {
	m.mu.Lock()
	access, known := m.access, m.saved != nil
	m.mu.Unlock()
	if access == nil {
		return nil, nil, node.ErrUnauthorized
	}
	switch {
	case m.group.GM == "":
		return m.r.home.GM(ctx, access)
	case !m.group.Secure:
		return node.DialOSCORE(ctx, m.group.Addr, access)
	}
	if known { // it has the token, if it did not lose it
		half, cancel := halfOf(ctx)
		t, err := node.DialDTLS(half, m.group.Addr, access.Identity(), access.Key.Bytes())
		cancel()
		if err == nil || ctx.Err() != nil {
			return t, nil, err
		}
	}
	// RFC 9202, Section 3.3.2: the token in psk_identity.
	t, err := node.DialDTLS(ctx, m.group.Addr, access.Token, access.Key.Bytes())
	return t, nil, err
}

// halfOf leaves half of the time for another try.
func halfOf(ctx context.Context) (context.Context, context.CancelFunc) {
	end, ok := ctx.Deadline()
	if !ok {
		return context.WithTimeout(ctx, stepTimeout/2)
	}
	return context.WithTimeout(ctx, time.Until(end)/2)
}

// jittered has those who began at one time come at others.
func jittered(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.75 + rand.Float64()/2))
}

// backoff doubles a pause, with jitter.
type backoff struct{ n int }

func (b *backoff) sleep(ctx context.Context, soon <-chan struct{}) {
	d := min(backoffFirst<<min(b.n, 10), backoffMost)
	b.n++
	t := time.NewTimer(jittered(d))
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-soon:
	case <-t.C:
	}
}
