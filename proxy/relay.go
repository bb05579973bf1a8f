package proxy

import (
	"context"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/serve"
)

// Times of relayed observations.
const (
	// linger is how long an observation without observers is kept: one that was
	// handed to the server core is not registered there yet.
	linger = 30 * time.Second
	// RFC 7641, Section 3.3.1: after Max-Age a client waits 5 to 15 seconds more
	// for the notification that is late, then it registers anew.
	lateMin, lateMax = 5 * time.Second, 15 * time.Second
	// A registration that fails is tried again after retryMin, then after twice as
	// long each time up to retryMax; after giveUp the observers are told.
	retryMin = 2 * time.Second
	retryMax = time.Minute
	giveUp   = 5 * time.Minute
	// ageOfNumber is when any notification is newer (RFC 7641, Section 3.4).
	ageOfNumber = 128 * time.Second
)

// relay is one observation at an upstream for all who observe the same with the
// same authority (RFC 7641, Section 5).
type relay struct {
	p     *Proxy
	f     *forwarded
	topic string
	token string
	stop  context.CancelFunc
	ready chan struct{} // closed when there is an answer to the registration
	box   chan *coap.Message

	// Of the first answer; set before ready is closed.
	first *coap.Response
	err   error
	live  bool // it was a registration

	// Guarded by Proxy.mu.
	last    *coap.Response // newest state, with its Max-Age
	lastAt  time.Time
	version uint64
	touched time.Time
	ended   bool
}

// observe answers a registration with the state of now, and has later states
// relayed.
func (p *Proxy) observe(ctx context.Context, f *forwarded) (*coap.Response, error) {
	done, err := p.wait()
	if err != nil {
		return nil, err
	}
	defer done()
	for {
		r, err := p.relayOf(f)
		if err != nil {
			return nil, err
		}
		if f.hops < r.f.hops && !isClosed(r.ready) {
			return p.fetchAlone(ctx, f, nil) // it may be this registration, come back in a loop
		}
		coap.Waiting(ctx)
		select {
		case <-r.ready:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if r.err != nil || !r.live {
			if r.err != nil {
				return nil, r.err
			}
			return represent(r.first, f.req.Options), nil
		}
		now := time.Now()
		p.mu.Lock()
		if r.ended {
			p.mu.Unlock()
			continue // it ended between; once more
		}
		r.touched = now
		last, at, version := r.last, r.lastAt, r.version
		p.mu.Unlock()
		out := *last
		setMaxAge(&out, maxAgeOf(last)-now.Sub(at))
		resp := *represent(&out, f.req.Options)
		resp.Observe = &coap.Observation{Topic: r.topic, Version: version}
		return &resp, nil
	}
}

// relayOf finds the observation, or begins one.
func (p *Proxy) relayOf(f *forwarded) (*relay, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r := p.relays[f.key]; r != nil {
		return r, nil
	}
	if p.closing {
		return nil, errClosing
	}
	if len(p.relays) >= maxRelays {
		return nil, errBusy
	}
	own := *f
	own.req = f.req.Clone() // it outlives the request
	own.opts = f.opts.Clone()
	own.opts.Remove(coap.ETag) // whole states, for everybody
	own.opts.Remove(coap.Echo)
	r := &relay{
		p: p, f: &own, topic: "proxy/" + hex.EncodeToString(f.key[:]), token: string(token()),
		ready: make(chan struct{}), box: make(chan *coap.Message, 1),
		version: uint64(time.Now().UnixNano()), touched: time.Now(),
	}
	var ctx context.Context
	ctx, r.stop = context.WithCancel(p.ctx)
	p.relays[f.key] = r
	p.metrics.relays.WithLabelValues("merged").Inc()
	p.work.Go(func() {
		defer r.stop()
		defer p.forgetRelay(r)
		r.run(ctx)
	})
	return r, nil
}

func (p *Proxy) forgetRelay(r *relay) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r.ended = true
	if p.relays[r.f.key] == r {
		delete(p.relays, r.f.key)
	}
	p.metrics.relays.WithLabelValues("merged").Dec()
}

