package bridge

import (
	"slices"
	"sync"

	"github.com/seed4911071e/groupgate/coap"
)

// observers remembers which member is behind a link, as learned when it
// registered and when the hub asked whether it may be notified. The zero value
// is ready.
//
// A link may vanish without a word to this room. What was not seen in the last
// two rekeys of a topic is forgotten: the one before the newest may still be
// under way. Between rekeys a member that comes over one link after the other
// is remembered by its newest registration only, so there is never more than
// that and what was notified.
type observers struct {
	mu         sync.Mutex
	known      map[string]*watched // by topic
	registered map[member]registered
	subjects   map[coap.Subject][]member // of registered
}

// registered is the newest registration of a member, whether of its node
// resource or of the group.
type registered struct {
	link    coap.LinkID
	subject coap.Subject
}

type observation struct {
	topic string
	link  coap.LinkID
}

// watched is who was told under one topic. There may be very many: what all have in
// common is not in each.
type watched struct {
	group string
	round uint64 // counts rekeys
	links map[coap.LinkID]observer
}

type observer struct {
	node    string
	subject coap.Subject
	round   uint64
}

// topicLocked finds or makes what is known of a topic.
func (o *observers) topicLocked(topic string) *watched {
	w := o.known[topic]
	if w == nil {
		if o.known == nil {
			o.known = map[string]*watched{}
		}
		group, _, _ := groupOf(topic)
		w = &watched{group: group, links: map[coap.LinkID]observer{}}
		o.known[topic] = w
	}
	return w
}

// begin starts the next round of a topic.
func (o *observers) begin(topic string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	w := o.topicLocked(topic)
	w.round++
	for k, v := range w.links {
		if v.round+1 < w.round {
			delete(w.links, k)
		}
	}
}

// add is called from Allow and from Wait, so a round has begun: who is held back is
// not forgotten, however long it sleeps.
func (o *observers) add(topic string, link coap.LinkID, m member, s coap.Subject) {
	o.mu.Lock()
	defer o.mu.Unlock()
	w := o.topicLocked(topic)
	w.links[link] = observer{m.node, s, w.round}
}

// register notes that a member asked to observe.
func (o *observers) register(link coap.LinkID, m member, s coap.Subject) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.registered == nil {
		o.registered, o.subjects = map[member]registered{}, map[coap.Subject][]member{}
	}
	old, ok := o.registered[m]
	if ok && old.subject != s {
		o.unregisterLocked(m)
	}
	if !ok || old.subject != s {
		o.subjects[s] = append(o.subjects[s], m)
	}
	o.registered[m] = registered{link, s}
}

func (o *observers) unregisterLocked(m member) {
	r, ok := o.registered[m]
	if !ok {
		return
	}
	delete(o.registered, m)
	rest := slices.DeleteFunc(o.subjects[r.subject], func(have member) bool { return have == m })
	if len(rest) == 0 {
		delete(o.subjects, r.subject)
	} else {
		o.subjects[r.subject] = rest
	}
}

func (o *observers) remove(topic string, link coap.LinkID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if w := o.known[topic]; w != nil {
		delete(w.links, link)
	}
}

func (o *observers) member(topic string, link coap.LinkID) (member, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	w := o.known[topic]
	if w == nil {
		return member{}, false
	}
	v, ok := w.links[link]
	return member{w.group, v.node}, ok
}

// links lists over which associations a member observes.
func (o *observers) links(m member) (links []coap.LinkID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if r, ok := o.registered[m]; ok {
		links = append(links, r.link)
	}
	return links
}

func (o *observers) removeMember(m member) (links []coap.LinkID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if r, ok := o.registered[m]; ok {
		links = append(links, r.link)
		o.unregisterLocked(m)
	}
	for _, w := range o.known {
		if w.group != m.group {
			continue
		}
		for link, v := range w.links {
			if v.node == m.node {
				if !slices.Contains(links, link) {
					links = append(links, link)
				}
				delete(w.links, link)
			}
		}
	}
	return links
}

// removeGroup forgets the observers of a group, and returns which of its members
// were known to observe.
func (o *observers) removeGroup(group string) (nodes []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for m := range o.registered {
		if m.group == group {
			nodes = append(nodes, m.node)
			o.unregisterLocked(m)
		}
	}
	for topic, w := range o.known {
		if w.group == group {
			delete(o.known, topic)
		}
	}
	return nodes
}

// observing lists the members of a group that registered as observers.
func (o *observers) observing(group string) (nodes []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for m := range o.registered {
		if m.group == group {
			nodes = append(nodes, m.node)
		}
	}
	return nodes
}

// removeSubject returns where a subject may observe: links by topic, of which
// topics tells those of a group, and the members that it is.
func (o *observers) removeSubject(s coap.Subject, topics func(group string) []string) (links []observation, members []member) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, m := range slices.Clone(o.subjects[s]) {
		for _, topic := range topics(m.group) {
			links = append(links, observation{topic, o.registered[m].link})
		}
		members = append(members, m)
		o.unregisterLocked(m)
	}
	for topic, w := range o.known {
		for link, v := range w.links {
			if v.subject != s {
				continue
			}
			delete(w.links, link)
			if k := (observation{topic, link}); !slices.Contains(links, k) {
				links = append(links, k)
			}
			if m := (member{w.group, v.node}); !slices.Contains(members, m) {
				members = append(members, m)
			}
		}
	}
	return links, members
}
