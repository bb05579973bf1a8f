package node

import (
	"context"
	"fmt"
	"slices"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// Num asks for the version of the group's keying material: GET on num.
//
// RFC 9594, Section 4.7.1.
func (m *Member) Num(ctx context.Context) (groupcomm.Version, error) {
	const op = "get num"
	resp, err := m.get(ctx, op, m.groupRequest(coap.GET, "num"))
	if err != nil {
		return 0, err
	}
	num, err := groupcomm.DecodeNum(resp.Payload)
	if err != nil {
		return 0, badAnswer(op, "%v", err)
	}
	return num, nil
}

// Creds fetches the credentials of all members and keeps them in the state when
// they belong to the version held.
//
// RFC 9594, Section 4.4.2.
func (m *Member) Creds(ctx context.Context) ([]Peer, error) {
	const op = "get creds"
	resp, err := m.get(ctx, op, m.groupRequest(coap.GET, "creds"))
	if err != nil {
		return nil, err
	}
	c, err := groupcomm.DecodeCredsResponse(resp.Payload)
	if err != nil {
		return nil, badAnswer(op, "%v", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state == nil {
		return nil, ErrNotJoined
	}
	peers, err := readPeers(c.Creds, c.PeerRoles, c.PeerIdentifiers, &m.state.Params, m.cfg.Roots)
	if err != nil {
		return nil, badAnswer(op, "%v", err)
	}
	// The list has the asking member too; it knows itself.
	peers = slices.DeleteFunc(peers, func(p Peer) bool {
		return m.state.SenderID != nil && slices.Equal(p.SenderID, m.state.SenderID)
	})
	if c.Num == m.state.Version {
		next := *m.state
		next.Peers = slices.Clone(peers)
		m.state = &next
	}
	return peers, nil
}

// get sends a request of a member and wants 2.05.
func (m *Member) get(ctx context.Context, op string, req *coap.Request) (*coap.Response, error) {
	_, t, err := m.joined()
	if err != nil {
		return nil, err
	}
	resp, err := t.Do(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	if resp.Code != coap.Content {
		return nil, m.concern(refused(op, resp))
	}
	return resp, nil
}

// staleSIDs asks what became stale since version v.
func staleSIDs(ctx context.Context, t Transport, m *Member, v groupcomm.Version) (ids []groupcomm.SenderID, all bool, err error) {
	const op = "fetch stale-sids"
	req := m.groupRequest(coap.FETCH, "stale-sids")
	req.Options.SetContentFormat(coap.CBOR)
	req.Payload = groupcomm.EncodeNum(v)
	resp, err := t.Do(ctx, req)
	if err != nil {
		return nil, false, fmt.Errorf("%s: %w", op, err)
	}
	if resp.Code != coap.Content {
		return nil, false, refused(op, resp)
	}
	if len(resp.Payload) == 0 {
		return nil, true, nil
	}
	if ids, err = groupcomm.DecodeStaleIDs(resp.Payload); err != nil {
		return nil, false, badAnswer(op, "%v", err)
	}
	return ids, false, nil
}
