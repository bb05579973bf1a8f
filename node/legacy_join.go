package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// Join becomes a member of the group, or joins again: POST /group-oscore/GROUP.
// When the Group Manager answers with other parameters, or a new challenge, the
// request is made once more. On any error the earlier state is as before.
//
// draft-ietf-ace-key-groupcomm-oscore-03, Sections 4.2 and 4.3.
func (m *LegacyMember) Join(ctx context.Context) error {
	const op = "join"
	m.exchange.Lock()
	defer m.exchange.Unlock()
	for attempt := 1; ; attempt++ {
		body, err := m.joinRequest()
		if err != nil {
			return err
		}
		m.mu.Lock()
		t := m.t
		m.mu.Unlock()
		resp, err := t.Do(ctx, m.request(coap.POST, body.Encode()))
		if err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
		switch {
		case resp.Code == coap.Created || resp.Code == coap.Changed:
			return m.accept(resp)
		case resp.Code != coap.BadRequest || attempt == 2:
			return refused(op, resp)
		}
		info, err := groupcomm.DecodeLegacyInfo(m.cfg.Dialect, resp.Payload)
		if err != nil {
			return refused(op, resp)
		}
		m.learn(info)
	}
}

func (m *LegacyMember) joinRequest() (*groupcomm.LegacyJoinRequest, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := &groupcomm.LegacyJoinRequest{
		Dialect: m.cfg.Dialect,
		Scope:   groupcomm.EncodeLegacyScope(m.cfg.Dialect, groupcomm.ScopeEntry{Group: m.cfg.Group, Roles: m.cfg.Roles}),
	}
	if m.cfg.WantKeys {
		r.GetPubKeys = &groupcomm.GetCreds{All: true}
	}
	if m.cfg.Roles.MonitorOnly() {
		return r, nil
	}
	if m.ns == nil {
		return nil, fmt.Errorf("%w: the Group Manager gave no challenge: post the token to it", ErrUnsupported)
	}
	if m.key == nil {
		if m.sign == nil {
			return nil, fmt.Errorf("%w: the Group Manager announces no signature parameters, and no key is configured", ErrUnsupported)
		}
		key, err := cose.GenerateKey(m.sign.Alg)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
		}
		m.key = key
	}
	r.CNonce = make([]byte, ownNonce)
	if _, err := io.ReadFull(m.cfg.Rand, r.CNonce); err != nil {
		return nil, fmt.Errorf("node: nonce: %w", err)
	}
	r.ClientCred = m.key.Public().Encode()
	sig, err := m.key.Sign(groupcomm.LegacyPoPInput(m.cfg.Dialect, r.Scope, m.ns, r.CNonce))
	if err != nil {
		return nil, fmt.Errorf("node: join: proof of possession: %w", err)
	}
	r.ClientCredVerify = sig
	return r, nil
}

// accept installs what a Joining Response carries, or changes nothing.
func (m *LegacyMember) accept(r *coap.Response) error {
	s, err := m.readJoin(r)
	if err != nil {
		m.emit(Event{Kind: Refused, Via: ViaJoin, Err: err})
		return err
	}
	m.mu.Lock()
	if !m.cfg.WantKeys && m.state != nil {
		s.Peers = m.state.Peers
	}
	m.state = s
	m.mu.Unlock()
	m.emit(Event{Kind: Joined, Version: s.Version, Gid: s.Gid, Via: ViaJoin})
	return nil
}

