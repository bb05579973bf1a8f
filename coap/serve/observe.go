package serve

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// topic is what handlers name in Observation and rooms in Publish.
type topic struct {
	name string
	subs []*subscription // each knows its place
	last *note           // newest known; kept while there are observers or registrations under way

	// Drops that happened while registrations were under way, by link; the zero
	// link stands for all.
	drops map[coap.LinkID]drop
}

type drop struct {
	at   uint64
	last *coap.Response
}

// note is a notification with an identity. Notes of one version share overtaken, which is
// set when a newer one is published.
type note struct {
	coap.Notification
	overtaken *atomic.Bool
}

// subscription is the mailbox of one link for one topic. There are very many.
type subscription struct {
	peer  *peer
	topic *topic
	next  *subscription // of the peer
	obs   *observation  // the first, one for each token; nil only at the beginning

	pending *note // newest not yet sent
	sending *note // in flight
	missed  *note // nobody acknowledged it; sent again at the next sign of life
	shown   uint64
	heard   seconds // last acknowledgement or registration
	place   uint32  // in topic.subs

	misses   uint8 // in a row
	retried  bool  // what is under way follows no sign of life: a miss does not count
	queued   bool  // has its turn or waits for it
	gone     bool  // removed; what is in flight may still come to an end
	hasShown bool
}

// observation is one entry of the list of observers (RFC 7641, Section 4.1): a
// link and a token.
type observation struct {
	sub   *subscription
	next  *observation // older; stays as it was when this one is over
	view  *sharedView
	token [8]byte
	seq   uint32 // 24 bits
	size  uint8  // of the token
	gone  bool
}

func (o *observation) tokenBytes() []byte { return o.token[:o.size:o.size] }

// count is how many there are from o on.
func (o *observation) count() (n int) {
	for ; o != nil; o = o.next {
		n++
	}
	return n
}

// view is how a resource is observed: what the registration asked for. Those who
// ask for the same share one.
type view struct {
	key        cacheKey
	szx        uint8
	whole      bool
	noResponse uint8
}

type sharedView struct {
	view
	users int
}

// lookLocked gives an observation its view.
func (s *Server) lookLocked(o *observation, v view) {
	if o.view != nil && o.view.view == v {
		return
	}
	s.unlookLocked(o)
	have := s.views[v]
	if have == nil {
		have = &sharedView{view: v}
		s.views[v] = have
	}
	have.users++
	o.view = have
}

// unlookLocked has a view forgotten that nobody has any more. Who sends meanwhile
// still reads it.
func (s *Server) unlookLocked(o *observation) {
	if o.view == nil {
		return
	}
	if o.view.users--; o.view.users == 0 {
		delete(s.views, o.view.view)
	}
}

// nextSeq gives a number that is newer than all before it, also than those of
// an observation with the same token before a restart: the seconds of the clock
// while notifications are rarer (RFC 7641, Sections 3.4 and 4.4).
func (o *observation) nextSeq(now time.Time) uint32 {
	clock := uint32(now.Unix()) & seqMask
	next := (o.seq + 1) & seqMask
	if o.seq == 0 || newer(clock, next) {
		next = clock
	}
	o.seq = next
	return next
}

// seqMask are the 24 bits of such a number.
const seqMask = 1<<24 - 1

// newer compares two of them (RFC 7641, Section 3.4).
func newer(a, b uint32) bool { return a != b && (a-b)&seqMask < 1<<23 }

// beginRegistration says that a handler is about to read a state that may then
// be observed: what is published from now on is kept.
func (s *Server) beginRegistration() (start uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.registering++
	return s.events
}

func (s *Server) endRegistration() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.registering--; s.registering > 0 {
		return
	}
	for name, t := range s.unsettled {
		t.drops = nil
		if len(t.subs) == 0 && s.topics[name] == t {
			delete(s.topics, name)
			s.retained--
		}
	}
	clear(s.unsettled)
}

