package delegate

import (
	"context"
	"errors"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
)

// Limits of what a legacy node sends to a group.
const (
	maxGroupBody = 1024 // bytes: one message, there are no blocks in a group request
	maxAnswers   = 256  // responses to one group request that wait to be passed on
	maxSending   = 4    // group requests of one node at one time
	sockets      = "0.0.0.0:0"
)

var (
	errNobody    = coap.Errorf(coap.Unauthorized, "not a legacy node that the gateway knows")
	errNotJoined = respondAfter(coap.ServiceUnavailable, 5, "the gateway is not in the group now")
	errTooMany   = respondAfter(coap.TooManyRequests, 1, "too many messages")
	errSilence   = coap.Errorf(coap.GatewayTimeout, "no group member answered")
	errTooLarge  = coap.Errorf(coap.RequestEntityTooLarge, "a group request has at most %d bytes", maxGroupBody)
	errNoTarget  = coap.Errorf(coap.NotFound, "neither a group nor a known member of it")
	errOnlyGroup = coap.Errorf(coap.MethodNotAllowed, "only GET")
)

// respondAfter is a refusal that says when to come again.
func respondAfter(code coap.Code, seconds uint32, text string) error {
	r := &coap.Response{Code: code}
	r.Options.SetUint(coap.MaxAge, seconds)
	return coap.Respond(r, errors.New("delegate: "+text))
}

// nodeOf is the node behind an association; nil: none.
func (r *Room) nodeOf(p coap.Peer) *legacy {
	if p.Via == coap.Plain || p.Subject == (coap.Subject{}) {
		return nil
	}
	return r.bySubject[p.Subject]
}

// Has says whether a subject is a legacy node.
func (r *Room) Has(s coap.Subject) bool { return r.bySubject[s] != nil }

// Heard notes a sign of life of a legacy node, over the association that it uses now.
// Other peers are ignored.
func (r *Room) Heard(p coap.Peer) {
	if n := r.nodeOf(p); n != nil {
		n.alive(p.Link)
	}
}

// alive notes a sign of life; link is "" where there is no association.
func (n *legacy) alive(link coap.LinkID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	quiet := n.Awake
	if n.Topic != "" {
		quiet = 0 // each message is a sign of life of its own
	}
	if n.heard.IsZero() || now.Sub(n.heard) > quiet {
		if !n.woke.IsZero() {
			n.gap = now.Sub(n.woke)
		}
		n.woke = now
	}
	n.link, n.heard = link, now
	close(n.woken)
	n.woken = make(chan struct{})
}

// Takes says whether a request is one of a legacy node that is for this room.
func (r *Room) Takes(req *coap.Request) bool {
	n := r.nodeOf(req.Peer)
	if n == nil {
		return false
	}
	if groupsPath(req) {
		return true
	}
	m, _, _ := n.target(req)
	return m != nil
}

// groupsPath says whether a request is for /gw/groups.
func groupsPath(req *coap.Request) bool {
	return !proxied(req.Options) && slices.Equal(req.Path(), []string{"gw", "groups"})
}

func proxied(o coap.Options) bool { return o.Has(coap.ProxyUri) || o.Has(coap.ProxyScheme) }

// ServeCoAP serves a request of a legacy node over its association: the state of its
// groups at /gw/groups, and what goes to a group.
func (r *Room) ServeCoAP(ctx context.Context, req *coap.Request) (*coap.Response, error) {
	n := r.nodeOf(req.Peer)
	if n == nil {
		return nil, errNobody
	}
	return r.serve(ctx, n, req)
}

// ServeInsecure serves a request that came from the address of an insecure node, on
// its interface: that is for the caller to know.
func (r *Room) ServeInsecure(ctx context.Context, from netip.AddrPort, req *coap.Request) (*coap.Response, error) {
	n := r.byAddr[from]
	if n == nil {
		r.metrics.strangers.Inc()
		return nil, errNobody
	}
	n.alive("")
	return r.serve(ctx, n, req)
}

