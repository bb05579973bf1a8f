package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/oscore"
)

// Watch observes what req names over t, which [DialDTLS] opened, and calls fn with
// every response, until ctx ends, which ends the observation as well, or until one
// without an Observe option came, which is the last: nothing is observed there, or not
// any more (RFC 7641). It is no error when ctx ends.
func Watch(ctx context.Context, t Transport, req *coap.Request, fn func(*coap.Response)) error {
	c, ok := t.(*conn)
	if !ok {
		return errors.New("node: watch: not over this transport")
	}
	return c.watch(ctx, req, fn, nil)
}

// watch is Watch; end makes the request that ends the observation, nil: it is that of
// the registration (RFC 7641, Section 3.6).
func (c *conn) watch(ctx context.Context, req *coap.Request, fn func(*coap.Response), end func(context.Context) (*coap.Request, error)) error {
	came := make(chan *coap.Response, maxFurther)
	token, stop, err := c.observe(ctx, req, false, func(r *coap.Response) {
		select {
		case came <- r:
		default: // fn takes them more slowly than they come: a later one tells the state
		}
	})
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	for {
		select {
		case r := <-came:
			if fn(r); r.Options.Has(coap.ObserveOption) {
				continue
			}
			return stop(ctx, false)
		case <-c.Done():
			return fmt.Errorf("%w: %s", ErrLost, c.cc.RemoteAddr())
		case <-ctx.Done():
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
		defer cancel()
		if end == nil {
			return stop(ctx, true)
		}
		last, err := end(ctx)
		if err == nil {
			err = stop(ctx, false)
		}
		if err == nil {
			_, err = c.doWith(ctx, last, token)
		}
		return err
	}
}

// AskVia sends a request, protected with Group OSCORE, through the proxy at the other
// end of via, which [DialDTLS] opened, and calls each with the answers, or with why one
// could not be read, as [GroupClient.Send] does. target is scheme and authority of who
// is asked, which is all that the proxy sees of it; with wait, whole seconds, it is that
// of a group ([AskGroup]). to is the member for pairwise mode; nil is group mode. With
// Observe in req notifications follow until ctx ends, or the one who is observed says
// that it is over.
//
// RFC 8613, Sections 4.1.3.3 and 4.1.3.5; draft-ietf-core-oscore-groupcomm-28, Sections
// 7 to 9.
func (t *Traffic) AskVia(ctx context.Context, via Transport, target string, to *groupcomm.SenderID, req *coap.Message, wait time.Duration, each func(Answer)) error {
	c, ok := via.(*conn)
	if !ok {
		return errors.New("node: ask a proxy: not over this transport")
	}
	protect := func(ctx context.Context, m *coap.Message) (*coap.Request, *oscore.GroupExchange, error) {
		p, x, err := t.Request(ctx, to, m)
		if err != nil {
			return nil, nil, err
		}
		out := &coap.Request{Code: p.Code, Options: p.Options.Clone(), Payload: p.Payload}
		out.Options.AddString(coap.ProxyUri, target)
		return out, x, nil
	}
	out, x, err := protect(ctx, req)
	if err != nil {
		return err
	}
	defer x.Close()
	read := func(r *coap.Response) (a Answer, again bool) {
		var from netip.AddrPort
		if who, ok := Responder(r); ok {
			from, _ = netip.ParseAddrPort(who)
		}
		a = t.answer(ctx, x, &coap.Message{Code: r.Code, Options: r.Options, Payload: r.Payload}, from)
		return a, errors.Is(a.Err, oscore.ErrReplay)
	}
	tell := func(r *coap.Response) {
		if a, again := read(r); !again {
			each(a)
		}
	}
	switch register, _ := (&coap.Request{Code: req.Code, Options: req.Options}).Observe(); {
	case wait > 0:
		var challenged []Answer
		err := AskGroup(ctx, via, out, wait, func(r *coap.Response) {
			switch a, again := read(r); {
			case again:
			case isChallenge(a) && a.From.IsValid() && len(challenged) < maxChallenges:
				challenged = append(challenged, a)
			default:
				each(a)
			}
		})
		for _, a := range challenged {
			if err == nil {
				m, peer := t.challenged(req, a)
				err = t.AskVia(ctx, via, "coap://"+a.From.String(), peer, m, 0, each)
			}
		}
		return err
	case register:
		return c.watch(ctx, out, tell, func(ctx context.Context) (*coap.Request, error) {
			// A request of its own: the server takes none a second time.
			m := req.Clone()
			m.Options.SetUint(coap.ObserveOption, 1)
			last, _, err := protect(ctx, m)
			return last, err
		})
	}
	r, err := c.doWith(ctx, out, nil)
	if err != nil {
		return err
	}
	a, _ := read(r)
	if !isChallenge(a) {
		each(a)
		return nil
	}
	var m *coap.Message
	m, to = t.challenged(req, a)
	if out, x, err = protect(ctx, m); err != nil {
		return err
	}
	defer x.Close()
	if r, err = c.doWith(ctx, out, nil); err == nil {
		tell(r)
	}
	return err
}
