package secure

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/oscore"
)

// sendTimeout bounds the wait for the store when a notification needs a new block
// of sequence numbers.
const sendTimeout = 5 * time.Second

// link is the link to the other end of a Security Context, over whatever link it
// was last heard on.
type link struct {
	layer  *Layer
	stored *Stored
	ctx    *oscore.Context
	used   atomic.Int64 // see Layer.stamp

	outerID coap.LinkID // guarded by Layer.mu

	mu    sync.Mutex
	outer coap.Link  // nil: none yet; guarded by mu
	home  netip.Addr // that was written of outer; guarded by mu
	bound []bound    // oldest first; guarded by mu
}

// bound is a request that notifications answer.
type bound struct {
	token string
	ex    oscore.Exchange
	quiet bool // the registration itself was not answered: the nonce of the request is left
}

var _ interface {
	coap.Link
	coap.Answerer
	coap.Requester
	coap.Yielder
	oscore.Reserver
} = (*link)(nil)

// Reserve makes sequence numbers durable ([oscore.Reserver]).
func (c *link) Reserve(ctx context.Context, upTo uint64) error {
	return c.layer.cfg.Contexts.Reserve(ctx, c.stored, upTo)
}

// over notes the link on which an authentic request came.
func (c *link) over(outer coap.Link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	same := c.outer == outer
	c.outer = outer
	if len(c.bound) == 0 {
		return
	}
	over, ok := carrierOf(outer)
	if ok && (!same || over.Home != c.home) {
		c.home = over.Home
		c.layer.write(&carriedRecord{string(c.stored.Link), over})
	}
}

func (c *link) reached() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.outer != nil
}

func (c *link) carrier() coap.Link {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.outer
}

// bind keeps the exchange of a registration, for the notifications.
func (c *link) bind(token []byte, ex oscore.Exchange) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropLocked(string(token))
	if len(c.bound) >= maxExchanges {
		c.bound = slices.Delete(c.bound, 0, 1)
	}
	c.bound = append(c.bound, bound{token: string(token), ex: ex})
	if m := c.imageLocked(&c.bound[len(c.bound)-1]); m != nil {
		c.layer.write(m)
	}
}

func (c *link) release(token []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.releaseLocked(string(token))
}

func (c *link) releaseLocked(token string) {
	if c.dropLocked(token) {
		c.layer.write(&releasedRecord{string(c.stored.Link), token})
	}
}

// dropLocked takes a bound request out of memory; false: there was none.
func (c *link) dropLocked(token string) bool {
	n := len(c.bound)
	c.bound = slices.DeleteFunc(c.bound, func(b bound) bool { return b.token == token })
	return len(c.bound) < n
}

// ended notes that the context is out of use.
func (c *link) ended() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.bound) > 0 {
		c.layer.write(goneRecord(c.stored.Link))
	}
}

// hush notes that a registration has no response, as it asked for.
func (c *link) hush(token []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.bound {
		if b := &c.bound[i]; b.token == string(token) {
			b.quiet = true
		}
	}
}

func (c *link) registration(token []byte) (bound, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range c.bound {
		if b.token == string(token) {
			return b, true
		}
	}
	return bound{}, false
}

// Peer is who has the other half of the context, at the address of the outer link.
func (c *link) Peer() coap.Peer {
	p := coap.Peer{Link: c.stored.Link, Via: coap.OSCORE, Subject: c.stored.Subject}
	if outer := c.carrier(); outer != nil {
		p.Addr = outer.Peer().Addr
	}
	return p
}

// Outlet is that of the outer link.
func (c *link) Outlet() coap.Outlet {
	if b, ok := c.carrier().(coap.Batcher); ok {
		return b.Outlet()
	}
	return nil
}

var errUnbound = fmt.Errorf("secure: no request that the message answers: %w", coap.ErrGone)

// Send protects a notification or another further response, each with a Partial
// IV of its own (RFC 8613, Section 8.3), and hands it to the outer link. An
// acknowledgement there is not protected: it is [coap.ErrRelayed]. Without an
// outer link it is [coap.ErrTimeout]: the context is reached again when its peer
// is heard.
func (c *link) Send(m *coap.Message, done func(error)) {
	c.SendYielding(m, coap.Yielding{}, done)
}

// SendYielding is Send of a notification that gives way to a newer one, where the outer
// link knows how to: a message of its own outside, with a Partial IV of its own.
func (c *link) SendYielding(m *coap.Message, y coap.Yielding, done func(error)) {
	b, ok := c.registration(m.Token)
	if !ok {
		done(errUnbound)
		return
	}
	c.send(b, m, y, !m.Options.Has(coap.ObserveOption), done)
}

// send is SendYielding for what answers b; last: nothing more does.
func (c *link) send(b bound, m *coap.Message, y coap.Yielding, last bool, done func(error)) {
	outer := c.carrier()
	if outer == nil {
		done(coap.ErrTimeout)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), sendTimeout)
	defer cancel()
	protect := c.ctx.ProtectFurther
	if b.quiet {
		protect = c.ctx.ProtectResponse // it may be the first
	}
	p, err := protect(ctx, nil, b.ex, m)
	if err != nil {
		done(fmt.Errorf("%w: %w", coap.ErrTimeout, c.layer.sealed(c, err)))
		return
	}
	if last {
		c.release(m.Token)
	}
	out := &coap.Message{Type: m.Type, Code: p.Code, Token: slices.Clone(m.Token), Options: p.Options, Payload: p.Payload}
	confirmable := m.Type == coap.Confirmable
	told := func(err error) { done(outcome(err, confirmable)) }
	o, ok := outer.(coap.Yielder)
	if !ok {
		outer.Send(out, told)
		return
	}
	if yield := y.Yield; yield != nil {
		y.Yield = func(after coap.Attempt) func(error) {
			late := yield(after)
			return func(err error) { late(outcome(err, confirmable)) }
		}
	}
	o.SendYielding(out, y, told)
}

// outcome is that of a message whose outer one had err.
func outcome(err error, confirmable bool) error {
	switch {
	case errors.Is(err, coap.ErrGone):
		return coap.ErrTimeout
	case err == nil && confirmable:
		return coap.ErrRelayed
	}
	return err
}

// Do sends a protected request to the peer and waits for its response, which
// proves that it is the peer's: the roles of client and server are swapped, the
// context is the same.
func (c *link) Do(ctx context.Context, m *coap.Message) (*coap.Message, error) {
	outer, ok := c.carrier().(coap.Requester)
	if !ok {
		return nil, fmt.Errorf("secure: the peer is not reached: %w", coap.ErrGone)
	}
	p, ex, err := c.ctx.ProtectRequest(ctx, nil, m)
	if err != nil {
		return nil, c.layer.sealed(c, err)
	}
	r, err := outer.Do(ctx, p)
	if err != nil {
		return nil, err
	}
	return c.ctx.UnprotectResponse(nil, &ex, r)
}
