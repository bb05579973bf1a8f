package endpoint

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/rarely"
)

// What all peers together may take is bounded, by number and by bytes. When there
// is no room left, this goes, in this order, and nothing else:
//
//  1. handshakes under way, the oldest without a cookie first;
//  2. associations of strangers, those with nothing under way first, then the one
//     that was silent for longest;
//  3. those of guests, likewise; but not for a stranger.
//
// A member never goes: when only members are left newcomers are turned away, but
// for a member that begins anew, which takes the place of its own oldest
// association. Handshakes have a share of their own, so that a flood of them costs
// nobody an association.

// Standing is who a peer is to those that the endpoint serves.
type Standing uint8

// From the first to go to those that stay.
const (
	unasked  Standing = iota // stays until it is known
	Stranger                 // whatever key it has, no grant is in force for it
	Guest                    // holds a grant, and is in no group
	Member                   // of a group, or an observer: it would be missed
	standings
)

func (s Standing) String() string {
	return [...]string{"unasked", "stranger", "guest", "member"}[s]
}

// Memory says what others hold on behalf of peers.
type Memory interface {
	// Held is in bytes; it is asked every second.
	Held() int
}

// Bounds of what peers are reckoned to take, in bytes: what measurements showed,
// and some more (BenchmarkIdle; docs/endpoint.md).
const (
	sessionSize      = 400
	transmissionSize = 256
	handshakeSize    = 40 << 10 // by pion

	// pressedFrom is from which share of the bounds on, in eighths, peers are asked
	// for their standing.
	pressedFrom = 7
	// lookEvery is how often it is looked whether there is room, askAtOnce how many
	// are asked then, and askAgain when an answer is old.
	lookEvery = time.Second
	askAtOnce = 2048
	askAgain  = 10 * time.Minute
	// candidates is how many of those that could go are found in one pass over all.
	candidates = 1024
	// freshFor is how long it is believed that all of them have something under way.
	freshFor = 200 * time.Millisecond
	// asking marks a session that is being asked for, in the place of the round.
	asking = 255
)

// HandshakeReserve is what n handshakes under way may take, in bytes: that much of
// [Config.MaxBytes] is not for associations.
func HandshakeReserve(n int) int { return n * handshakeSize }

// room is what is known of who could go; guarded by Endpoint.mu.
type room struct {
	count    [standings]int    // sessions in the table
	queue    [Member]queue     // strangers and guests
	looked   [Member]time.Time // that queue was filled
	sending  int               // bytes that wait for acknowledgements
	others   int               // bytes held elsewhere
	reckoned int               // bytes in the pool
	shown    int               // bytes in the metric
	round    uint8             // of asking everybody anew: below asking
	began    time.Time         // that round
	behind   bool              // it is not over
	turned   rarely.Line       // newcomers, away
	refused  rarely.Line       // ClientHellos
}

// candidate is a session that could go, as it was when that was found out.
type candidate struct {
	s     *session
	heard stamp
	busy  bool
}

// queue holds candidates of one standing, the first to go first.
type queue []candidate

// order says which of two goes first.
func order(a, b candidate) int {
	if a.busy != b.busy {
		if b.busy {
			return -1
		}
		return 1
	}
	return cmp.Compare(a.heard, b.heard)
}

// stand sets the standing of a session.
func (s *session) stand(v Standing) {
	if s.listed() {
		s.e.tally(s.standing, -1)
		s.e.tally(v, 1)
	}
	s.standing = v
	if v == Stranger || v == Guest {
		// Candidates that were found before it are the first to go no more.
		if q := &s.e.room.queue[v]; len(*q) > 0 && order(candidate{s, s.heard, !s.idle()}, (*q)[len(*q)-1]) < 0 {
			*q = nil
		}
	}
}

// firstStanding is that of a session nobody was asked about.
func (s *session) firstStanding() Standing {
	switch {
	case s.via == coap.Plain || s.pending() != nil:
		return Stranger
	case s.e.cfg.Standing != nil:
		return unasked
	case s.kind == coap.SubjectPoP || s.kind == coap.SubjectKeyHash:
		return Guest
	}
	return Stranger
}

// doubt notes that a request may have changed who the peer is.
func (s *session) doubt() {
	s.asked = asking - 1 // whoever is asking now is told later
	if s.standing != Member {
		s.stand(s.firstStanding())
	}
}

