package bridge

import (
	"context"
	"fmt"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// Me answers PUT /gw/me (docs/protocol.md, Section 7): a node announces how long it is
// awake and when it wakes next, and learns of which groups it did not show yet
// that it has the newest keying material; none means that it may sleep now. What
// it lacks is on its way by then, over every channel that it has.
//
// Whoever is authenticated may ask; a node without a membership has nothing
// pending. With a channel the node says over which one it wants to be told from
// now on.
func (b *Bridge) Me() coap.Handler { return coap.HandlerFunc(b.me) }

var (
	errAnnounceMethod = coap.Errorf(coap.MethodNotAllowed, "")
	errAnnounceFormat = coap.Errorf(coap.UnsupportedContentFormat, "")
	errNoIdentity     = coap.Errorf(coap.Unauthorized, "")
)

func (b *Bridge) me(ctx context.Context, req *coap.Request) (*coap.Response, error) {
	if req.Code != coap.PUT {
		return nil, errAnnounceMethod
	}
	if req.Peer.Subject == (coap.Subject{}) {
		return nil, errNoIdentity
	}
	if f, ok := req.Options.ContentFormat(); ok && f != coap.CBOR {
		return nil, errAnnounceFormat
	}
	ask, err := groupcomm.DecodeAnnouncement(req.Payload)
	if err != nil {
		return nil, coap.Errorf(coap.BadRequest, "%v", err)
	}
	out, err := b.announced(ctx, req.Peer, ask)
	if err != nil {
		return nil, err
	}
	resp := &coap.Response{Code: coap.Changed, Payload: out.Encode()}
	resp.Options.SetContentFormat(coap.CBOR)
	resp.Options.SetUint(coap.MaxAge, 0)
	return resp, nil
}

// announced keeps an announcement and tells what is pending.
func (b *Bridge) announced(ctx context.Context, p coap.Peer, ask *groupcomm.Announcement) (*groupcomm.Pending, error) {
	out := &groupcomm.Pending{}
	r, ok := b.source.(roster)
	if !ok {
		return out, nil
	}
	all, err := r.Memberships(ctx, p.Subject)
	if err != nil {
		return nil, fmt.Errorf("bridge: memberships: %w", err)
	}
	var found []groupcomm.Member
	for _, f := range all {
		if !f.Lapsed {
			found = append(found, f)
		}
	}
	if len(found) == 0 {
		return out, nil
	}
	if err := b.access(ctx, p); err != nil {
		return nil, err
	}
	if err := b.canHave(ctx, found, ask.Channel); err != nil {
		return nil, err
	}
	b.recognized(ctx, p, found)
	if err := b.keepAnnouncement(ctx, found, ask); err != nil {
		return nil, err
	}
	for _, f := range found {
		version, _, err := b.source.RekeyMessage(ctx, f.Group)
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("bridge: version of %q: %w", f.Group, err)
		}
		m := member{f.Group, f.Node}
		if b.activity.holds(m, version) {
			continue
		}
		have, shown, err := b.confirmedBy(ctx, m)
		if err != nil {
			return nil, fmt.Errorf("bridge: confirmations: %w", err)
		}
		if !shown || have < version {
			out.Groups = append(out.Groups, groupcomm.PendingGroup{Name: f.Group, Num: version})
		}
	}
	return out, nil
}

// canHave refuses a channel that no membership has.
func (b *Bridge) canHave(ctx context.Context, found []groupcomm.Member, channel string) error {
	switch channel {
	case groupcomm.ChannelControl:
		for _, f := range found {
			if f.ControlURI != "" {
				return nil
			}
		}
		return coap.Errorf(coap.BadRequest, "no control_uri was given at join")
	case groupcomm.ChannelMQTT:
		enrolled := false
		err := b.store.View(ctx, func(tx *store.Tx) error {
			enrolled = false
			for _, f := range found {
				var n int
				if err := tx.QueryRow(`SELECT COUNT(*) FROM bridge_registration WHERE grp = ? AND node = ? AND route = 'mqtt'`, f.Group, f.Node).Scan(&n); err != nil {
					return err
				}
				enrolled = enrolled || n > 0
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("bridge: registrations: %w", err)
		}
		if !enrolled {
			return coap.Errorf(coap.BadRequest, "not enrolled for MQTT: join again with delivery mqtt")
		}
	}
	return nil
}

// keepAnnouncement is durable before the reply.
func (b *Bridge) keepAnnouncement(ctx context.Context, found []groupcomm.Member, ask *groupcomm.Announcement) error {
	now := time.Now()
	asleepAt := now.Add(time.Duration(ask.AwakeFor) * time.Second)
	var wakeAt time.Time
	if ask.NextWake != 0 {
		wakeAt = now.Add(time.Duration(ask.NextWake) * time.Second)
	}
	if !wakeAt.IsZero() && !wakeAt.After(asleepAt) {
		asleepAt, wakeAt = time.Time{}, time.Time{} // it does not sleep in between
	}
	lives := make([]life, len(found))
	for i, f := range found {
		lives[i] = life{member: member{f.Group, f.Node}, heard: now, asleepAt: asleepAt, wakeAt: wakeAt, want: ask.Channel}
	}
	err := b.store.Update(ctx, func(tx *store.Tx) error {
		for i, l := range lives {
			if ask.Channel == "" {
				err := tx.QueryRow(`SELECT channel FROM bridge_life WHERE grp = ? AND node = ?`, l.member.group, l.member.node).Scan(&lives[i].want)
				if err != nil && !gone(err) {
					return err
				}
			}
			if err := writeLife(tx, lives[i]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("bridge: announcement: %w", err)
	}
	for _, l := range lives {
		b.activity.change(l.member, func(t *trace) {
			t.heard, t.saved, t.asleepAt, t.wakeAt, t.want = l.heard, l.heard, l.asleepAt, l.wakeAt, l.want
		})
		if ask.Channel == channelMQTT && b.publisher != nil {
			b.publisher.wakeGroup(l.member.group)
		}
		if now := time.Now(); !l.asleepAt.IsZero() {
			if turn, waits := b.holds.turn(l.member, now); waits && l.asleepAt.Before(turn) {
				b.release(l.member.group, []string{l.member.node}) // it would sleep through its turn
			}
		}
	}
	return nil
}
