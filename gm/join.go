package gm

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// joinCall is one Join Request on its way through the decision table.
type joinCall struct {
	*call
	msg   *groupcomm.JoinRequest
	entry groupcomm.ScopeEntry // what is asked for
	node  string               // name of the member: its own, or the one a newcomer will have
	cred  []byte               // credential to store; nil for a monitor
	ns    []byte               // N_S that the proof covered; nil when there was no proof

	verified []byte // credential that the proof was verified for: verify once
	proven   []byte // stored credential that a legacy Joining Request refers to by leaving it out
	arrived  uint64 // version when the request came
	ticket   []byte // names it among those that wait for a rekey; nil: it did not

	newName  string                // name that a newcomer will have
	mgt      func() []byte         // mgt_key_material, after the commit; nil: none
	enrolled func(*store.Tx) error // nil: nothing to write for the delivery
	enroller string                // node name that enrolled is for
}

// join answers POST /ace-group/NAME (RFC 9594, Section 4.3.1;
// draft-ietf-ace-key-groupcomm-oscore-21, Section 6). The conditions are
// evaluated in this order:
//
//	malformed, no scope, no cnonce, foreign scope, illegal roles,
//	  a monitor in a group that uses the pairwise mode only        4.00 INFO
//	roles not in the token                                         4.03
//	group not active                                               5.03 error 9
//	newcomer without credential or proof; member without a
//	  credential that we know                                      4.00 INFO
//	no N_S that the proof could cover                              4.00 INFO with a new one
//	credential unsuitable                                          4.00 error 2
//	proof wrong, or empty and not given by the handshake            4.00 error 3
//	no Sender ID                                                   5.03 error 4
//	                                                               2.01, or 2.04 for a member
func (m *Manager) join(ctx context.Context, c *call) (*coap.Response, error) {
	j := &joinCall{call: c, arrived: c.row.num}
	if err := m.parseJoin(j); err != nil {
		m.met.joins.WithLabelValues("refused").Inc()
		return nil, err
	}
	resp, err := m.admit(ctx, j)
	if err != nil {
		m.met.joins.WithLabelValues("refused").Inc()
	}
	return resp, err
}

// parseJoin judges what the request says by itself.
func (m *Manager) parseJoin(j *joinCall) error {
	if err := checkFormats(j.req); err != nil {
		return err
	}
	refuse := func(format string, args ...any) error { return m.info(j.g, nil, fmt.Errorf(format, args...)) }
	if len(j.req.Payload) == 0 {
		// The normal way of asking for the group's parameters.
		return refuse("empty Join Request")
	}
	if len(j.req.Payload) > maxBody {
		return refuse("Join Request of %d bytes", len(j.req.Payload))
	}
	msg, err := groupcomm.DecodeJoinRequest(j.req.Payload)
	if err != nil {
		return refuse("%w", err)
	}
	j.msg = msg
	if msg.Scope == nil {
		return refuse("no scope")
	}
	if n := len(msg.CNonce); n < nonceMin || n > nonceMax {
		return refuse("cnonce of %d bytes", n)
	}
	if len(msg.ClientCred) > maxCred {
		return refuse("credential of %d bytes", len(msg.ClientCred))
	}
	if err := checkGetCreds(msg.GetCreds); err != nil {
		return refuse("%w", err)
	}
	if err := checkControlURI(msg.ControlURI, j.g.cfg.Name); err != nil {
		return refuse("%w", err)
	}
	if j.entry, err = groupcomm.DecodeScopeEntry(msg.Scope); err != nil {
		return refuse("%w", err)
	}
	if j.entry.Group != j.g.cfg.Name {
		return refuse("scope names another group")
	}
	if err := j.entry.Roles.ValidJoin(); err != nil {
		return refuse("%w", err)
	}
	if j.entry.Roles.MonitorOnly() && j.g.cfg.PairwiseOnly() {
		// No message of such a group is for a monitor, and kdc_cred_verify could
		// not be made for it.
		return refuse("a monitor in a group that uses the pairwise mode only")
	}
	// draft-ietf-ace-key-groupcomm-oscore-21, Section 6.2: the roles are among
	// those that the token grants.
	if j.entry.Roles&^j.roles != 0 {
		return coap.Detail(errForbidden, "roles not granted")
	}
	return nil
}