// register adds the observation that the response r of x asks for and returns
// r with the Observe option; without it when the observation was dropped
// meanwhile or there are too many.
func (s *Server) register(ctx context.Context, x *exchange, r *coap.Response, start uint64) *coap.Response {
	key := x.cacheKey()
	s.mu.Lock()
	p := x.peer
	if p.gone {
		s.mu.Unlock()
		return r
	}
	t := s.topicLocked(r.Observe.Topic)
	for _, id := range []coap.LinkID{p.id, ""} {
		if d, ok := t.drops[id]; ok && d.at > start {
			// Dropped between the reading of the state and now.
			s.deregisterLocked(p, string(x.token()))
			s.tidyLocked(t)
			s.mu.Unlock()
			if d.last != nil {
				return d.last
			}
			return r
		}
	}
	o, n := p.observation(string(x.token()))
	if o != nil && o.sub.topic != t {
		s.deregisterLocked(p, string(x.token()))
		o = nil
	}
	if o == nil {
		if s.observations >= s.cfg.MaxObservations || n >= maxPeerObservations {
			s.tidyLocked(t)
			s.mu.Unlock()
			return r
		}
		o = s.observeLocked(s.subscribeLocked(p, t), x.token())
	}
	v := view{key: key, szx: s.szx, whole: x.whole, noResponse: noResponse(x.req.Options)}
	if x.block2 != nil {
		v.szx = min(x.block2.SZX, s.szx)
	}
	s.lookLocked(o, v)
	sub := o.sub
	now := time.Now()
	sub.heard = s.seconds(now)
	sub.misses = 0
	sub.shown, sub.hasShown = r.Observe.Version, true
	if sub.missed != nil && sub.missed.Version <= sub.shown {
		sub.missed = nil
	}
	if sub.pending != nil && sub.pending.Version <= sub.shown {
		sub.pending = nil
	}
	if t.last != nil && t.last.Version > sub.shown {
		if sub.queued {
			sub.pending = t.last
		} else {
			sub.missed = t.last // the reply goes first: revive sends it
		}
	}
	seq := o.nextSeq(now)
	keeper := s.keeper
	wait := s.keepLocked(o)
	s.mu.Unlock()
	if wait {
		// What is promised is on disk first. When the disk fails the observation
		// lasts as long as this process, as the journal tells the operator.
		_ = keeper.Commit(ctx)
	}

	out := *r
	out.Options = slices.Clone(r.Options)
	out.Options.SetUint(coap.ObserveOption, seq)
	return &out
}

// subscribeLocked finds or makes the mailbox of a link for a topic.
func (s *Server) subscribeLocked(p *peer, t *topic) *subscription {
	sub := p.subscription(t)
	if sub == nil {
		sub = &subscription{peer: p, topic: t, next: p.subs, place: uint32(len(t.subs))}
		if len(t.subs) == 0 {
			s.retained--
		}
		t.subs = append(t.subs, sub)
		p.subs = sub
	}
	return sub
}

// observeLocked adds an observation. It stands before the others: a delivery
// under way does not come to it.
func (s *Server) observeLocked(sub *subscription, token []byte) *observation {
	o := &observation{sub: sub, next: sub.obs, size: uint8(len(token))}
	copy(o.token[:], token)
	sub.obs = o
	s.observations++
	s.metrics.observations.Inc()
	return o
}

// subscriptionLocked finds the mailbox of a link for a topic; nil: there is none.
func (s *Server) subscriptionLocked(id coap.LinkID, t *topic) *subscription {
	if p := s.peers.Get(id); p != nil {
		return p.subscription(t)
	}
	return nil
}

// topicLocked finds or makes a topic. A new one counts as retained until it has
// an observer.
func (s *Server) topicLocked(name string) *topic {
	t := s.topics[name]
	if t == nil {
		t = &topic{name: name}
		s.topics[name] = t
		s.unsettled[name] = t
		s.retained++
	}
	return t
}

