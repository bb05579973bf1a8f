package proxy

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/serve"
)

// legTime is by how much the time in which responses are wanted gets shorter on the
// way to the next proxy: what a round trip between two of them, or to the client,
// may take (draft-ietf-core-groupcomm-proxy-07, Section 8.1). The unit of the option
// is a second.
const legTime = 2 * time.Second

// maxHopResponses bounds the responses of the next proxy that wait to be relayed.
const maxHopResponses = 256

// hop is the next proxy on the way to a group, which answers for its members.
type hop struct {
	u     *upstream
	l     link
	token string
	opts  coap.Options // of the request
	mute  bool         // nobody waits for responses
	came  chan *coap.Message
	over  chan struct{} // closed when there is no first response to wait for
	err   error         // why; set before over is closed
	stop  context.CancelFunc
}

// tooShort is 5.05 with the least time that would do, in seconds.
func tooShort(least uint32) error {
	r := &coap.Response{Code: coap.ProxyingNotSupported, Payload: []byte("the way to the group takes more time than that")}
	r.Options.SetUint(MulticastTimeout, least)
	return coap.Respond(r, nil)
}

// openHop sends the request to the next proxy, for wanted less a leg.
func (g *asked) openHop(ctx context.Context, wanted time.Duration) error {
	rule := g.f.rule
	u, err := g.p.upstream(rule, rule.Next)
	if err != nil {
		return err
	}
	u.enter()
	if err := u.admit(); err != nil {
		u.release()
		return err
	}
	began := time.Now()
	patience := g.p.patience
	if wanted > 0 {
		patience = min(patience, (wanted-legTime)/2)
	}
	// A request to a group is sent once, whatever its method: many servers get it.
	dialed, cancel := context.WithTimeout(ctx, rule.Timeout)
	l, err := u.alive(dialed, patience, 0)
	cancel()
	if err != nil {
		u.learn(err, false)
		u.release()
		return err
	}
	left := max(0, (wanted-legTime)/time.Second-time.Since(began)/time.Second) // less than a second is part of legTime
	if left == 0 && wanted > 0 {
		u.learn(nil, false)
		u.release()
		return g.f.failure(errSilent) // the next request finds the association made
	}
	h := &hop{u: u, l: l, token: string(token()), mute: wanted == 0, came: make(chan *coap.Message, maxHopResponses), over: make(chan struct{})}
	host := g.f.target.Host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	h.opts = without(g.f.opts, coap.UriHost, coap.UriPort)
	h.opts.AddString(coap.ProxyScheme, g.f.target.Scheme)
	h.opts.AddString(coap.UriHost, host)
	h.opts.SetUint(coap.UriPort, uint32(g.f.target.Port))
	h.opts.SetUint(MulticastTimeout, uint32(left))
	var until context.Context
	until, h.stop = context.WithTimeout(g.p.ctx, max(wanted, 2*ackTimeout)) // of the first response
	if !g.p.spawn(func() { h.ask(until, g) }) {
		h.stop()
		u.release()
		return errClosing
	}
	g.hop = h
	return nil
}

// ask sends the request and waits for the first response.
func (h *hop) ask(ctx context.Context, g *asked) {
	opts := h.opts
	if g.observe {
		opts.SetUint(coap.ObserveOption, 0)
	}
	took := func(m *coap.Message) {
		select {
		case h.came <- m:
		default: // the client takes them more slowly than members answer
		}
	}
	m, err := h.l.observe(ctx, &coap.Message{Code: g.f.req.Code, Options: opts, Payload: g.f.req.Payload}, h.token, took)
	if h.mute {
		h.l.forget(h.token)
		h.u.release()
	}
	if err == nil {
		took(m)
		h.u.learn(nil, false)
		return
	}
	if tcp := strings.HasSuffix(h.u.key.target.Scheme, "+tcp"); tcp && errors.Is(err, errSilent) {
		err = context.DeadlineExceeded // nothing acknowledges there
	}
	if errors.Is(err, errSilent) && h.u.key.target.secure() || errors.Is(err, errEnded) || errors.Is(err, errGone) {
		h.u.drop(h.l)
	}
	h.u.learn(err, !errors.Is(err, errSilent) && ctx.Err() != nil) // that no member answers says nothing about the proxy
	h.err = err
	close(h.over)
}

