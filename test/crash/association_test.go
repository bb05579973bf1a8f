package crash

import (
	"context"
	"errors"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
)

// connect opens an association: with the token in psk_identity, or by the key
// identifier of a token that was posted or conveyed before.
func (c *client) connect(ctx context.Context) {
	if c.life == nil {
		c.life = c.newLife()
	}
	l := c.life
	switch {
	case l.stored && l.member != nil && c.rng.IntN(20) == 0:
		c.post(ctx) // a repeat must not harm
		fallthrough
	case l.stored && l.member != nil:
		c.reconnect(ctx)
	case l.member != nil && l.conveyed && c.rng.IntN(2) == 0:
		c.reconnect(ctx) // perhaps it was stored
	case l.conveyed:
		c.convey(ctx)
	default:
		if c.post(ctx) {
			c.reconnect(ctx)
		}
	}
}

// post transfers the token to /authz-info.
func (c *client) post(ctx context.Context) bool {
	l := c.life
	to, ctx, arrived := c.toward(ctx)
	defer arrived(false) // there is no association
	t, err := node.DialUDP(ctx, to.coap)
	if err != nil {
		return false
	}
	defer t.Close()
	transfer, err := node.PostToken(ctx, t, &l.access)
	var e *node.Error
	switch {
	case err == nil:
		c.w.count.posts.Add(1)
		l.stored, l.transfer = true, transfer
		return true
	case errors.As(err, &e) && (e.Code == coap.TooManyRequests || e.Code>>5 == 5):
		// All nodes share one address here, whose posts are limited.
	default:
		c.judge("post", err)
	}
	return false
}

// convey opens an association with the token as psk_identity.
func (c *client) convey(ctx context.Context) {
	l := c.life
	l.conveys++
	to, bound, arrived := c.toward(ctx)
	t, err := node.DialDTLS(bound, to.coaps, l.access.Token, l.access.Key.Bytes())
	arrived(err == nil)
	if err != nil {
		if alert(err) && !c.cut(ctx) {
			c.w.ledger.breach(c.group, "handshake with a good token: %v", err)
		}
		return
	}
	c.w.count.handshakes.Add(1)
	t = c.w.forest.on(t, l)
	l.setTransport(t)
	l.asked, l.unsureNS = false, l.conveys > 1
	c.newMember(t, nil) // N_S belongs to this association now
}

// reconnect opens an association by the key identifier. The membership is the
// same: it is bound to the key of the token.
func (c *client) reconnect(ctx context.Context) {
	l := c.life
	var err error
	if l.member != nil {
		// A member that asked for nothing yet takes N_S from the association that
		// it asks over first.
		l.unsureNS = l.unsureNS || l.conveyed && !l.asked
		err = l.member.Reconnect(ctx)
	} else {
		var t node.Transport
		if t, err = c.dial(ctx, l); err == nil {
			c.newMember(t, l.transfer)
		}
	}
	if err == nil || !alert(err) || c.cut(ctx) {
		return
	}
	if l.stored {
		c.w.ledger.breach(c.group, "the token of %x was stored and is not known any more: %v", l.access.KID, err)
		return
	}
	// It never was stored, so what was sent over its association never arrived.
	if c.at == uncertain && c.doubt == joining {
		c.at = outside
	}
	l.member = nil
}

// dial opens an association by the key identifier and keeps it in l.
func (c *client) dial(ctx context.Context, l *life) (node.Transport, error) {
	to, bound, arrived := c.toward(ctx)
	t, err := node.DialDTLS(bound, to.coaps, l.access.Identity(), l.access.Key.Bytes())
	arrived(err == nil)
	if err != nil {
		return nil, err
	}
	c.w.count.handshakes.Add(1)
	t = c.w.forest.on(t, l)
	l.setTransport(t)
	return t, nil
}

func (c *client) newMember(t node.Transport, transfer *groupcomm.TokenTransferResponse) {
	l := c.life
	l.member = nil
	m, err := node.New(node.Config{
		Group: c.group, Roles: c.roles, Transfer: transfer, WantCreds: c.rng.IntN(2) == 0, MQTT: c.mqtt,
		Multicast: c.cast, MulticastInterface: loopback, PollEvery: c.pollEvery,
		Redial:  func(ctx context.Context) (node.Transport, error) { return c.dial(ctx, l) },
		OnEvent: func(e node.Event) { c.event(l, e) },
	}, t)
	if err != nil {
		c.w.ledger.breach(c.group, "unusable answer to a token post: %v", err)
		_ = t.Close()
		l.setTransport(nil)
		return
	}
	l.member = m
}

// event records what a member learns, from any goroutine.
func (c *client) event(l *life, e node.Event) {
	switch e.Kind {
	case node.Joined:
		l.joined = e // within Join: c.mu is held
	case node.Rekeyed:
		c.w.count.learned(e.Via)
		if e.Via == node.ViaObserve {
			c.observed.Add(1)
		}
	case node.Refused:
		// What comes over MQTT may be for the enrolment before a re-join.
		if e.Via != node.ViaMQTT && badAnswer(e.Err) {
			c.w.ledger.breach(c.group, "unusable answer, via %s: %v", e.Via, e.Err)
		}
		return
	default:
		return
	}
	if s, ok := l.member.State(); ok && s.Installed {
		c.w.ledger.shows(c.group, s.Version, s.Gid, s.MasterSecret)
	}
}

// follow keeps the member current by itself, as long as the association lasts.
func (c *client) follow(ctx context.Context) {
	if !c.follows || c.following.Load() {
		return
	}
	m := c.life.member
	if _, ok := m.State(); !ok {
		return
	}
	ctx, c.stop = context.WithCancel(ctx)
	c.following.Store(true)
	c.wg.Go(func() {
		defer c.following.Store(false)
		_ = m.Follow(ctx) // how it ends is judged by the requests of step
	})
}

// hangUp ends the association.
func (c *client) hangUp() {
	if c.stop != nil {
		c.stop()
	}
	if c.life != nil {
		if c.life.member != nil {
			_ = c.life.member.Close()
		} else if t := c.life.transport(); t != nil {
			_ = t.Close()
		}
	}
	c.wg.Wait()
	c.stop = nil
	if c.life == nil {
		return
	}
	if t := c.life.transport(); t != nil {
		_ = t.Close() // Follow may have dialled meanwhile
	}
	c.life.setTransport(nil)
}
