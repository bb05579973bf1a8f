package bridge

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// A member may give a control_uri (RFC 9594, Section 4.3.1): a resource of its
// own, at which it takes rekeys by POST and the notice of its eviction by DELETE
// (Sections 6.1 and 4.8). Requests go over the association that the member last
// used, never to an address (docs/protocol.md, Section 3).

// control is what is known of a member's control_uri.
type control struct {
	peer coap.Peer // without exporter
	uri  string    // "": it gave none
}

// controls remembers over which association members can be reached: those with a
// control_uri. A restart forgets it until the member's next request. The zero
// value is ready.
type controls struct {
	mu    sync.Mutex
	known map[string]map[string]control // by group and node
}

func (c *controls) note(m member, p coap.Peer, uri string) {
	p.Exporter = nil
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil {
		c.known = map[string]map[string]control{}
	}
	if c.known[m.group] == nil {
		c.known[m.group] = map[string]control{}
	}
	c.known[m.group][m.node] = control{p, uri}
}

// get returns what is known of a member.
func (c *controls) get(m member) (control, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.known[m.group][m.node]
	return v, ok
}

// move notes that a member with a control_uri was heard over p.
func (c *controls) move(m member, p coap.Peer) (control, bool) {
	p.Exporter = nil
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.known[m.group][m.node]
	if ok {
		v.peer = p
		c.known[m.group][m.node] = v
	}
	return v, ok
}

// take forgets a member and returns what was known.
func (c *controls) take(m member) (control, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.known[m.group][m.node]
	delete(c.known[m.group], m.node)
	return v, ok
}

func (c *controls) takeGroup(group string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.known, group)
}

// of lists the members of a group that can be asked.
func (c *controls) of(group string) map[string]control {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[string]control, len(c.known[group]))
	for node, v := range c.known[group] {
		out[node] = v
	}
	return out
}

// Joined notes the sign of life of a node that was let into a group.
func (b *Bridge) Joined(group, node string) {
	b.activity.heard(member{group, node}, "", time.Now())
}

// Reached records over which association a member was heard, and its
// control_uri. One that observes is remembered for the end of its observations.
func (b *Bridge) Reached(group, node string, p coap.Peer, controlURI string, observing bool) {
	m := member{group, node}
	b.activity.belongs(p.Subject, m)
	if controlURI == "" && !observing {
		return
	}
	b.lease(m, observing, func() {
		if controlURI != "" {
			b.controls.note(m, p, controlURI)
		}
		if observing {
			b.observers.register(p.Link, m, p.Subject)
		}
	})
}

// defaultControl is the last segment of the path that stands for none
// (RFC 9594, Section 4.3.1).
const defaultControl = "node"

// controlRequest makes a request to a control_uri: of the URI only path and
// query are used.
func controlRequest(code coap.Code, group, uri string) (*coap.Request, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return nil, fmt.Errorf("control_uri: %w", err)
	}
	path := []string{"ace-group", group, defaultControl}
	if p := strings.TrimPrefix(u.EscapedPath(), "/"); p != "" {
		path = strings.Split(p, "/")
		for i, segment := range path {
			if path[i], err = url.PathUnescape(segment); err != nil {
				return nil, fmt.Errorf("control_uri: %w", err)
			}
		}
	}
	req := &coap.Request{Code: code}
	req.Options.SetPath(path...)
	if u.RawQuery != "" {
		for _, q := range strings.Split(u.RawQuery, "&") {
			plain, err := url.QueryUnescape(q)
			if err != nil {
				return nil, fmt.Errorf("control_uri: %w", err)
			}
			req.Options.AddString(coap.UriQuery, plain)
		}
	}
	return req, nil
}

// watched says whether somebody observes a topic. A hub that cannot tell has
// observers.
func (b *Bridge) watched(topic string, link coap.LinkID) bool {
	o, ok := b.hub.(interface{ Observers(string) []coap.LinkID })
	if !ok {
		return true
	}
	for _, id := range o.Observers(topic) {
		if link == "" || id == link {
			return true
		}
	}
	return false
}

// evictedMember tells a member of its eviction, by exactly one way: 4.04 to the
// observation of its node resource, or DELETE to its control_uri
// (draft-ietf-ace-key-groupcomm-oscore-21, Section 10).
func (b *Bridge) evictedMember(group, node string) {
	m := member{group, node}
	c, reachable := b.controls.take(m)
	ask := reachable && !b.watched(nodeTopic(group, node), "")
	b.ended(group, node, evicted())
	if !ask {
		return
	}
	b.calls.add(func(ctx context.Context) { b.callNotice(ctx, m, c, "delete", coap.DELETE, nil) })
}

// callNotice tells a member that its membership is over.
func (b *Bridge) callNotice(ctx context.Context, m member, c control, kind string, code coap.Code, body []byte) {
	req, err := controlRequest(code, m.group, c.uri)
	if err == nil {
		if body != nil {
			req.Options.SetContentFormat(coap.ACEGroupcomm)
			req.Payload = body
		}
		err = b.call(ctx, c, req)
	}
	outcome := "acknowledged"
	if err != nil {
		outcome = "failed"
		b.log.InfoContext(ctx, "the notice of the end of a membership reached nobody", "kind", kind, "group", m.group, "node", m.node, "err", err)
	}
	b.met.control.WithLabelValues(kind, outcome).Inc()
}

