package node

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// errLeft is the reason of an end that this side asked for.
var errLeft = fmt.Errorf("%w: the node left", ErrNotJoined)

// offer is keying material that came in, and how.
type offer struct {
	secret []byte
	salt   []byte
	gid    groupcomm.Gid
	num    groupcomm.Version
	exi    int64
	at     time.Time
	via    string
	// stale are the Sender IDs given up with the version before num. whole is
	// false when they are not known: a Key Distribution map does not say.
	stale []groupcomm.SenderID
	whole bool
	// newcomers are those that the rekey message tells of.
	newcomers *groupcomm.RekeyMessage
	channel   []byte // mgt_key_material; nil: the message has none

	activateIn uint64 // seconds, for a member with two phases; 0: used at once
}

// verdict is what became of an offer.
type verdict int

const (
	ignored   verdict = iota // not newer than what is held
	installed                // was the next version
	waiting                  // versions were missed: catchUp must run
)

// offerRekey makes an offer of an encoded rekey message.
//
// draft-ietf-ace-key-groupcomm-oscore-21, Section 11.1.
func offerRekey(body []byte, via string) (*offer, error) {
	r, err := groupcomm.DecodeRekeyMessage(body)
	if err != nil {
		return nil, badAnswer("rekey", "%v", err)
	}
	o := &offer{
		secret: r.MasterSecret, salt: r.Salt, gid: r.ContextID, num: r.Num, exi: r.Exi,
		at: time.Now(), via: via, stale: r.Stale, whole: true, newcomers: r, activateIn: r.ActivateIn,
	}
	return o, o.check("rekey")
}

// offerFull makes an offer of a Key Distribution map, the answer to a GET.
//
// RFC 9594, Section 4.3.2.
func offerFull(body []byte, via string) (*offer, error) {
	kd, err := groupcomm.DecodeKeyDistribution(body)
	if err != nil {
		return nil, badAnswer("get the keying material", "%v", err)
	}
	if kd.Profile != 1 {
		return nil, badAnswer("get the keying material", "ace_groupcomm_profile %d", kd.Profile)
	}
	o := &offer{
		secret: kd.Key.MasterSecret, salt: kd.Key.Salt, gid: kd.Key.ContextID, num: kd.Num, exi: kd.Exi,
		at: time.Now(), via: via, channel: kd.MgtKeyMaterial, activateIn: kd.ActivateIn,
	}
	return o, o.check("get the keying material")
}

// offerObserved makes an offer of a response of the observed group resource:
// the Key Distribution map that answers a registration, or a rekey message. What
// it is says its content, not its place: a notification may overtake the answer,
// and that of an observation which a restarted Group Manager goes on with may come
// before the answer to the same registration, sent again, which then tells of the
// newer material. A map leaves to catchUp which Sender IDs are stale.
//
// draft-ietf-ace-key-groupcomm-oscore-21, Section 11.1; RFC 7641, Section 3.4
// for the order.
func offerObserved(body []byte) (*offer, error) {
	o, rekeyErr := offerRekey(body, ViaObserve)
	if rekeyErr == nil {
		return o, nil
	}
	if full, err := offerFull(body, ViaObserve); err == nil {
		return full, nil
	}
	return nil, rekeyErr
}

func (o *offer) check(op string) error {
	if err := new(State).setMaterial(o.secret, o.salt, o.gid, o.num, o.exi, o.at); err != nil {
		return badAnswer(op, "%v", err)
	}
	return nil
}

// take decides about an offer and installs it when it is the next version. It
// does no I/O, so it may run where a notification is received, before that is
// acknowledged.
//
// draft-ietf-ace-key-groupcomm-oscore-21, Section 11.3: V' == V+1 is installed,
// V' > V+1 means that rekeys were missed, V' <= V is ignored. A map without the
// stale Sender IDs is never installed as it is.
func (m *Member) take(o *offer) verdict {
	m.learnChannel(o.channel, o.num)
	m.mu.Lock()
	s := m.state
	switch {
	case s != nil && o.num == s.Version && s.Before != nil && o.activateIn == 0:
		m.mu.Unlock()
		if !m.activate(o.num, o.via) {
			return ignored
		}
		return installed
	case s == nil || o.num <= s.Version:
		m.mu.Unlock()
		return ignored
	case !s.Installed || !o.whole || o.num-s.Version != 1:
		if m.missed == nil || o.num > m.missed.num {
			m.missed = o
		}
		m.mu.Unlock()
		m.signal()
		return waiting
	}
	next := s.with(o, o.stale)
	next.welcome(o.newcomers, m.cfg.Roots)
	prepared := m.holdLocked(s, next, o)
	m.state = next
	if m.missed != nil && m.missed.num <= next.Version {
		// The same version was announced before, on another way, by a map that
		// could not be installed: it is not missed any more.
		m.missed = nil
	}
	m.mu.Unlock()
	m.signal() // the Group Manager may want to see it
	m.emit(Event{Kind: came(prepared), Version: next.Version, Gid: next.Gid, Via: o.via})
	return installed
}

// came is the kind of event when keying material came.
func came(prepared bool) string {
	if prepared {
		return Prepared
	}
	return Rekeyed
}

// with is the state after an offer was installed: the credentials of stale
// Sender IDs are gone, everything else about the group is as before.
func (s *State) with(o *offer, stale []groupcomm.SenderID) *State {
	next := *s
	// The offer was checked when it was made.
	_ = next.setMaterial(o.secret, o.salt, o.gid, o.num, o.exi, o.at)
	next.Peers = slices.DeleteFunc(slices.Clone(s.Peers), func(p Peer) bool {
		return slices.ContainsFunc(stale, func(id groupcomm.SenderID) bool { return slices.Equal(id, p.SenderID) })
	})
	return &next
}