// run keeps the observation up until nobody wants it or the upstream ends it.
func (r *relay) run(ctx context.Context) {
	p := r.p
	u, err := p.upstream(r.f.rule, r.f.target)
	if err != nil {
		r.err = err
		close(r.ready)
		return
	}
	u.enter()
	defer u.release()
	l, first, err := r.register(ctx, u)
	if err != nil {
		r.err = r.f.failure(err)
		close(r.ready)
		return
	}
	seq, listed := first.number, first.observed
	r.first, r.live = first.resp, listed
	r.take(first.resp, false)
	close(r.ready)
	if !listed {
		l.forget(r.token)
		return
	}
	heard := time.Now()
	var failing time.Time
	retry := retryMin
	timer := time.NewTimer(r.late())
	defer timer.Stop()
	for {
		gone := (<-chan struct{})(nil)
		if l != nil {
			gone = l.done()
		}
		select {
		case <-ctx.Done():
			if l != nil {
				r.leave(l)
			}
			return
		case m := <-r.box:
			n, ok := newer(m, seq, heard)
			if !ok {
				continue // RFC 7641, Section 3.4
			}
			resp, err := r.whole(ctx, u, l, m)
			if err != nil {
				p.deps.Log.Debug("a notification was lost", "target", r.f.target.String(), "err", err)
				continue // the next registration brings the state
			}
			if !m.Options.Has(coap.ObserveOption) || !resp.Code.IsSuccess() {
				l.forget(r.token)
				r.finish(resp)
				return
			}
			seq, heard = n, time.Now()
			r.take(resp, m.Type == coap.Confirmable)
			timer.Reset(r.late())
			continue
		case <-gone:
			l = nil
		case <-timer.C:
		}
		// Late, or the association is gone: register anew, with the same token.
		if l != nil && r.p.abandoned(r) {
			r.leave(l)
			return
		}
		next, again, err := r.register(ctx, u)
		if err != nil {
			if failing.IsZero() {
				failing = time.Now()
			}
			if ctx.Err() != nil {
				return
			}
			if time.Since(failing) > giveUp {
				r.finish(coap.ErrorResponse(r.f.failure(err)))
				return
			}
			timer.Reset(retry)
			retry = min(2*retry, retryMax)
			continue
		}
		if l != nil && l != next {
			l.forget(r.token)
		}
		l, failing, retry = next, time.Time{}, retryMin
		if !again.observed || !again.resp.Code.IsSuccess() {
			l.forget(r.token)
			r.finish(again.resp)
			return
		}
		seq, heard = again.number, time.Now()
		r.take(again.resp, false)
		timer.Reset(r.late())
	}
}

// late is when the registration is to be made anew, unless a notification comes.
func (r *relay) late() time.Duration {
	r.p.mu.Lock()
	age := min(maxAgeOf(r.last), maxSilence)
	r.p.mu.Unlock()
	return age + lateMin + rand.N(lateMax-lateMin)
}

// answer is what came to a registration.
type answer struct {
	resp     *coap.Response
	number   uint32
	observed bool
}

// register asks for the state of now and the later ones.
func (r *relay) register(ctx context.Context, u *upstream) (l link, a answer, err error) {
	req := r.f.request(nil)
	err = u.with(ctx, false, func(ctx context.Context, to link) error {
		opts := req.Options
		opts.SetUint(coap.ObserveOption, 0)
		m, err := to.observe(ctx, &coap.Message{Code: req.Code, Options: opts, Payload: req.Payload}, r.token, r.notify)
		if err != nil {
			to.forget(r.token)
			return err
		}
		l = to
		a.number, a.observed = m.Options.Uint(coap.ObserveOption)
		a.resp, err = serve.Gather(ctx, to, req, m, maxBody)
		if err != nil {
			to.forget(r.token)
		}
		return err
	})
	if err != nil {
		return nil, a, err
	}
	a.resp, err = r.p.fromUpstream(a.resp)
	if err != nil {
		l.forget(r.token)
	}
	return l, a, err
}

