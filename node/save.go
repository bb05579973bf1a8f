package node

import (
	"errors"
	"fmt"
	"time"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// Labels of a saved membership. What is written never changes its meaning.
const (
	savedNode      = 1
	savedRoles     = 2
	savedExpires   = 3 // of the keying material: Unix seconds
	savedKeyMap    = 4 // with Master Secret, salt, Gid and Sender ID; without secret while none is installed
	savedVersion   = 5
	savedKeyCheck  = 6
	savedDelta     = 7
	savedCreds     = 8 // of other members, with the next two in parallel
	savedPeerRoles = 9
	savedPeerIDs   = 10
	savedKDCCred   = 11
	savedKey       = 12 // COSE_Key, private
	savedCred      = 13
	savedBefore    = 14 // key map of what is in use while newer keys are held, with the next two
	savedBeforeNum = 15
	savedUntil     = 16 // when the newer are used at the latest: Unix milliseconds
)

// Save gives the membership as [Config.Saved] takes it; nil when there is none. It
// holds every key of the member, so it is to be sealed where it is kept.
func (m *Member) Save() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.state
	if s == nil {
		return nil
	}
	k := s.Params
	k.ContextID, k.SenderID = s.Gid, s.SenderID
	if s.Installed {
		k.MasterSecret, k.Salt = s.MasterSecret.Bytes(), s.MasterSalt
	}
	out := map[int64]any{
		savedNode: s.Node, savedRoles: uint64(s.Roles), savedExpires: s.Expires.Unix(), savedKeyMap: k.Encode(),
		savedVersion: uint64(s.Version), savedKeyCheck: s.Policies.KeyCheck, savedDelta: s.Policies.ExpirationDelta, savedKDCCred: s.KDCCred,
	}
	creds, roles, ids := make([][]byte, len(s.Peers)), make([]uint64, len(s.Peers)), make([][]byte, len(s.Peers))
	for i, p := range s.Peers {
		creds[i], roles[i], ids[i] = p.Cred, uint64(p.Roles), p.SenderID
	}
	out[savedCreds], out[savedPeerRoles], out[savedPeerIDs] = creds, roles, ids
	if b := s.Before; b != nil {
		k := groupcomm.KeyMap{MasterSecret: b.MasterSecret.Bytes(), Salt: b.MasterSalt, ContextID: b.Gid}
		out[savedBefore], out[savedBeforeNum], out[savedUntil] = k.Encode(), uint64(b.Version), b.Until.UnixMilli()
	}
	if m.key != nil && m.cred != nil {
		out[savedKey], out[savedCred] = m.key.Encode(), m.cred
	}
	return cose.MustMarshal(out)
}

// SavedRoles are the roles of a membership that [Member.Save] gave.
func SavedRoles(saved []byte) (groupcomm.Roles, error) {
	in, err := cose.DecodeMap(saved)
	if err == nil {
		if v, ok, err := in.Uint(savedRoles); ok && err == nil {
			return groupcomm.Roles(v), nil
		}
	}
	return 0, errors.New("node: the saved membership is damaged")
}

// resume takes a saved membership over. Nobody else uses m yet.
func (m *Member) resume(saved []byte) error {
	in, err := cose.DecodeMap(saved)
	if err != nil {
		return errors.New("node: the saved membership is damaged")
	}
	var faults error
	note := func(err error) { faults = errors.Join(faults, err) }
	number := func(label int64) uint64 { v, _, err := in.Uint(label); note(err); return v }
	octets := func(label int64) []byte { v, _, err := in.Bytes(label); note(err); return v }
	list := func(label int64) []cose.Item { v, _, err := in.Array(label); note(err); return v }
	name, _, err := in.Text(savedNode)
	note(err)
	expires, _, err := in.Int(savedExpires)
	note(err)
	k, err := groupcomm.DecodeKeyMap(octets(savedKeyMap))
	if note(err); faults != nil {
		return errors.New("node: the saved membership is damaged") // the cause may quote keys
	}
	s := &State{
		Group: m.cfg.Group, Node: name, Roles: groupcomm.Roles(number(savedRoles)),
		Gid: k.ContextID, SenderID: k.SenderID, Version: groupcomm.Version(number(savedVersion)),
		Installed: k.MasterSecret != nil, MasterSalt: k.Salt, Expires: time.Unix(expires, 0),
		Policies: groupcomm.Policies{KeyCheck: number(savedKeyCheck), ExpirationDelta: number(savedDelta)}, KDCCred: octets(savedKDCCred),
	}
	if s.Installed {
		s.MasterSecret = cose.NewSecret(k.MasterSecret)
	}
	var creds [][]byte
	var ids []groupcomm.SenderID
	var roles []groupcomm.Roles
	for _, c := range list(savedCreds) {
		b, err := cose.AsBytes(c)
		note(err)
		creds = append(creds, b)
	}
	for _, c := range list(savedPeerIDs) {
		b, err := cose.AsBytes(c)
		note(err)
		ids = append(ids, b)
	}
	for _, c := range list(savedPeerRoles) {
		v, err := cose.AsUint(c)
		note(err)
		roles = append(roles, groupcomm.Roles(v))
	}
	s.Params = *k
	s.Params.MasterSecret, s.Params.Salt, s.Params.ContextID, s.Params.SenderID = nil, nil, nil, nil
	if faults == nil {
		s.Peers, err = readPeers(creds, roles, ids, &s.Params, m.cfg.Roots)
		note(err)
	}
	if before := octets(savedBefore); before != nil && faults == nil {
		until, _, err := in.Int(savedUntil)
		note(err)
		b, err := groupcomm.DecodeKeyMap(before)
		if err != nil || b.MasterSecret == nil || len(b.ContextID) == 0 || !s.Installed {
			return errors.New("node: the saved membership is damaged")
		}
		s.Before = &Former{
			Gid: b.ContextID, Version: groupcomm.Version(number(savedBeforeNum)), MasterSecret: cose.NewSecret(b.MasterSecret), MasterSalt: b.Salt,
			Peers: s.Peers, Until: time.UnixMilli(until),
		}
		// A clock that was set back does not make it wait longer.
		if most := time.Now().Add(groupcomm.MaxSpread); s.Before.Until.After(most) {
			s.Before.Until = most
		}
	}
	if key := octets(savedKey); key != nil && faults == nil {
		own, err := cose.DecodeKey(key)
		if err != nil || !own.IsPrivate() {
			return errors.New("node: the saved membership has no usable key")
		}
		m.useKey(own, octets(savedCred))
	}
	switch {
	case faults != nil || s.Node == "" || len(s.Node) > maxName || len(s.Gid) == 0:
		return errors.New("node: the saved membership is damaged")
	case s.Roles != m.cfg.Roles:
		return fmt.Errorf("node: the saved membership has the roles %v, not %v", s.Roles, m.cfg.Roles)
	case m.pinned != nil && string(m.pinned) != string(s.KDCCred):
		return fmt.Errorf("%w: the saved membership is with another Group Manager", ErrProof)
	}
	m.state, m.pinned = s, s.KDCCred
	m.armLocked(s)
	return nil
}
