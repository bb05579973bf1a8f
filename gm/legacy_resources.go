package gm

import (
	"context"
	"fmt"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// legacyDistribution is the part that all answers with keying material share. alg
// is the algorithm of the group mode: there was one AEAD algorithm for all.
func legacyDistribution(c *call) *groupcomm.LegacyKeyDistribution {
	return &groupcomm.LegacyKeyDistribution{
		Dialect: c.dialect, Num: c.mat.num, Exp: c.mat.exp,
		Key: groupcomm.LegacyKey{
			MasterSecret: c.mat.secret.Bytes(),
			HKDF:         c.g.cfg.HKDF,
			Alg:          c.g.cfg.GpEncAlg,
			Salt:         c.mat.salt.Bytes(),
			ContextID:    c.mat.gid,
			Sign:         c.g.cfg.LegacySignInfo(),
		},
	}
}

// legacyGroup answers GET /group-oscore/NAME: the keying material without a
// Sender ID (draft-ietf-ace-key-groupcomm-oscore-03, Section 6). Notifications to
// observers are rekey messages.
func (m *Manager) legacyGroup(ctx context.Context, c *call, f coap.Format) (*coap.Response, error) {
	if r := m.held(ctx, c); r != nil {
		return r, nil
	}
	r := legacyAnswer(f, legacyDistribution(c).Encode())
	return c.versioned(r, groupcomm.LegacyTopic(c.g.cfg.Name, f)), nil
}

// legacyNode answers GET on a node resource of hackathon-109: with the Sender ID
// (draft-ietf-ace-key-groupcomm-10, Section 4.1.6.3).
func (m *Manager) legacyNode(ctx context.Context, c *call, f coap.Format) (*coap.Response, error) {
	if r := m.held(ctx, c); r != nil {
		return r, nil
	}
	d := legacyDistribution(c)
	d.Key.ClientID = c.row.member.sid.id()
	r := legacyAnswer(f, d.Encode())
	r.Options.Set(coap.ETag, versionTag(c.mat.num))
	return r, nil
}

// legacyNewKey answers POST nodes/NODE/pub-key of hackathon-109: another public
// key for the same Sender ID (draft-ietf-ace-key-groupcomm-10, Section 4.1.7.1).
func (m *Manager) legacyNewKey(ctx context.Context, c *call) (*coap.Response, error) {
	if !c.row.active() {
		return nil, groupcomm.ErrInactive
	}
	msg, err := groupcomm.DecodeLegacyPubKeyUpdate(c.req.Payload)
	if err == nil {
		msg.ClientCred, err = groupcomm.CredOfKey(msg.ClientCred)
	}
	return m.updateCred(ctx, c, msg, err)
}

// legacyNum answers GET on ctx-num, in hackathon-109 num
// (draft-ietf-ace-key-groupcomm-oscore-03, Section 10).
func (m *Manager) legacyNum(ctx context.Context, c *call, f coap.Format) (*coap.Response, error) {
	if r := m.held(ctx, c); r != nil {
		return r, nil
	}
	r := legacyAnswer(f, groupcomm.EncodeNum(c.row.num))
	r.Options.Set(coap.ETag, versionTag(c.row.num))
	return r, nil
}

// legacyPubKeys answers the Public Key Request: GET for the keys of all members,
// POST, in hackathon-109 FETCH, for those named. Sender IDs that nobody has are
// ignored (draft-ietf-ace-key-groupcomm-oscore-03, Section 8).
func (m *Manager) legacyPubKeys(ctx context.Context, c *call, f coap.Format) (*coap.Response, error) {
	match := func(*member) bool { return true }
	if c.req.Code != coap.GET {
		q, err := groupcomm.DecodeLegacyPubKeyRequest(c.dialect, c.req.Payload)
		if err != nil || len(q.Roles) > maxFilter || len(q.IDs) > maxFilter {
			return nil, coap.Errorf(coap.BadRequest, "get_pub_keys that names some is expected")
		}
		match = credsFilter(q)
	}
	keys, err := m.legacyKeys(ctx, c, match)
	if err != nil {
		return nil, err
	}
	return legacyAnswer(f, keys.Encode()), nil
}

// legacyKeys lists the public keys of the members that match.
func (m *Manager) legacyKeys(ctx context.Context, c *call, match func(*member) bool) (*groupcomm.LegacyPubKeys, error) {
	creds, err := m.selectCreds(ctx, c.g, match)
	if err != nil {
		return nil, err
	}
	out := &groupcomm.LegacyPubKeys{Dialect: c.dialect, PubKeys: []groupcomm.LegacyPubKey{}}
	if c.dialect != groupcomm.Draft03 {
		out.PeerRoles = creds.PeerRoles
	}
	for i, cred := range creds.Creds {
		k, err := groupcomm.KeyOfCred(cred, creds.PeerIdentifiers[i])
		if err != nil {
			return nil, fmt.Errorf("gm: credential in %q: %w", c.g.cfg.Name, err)
		}
		out.PubKeys = append(out.PubKeys, k)
	}
	return out, nil
}

// legacyRenew answers the Key Renewal Request
// (draft-ietf-ace-key-groupcomm-oscore-03, Section 7): a new Sender ID; or, where
// the policy says so or a rekey is due anyway, 4.06 and a rekey of the group.
// docs/protocol.md, Section 3, for the rekey that is due.
func (m *Manager) legacyRenew(ctx context.Context, c *call, f coap.Format) (*coap.Response, error) {
	if len(c.req.Payload) > 0 {
		return nil, coap.Errorf(coap.BadRequest, "a body is not expected")
	}
	if !c.row.active() {
		return nil, groupcomm.ErrInactive
	}
	if !m.renewals.allow(c.g.cfg.Name + "/" + c.row.member.node) {
		return nil, errTooMany
	}
	switch due := c.row.dueSoon(time.Now()); {
	case c.dialect == groupcomm.Hackathon109 && due:
		// draft-ietf-ace-key-groupcomm-oscore-09, Section 8: the answer is the
		// rekey message.
		if _, err := m.rekey(ctx, c.g, c.row.dueReasons, "", c.row.num); err != nil {
			return nil, toPeer(err)
		}
		_, body, err := m.LegacyRekey(ctx, c.g.cfg.Name)
		if err != nil {
			return nil, err
		}
		return legacyAnswer(f, body), nil
	case c.dialect == groupcomm.Draft03 && (due || c.g.cfg.RekeyOnRenewal):
		err := m.st.Update(ctx, func(tx *store.Tx) error { return c.g.makeDue(tx, time.Now(), byRenewal) })
		if err != nil {
			return nil, fmt.Errorf("gm: renew in %q: %w", c.g.cfg.Name, err)
		}
		m.poke()
		return nil, coap.Errorf(coap.NotAcceptable, "the group is rekeyed")
	}
	p, err := m.renewSenderID(ctx, c)
	if err != nil {
		return nil, err
	}
	return legacyAnswer(f, (&groupcomm.LegacyKeyRenewal{SenderID: p.id()}).Encode()), nil
}

// legacyLeave lets a member leave. In draft-03 the body is an empty map, and the
// answer 2.05 without a body (draft-ietf-ace-key-groupcomm-oscore-03, Section 11);
// in hackathon-109 it is as now.
func (m *Manager) legacyLeave(ctx context.Context, c *call) (*coap.Response, error) {
	if c.dialect == groupcomm.Draft03 && (len(c.req.Payload) != 1 || c.req.Payload[0] != groupcomm.LegacyLeave) {
		return nil, coap.Errorf(coap.BadRequest, "an empty map is expected")
	}
	r, err := m.leave(ctx, c)
	if err == nil && c.dialect == groupcomm.Draft03 {
		r.Code = coap.Content
	}
	return r, err
}

// LegacyFormats are the Content-Formats in which a group is observed in a legacy
// dialect; none when it has none.
func (m *Manager) LegacyFormats(name string) []coap.Format {
	if g, ok := m.group(name); ok && g.cfg.Interface.Legacy() != groupcomm.Current {
		return groupcomm.LegacyFormats
	}
	return nil
}

// LegacyRekey returns the current version of a group, and the rekey message for
// those who observe it in its legacy dialect
// (draft-ietf-ace-key-groupcomm-oscore-03, Section 13): kty, key, num, profile and
// exp. It is nil when the group has none or was never rekeyed. It is a secret.
func (m *Manager) LegacyRekey(ctx context.Context, name string) (uint64, []byte, error) {
	g, err := m.find(ctx, name)
	if err != nil {
		return 0, nil, err
	}
	d := g.cfg.Interface.Legacy()
	if d == groupcomm.Current {
		return 0, nil, nil
	}
	mat, err := m.current(ctx, g)
	if err != nil || mat.num == 0 {
		return 0, nil, err
	}
	msg := &groupcomm.LegacyKeyDistribution{
		Dialect: d, Num: mat.num, Exp: mat.exp,
		Key: groupcomm.LegacyKey{MasterSecret: mat.secret.Bytes(), Salt: mat.salt.Bytes(), ContextID: mat.gid},
	}
	return mat.num, msg.Encode(), nil
}