// tidyLocked forgets a topic that nobody observes, unless a registration under
// way may want to know what happened to it.
func (s *Server) tidyLocked(t *topic) {
	if len(t.subs) != 0 || s.topics[t.name] != t {
		return
	}
	if s.registering > 0 && (t.last != nil || t.drops != nil) && s.retained <= maxRetained {
		s.unsettled[t.name] = t
		return
	}
	delete(s.topics, t.name)
	delete(s.unsettled, t.name)
	s.retained--
}

// deregister removes the observation with the token (RFC 7641, Section 3.6).
func (s *Server) deregister(p *peer, token []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deregisterLocked(p, string(token))
}

func (s *Server) deregisterLocked(p *peer, token string) {
	o, _ := p.observation(token)
	if o == nil {
		return
	}
	sub := o.sub
	if sub.obs == o && o.next == nil {
		s.removeLocked(sub)
		return
	}
	s.forgetObservationLocked(o)
	at := &sub.obs
	for *at != o {
		at = &(*at).next
	}
	*at = o.next
}

func (s *Server) forgetObservationLocked(o *observation) {
	o.gone = true
	s.keepEndLocked(o)
	s.unlookLocked(o)
	s.observations--
	s.metrics.observations.Dec()
}

// removeLocked ends all observations of a topic by a link. What waits in the
// mailbox is dropped.
func (s *Server) removeLocked(sub *subscription) {
	if sub.gone {
		return
	}
	sub.gone = true
	sub.pending, sub.missed = nil, nil
	for o := sub.obs; o != nil; o = o.next {
		s.forgetObservationLocked(o)
	}
	at := &sub.peer.subs
	for *at != sub {
		at = &(*at).next
	}
	*at = sub.next
	t := sub.topic
	last := len(t.subs) - 1
	t.subs[sub.place] = t.subs[last]
	t.subs[sub.place].place = sub.place
	t.subs[last] = nil
	if t.subs = t.subs[:last]; last == 0 {
		t.subs = nil
		s.retained++
		s.tidyLocked(t)
	}
}

// Observers lists the links that observe a topic.
func (s *Server) Observers(name string) []coap.LinkID {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.topics[name]
	if t == nil {
		return nil
	}
	out := make([]coap.LinkID, 0, len(t.subs))
	for _, sub := range t.subs {
		out = append(out, sub.peer.id)
	}
	slices.Sort(out)
	return out
}

// Watching counts the observations of a link, and those that were lost: the peer
// rejected a notification, or did not answer several.
func (s *Server) Watching(id coap.LinkID) (observations, lost int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.peers.Get(id)
	if p == nil {
		return 0, 0
	}
	for sub := p.subs; sub != nil; sub = sub.next {
		observations += sub.obs.count()
	}
	return observations, int(p.lost)
}

// loseLocked counts observations that ended without the peer's asking for it.
func (s *Server) loseLocked(p *peer, n int, why string) {
	p.lost += uint32(n)
	s.metrics.lost.WithLabelValues(why).Add(float64(n))
}

// Cancel ends the observation with the token, and the production of further
// responses: for links that can tell which
// notification a Reset rejects although it was not confirmable (RFC 7641,
// Section 3.6). For confirmable ones coap.ErrReset does it.
func (s *Server) Cancel(id coap.LinkID, token []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.peers.Get(id); p != nil {
		if o, _ := p.observation(string(token)); o != nil {
			s.loseLocked(p, 1, "reset")
		}
		s.deregisterLocked(p, string(token))
		for _, m := range p.more {
			if m.token == string(token) {
				m.end()
			}
		}
	}
}

// Doubt has the next notification of the observation with the token confirmable, as if
// the 24 hours of RFC 7641, Section 4.5, were over: somebody who may not be the peer
// rejected one.
func (s *Server) Doubt(id coap.LinkID, token []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.peers.Get(id); p != nil {
		if o, _ := p.observation(string(token)); o != nil {
			o.sub.heard = s.seconds(time.Now().Add(-confirmEvery - time.Second)) // the second that it rounds away
		}
	}
}