func (m *LegacyMember) readJoin(r *coap.Response) (*State, error) {
	const op = "join"
	d, err := groupcomm.DecodeLegacyKeyDistribution(m.cfg.Dialect, r.Payload)
	if err != nil {
		return nil, badAnswer(op, "%v", err)
	}
	s := &State{Group: m.cfg.Group, Roles: m.cfg.Roles, SenderID: d.Key.ClientID}
	switch monitor := m.cfg.Roles.MonitorOnly(); {
	case monitor && s.SenderID != nil:
		return nil, badAnswer(op, "a Sender ID for a monitor")
	case !monitor && s.SenderID == nil:
		return nil, badAnswer(op, "no Sender ID")
	case d.Key.Sign.Alg == 0:
		return nil, badAnswer(op, "no countersignature algorithm")
	}
	if m.cfg.Dialect == groupcomm.Hackathon109 {
		at := r.Options.Strings(coap.LocationPath)
		if len(at) != 4 || at[0] != "group-oscore" || at[1] != m.cfg.Group || at[2] != "nodes" || at[3] == "" || len(at[3]) > maxName {
			return nil, badAnswer(op, "the node resource is not below the group %q", m.cfg.Group)
		}
		s.Node = at[3]
	}
	m.mu.Lock()
	key := m.key
	m.mu.Unlock()
	if key != nil {
		if err := key.CheckAlg(d.Key.Sign.Alg); err != nil {
			return nil, badAnswer(op, "cs_alg: %v", err)
		}
	}
	s.Params = groupcomm.KeyMap{HKDF: d.Key.HKDF, GpEncAlg: d.Key.Alg, SignAlg: d.Key.Sign.Alg, CredFmt: cose.HeaderKCCS}
	if s.Params.HKDF == 0 {
		s.Params.HKDF = cose.AlgHMAC256 // RFC 8613, Section 3.2: the default
	}
	if s.Params.GpEncAlg == 0 {
		s.Params.GpEncAlg = cose.AlgAESCCM16_64_128 // as above
	}
	if err := s.install(d); err != nil {
		return nil, badAnswer(op, "%v", err)
	}
	if d.Policies != nil {
		s.Policies = *d.Policies
	}
	if s.Peers, err = legacyPeers(d.PubKeys, d.PeerRoles, d.Key.Sign.Alg); err != nil {
		return nil, badAnswer(op, "%v", err)
	}
	return s, nil
}

// install puts the keying material of d into a state under construction.
func (s *State) install(d *groupcomm.LegacyKeyDistribution) error {
	now := time.Now()
	left := d.Exp - now.Unix()
	if err := s.setMaterial(d.Key.MasterSecret, d.Key.Salt, d.Key.ContextID, d.Num, min(max(left, 0), math.MaxInt64/int64(time.Second)), now); err != nil {
		return err
	}
	return nil
}

// legacyPeers makes members of public keys.
func legacyPeers(keys []groupcomm.LegacyPubKey, roles []groupcomm.Roles, signAlg int64) ([]Peer, error) {
	peers := make([]Peer, 0, len(keys))
	for i, k := range keys {
		if err := k.Key.CheckAlg(signAlg); err != nil {
			return nil, fmt.Errorf("public key of Sender ID %s: %w", k.SenderID, err)
		}
		p := Peer{SenderID: k.SenderID, Cred: cose.EncodeCCS("", k.Key), Key: k.Key}
		if roles != nil {
			p.Roles = roles[i]
		}
		peers = append(peers, p)
	}
	return peers, nil
}

