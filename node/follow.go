package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// Times of following.
const (
	backoffFirst = time.Second
	backoffMost  = time.Minute
	pollDefault  = time.Hour
	goodbye      = time.Second // for deregistering after ctx ended
)

// errEnded says that the Group Manager ended an observation without saying why.
var errEnded = errors.New("node: the observation ended")

// errRestarted says that the Group Manager asked for freshness: it does not know any
// more which requests it has seen (RFC 8613, Appendix B.1.2). That it forgot its
// observers as well, as many servers do, or kept them, as ours does, is not said, and
// looks the same until a rekey is missed. A registration is what makes sure (RFC 7641,
// Section 3.3.1), and its answer brings what was missed; the old one is ended before,
// so that a server that kept it does not tell everything twice.
var errRestarted = errors.New("node: the Group Manager was restarted")

// Follow keeps the keying material current until ctx or the membership ends: it
// observes the node resource, listens to MQTT when the Group Manager gave
// coordinates, observes the group while no broker has it, polls now and then, catches up after missed rekeys
// and dials again when the association is lost.
//
// It returns ctx's error, nil after [Member.Leave], [ErrEvicted],
// [ErrGroupDeleted] or [ErrNotMember] when the membership is over,
// [ErrUnauthorized] when a new access token is needed, and [ErrLost] when there
// is no way to dial again. One Follow runs at a time.
func (m *Member) Follow(ctx context.Context) error {
	if !m.follow.TryLock() {
		return errors.New("node: follow: already running")
	}
	defer m.follow.Unlock()
	if _, _, err := m.joined(); err != nil {
		return err
	}
	broker := newSubscription()
	defer broker.stop()
	var ears cast
	defer ears.stop()
	var b backoff
	for {
		err := m.session(ctx, &b, broker, &ears)
		m.mu.Lock()
		ended := m.ended
		m.mu.Unlock()
		switch {
		case errors.Is(ended, errLeft):
			return nil
		case ended != nil:
			return ended
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, ErrUnauthorized):
			return err
		}
		m.emit(Event{Kind: Refused, Via: ViaObserve, Err: err})
		if lost(err) {
			if m.cfg.Redial == nil {
				return err
			}
			err = m.redial(ctx, &b)
		} else {
			err = b.wait(ctx)
		}
		if err != nil {
			return err
		}
	}
}