// admit takes the rest of the table, again whenever the group moved on
// meanwhile, or a refusal stood on a wrong guess.
func (m *Manager) admit(ctx context.Context, j *joinCall) (*coap.Response, error) {
	defer func() { m.withdraw(ctx, j) }()
	for range maxJoinTries {
		p, err := m.tryJoin(ctx, j)
		switch {
		case err == nil:
			return m.respond(ctx, j, p)
		case errors.Is(err, errMoved):
			if err := m.lookAgain(ctx, j); err != nil {
				return nil, err
			}
		case j.guessed:
			right, lookErr := m.verifyGuess(ctx, j)
			if lookErr != nil {
				return nil, lookErr
			}
			if right {
				return nil, err
			}
		default:
			return nil, err
		}
	}
	return nil, unavailable("the group changes too fast")
}

// tryJoin decides once and writes the membership. It returns errMoved when it
// has to be decided anew.
func (m *Manager) tryJoin(ctx context.Context, j *joinCall) (sidPlace, error) {
	if !j.row.active() {
		return noSID, groupcomm.ErrInactive
	}
	if err := m.judge(ctx, j); err != nil {
		return noSID, err
	}
	moved, err := m.beforeJoin(ctx, j)
	if moved && err == nil {
		err = errMoved
	}
	if err != nil {
		return noSID, err
	}
	return m.commitJoin(ctx, j)
}

// lookAgain reads anew what the gate saw.
func (m *Manager) lookAgain(ctx context.Context, j *joinCall) error {
	if err := m.settle(ctx); err != nil {
		return err
	}
	j.guessed = false
	return m.st.View(ctx, func(tx *store.Tx) error { return m.see(tx, j.call) })
}

// judge decides on credential and proof. It sets cred, ns and node.
func (m *Manager) judge(ctx context.Context, j *joinCall) error {
	mb := j.row.member
	switch {
	case mb != nil:
		j.node = mb.node
	case j.newName == "":
		j.newName = newNodeName()
		fallthrough
	default:
		j.node = j.newName
	}
	if j.entry.Roles.MonitorOnly() {
		// draft-ietf-ace-key-groupcomm-oscore-21, Section 6.1: a monitor omits
		// client_cred and client_cred_verify; they are ignored.
		j.cred, j.ns = nil, nil
		return nil
	}
	cred, proof := j.msg.ClientCred, j.msg.ClientCredVerify
	if j.proven != nil {
		j.cred, j.ns = j.proven, nil
		return nil
	}
	if mb == nil && (cred == nil || proof == nil) {
		return m.info(j.g, nil, errors.New("credential or proof missing"))
	}
	if mb != nil && len(cred) == 0 && mb.cred != nil {
		cred = mb.cred // RFC 9594, Section 4.3.1: an empty client_cred refers to the stored one
	}
	if proof == nil {
		// A member that joins again with the credential that it has proven.
		if mb.cred == nil || !bytes.Equal(cred, mb.cred) {
			return m.info(j.g, nil, errors.New("not the stored credential"))
		}
		j.cred, j.ns = mb.cred, nil
		return nil
	}
	if mb != nil && len(cred) == 0 {
		return m.info(j.g, nil, errors.New("no stored credential"))
	}
	if len(proof) == 0 && mb == nil && j.dialect == groupcomm.Current && provenByAssociation(j.g, cred, j.req.Peer) {
		if err := suitable(j.g, cred); err != nil {
			return err
		}
		j.cred, j.ns = cred, nil
		return nil
	}
	if len(j.grant.Challenges) == 0 && len(proof) > 0 {
		ns, err := m.auth.NewChallenge(ctx, j.grant.Subject)
		if err != nil {
			return err
		}
		return m.info(j.g, ns, errors.New("no N_S"))
	}
	if bytes.Equal(j.verified, cred) && j.verified != nil {
		j.cred = cred
		return nil
	}
	input := func(ns []byte) []byte { return groupcomm.LegacyPoPInput(j.dialect, j.msg.Scope, ns, j.msg.CNonce) }
	ns, err := provenBy(j.g, cred, j.grant.Challenges, input, proof)
	if err != nil {
		return err
	}
	j.cred, j.ns, j.verified = cred, ns, cred
	return nil
}

