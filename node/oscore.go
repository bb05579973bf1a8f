package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/plgd-dev/go-coap/v3/message"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/serve"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/oscore"
)

// go-coap answers requests with critical options that are not in this table with
// 4.02 itself, and has no other way to make one known. The OSCORE option is as in
// RFC 8613, Section 2.
func init() {
	message.CoapOptionDefs[message.OptionID(coap.OSCOREOption)] = message.OptionDef{
		ValueFormat: message.ValueOpaque, MinLen: 0, MaxLen: 255,
	}
}

// Sizes of what the client gives to a Security Context, in bytes.
const (
	setupNonceSize = 8 // RFC 9203, Section 4.1: 64 bits are recommended
	// recipientSize is of the own Recipient ID: this end has one context with each
	// server that it talks to.
	recipientSize = 1
	// protectedBlock is the size of inner blocks: what protects them and the
	// options beside them find room in a datagram.
	protectedBlock = 1024
	// challenges is how often one request may be asked for freshness.
	challenges = 1
)

// DialOSCORE posts the access token to the Group Manager at addr, makes a Security
// Context of what the two ends exchange, and returns a transport that protects
// requests with it, over plain CoAP. Every call makes a context of its own, so
// that nothing has to be kept over a restart; the Group Manager proves with its
// first response that it has the key as well.
//
// RFC 9203, Sections 4.1 to 4.3.
func DialOSCORE(ctx context.Context, addr string, a *Access) (Transport, *groupcomm.TokenTransferResponse, error) {
	return DialOSCOREVia(ctx, addr, "", a)
}

// DialOSCOREVia is [DialOSCORE] through a proxy at addr, which knows the Group Manager
// by the name host: every message has it as Uri-Host outside of the protection (RFC
// 8613, Section 4.1.3.2), the token post included. A proxy that asks whether the
// address is the node's is answered (RFC 9175, Section 2.3). What it sees of the rest
// are protected messages. host "" is no proxy.
func DialOSCOREVia(ctx context.Context, addr, host string, a *Access) (Transport, *groupcomm.TokenTransferResponse, error) {
	ctx, cancel := withDeadline(ctx, requestTimeout)
	defer cancel()
	t, err := DialUDP(ctx, addr)
	if err != nil {
		return nil, nil, err
	}
	t.(*conn).host = host
	setup, info, err := SetUpOSCORE(ctx, t, a)
	if err = errors.Join(err, t.Close()); err != nil {
		return nil, nil, err
	}
	c, err := newContext(setup)
	if err != nil {
		return nil, nil, err
	}
	raw, err := dialMessages(ctx, addr)
	if err != nil {
		return nil, nil, err
	}
	raw.host = host
	return &oscoreConn{conn: raw, ctx: c, restarted: make(chan struct{}, 1)}, info, nil
}

// SetUpOSCORE posts the access token over t, which need not be protected, and
// returns what a Security Context is made of, besides what a join needs to know.
//
// RFC 9203, Sections 4.1 and 4.2.
func SetUpOSCORE(ctx context.Context, t Transport, a *Access) (*oscore.Setup, *groupcomm.TokenTransferResponse, error) {
	const op = "post the token"
	if a == nil || a.Material == nil {
		return nil, nil, errors.New("node: post the token: it is not of the OSCORE profile")
	}
	s := &oscore.Setup{Material: *a.Material, Nonce1: make([]byte, setupNonceSize), ID1: make([]byte, recipientSize)}
	rand.Read(s.Nonce1)
	rand.Read(s.ID1)
	info, err := postToken(ctx, t, &groupcomm.TokenTransfer{
		AccessToken: slices.Clone(a.Token), WantSignInfo: true, WantECDHInfo: true, WantKDCDH: true, Nonce1: s.Nonce1, ID1: s.ID1,
	})
	if err != nil {
		return nil, nil, err
	}
	if info.Nonce2 == nil || info.ID2 == nil {
		return nil, nil, badAnswer(op, "no nonce2 or no ace_server_recipientid")
	}
	s.Nonce2, s.ID2 = info.Nonce2, info.ID2
	if err := s.Check(); err != nil {
		return nil, nil, badAnswer(op, "%v", err)
	}
	return s, info, nil
}

// UpdateRights posts an access token with other rights for the key of t's
// association, which stays as it is, over t ([TokenRequest.Update]).
//
// RFC 9203, Section 4.1; RFC 9202, Section 4.
func UpdateRights(ctx context.Context, t Transport, a *Access) error {
	const op = "update the rights"
	req := &coap.Request{Code: coap.POST, Payload: (&groupcomm.TokenTransfer{AccessToken: slices.Clone(a.Token)}).Encode()}
	req.Options.SetPath("authz-info")
	req.Options.SetContentFormat(coap.ACE)
	resp, err := t.Do(ctx, req)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if resp.Code != coap.Created {
		return refused(op, resp)
	}
	return nil
}