// PubKeys fetches the public keys of the members with the given Sender IDs, of all
// when none is given, and keeps the latter in the state. Sender IDs that nobody has
// are left out.
//
// draft-ietf-ace-key-groupcomm-oscore-03, Section 8.
func (m *LegacyMember) PubKeys(ctx context.Context, ids ...groupcomm.SenderID) ([]Peer, error) {
	const op = "get public keys"
	req := m.request(coap.GET, nil, "pub-key")
	if len(ids) > 0 {
		code := coap.POST
		if m.cfg.Dialect == groupcomm.Hackathon109 {
			code = coap.FETCH
		}
		q := &groupcomm.GetCreds{Inclusion: true, Roles: []groupcomm.Roles{}, IDs: ids}
		req = m.request(code, groupcomm.EncodeLegacyPubKeyRequest(m.cfg.Dialect, q), "pub-key")
	}
	resp, err := m.do(ctx, op, coap.Content, req)
	if err != nil {
		return nil, err
	}
	p, err := groupcomm.DecodeLegacyPubKeys(m.cfg.Dialect, resp.Payload)
	if err != nil {
		return nil, badAnswer(op, "%v", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state == nil {
		return nil, ErrNotJoined
	}
	peers, err := legacyPeers(p.PubKeys, p.PeerRoles, m.state.Params.SignAlg)
	if err != nil {
		return nil, badAnswer(op, "%v", err)
	}
	// The list has the asking member too; it knows itself.
	peers = slices.DeleteFunc(peers, func(p Peer) bool {
		return m.state.SenderID != nil && slices.Equal(p.SenderID, m.state.SenderID)
	})
	if len(ids) == 0 {
		next := *m.state
		next.Peers = slices.Clone(peers)
		m.state = &next
	}
	return peers, nil
}

// Num asks for the version of the group's keying material: GET on ctx-num.
//
// draft-ietf-ace-key-groupcomm-oscore-03, Section 10.
func (m *LegacyMember) Num(ctx context.Context) (groupcomm.Version, error) {
	const op = "get the version"
	name := "ctx-num"
	if m.cfg.Dialect == groupcomm.Hackathon109 {
		name = "num"
	}
	resp, err := m.do(ctx, op, coap.Content, m.request(coap.GET, nil, name))
	if err != nil {
		return 0, err
	}
	num, err := groupcomm.DecodeNum(resp.Payload)
	if err != nil {
		return 0, badAnswer(op, "%v", err)
	}
	return num, nil
}

// ErrRekeying: the Group Manager gives no new Sender ID, but rekeys the group
// (4.06). The new keying material comes to [LegacyMember.Follow], or is to be
// asked for with [LegacyMember.Poll].
var ErrRekeying = errors.New("node: the group is rekeyed instead")

// Renew asks for a new Sender ID: GET on node, in hackathon-109 PUT on the node
// resource, where the answer may also be new keying material.
//
// draft-ietf-ace-key-groupcomm-oscore-03, Section 7.
func (m *LegacyMember) Renew(ctx context.Context) error {
	const op = "renew the Sender ID"
	m.exchange.Lock()
	defer m.exchange.Unlock()
	s, _, err := m.joined()
	if err != nil {
		return err
	}
	code := coap.GET
	if m.cfg.Dialect == groupcomm.Hackathon109 {
		code = coap.PUT
	}
	resp, err := m.do(ctx, op, coap.Content, m.request(code, nil, m.node(s)...))
	if e, ok := errors.AsType[*Error](err); ok && e.Code == coap.NotAcceptable {
		return fmt.Errorf("%w: %w", ErrRekeying, err)
	}
	if err != nil {
		return err
	}
	k, err := groupcomm.DecodeLegacyKeyRenewal(resp.Payload)
	if err != nil && m.cfg.Dialect == groupcomm.Hackathon109 {
		return m.take(resp.Payload, ViaPoll)
	}
	if err != nil {
		return badAnswer(op, "%v", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state == nil {
		return ErrNotJoined
	}
	next := *m.state
	next.SenderID = k.SenderID
	m.state = &next
	return nil
}

// Leave ends the membership: POST on node, in hackathon-109 DELETE on the node
// resource. The keying material is deleted here when the Group Manager confirmed.
//
// draft-ietf-ace-key-groupcomm-oscore-03, Section 11.
func (m *LegacyMember) Leave(ctx context.Context) error {
	m.exchange.Lock()
	defer m.exchange.Unlock()
	s, _, err := m.joined()
	if err != nil {
		return err
	}
	req, want := m.request(coap.POST, []byte{groupcomm.LegacyLeave}, m.node(s)...), coap.Content
	if m.cfg.Dialect == groupcomm.Hackathon109 {
		req, want = m.request(coap.DELETE, nil, m.node(s)...), coap.Deleted
	}
	if _, err := m.do(ctx, "leave", want, req); err != nil {
		return err
	}
	m.mu.Lock()
	m.state = nil
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
	m.emit(Event{Kind: Left, Version: s.Version, Gid: s.Gid})
	return nil
}