// callDeleted tells the members of a group that was deleted, if they gave a
// control_uri and do not observe: observers get 4.04 with error 6.
func (b *Bridge) callDeleted(group string) {
	for node, c := range b.controls.of(group) {
		b.activity.overtake(member{group, node}, never)
		if b.watched(groupTopic(group), c.peer.Link) || b.watched(nodeTopic(group, node), "") {
			continue
		}
		m := member{group, node}
		b.calls.add(func(ctx context.Context) {
			if p, ok := b.hub.(pacer); ok && p.Pace(ctx, groupTopic(group), c.peer) != nil {
				return
			}
			b.callNotice(ctx, m, c, "deleted", coap.POST, groupcomm.EncodeDeletionNotice())
		})
	}
}

// callRekeys hands the rekey of a group to the members that gave a control_uri
// and do not observe the group (RFC 9594, Section 6.1). What they are told of an older
// version is given up, whether or not they are to be told now.
func (b *Bridge) callRekeys(group string, version uint64) {
	for node, c := range b.controls.of(group) {
		m := member{group, node}
		b.activity.overtake(m, version)
		b.callOne(m, c)
	}
}

// callOne hands it to one of them, unless it waits for its turn.
func (b *Bridge) callOne(m member, c control) {
	observes := b.watched(groupTopic(m.group), c.peer.Link) || b.watched(groupcomm.PhasedTopic(m.group), c.peer.Link)
	if _, held := b.held(m); held || observes && b.activity.wants(m, channelObserve) {
		return
	}
	b.calls.add(func(ctx context.Context) {
		if p, ok := b.hub.(pacer); ok && p.Pace(ctx, groupTopic(m.group), c.peer) != nil {
			return
		}
		b.callRekey(ctx, m, c)
	})
}

// pacer is the optional part of a hub with a budget for what is sent unasked.
type pacer interface {
	// Pace waits for the turn of one of many requests about a topic.
	Pace(ctx context.Context, topic string, p coap.Peer) error
}

// callRekey sends the newest rekey message, whatever version it was called for.
// The member's 2.xx says that it has it.
func (b *Bridge) callRekey(ctx context.Context, m member, c control) {
	if _, held := b.held(m); held || !b.activity.wants(m, channelControl) {
		return // its turn comes
	}
	if t := b.activity.of(m); t.asleep(time.Now()) {
		b.activity.change(m, func(t *trace) { t.owed = true })
		b.tryLater(m)
		return
	}
	if _, node, err := b.allow(ctx, nil, nil, m.group, c.peer); err != nil || node != m.node {
		return // no member any more, or without a token: it gets no newer key
	}
	version, body, err := b.source.RekeyMessage(ctx, m.group)
	if err != nil || body == nil {
		return // the group is gone, or was never rekeyed
	}
	begins := b.holds.begins(m, version) && !b.holds.dormant(m, version, time.Now())
	if b.activity.holds(m, version) && !begins {
		return // another channel was quicker
	}
	if body, err = b.phaseBody(m, version, body); err != nil {
		b.log.ErrorContext(ctx, "cannot tell a member in two phases", "group", m.group, "node", m.node, "err", err)
		return
	}
	req, err := controlRequest(coap.POST, m.group, c.uri)
	if err == nil {
		req.Options.SetContentFormat(coap.ACEGroupcomm)
		req.Payload = body
		once, giveUp := context.WithCancelCause(ctx)
		defer giveUp(nil)
		own := &call{version: version, begins: begins, link: c.peer.Link, giveUp: giveUp}
		if !b.activity.calling(m, own) {
			return // that, or what is newer, is under way
		}
		b.met.sent(channelControl, len(body))
		err = b.call(once, c, req)
		b.activity.called(m, own)
		if why := context.Cause(once); err != nil && ctx.Err() == nil && why != nil {
			if errors.Is(why, errOvertaken) {
				b.met.control.WithLabelValues("rekey", "overtaken").Inc()
			}
			return // nobody waits for this any more
		}
	}
	if err != nil {
		b.met.control.WithLabelValues("rekey", "failed").Inc()
		if ctx.Err() == nil {
			b.failed(m, channelControl, err)
		}
		return
	}
	b.met.control.WithLabelValues("rekey", "acknowledged").Inc()
	b.confirm(m, version, channelControl, nil)
}

// errRefused says that a member does not take what it was sent.
var errRefused = errors.New("bridge: the member refused")

// call sends a request to a member and wants a 2.xx.
func (b *Bridge) call(ctx context.Context, c control, req *coap.Request) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := b.hub.Do(ctx, c.peer.Link, req)
	if err != nil {
		return err
	}
	if !resp.Code.IsSuccess() {
		return fmt.Errorf("%w: %v", errRefused, resp.Code)
	}
	return nil
}

// Limits of requests to members: our own.
const (
	callTimeout = 93 * time.Second // MAX_TRANSMIT_WAIT of RFC 7252, Section 4.8.2
	callsAtOnce = 1024             // each waits that long when nobody answers
)

// calls are requests to members that wait for their turn, in order. It is
// bounded by the number of memberships that end or are rekeyed.
type calls struct {
	wake chan struct{} // one slot

	mu    sync.Mutex
	queue []func(context.Context)
}

func newCalls() *calls { return &calls{wake: make(chan struct{}, 1)} }

func (c *calls) add(f func(context.Context)) {
	c.mu.Lock()
	c.queue = append(c.queue, f)
	c.mu.Unlock()
	signal(c.wake)
}

func (c *calls) take() []func(context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.queue
	c.queue = nil
	return out
}

// run works until ctx ends, and waits for what is under way then.
func (c *calls) run(ctx context.Context) error {
	var g errgroup.Group
	g.SetLimit(callsAtOnce)
	defer g.Wait() //nolint:errcheck // no call returns an error
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.wake:
		}
		for _, f := range c.take() {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			g.Go(func() error { f(ctx); return nil })
		}
	}
}
