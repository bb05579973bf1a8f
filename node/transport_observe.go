package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/pool"
	"github.com/seed4911071e/groupgate/coap"
)

// observation is what go-coap gives for a registration.
type observation interface {
	Cancel(ctx context.Context, opts ...message.Option) error
	Canceled() bool
}

// Observe registers (RFC 7641) and returns when the first response came.
//
// When the request says No-Response for 2.xx (RFC 7967) nothing comes back on
// success: then it returns at once and the registration goes on by itself.
func (c *conn) Observe(ctx context.Context, req *coap.Request, fn func(*coap.Response)) (func(context.Context) error, error) {
	_, end, err := c.observe(ctx, req, silent(req), fn)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error { return end(ctx, true) }, nil
}

// observe is Observe; quiet says that nothing comes back on success. It tells the
// token of the registration; end tells the server when it is to.
func (c *conn) observe(ctx context.Context, req *coap.Request, quiet bool, fn func(*coap.Response)) (message.Token, func(ctx context.Context, tell bool) error, error) {
	regCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	m, err := c.message(regCtx, req)
	if err != nil {
		stop()
		return nil, nil, err
	}
	m.SetObserve(0)
	token := m.Token()
	first := make(chan struct{})
	var once sync.Once
	done := make(chan struct{})
	var obs observation // with obsErr set before done is closed
	var obsErr error
	c.wg.Go(func() {
		defer close(done)
		defer c.working()()
		defer c.cc.ReleaseMessage(m)
		obs, obsErr = c.cc.DoObserve(m, func(p *pool.Message) {
			if r, err := response(p); err == nil {
				fn(r)
				once.Do(func() { close(first) })
			}
		})
	})
	cancel := func(ctx context.Context, tell bool) error {
		stop()
		<-done
		switch {
		case !tell:
			return nil
		case obsErr != nil && !errors.Is(obsErr, context.Canceled), obsErr == nil && obs.Canceled():
			return nil
		}
		// RFC 7641, Section 3.6: with the options of the registration, or a proxy does not know
		// what it is about.
		end := req.Clone()
		end.Options.Remove(coap.NoResponse)
		end.Options.Remove(coap.ETag)
		end.Options.SetUint(coap.ObserveOption, 1)
		if obsErr != nil || req.Code != coap.GET {
			// go-coap was still waiting, for an outcome that never comes (No-Response) or that came in
			// this moment: the server may well have the observation, and would keep it. Or it is
			// a FETCH, which go-coap would end with a GET.
			if _, err := c.doWith(ctx, end, token); err != nil {
				return fmt.Errorf("node: cancel observation: %w", err)
			}
			return nil
		}
		if c.host != "" {
			end.Options.Set(coap.UriHost, []byte(c.host))
		}
		defer c.working()()
		ctx, free := withDeadline(ctx, requestTimeout)
		defer free()
		if err := obs.Cancel(ctx, messageOptions(end.Options)...); err != nil {
			return fmt.Errorf("node: cancel observation: %w", err)
		}
		return nil
	}
	if quiet {
		return token, cancel, nil
	}
	ctx, free := withDeadline(ctx, requestTimeout)
	defer free()
	registered, grace := done, (<-chan time.Time)(nil)
	for {
		select {
		case <-first:
			return token, cancel, nil
		case <-registered:
			// go-coap calls a refusal an error, and tells the outcome before it
			// calls back: the response, if there is one, is on its way.
			registered = nil
			if obsErr != nil {
				grace = time.After(tick)
			}
		case <-grace:
			stop()
			return nil, nil, c.lost(ctx, obsErr)
		case <-ctx.Done():
			stop()
			return nil, nil, c.lost(ctx, ctx.Err())
		case <-c.cc.Context().Done():
			stop()
			return nil, nil, c.lost(ctx, c.cc.Context().Err())
		}
	}
}