// welcome adds the newcomers that a rekey message tells of
// (draft-ietf-ace-key-groupcomm-oscore-21, Section 11.1): after the stale ones
// are gone, because their Sender IDs are free under the new Gid. A credential
// that cannot be used spoils no rekey: it is asked for like any that is unknown.
func (s *State) welcome(r *groupcomm.RekeyMessage, roots *x509.CertPool) {
	if r == nil {
		return
	}
	for i := range r.Creds {
		var roles []groupcomm.Roles
		if r.PeerRoles != nil {
			roles = r.PeerRoles[i : i+1]
		}
		peers, err := readPeers(r.Creds[i:i+1], roles, r.PeerIdentifiers[i:i+1], &s.Params, roots)
		if err != nil {
			continue
		}
		s.Peers = append(slices.DeleteFunc(s.Peers, func(p Peer) bool { return slices.Equal(p.SenderID, r.PeerIdentifiers[i]) }), peers...)
	}
}

// maxRounds bounds how often the Group Manager may announce a newer version
// while missed ones are made up for.
const maxRounds = 8

// catchUp runs the procedure for missed rekeys: delete the material held, keep
// the new one uninstalled, learn which Sender IDs became stale, forget what
// belongs to them, then install.
//
// draft-ietf-ace-key-groupcomm-oscore-21, Section 11.3.
func (m *Member) catchUp(ctx context.Context) error {
	for range maxRounds {
		m.mu.Lock()
		if m.missed == nil || m.state == nil {
			m.mu.Unlock()
			return nil
		}
		target, held := m.missed, *m.state
		// One that is to be held for later, and the next: what is in use stays so.
		holds := m.cfg.Phased && target.activateIn > 0 && held.Installed && target.num == held.Version+1
		if held.Installed && !holds {
			gone := held
			gone.Before = nil
			m.stopPhaseLocked()
			gone.Installed, gone.MasterSalt = false, nil
			gone.MasterSecret = cose.Secret{}
			m.state = &gone
		}
		t := m.t
		m.mu.Unlock()
		if held.Installed && !holds {
			m.emit(Event{Kind: Missed, Version: held.Version, Gid: held.Gid, Via: target.via})
		}

		stale, all, err := staleSIDs(ctx, t, m, held.Version)
		if err != nil {
			return m.concern(err)
		}
		m.mu.Lock()
		if m.state == nil || m.state.Version != held.Version || m.state.Installed != holds {
			m.mu.Unlock()
			continue // a join came between, or the message itself
		}
		next := m.state.with(target, stale)
		if all {
			next.Peers = nil
		}
		prepared := m.holdLocked(m.state, next, target)
		m.state = next
		newer := m.missed
		m.missed = nil
		m.mu.Unlock()
		m.emit(Event{Kind: came(prepared), Version: next.Version, Gid: next.Gid, Via: target.via})
		m.signalAck()
		if newer != nil {
			m.take(newer) // ignored unless it came meanwhile
		}
		// Shows the Group Manager the version now held, and may bring a newer.
		if err := m.poll(ctx); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.missed == nil {
		return nil
	}
	return ErrMoving
}

// StaleSIDs asks for the Sender IDs that became stale since the version held.
// all is true when the Group Manager does not remember that far: then nothing
// known about other members may be kept.
//
// draft-ietf-ace-key-groupcomm-oscore-21, Section 11.3.1: FETCH on stale-sids.
func (m *Member) StaleSIDs(ctx context.Context) (ids []groupcomm.SenderID, all bool, err error) {
	s, t, err := m.joined()
	if err != nil {
		return nil, false, err
	}
	return staleSIDs(ctx, t, m, s.Version)
}

// concern ends the membership when err says that there is none any more, and
// hands err on.
func (m *Member) concern(err error) error {
	if errors.Is(err, ErrEvicted) || errors.Is(err, ErrGroupDeleted) || errors.Is(err, ErrNotMember) {
		m.end(err)
	}
	return err
}

// Poll asks for the current keying material: GET with the ETag of the version
// held. Nothing new is 2.03; what is new is installed, and confirmed by asking
// once more with the new ETag, so that the Group Manager learns who holds what.
//
// RFC 9594, Section 4.3.2; RFC 7252, Section 5.10.6.2 for the ETag.
func (m *Member) Poll(ctx context.Context) error {
	if err := m.poll(ctx); err != nil {
		return err
	}
	return m.catchUp(ctx)
}

func (m *Member) poll(ctx context.Context) error {
	s, t, err := m.joined()
	if err != nil {
		return err
	}
	req := m.groupRequest(coap.GET)
	if s.Installed {
		req.Options.Set(coap.ETag, etag(s.Version))
	}
	resp, err := t.Do(ctx, req)
	if err != nil {
		return fmt.Errorf("poll: %w", err)
	}
	switch resp.Code {
	case coap.Valid:
		return nil
	case coap.Content:
		o, err := offerFull(resp.Payload, ViaPoll)
		if err != nil {
			m.emit(Event{Kind: Refused, Via: ViaPoll, Err: err})
			return err
		}
		m.take(o)
		return nil
	}
	return m.concern(refused("poll", resp))
}

// etag is the ETag of a version: big-endian without leading zeros, at least one
// byte.
func etag(v groupcomm.Version) []byte {
	var b []byte
	for shift := 56; shift >= 0; shift -= 8 {
		if x := byte(v >> shift); x != 0 || len(b) > 0 || shift == 0 {
			b = append(b, x)
		}
	}
	return b
}
