package delegate

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/serve"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/oscore"
)

// Limits of what the group asks of a legacy node.
const (
	askTimeout  = 20 * time.Second // one request to the node
	maxHeld     = 8                // requests that wait for one node
	maxNodeBody = 64 << 10         // bytes of its response, and of what members send it
	nodeBlock   = 512              // RFC 7959: what group members get at once, so that it fits with its protection
	restartWait = 30               // seconds until the next try at a node that is not there
)

var (
	errNoResource = coap.Errorf(coap.NotFound, "")
	errMethod     = coap.Errorf(coap.MethodNotAllowed, "")
	errNoAnswer   = coap.Errorf(coap.GatewayTimeout, "the node did not answer")
	errBusy       = respondAfter(coap.ServiceUnavailable, 5, "the node has more requests waiting than it can take")
	errQuiet      = errors.New("delegate: nothing to answer to multicast")
)

// incoming is the key of the request's origin in its context.
type incoming struct{}

// listen opens the sockets on which group members reach the node; nil when nothing of
// it may be asked for.
func (m *membership) listen(ctx context.Context, traffic *node.Traffic) (*groupSide, error) {
	if len(m.Resources) == 0 {
		return nil, nil
	}
	rest, err := m.leftBehind(ctx)
	if err != nil {
		return nil, err
	}
	core := serve.New(coap.HandlerFunc(m.asked), serve.Config{
		BlockSize: nodeBlock, MaxBody: maxNodeBody, PerPeerRPS: m.node.RPS, MaxPeerRequests: maxHeld, Log: m.log,
		Link: func(coap.LinkID) coap.Link { return nil }, // members are asked nothing here: who is quiet is forgotten
	})
	server, err := node.ListenGroup(ctx, node.GroupServerConfig{
		Traffic: traffic, Listen: m.Listen, Multicast: m.group.Multicast, Interface: m.group.Interface, Leisure: m.group.Leisure,
		OnServed: m.served,
		Answer: func(ctx context.Context, in *node.Incoming) *coap.Message {
			m.seen.note(in.From, in.Exchange.Sender())
			mode := in.Exchange.Mode() == oscore.PairwiseMode
			m.count("request", "in", mode)
			link := memberLink{in}
			resp := core.Handle(context.WithValue(ctx, incoming{}, in), link, in.Request)
			// RFC 7252, Section 8.2: an error is no answer to multicast.
			if resp == nil || in.Multicast && !resp.Code.IsSuccess() {
				return nil
			}
			m.count("response", "out", mode)
			return resp
		},
	})
	if err != nil {
		return nil, err
	}
	return &groupSide{server, core, m, rest}, nil
}

// groupSide is where group members reach the node.
type groupSide struct {
	*node.GroupServer
	core *serve.Server
	of   *membership
	left []left
}

// run serves until ctx ends.
func (s *groupSide) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.core.Run(ctx) })
	g.Go(func() error { return s.GroupServer.Run(ctx) })
	for _, l := range s.left {
		g.Go(func() error { s.of.answerLeft(ctx, s.GroupServer, l); return nil })
	}
	return g.Wait()
}

// memberLink is a group member as the server core sees it, named by its Sender ID and the
// Gid: under another Gid the Sender ID may be somebody else's, whose blocks must not go on
// with a body of the one before.
type memberLink struct{ in *node.Incoming }

// Peer names the member.
func (l memberLink) Peer() coap.Peer {
	x := l.in.Exchange
	return coap.Peer{Link: coap.LinkID("member-" + hex.EncodeToString(x.Gid()) + "-" + hex.EncodeToString(x.Sender())), Addr: l.in.From, Via: coap.OSCORE}
}

// Send has nothing to carry: nothing here is observed.
func (memberLink) Send(_ *coap.Message, done func(error)) { done(coap.ErrGone) }

