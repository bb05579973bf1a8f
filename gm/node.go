package gm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// leave answers DELETE on a member's own node resource (RFC 9594, Section
// 4.8.3; draft-ietf-ace-key-groupcomm-oscore-21, Section 10): the member is out
// at once, the rekey follows within the batch window, and before any newcomer
// is let in.
func (m *Manager) leave(ctx context.Context, c *call) (*coap.Response, error) {
	c.g.gate.RLock()
	defer c.g.gate.RUnlock()
	err := m.st.Update(ctx, func(tx *store.Tx) error {
		// Its Sender ID may have changed since the gate looked.
		r, err := c.g.look(tx, subjectOf(c.grant.Subject))
		if err != nil {
			return err
		}
		if r.member == nil {
			return groupcomm.ErrNotMember
		}
		if r.state == stateMoved {
			return groupcomm.ErrInactive // the other gateway would not hear of it
		}
		r.member.by = addr(c.req)
		return m.remove(tx, c.g, r.num, r.member, groupcomm.EventLeft, byLeave, c.g.cfg.BatchWindow)
	})
	if err != nil {
		return nil, fmt.Errorf("gm: leave %q: %w", c.g.cfg.Name, err)
	}
	m.poke()
	m.met.removals.WithLabelValues("left").Inc()
	m.log.InfoContext(ctx, "node left", "group", c.g.cfg.Name, "node", c.target.node)
	return &coap.Response{Code: coap.Deleted}, nil
}

// renew answers POST on a member's own node resource (RFC 9594, Section 4.8.2;
// draft-ietf-ace-key-groupcomm-oscore-21, Section 9.2): a new Sender ID; or,
// when a rekey is due anyway, the rekey, of which the response is the message.
func (m *Manager) renew(ctx context.Context, c *call) (*coap.Response, error) {
	if len(c.req.Payload) > 0 {
		return nil, coap.Errorf(coap.BadRequest, "a body is not expected")
	}
	if err := checkAccept(c.req, coap.ACEGroupcomm); err != nil {
		return nil, err
	}
	if !c.row.active() {
		return nil, groupcomm.ErrInactive
	}
	if !m.renewals.allow(c.g.cfg.Name + "/" + c.row.member.node) {
		return nil, errTooMany
	}
	if c.row.dueSoon(time.Now()) {
		if _, err := m.rekey(ctx, c.g, c.row.dueReasons, "", c.row.num); err != nil {
			return nil, toPeer(err)
		}
		// Who did not stay a member, an elder for instance, gets no newer key.
		if err := m.st.View(ctx, func(tx *store.Tx) error { return m.see(tx, c) }); err != nil {
			return nil, err
		}
		if mb := c.row.member; mb == nil || mb.lapsed {
			return nil, groupcomm.ErrNotMember
		}
		return keyed(coap.Changed, c.mat.message.Bytes()), nil
	}
	p, err := m.renewSenderID(ctx, c)
	if err != nil {
		return nil, err
	}
	return keyed(coap.Changed, (&groupcomm.KeyRenewal{SenderID: p.id()}).Encode()), nil
}

// renewSenderID gives the member another Sender ID.
func (m *Manager) renewSenderID(ctx context.Context, c *call) (sidPlace, error) {
	for range maxJoinTries {
		p, err := m.newSenderID(ctx, c)
		switch {
		case err == nil:
			m.met.renewals.Inc()
			m.log.InfoContext(ctx, "sender id renewed", "group", c.g.cfg.Name, "node", c.row.member.node)
			return p, nil
		case !errors.Is(err, errMoved):
			return noSID, fmt.Errorf("gm: renew in %q: %w", c.g.cfg.Name, err)
		}
	}
	return noSID, unavailable("the group changes too fast")
}

// dueSoon says whether the rekey that is due is also the answer to a key
// renewal: whatever made it due (docs/protocol.md, Section 3), but expiries, of which
// one batch causes one rekey (Section 2), only when their batch is about to end.
func (r *row) dueSoon(now time.Time) bool {
	if r.dueAt == 0 {
		return false
	}
	return r.dueReasons != byExpiry || r.dueAt <= now.Add(renewalWindow).UnixMilli()
}

// lookAsSender reads the row anew inside a transaction that changes what the
// caller has in the group: still a member, of an active group, with a Sender ID
// (draft-ietf-ace-key-groupcomm-oscore-21, Sections 9.2 and 9.4).
func (c *call) lookAsSender(tx *store.Tx) (*row, error) {
	r, err := c.g.look(tx, subjectOf(c.grant.Subject))
	switch {
	case err != nil:
		return nil, err
	case r.member == nil:
		return nil, groupcomm.ErrNotMember
	case !r.active():
		return nil, groupcomm.ErrInactive
	case r.member.roles.MonitorOnly():
		return nil, groupcomm.ErrRoles
	}
	return r, nil
}

// newSenderID gives the member another Sender ID; the old one goes to the stale
// set of the current version.
func (m *Manager) newSenderID(ctx context.Context, c *call) (sidPlace, error) {
	c.g.gate.RLock()
	defer c.g.gate.RUnlock()
	p, num := noSID, uint64(0)
	err := m.st.Update(ctx, func(tx *store.Tx) error {
		r, err := c.lookAsSender(tx)
		if err != nil {
			return err
		}
		num = r.num
		if p, err = c.g.assign(tx, admission{num: r.num}); err != nil {
			return err
		}
		if err := c.g.release(tx, r.num, r.member.sid); err != nil {
			return err
		}
		if _, err = tx.Exec(`UPDATE gm_members SET sid = ? WHERE group_id = ? AND node = ?`, p, c.g.id, r.member.node); err != nil {
			return err
		}
		return emit(tx, groupcomm.EventSenderID, groupcomm.Event{
			Group: c.g.cfg.Name, Node: r.member.node, Version: r.num, Subject: c.grant.Subject, SenderID: p.id(), Addr: addr(c.req),
		})
	})
	if errors.Is(err, errNoSID) {
		return noSID, m.noSenderID(ctx, c.g, num)
	}
	return p, err
}
