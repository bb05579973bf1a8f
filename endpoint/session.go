package endpoint

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"net/netip"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/record"
)

// session is one peer: what there is of it while it sleeps. All fields but e, id
// and via are guarded by Endpoint.mu. There are very many: large fields
// come first, small ones share words, and what few sessions have is behind
// pointers. 208 bytes are a size that Go allocates without a rest.
type session struct {
	e     *Endpoint
	id    coap.LinkID
	whose string     // see subject
	ip    netip.Addr // see addr
	heard stamp

	// The record layer; unused over plain UDP.
	window      record.Window
	sent        sent   // see persist.go
	cid         uint64 // ours, by which the peer is known wherever it is; 0: none
	read, write record.Keys

	act   *activity // nil while nothing is under way
	shelf *shelf    // nil while no message is remembered
	more  *seldom   // nil for most

	began      seconds
	place      uint32 // in Endpoint.sessions
	moves      uint16 // to other addresses, of which no more than maxMoves are counted
	nextID     uint16
	keptID     uint16 // nextID as it was written
	suite      record.Suite
	port       uint16
	via        coap.Security
	kind       coap.SubjectKind
	peerCID    shortCID // what it wants to see in our records
	gone       bool
	standing   Standing // see room.go
	asked      uint8    // see room.go
	local      uint8    // see local.go
	hibernated bool     // see hibernate.go
	// See persist.go.
	written  bool // it is in the journal
	dirty    bool // it moved on since
	restored bool // from an earlier process
	stale    bool // and the peer has not shown that it is there now
}

// seldom is what few sessions have.
type seldom struct {
	probe   *probe     // of an address that has not shown that it receives; nil: it has
	pending *Proof     // Admit has not succeeded yet; nil: it has
	nons    [2]sentNON // the last messages that were not confirmable, newest first
	peerCID string     // one that is longer than a shortCID
}

// rare makes one when there is none.
func (s *session) rare() *seldom {
	if s.more == nil {
		s.more = &seldom{}
	}
	return s.more
}

func (s *session) pending() *Proof {
	if s.more == nil {
		return nil
	}
	return s.more.pending
}

func (s *session) subject() coap.Subject { return coap.Subject{Kind: s.kind, ID: s.whose} }

func (s *session) setSubject(v coap.Subject) { s.kind, s.whose = v.Kind, v.ID }

func (s *session) addr() netip.AddrPort { return netip.AddrPortFrom(s.ip, s.port) }

func (s *session) setAddr(a netip.AddrPort) { s.ip, s.port = a.Addr(), a.Port() }

// shortCID is a connection ID of up to 8 bytes, as most are: its length and they.
type shortCID [9]byte

func (s *session) setPeerCID(id []byte) {
	if len(id) >= len(s.peerCID) {
		s.rare().peerCID = string(id)
		return
	}
	s.peerCID[0] = byte(len(id))
	copy(s.peerCID[1:], id)
}

// remoteCID is what the peer wants to see in our records; nil: nothing.
func (s *session) remoteCID() []byte {
	if n := s.peerCID[0]; n > 0 {
		return s.peerCID[1 : 1+n]
	}
	if s.more != nil && s.more.peerCID != "" {
		return []byte(s.more.peerCID)
	}
	return nil
}

// sentNON remembers which observation a message was of: a Reset ends it.
type sentNON struct {
	id    uint16
	size  uint8 // of the token, and one: 0 means none
	token [8]byte
}

// activity is what a session has only while something is under way.
type activity struct {
	work    []*exchange
	sent    []*transmission
	waiters []*waiter
}

// activity makes one when there is none.
func (s *session) activity() *activity {
	if s.act == nil {
		if n := len(s.e.spareActs); n > 0 {
			s.act, s.e.spareActs = s.e.spareActs[n-1], s.e.spareActs[:n-1]
		} else {
			s.act = &activity{}
		}
	}
	return s.act
}

// settle forgets an activity that is empty.
func (s *session) settle() {
	if a := s.act; a != nil && len(a.work) == 0 && len(a.sent) == 0 && len(a.waiters) == 0 {
		s.act = nil
		if len(s.e.spareActs) < maxSpareActs {
			s.e.spareActs = append(s.e.spareActs, a)
		}
	}
}