// beforeJoin runs or awaits the rekey that must come before a newcomer is let
// in, and says whether it did.
func (m *Manager) beforeJoin(ctx context.Context, j *joinCall) (moved bool, err error) {
	r := j.row
	switch {
	case r.exp <= time.Now().Unix():
		// Nobody gets material that has expired.
		if err := m.announce(ctx, j); err != nil {
			return false, err
		}
		_, err = m.rekey(ctx, j.g, byLifetime, "", r.num)
		return true, toPeer(err)
	case !j.admission().newcomer:
		// draft-ietf-ace-key-groupcomm-oscore-21, Section 7: new members cause a
		// rekey; one that joins again knows the keys.
		return false, nil
	case r.dueReasons&forward != 0:
		// docs/protocol.md, Section 3: a newcomer never gets material that somebody
		// who left holds.
		if err := m.announce(ctx, j); err != nil {
			return false, err
		}
		_, err = m.rekey(ctx, j.g, r.dueReasons, "", r.num)
		return true, toPeer(err)
	case j.g.cfg.RekeyOnJoin && r.handed && r.num <= j.arrived:
		// Section 11: none for an elder that the latest rekey evicted.
		if known, err := m.elder(ctx, j.g, j.grant.Subject); known || err != nil {
			return false, err
		}
		if err := m.announce(ctx, j); err != nil {
			return false, err
		}
		return true, m.awaitJoinRekey(ctx, j.g, j.arrived)
	}
	return false, nil
}

// commitJoin writes the membership and returns the place of the Sender ID. It
// returns errMoved when the group is not any more what the decision was made
// for.
func (m *Manager) commitJoin(ctx context.Context, j *joinCall) (sidPlace, error) {
	if err := m.enroll(ctx, j); err != nil {
		return noSID, err
	}
	if j.row.member != nil && !m.renewals.allow(j.g.cfg.Name+"/"+j.node) {
		return noSID, errTooMany
	}
	j.g.gate.RLock()
	defer j.g.gate.RUnlock()
	p := noSID
	err := m.st.Update(ctx, func(tx *store.Tx) (err error) {
		// The token was valid when the request came; its expiry must not have
		// been worked off before there was a member to mark.
		if x := j.grant.Expires; !x.IsZero() && !time.Now().Before(x) {
			return errExpired
		}
		if p, err = j.g.admit(tx, j.admission(), j.ticket); err != nil {
			return err
		}
		if err := m.writeMember(tx, j, p); err != nil {
			return err
		}
		if j.ns != nil {
			if err := m.auth.UsedChallenge(tx, j.grant.Subject, j.ns); err != nil {
				return err
			}
		}
		if j.enrolled != nil {
			if err := j.enrolled(tx); err != nil {
				return err
			}
		}
		e := groupcomm.Event{
			Group: j.g.cfg.Name, Node: j.node, Version: j.row.num, Subject: j.grant.Subject,
			SenderID: p.id(), Roles: j.entry.Roles, Addr: addr(j.req),
		}
		if j.row.member != nil {
			e.Reason = "rejoin"
		}
		return emit(tx, groupcomm.EventJoined, e)
	})
	if errors.Is(err, errNoSID) {
		return noSID, m.noSenderID(ctx, j.g, j.row.num)
	}
	if err == nil {
		j.ticket = nil // redeemed
		j.g.known.note(subjectOf(j.grant.Subject), true)
	}
	return p, err
}

func (j *joinCall) admission() admission {
	return admission{
		num:      j.row.num,
		newcomer: j.row.member == nil || j.row.member.lapsed,
		monitor:  j.entry.Roles.MonitorOnly(),
	}
}

// writeMember inserts a newcomer, or brings a member's row to what it asked for
// now.
func (m *Manager) writeMember(tx *store.Tx, j *joinCall, p sidPlace) error {
	s := subjectOf(j.grant.Subject)
	var sid any
	if p != noSID {
		sid = int64(p)
	}
	mb := j.row.member
	if mb == nil {
		n, err := tx.Exec(`INSERT INTO gm_members (group_id, node, subject_kind, subject_id, sid, roles, cred, scope,
			cnonce, control_uri, birth_gid, joined_num, expires, phased) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (subject_id, subject_kind, group_id) DO NOTHING`,
			j.g.id, j.node, s.kind, s.id, sid, int64(j.entry.Roles), nullable(j.cred), j.msg.Scope,
			j.msg.CNonce, j.msg.ControlURI, []byte(j.mat.gid), j.row.num, millis(j.grant.Expires), j.phased())
		if err == nil && n == 0 {
			// The same node joined on another request: it is a member now.
			err = errMoved
		}
		return err
	}
	// Another request of the same node may have been written meanwhile: its
	// Sender ID is the old one now, and its credential the stored one.
	var old sidPlace
	var stored []byte
	err := tx.QueryRow(`SELECT COALESCE(sid, -1), cred FROM gm_members WHERE group_id = ? AND node = ?`,
		j.g.id, mb.node).Scan(&old, &stored)
	if isNotFound(err) || err == nil && j.ns == nil && !bytes.Equal(stored, mb.cred) {
		return errMoved
	}
	if err != nil {
		return err
	}
	if _, err := tx.Exec(`UPDATE gm_members SET sid = ?, roles = ?, cred = ?, scope = ?, cnonce = ?, control_uri = ?,
		birth_gid = ?, joined_num = ?, expires = ?, phased = ?, lapsed = 0, awaited = 0 WHERE group_id = ? AND node = ?`,
		sid, int64(j.entry.Roles), nullable(j.cred), j.msg.Scope, j.msg.CNonce, j.msg.ControlURI,
		[]byte(j.mat.gid), j.row.num, millis(j.grant.Expires), j.phased(), j.g.id, mb.node); err != nil {
		return err
	}
	// draft-ietf-ace-key-groupcomm-oscore-21, Section 6.3: the old Sender ID
	// goes to the stale set of the current version.
	return j.g.release(tx, j.row.num, old)
}