// stay says whether a peer on plain UDP is to stay; see [Config.Keep].
func (s *session) stay(v bool) {
	if v {
		s.stand(Member)
	} else {
		s.stand(Stranger)
	}
}

func (s *session) stays() bool { return s.via == coap.Plain && s.standing == Member }

// ask is told of a peer before its session is in the table, without the lock. Where
// there is room nobody is asked.
func (e *Endpoint) ask(p coap.Peer) Standing {
	if e.cfg.Standing == nil || !e.pressed.Load() {
		return unasked
	}
	return e.cfg.Standing(e.ctx, p)
}

// held is what associations take, in bytes.
func (e *Endpoint) held() int {
	return len(e.sessions)*sessionSize + e.receipts.bytes + e.safe.bytes + e.room.sending + e.room.others
}

// share is what associations may take; 0: as much as they like.
func (e *Endpoint) share() int {
	if e.cfg.MaxBytes == 0 {
		return 0
	}
	return max(sessionSize, e.cfg.MaxBytes-HandshakeReserve(e.cfg.MaxHandshakes*max(1, len(e.kin))))
}

// Held is what peers are reckoned to take here, in bytes.
func (e *Endpoint) Held() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.whole() - e.room.others
}

// whole is what associations and handshakes take.
func (e *Endpoint) whole() int {
	return e.held() + HandshakeReserve(e.underWay())
}

// full says whether there is no room for n more sessions.
func (e *Endpoint) full(n int) bool {
	share := e.share()
	return int(e.pool.sessions.Load())+n > e.cfg.MaxSessions || share > 0 && e.reckon()+n*sessionSize > share
}

// over says that associations and handshakes take more than all of it.
func (e *Endpoint) over() bool {
	return e.cfg.MaxBytes > 0 && e.reckon()+HandshakeReserve(e.underWay()) > e.cfg.MaxBytes
}

// press notes whether room is short, and has it looked after at once when it became so.
func (e *Endpoint) press() {
	share := e.share()
	short := 8*int(e.pool.sessions.Load()) >= pressedFrom*e.cfg.MaxSessions || share > 0 && 8*(e.reckon()/pressedFrom) >= share
	if !e.pressed.Swap(short) && short {
		e.hurry()
	}
}

// hurry has runRoom look soon.
func (e *Endpoint) hurry() {
	select {
	case e.short <- struct{}{}:
	default:
	}
}

// makeRoom has those go that are missed less than s, and says whether there is room
// for it then.
func (e *Endpoint) makeRoom(s *session) bool {
	for e.full(1) {
		v := e.victim(min(max(s.standing, Stranger), Guest))
		if v == nil && s.standing == Member {
			v = e.former(s.subject())
		}
		if v == nil {
			e.turnAway(s)
			return false
		}
		e.evict(v)
	}
	return true
}

// evict ends a session for want of room.
func (e *Endpoint) evict(s *session) {
	e.metrics.evicted.WithLabelValues(s.standing.String()).Inc()
	e.end(s, e.cfg.Keys != nil)
}

// turnAway refuses a newcomer and says so.
func (e *Endpoint) turnAway(s *session) {
	e.metrics.turned.WithLabelValues(s.standing.String()).Inc()
	if s.via != coap.Plain {
		s.alert(alertWarning, alertCloseNotify)
	}
	if e.room.count[unasked] > 0 {
		e.hurry()
	}
	s.gone = true
	s.forgetCiphers()
	if n := e.room.turned.Event(time.Now()); n > 0 {
		e.log.WarnContext(e.ctx, "newcomers are turned away: nobody is left who could go for them; raise limits.sessions or limits.memory_mb, or evict members",
			"turned_away", n, "peer", s.addr(), "sessions", e.pool.sessions.Load(), "max_sessions", e.cfg.MaxSessions,
			"held_bytes", e.reckon(), "max_bytes", e.share(), "members", e.pool.count[Member].Load(), "guests", e.pool.count[Guest].Load(),
			"strangers", e.pool.count[Stranger].Load(), "unasked", e.pool.count[unasked].Load())
	}
}

// victim is the session that goes first, of those that are not more than most; nil:
// there is none, or another shard has one that goes before.
func (e *Endpoint) victim(most Standing) *session {
	for v := Stranger; v <= most; v++ {
		if s := e.pick(v); s != nil || e.elsewhere(v) {
			return s
		}
	}
	return nil
}