func newContext(s *oscore.Setup) (*oscore.Context, error) {
	c, err := oscore.New(s.ClientParams())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return c, nil
}

// restarter is a [Transport] that sees when the other end has lost the observations.
// Its acknowledgements show nothing: nothing protects them.
type restarter interface {
	// Restarted gives a value after each time.
	Restarted() <-chan struct{}
}

// oscoreConn is a [Transport] that protects what it carries with OSCORE.
type oscoreConn struct {
	*conn
	ctx       *oscore.Context
	restarted chan struct{} // one slot

	serving sync.Mutex // of Take
}

// Format prints no key.
func (c *oscoreConn) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "%v", c.ctx) }

// LogValue keeps keys out of logs.
func (c *oscoreConn) LogValue() slog.Value { return c.ctx.LogValue() }

// Restarted implements restarter.
func (c *oscoreConn) Restarted() <-chan struct{} { return c.restarted }

// errUnprotected is a response without protection. It may be anybody's, so it says
// nothing but that this context is of no use any more: a new one finds out.
func errUnprotected(code coap.Code) error {
	return fmt.Errorf("%w: the answer, %v, is not protected", ErrLost, code)
}

// Do sends one request, in blocks where needed, and waits for its response.
func (c *oscoreConn) Do(ctx context.Context, req *coap.Request) (*coap.Response, error) {
	ctx, cancel := withDeadline(ctx, requestTimeout)
	defer cancel()
	return serve.RoundTrip(ctx, oneRequest{c, nil}, req, protectedBlock, maxBody)
}

// oneRequest sends messages with a token; nil: with fresh ones.
type oneRequest struct {
	c     *oscoreConn
	token message.Token
}

// Do protects one message and opens the response.
func (o oneRequest) Do(ctx context.Context, m *coap.Message) (*coap.Message, error) {
	c := o.c
	for again := 0; ; again++ {
		p, ex, err := c.ctx.ProtectRequest(ctx, nil, m)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrLost, err)
		}
		r, err := c.doWith(ctx, &coap.Request{Code: p.Code, Options: p.Options, Payload: p.Payload}, o.token)
		if err != nil {
			return nil, err
		}
		inner, err := c.open(&ex, r)
		if err != nil {
			return nil, err
		}
		echo, challenged := challenge(inner)
		if !challenged || again == challenges {
			return inner, nil
		}
		c.challenged()
		m = withEcho(m, echo)
	}
}

// open unprotects a response.
func (c *oscoreConn) open(ex *oscore.Exchange, r *coap.Response) (*coap.Message, error) {
	inner, err := c.ctx.UnprotectResponse(nil, ex, &coap.Message{Code: r.Code, Options: r.Options, Payload: r.Payload})
	if errors.Is(err, oscore.ErrUnprotected) {
		return nil, errUnprotected(r.Code)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLost, err)
	}
	return inner, nil
}

// challenge reads a response that wants the request again, with an Echo option
// (RFC 9175, Section 2.3; RFC 8613, Appendix B.1.2).
func challenge(m *coap.Message) (echo []byte, ok bool) {
	echo, ok = m.Options.Get(coap.Echo)
	return echo, ok && m.Code == coap.Unauthorized
}

// challenged notes that the other end does not know any more what it has received
// from us, and then whom it tells of what.
func (c *oscoreConn) challenged() {
	select {
	case c.restarted <- struct{}{}:
	default:
	}
}

func withEcho(m *coap.Message, echo []byte) *coap.Message {
	out := *m
	out.Options.Set(coap.Echo, echo)
	return &out
}

// watch is one observation.
type watch struct {
	c  *oscoreConn
	fn func(*coap.Response)

	mu   sync.Mutex
	ex   oscore.Exchange // guarded by mu
	over bool            // guarded by mu
}