// idle says that nobody would miss the session now.
func (s *session) idle() bool {
	return s.act == nil || len(s.act.work) == 0 && len(s.act.sent) == 0 && len(s.act.waiters) == 0
}

// newSession makes a session; register makes it known.
func (e *Endpoint) newSession(via coap.Security, addr netip.AddrPort) *session {
	var b [10]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	now := e.stamp(time.Now())
	return &session{
		e: e, id: coap.LinkID(hex.EncodeToString(b[:8])), via: via, ip: addr.Addr(), port: addr.Port(), heard: now, began: now.seconds(),
		nextID: uint16(b[8])<<8 | uint16(b[9]),
	}
}

// register makes a session known, in the place of what was at its address; false:
// there is no room for it.
func (e *Endpoint) register(s *session) bool {
	if old := e.byAddr.Get(s.addr()); old != nil {
		// RFC 6347, Section 4.2.8: the new association is proven, so the old is
		// over. A peer with a connection ID may have moved on, and another has
		// its address; the same peer has begun anew.
		if old.cid == 0 || old.subject() == s.subject() {
			e.end(old, false)
		}
	}
	if s.standing == unasked {
		s.standing = s.firstStanding()
	}
	if !e.makeRoom(s) {
		return false
	}
	e.enlist(s)
	e.byAddr.Put(s)
	s.keep()
	e.press()
	e.tellOthers(s)
	return true
}

// enlist has a session counted, and found by its connection ID.
func (e *Endpoint) enlist(s *session) {
	s.place = uint32(len(e.sessions))
	e.sessions = append(e.sessions, s)
	e.tally(s.standing, 1)
	e.pool.sessions.Add(1)
	if s.cid != 0 {
		e.byCID.Put(s)
	}
	e.metrics.sessions.Inc()
}

// strike is the inverse: the last session takes the place of s.
func (e *Endpoint) strike(s *session) {
	last := len(e.sessions) - 1
	s.forgetCiphers()
	e.sessions[last].forgetCiphers()
	e.sessions[s.place] = e.sessions[last]
	e.sessions[s.place].place = s.place
	e.sessions[last] = nil
	e.sessions = e.sessions[:last]
	e.tally(s.standing, -1)
	e.pool.sessions.Add(-1)
	if s.cid != 0 {
		e.byCID.Delete(s.cid)
	}
	e.metrics.sessions.Dec()
}

// listed says that the session is in the table.
func (s *session) listed() bool {
	return int(s.place) < len(s.e.sessions) && s.e.sessions[s.place] == s
}

// closeLocked ends the session, with a close_notify when tell says so. What it
// returns is to be called without the lock.
func (s *session) closeLocked(tell bool) []func() {
	if s.gone {
		return nil
	}
	e := s.e
	if tell && s.via != coap.Plain {
		s.alert(alertWarning, alertCloseNotify)
	}
	s.gone = true
	s.forgetKept()
	e.strike(s)
	e.leaveAddr(s)
	s.forgetCiphers()
	var after []func()
	a := s.act
	s.act = nil
	if a != nil {
		for _, t := range a.sent {
			if told := t.end(coap.ErrGone); told.done != nil {
				after = append(after, told.tell)
			}
		}
		for _, w := range a.waiters {
			w.fail(coap.ErrGone)
		}
		for _, x := range a.work {
			for _, h := range x.held {
				after = append(after, func() { h.done(coap.ErrGone) })
			}
			x.held = nil
		}
	}
	for s.shelf != nil {
		s.shelf.all()[0].forget()
	}
	s.wake()
	s.read, s.write, s.more = record.Keys{}, record.Keys{}, nil
	id := s.id
	return append(after, func() { e.cfg.Server.Closed(id) })
}

// leaveAddr has a session not found by its address any more.
func (e *Endpoint) leaveAddr(s *session) {
	if e.byAddr.Get(s.addr()) == s {
		e.byAddr.Delete(s.addr())
	}
}

// opened tells that the peer was let in. It may be gone again by then.
func (s *session) opened() {
	e := s.e
	if e.cfg.Opened == nil {
		return
	}
	e.cfg.Opened(s)
	e.mu.Lock()
	gone := s.gone
	e.mu.Unlock()
	if gone {
		e.cfg.Server.Closed(s.id)
	}
}

