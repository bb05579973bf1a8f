package node

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/groupcomm/keytree"
)

// Join becomes a member of the group: POST /ace-group/GROUP.
//
// When the Group Manager answers with what it needs to know instead (4.00 with
// the group's parameters, or a new challenge) the request is made once more.
// On any error the earlier state, if there was one, is as before.
//
// draft-ietf-ace-key-groupcomm-oscore-21, Sections 6.1 to 6.4.
func (m *Member) Join(ctx context.Context) error {
	m.exchange.Lock()
	defer m.exchange.Unlock()
	return m.join(ctx, false)
}

// Rejoin asks for the keying material as a member that lost it or does not
// trust it any more: same roles, same credential, all credentials of the
// others anew. The Sender ID changes.
//
// draft-ietf-ace-key-groupcomm-oscore-21, Section 6.1: a member that re-joins
// sends an empty credential and no proof.
func (m *Member) Rejoin(ctx context.Context) error {
	m.exchange.Lock()
	defer m.exchange.Unlock()
	if _, _, err := m.joined(); err != nil {
		return err
	}
	return m.join(ctx, true)
}

func (m *Member) join(ctx context.Context, again bool) error {
	const op = "join"
	if err := m.prepare(ctx); err != nil {
		return err
	}
	for attempt := 1; ; attempt++ {
		nc, err := m.nonce()
		if err != nil {
			return err
		}
		body, err := m.joinRequest(nc, again)
		if err != nil {
			return err
		}
		resp, err := m.postJoin(ctx, body.Encode())
		if err != nil {
			return err
		}
		if resp.Code.IsSuccess() {
			return m.accept(resp, nc, again || m.cfg.WantCreds)
		}
		if attempt == 1 && m.emptyRefused(body, resp) {
			continue
		}
		if attempt == 2 || !m.learnFrom(resp) {
			return refused(op, resp)
		}
		again = false // the Group Manager wants the credential and a proof
	}
}

