package secure

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/oscore"
)

// Server is the server core that serves what was inside.
type Server interface {
	// Handle answers a request of a link.
	Handle(ctx context.Context, link coap.Link, m *coap.Message) *coap.Message
	// Closed tells that a link is gone.
	Closed(id coap.LinkID)
	// Cancel ends what goes on with the token of a link.
	Cancel(id coap.LinkID, token []byte)
	// Doubt has the next notification with the token of a link acknowledged.
	Doubt(id coap.LinkID, token []byte)
}

// Config is what a [Layer] works with.
type Config struct {
	Server   Server
	Contexts Contexts
	// MaxContexts bounds the contexts in memory. 0: 200,000.
	MaxContexts int
	Log         *slog.Logger          // nil: discards
	Registerer  prometheus.Registerer // nil: a private one
}

// Layer serves protected requests. Its methods may be called from any goroutine.
//
// It is a [coap.Handler] for requests with an OSCORE option, under the server core
// that undid what is outside: blockwise transfer, budgets of the link. What is
// inside goes to the same core over a link of the context, so that observation,
// blockwise transfer and budgets of a peer are the same whatever protects it.
type Layer struct {
	cfg     Config
	metrics *metrics
	keeper  atomic.Pointer[Keeper] // see persist.go
	base    time.Time              // see stamp

	mu     sync.Mutex
	live   map[string]*link       // by kid; guarded by mu
	byLink map[coap.LinkID]*link  // the same; guarded by mu
	ended  map[coap.LinkID]ending // to be closed; guarded by mu
	using  map[coap.LinkID]int    // outer links that a context was last heard on; guarded by mu

	answering map[*answers]struct{} // guarded by mu
}

// ending is a context that was dropped, and when.
type ending struct {
	at time.Time
	c  *link
}