// session follows over one association. It returns when the membership is over,
// the association is lost, or the observation has to be registered anew.
func (m *Member) session(ctx context.Context, b *backoff, broker *subscription, ears *cast) error {
	s, t, err := m.joined()
	if err != nil {
		return err
	}
	broker.follow(m)
	if err := ears.follow(m); err != nil {
		m.emit(Event{Kind: Refused, Via: ViaMulticast, Err: err})
	}
	over, fail := firstError()

	// The node resource first: an eviction must not fall between the two.
	// RFC 9594, Section 4.8.1: with No-Response, so that only the notice of an
	// eviction travels.
	nodeReq := m.groupRequest(coap.GET, "nodes", s.Node)
	nodeReq.Options.SetUint(coap.ObserveOption, 0)
	nodeReq.Options.SetUint(coap.NoResponse, 2)
	cancelNode, err := t.Observe(ctx, nodeReq, func(r *coap.Response) { m.onNode(r, fail) })
	if err != nil {
		return fmt.Errorf("observe the node resource: %w", err)
	}
	defer func() { deregister(ctx, t, cancelNode, m.log) }()

	w := &groupWatch{m: m, t: t, fail: fail}
	defer func() { w.stop(ctx) }()
	broker.awaitUp(ctx)
	watch := func() error {
		err := w.set(ctx, !broker.isUp() && ears.conn == nil)
		select {
		case err := <-over: // says more than that the registration failed
			return err
		default:
			return err
		}
	}
	if err := watch(); err != nil {
		return err
	}

	done := doneOf(t)
	var restarted <-chan struct{}
	shows := false
	if r, ok := t.(restarter); ok {
		restarted, shows = r.Restarted(), true
	}
	poll := time.NewTicker(m.pollEvery(s))
	defer poll.Stop()
	// link rings when a message of the key tree did not come, soon when the version
	// that came by multicast is to be shown, at a moment of the node's own.
	link, soon := stopped(), stopped()
	defer link.Stop()
	defer soon.Stop()
	missed, waits := 0, false
	if m.isBehind() {
		signalOne(m.behind)
	}
	for {
		if err := m.catchUp(ctx); errors.Is(err, ErrMoving) {
			m.signal() // go on, after whatever else there is to do
		} else if err != nil {
			return err
		}
		broker.follow(m)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-done:
			return ErrLost
		case err := <-over:
			return err
		case <-broker.changed:
			if err := watch(); err != nil {
				return err
			}
		case <-m.wake:
			if _, _, err := m.joined(); err != nil {
				return err
			}
			if shows {
				// An acknowledgement over OSCORE proves nothing: a request that
				// names the version does.
				if err := m.poll(ctx); err != nil {
					return err
				}
			}
		case <-restarted:
			return errRestarted
		case <-m.behind:
			if !waits {
				waits = true
				link.Reset(patience(missed))
			}
		case <-link.C:
			waits = false
			if !m.isBehind() {
				missed = 0
				continue
			}
			missed++
			if err := m.renewBranch(ctx); err != nil {
				return err
			}
			if m.isBehind() {
				signalOne(m.behind)
			}
		case <-m.show:
			soon.Reset(rand.N(showWithin))
		case <-soon.C:
			if err := m.poll(ctx); err != nil {
				return err
			}
		case <-poll.C:
			if err := m.poll(ctx); err != nil {
				return err
			}
			b.reset()
		}
	}
}

// showWithin is the time in which the members of a group show that they have what
// came to all of them at once.
const showWithin = 2 * time.Second

// stopped is a timer that does not run.
func stopped() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// groupWatch is how the Group Manager tells of rekeys: over MQTT while the
// broker has us, so that the group need not be observed, else by observation.
type groupWatch struct {
	m      *Member
	t      Transport
	fail   func(error)
	cancel func(context.Context) error // nil: not observing
	began  bool
}

// set changes to observing or back. Whichever it becomes, what was missed
// meanwhile is caught up with, and the Group Manager learns what is held.
func (w *groupWatch) set(ctx context.Context, observe bool) error {
	if w.began && observe == (w.cancel != nil) {
		return nil
	}
	w.began = true
	if !observe {
		w.stop(ctx)
		if err := w.m.poll(ctx); err != nil {
			return fmt.Errorf("ask for the version: %w", err)
		}
		return nil
	}
	s, _, err := w.m.joined()
	if err != nil {
		return err
	}
	req := w.m.groupRequest(coap.GET)
	req.Options.SetUint(coap.ObserveOption, 0)
	if s.Installed {
		req.Options.Set(coap.ETag, etag(s.Version))
	}
	var answered atomic.Bool // go-coap may call while it is in a call
	cancel, err := w.t.Observe(ctx, req, func(r *coap.Response) {
		w.m.onGroup(r, !answered.Swap(true), w.fail)
	})
	if err != nil {
		return fmt.Errorf("observe the group: %w", err)
	}
	w.cancel = cancel
	return nil
}

// stop ends the observation, if there is one.
func (w *groupWatch) stop(ctx context.Context) {
	if w.cancel != nil {
		deregister(ctx, w.t, w.cancel, w.m.log)
		w.cancel = nil
	}
}

// firstError is a way to tell of what ended a session: the first counts.
func firstError() (over <-chan error, fail func(error)) {
	first := make(chan error, 1)
	return first, func(err error) {
		select {
		case first <- err:
		default:
		}
	}
}

// doneOf is closed when the association of t is over; nil: nobody tells.
func doneOf(t Transport) <-chan struct{} {
	if d, ok := t.(Doner); ok {
		return d.Done()
	}
	return nil
}

