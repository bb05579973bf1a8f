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

// legacyJoin answers POST /group-oscore/NAME: the request is put into the words
// of a current one, and goes through the same decision table
// (draft-ietf-ace-key-groupcomm-oscore-03, Sections 4.2 and 4.3).
func (m *Manager) legacyJoin(ctx context.Context, c *call, f coap.Format) (*coap.Response, error) {
	j := &joinCall{call: c, arrived: c.row.num}
	err := m.parseLegacyJoin(ctx, j)
	var r *coap.Response
	if err == nil {
		r, err = m.admit(ctx, j)
	}
	if err != nil {
		m.met.joins.WithLabelValues("refused").Inc()
		return nil, err
	}
	r.Options.SetContentFormat(f)
	return r, nil
}

// parseLegacyJoin judges what the request says by itself.
func (m *Manager) parseLegacyJoin(ctx context.Context, j *joinCall) error {
	refuse := func(format string, args ...any) error {
		return coap.Respond(&coap.Response{Code: coap.BadRequest}, fmt.Errorf("gm: join: "+format, args...))
	}
	msg, err := groupcomm.DecodeLegacyJoinRequest(j.dialect, j.req.Payload)
	if err != nil {
		return refuse("%w", err)
	}
	if j.entry, err = groupcomm.DecodeLegacyScope(j.dialect, msg.Scope); err != nil {
		return refuse("%w", err)
	}
	if j.entry.Group != j.g.cfg.Name {
		return refuse("scope names another group")
	}
	if err := j.g.cfg.Interface.ValidLegacyJoin(j.entry.Roles); err != nil {
		return refuse("%w", err)
	}
	if j.entry.Roles&^j.roles != 0 {
		return coap.Detail(errForbidden, "roles not granted")
	}
	if n := len(msg.CNonce); msg.CNonce != nil && (n < nonceMin || n > nonceMax) {
		return refuse("cnonce of %d bytes", n)
	}
	if len(msg.ClientCred) > maxCred {
		return refuse("credential of %d bytes", len(msg.ClientCred))
	}
	if err := checkGetCreds(msg.GetPubKeys); err != nil {
		return refuse("%w", err)
	}
	j.msg = &groupcomm.JoinRequest{
		Scope: msg.Scope, GetCreds: msg.GetPubKeys, CNonce: msg.CNonce, ClientCredVerify: msg.ClientCredVerify,
	}
	if j.msg.CNonce == nil {
		j.msg.CNonce = []byte{} // there may be none without a proof
	}
	switch {
	case j.entry.Roles.MonitorOnly():
		return nil
	case msg.ClientCred == nil:
		j.proven, err = m.onlyCred(ctx, j)
		return err
	}
	if j.msg.ClientCred, err = groupcomm.CredOfKey(msg.ClientCred); err != nil {
		return refuse("client_cred: %w", err)
	}
	return nil
}

var errNoCred = coap.Respond(&coap.Response{Code: coap.BadRequest}, errors.New("gm: join: not exactly one stored public key that fits"))

// onlyCred finds the credential that a node refers to which leaves client_cred
// out: it must have proven exactly one key that fits, by joining this group or
// others, or by the handshake, as the public key that its token confirms
// (draft-ietf-ace-key-groupcomm-oscore-03, Sections 4.3 and 5).
func (m *Manager) onlyCred(ctx context.Context, j *joinCall) ([]byte, error) {
	var found map[int64]*member
	err := m.st.View(ctx, func(tx *store.Tx) (err error) {
		found, err = memberships(tx, subjectOf(j.grant.Subject))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("gm: stored public keys: %w", err)
	}
	var only []byte
	for _, mb := range found {
		if mb.cred == nil || bytes.Equal(mb.cred, only) {
			continue
		}
		if _, err := parseCred(j.g.cfg, mb.cred); err != nil {
			continue
		}
		if only != nil {
			return nil, errNoCred
		}
		only = mb.cred
	}
	if shown := j.grant.PublicKey; shown != nil {
		cred, err := groupcomm.CredOfKey(shown.Encode())
		if err == nil {
			_, err = parseCred(j.g.cfg, cred)
		}
		switch {
		case err != nil: // not one for this group
		case only == nil:
			only = cred
		default:
			if key, err := parseCred(j.g.cfg, only); err != nil || !key.SamePublic(shown) {
				return nil, errNoCred
			}
		}
	}
	if only == nil {
		return nil, errNoCred
	}
	return only, nil
}

// legacyJoinResponse makes the Joining Response. There is no credential or proof
// of the Group Manager in it.
func (m *Manager) legacyJoinResponse(ctx context.Context, j *joinCall, p sidPlace) (*coap.Response, error) {
	d := legacyDistribution(j.call)
	d.Key.ClientID = p.id()
	d.Policies = policies(j.g)
	if q := j.msg.GetCreds; q != nil {
		keys, err := m.legacyKeys(ctx, j.call, func(mb *member) bool {
			return mb.node != j.node && wanted(q, j.entry.Roles, mb)
		})
		if err != nil {
			return nil, err
		}
		d.PubKeys, d.PeerRoles = keys.PubKeys, keys.PeerRoles
	}
	r := keyed(coap.Created, d.Encode())
	if j.dialect == groupcomm.Hackathon109 {
		for _, s := range []string{legacyRoot, j.g.cfg.Name, "nodes", j.node} {
			r.Options.AddString(coap.LocationPath, s)
		}
	}
	return r, nil
}
