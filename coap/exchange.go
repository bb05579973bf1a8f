package coap

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Exchange is what a handler needs that answers for something behind it, such as
// a Security Context: over which link a request came and with which token further
// responses to it go.
type Exchange struct {
	Link  Link
	Type  Type
	Token []byte
}

type exchangeKey struct{}

// Waiter is whoever is told that a handler waits: a link that would serve other
// requests in the same goroutine next. It is the value of the context of a request
// with the key [WaiterKey].
type Waiter interface{ Waits() }

// WaiterKey is the key of a [Waiter].
type WaiterKey struct{}

// Waiting is called by a handler that is about to wait for somebody else, such as an
// upstream, with the context of its request: so that others are served meanwhile. It
// may be called at any time, more than once, and with any context; the best time is
// when everything is sent that is waited for.
func Waiting(ctx context.Context) {
	if w, ok := ctx.Value(WaiterKey{}).(Waiter); ok {
		w.Waits()
	}
}

// WithWaiter gives a context that has nothing else of request's what [Waiting] needs:
// that of work which goes on in a handler's goroutine when the request is over.
func WithWaiter(ctx, request context.Context) context.Context {
	if w := request.Value(WaiterKey{}); w != nil {
		return context.WithValue(ctx, WaiterKey{}, w)
	}
	return ctx
}

// WithExchange gives the context of a request its exchange, and time until
// deadline. Nothing is spent on the latter until somebody waits for it: most
// handlers answer at once.
func WithExchange(ctx context.Context, x Exchange, deadline time.Time) *RequestContext {
	c := &RequestContext{}
	c.Begin(ctx, x, deadline)
	return c
}

// Begin makes of a zero RequestContext what [WithExchange] returns.
func (c *RequestContext) Begin(ctx context.Context, x Exchange, deadline time.Time) {
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	c.parent, c.x, c.deadline = ctx, x, deadline
}

// RequestContext is a context with a deadline that is watched only when it is
// waited for.
type RequestContext struct {
	parent   context.Context
	x        Exchange
	deadline time.Time

	mu     sync.Mutex
	over   bool
	inner  context.Context // made when somebody waits; nil before
	cancel context.CancelFunc
}

// Deadline is that of [WithExchange], or an earlier one of its parent.
func (c *RequestContext) Deadline() (time.Time, bool) { return c.deadline, true }

// waited is the context that ends in time.
func (c *RequestContext) waited() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inner == nil {
		c.inner, c.cancel = context.WithDeadline(c.parent, c.deadline)
		if c.over {
			c.cancel()
		}
	}
	return c.inner
}

// Done is closed when the request is over in any way.
func (c *RequestContext) Done() <-chan struct{} { return c.waited().Done() }

// Err says how the request ended; nil: it did not yet.
func (c *RequestContext) Err() error {
	c.mu.Lock()
	inner, over := c.inner, c.over
	c.mu.Unlock()
	switch {
	case inner != nil:
		return inner.Err()
	case over:
		return context.Canceled
	case c.parent.Err() != nil:
		return c.parent.Err()
	case !time.Now().Before(c.deadline):
		return context.DeadlineExceeded
	}
	return nil
}

// Value: package context finds by it what to cancel, which is the context that
// was made when somebody waits.
func (c *RequestContext) Value(key any) any {
	if key == (exchangeKey{}) {
		return c.x
	}
	c.mu.Lock()
	inner := c.inner
	c.mu.Unlock()
	if inner != nil {
		return inner.Value(key)
	}
	return c.parent.Value(key)
}

// End is the end of the request.
func (c *RequestContext) End() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	if c.cancel != nil {
		c.cancel()
	}
}

// ExchangeOf is the exchange of a request that the server core serves; false for
// any other context.
func ExchangeOf(ctx context.Context) (Exchange, bool) {
	x, ok := ctx.Value(exchangeKey{}).(Exchange)
	return x, ok
}

// ErrSilent is the error of a handler that has nothing to be sent.
var ErrSilent = errors.New("coap: no response")

// ErrRelayed is what became of a confirmable message that was acknowledged by who
// carries it, not by the peer itself: nothing says that the peer has it.
var ErrRelayed = errors.New("coap: acknowledged on the way")