// New makes a layer. It starts nothing.
func New(cfg Config) *Layer {
	if cfg.MaxContexts <= 0 {
		cfg.MaxContexts = defaultMaxContexts
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Layer{
		cfg: cfg, metrics: newMetrics(cfg.Registerer), base: time.Now(),
		live: map[string]*link{}, byLink: map[coap.LinkID]*link{}, ended: map[coap.LinkID]ending{}, using: map[coap.LinkID]int{},
		answering: map[*answers]struct{}{},
	}
}

// errLayers is the answer to a request that is protected for us twice
// (draft-ietf-core-oscore-capable-proxies-07, Section 2.1): what is inside of one
// protection is for us, or for somebody whom it is forwarded to.
var errLayers = coap.Errorf(coap.Unauthorized, "one layer of OSCORE for this server, and no more")

var errNoExchange = errors.New("secure: internal error: the request came over no link")

// ServeCoAP answers a request that has an OSCORE option. Its context has to have
// the exchange ([coap.ExchangeOf]).
//
// RFC 8613, Section 8.2: errors of the protection are answered without it.
func (l *Layer) ServeCoAP(ctx context.Context, req *coap.Request) (*coap.Response, error) {
	x, ok := coap.ExchangeOf(ctx)
	if !ok {
		return nil, errNoExchange
	}
	if _, nested := x.Link.(*link); nested {
		return nil, errLayers
	}
	outer := &coap.Message{Type: x.Type, Code: req.Code, Token: x.Token, Options: req.Options, Payload: req.Payload}
	c, inner, ex, err := l.open(ctx, x.Link, outer)
	if errors.Is(err, oscore.ErrNotFresh) {
		l.metrics.count("challenged")
		m, err := c.ctx.Challenge(ctx, nil, ex)
		return response(m, l.sealed(c, err))
	}
	if err != nil {
		l.metrics.count(resultOf(err))
		return nil, err
	}
	l.metrics.count("served")
	is := &served{Context: ctx, link: c, token: x.Token, ex: ex}
	registers := observes(inner)
	switch {
	case registers:
		c.bind(x.Token, ex)
	case inner.Options.Has(coap.ObserveOption):
		c.release(x.Token)
	}
	reply := l.cfg.Server.Handle(is, c, inner)
	if reply == nil {
		if registers {
			c.hush(x.Token)
		}
		return nil, coap.ErrSilent
	}
	if registers && (is.further || !reply.Options.Has(coap.ObserveOption)) {
		c.release(x.Token)
	}
	if registers && !is.further && reply.Options.Has(coap.ObserveOption) {
		// A last word is owed from now on, also when the end of the context is why. Who
		// cannot have that gets the observation all the same.
		if err := c.ctx.Sequence().Prepare(ctx); err != nil {
			l.cfg.Log.DebugContext(ctx, "no sequence numbers for what is observed", "link", c.stored.Link, "err", err)
		}
	}
	m, err := c.ctx.ProtectResponse(ctx, nil, ex, reply)
	return response(m, l.sealed(c, err))
}

func observes(m *coap.Message) bool {
	v, ok := m.Options.Uint(coap.ObserveOption)
	return ok && v == 0
}

func response(m *coap.Message, err error) (*coap.Response, error) {
	if err != nil {
		return nil, err
	}
	return &coap.Response{Code: m.Code, Options: m.Options, Payload: m.Payload}, nil
}

// sealed drops a context that can protect nothing any more: its numbers are used
// up, or somebody else has it. RFC 9203, Section 6: it is to be made anew.
func (l *Layer) sealed(c *link, err error) error {
	if errors.Is(err, oscore.ErrExhausted) || errors.Is(err, ErrTaken) {
		l.forget(c)
		return errors.Join(oscore.ErrContext, err)
	}
	return err
}

// open finds the context of a request, unprotects it, and makes sure that the
// context may be used and is ours. Errors are what answers the request; with
// [oscore.ErrNotFresh] the other results are there.
func (l *Layer) open(ctx context.Context, outer coap.Link, m *coap.Message) (*link, *coap.Message, oscore.Exchange, error) {
	none := oscore.Exchange{}
	raw, _ := m.Options.Get(coap.OSCOREOption)
	option, err := oscore.DecodeOption(raw)
	if err != nil || option.KID == nil || option.PIV == nil {
		return nil, nil, none, oscore.ErrOption
	}
	for range attempts {
		c, held, err := l.find(ctx, option.KID)
		if err != nil {
			return nil, nil, none, err
		}
		inner, ex, failed := c.ctx.UnprotectRequest(nil, m)
		if failed != nil && !errors.Is(failed, oscore.ErrNotFresh) {
			return nil, nil, none, failed
		}
		// It is authentic. Before it has any effect the context is ours, on disk.
		err = l.take(ctx, c, held)
		switch {
		case errors.Is(err, ErrTaken):
			l.forget(c)
			continue
		case errors.Is(err, ErrNone):
			l.forget(c)
			return nil, nil, none, notFound(err)
		case err != nil:
			return nil, nil, none, err
		}
		if failed == nil || !c.reached() {
			c.over(outer)
			l.uses(c, outer)
		}
		return c, inner, ex, failed
	}
	return nil, nil, none, notFound(ErrTaken)
}

// notFound is the answer to a request without a usable context: what the store
// says to the peer, else RFC 8613, Section 8.2, step 2.
func notFound(err error) error {
	if coap.Deliberate(err) {
		return err
	}
	return errors.Join(oscore.ErrContext, err)
}

// find is the context in memory, or else the stored one, which nobody sees until
// it is taken.
func (l *Layer) find(ctx context.Context, kid []byte) (c *link, held bool, err error) {
	l.mu.Lock()
	c = l.live[string(kid)]
	l.mu.Unlock()
	if c != nil {
		return c, true, nil
	}
	stored, err := l.cfg.Contexts.Context(ctx, kid)
	if errors.Is(err, ErrNone) {
		return nil, false, notFound(err)
	}
	if err != nil {
		return nil, false, err
	}
	if c, err = l.newLink(stored); err != nil {
		return nil, false, err
	}
	return c, false, nil
}

func (l *Layer) newLink(stored *Stored) (*link, error) {
	c := &link{layer: l, stored: stored}
	p := stored.ServerParams()
	p.Hop = true // the proxy is behind this
	p.Sequence = oscore.SequenceConfig{Start: stored.Reserved, Store: c}
	if !stored.New() {
		// Which requests it has accepted was in the memory of who had it.
		p.Window = &oscore.WindowState{}
	}
	var err error
	if c.ctx, err = oscore.New(p); err != nil {
		return nil, err
	}
	c.used.Store(l.stamp(time.Now()))
	return c, nil
}

// take makes the context of an authentic request ours, or sees that it still is.
func (l *Layer) take(ctx context.Context, c *link, held bool) error {
	c.used.Store(l.stamp(time.Now()))
	if !held {
		first := c.stored.New()
		if err := l.cfg.Contexts.Take(ctx, c.stored, false); err != nil {
			return err
		}
		l.admit(c)
		l.cfg.Log.InfoContext(ctx, "security context in use", "link", c.stored.Link, "first", first)
	}
	return l.cfg.Contexts.Take(ctx, c.stored, true)
}

// admit lets others find a context that was taken.
func (l *Layer) admit(c *link) {
	kid := string(c.stored.ID2)
	l.mu.Lock()
	old := l.live[kid]
	var victim *link
	if old == nil && len(l.live) >= l.cfg.MaxContexts {
		victim = l.victimLocked()
	}
	l.live[kid], l.byLink[c.stored.Link] = c, c
	l.mu.Unlock()
	// What somebody observes over the one before is protected with numbers that
	// are not ours any more.
	if old != nil {
		l.forget(old)
	}
	if victim != nil {
		l.forget(victim)
	}
	l.count()
}

// victimLocked is the least recently used of some contexts.
func (l *Layer) victimLocked() *link {
	var found *link
	oldest, n := int64(math.MaxInt64), 0
	for _, c := range l.live {
		if at := c.used.Load(); at < oldest {
			found, oldest = c, at
		}
		if n++; n == victims {
			break
		}
	}
	return found
}

// forget takes a context out of memory and ends its observations.
func (l *Layer) forget(c *link) {
	if l.remove(c) {
		c.ended()
		l.cfg.Server.Closed(c.stored.Link)
	}
}

// remove has nobody find a context any more; false: nobody did.
func (l *Layer) remove(c *link) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := false
	if l.live[string(c.stored.ID2)] == c {
		delete(l.live, string(c.stored.ID2))
		was = true
	}
	if l.byLink[c.stored.Link] == c {
		delete(l.byLink, c.stored.Link)
		was = true
	}
	l.unuseLocked(c)
	l.metrics.contexts.Set(float64(len(l.live)))
	return was
}