// deregister ends an observation, as long as there is someone to tell.
func deregister(ctx context.Context, t Transport, cancel func(context.Context) error, log *slog.Logger) {
	select {
	case <-doneOf(t):
		return
	default:
	}
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), goodbye)
	defer stop()
	if err := cancel(ctx); err != nil {
		log.Debug("deregistration failed", "err", err)
	}
}

// onGroup takes a response of the observed group resource.
//
// draft-ietf-ace-key-groupcomm-oscore-21, Section 11.1: the first is the Key
// Distribution map, the later ones are rekey messages. A bad one is dropped and
// the registration made anew, which brings the current material.
func (m *Member) onGroup(r *coap.Response, first bool, fail func(error)) {
	switch r.Code {
	case coap.Valid:
	case coap.Content:
		o, err := offerObserved(r.Payload)
		if err != nil {
			fail(err)
			return
		}
		m.take(o)
	default:
		fail(m.concern(refused("observe the group", r)))
		return
	}
	if _, ok := r.Options.Get(coap.ObserveOption); ok {
		return
	}
	if first {
		// RFC 7641, Section 3.1: not registered. Polling has to do.
		m.log.Warn("the Group Manager does not notify of rekeys", "poll", m.cfg.PollEvery)
		return
	}
	fail(errEnded)
}

// onNode takes a response of the observed node resource: all that matters is
// that the membership is over.
//
// draft-ietf-ace-key-groupcomm-oscore-21, Section 10: 4.04 with error 5 is the
// notice of an eviction.
func (m *Member) onNode(r *coap.Response, fail func(error)) {
	if r.Code.IsSuccess() {
		return
	}
	err := m.concern(refused("observe the node resource", r))
	if errors.Is(err, ErrUnauthorized) {
		fail(err)
	}
}

func (m *Member) pollEvery(s *State) time.Duration {
	switch {
	case m.cfg.PollEvery > 0:
		return m.cfg.PollEvery
	case s.Policies.KeyCheck > 0 && s.Policies.KeyCheck < uint64(maxLifetime/time.Second):
		return time.Duration(s.Policies.KeyCheck) * time.Second
	}
	return pollDefault
}

// lost reports whether an error says that the other end did not answer.
func lost(err error) bool {
	return errors.Is(err, ErrLost) || errors.Is(err, coap.ErrTimeout) || errors.Is(err, coap.ErrGone)
}

// redial replaces a lost association, as often as it takes.
func (m *Member) redial(ctx context.Context, b *backoff) error {
	for {
		if err := b.wait(ctx); err != nil {
			return err
		}
		err := m.Reconnect(ctx)
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, ErrUnauthorized) {
			return err // the token is posted with each try, and is not taken any more
		}
		m.emit(Event{Kind: Refused, Err: err})
	}
}

// Reconnect opens a new association with Config.Redial and closes the old one.
// The membership is the same: it is bound to the key of the access token.
func (m *Member) Reconnect(ctx context.Context) error {
	if m.cfg.Redial == nil {
		return fmt.Errorf("%w: no way to dial again", ErrLost)
	}
	t, err := m.cfg.Redial(ctx)
	if err != nil {
		return err
	}
	m.mu.Lock()
	old := m.t
	m.t = t
	m.mu.Unlock()
	m.serve(t)
	if err := old.Close(); err != nil {
		m.log.Debug("closing the lost association failed", "err", err)
	}
	m.emit(Event{Kind: Reconnected})
	return nil
}

// backoff doubles a pause from a second to a minute, with a quarter of jitter
// either way so that a fleet does not come back at one moment.
type backoff struct{ n int }

func (b *backoff) reset() { b.n = 0 }

func (b *backoff) wait(ctx context.Context) error {
	d := min(backoffFirst<<min(b.n, 10), backoffMost)
	b.n++
	t := time.NewTimer(time.Duration(float64(d) * (0.75 + rand.Float64()/2)))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
