package node

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// take installs keying material that is newer than what is held. Sender IDs and
// algorithms stay; versions that were missed change nothing, for this dialect has
// no lists of stale Sender IDs.
//
// draft-ietf-ace-key-groupcomm-oscore-03, Section 13.
func (m *LegacyMember) take(body []byte, via string) error {
	d, err := groupcomm.DecodeLegacyKeyDistribution(m.cfg.Dialect, body)
	if err != nil {
		return badAnswer("rekey", "%v", err)
	}
	m.mu.Lock()
	if m.state == nil {
		m.mu.Unlock()
		return ErrNotJoined
	}
	if d.Num <= m.state.Version {
		m.mu.Unlock()
		return nil
	}
	next := *m.state
	if err := next.install(d); err != nil {
		m.mu.Unlock()
		return badAnswer("rekey", "%v", err)
	}
	m.state = &next
	m.mu.Unlock()
	m.emit(Event{Kind: Rekeyed, Version: next.Version, Gid: next.Gid, Via: via})
	return nil
}

// Poll asks for the current keying material and installs it if it is newer: GET on
// the group.
//
// draft-ietf-ace-key-groupcomm-oscore-03, Section 6.
func (m *LegacyMember) Poll(ctx context.Context) error {
	const op = "get the keying material"
	s, _, err := m.joined()
	if err != nil {
		return err
	}
	req := m.request(coap.GET, nil)
	req.Options.Set(coap.ETag, etag(s.Version))
	resp, err := m.do(ctx, op, coap.Content, req)
	if e, ok := errors.AsType[*Error](err); ok && e.Code == coap.Valid {
		return nil
	}
	if err != nil {
		return err
	}
	return m.take(resp.Payload, ViaPoll)
}

// Follow keeps the keying material current until ctx ends: it observes the group,
// polls now and then, and dials again when the association is lost. It returns
// ctx's error, nil after [LegacyMember.Leave], [ErrUnauthorized] when the
// membership is over or a new access token is needed (this dialect has one code
// for both), and [ErrLost] when there is no way to dial again.
func (m *LegacyMember) Follow(ctx context.Context) error {
	if !m.follow.TryLock() {
		return errors.New("node: follow: already running")
	}
	defer m.follow.Unlock()
	var b backoff
	for {
		err := m.session(ctx, &b)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, ErrNotJoined):
			return nil
		case errors.Is(err, ErrUnauthorized):
			return err
		}
		m.emit(Event{Kind: Refused, Via: ViaObserve, Err: err})
		if lost(err) && m.cfg.Redial == nil {
			return err
		}
		if err := b.wait(ctx); err != nil {
			return err
		}
		if lost(err) {
			if err := m.reconnect(ctx); err != nil {
				m.emit(Event{Kind: Refused, Via: ViaObserve, Err: err})
			}
		}
	}
}

// reconnect replaces a lost association.
func (m *LegacyMember) reconnect(ctx context.Context) error {
	t, err := m.cfg.Redial(ctx)
	if err != nil {
		return fmt.Errorf("dial again: %w", err)
	}
	m.mu.Lock()
	old := m.t
	m.t = t
	m.mu.Unlock()
	_ = old.Close() // it was lost
	m.emit(Event{Kind: Reconnected})
	return nil
}

// session follows over one association.
func (m *LegacyMember) session(ctx context.Context, b *backoff) error {
	s, t, err := m.joined()
	if err != nil {
		return err
	}
	over, fail := firstError()
	req := m.request(coap.GET, nil)
	req.Options.SetUint(coap.ObserveOption, 0)
	var answered atomic.Bool // go-coap may call while it is in a call
	cancel, err := t.Observe(ctx, req, func(r *coap.Response) {
		if err := m.onGroup(r, !answered.Swap(true)); err != nil {
			fail(err)
		}
	})
	if err != nil {
		return fmt.Errorf("observe the group: %w", err)
	}
	defer func() { deregister(ctx, t, cancel, m.log) }()
	done := doneOf(t)
	every := m.cfg.PollEvery
	if every <= 0 {
		every = pollDefault
		if n := s.Policies.KeyCheck; n > 0 && n < uint64(pollDefault/time.Second) {
			every = time.Duration(n) * time.Second
		}
	}
	poll := time.NewTicker(every)
	defer poll.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-done:
			return ErrLost
		case err := <-over:
			return err
		case <-m.wake:
			if _, _, err := m.joined(); err != nil {
				return err
			}
		case <-poll.C:
			if err := m.Poll(ctx); err != nil {
				return err
			}
			b.reset()
		}
	}
}

// onGroup takes a response of the observed group resource.
func (m *LegacyMember) onGroup(r *coap.Response, first bool) error {
	if r.Code != coap.Content {
		return refused("observe the group", r)
	}
	if err := m.take(r.Payload, ViaObserve); err != nil {
		return err
	}
	if _, ok := r.Options.Get(coap.ObserveOption); !ok && !first {
		return errEnded
	}
	return nil
}