func (l *Layer) count() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.metrics.contexts.Set(float64(len(l.live)))
}

// Drop has contexts serve no further request. What is to be said to their
// observers about that still reaches them for a moment.
func (l *Layer) Drop(ids []coap.LinkID) {
	now := time.Now()
	for _, id := range ids {
		l.mu.Lock()
		c := l.byLink[id]
		if c != nil {
			delete(l.live, string(c.stored.ID2))
			delete(l.byLink, id)
			l.ended[id] = ending{now, c}
		}
		l.metrics.contexts.Set(float64(len(l.live)))
		l.mu.Unlock()
		if c != nil {
			c.ended()
		}
	}
}

// Run forgets contexts that nobody used for a long time, and those that were
// dropped, until ctx ends.
func (l *Layer) Run(ctx context.Context) error {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-t.C:
			l.sweep(now)
		}
	}
}

// stamp is a time in nanoseconds since the layer was made: it does not follow the steps
// of the clock, for which no observation is to end.
func (l *Layer) stamp(t time.Time) int64 { return int64(t.Sub(l.base)) }

func (l *Layer) sweep(now time.Time) {
	var over []coap.LinkID
	var unused []*link
	at := l.stamp(now)
	l.mu.Lock()
	for id, e := range l.ended {
		if now.Sub(e.at) >= goodbye {
			delete(l.ended, id)
			l.unuseLocked(e.c)
			over = append(over, id)
		}
	}
	for _, c := range l.live {
		if at-c.used.Load() >= int64(idle) {
			unused = append(unused, c)
		}
	}
	l.mu.Unlock()
	for _, id := range over {
		l.cfg.Server.Closed(id)
	}
	for _, c := range unused {
		l.forget(c)
	}
}

// uses notes that a context is reached over an outer link.
func (l *Layer) uses(c *link, outer coap.Link) {
	id := outer.Peer().Link
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.outerID == id || l.live[string(c.stored.ID2)] != c {
		return
	}
	l.unuseLocked(c)
	c.outerID = id
	l.using[id]++
}

func (l *Layer) unuseLocked(c *link) {
	if c.outerID == "" {
		return
	}
	if l.using[c.outerID]--; l.using[c.outerID] <= 0 {
		delete(l.using, c.outerID)
	}
	c.outerID = ""
}

// Uses says whether a context is reached over an outer link: a host that closes
// idle links would else cut it off.
func (l *Layer) Uses(id coap.LinkID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.using[id] > 0
}

// Status is how a Security Context stands that is in memory.
type Status struct {
	Peer coap.Peer // Addr is where it was last reached; invalid: nowhere yet
	Used time.Time // its last authentic message
}

// Of lists the contexts of a subject that are in memory. It looks at all there are.
func (l *Layer) Of(s coap.Subject) []Status {
	l.mu.Lock()
	var found []*link
	for _, c := range l.live {
		if c.stored.Subject == s {
			found = append(found, c)
		}
	}
	l.mu.Unlock()
	now := time.Now()
	at := l.stamp(now)
	out := make([]Status, len(found))
	for i, c := range found {
		out[i] = Status{Peer: c.Peer(), Used: now.Add(time.Duration(c.used.Load() - at)).Round(0)}
	}
	return out
}