// Observe registers (RFC 7641; RFC 8613, Section 4.1.3.5).
func (c *oscoreConn) Observe(ctx context.Context, req *coap.Request, fn func(*coap.Response)) (func(context.Context) error, error) {
	m := &coap.Message{Code: req.Code, Options: slices.Clone(req.Options), Payload: req.Payload}
	m.Options.SetUint(coap.ObserveOption, 0)
	if c.host != "" {
		m.Options.Remove(coap.NoResponse) // the proxy may have to ask back
	}
	quiet := silent(&coap.Request{Options: m.Options})
	var outer []byte // Echo value of the proxy
	proven := false  // it was sent back
	for again := 0; ; again++ {
		p, ex, err := c.ctx.ProtectRequest(ctx, nil, m)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrLost, err)
		}
		if outer != nil {
			p.Options.Set(coap.Echo, outer)
		}
		w := &watch{c: c, fn: fn, ex: ex}
		var echo []byte
		var failed error
		first := true // go-coap calls back before observe returns
		token, end, err := c.observe(ctx, &coap.Request{Code: p.Code, Options: p.Options, Payload: p.Payload}, quiet, func(r *coap.Response) {
			if value, ok := c.asksBack(r); ok {
				w.mu.Lock()
				outer, first = value, false
				w.mu.Unlock()
				return
			}
			inner, err := w.open(r)
			w.mu.Lock()
			begins := first
			first = false
			if begins && !quiet {
				failed = err
				if err == nil {
					echo, _ = challenge(inner)
				}
			}
			asked := echo != nil
			w.mu.Unlock()
			switch {
			case err != nil || begins && asked:
			case quiet && inner.Options.Has(coap.Echo):
				c.challenged() // Follow registers anew
			default:
				w.deliver(req, inner)
			}
		})
		if err != nil {
			return nil, err
		}
		w.mu.Lock()
		asked, err, back := echo, failed, outer
		w.mu.Unlock()
		if err != nil {
			return nil, err
		}
		if back != nil && !proven {
			proven = true
			continue
		}
		if asked == nil {
			return func(ctx context.Context) error { return w.cancel(ctx, req, token, end) }, nil
		}
		if again == challenges {
			return nil, fmt.Errorf("%w: asked for freshness again and again", ErrLost)
		}
		m = withEcho(m, asked)
	}
}

func (w *watch) open(r *coap.Response) (*coap.Message, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return nil, oscore.ErrReplay
	}
	return w.c.open(&w.ex, r)
}

// deliver completes a notification that is larger than a block, and passes it on.
func (w *watch) deliver(req *coap.Request, m *coap.Message) {
	b, err := m.Options.Block(coap.Block2)
	if err == nil && (b == nil || !b.More) {
		r := &coap.Response{Code: m.Code, Options: slices.Clone(m.Options), Payload: m.Payload}
		for _, id := range []coap.OptionID{coap.Block2, coap.Size2} {
			r.Options.Remove(id)
		}
		w.fn(r)
		return
	}
	// go-coap's reader is what called: the other blocks come through it.
	w.c.wg.Go(func() {
		ctx, cancel := context.WithTimeout(w.c.cc.Context(), blockTimeout)
		defer cancel()
		if r, err := serve.Gather(ctx, oneRequest{w.c, nil}, req, m, maxBody); err == nil {
			w.fn(r)
		}
	})
}

// cancel deregisters with the token of the registration (RFC 7641, Section 3.6).
// go-coap's own way would send a request in clear.
func (w *watch) cancel(ctx context.Context, req *coap.Request, token message.Token, end func(context.Context, bool) error) error {
	w.mu.Lock()
	over := w.over
	w.over = true
	w.mu.Unlock()
	if err := end(ctx, false); over || err != nil {
		return err
	}
	m := &coap.Message{Code: req.Code, Options: slices.Clone(req.Options), Payload: req.Payload}
	m.Options.SetUint(coap.ObserveOption, 1)
	m.Options.Remove(coap.NoResponse)
	ctx, free := withDeadline(ctx, requestTimeout)
	defer free()
	if _, err := (oneRequest{w.c, token}).Do(ctx, m); err != nil {
		return fmt.Errorf("node: cancel observation: %w", err)
	}
	return nil
}

// Take has fn answer the requests of the other end that the context protects, one
// after the other; nil: 4.04.
func (c *oscoreConn) Take(fn func(*coap.Request) *coap.Response) {
	if fn == nil {
		c.conn.Take(nil)
		return
	}
	core := serve.New(coap.HandlerFunc(func(_ context.Context, req *coap.Request) (*coap.Response, error) {
		return fn(req), nil
	}), serve.Config{BlockSize: protectedBlock, MaxBody: maxBody})
	c.conn.Take(func(outer *coap.Request) *coap.Response {
		c.serving.Lock()
		defer c.serving.Unlock()
		ctx := c.cc.Context()
		inner, ex, err := c.ctx.UnprotectRequest(nil, &coap.Message{Code: outer.Code, Options: outer.Options, Payload: outer.Payload})
		if errors.Is(err, oscore.ErrUnprotected) {
			return &coap.Response{Code: coap.Unauthorized} // only the Group Manager may ask
		}
		if err != nil {
			return coap.ErrorResponse(err)
		}
		reply := core.Handle(ctx, groupManager{}, inner)
		if reply == nil {
			reply = &coap.Message{Code: coap.Changed}
		}
		p, err := c.ctx.ProtectResponse(ctx, nil, ex, reply)
		if err != nil {
			return coap.ErrorResponse(err)
		}
		return &coap.Response{Code: p.Code, Options: p.Options, Payload: p.Payload}
	})
}

// groupManager is the link that the requests of the Group Manager come on.
type groupManager struct{}

func (groupManager) Peer() coap.Peer { return coap.Peer{Link: "gm", Via: coap.OSCORE} }

// Send has nothing to carry: nothing here is observed.
func (groupManager) Send(_ *coap.Message, done func(error)) { done(coap.ErrGone) }
