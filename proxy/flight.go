package proxy

import (
	"context"
	"errors"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// flight is a request at an upstream for which others wait that asked the same.
type flight struct {
	resource resourceKey
	hops     byte
	done     chan struct{} // closed when the rest is set
	resp     *coap.Response
	err      error
	shared   bool // it may serve those who waited
	dirty    bool // the resource was changed meanwhile; guarded by Proxy.mu
}

// fetch answers a GET or FETCH from the cache, or with others who ask the same,
// or on its own.
func (p *Proxy) fetch(ctx context.Context, f *forwarded) (*coap.Response, error) {
	now := time.Now()
	e, fresh, found := p.cache.get(f.key, now)
	if fresh && !f.req.Options.Has(coap.Echo) {
		p.metrics.cache.WithLabelValues("hit").Inc()
		out := *e.resp
		setMaxAge(&out, e.until.Sub(now))
		return represent(&out, f.req.Options), nil
	}
	p.metrics.cache.WithLabelValues("miss").Inc()
	tags := f.req.Options.Values(coap.ETag)
	if !found && len(tags) > 0 || f.req.Options.Has(coap.Echo) {
		// The client has a representation that we lack: what comes back may be
		// good for it alone.
		return p.fetchAlone(ctx, f, nil)
	}
	done, err := p.wait()
	if err != nil {
		return nil, err
	}
	defer done()
	fl, first, err := p.join(f)
	switch {
	case err != nil:
		return nil, err
	case fl == nil:
		return p.fetchAlone(ctx, f, e.etag)
	case first:
		p.fly(ctx, f, e.etag, fl)
	default:
		coap.Waiting(ctx)
		select {
		case <-fl.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if fl.err == nil && !fl.shared && !first {
		// It must not be used again, not even by who asked a moment later.
		return p.fetchAlone(ctx, f, e.etag)
	}
	if fl.err != nil {
		return nil, fl.err
	}
	return represent(fl.resp, f.req.Options), nil
}

// join finds the flight for a request, or makes one for this client to fly:
// first. One that came with fewer hops than the flight left with may be the flight
// itself, come back in a loop: it must not wait for itself, and gets nil.
func (p *Proxy) join(f *forwarded) (fl *flight, first bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if fl := p.flights[f.key]; fl != nil {
		if f.hops < fl.hops {
			return nil, false, nil
		}
		return fl, false, nil
	}
	if p.closing {
		return nil, false, errClosing
	}
	fl = &flight{resource: f.resource, hops: f.hops, done: make(chan struct{}), err: errClosing}
	p.flights[f.key] = fl
	p.work.Add(1)
	return fl, true, nil
}

// fly asks the upstream for all who wait, and so goes on when the client that
// asked first is gone. It is that client's goroutine nevertheless: waking another
// one, and being woken by it, takes as long as all the rest.
func (p *Proxy) fly(ctx context.Context, f *forwarded, etag []byte, fl *flight) {
	defer p.work.Done()
	defer func() {
		p.mu.Lock()
		delete(p.flights, f.key)
		p.mu.Unlock()
		close(fl.done)
	}()
	fl.resp, fl.err = p.fetchFlight(coap.WithWaiter(p.ctx, ctx), f, etag, fl)
	fl.shared = fl.err != nil || cacheable(fl.resp) > 0
}

// fetchFlight asks the upstream, and keeps what comes.
func (p *Proxy) fetchFlight(ctx context.Context, f *forwarded, etag []byte, fl *flight) (*coap.Response, error) {
	p.mu.Lock()
	before := p.changes
	p.mu.Unlock()
	r, err := p.ask(ctx, f, etag)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	p.mu.Lock()
	dirty := fl != nil && fl.dirty || fl == nil && p.changes != before
	p.mu.Unlock()
	if r.Code == coap.Valid {
		if etag == nil {
			if f.req.Options.Has(coap.ETag) {
				return r, nil // the client's own
			}
			return nil, badGateway(errors.New("2.03 to a request without ETag"))
		}
		if whole, ok := p.cache.validated(f.key, r, now); ok {
			p.metrics.cache.WithLabelValues("validated").Inc()
			return whole, nil
		}
		// What was stored is gone: ask for the whole.
		if r, err = p.ask(ctx, f, nil); err != nil {
			return nil, err
		}
		if r.Code == coap.Valid && !f.req.Options.Has(coap.ETag) {
			return nil, badGateway(errors.New("2.03 to a request without ETag"))
		}
	}
	if f.cacheable && !dirty {
		p.cache.put(f.key, f.resource, r, now)
	}
	return r, nil
}

// fetchAlone asks for one client.
func (p *Proxy) fetchAlone(ctx context.Context, f *forwarded, etag []byte) (*coap.Response, error) {
	done, err := p.wait()
	if err != nil {
		return nil, err
	}
	defer done()
	r, err := p.fetchFlight(ctx, f, etag, nil)
	if err != nil {
		return nil, err
	}
	return represent(r, f.req.Options), nil
}

// changed tells that a request changed a resource.
func (p *Proxy) changed(res resourceKey) {
	p.mu.Lock()
	p.changes++
	for _, fl := range p.flights {
		if fl.resource == res {
			fl.dirty = true
		}
	}
	p.mu.Unlock()
	p.cache.invalidate(res)
}

// wait books a place among the requests that wait for upstreams.
func (p *Proxy) wait() (done func(), err error) {
	if p.waiting.Add(1) > maxWaiting {
		p.waiting.Add(-1)
		p.metrics.refused.WithLabelValues("busy").Inc()
		return nil, errBusy
	}
	p.metrics.waiting.Set(float64(p.waiting.Load()))
	return func() { p.metrics.waiting.Set(float64(p.waiting.Add(-1))) }, nil
}
