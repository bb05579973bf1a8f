package proxy

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/serve"
	"github.com/seed4911071e/groupgate/rarely"
)

// link is an association with an upstream: the message layer and, where there is
// one, the security below it.
type link interface {
	// Do sends a request and waits for its response.
	coap.Requester
	// observe sends a request with a token and calls fn for every response after
	// the first, from the goroutine that reads, until forget.
	observe(ctx context.Context, m *coap.Message, token string, fn func(*coap.Message)) (*coap.Message, error)
	// ping returns nil when the other end has been heard lately, or is heard now. Else
	// the association is of no use: a server that restarted knows nothing of it.
	ping(ctx context.Context, lately time.Duration) error
	// forget has later responses with the token rejected.
	forget(token string)
	// done is closed when the association ended.
	done() <-chan struct{}
	// worn says that the association has to make room for another one: its message
	// identifiers are used up.
	worn() bool
	// retire closes it when nothing is under way any more, close at once.
	retire()
	close()
}

// upstreamKey names an association. Two rules never share one: they may differ in
// credentials and in what their names may resolve to.
type upstreamKey struct {
	rule   *Rule
	target Target
}

// upstream is a server, its association, and what is known about its health.
type upstream struct {
	p     *Proxy
	key   upstreamKey
	named bool          // its address is what a name leads to
	slots chan struct{} // one for each request outstanding
	took  prometheus.Observer

	mu       sync.Mutex
	queued   int
	users    int // requests and observations
	used     time.Time
	link     link
	dialing  *dialing
	away     rarely.Line // guarded by mu: there is no association
	fails    int         // in a row, without any answer
	shut     time.Time
	pause    time.Duration
	probing  bool
	transfer map[string]*transfer // resources with a request body under way in blocks
}

// transfer is a request body under way in blocks.
type transfer struct {
	body []byte
	hops byte // left
	over chan struct{}
}

type dialing struct {
	done chan struct{}
	link link
	err  error
}

// upstream finds the association for a target, or makes room for one.
func (p *Proxy) upstream(r *Rule, t Target) (*upstream, error) {
	k := upstreamKey{r, t}
	p.mu.Lock()
	defer p.mu.Unlock()
	if u := p.upstreams[k]; u != nil {
		return u, nil
	}
	if p.closing {
		return nil, errClosing
	}
	if len(p.upstreams) >= maxUpstreams && !p.dropOldestLocked() {
		p.metrics.refused.WithLabelValues("upstreams").Inc()
		return nil, errBusy
	}
	_, isAddr := t.addr()
	u := &upstream{p: p, key: k, named: !isAddr, slots: make(chan struct{}, r.Parallel), took: p.metrics.upstream.WithLabelValues(t.Scheme), used: time.Now(), transfer: map[string]*transfer{}}
	p.upstreams[k] = u
	return u, nil
}

// dropOldestLocked ends the association that nobody used for longest.
func (p *Proxy) dropOldestLocked() bool {
	var oldest *upstream
	var at time.Time
	for _, u := range p.upstreams {
		u.mu.Lock()
		if u.users == 0 && (oldest == nil || u.used.Before(at)) {
			oldest, at = u, u.used
		}
		u.mu.Unlock()
	}
	if oldest == nil {
		return false
	}
	delete(p.upstreams, oldest.key)
	p.work.Go(oldest.close)
	return true
}

// sweepUpstreams ends associations that nobody uses.
func (p *Proxy) sweepUpstreams(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, u := range p.upstreams {
		idle := upstreamIdle
		if k.target.secure() {
			idle = sessionIdle
		}
		u.mu.Lock()
		old := u.users == 0 && now.Sub(u.used) > idle && now.After(u.shut)
		u.mu.Unlock()
		if old {
			delete(p.upstreams, k)
			p.work.Go(u.close)
		}
	}
}

func (u *upstream) close() {
	u.mu.Lock()
	l := u.link
	u.link = nil
	u.mu.Unlock()
	if l != nil {
		l.close()
	}
}

// enter counts a request or an observation until release is called.
func (u *upstream) enter() {
	u.mu.Lock()
	u.users++
	u.mu.Unlock()
}

