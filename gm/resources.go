package gm

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// fetchGroups answers FETCH /ace-group (RFC 9594, Section 4.2.1): names of the
// groups whose current Gid is asked for. Any client with a valid token may ask.
func (m *Manager) fetchGroups(ctx context.Context, c *call) (*coap.Response, error) {
	if err := checkFormats(c.req); err != nil {
		return nil, err
	}
	q, err := groupcomm.DecodeGidRequest(c.req.Payload)
	if err != nil || len(q.Gids) > maxGids {
		return nil, coap.Errorf(coap.BadRequest, "gid with 1 to %d elements is expected", maxGids)
	}
	out := &groupcomm.GidResponse{}
	err = m.st.View(ctx, func(tx *store.Tx) error {
		*out = groupcomm.GidResponse{}
		for _, gid := range q.Gids {
			var name string
			err := tx.QueryRow(`SELECT name FROM gm_groups WHERE gid = ?`, []byte(gid)).Scan(&name)
			if isNotFound(err) {
				continue
			}
			if err != nil {
				return err
			}
			out.Gids = append(out.Gids, gid)
			out.Names = append(out.Names, name)
			out.URIs = append(out.URIs, m.pathOf(name))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("gm: find groups: %w", err)
	}
	return plain(coap.ACEGroupcomm, out.Encode()), nil
}

// getGroup answers GET on the group (RFC 9594, Section 4.3.2): the current
// keying material without a Sender ID. The first response to an Observe
// registration is the same full map; later notifications are rekey messages.
func (m *Manager) getGroup(ctx context.Context, c *call) (*coap.Response, error) {
	if r := m.held(ctx, c); r != nil {
		return r, nil
	}
	if err := checkAccept(c.req, coap.ACEGroupcomm); err != nil {
		return nil, err
	}
	d, err := m.distribution(ctx, c)
	if err != nil {
		return nil, err
	}
	r := c.versioned(keyed(coap.Content, d.Encode()), c.g.topic())
	if c.row.member.phased {
		r.Observe.Topic, r.Observe.Version = groupcomm.PhasedTopic(c.g.cfg.Name), groupcomm.PhasedVersion(c.mat.num, d.ActivateIn == 0)
	}
	return r, nil
}

// distribution is the current keying material with what the member was told of
// its channel when it joined (docs/protocol.md, Section 5).
func (m *Manager) distribution(ctx context.Context, c *call) (*groupcomm.KeyDistribution, error) {
	d := keyDistribution(c.g, c.mat)
	if m.deliver == nil {
		return d, nil
	}
	if p, ok := m.deliver.(phaser); ok && c.row.member.phased {
		d.ActivateIn = p.Dormant(c.g.cfg.Name, c.row.member.node, c.mat.num)
	}
	mgt, err := m.deliver.Enrolled(ctx, c.g.cfg.Name, c.row.member.node)
	if err == nil {
		err = c.g.tellChannel(d, mgt, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("gm: channel of %s/%s: %w", c.g.cfg.Name, c.row.member.node, err)
	}
	return d, nil
}

// getNode answers GET on a member's own node resource (RFC 9594, Section
// 4.8.1): as the group's, with the Sender ID.
func (m *Manager) getNode(ctx context.Context, c *call) (*coap.Response, error) {
	if r := m.held(ctx, c); r != nil {
		return r, nil
	}
	if err := checkAccept(c.req, coap.ACEGroupcomm); err != nil {
		return nil, err
	}
	d, err := m.distribution(ctx, c)
	if err != nil {
		return nil, err
	}
	d.Key.SenderID = c.row.member.sid.id()
	return c.versioned(keyed(coap.Content, d.Encode()), c.g.nodeTopic(c.row.member.node)), nil
}

// getNum answers GET num (RFC 9594, Section 4.7.1). It can be observed.
func (m *Manager) getNum(ctx context.Context, c *call) (*coap.Response, error) {
	if r := m.held(ctx, c); r != nil {
		return r, nil
	}
	if err := checkAccept(c.req, coap.CBOR); err != nil {
		return nil, err
	}
	r := plain(coap.CBOR, groupcomm.EncodeNum(c.row.num))
	r.Options.Set(coap.ETag, versionTag(c.row.num))
	r.Options.SetUint(coap.MaxAge, 0)
	r.Observe = &coap.Observation{Topic: c.g.numTopic(), Version: c.row.num}
	return r, nil
}

// versioned marks r with the version that it shows.
func (c *call) versioned(r *coap.Response, topic string) *coap.Response {
	r.Options.Set(coap.ETag, versionTag(c.mat.num))
	r.Observe = &coap.Observation{Topic: topic, Version: c.mat.num}
	return r
}

// held answers 2.03 when a plain GET carries the ETag of the current version
// (RFC 7252, Section 5.10.6.2). A member that sends that ETag has thereby shown
// that it holds the version. A registration always gets the full map: a member
// that starts to observe has perhaps lost what it knew.
func (m *Manager) held(ctx context.Context, c *call) *coap.Response {
	tag := versionTag(c.row.num)
	current := slices.ContainsFunc(c.req.Options.Values(coap.ETag), func(t []byte) bool { return bytes.Equal(t, tag) })
	register, observe := c.req.Observe()
	if h, ok := m.deliver.(holder); ok {
		// Who observes num learns that there are newer keys, not the keys.
		h.Seen(ctx, c.g.cfg.Name, c.row.member.node, c.req.Peer, register && c.target.res != resNum)
		if current {
			h.Held(ctx, c.g.cfg.Name, c.row.member.node, c.row.num)
		}
	}
	if !current || observe {
		return nil
	}
	r := &coap.Response{Code: coap.Valid}
	r.Options.Set(coap.ETag, tag)
	r.Options.SetUint(coap.MaxAge, 0)
	return r
}

// getPolicies answers GET policies (RFC 9594, Section 4.6.1).
func (m *Manager) getPolicies(c *call) (*coap.Response, error) {
	if err := checkAccept(c.req, coap.ACEGroupcomm); err != nil {
		return nil, err
	}
	return plain(coap.ACEGroupcomm, policies(c.g).Encode()), nil
}

// getActive answers GET active (draft-ietf-ace-key-groupcomm-oscore-21, Section
// 9.9). It can be observed.
func (m *Manager) getActive(c *call) (*coap.Response, error) {
	if err := checkAccept(c.req, coap.CBOR); err != nil {
		return nil, err
	}
	r := plain(coap.CBOR, groupcomm.EncodeActive(c.row.active()))
	r.Options.SetUint(coap.MaxAge, 0)
	r.Observe = &coap.Observation{Topic: c.g.activeTopic(), Version: c.row.changes}
	return r, nil
}