// end gives up what is still to come, and tells the next proxy so: with an Early Stop
// Request, which has the token of the request, and by rejecting what comes with it
// (Section 8.1.2).
func (h *hop) end(p *Proxy) {
	if h.mute {
		return // it goes by itself
	}
	h.stop()
	early := &coap.Message{Code: coap.GET}
	early.Options.SetUint(MulticastTimeout, 0)
	if !p.spawn(func() {
		defer h.u.release()
		ctx, cancel := context.WithTimeout(p.ctx, 2*ackTimeout)
		defer cancel()
		_, _ = h.l.observe(ctx, early, h.token, nil) // acknowledged, and no response comes
		h.l.forget(h.token)
	}) {
		h.l.forget(h.token)
		h.u.release()
	}
}

// nextOfHop waits for the next response of the next proxy.
func (g *asked) nextOfHop(ctx context.Context) (*coap.Response, error) {
	h := g.hop
	var late <-chan time.Time
	if !g.lasting {
		timer := time.NewTimer(time.Until(g.end))
		defer timer.Stop()
		late = timer.C
	}
	for {
		select {
		case m := <-h.came:
			r, err := g.ofHop(ctx, m)
			if r != nil || err != nil {
				return r, err
			}
		case <-h.over:
			if errors.Is(h.err, context.Canceled) || errors.Is(h.err, context.DeadlineExceeded) {
				return nil, errSilent
			}
			return nil, g.f.failure(h.err)
		case <-h.l.done():
			// Whoever observes has to ask again: only the client knows whether it wants to.
			return nil, g.f.failure(errEnded)
		case <-late:
			return nil, errSilent
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// ofHop is a response to be relayed; nil: it is not. Who it is from the last proxy
// said (Section 8.2: Reply-From must not be altered).
func (g *asked) ofHop(ctx context.Context, m *coap.Message) (*coap.Response, error) {
	number, observed := m.Options.Uint(coap.ObserveOption)
	observed = observed && g.observe && m.Code.IsSuccess()
	if time.Now().After(g.end) && !observed && !g.lasting {
		return nil, nil
	}
	r := &coap.Response{Code: m.Code, Options: m.Options, Payload: m.Payload}
	if b, err := m.Options.Block(coap.Block2); err != nil || b != nil && b.More {
		part, cancel := context.WithTimeout(ctx, g.f.rule.Timeout)
		defer cancel()
		if r, err = serve.Gather(part, g.hop.l, &coap.Request{Code: g.f.req.Code, Options: g.hop.opts, Payload: g.f.req.Payload}, m, maxBody); err != nil {
			return nil, nil
		}
	}
	if !r.Options.Has(replyFrom) {
		// The proxy speaks for itself.
		if r.Code == coap.ProxyingNotSupported {
			if least, ok := r.Options.Uint(MulticastTimeout); ok && least < 1<<31 {
				return nil, tooShort(least + uint32(legTime/time.Second))
			}
		}
		if r.Code.Class() == 5 {
			out, err := g.p.fromUpstream(r)
			if err != nil {
				return nil, g.f.failure(err)
			}
			return nil, coap.Respond(out, fmt.Errorf("proxy: the next proxy answers %v", r.Code))
		}
		return nil, badGateway(fmt.Errorf("%s: the next proxy to the group answers %v", g.f.shown(), r.Code))
	}
	out, err := g.p.fromUpstream(r)
	if err != nil {
		return nil, nil
	}
	out.Options.Remove(MulticastTimeout)
	if observed {
		out.Options.SetUint(coap.ObserveOption, number)
		g.lasting = true
	}
	g.p.metrics.responses.Inc()
	return out, nil
}
