package endpoint

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/record"
)

// Sessions outlive the process in a journal. What makes that safe, argued in
// docs/endpoint.md:
//
//   - Record numbers that we send: a start has a number of its own, greater than
//     those of all before it, and a session that has outlived n of these numbers
//     counts from n·2^16. A process takes further numbers, on disk, before a session
//     needs more than 2^16 records. So none is used twice under a key, whatever of
//     the counting was on disk. And none reaches 2^40, which Scandium takes for
//     forged, whatever the clock says.
//   - Record numbers that we receive: nothing below the edge on disk is taken. What
//     came after it was written may be replayed, so a restored session is stale:
//     no request with side effects is served until the peer shows, by Echo or by
//     the acknowledgement of something that was sent in this life, that it is
//     there now. From then on nothing older is taken.
//   - Message identifiers begin further on than any that may have been used.

// Journal is where sessions are kept.
type Journal interface {
	// Append has a record written soon; it waits for nothing.
	Append(rec []byte)
}

const (
	// startShift is how many record numbers a start has for each session, as a power
	// of two.
	startShift = 16
	// seqBits is how many bits a record number has at most, of the 48 of RFC 6347:
	// those of a start's number and of its records.
	seqBits = 24 + startShift
	// startsLow is how many records are left to a session when more numbers of starts
	// are taken, and startsMore how many those are.
	startsLow  = 3 << (startShift - 2)
	startsMore = 16
	// startsAgain is when that is tried again after the disk refused.
	startsAgain = time.Second
)

// sent counts the records that went out in a session: the number of the next one,
// and above its seqBits that of the start in which the counting began.
type sent uint64

func (n sent) seq() uint64  { return uint64(n) & (1<<seqBits - 1) }
func (n sent) born() uint32 { return uint32(n >> seqBits) }

// countFrom begins to count, with a number that the handshake left.
func (s *session) countFrom(seq uint64) { s.sent = sent(s.e.start)<<seqBits | sent(seq) }

// reserver is a [Journal] that takes further numbers of starts for this one: all up
// to n are on disk as used when it returns.
type reserver interface {
	Reserve(n uint32) error
}

// Restore begins to keep sessions in a journal, and brings back those of r. start
// is the number of this start, of 24 bits. It is called before Run serves, see
// [Config.Ready]; the peers are those to be told of to others.
func (e *Endpoint) Restore(j Journal, start uint32, r *Recovery) []Peer {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.journal = j
	e.start, e.starts = start, start
	now := time.Now()
	var newest int64
	for _, k := range r.sessions {
		newest = max(newest, k.heard)
	}
	// While nothing ran nobody could be heard: that is no silence, and may only be a clock
	// that is wrong.
	if len(r.sessions) > 0 {
		e.away = max(0, now.Sub(time.Unix(newest, 0)))
	}
	all := make([]*recovered, 0, len(r.sessions))
	for _, k := range r.sessions {
		if newest-k.heard <= int64(e.cfg.Idle/time.Second) && k.born < start {
			all = append(all, k)
		}
	}
	// The newest first: it keeps the address that two were at. Should there be too
	// many, those go later who are missed least (room.go).
	slices.SortFunc(all, func(a, b *recovered) int { return int(b.heard - a.heard) })
	peers := make([]Peer, 0, len(all))
	for _, k := range all {
		peers = append(peers, e.restore(k, now))
	}
	r.sessions = nil
	e.press()
	return peers
}

// Reach brings back a peer on plain UDP that others reach by its address after a
// restart, from the address home of this machine if that is valid; its association is
// theirs to protect. nil: there is no room.
func (e *Endpoint) Reach(addr netip.AddrPort, home netip.Addr) Peer {
	e.mu.Lock()
	defer e.mu.Unlock()
	if s := e.byAddr.Get(addr); s != nil {
		return s
	}
	s := e.newSession(coap.Plain, addr)
	s.cameTo(home)
	s.restored = true
	if !e.register(s) {
		return nil
	}
	s.stay(true)
	return s
}