// notify keeps the newest message for run. The goroutine that reads calls it.
func (r *relay) notify(m *coap.Message) {
	for {
		select {
		case r.box <- m:
			return
		default:
		}
		select {
		case <-r.box:
		default:
		}
	}
}

// whole is the response of a notification, gathered when it came in blocks (RFC
// 7959, Section 2.6).
func (r *relay) whole(ctx context.Context, u *upstream, l link, m *coap.Message) (*coap.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, u.key.rule.Timeout)
	defer cancel()
	resp, err := serve.Gather(ctx, l, r.f.request(nil), m, maxBody)
	if err != nil {
		return nil, err
	}
	return r.p.fromUpstream(resp)
}

// newer says whether a notification is newer than the last (RFC 7641, Section
// 3.4), and its number.
func newer(m *coap.Message, seq uint32, heard time.Time) (uint32, bool) {
	n, ok := m.Options.Uint(coap.ObserveOption)
	if !ok {
		return seq, true // the end
	}
	const half = 1 << 23
	return n, seq < n && n-seq < half || seq > n && seq-n > half || time.Since(heard) > ageOfNumber
}

// take publishes a state, and keeps it for those who ask.
func (r *relay) take(resp *coap.Response, confirmable bool) {
	p := r.p
	now := time.Now()
	p.mu.Lock()
	r.last, r.lastAt = resp, now
	r.version++
	version := r.version
	p.mu.Unlock()
	if resp.Code == coap.Content {
		p.cache.put(r.f.key, r.f.resource, resp, now)
	}
	rule := r.f.rule
	p.deps.Hub.Publish(r.topic, coap.Notification{
		Version: version, Body: resp,
		// Who shows no key has to show that it is still there (RFC 7641, Section 4.5).
		Confirm: confirmable || rule.OpenToUDP,
		Allow: func(peer coap.Peer) (*coap.Response, bool) {
			if p.admits(p.ctx, rule, peer) {
				return nil, true
			}
			return &coap.Response{Code: coap.Unauthorized}, false
		},
	})
}

// finish tells the observers the last that is known.
func (r *relay) finish(last *coap.Response) {
	r.p.forgetTopic(r)
	r.p.deps.Hub.Drop(r.topic, "", last)
}

// forgetTopic has who comes now begin anew.
func (p *Proxy) forgetTopic(r *relay) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r.ended = true
	if p.relays[r.f.key] == r {
		delete(p.relays, r.f.key)
	}
}

// leave tells the upstream that nobody observes any more (RFC 7641, Section 3.6).
func (r *relay) leave(l link) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.p.ctx), ackTimeout)
	defer cancel()
	if r.p.ctx.Err() != nil {
		l.forget(r.token) // the gateway ends: no time for goodbyes
		return
	}
	req := r.f.request(nil)
	opts := req.Options
	opts.SetUint(coap.ObserveOption, 1)
	_, err := l.observe(ctx, &coap.Message{Code: req.Code, Options: opts, Payload: req.Payload}, r.token, nil)
	l.forget(r.token)
	if err != nil && !errors.Is(err, errSilent) {
		r.p.deps.Log.Debug("an observation was not cancelled", "target", r.f.target.String(), "err", err)
	}
}

// abandoned says whether nobody observes, and takes the relay out then.
func (p *Proxy) abandoned(r *relay) bool {
	p.mu.Lock()
	recent := time.Since(r.touched) < linger
	p.mu.Unlock()
	if recent || len(p.deps.Observers(r.topic)) > 0 {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(r.touched) < linger {
		return false
	}
	r.ended = true
	if p.relays[r.f.key] == r {
		delete(p.relays, r.f.key)
	}
	return true
}

func (p *Proxy) sweepRelays(time.Time) {
	p.mu.Lock()
	all := make([]*relay, 0, len(p.relays))
	for _, r := range p.relays {
		all = append(all, r)
	}
	p.mu.Unlock()
	for _, r := range all {
		if p.abandoned(r) {
			r.stop()
		}
	}
}
