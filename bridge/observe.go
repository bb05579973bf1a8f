package bridge

import (
	"context"
	"encoding/binary"
	"errors"
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
// reduced rekey map (RFC 9594, Section 6.1; docs/protocol.md, Section 4), confirmable,
// so that the acknowledgement shows who has it.
func (b *Bridge) notification(ctx context.Context, l *roll, topic, group string, version uint64, f coap.Format, body []byte) coap.Notification {
	resp := &coap.Response{Code: coap.Content, Payload: body}
	resp.Options.Set(coap.ETag, etag(version))
	resp.Options.SetContentFormat(f)
	// docs/protocol.md, Section 3: what carries keys is stale at once.
	resp.Options.SetUint(coap.MaxAge, 0)

	b.observers.begin(topic)
	k := b.newKnown(ctx)
	return coap.Notification{
		Version: version,
		Body:    resp,
		Confirm: true,
		Ready:   k.readier(),
		Allow:   b.allowed(ctx, l, k, group, topic),
		Wait:    b.waits(topic, version),
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
				// version (docs/protocol.md, Section 4).
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
	held := func(coap.Peer) bool { return false }
	if topic == numTopic(group) {
		held = b.heldBack(topic) // who sees the number asks for the keys
	}
	k := b.newKnown(ctx)
	return coap.Notification{
		Version: version, Body: resp, Confirm: true, Ready: k.readier(), Allow: b.allowed(ctx, l, k, group, topic),
		Wait: func(p coap.Peer) bool { return b.doubted(topic, p) || held(p) },
	}
}

// allowed is [coap.Notification.Allow] for observers of a resource of a group.
func (b *Bridge) allowed(ctx context.Context, l *roll, k *known, group, topic string) func(coap.Peer) (*coap.Response, bool) {
	return func(p coap.Peer) (*coap.Response, bool) {
		last, node, err := b.allow(ctx, l, k, group, p)
		doubted := err != nil && !errors.Is(err, errNotTold)
		b.doubts.set(observation{topic, p.Link}, doubted)
		if doubted {
			// Our own trouble is no reason to end an observation: nobody would
			// tell the member any more. Wait holds this one back.
			b.log.DebugContext(ctx, "cannot find out whether a peer may be told", "group", group, "peer", p.Addr, "err", err)
			return nil, true
		}
		if err != nil {
			b.observers.remove(topic, p.Link)
			b.met.notifications.WithLabelValues("refused").Inc()
			return last, false
		}
		b.observers.add(topic, p.Link, member{group, node}, p.Subject)
		return nil, true
	}
}

// waits is [coap.Notification.Wait]: a member that sleeps, or wants another
// channel, is not disturbed; what is newest then reaches it when it wakes. Nor is one
// that showed the version over another channel before its turn came. It may be asked
// before allowed was, for whom an earlier rekey or request tells who it is.
func (b *Bridge) waits(topic string, version uint64) func(coap.Peer) bool {
	return func(p coap.Peer) bool {
		if b.doubted(topic, p) {
			return true
		}
		m, ok := b.behind(topic, p)
		if !ok {
			return false
		}
		if _, held := b.held(m); held {
			b.observers.add(topic, p.Link, m, p.Subject)
			return true
		}
		t := b.activity.of(m)
		switch {
		case t.want != "" && t.want != channelObserve:
		case topic == groupTopic(m.group) && t.shown && t.confirmed >= version && !b.holds.begins(m, version):
		case t.asleep(time.Now()):
			b.tryLater(m)
		default:
			return false
		}
		b.observers.add(topic, p.Link, m, p.Subject)
		return true
	}
}

// behind finds the member that observes a topic of its group over a link, as far as
// that is known.
func (b *Bridge) behind(topic string, p coap.Peer) (member, bool) {
	if m, ok := b.observers.member(topic, p.Link); ok {
		return m, true
	}
	group, _, _ := groupOf(topic)
	members, _ := b.activity.members(p.Subject)
	for _, m := range members {
		if m.group == group {
			return m, true
		}
	}
	return member{}, false
}

// errNotTold says that a peer must not be told.
var errNotTold = errors.New("bridge: the peer is no member, or its token is not good any more")

// allow repeats, before each notification, what a plain GET would be asked
// (RFC 9594, Section 4.3.2: a current member, with a valid token). Where it returns
// errNotTold, last is what the peer is told at the end; another error says that the
// answer is not known.
func (b *Bridge) allow(ctx context.Context, l *roll, k *known, group string, p coap.Peer) (last *coap.Response, node string, err error) {
	node, listed := b.on(ctx, l, group, p.Subject) // as long as that takes
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	if !k.has(p.Subject) {
		if err := b.access(ctx, p); err != nil {
			if !coap.Deliberate(err) {
				return nil, "", err
			}
			return coap.ErrorResponse(err), "", errNotTold
		}
	}
	if listed {
		return nil, node, nil
	}
	m, err := b.source.MemberOf(ctx, group, p.Subject)
	switch {
	case errors.Is(err, groupcomm.ErrNotMember):
		// It left or was evicted. The notice of eviction goes to the node
		// resource, this observation ends without a word.
		return nil, "", errNotTold
	case gone(err):
		return coap.ErrorResponse(err), "", errNotTold
	case err != nil:
		return nil, "", err
	case m.Lapsed:
		return unauthorized(), "", errNotTold
	}
	return nil, m.Node, nil
}

func unauthorized() *coap.Response { return &coap.Response{Code: coap.Unauthorized} }

// ended ends the observations of a member that left (last is nil) or was
// evicted.
func (b *Bridge) ended(group, node string, last *coap.Response) {
	if node == "" {
		return
	}
	b.activity.overtake(member{group, node}, never)
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
	for _, node := range b.observers.removeGroup(group) {
		b.hub.Drop(nodeTopic(group, node), "", last)
	}
	b.controls.takeGroup(group)
	b.holds.set(group, nil)
	b.mu.Lock()
	delete(b.groups, group)
	b.mu.Unlock()
}

// expired ends the observations of a subject whose token expired, at once
// (docs/protocol.md, Section 2).
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