func (u *upstream) release() {
	u.mu.Lock()
	u.users--
	u.used = time.Now()
	u.mu.Unlock()
}

// do sends a request, blockwise where needed, and waits for the response.
func (u *upstream) do(ctx context.Context, req *coap.Request) (*coap.Response, error) {
	var r *coap.Response
	err := u.with(ctx, once(req.Code, req.Options), func(ctx context.Context, l link) (err error) {
		r, err = u.roundTrip(ctx, l, req)
		return err
	})
	return r, err
}

// roundTrip sends one request over an association, in smaller blocks when the server
// answers that those would do (RFC 7959, Section 2.9.3): it has done nothing then.
func (u *upstream) roundTrip(ctx context.Context, l link, req *coap.Request) (*coap.Response, error) {
	size := u.key.rule.BlockSize
	if s, ok := l.(*stream); ok {
		size = s.block(ctx, size, req)
	}
	for {
		r, err := u.inBlocks(ctx, l, req, size)
		if err != nil || r.Code != coap.RequestEntityTooLarge {
			return r, err
		}
		most := min(size, len(req.Payload)) - 1
		b, err := r.Options.Block(coap.Block1)
		if err != nil || b == nil || b.Size() > most {
			return r, nil
		}
		size = b.Size()
	}
}

// inBlocks sends one request in blocks of a size. Of one resource one body at a time is
// sent in blocks, with a Request-Tag of its own (RFC 9175, Section 3.3: the server could
// not tell which block belongs to which).
func (u *upstream) inBlocks(ctx context.Context, l link, req *coap.Request, size int) (*coap.Response, error) {
	if n := len(req.Payload); req.Options.Has(coap.OSCOREOption) && n <= size+protection {
		size = max(size, n) // it was cut inside: cutting it again would double the messages
	}
	if len(req.Payload) > size {
		done, err := u.alone(ctx, req)
		if err != nil {
			return nil, err
		}
		defer done()
		tagged := *req
		tagged.Options.Set(coap.RequestTag, token())
		req = &tagged
	}
	r, err := serve.RoundTrip(ctx, l, req, size, maxBody)
	if errors.Is(err, serve.ErrBlockwise) && ctx.Err() == nil && req.Code == coap.GET {
		// The resource may have changed on the way; once more.
		r, err = serve.RoundTrip(ctx, l, req, size, maxBody)
	}
	return r, err
}