// phased says, as a column has it, whether the member asked for two phases.
func (j *joinCall) phased() int64 {
	if d := j.msg.Delivery; d != nil && d.Phased {
		return 1
	}
	return 0
}

// enroll asks the delivery for what the member's channel needs.
func (m *Manager) enroll(ctx context.Context, j *joinCall) error {
	if m.deliver == nil || j.enroller == j.node {
		return nil
	}
	j.mgt, j.enrolled, j.enroller = nil, nil, j.node
	if j.row.member == nil && j.msg.Delivery == nil {
		return nil // nothing asked for, and nothing to end
	}
	want := j.msg.Delivery
	if want != nil && want.Tree {
		asked := *want
		asked.Degree = j.g.cfg.KeyTree
		want = &asked
	}
	mgt, commit, err := m.deliver.Enroll(ctx, j.g.cfg.Name, j.node, want)
	if err != nil {
		j.enroller = ""
		return fmt.Errorf("gm: enrolment of %s/%s: %w", j.g.cfg.Name, j.node, err)
	}
	j.mgt, j.enrolled = mgt, commit
	return nil
}

// joinResponse makes the Join Response (draft-ietf-ace-key-groupcomm-oscore-21,
// Section 6.3).
func (m *Manager) joinResponse(ctx context.Context, j *joinCall, p sidPlace) (*coap.Response, error) {
	d := keyDistribution(j.g, j.mat)
	d.Key.SenderID = p.id()
	d.Policies = policies(j.g)
	if err := m.proveKDC(j.g, j.cred, j.msg.CNonce, d); err != nil {
		return nil, err
	}
	if q := j.msg.GetCreds; q != nil {
		cr, err := m.selectCreds(ctx, j.g, func(mb *member) bool {
			return mb.node != j.node && wanted(q, j.entry.Roles, mb)
		})
		if err != nil {
			return nil, err
		}
		d.Creds, d.PeerRoles, d.PeerIdentifiers = cr.Creds, cr.PeerRoles, cr.PeerIdentifiers
	}
	if err := j.tellChannel(d); err != nil {
		return nil, err
	}
	code := coap.Created
	if j.row.member != nil {
		code = coap.Changed
	}
	if h, ok := m.deliver.(holder); ok && j.msg.ControlURI != "" {
		h.Reached(j.g.cfg.Name, j.node, j.req.Peer, j.msg.ControlURI, false)
	}
	r := keyed(code, d.Encode())
	for _, s := range []string{"ace-group", j.g.cfg.Name, "nodes", j.node} {
		r.Options.AddString(coap.LocationPath, s)
	}
	return r, nil
}

// respond answers a Join Request that was granted, in the dialect in which it
// came.
func (m *Manager) respond(ctx context.Context, j *joinCall, p sidPlace) (*coap.Response, error) {
	answer := m.joinResponse
	if j.dialect != groupcomm.Current {
		answer = m.legacyJoinResponse
	}
	r, err := answer(ctx, j, p)
	if err != nil {
		return nil, err
	}
	if h, ok := m.deliver.(greeter); ok {
		h.Joined(j.g.cfg.Name, j.node)
	}
	outcome := "joined"
	if j.row.member != nil {
		outcome = "rejoined"
	}
	m.met.joins.WithLabelValues(outcome).Inc()
	m.log.InfoContext(ctx, "node joined", "group", j.g.cfg.Name, "node", j.node, "roles", j.entry.Roles.String(),
		"version", j.mat.num, "again", j.row.member != nil, "dialect", j.dialect.String())
	return r, nil
}

// newNodeName makes the opaque name of a new member. It tells nothing about
// Sender ID or identity.
func newNodeName() string {
	var b [nodeNameBytes]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
