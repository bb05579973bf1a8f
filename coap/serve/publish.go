package serve

import (
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/seed4911071e/groupgate/coap"
)

// Publish sends n to every observer of the topic who has not been shown its
// version; see the package comment for what Done reports. An older version than
// one published before is ignored. Publish hands messages to the links in the
// calling goroutine and waits for no peer.
//
// Where a budget spreads messages over time, Wait is asked here too, in the calling
// goroutine: before Allow.
func (s *Server) Publish(name string, n coap.Notification) {
	if n.Body == nil {
		panic("serve: internal error: notification without a body")
	}
	s.mu.Lock()
	t := s.topics[name]
	if t == nil {
		if s.registering == 0 || s.retained >= maxRetained {
			s.mu.Unlock()
			return // a handler that starts now sees the new state
		}
		t = s.topicLocked(name)
	}
	if t.last != nil && n.Version < t.last.Version {
		s.mu.Unlock()
		return
	}
	next := &note{Notification: n}
	if old := t.last; old != nil && old.Version == n.Version {
		next.overtaken = old.overtaken
	} else {
		next.overtaken = new(atomic.Bool)
		if old != nil {
			old.overtaken.Store(true)
		}
	}
	t.last = next
	type turn struct {
		sub  *subscription
		link coap.Link
	}
	start := make([]turn, 0, len(t.subs))
	for _, sub := range t.subs {
		if sub.hasShown && sub.shown >= n.Version {
			continue
		}
		if sub.sending != nil && sub.sending.Version >= n.Version {
			continue
		}
		sub.pending, sub.missed = next, nil
		if !sub.queued {
			sub.queued = true
			if s.enqueueLocked(sub.peer, sub) {
				start = append(start, turn{sub, sub.peer.link})
			}
		}
	}
	s.mu.Unlock()
	if s.pacer.free() {
		var out outlets
		defer out.release()
		for some := range slices.Chunk(start, paceTogether) {
			if next.Ready != nil {
				peers := make([]coap.Peer, len(some))
				for i, t := range some {
					peers[i] = t.link.Peer()
				}
				next.Ready.Ready(peers)
			}
			for _, t := range some {
				out.hold(t.link)
				t.sub.run(s)
			}
		}
		return
	}
	key := paceKey(name)
	for _, t := range start {
		// Who is held takes nothing from the budget, and is free for its next sign
		// of life at once.
		if next.Wait != nil && next.Wait(t.link.Peer()) && t.sub.holdEarly(s, next) {
			continue
		}
		var at netip.Addr
		if s.cfg.SubnetRate != 0 {
			at = t.link.Peer().Addr.Addr()
		}
		s.pacer.add(key, at, pacedJob{t.link, next, func() { t.sub.run(s) }})
	}
}

// Again has the link told of the newest version of the topic by the next Publish,
// whether it was shown it or not: for who lost, in a crash, that it acknowledged.
func (s *Server) Again(name string, link coap.LinkID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.topics[name]; t != nil {
		if sub := s.subscriptionLocked(link, t); sub != nil {
			sub.hasShown = false
		}
	}
}

// Drop ends the observation of the topic by the link, or by all for the zero
// link, and tells them last, without the Observe option, in a confirmable
// message.
func (s *Server) Drop(name string, link coap.LinkID, last *coap.Response) {
	var start []*farewell
	s.mu.Lock()
	s.events++
	t := s.topics[name]
	if t == nil && s.registering > 0 && s.retained < maxRetained {
		t = s.topicLocked(name)
	}
	if t == nil {
		s.mu.Unlock()
		return
	}
	if s.registering > 0 {
		if t.drops == nil {
			t.drops = make(map[coap.LinkID]drop)
			s.unsettled[name] = t
		}
		t.drops[link] = drop{at: s.events, last: last}
	}
	var subs []*subscription
	if link != "" {
		if sub := s.subscriptionLocked(link, t); sub != nil {
			subs = append(subs, sub)
		}
	} else {
		subs = slices.Clone(t.subs)
		if t.last != nil {
			t.last.overtaken.Store(true) // by the end of the topic
		}
		t.last = nil // versions may begin anew, with a group of the same name
	}
	for _, sub := range subs {
		if f := s.endLocked(sub, last, true); f != nil {
			start = append(start, f)
		}
	}
	s.tidyLocked(t)
	s.mu.Unlock()
	for _, f := range start {
		f.run(s)
	}
}

// endLocked removes the subscription and queues the last response for it. The
// job is returned when it can run at once.
func (s *Server) endLocked(sub *subscription, last *coap.Response, confirm bool) *farewell {
	obs := sub.obs
	s.removeLocked(sub)
	if last == nil {
		return nil
	}
	f := &farewell{peer: sub.peer, next: obs, last: last, confirm: confirm}
	if s.enqueueLocked(sub.peer, f) {
		return f
	}
	return nil
}