// restore makes a session of what was kept of it.
func (e *Endpoint) restore(k *recovered, now time.Time) *session {
	s := e.newSession(k.via, k.addr)
	s.cameTo(k.local)
	s.id = linkID(k.id)
	s.suite, s.read, s.write, s.cid = k.suite, k.read, k.write, k.cid
	s.setSubject(k.subject)
	s.setPeerCID([]byte(k.peerCID))
	// A clock that was set back does not make it heard in the future.
	s.began, s.moves = e.stampUnix(k.began, now).seconds(), uint16(min(k.moves, maxMoves))
	s.heard = e.stampUnix(k.heard, now)
	s.window = record.From(k.edge)
	s.sent = sent(k.born)<<seqBits | sent(e.start-k.born)<<startShift
	// Starts that follow each other before this is written go on at different places.
	s.nextID = k.nextID + idLeap*uint16(1+e.start%idLeaps)
	s.keptID = s.nextID
	s.restored, s.stale, s.dirty = true, true, true // the new identifiers are written before they are used up
	e.dirty = append(e.dirty, s)
	s.standing = s.firstStanding()
	e.enlist(s)
	if e.byAddr.Get(s.addr()) == nil {
		e.byAddr.Put(s)
	}
	e.metrics.restored.Inc()
	slices.SortStableFunc(k.replies, func(a, b *replyImage) int { return int(a.at - b.at) })
	for _, r := range k.replies {
		at := time.Unix(r.at, 0)
		if age := now.Sub(at); age < 0 || age >= exchangeLifetime {
			continue
		}
		s.remember(r.mid, []byte(r.token), lasting, now).answer([]byte(r.reply))
	}
	return s
}

// lastSeq is the first record number that a session must not use: the next start
// may.
func (s *session) lastSeq() uint64 {
	return min(uint64(s.e.starts-s.sent.born()+1)<<startShift, 1<<seqBits-1)
}

// takeStarts has more numbers of starts taken for this one, soon: a session sends
// more records than one has.
func (e *Endpoint) takeStarts() {
	j, ok := e.journal.(reserver)
	if !ok || e.taking || time.Now().Before(e.takeAt) {
		return
	}
	e.taking = true
	n := e.starts + startsMore
	e.crew.do(func() {
		err := j.Reserve(n)
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.taking = false; err == nil {
			e.starts = n
			return
		}
		e.takeAt = time.Now().Add(startsAgain)
		e.log.Warn("no further record numbers: busy sessions will shake hands anew", "err", err)
	})
}

// persistent says that the session is written.
func (s *session) persistent() bool {
	return s.e.journal != nil && s.via != coap.Plain && s.pending() == nil && len(s.whose) <= maxSubject
}

// write has the session written as a whole.
func (s *session) keep() {
	if !s.persistent() || s.gone {
		return
	}
	s.written = true
	m := s.image()
	s.e.scratch = m.append(s.e.scratch[:0])
	s.e.journal.Append(s.e.scratch)
	clear(s.e.scratch)
}

func (s *session) image() *image {
	s.keptID = s.nextID
	return &image{
		id: linkBytes(s.id), via: s.via, suite: s.suite, read: s.read, write: s.write,
		born: s.sent.born(), cid: s.cid, peerCID: string(s.remoteCID()), subject: s.subject(), began: s.e.unix(s.began.stamp()), mark: s.mark(),
	}
}

func (s *session) mark() mark {
	return mark{edge: s.window.Next(), nextID: s.nextID, heard: s.e.unix(s.heard), moves: uint32(s.moves), addr: s.addr(), local: s.e.locals.at(s.local)}
}

// touched has what moved on written soon.
func (s *session) touched() {
	if !s.written || s.dirty {
		return
	}
	s.dirty = true
	s.e.dirty = append(s.e.dirty, s)
}

// forgetKept has the end of a session written.
func (s *session) forgetKept() {
	if s.written && s.e.journal != nil {
		s.written = false
		s.e.journal.Append(appendEnd(s.e.scratch[:0], linkBytes(s.id)))
	}
}

// keepReply has the answer to a request with side effects written, so that a copy
// of the request that comes after a restart is not served again.
func (x *exchange) keepReply(b []byte) {
	s := x.s
	if !x.effects || !s.written || len(b) > maxReply {
		return
	}
	x.receipt.set(lasting, true)
	r := replyImage{id: linkBytes(s.id), mid: x.id, at: s.e.unix(x.receipt.at.stamp()), token: string(x.token), reply: string(b)}
	s.e.journal.Append(r.append(nil))
}

// Keep has everything written that moved on.
func (e *Endpoint) Keep() {
	for {
		e.mu.Lock()
		if e.journal == nil {
			e.mu.Unlock()
			return
		}
		n := len(e.dirty)
		for _, s := range e.dirty[max(0, n-keepAtOnce):] {
			s.dirty = false
			if s.gone {
				continue
			}
			m := s.mark()
			s.keptID = s.nextID
			s.written = true
			e.scratch = appendMark(e.scratch[:0], linkBytes(s.id), &m)
			e.journal.Append(e.scratch)
		}
		rest := max(0, n-keepAtOnce)
		clear(e.dirty[rest:])
		e.dirty = e.dirty[:rest]
		e.mu.Unlock()
		if rest == 0 {
			return
		}
	}
}