// served notes requests that were not read, or not answered.
func (m *membership) served(s node.Served) {
	switch {
	case s.Err == nil:
	case errors.Is(s.Err, oscore.ErrNotFresh):
		m.r.metrics.challenged.Inc()
	default:
		m.r.metrics.dropped.WithLabelValues("request").Inc()
		m.log.Debug("request of the group dropped", "from", s.From, "err", s.Err)
	}
}

// forNode are the options of a group request that the legacy node gets.
var forNode = forGroup

// asked serves a request of a group member: only what is configured of the node.
func (m *membership) asked(ctx context.Context, req *coap.Request) (*coap.Response, error) {
	in := ctx.Value(incoming{}).(*node.Incoming)
	methods, ok := m.Resources["/"+strings.Join(req.Path(), "/")]
	switch {
	case !ok:
		m.r.metrics.refused.WithLabelValues("path").Inc()
		return nil, errNoResource
	case !slices.Contains(methods, req.Code):
		m.r.metrics.refused.WithLabelValues("method").Inc()
		return nil, errMethod
	}
	out := &coap.Request{Code: req.Code, Payload: req.Payload}
	out.Options.SetPath(req.Path()...)
	for _, o := range req.Options {
		if slices.Contains(forNode, o.ID) {
			out.Options.Add(o.ID, o.Value)
		}
	}
	resp, err := m.node.ask(ctx, m, in, out)
	if err != nil {
		return nil, err
	}
	clean := &coap.Response{Code: resp.Code, Payload: resp.Payload}
	for _, o := range resp.Options {
		if slices.Contains(fromGroup, o.ID) {
			clean.Options.Add(o.ID, o.Value)
		}
	}
	return clean, nil
}

// ask brings a request to the node: at once, or when it wakes within the time that a
// request is held. The request was verified, and its number committed to the Replay
// Window, before it came here, so it cannot be replayed after a restart; what is held is
// answered then.
func (n *legacy) ask(ctx context.Context, m *membership, in *node.Incoming, req *coap.Request) (*coap.Response, error) {
	r := m.r
	if n.Topic != "" {
		return n.lastReading()
	}
	if !n.out.Allow() {
		r.metrics.limited.WithLabelValues("to").Inc()
		return nil, errTooMany
	}
	select {
	case n.held <- struct{}{}:
		defer func() { <-n.held }()
	default:
		return nil, errBusy
	}
	hold := time.NewTimer(n.Hold)
	defer hold.Stop()
	var kept *held
	for {
		link, woken, here := n.reachable()
		if here {
			if kept != nil {
				if err := kept.asking(ctx); err != nil {
					m.note(err)
					return nil, n.later()
				}
			}
			resp, err := n.do(ctx, r, link, req)
			if err == nil {
				n.alive(link)
				return resp, nil
			}
			if !n.Sleepy || !errors.Is(err, coap.ErrTimeout) && !errors.Is(err, coap.ErrGone) && !errors.Is(err, context.DeadlineExceeded) {
				n.log.Info("the node did not answer a request of the group", "err", err)
				if errors.Is(err, coap.ErrGone) {
					return nil, n.later()
				}
				return nil, errNoAnswer
			}
			n.slept(link)
		}
		if in.Multicast {
			return nil, errQuiet
		}
		if kept == nil {
			var err error
			if kept, err = m.hold(ctx, in); err != nil {
				m.note(err)
				return nil, n.later() // what would be lost with a crash does not wait
			}
			in.Settled = func() {
				if err := kept.over(); err != nil {
					m.note(err)
				}
			}
		}
		// RFC 7252, Section 5.2.2: the client need not send again meanwhile.
		in.Acknowledge()
		select {
		case <-ctx.Done():
			return nil, n.later() // the gateway ends: what is held does not outlive it
		case <-hold.C:
			r.metrics.asleep.Inc()
			return nil, n.later()
		case <-woken:
		}
	}
}