// alone waits until no other body goes to the resource in blocks. The same body with
// fewer hops left may be that one, come back in a loop: it must not wait for itself, and
// if it is another client's, blocks of one and the other are the same.
func (u *upstream) alone(ctx context.Context, req *coap.Request) (done func(), err error) {
	k := fmt.Sprintf("%v %q", req.Code, req.Options.Path())
	hops, _ := req.Options.Uint(coap.HopLimit)
	for {
		u.mu.Lock()
		busy := u.transfer[k]
		if busy == nil {
			own := &transfer{body: req.Payload, hops: byte(hops), over: make(chan struct{})}
			u.transfer[k] = own
			u.mu.Unlock()
			return func() {
				u.mu.Lock()
				delete(u.transfer, k)
				u.mu.Unlock()
				close(own.over)
			}, nil
		}
		u.mu.Unlock()
		if byte(hops) < busy.hops && bytes.Equal(req.Payload, busy.body) {
			return func() {}, nil
		}
		coap.Waiting(ctx)
		select {
		case <-busy.over:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// once says whether a request must not be sent a second time over another
// association, where the server cannot tell it from a new one: it is not idempotent
// (RFC 7252, Section 5.1; RFC 8132), and no replay window of OSCORE protects it.
func once(c coap.Code, o coap.Options) bool {
	return (c == coap.POST || c == coap.PATCH) && !o.Has(coap.OSCOREOption)
}

// with calls f with the association when the turn comes, and learns from the
// outcome. A session that was there already, over DTLS, TLS or TCP, has to bring something
// within half of the time: when it stays silent, the server may have forgotten it, which a
// new handshake tells. What must be sent once is not tried there, but a ping.
func (u *upstream) with(ctx context.Context, once bool, f func(context.Context, link) error) error {
	u.enter()
	defer u.release()
	ctx, cancel := context.WithTimeout(ctx, u.key.rule.Timeout)
	defer cancel()
	if err := u.admit(); err != nil {
		return err
	}
	if err := u.turn(ctx); err != nil {
		u.learn(nil, true)
		return err
	}
	defer func() { <-u.slots }()
	began := time.Now()
	session := u.key.target.Scheme != CoAP
	var err error
	for try := 0; ; try++ {
		var l link
		var fresh bool
		if once {
			end, _ := ctx.Deadline()
			l, err = u.alive(ctx, min(u.p.patience, time.Until(end)/2), lately)
		} else {
			l, fresh, err = u.connect(ctx)
		}
		if err != nil {
			break
		}
		if once || fresh || !session || try > 0 {
			err = f(ctx, l)
		} else {
			err = u.patient(ctx, l, f)
		}
		if errors.Is(err, errShake) { // with TLS 1.3 what was refused shows only now
			u.unreached(ctx, err)
		}
		silent := errors.Is(err, errSilent) || errors.Is(err, errEnded)
		// A name may lead elsewhere by now.
		moved := u.named && (silent || errors.Is(err, errRefused))
		if silent && session || moved || errors.Is(err, errEnded) || errors.Is(err, errGone) {
			u.drop(l)
		}
		if try < 2 && ctx.Err() == nil && (errors.Is(err, errGone) || silent && !fresh && session && !once) {
			continue
		}
		break
	}
	if err == nil {
		u.took.Observe(time.Since(began).Seconds())
	}
	u.learn(err, false)
	return err
}

// alive is an association for what must be sent once: the server could not tell a
// second one over another association from a new one. So one that was there already,
// and did not bring anything lately, has to answer a ping within patience: a server
// that restarted has forgotten it.
func (u *upstream) alive(ctx context.Context, patience, lately time.Duration) (link, error) {
	l, fresh, err := u.connect(ctx)
	if err != nil || fresh || u.key.target.Scheme == CoAP {
		return l, err
	}
	pinged, cancel := context.WithTimeout(ctx, patience)
	err = l.ping(pinged, lately)
	cancel()
	if err == nil {
		return l, nil
	}
	u.drop(l)
	l, _, err = u.connect(ctx)
	return l, err
}

// patient calls f, and gives the association up with errSilent when nothing came over it
// for half of the time and a ping is not answered. A server that shows that it is there
// may take all of the time to answer.
func (u *upstream) patient(ctx context.Context, l link, f func(context.Context, link) error) error {
	end, _ := ctx.Deadline()
	began, half := time.Now(), time.Until(end)/2
	ctx, give := context.WithCancelCause(ctx)
	var there atomic.Bool
	over := make(chan struct{})
	look := time.AfterFunc(half, func() {
		defer close(over)
		lately := time.Since(began)
		if strings.HasSuffix(u.key.target.Scheme, "+tcp") {
			lately = 0 // what came says nothing: the connection may have ended since
		}
		pinged, cancel := context.WithTimeout(ctx, min(u.p.patience, half/4))
		defer cancel()
		if l.ping(pinged, lately) == nil {
			there.Store(true)
		} else {
			give(errSilent)
		}
	})
	err := f(ctx, l)
	given := errors.Is(context.Cause(ctx), errSilent)
	give(nil)
	if !look.Stop() {
		<-over
	}
	switch {
	case err != nil && given:
		return errSilent
	case errors.Is(err, errSilent) && there.Load():
		return context.DeadlineExceeded // over TCP nothing but the ping tells a slow server
	}
	return err
}

// turn waits for a slot: NSTART (RFC 7252, Section 4.7) is what the rule says.
func (u *upstream) turn(ctx context.Context) error {
	select {
	case u.slots <- struct{}{}:
		return nil
	default:
	}
	u.mu.Lock()
	if u.queued >= maxQueue*cap(u.slots) {
		u.mu.Unlock()
		u.p.metrics.refused.WithLabelValues("queue").Inc()
		return errBusy
	}
	u.queued++
	u.mu.Unlock()
	defer func() {
		u.mu.Lock()
		u.queued--
		u.mu.Unlock()
	}()
	coap.Waiting(ctx)
	select {
	case u.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// admit refuses requests while the circuit is broken. When the pause is over one
// request tries.
func (u *upstream) admit() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.shut.IsZero() {
		return nil
	}
	if left := time.Until(u.shut); left > 0 || u.probing {
		u.p.metrics.refused.WithLabelValues("broken").Inc()
		return unavailable(max(left, time.Second)+time.Second-1, fmt.Errorf("proxy: %s did not answer lately", u.key.target))
	}
	u.probing = true
	return nil
}

// learn counts what shows that the upstream is not there. unknown: the request
// was given up before it was sent.
func (u *upstream) learn(err error, unknown bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	probe := u.probing
	u.probing = false
	switch {
	case unknown, errors.Is(err, context.Canceled), errors.Is(err, errPlace), errors.Is(err, errName):
		return
	case errors.Is(err, errSilent), errors.Is(err, errRefused), errors.Is(err, errShake):
	default:
		u.fails, u.shut, u.pause = 0, time.Time{}, 0 // it answered something
		return
	}
	u.fails++
	if u.fails < breakAfter && !probe {
		return
	}
	u.pause = min(max(2*u.pause, breakMin), breakMax)
	u.shut = time.Now().Add(u.pause)
	u.p.metrics.breaker.Inc()
	u.p.deps.Log.Warn("an upstream does not answer, it is left alone for a while", "target", u.key.target.String(), "for", u.pause, "err", err)
}

// connect returns the association; fresh: it was made for this request.
func (u *upstream) connect(ctx context.Context) (l link, fresh bool, err error) {
	u.mu.Lock()
	if l := u.link; l != nil {
		select {
		case <-l.done():
			u.link = nil
		default:
			if !l.worn() {
				u.mu.Unlock()
				return l, false, nil
			}
			u.link = nil
			l.retire()
		}
	}
	d := u.dialing
	if d == nil {
		d = &dialing{done: make(chan struct{})}
		u.dialing = d
		if !u.p.spawn(func() { u.dial(d) }) {
			u.dialing = nil
			u.mu.Unlock()
			return nil, false, errClosing
		}
	}
	u.mu.Unlock()
	coap.Waiting(ctx)
	select {
	case <-d.done:
		return d.link, true, d.err
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
}

// dial opens the association, for all who wait for it.
func (u *upstream) dial(d *dialing) {
	ctx, cancel := context.WithTimeout(u.p.ctx, u.p.shaking)
	defer cancel()
	u.mu.Lock()
	try := u.fails
	u.mu.Unlock()
	l, err := u.p.dialer(ctx, u.key.rule, u.key.target, try)
	result := "ok"
	if err != nil {
		result = "failed"
		u.unreached(ctx, err)
	}
	u.p.metrics.dials.WithLabelValues(u.key.target.Scheme, result).Inc()
	u.mu.Lock()
	u.dialing = nil
	if err == nil {
		u.link = l
	}
	u.mu.Unlock()
	d.link, d.err = l, err
	close(d.done)
}

// unreached tells the log why there is no association.
func (u *upstream) unreached(ctx context.Context, err error) {
	level, n := slog.LevelDebug, 1
	if u.p.ctx.Err() == nil {
		u.mu.Lock()
		told := u.away.Event(time.Now())
		u.mu.Unlock()
		if told > 0 {
			level, n = slog.LevelWarn, told
		}
	}
	attrs := []any{"n", n, "target", u.key.target.String(), "err", err}
	if no, ok := errors.AsType[*shakeError](err); ok {
		attrs = append(attrs, "hint", no.hint)
	}
	u.p.deps.Log.Log(ctx, level, "an upstream is not reached", attrs...)
}

// drop gives up an association that is of no use.
func (u *upstream) drop(l link) {
	u.mu.Lock()
	if u.link == l {
		u.link = nil
	}
	u.mu.Unlock()
	l.retire()
}

// token is 8 random bytes: whoever does not see the requests cannot answer them
// (RFC 7252, Section 11.4).
func token() []byte {
	b := make([]byte, 8)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return b
}