// runKeep writes what moved on until ctx ends.
func (e *Endpoint) runKeep(ctx context.Context) {
	t := time.NewTicker(keepEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			e.Keep()
		}
	}
}

// ClockSet has all sessions written by the clock as it is now: the times of what is
// written are compared with each other after a restart, and one that was heard by
// another clock would seem to have been silent for as long as that was wrong.
func (e *Endpoint) ClockSet() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.sessions {
		s.touched()
	}
}

// Dump gives every record of the present state to emit; those of others may be
// served meanwhile. It returns false when Run came to its end meanwhile: then sessions
// that go on after the next start are missing.
func (e *Endpoint) Dump(emit func(rec []byte)) (whole bool) {
	e.mu.Lock()
	all := slices.Clone(e.sessions)
	e.mu.Unlock()
	var b []byte
	for part := range slices.Chunk(all, keepAtOnce) {
		e.mu.Lock()
		for _, s := range part {
			if !s.persistent() || s.gone {
				continue
			}
			m := s.image()
			s.written = true
			b = m.append(b[:0])
			emit(b)
			for _, r := range s.shelf.all() {
				if !r.has(lasting) || len(r.reply) > maxReply {
					continue
				}
				k := replyImage{id: m.id, mid: r.id, at: e.unix(r.at.stamp()), token: string(r.tokenBytes()), reply: string(r.reply)}
				b = k.append(b[:0])
				emit(b)
			}
		}
		e.mu.Unlock()
	}
	clear(b)
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.journal != nil // as goodbye leaves it before anything else
}

// effects says that a request may change something: RFC 7252, Section 5.8, for
// the safe methods; to give up an observation is a change, too. What OSCORE
// protects is not replayed: that has numbers of its own.
func effects(m *coap.Message) bool {
	if m.Options.Has(coap.OSCOREOption) {
		return false
	}
	if m.Code != coap.GET && m.Code != coap.FETCH {
		return true
	}
	v, ok := m.Options.Uint(coap.ObserveOption)
	return ok && v == 1
}

// tells says that a request may change who its peer is to the gateway.
func tells(m *coap.Message) bool {
	return effects(m) || m.Options.Has(coap.OSCOREOption) || m.Options.Has(coap.ObserveOption)
}

// challenge asks the peer of a stale session to show that it is there now,
// before a request with side effects is served (docs/protocol.md, Section 10; RFC
// 9175, Section 2.4). A client that knows no Echo is asked by a ping as well: its
// next attempt is served.
func (x *exchange) challenge(m *coap.Message) *coap.Message {
	if !x.stale {
		return nil
	}
	s := x.s
	e := s.e
	e.mu.Lock()
	defer e.mu.Unlock()
	if !s.stale || s.gone || !x.effects {
		return nil
	}
	want := e.echo(s.id)
	if have, ok := m.Options.Get(coap.Echo); ok && hmac.Equal(have, want) {
		s.fresh()
		return nil
	}
	e.metrics.challenges.Inc()
	if s.act == nil || !slices.ContainsFunc(s.act.sent, func(t *transmission) bool { return t.ping }) {
		id := s.newID()
		b, _ := (&coap.Message{Type: coap.Confirmable, ID: id}).MarshalBinary() // cannot fail: it is empty
		s.confirmable(id, b, coap.Attempt{}).ping = true
	}
	r := &coap.Message{Code: coap.Unauthorized, Token: bytes.Clone(m.Token)}
	r.Options.Add(coap.Echo, want)
	r.Options.SetUint(coap.MaxAge, 0)
	return r
}

// echo is the value that the peer of a link is to return. The key is as old as
// this process, so nobody saw the value before a restart.
func (e *Endpoint) echo(id coap.LinkID) []byte {
	mac := hmac.New(sha256.New, binary.BigEndian.AppendUint64([]byte("groupgate echo "), e.seed))
	mac.Write(e.echoKey[:])
	mac.Write([]byte(id))
	return mac.Sum(nil)[:8]
}

// fresh notes that the peer showed to be there now. What came before is not
// taken any more, should it come again.
func (s *session) fresh() {
	if !s.stale {
		return
	}
	s.stale = false
	s.window = record.From(s.window.Next())
	s.touched()
}
