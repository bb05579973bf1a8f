package bridge

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
)

func groupTopic(group string) string  { return "gm/" + group }
func numTopic(group string) string    { return groupTopic(group) + "/num" }
func activeTopic(group string) string { return groupTopic(group) + "/active" }

// groupTopics are what the members of a group observe in common.
func groupTopics(group string) []string {
	return []string{groupTopic(group), groupcomm.PhasedTopic(group), numTopic(group), activeTopic(group)}
}

func nodeTopic(group, node string) string { return "gm/" + group + "/nodes/" + node }

// etag is the version in network byte order without leading zeros, at least
// one byte.
func etag(version uint64) []byte {
	b := binary.BigEndian.AppendUint64(nil, version)
	for len(b) > 1 && b[0] == 0 {
		b = b[1:]
	}
	return b
}

// legacySource is the optional part of a [Source]: groups that are observed in a
// dialect of 2019 or 2020 too, see groupcomm.Interface.
type legacySource interface {
	// LegacyFormats are the Content-Formats in which they are; none: they are not.
	LegacyFormats(group string) []coap.Format
	// LegacyRekey is RekeyMessage in the dialect.
	LegacyRekey(ctx context.Context, group string) (version uint64, body []byte, err error)
}

// topics are all under which the rekeys of a group are observed: a notification
// has one body, so each dialect and format has a topic.
func (b *Bridge) topics(group string) []string {
	out := groupTopics(group)
	if l, ok := b.source.(legacySource); ok {
		for _, f := range l.LegacyFormats(group) {
			out = append(out, groupcomm.LegacyTopic(group, f))
		}
	}
	return out
}

// legacyRekey gives the rekey for those who observe a legacy dialect, and in which
// formats; none when the group has no such dialect.
func (b *Bridge) legacyRekey(ctx context.Context, group string) (formats []coap.Format, version uint64, body []byte, err error) {
	l, ok := b.source.(legacySource)
	if !ok {
		return nil, 0, nil, nil
	}
	if formats = l.LegacyFormats(group); len(formats) == 0 {
		return nil, 0, nil, nil
	}
	if version, body, err = l.LegacyRekey(ctx, group); err != nil || body == nil {
		return nil, 0, nil, err
	}
	return formats, version, body, nil
}

// notification is the rekey as observers of the group resource get it: the
// reduced rekey map (RFC 9594, Section 6.1; protocol.md, Section 4), confirmable,
// so that the acknowledgement shows who has it.
func (b *Bridge) notification(ctx context.Context, l *roll, topic, group string, version uint64, f coap.Format, body []byte) coap.Notification {
	resp := &coap.Response{Code: coap.Content, Payload: body}
	resp.Options.Set(coap.ETag, etag(version))
	resp.Options.SetContentFormat(f)
	// protocol.md, Section 3: what carries keys is stale at once.
	resp.Options.SetUint(coap.MaxAge, 0)

	b.observers.begin(topic)
	return coap.Notification{
		Version: version,
		Body:    resp,
		Confirm: true,
		Allow:   b.allowed(ctx, l, group, topic),
		Wait:    b.waits(topic),
		Done: func(link coap.LinkID, _ uint64, err error) {
			b.met.sent(channelObserve, len(body))
			m, ok := b.observers.member(topic, link)
			if !ok {
				return // left or was evicted meanwhile
			}
			if err == nil {
				// The peer itself acknowledged on its own association.
				b.met.notifications.WithLabelValues("acknowledged").Inc()
				b.confirm(m, version, channelObserve, nil)
				return
			}
			if errors.Is(err, coap.ErrRelayed) {
				// Over OSCORE an acknowledgement is not protected: anybody on the
				// way can send it. What counts is a later request that shows the
				// version (protocol.md, Section 4).
				b.met.notifications.WithLabelValues("relayed").Inc()
				b.activity.relayedAt(m, channelObserve, time.Now())
				return
			}
			// The member stays pending. It polls or observes again when it
			// wakes, and the first response to that is the full map.
			b.met.notifications.WithLabelValues("failed").Inc()
			if errors.Is(err, coap.ErrGone) || errors.Is(err, coap.ErrReset) {
				b.observers.remove(topic, link)
				b.activity.attempted(m, channelObserve, err)
				b.activity.unobserved(m)
				return
			}
			b.failed(m, channelObserve, err)
		},
	}
}

// small is the new state of num or active, by its version
// (draft-ietf-ace-key-groupcomm-oscore-21, Section 9.9, for active).
func (b *Bridge) small(ctx context.Context, l *roll, group, topic string, version uint64, body []byte) coap.Notification {
	resp := &coap.Response{Code: coap.Content, Payload: body}
	if topic == numTopic(group) {
		resp.Options.Set(coap.ETag, etag(version))
	}
	resp.Options.SetContentFormat(coap.CBOR)
	resp.Options.SetUint(coap.MaxAge, 0)
	b.observers.begin(topic)
	n := coap.Notification{Version: version, Body: resp, Confirm: true, Allow: b.allowed(ctx, l, group, topic)}
	if topic == numTopic(group) {
		n.Wait = b.heldBack(topic) // who sees the number asks for the keys
	}
	return n
}

// allowed is [coap.Notification.Allow] for observers of a resource of a group.
func (b *Bridge) allowed(ctx context.Context, l *roll, group, topic string) func(coap.Peer) (*coap.Response, bool) {
	return func(p coap.Peer) (*coap.Response, bool) {
		last, node, ok := b.allow(ctx, l, group, p)
		if !ok {
			b.observers.remove(topic, p.Link)
			b.met.notifications.WithLabelValues("refused").Inc()
			return last, false
		}
		b.observers.add(topic, p.Link, member{group, node}, p.Subject)
		return nil, true
	}
}