// Status tells how the association stands.
func (s *session) Status() Status {
	s.e.mu.Lock()
	defer s.e.mu.Unlock()
	return Status{Began: s.e.at(s.began.stamp()), Heard: s.e.at(s.heard), Moves: uint32(s.moves), Hibernated: s.hibernated, Restored: s.restored, Stale: s.stale}
}

// Close ends the association and tells the peer so.
func (s *session) Close() {
	s.e.mu.Lock()
	defer s.e.mu.Unlock()
	s.e.end(s, true)
}

// ciphers are the expanded keys of a session that is not idle. Sessions whose
// places are a multiple of cipherSlots apart take turns.
type ciphers struct {
	of          *session
	used        time.Time
	read, write expanded
}

// expanded are expanded keys, of nobody unless valid says so.
type expanded struct {
	c     *record.Cipher
	valid bool
}

// of expands keys of a suite that the handshake was held to, unless they are.
func (x *expanded) of(suite record.Suite, k *record.Keys) *record.Cipher {
	if x.valid {
		return x.c
	}
	if x.c == nil {
		x.c = mustCipher(suite, k)
	} else if err := x.c.Rekey(suite, k); err != nil {
		panic("endpoint: internal error: " + err.Error())
	}
	x.valid = true
	return x.c
}

// ciphers expands the keys of s, unless they are still there.
func (s *session) ciphers() *ciphers {
	c := &s.e.ciphers[s.place%cipherSlots]
	if c.of != s {
		c.of, c.read.valid, c.write.valid = s, false, false
	}
	c.used = s.e.lately
	return c
}

// forgetCiphers gives expanded keys up.
func (s *session) forgetCiphers() {
	if c := &s.e.ciphers[s.place%cipherSlots]; c.of == s {
		*c = ciphers{}
	}
}

func (s *session) reader() *record.Cipher { return s.ciphers().read.of(s.suite, &s.read) }

func (s *session) writer() *record.Cipher { return s.ciphers().write.of(s.suite, &s.write) }

// mustCipher expands keys of a suite that the handshake was held to.
func mustCipher(suite record.Suite, k *record.Keys) *record.Cipher {
	c, err := record.NewCipher(suite, k)
	if err != nil {
		panic("endpoint: internal error: " + err.Error())
	}
	return c
}

// Alerts that we send (RFC 5246, Section 7.2).
const (
	alertWarning          = 1
	alertFatal            = 2
	alertCloseNotify      = 0
	alertIllegalParameter = 47
	alertInternalError    = 80
	alertNoRenegotiation  = 100
)

// alert sends an alert in the session.
func (s *session) alert(level, description byte) {
	s.seal(record.Alert, []byte{level, description})
}

// seal sends one record to the session's address.
func (s *session) seal(kind uint8, b []byte) {
	last, seq := s.lastSeq(), s.sent.seq()
	if seq >= last {
		return // RFC 6347, Section 4.1: never again
	}
	s.sent++
	switch left := last - seq - 1; {
	case left == 1 && kind != record.Alert:
		// One is left to say goodbye with: the peer shakes hands anew.
		s.e.metrics.exhausted.Inc()
		s.e.crew.do(s.Close)
	case left < startsLow:
		s.e.takeStarts()
	}
	s.push(s.writer().Seal(s.e.out.buffer(), kind, epoch, seq, s.remoteCID(), b))
}

// token is the token of a NON that was sent with this identifier.
func (s *session) nonToken(id uint16) ([]byte, bool) {
	if s.more == nil {
		return nil, false
	}
	for i := range s.more.nons {
		n := &s.more.nons[i]
		if n.size > 0 && n.id == id {
			t := bytes.Clone(n.token[:n.size-1])
			n.size = 0
			return t, true
		}
	}
	return nil, false
}

func (s *session) rememberNON(id uint16, token []byte) {
	nons := &s.rare().nons
	nons[1] = nons[0]
	n := &nons[0]
	n.id, n.size = id, uint8(len(token))+1
	copy(n.token[:], token)
}
