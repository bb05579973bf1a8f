package proxy

import (
	"context"
	"encoding/hex"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/serve"
)

// maxProtected bounds the protected observations: one for each sleeper behind the
// edge, and some.
const maxProtected = 1 << 18

// protectedKey is an observation as the downstream client knows it.
type protectedKey struct {
	link  coap.LinkID
	token string
}

// protected is an observation that OSCORE protects end to end. The proxy cannot
// read it, so it is that of one client (RFC 8613, Section 4.1.3.5.2). What comes
// is acknowledged here; the newest waits in the mailbox of the server core until
// the client is awake (docs/protocol.md, Section 8: relayed, not confirmed).
type protected struct {
	topic string
	token string // at the upstream
	link  link
	f     *forwarded

	// Guarded by Proxy.mu.
	version uint64
	touched time.Time
	release func()
}

// observeProtected passes a registration or its end on.
func (p *Proxy) observeProtected(ctx context.Context, f *forwarded, register bool) (*coap.Response, error) {
	x, ok := coap.ExchangeOf(ctx)
	if !ok { // over no link: nobody could be notified
		return p.ask(ctx, f, nil)
	}
	done, err := p.wait()
	if err != nil {
		return nil, err
	}
	defer done()
	k := protectedKey{f.req.Peer.Link, string(x.Token)}
	p.mu.Lock()
	old := p.protected[k]
	full := len(p.protected) >= maxProtected
	p.mu.Unlock()
	if full && old == nil {
		return nil, errBusy
	}
	u, err := p.upstream(f.rule, f.target)
	if err != nil {
		return nil, err
	}
	own := *f
	own.req, own.opts = f.req.Clone(), f.opts.Clone() // they outlive the request
	o := &protected{f: &own, token: string(token()), touched: time.Now()}
	if old != nil {
		o.token, o.version, o.topic = old.token, old.version, old.topic
	} else {
		o.topic = "proxy/oscore/" + hex.EncodeToString(token())
		o.version = uint64(time.Now().UnixNano())
	}
	var first *coap.Message
	var resp *coap.Response
	value := uint32(1)
	if register {
		value = 0
	}
	req := own.request(nil)
	err = u.with(ctx, false, func(ctx context.Context, l link) error {
		o.link = l
		opts := req.Options
		opts.SetUint(coap.ObserveOption, value)
		var err error
		if first, err = l.observe(ctx, &coap.Message{Code: req.Code, Options: opts, Payload: req.Payload}, o.token, func(m *coap.Message) { p.notified(k, o, m) }); err != nil {
			l.forget(o.token)
			return err
		}
		resp, err = serve.Gather(ctx, l, req, first, maxBody)
		return err
	})
	if err == nil {
		resp, err = p.fromUpstream(resp)
	}
	if err != nil {
		p.endProtected(k, o)
		return nil, f.failure(err)
	}
	if old != nil && old.link != o.link {
		old.link.forget(old.token)
	}
	if !register || !first.Options.Has(coap.ObserveOption) {
		o.link.forget(o.token)
		p.endProtected(k, o)
		return resp, nil
	}
	p.mu.Lock()
	o.version++
	version := o.version
	if have := p.protected[k]; have == nil {
		p.metrics.relays.WithLabelValues("protected").Inc()
		u.enter()
		o.release = u.release
	} else {
		o.release = have.release
	}
	p.protected[k] = o
	p.mu.Unlock()
	out := *resp
	out.Observe = &coap.Observation{Topic: o.topic, Version: version}
	return &out, nil
}

// notified relays a notification. The goroutine that reads calls it.
func (p *Proxy) notified(k protectedKey, o *protected, m *coap.Message) {
	if b, err := m.Options.Block(coap.Block2); err == nil && (b == nil || b.Num == 0 && !b.More) {
		p.relayProtected(k, o, m)
		return
	}
	p.spawn(func() {
		ctx, cancel := context.WithTimeout(p.ctx, o.f.rule.Timeout)
		defer cancel()
		r, err := serve.Gather(ctx, o.link, o.f.request(nil), m, maxBody)
		if err != nil {
			p.deps.Log.Debug("a protected notification was lost", "target", o.f.target.String(), "err", err)
			return
		}
		if v, ok := m.Options.Get(coap.ObserveOption); ok {
			r.Options.Set(coap.ObserveOption, v)
		}
		p.relayProtected(k, o, &coap.Message{Code: r.Code, Options: r.Options, Payload: r.Payload})
	})
}

func (p *Proxy) relayProtected(k protectedKey, o *protected, m *coap.Message) {
	resp, err := p.fromUpstream(&coap.Response{Code: m.Code, Options: m.Options, Payload: m.Payload})
	if err != nil {
		return
	}
	if !m.Options.Has(coap.ObserveOption) || !m.Code.IsSuccess() {
		o.link.forget(o.token)
		p.endProtected(k, o)
		p.deps.Hub.Drop(o.topic, k.link, resp)
		return
	}
	p.mu.Lock()
	o.version++
	version := o.version
	p.mu.Unlock()
	rule := o.f.rule
	p.deps.Hub.Publish(o.topic, coap.Notification{
		Version: version, Body: resp, Confirm: true,
		Allow: func(peer coap.Peer) (*coap.Response, bool) {
			if p.admits(p.ctx, rule, peer) {
				return nil, true
			}
			return &coap.Response{Code: coap.Unauthorized}, false
		},
	})
}

// endProtected forgets an observation, unless another took its place.
func (p *Proxy) endProtected(k protectedKey, o *protected) {
	p.mu.Lock()
	have := p.protected[k]
	var release func()
	if have != nil && have.token == o.token {
		delete(p.protected, k)
		release = have.release
		p.metrics.relays.WithLabelValues("protected").Dec()
	}
	p.mu.Unlock()
	if release != nil {
		release()
	}
}

// sweepProtected ends observations whose client is gone, or whose upstream is:
// nobody but the client can make them anew, so it is told.
func (p *Proxy) sweepProtected(now time.Time) {
	type item struct {
		k protectedKey
		o *protected
	}
	var all []item
	p.mu.Lock()
	for k, o := range p.protected {
		if now.Sub(o.touched) > linger || isDone(o.link) {
			all = append(all, item{k, o})
		}
	}
	p.mu.Unlock()
	for _, x := range all {
		switch {
		case isDone(x.o.link):
			p.endProtected(x.k, x.o)
			p.deps.Hub.Drop(x.o.topic, x.k.link, coap.ErrorResponse(x.o.f.failure(errEnded)))
		case len(p.deps.Observers(x.o.topic)) == 0:
			// The next notification is rejected, which ends the observation there.
			x.o.link.forget(x.o.token)
			p.endProtected(x.k, x.o)
		}
	}
}

func isDone(l link) bool { return isClosed(l.done()) }

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}
