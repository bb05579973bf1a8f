package gm

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// newCred answers POST nodes/NODE/cred (RFC 9594, Section 4.9.1;
// draft-ietf-ace-key-groupcomm-oscore-21, Section 9.4): the member's credential
// is replaced, its Sender ID stays, and no rekey follows; others learn of it when
// they ask for credentials. The conditions are evaluated in this order:
//
//	group not active                              5.03 error 9
//	member is a monitor                           4.00 error 1 (the gate says so)
//	malformed                                     4.00
//	no N_S that the proof could cover             4.00 with a new one
//	credential unsuitable                         4.00 error 2
//	proof wrong or empty                          4.00 error 3
//	                                              2.04
func (m *Manager) newCred(ctx context.Context, c *call) (*coap.Response, error) {
	if !c.row.active() {
		return nil, groupcomm.ErrInactive
	}
	if f, ok := c.req.Options.ContentFormat(); ok && len(c.req.Payload) > 0 && f != coap.ACEGroupcomm {
		return nil, coap.Errorf(coap.UnsupportedContentFormat, "")
	}
	if len(c.req.Payload) > maxBody {
		return nil, coap.Errorf(coap.RequestEntityTooLarge, "")
	}
	msg, err := groupcomm.DecodeCredUpdate(c.req.Payload)
	return m.updateCred(ctx, c, msg, err)
}

// updateCred takes a request for another credential, malformed when err says so,
// from where the table of newCred looks into it.
func (m *Manager) updateCred(ctx context.Context, c *call, msg *groupcomm.CredUpdate, err error) (*coap.Response, error) {
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", coap.Errorf(coap.BadRequest, "client_cred, cnonce and client_cred_verify are expected"), err)
	case len(msg.CNonce) < nonceMin || len(msg.CNonce) > nonceMax:
		return nil, coap.Errorf(coap.BadRequest, "a cnonce of %d to %d bytes is expected", nonceMin, nonceMax)
	case len(msg.ClientCred) > maxCred:
		return nil, coap.Errorf(coap.BadRequest, "credential of more than %d bytes", maxCred)
	}
	if len(c.grant.Challenges) == 0 {
		ns, err := m.auth.NewChallenge(ctx, c.grant.Subject)
		if err != nil {
			return nil, err
		}
		b := groupcomm.InfoBody{KDCChallenge: ns}
		return nil, coap.Respond(keyed(coap.BadRequest, b.Encode()), errors.New("gm: new credential: no N_S"))
	}
	for range maxJoinTries {
		// The scope is that of the latest Join Request.
		scope := c.row.member.scope
		input := func(ns []byte) []byte { return groupcomm.ClientPoPInput(scope, ns, msg.CNonce) }
		ns, err := provenBy(c.g, msg.ClientCred, c.grant.Challenges, input, msg.ClientCredVerify)
		if err != nil {
			return nil, err
		}
		err = m.replaceCred(ctx, c, msg.ClientCred, scope, ns)
		if errors.Is(err, errMoved) {
			// It joined anew meanwhile: the proof is to cover that scope.
			if err := m.settle(ctx); err != nil {
				return nil, err
			}
			err = m.st.View(ctx, func(tx *store.Tx) error { return m.see(tx, c) })
			if err == nil && c.row.member == nil {
				err = groupcomm.ErrNotMember
			}
			if err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("gm: new credential in %q: %w", c.g.cfg.Name, err)
		}
		m.met.newCreds.Inc()
		m.log.InfoContext(ctx, "credential replaced", "group", c.g.cfg.Name, "node", c.row.member.node)
		return &coap.Response{Code: coap.Changed}, nil
	}
	return nil, unavailable("the group changes too fast")
}

// replaceCred writes the credential of a member that proved it with scope.
func (m *Manager) replaceCred(ctx context.Context, c *call, cred, scope, ns []byte) error {
	return m.st.Update(ctx, func(tx *store.Tx) error {
		r, err := c.lookAsSender(tx)
		if err != nil {
			return err
		}
		if !bytes.Equal(r.member.scope, scope) {
			return errMoved
		}
		if _, err := tx.Exec(`UPDATE gm_members SET cred = ? WHERE group_id = ? AND node = ?`,
			cred, c.g.id, r.member.node); err != nil {
			return err
		}
		if err := m.auth.UsedChallenge(tx, c.grant.Subject, ns); err != nil {
			return err
		}
		return emit(tx, groupcomm.EventNewCred, groupcomm.Event{
			Group: c.g.cfg.Name, Node: r.member.node, Version: r.num, Subject: c.grant.Subject,
			SenderID: r.member.sid.id(), Addr: addr(c.req),
		})
	})
}