// do asks the node over its association, or at its address.
func (n *legacy) do(ctx context.Context, r *Room, link coap.LinkID, req *coap.Request) (*coap.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if !n.Insecure.IsValid() {
		return r.hub.Do(ctx, link, req)
	}
	t, err := n.dialPlain(ctx)
	if err != nil {
		return nil, err
	}
	resp, err := t.Do(ctx, req)
	if errors.Is(err, node.ErrLost) {
		return nil, errors.Join(err, coap.ErrTimeout)
	}
	return resp, err
}

// dialPlain opens the socket to an insecure node.
func (n *legacy) dialPlain(ctx context.Context) (node.Transport, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.plain == nil {
		t, err := node.DialUDP(ctx, n.Insecure.String())
		if err != nil {
			return nil, err
		}
		n.plain = t
	}
	return n.plain, nil
}

// hangUp closes the socket to an insecure node.
func (n *legacy) hangUp() {
	n.mu.Lock()
	t := n.plain
	n.plain = nil
	n.mu.Unlock()
	if t != nil {
		_ = t.Close()
	}
}

// reachable says whether the node can be asked now, over which association, and what
// is closed when it is heard next.
func (n *legacy) reachable() (coap.LinkID, <-chan struct{}, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.Sleepy && (n.heard.IsZero() || time.Since(n.heard) > n.Awake):
		return "", n.woken, false
	case n.Insecure.IsValid():
		return "", n.woken, true
	}
	return n.link, n.woken, n.link != ""
}

// slept notes that a node which should be awake did not answer.
func (n *legacy) slept(link coap.LinkID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.link == link && time.Since(n.heard) <= n.Awake {
		n.heard = n.heard.Add(-n.Awake)
	}
}

// later is 5.03 that says when the node may be there (RFC 7252, Section 5.9.3.4).
func (n *legacy) later() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	wait := uint32(restartWait)
	if n.gap > 0 {
		wait = uint32(min(max(time.Until(n.woke.Add(n.gap)).Seconds(), 1), 3600))
	}
	return respondAfter(coap.ServiceUnavailable, wait, "the node is asleep")
}

// reading is the newest message of a sensor that speaks MQTT only.
type reading struct {
	at      time.Time
	payload []byte
}

// maxReading bounds what a topic may say.
const maxReading = 4096

// Reading takes a message on the topic of a node.
func (r *Room) Reading(topic string, payload []byte) {
	n := r.byTopic[topic]
	switch {
	case n == nil:
		r.metrics.strangers.Inc()
		return
	case len(payload) > maxReading:
		r.metrics.dropped.WithLabelValues("reading").Inc()
		n.tooLarge(len(payload))
		return
	}
	if !n.in.Allow() {
		r.metrics.limited.WithLabelValues("from").Inc()
		return
	}
	n.alive("")
	n.mu.Lock()
	defer n.mu.Unlock()
	n.value = &reading{time.Now(), bytes.Clone(payload)}
}

// tooLarge tells of a message that is not taken: members read an older one meanwhile.
func (n *legacy) tooLarge(size int) {
	n.mu.Lock()
	count := n.large.Event(time.Now())
	n.mu.Unlock()
	if count > 0 {
		n.log.Warn("a message of the sensor is too large, group members read the one before", "n", count, "bytes", size, "most", maxReading)
	}
}

// Topics are those of all nodes that speak MQTT only.
func (r *Room) Topics() []string {
	var out []string
	for _, n := range r.nodes {
		if n.Topic != "" {
			out = append(out, n.Topic)
		}
	}
	return out
}

// lastReading answers with the newest message. It is fresh until the next is due.
func (n *legacy) lastReading() (*coap.Response, error) {
	n.mu.Lock()
	v, gap := n.value, n.gap
	n.mu.Unlock()
	if v == nil {
		return nil, n.later()
	}
	r := &coap.Response{Code: coap.Content, Payload: v.payload}
	left := time.Duration(0)
	if gap > 0 {
		left = max(0, time.Until(v.at.Add(gap)))
	}
	r.Options.SetUint(coap.MaxAge, uint32(left/time.Second))
	return r, nil
}