func (r *Room) serve(ctx context.Context, n *legacy, req *coap.Request) (*coap.Response, error) {
	if !n.in.Allow() {
		r.metrics.limited.WithLabelValues("from").Inc()
		return nil, errTooMany
	}
	if groupsPath(req) {
		return n.groups(req)
	}
	req = unfolded(req)
	m, dst, path := n.target(req)
	if m == nil {
		return nil, errNoTarget
	}
	return m.send(ctx, dst, path, req)
}

// target finds the membership, destination and path that a request of the node is
// for: a path below a configured one, or a proxied request to a group's multicast
// address or to a member that was heard there. nil: it is for no group of the node.
func (n *legacy) target(req *coap.Request) (*membership, netip.AddrPort, []string) {
	none := netip.AddrPort{}
	if !proxied(req.Options) {
		path := req.Path()
		for _, m := range n.memberships {
			if k := len(m.SendPath); k > 0 && len(path) >= k && slices.Equal(path[:k], m.SendPath) && m.group.Multicast.IsValid() {
				return m, m.group.Multicast, path[k:]
			}
		}
		return nil, none, nil
	}
	dst, path, ok := proxyTarget(req)
	if !ok {
		return nil, none, nil
	}
	for _, m := range n.memberships {
		if !m.Roles.Has(groupcomm.Requester) {
			continue
		}
		if dst == m.group.Multicast {
			return m, dst, path
		}
		if _, known := m.seen.of(dst); known {
			return m, dst, path
		}
	}
	return nil, none, nil
}

// unfolded is a request with Proxy-Uri in the form with Proxy-Scheme, in whose place it
// stands and over which it goes (RFC 7252, Sections 5.10.2 and 6.4); the request itself
// where that is not a URI for a group. What the gateway's proxy reads as the address of a
// group has to be read so here as well: there it would leave in clear.
func unfolded(req *coap.Request) *coap.Request {
	raw, ok := req.Options.Get(coap.ProxyUri)
	u, err := url.Parse(string(raw))
	if !ok || err != nil || u.Opaque != "" || u.User != nil || strings.Contains(string(raw), "#") {
		return req
	}
	out := *req
	out.Options = nil
	for _, o := range req.Options {
		switch o.ID {
		case coap.ProxyUri, coap.ProxyScheme, coap.UriHost, coap.UriPort, coap.UriPath, coap.UriQuery:
		default:
			out.Options = append(out.Options, o)
		}
	}
	out.Options.AddString(coap.ProxyScheme, u.Scheme)
	out.Options.AddString(coap.UriHost, u.Hostname())
	if p := u.Port(); p != "" {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil {
			return req
		}
		out.Options.SetUint(coap.UriPort, uint32(n))
	}
	parts := func(id coap.OptionID, of []string) bool {
		for _, s := range of {
			v, err := url.PathUnescape(s) // "+" is itself
			if err != nil || id == coap.UriPath && (v == "." || v == "..") {
				return false
			}
			out.Options.AddString(id, v)
		}
		return true
	}
	var query []string
	if u.RawQuery != "" || u.ForceQuery {
		query = strings.Split(u.RawQuery, "&")
	}
	if !parts(coap.UriPath, coap.PathOf(u.EscapedPath())) || !parts(coap.UriQuery, query) {
		return req
	}
	return &out
}

// proxyTarget reads a proxied request to an IP address with coap, in either form (RFC
// 7252, Section 5.7.2).
func proxyTarget(req *coap.Request) (netip.AddrPort, []string, bool) {
	none := netip.AddrPort{}
	req = unfolded(req)
	if scheme, _ := req.Options.Get(coap.ProxyScheme); req.Options.Has(coap.ProxyUri) || !strings.EqualFold(string(scheme), "coap") {
		return none, nil, false
	}
	host, _ := req.Options.Get(coap.UriHost)
	addr, err := netip.ParseAddr(strings.Trim(string(host), "[]"))
	port, ok := req.Options.Uint(coap.UriPort)
	if !ok {
		port = defaultPort
	}
	if err != nil || port == 0 || port > 65535 {
		return none, nil, false
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(port)), req.Path(), true
}

const defaultPort = 5683

