package delegate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
)

// ensureToken has a token that is valid for a while.
func (m *membership) ensureToken(ctx context.Context) error {
	m.mu.Lock()
	a := m.access
	m.mu.Unlock()
	if a != nil && (a.ExpiresAt.IsZero() || time.Until(a.ExpiresAt) > stepTimeout) {
		return nil
	}
	return m.newToken(ctx)
}

// newToken gets a token for the key that the node has, or else for a new one; with
// that it is another member.
func (m *membership) newToken(ctx context.Context) error {
	m.mu.Lock()
	old, joined := m.access, m.saved != nil
	m.mu.Unlock()
	if old != nil && joined {
		a, err := m.request(ctx, old)
		if err == nil {
			return m.change(ctx, func() { m.access, m.issued = a, time.Now() })
		}
		if !errors.As(err, new(*node.Error)) {
			return err // it was not refused: the same may work later
		}
		m.log.Info("no token for the key that the node has, asking for one with a new key", "err", err)
	}
	a, err := m.request(ctx, nil)
	if err != nil {
		return err
	}
	return m.change(ctx, func() { m.access, m.issued, m.saved = a, time.Now(), nil })
}

// request asks the Authorization Server: for rights for the key of old, or with nil for
// a new key.
func (m *membership) request(ctx context.Context, old *node.Access) (*node.Access, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	as := m.group.AS
	var t node.Transport
	if as == nil {
		t = m.r.home.AS(m.node.Client)
	} else {
		var err error
		if t, err = node.DialDTLS(ctx, as.Addr, []byte(as.Identity), as.Key.Bytes()); err != nil {
			return nil, fmt.Errorf("reach the Authorization Server: %w", err)
		}
	}
	defer func() { _ = t.Close() }()
	a, err := node.RequestToken(ctx, t, node.TokenRequest{
		Audience: m.group.Audience, Scope: groupcomm.Scope{{Group: m.group.Name, Roles: m.Roles}},
		OSCORE: m.group.GM != "" && !m.group.Secure, Update: old,
	})
	if err != nil {
		return nil, fmt.Errorf("get a token: %w", err)
	}
	m.r.metrics.tokens.WithLabelValues(m.group.Name).Inc()
	return a, nil
}

// renew renews the token before it ends, and posts it over the living association,
// whose rights it changes.
func (m *membership) renew(ctx context.Context, member *node.Member) {
	for {
		m.mu.Lock()
		a, issued := m.access, m.issued
		m.mu.Unlock()
		if a == nil || a.ExpiresAt.IsZero() {
			return
		}
		due := issued.Add(time.Duration(renewAt * float64(a.ExpiresAt.Sub(issued))))
		t := time.NewTimer(max(time.Until(due), 0))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		if m.renewed(ctx, member, a) {
			continue
		}
		t.Reset(jittered(pauseBefore(time.Until(a.ExpiresAt))))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

// pauseBefore is between two tries to renew a token that ends after left: the less is left
// the shorter. When it has ended there is no hurry any more: the Group Manager says so
// when it is there, and then another is asked for at once.
func pauseBefore(left time.Duration) time.Duration {
	if left <= 0 {
		return renewAgain
	}
	return min(renewAgain, max(time.Second, left/4))
}

// renewed says whether a renewed token is in force.
func (m *membership) renewed(ctx context.Context, member *node.Member, old *node.Access) bool {
	a, err := m.request(ctx, old)
	if err == nil {
		err = member.UpdateRights(ctx, a)
	}
	if err == nil {
		err = m.change(ctx, func() { m.access, m.issued = a, time.Now() })
	}
	if err != nil {
		if ctx.Err() == nil {
			m.note(fmt.Errorf("renew the token: %w", err))
		}
		return false
	}
	m.log.Debug("token renewed", "expires", a.ExpiresAt)
	return true
}

// lost is an association that there is not yet.
type lost struct{}

// Done is closed from the start.
func (lost) Done() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

// Do fails.
func (lost) Do(context.Context, *coap.Request) (*coap.Response, error) { return nil, node.ErrLost }

// Observe fails.
func (lost) Observe(context.Context, *coap.Request, func(*coap.Response)) (func(context.Context) error, error) {
	return nil, node.ErrLost
}

// Close does nothing.
func (lost) Close() error { return nil }

// abandon makes a membership of a row that is not configured any more.
func (r *Room) abandon(k row) *membership {
	g := Group{Name: k.group, GM: k.gm}
	g.Secure, g.Addr = address(k.gm)
	n := &legacy{Node: Node{Name: k.node}, log: r.log.With("delegate", k.node)}
	m := newMembership(r, n, g, Membership{Group: k.group, Roles: k.roles})
	m.restore(k)
	return m
}

// depart leaves the group for a node that is not configured any more. A membership
// whose token ended is left to the Group Manager, which drops it then.
func (m *membership) depart(ctx context.Context) {
	for wait := (backoff{}); ctx.Err() == nil; wait.sleep(ctx, nil) {
		err := m.leave(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil && !over(err) {
			m.note(err)
			continue
		}
		m.log.Info("left the group: the node is not configured any more", "err", err)
		err = m.r.keep.remove(ctx, row{node: m.node.Name, group: m.group.Name, gm: m.group.GM})
		if err == nil {
			m.r.mu.Lock()
			m.r.abandoned = slices.DeleteFunc(m.r.abandoned, func(x *membership) bool { return x == m })
			m.r.mu.Unlock()
			return
		}
		m.note(err)
	}
}

// over says whether an error means that there is nothing to leave any more.
func over(err error) bool {
	return errors.Is(err, node.ErrNotMember) || errors.Is(err, node.ErrEvicted) || errors.Is(err, node.ErrGroupDeleted) ||
		errors.Is(err, node.ErrNotJoined) || errors.Is(err, node.ErrUnauthorized)
}

func (m *membership) leave(ctx context.Context) error {
	m.mu.Lock()
	saved, a := m.saved, m.access
	m.mu.Unlock()
	switch {
	case saved == nil || a == nil:
		return node.ErrNotJoined
	case !a.ExpiresAt.IsZero() && !time.Now().Before(a.ExpiresAt):
		return node.ErrUnauthorized
	}
	ctx, cancel := context.WithTimeout(ctx, farewell)
	defer cancel()
	t, _, err := m.dial(ctx)
	if err != nil {
		return err
	}
	member, err := node.New(node.Config{Group: m.group.Name, Roles: m.Roles, Saved: saved, Log: m.node.log}, t)
	if err != nil {
		return errors.Join(err, t.Close())
	}
	defer func() { _ = member.Close() }()
	return member.Leave(ctx)
}