// pick is the session of a standing that goes first; nil: none.
func (e *Endpoint) pick(v Standing) *session {
	if e.room.count[v] == 0 {
		return nil
	}
	if s := e.next(v, time.Since(e.room.looked[v]) < freshFor); s != nil {
		return s
	}
	e.look(v)
	return e.next(v, true)
}

// next takes the first candidate that is as it was; nil: there is none. One that has
// something under way is none unless the queue is fresh: others may be idle by now.
func (e *Endpoint) next(v Standing, fresh bool) *session {
	q := &e.room.queue[v]
	for len(*q) > 0 {
		c := (*q)[0]
		if c.busy && !fresh {
			return nil
		}
		(*q)[0].s = nil
		*q = (*q)[1:]
		if s := c.s; !s.gone && s.standing == v && s.heard == c.heard && s.idle() == !c.busy {
			return s
		}
	}
	return nil
}

// look finds the candidates of a standing.
func (e *Endpoint) look(v Standing) {
	l := make(queue, 0, 2*candidates)
	for _, s := range e.sessions {
		if s.standing != v {
			continue
		}
		l = append(l, candidate{s, s.heard, !s.idle()})
		if len(l) == cap(l) {
			slices.SortFunc(l, order)
			clear(l[candidates:])
			l = l[:candidates]
		}
	}
	slices.SortFunc(l, order)
	e.room.queue[v], e.room.looked[v] = l, time.Now()
}

// former is the oldest association of a member that begins anew; nil: none.
func (e *Endpoint) former(who coap.Subject) (oldest *session) {
	if who.Kind == coap.SubjectNone {
		return nil
	}
	for _, o := range e.sessions {
		if o.kind == who.Kind && o.whose == who.ID && (oldest == nil || o.heard < oldest.heard) {
			oldest = o
		}
	}
	return oldest
}

// runRoom sees to it that there is room until ctx ends.
func (e *Endpoint) runRoom(ctx context.Context) {
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.short:
			e.keepRoom(ctx, time.Now())
		case now := <-t.C:
			e.keepRoom(ctx, now)
		}
	}
}

// keepRoom asks who the peers are while room is short, and has those go that are
// too many: what is held grows without newcomers, too.
func (e *Endpoint) keepRoom(ctx context.Context, now time.Time) {
	others := 0
	if e.cfg.Memory != nil {
		others = e.cfg.Memory.Held()
	}
	e.mu.Lock()
	e.room.others = others
	e.press()
	e.mu.Unlock()
	if e.pressed.Load() {
		e.askAll(ctx, now)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for n := 0; e.over() && n < askAtOnce; n++ {
		if e.underWay() == 0 || !e.giveUp(now) {
			break
		}
		e.metrics.evicted.WithLabelValues("half-open").Inc()
	}
	for n := 0; e.full(0) && n < askAtOnce; n++ {
		v := e.victim(Guest)
		if v == nil {
			break
		}
		e.evict(v)
	}
	held := e.whole()
	e.metrics.held.Add(float64(held - e.room.shown))
	e.room.shown = held
}

// askAll asks for the standing of some of those who were not asked, or long ago.
func (e *Endpoint) askAll(ctx context.Context, now time.Time) {
	if e.cfg.Standing == nil {
		return
	}

	e.mu.Lock()
	r := &e.room
	if now.Sub(r.began) >= askAgain && !r.behind {
		r.round = (r.round + 1) % (asking - 1)
		r.began, r.behind = now, true
	}
	var ask []*session
	if r.behind || r.count[unasked] > 0 {
		for _, s := range e.sessions {
			if s.via != coap.Plain && s.pending() == nil && (s.standing == unasked || s.asked != r.round) {
				s.asked = asking
				if ask = append(ask, s); len(ask) == askAtOnce {
					break
				}
			}
		}
		r.behind = len(ask) == askAtOnce
	}
	e.mu.Unlock()
	for _, s := range ask {
		if ctx.Err() != nil {
			return
		}
		v := e.cfg.Standing(ctx, s.Peer())
		e.mu.Lock()
		// What was asked while a request came may be older than what that changed.
		if s.asked == asking && v < standings {
			s.stand(v)
			s.asked = r.round
		}
		e.mu.Unlock()
	}
}

// standingOf is ask of a handshake that is over.
func (e *Endpoint) standingOf(subject coap.Subject, via coap.Security, addr netip.AddrPort, denied error) Standing {
	if denied != nil {
		return Stranger
	}
	v := e.ask(coap.Peer{Subject: subject, Via: via, Addr: addr})
	e.makeWay(subject, v)
	return v
}