// forGroup are the options of a legacy node's request that members get.
var forGroup = []coap.OptionID{coap.IfMatch, coap.IfNoneMatch, coap.ETag, coap.UriQuery, coap.ContentFormatOption, coap.Accept}

// send protects a request of the node, under its own Sender ID, and passes the
// responses on that verify: the first that comes is the answer, the others follow it.
//
// draft-ietf-core-oscore-groupcomm-28, Sections 7.1 and 8.3.
func (m *membership) send(ctx context.Context, dst netip.AddrPort, path []string, req *coap.Request) (*coap.Response, error) {
	if len(req.Payload) > maxGroupBody {
		return nil, errTooLarge
	}
	l := m.current()
	if l == nil {
		return nil, errNotJoined
	}
	select {
	case m.sending <- struct{}{}:
	default:
		m.r.metrics.limited.WithLabelValues("from").Inc()
		return nil, errTooMany
	}
	free := func() { <-m.sending }
	var to *groupcomm.SenderID
	if !dst.Addr().IsMulticast() && l.traffic.Group().HasPairwise() {
		if kid, ok := m.seen.of(dst); ok {
			to = &kid
		}
	}
	out := &coap.Message{Code: req.Code, Payload: slices.Clone(req.Payload)}
	out.Options.SetPath(path...)
	for _, o := range req.Options {
		if slices.Contains(forGroup, o.ID) {
			out.Options.Add(o.ID, slices.Clone(o.Value))
		}
	}
	client, err := node.DialGroup(ctx, l.traffic, sockets, m.group.Interface)
	if err != nil {
		free()
		return nil, err
	}
	m.count("request", "out", to != nil)
	// It outlives the handler: more responses may follow the first.
	run, stop := context.WithTimeout(m.r.stopped, m.group.Collect+stepTimeout)
	answers, sent := make(chan *coap.Response, maxAnswers), make(chan error, 1)
	go func() {
		defer free()
		defer stop()
		defer func() { _ = client.Close() }()
		defer close(answers)
		sent <- client.Send(run, dst, to, out, m.group.Collect, func(a node.Answer) {
			if a.Err != nil {
				m.r.metrics.dropped.WithLabelValues("response").Inc()
				m.log.Debug("response of the group dropped", "from", a.From, "err", a.Err)
				return
			}
			m.seen.note(a.From, a.Who.KID)
			m.count("response", "in", false)
			select {
			case answers <- passedOn(a.Message):
			default:
				m.r.metrics.dropped.WithLabelValues("response").Inc()
			}
		})
	}()
	coap.Waiting(ctx)
	select {
	case first, ok := <-answers:
		if !ok {
			if err := <-sent; err != nil && ctx.Err() == nil {
				m.log.Info("request to the group failed", "err", err)
				return nil, errNotJoined
			}
			return nil, errSilence
		}
		if dst.Addr().IsMulticast() {
			first.More = func(ctx context.Context, send func(*coap.Response) error) error {
				return relay(ctx, answers, stop, send)
			}
		}
		return first, nil
	case <-ctx.Done():
		stop()
		return nil, ctx.Err()
	}
}

// relay passes further responses on until the time for them is over.
func relay(ctx context.Context, answers <-chan *coap.Response, stop func(), send func(*coap.Response) error) error {
	for {
		select {
		case r, ok := <-answers:
			if !ok {
				return nil
			}
			if err := send(r); err != nil {
				stop()
				return err
			}
		case <-ctx.Done():
			stop()
			return ctx.Err()
		}
	}
}

// fromGroup are the options of a response that a legacy node gets.
var fromGroup = []coap.OptionID{coap.ETag, coap.ContentFormatOption, coap.MaxAge, coap.LocationPath, coap.LocationQuery, coap.Size2}

func passedOn(m *coap.Message) *coap.Response {
	r := &coap.Response{Code: m.Code, Payload: slices.Clone(m.Payload)}
	for _, o := range m.Options {
		if slices.Contains(fromGroup, o.ID) {
			r.Options.Add(o.ID, slices.Clone(o.Value))
		}
	}
	return r
}

// current is the membership as it is now; nil: there is none.
func (m *membership) current() *live {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.live
}