// waits is [coap.Notification.Wait]: a member that sleeps, or wants another
// channel, is not disturbed; what is newest then reaches it when it wakes.
func (b *Bridge) waits(topic string) func(coap.Peer) bool {
	return func(p coap.Peer) bool {
		m, ok := b.observers.member(topic, p.Link)
		if !ok {
			return false
		}
		if _, held := b.held(m); held {
			return true
		}
		t := b.activity.of(m)
		if t.want != "" && t.want != channelObserve {
			return true
		}
		if !t.asleep(time.Now()) {
			return false
		}
		b.tryLater(m)
		return true
	}
}

// allow repeats, before each notification, what a plain GET would be asked
// (RFC 9594, Section 4.3.2: a current member, with a valid token).
func (b *Bridge) allow(ctx context.Context, l *roll, group string, p coap.Peer) (last *coap.Response, node string, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	if err := b.access(ctx, p); err != nil {
		return coap.ErrorResponse(err), "", false
	}
	if node, ok := b.on(ctx, l, group, p.Subject); ok {
		return nil, node, true
	}
	m, err := b.source.MemberOf(ctx, group, p.Subject)
	switch {
	case errors.Is(err, groupcomm.ErrNotMember):
		// It left or was evicted. The notice of eviction goes to the node
		// resource, this observation ends without a word.
		return nil, "", false
	case err != nil:
		return coap.ErrorResponse(err), "", false
	case m.Lapsed:
		return unauthorized(), "", false
	}
	return nil, m.Node, true
}

func unauthorized() *coap.Response { return &coap.Response{Code: coap.Unauthorized} }

// ended ends the observations of a member that left (last is nil) or was
// evicted.
func (b *Bridge) ended(group, node string, last *coap.Response) {
	if node == "" {
		return
	}
	// Only the member itself may observe its node resource: all observers of
	// it are the member.
	b.hub.Drop(nodeTopic(group, node), "", last)
	topics := b.topics(group)
	for _, link := range b.observers.removeMember(member{group, node}) {
		for _, topic := range topics {
			b.hub.Drop(topic, link, nil)
		}
	}
}

// deleted ends the observations of a group that was deleted, and of its members'
// node resources: "Group deleted" (draft-ietf-ace-key-groupcomm-oscore-21,
// Section 13: error 6).
//
// The event may be an old one, and there a group of the same name again: its
// observers are not meant.
func (b *Bridge) deleted(ctx context.Context, group string) {
	if _, _, err := b.source.RekeyMessage(ctx, group); !gone(err) {
		return // observers that are no members are ended by the next notification
	}
	b.callDeleted(group)
	last := coap.ErrorResponse(groupcomm.ErrGroupDeleted)
	topics := groupTopics(group)
	for _, f := range groupcomm.LegacyFormats { // nobody can say any more whether it had a dialect
		topics = append(topics, groupcomm.LegacyTopic(group, f))
	}
	for _, topic := range topics {
		b.hub.Drop(topic, "", last)
	}
	for _, node := range b.observers.removeGroup(group, topics) {
		b.hub.Drop(nodeTopic(group, node), "", last)
	}
	b.controls.takeGroup(group)
	b.holds.set(group, nil)
	b.mu.Lock()
	delete(b.groups, group)
	b.mu.Unlock()
}

// expired ends the observations of a subject whose token expired, at once
// (protocol.md, Section 2).
func (b *Bridge) expired(s coap.Subject) {
	if s == (coap.Subject{}) {
		return
	}
	links, members := b.observers.removeSubject(s, b.topics)
	for _, o := range links {
		b.hub.Drop(o.topic, o.link, unauthorized())
	}
	for _, m := range members {
		b.hub.Drop(nodeTopic(m.group, m.node), "", unauthorized())
	}
}

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
	known      map[observation]observer
	round      map[string]uint64 // by topic: counts rekeys
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

type observer struct {
	observation
	member  member
	subject coap.Subject
	round   uint64
}

// begin starts the next round of a topic.
func (o *observers) begin(topic string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.known == nil {
		o.known, o.round = map[observation]observer{}, map[string]uint64{}
	}
	o.round[topic]++
	for k, v := range o.known {
		if k.topic == topic && v.round+1 < o.round[topic] {
			delete(o.known, k)
		}
	}
}

// add is called from Allow, so a round has begun.
func (o *observers) add(topic string, link coap.LinkID, m member, s coap.Subject) {
	o.mu.Lock()
	defer o.mu.Unlock()
	k := observation{topic, link}
	o.known[k] = observer{k, m, s, o.round[topic]}
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
	delete(o.known, observation{topic, link})
}

func (o *observers) member(topic string, link coap.LinkID) (member, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	v, ok := o.known[observation{topic, link}]
	return v.member, ok
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
	for k, v := range o.known {
		if v.member == m {
			if !slices.Contains(links, k.link) {
				links = append(links, k.link)
			}
			delete(o.known, k)
		}
	}
	return links
}

// removeGroup forgets the observers of a group, and returns which of its members
// were known to observe.
func (o *observers) removeGroup(group string, topics []string) (nodes []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for m := range o.registered {
		if m.group == group {
			nodes = append(nodes, m.node)
			o.unregisterLocked(m)
		}
	}
	for k, v := range o.known {
		if v.member.group == group {
			delete(o.known, k)
		}
	}
	for _, topic := range topics {
		delete(o.round, topic)
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
	for k, v := range o.known {
		if v.subject != s {
			continue
		}
		delete(o.known, k)
		if !slices.Contains(links, k) {
			links = append(links, k)
		}
		if !slices.Contains(members, v.member) {
			members = append(members, v.member)
		}
	}
	return links, members
}
