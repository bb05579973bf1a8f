package proxy

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// links are what the upstreams of reverse rules list in their /.well-known/core,
// as of the last time that somebody asked. Discovery never waits for them.
type links struct {
	p *Proxy

	mu  sync.Mutex
	of  map[*Rule][]coap.WebLink
	at  map[*Rule]time.Time
	now map[*Rule]bool // being asked
}

func newLinks(p *Proxy) *links {
	return &links{p: p, of: map[*Rule][]coap.WebLink{}, at: map[*Rule]time.Time{}, now: map[*Rule]bool{}}
}

// Links are the resources of the upstreams of reverse rules that a peer may use,
// at the paths where they are reached here (RFC 6690, Section 4). What an upstream
// has is asked for in the background; until it answered only the path is told.
func (p *Proxy) Links(ctx context.Context, peer coap.Peer) []coap.WebLink {
	var out []coap.WebLink
	for _, r := range p.rules {
		if len(r.Prefix) == 0 || !r.List || !p.admits(ctx, r, peer) {
			continue
		}
		out = append(out, p.links.get(r)...)
	}
	return out
}

func (l *links) get(r *Rule) []coap.WebLink {
	if a, ok := r.Upstream.addr(); ok && a.IsMulticast() {
		return []coap.WebLink{{Target: path(r.Prefix)}} // of a group nobody can say what it has
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.now[r] && time.Since(l.at[r]) > linksEvery {
		l.now[r] = true
		if !l.p.spawn(func() { l.ask(r) }) {
			l.now[r] = false
		}
	}
	if known := l.of[r]; len(known) > 0 {
		return known
	}
	return []coap.WebLink{{Target: path(r.Prefix)}}
}

func path(segments []string) string { return "/" + strings.Join(segments, "/") }

// ask reads the links of an upstream.
func (l *links) ask(r *Rule) {
	ctx, cancel := context.WithTimeout(l.p.ctx, r.Timeout)
	defer cancel()
	req := &coap.Request{Code: coap.GET, Peer: coap.Peer{Via: coap.Internal}}
	req.Options.SetPath(".well-known", "core")
	var list []coap.WebLink
	u, err := l.p.upstream(r, r.Upstream)
	if err == nil {
		var resp *coap.Response
		if resp, err = u.do(ctx, req); err == nil && resp.Code == coap.Content {
			list, err = coap.ParseLinks(resp.Payload)
		}
	}
	if err != nil {
		l.p.deps.Log.Debug("links of an upstream are not known", "target", r.Upstream.String(), "err", err)
	}
	base, here := path(r.Path), path(r.Prefix)
	if len(r.Path) == 0 {
		base = ""
	}
	var out []coap.WebLink
	for _, x := range list {
		if !strings.HasPrefix(x.Target, base+"/") && x.Target != base || !strings.HasPrefix(x.Target, "/") || strings.HasPrefix(x.Target, "/.well-known/") {
			continue // not reached through here
		}
		if slices.ContainsFunc(x.Attrs, func(a coap.LinkAttr) bool { return a.Name == "anchor" }) {
			continue // about something else
		}
		out = append(out, coap.WebLink{Target: here + strings.TrimPrefix(x.Target, base), Attrs: x.Attrs})
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now[r], l.at[r] = false, time.Now()
	if err == nil {
		l.of[r] = out
	}
}