// emptyRefused says whether a Join Request has to be made again with a proof.
//
// draft-ietf-ace-key-groupcomm-oscore-21, Section 6.2: after an empty proof was
// refused there must not be another for that group.
func (m *Member) emptyRefused(sent *groupcomm.JoinRequest, resp *coap.Response) bool {
	if sent.ClientCredVerify == nil || len(sent.ClientCredVerify) > 0 || !errors.Is(refused("join", resp), groupcomm.ErrPoP) {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.spoken = true
	return true
}

// prepare learns what a Join Request needs and is not known yet: the group's
// algorithms, N_S, and with them the key.
func (m *Member) prepare(ctx context.Context) error {
	m.mu.Lock()
	missing := m.params == nil
	if m.ns == nil && m.cfg.Transfer == nil {
		ns, err := Challenge(m.t)
		if err == nil {
			m.ns = ns
		}
	}
	m.mu.Unlock()
	if missing {
		// An empty Join Request is the way to ask for the parameters of a group.
		resp, err := m.postJoin(ctx, nil)
		if err != nil {
			return err
		}
		if !m.learnFrom(resp) {
			if resp.Code.IsSuccess() {
				return badAnswer("join", "%s to an empty request", resp.Code)
			}
			return refused("join", resp)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.params == nil {
		return badAnswer("join", "no parameters for %q", m.cfg.Group)
	}
	if m.key == nil {
		key, err := m.params.generate()
		if err != nil {
			return fmt.Errorf("%w: %w", ErrUnsupported, err)
		}
		m.useKey(key, nil)
	}
	return nil
}

func (m *Member) postJoin(ctx context.Context, body []byte) (*coap.Response, error) {
	req := m.groupRequest(coap.POST)
	if body != nil {
		req.Options.SetContentFormat(coap.ACEGroupcomm)
		req.Payload = body
	}
	resp, err := m.transport().Do(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	return resp, nil
}

// learnFrom takes parameters and a new challenge out of a 4.00 that carries
// them, and says whether it did.
//
// draft-ietf-ace-key-groupcomm-oscore-21, Section 6.2: the 4.00 (Bad Request)
// with Content-Format application/ace-groupcomm+cbor.
func (m *Member) learnFrom(r *coap.Response) bool {
	if f, ok := r.Options.ContentFormat(); r.Code != coap.BadRequest || !ok || f != coap.ACEGroupcomm {
		return false
	}
	info, err := groupcomm.DecodeInfoBody(r.Payload)
	if err != nil {
		return false
	}
	if n := len(info.KDCChallenge); info.KDCChallenge != nil && (n < minNonce || n > maxNonce) {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.learnLocked(info.SignInfo, info.ECDHInfo, info.KDCDHCreds); err != nil {
		m.log.Warn("parameters of the group are of no use", "err", err)
		return false
	}
	if info.KDCChallenge != nil {
		m.ns = info.KDCChallenge
	}
	return true
}

// joinRequest makes the body of a Join Request.
//
// draft-ietf-ace-key-groupcomm-oscore-21, Section 6.1. A monitor has no
// credential and proves nothing.
func (m *Member) joinRequest(nc []byte, again bool) (*groupcomm.JoinRequest, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := &groupcomm.JoinRequest{
		Scope:      groupcomm.ScopeEntry{Group: m.cfg.Group, Roles: m.cfg.Roles}.Encode(),
		CNonce:     nc,
		ControlURI: m.cfg.ControlURI,
	}
	if m.cfg.WantCreds || again {
		r.GetCreds = &groupcomm.GetCreds{All: true}
	}
	switch {
	case m.cfg.MQTT:
		r.Delivery = &groupcomm.Delivery{Channel: ViaMQTT, Tree: true}
	case m.cfg.Multicast:
		r.Delivery = &groupcomm.Delivery{Channel: ViaMulticast, Tree: true}
	case m.cfg.Phased:
		r.Delivery = &groupcomm.Delivery{}
	}
	if r.Delivery != nil {
		r.Delivery.Phased = m.cfg.Phased
	}
	switch {
	case m.cfg.Roles == groupcomm.Monitor:
	case again:
		r.ClientCred = []byte{}
	default:
		if m.ns == nil && !m.silentLocked() {
			return nil, fmt.Errorf("%w: the Group Manager gave no challenge (kdcchallenge): post the token to it", ErrUnsupported)
		}
		if m.cred == nil {
			cred, err := m.params.credential(m.cfg.Subject, m.key)
			if err != nil {
				return nil, fmt.Errorf("node: credential: %w", err)
			}
			m.cred = cred
		}
		r.ClientCred = m.cred
		if m.silentLocked() {
			r.ClientCredVerify = []byte{}
			break
		}
		proof, err := m.params.evidence(m.key, m.prove, groupcomm.ClientPoPInput(r.Scope, m.ns, nc))
		if err != nil {
			return nil, fmt.Errorf("node: join: proof of possession: %w", err)
		}
		r.ClientCredVerify = proof
	}
	return r, nil
}

// silentLocked says that the association is proof enough.
func (m *Member) silentLocked() bool { return m.cfg.SameKey && !m.spoken && m.state == nil }

// accept verifies a Join Response and installs what it carries, or changes
// nothing.
//
// draft-ietf-ace-key-groupcomm-oscore-21, Section 6.4: if the proof of the
// Group Manager does not verify, the Join Response is dropped.
func (m *Member) accept(r *coap.Response, nc []byte, wantCreds bool) error {
	m.mu.Lock()
	want := expected{group: m.cfg.Group, roles: m.cfg.Roles, params: m.params, key: m.key, nc: nc, pinned: m.pinned, roots: m.cfg.Roots}
	m.mu.Unlock()

	s, kd, kdc, err := readJoin(r, &want)
	if err != nil {
		m.emit(Event{Kind: Refused, Via: ViaJoin, Err: err})
		return err
	}
	var mgt *groupcomm.MgtKeyMaterial
	var tree *keytree.Follower
	if r := kd.RekeyingScheme; r != nil && (m.cfg.MQTT || m.cfg.Multicast) {
		switch *r {
		case groupcomm.SchemeMQTT:
			mgt, err = readMgt(kd.MgtKeyMaterial)
		case groupcomm.SchemeKeyTree:
			mgt, tree, err = readBranch(kd.MgtKeyMaterial)
		}
		if err == nil && mgt != nil && want.params.sign == nil {
			kdc, err = courier(mgt, nc)
		}
		if err != nil {
			// CoAP delivers as well: a broker that cannot be used costs a channel.
			mgt, tree = nil, nil
			m.emit(Event{Kind: Refused, Via: ViaMQTT, Err: err})
		}
	}
	m.mu.Lock()
	if !wantCreds && m.state != nil {
		s.Peers = m.state.Peers
	}
	m.stopPhaseLocked()
	m.state, m.kdc, m.pinned, m.mgt = s, kdc, s.KDCCred, mgt
	m.tree, m.groupURI = tree, kd.ControlGroupURI
	m.missed, m.ended, m.acked = nil, nil, ackState{}
	m.mu.Unlock()
	m.signal()
	m.emit(Event{Kind: Joined, Version: s.Version, Gid: s.Gid, Via: ViaJoin})
	return nil
}

// expected is what a Join Response has to agree with.
type expected struct {
	group  string
	roles  groupcomm.Roles
	params *params
	key    *cose.Key // the node's own
	nc     []byte    // N_C of the request
	pinned []byte    // the only credential of the Group Manager that may come; nil: any
	roots  *x509.CertPool
}

// Format keeps the node's key out of what is printed.
func (*expected) Format(f fmt.State, _ rune) { cose.Redact(f) }

// readJoin makes a state out of a Join Response.
func readJoin(r *coap.Response, want *expected) (*State, *groupcomm.KeyDistribution, *cose.Key, error) {
	const op = "join"
	fail := func(format string, args ...any) (*State, *groupcomm.KeyDistribution, *cose.Key, error) {
		return nil, nil, nil, badAnswer(op, format, args...)
	}
	if r.Code != coap.Created && r.Code != coap.Changed {
		return fail("code %s", r.Code)
	}
	if f, ok := r.Options.ContentFormat(); !ok || f != coap.ACEGroupcomm {
		return fail("Content-Format %d", f)
	}
	at := r.Options.Strings(coap.LocationPath)
	if len(at) != 4 || at[0] != "ace-group" || at[1] != want.group || at[2] != "nodes" || at[3] == "" || len(at[3]) > maxName {
		return fail("the node resource is not below the group %q", want.group)
	}
	kd, err := groupcomm.DecodeKeyDistribution(r.Payload)
	if err != nil {
		return fail("%v", err)
	}

	// The proof first: nothing else of this message is looked at without it.
	if len(kd.KDCNonce) < minNonce || len(kd.KDCNonce) > maxNonce {
		return fail("kdc_nonce of %d bytes", len(kd.KDCNonce))
	}
	if want.pinned != nil && !bytes.Equal(want.pinned, kd.KDCCred) {
		return nil, nil, nil, fmt.Errorf("%w: its credential is not the one known for this group", ErrProof)
	}
	if err := trust(want.params.credFmt(), kd.KDCCred, want.roots, want.params.sign == nil); err != nil {
		return nil, nil, nil, fmt.Errorf("%w: kdc_cred: %w", ErrProof, err)
	}
	kdc, err := want.params.checkKDC(want.key, kd.KDCCred, groupcomm.KDCPoPInput(want.nc, kd.KDCNonce), kd.KDCCredVerify)
	if errors.Is(err, ErrProof) {
		return nil, nil, nil, ErrProof
	} else if err != nil {
		return fail("kdc_cred: %v", err)
	}

	k := kd.Key
	if err := want.params.checkJoin(&k); err != nil {
		return fail("%v", err)
	}
	roles := want.roles
	switch {
	case kd.Profile != 1:
		return fail("ace_groupcomm_profile %d, want 1 (coap_group_oscore_app)", kd.Profile)
	case roles == groupcomm.Monitor && k.SenderID != nil:
		return fail("a Sender ID for a monitor")
	case roles != groupcomm.Monitor && k.SenderID == nil:
		return fail("no Sender ID")
	}
	s := &State{
		Group: want.group, Node: at[3], Roles: roles, SenderID: k.SenderID,
		Params: k, KDCCred: kd.KDCCred,
	}
	if s.Params.HKDF == 0 {
		s.Params.HKDF = 5 // draft-ietf-ace-key-groupcomm-oscore-21, Section 6.3: the default
	}
	s.Params.MasterSecret, s.Params.Salt, s.Params.ContextID, s.Params.SenderID = nil, nil, nil, nil
	if err := s.setMaterial(k.MasterSecret, k.Salt, k.ContextID, kd.Num, kd.Exi, time.Now()); err != nil {
		return fail("%v", err)
	}
	if kd.Policies != nil {
		s.Policies = *kd.Policies
	}
	if s.Peers, err = readPeers(kd.Creds, kd.PeerRoles, kd.PeerIdentifiers, &k, want.roots); err != nil {
		return fail("%v", err)
	}
	return s, kd, kdc, nil
}

// setMaterial puts keying material into a state under construction.
func (s *State) setMaterial(ms, salt []byte, gid groupcomm.Gid, num groupcomm.Version, exi int64, now time.Time) error {
	switch {
	case len(ms) < minSecret || len(ms) > maxSecret:
		return fmt.Errorf("a Master Secret of %d bytes", len(ms))
	case len(salt) > maxSecret:
		return fmt.Errorf("a Master Salt of %d bytes", len(salt))
	case len(gid) == 0 || len(gid) > maxName:
		return fmt.Errorf("a Gid of %d bytes", len(gid))
	case exi < 0 || exi > int64(math.MaxInt64/time.Second):
		return fmt.Errorf("an exi of %d", exi)
	}
	s.MasterSecret, s.MasterSalt, s.Gid, s.Version = cose.NewSecret(ms), salt, gid, num
	// RFC 9594, Section 4.3.1: exi counts from receipt, so it needs no clock
	// that agrees with the Group Manager's.
	s.Expires = now.Add(time.Duration(exi) * time.Second)
	s.Installed = true
	return nil
}

// readPeers aligns creds (13), peer_roles (14) and peer_identifiers (15) of a
// group with the parameters k.
func readPeers(creds [][]byte, roles []groupcomm.Roles, ids []groupcomm.SenderID, k *groupcomm.KeyMap, roots *x509.CertPool) ([]Peer, error) {
	if len(creds) != len(ids) || roles != nil && len(roles) != len(creds) {
		return nil, fmt.Errorf("%d creds, %d peer_roles, %d peer_identifiers", len(creds), len(roles), len(ids))
	}
	peers := make([]Peer, 0, len(creds))
	for i, c := range creds {
		key, err := cose.DecodeCredential(k.CredFmt, c)
		if err == nil {
			err = checkPeer(k, key)
		}
		if err != nil {
			return nil, fmt.Errorf("credential of Sender ID %s: %w", ids[i], err)
		}
		if trust(k.CredFmt, c, roots, k.SignAlg == 0) != nil {
			continue // not somebody to talk to; one bad certificate spoils no join
		}
		p := Peer{SenderID: ids[i], Cred: c, Key: key}
		if roles != nil {
			p.Roles = roles[i]
		}
		peers = append(peers, p)
	}
	return peers, nil
}

// Leave ends the membership: DELETE on the node resource. The keying material
// is deleted here when the Group Manager confirmed, or says that there is no
// membership.
//
// RFC 9594, Section 4.8.3.
func (m *Member) Leave(ctx context.Context) error {
	m.exchange.Lock()
	defer m.exchange.Unlock()
	s, t, err := m.joined()
	if err != nil {
		return err
	}
	resp, err := t.Do(ctx, m.groupRequest(coap.DELETE, "nodes", s.Node))
	if err != nil {
		return fmt.Errorf("leave: %w", err)
	}
	if resp.Code != coap.Deleted {
		return m.concern(refused("leave", resp))
	}
	m.end(errLeft)
	return nil
}

// UpdateRights posts an access token with other rights, or a longer life, for the key
// of the association ([TokenRequest.Update]).
func (m *Member) UpdateRights(ctx context.Context, a *Access) error {
	return UpdateRights(ctx, m.transport(), a)
}
