package serve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// exchange is one request on its way through the server, and what is needed for
// most of them.
type exchange struct {
	ctx      coap.RequestContext
	request  coap.Request
	response coap.Message
	room     [8]byte // of the token

	peer  *peer
	link  coap.Link
	req   *coap.Request
	asked asked // of req when it was whole, before handlers could change it

	block1 *coap.Block // to be echoed in the response
	block2 *coap.Block // asked for
	key    cacheKey
	keyed  bool
	whole  bool  // the link does blockwise transfer itself
	size   uint8 // of the token
}

func (x *exchange) token() []byte { return x.room[:x.size] }

// asked is what a request asks for.
type asked struct {
	code    coap.Code
	options coap.Options
	payload []byte
}

func (x *exchange) noteAsked() { x.asked = asked{x.req.Code, x.req.Options, x.req.Payload} }

// Handle answers one request of the peer at link; nil means that nothing is to
// be sent (of a confirmable request the link still sends the bare
// acknowledgement). The token of the reply is that of m, its type and message
// identifier are the link's business. m is not used after Handle has returned.
//
// ctx bounds the work of the handler. Its [coap.Waiter] is told when the handler is
// about to wait: a link that calls Handle for one request after the other then has
// another goroutine go on with the others.
func (s *Server) Handle(ctx context.Context, link coap.Link, m *coap.Message) *coap.Message {
	if !m.Code.IsRequest() {
		return nil
	}
	now := time.Now()
	x := &exchange{link: link}
	x.request.Peer = link.Peer()
	x.size = uint8(copy(x.room[:], m.Token)) // eight bytes at most (RFC 7252, Section 3)
	p, refused := s.admit(x, now)
	if refused != "" {
		return s.reply(m, x, s.beyond(ctx, x.request.Peer, refused))
	}
	x.peer = p
	defer s.finish(p)
	x.ctx.Begin(ctx, coap.Exchange{Link: link, Type: m.Type, Token: x.token()}, now.Add(maxTransmitWait))
	defer x.ctx.End()
	r := s.answer(&x.ctx, x, m)
	if r == nil {
		return nil
	}
	return s.reply(m, x, r)
}

// errRejected says that a message is ignored.
var errRejected = errors.New("serve: rejected")

// answer goes from the message to the response; nil: none.
func (s *Server) answer(ctx context.Context, x *exchange, m *coap.Message) *coap.Response {
	r, err := s.process(ctx, x, m)
	if errors.Is(err, errRejected) || errors.Is(err, coap.ErrSilent) {
		return nil
	}
	if err != nil {
		return s.failure(ctx, x, err)
	}
	return r
}

// failure is the place where errors become responses and are logged.
func (s *Server) failure(ctx context.Context, x *exchange, err error) *coap.Response {
	r := coap.ErrorResponse(err)
	level := slog.LevelDebug
	if r.Code == coap.InternalServerError && !coap.Deliberate(err) {
		level = slog.LevelError
	}
	s.cfg.Log.LogAttrs(ctx, level, "request failed", slog.String("code", r.Code.String()),
		slog.String("method", x.req.Code.String()), slog.Any("path", x.req.Path()),
		slog.String("peer", x.req.Peer.Addr.String()), slog.Any("err", err))
	return r
}

func (s *Server) process(ctx context.Context, x *exchange, m *coap.Message) (*coap.Response, error) {
	req := &x.request
	req.Code, req.Options, req.Payload = m.Code, m.Options, m.Payload
	x.req = req
	if err := s.checkOptions(req); err != nil {
		if m.Type == coap.NonConfirmable {
			// RFC 7252, Section 5.4.1: a non-confirmable message with such an
			// option is rejected, which silence is (Section 4.3).
			return nil, errRejected
		}
		return nil, err
	}
	if w, ok := x.link.(interface{ OwnsBlockwise() bool }); ok {
		x.whole = w.OwnsBlockwise()
	}
	if len(req.Payload) > s.cfg.MaxBody {
		return nil, s.tooLarge()
	}
	if s.cfg.Screen != nil {
		if err := s.cfg.Screen(req); err != nil {
			return nil, err
		}
	}
	x.noteAsked()
	if !x.whole {
		r, err := s.blockwiseIn(x)
		if r != nil || err != nil {
			return r, err
		}
	}

	register, present := req.Observe()
	if x.block2 != nil && x.block2.Num > 0 {
		present = false // RFC 7959, Section 2.6: later blocks of an observed resource come without it
	}
	var start uint64
	if present {
		if !register {
			s.deregister(x.peer, x.token())
		} else {
			start = s.beginRegistration()
			defer s.endRegistration()
		}
	}
	r, err := s.call(func() (*coap.Response, error) { return s.handler.ServeCoAP(ctx, req) })
	if err == nil && r == nil {
		err = errors.New("serve: handler returned neither response nor error")
	}
	if present && register {
		if err == nil && r.Observe != nil && r.Code.IsSuccess() {
			r = s.register(ctx, x, r, start)
		} else {
			// RFC 7641, Section 4.1: a request with the token of an observation
			// takes its place, whatever comes of it.
			s.deregister(x.peer, x.token())
		}
	}
	if errors.Is(err, coap.ErrSilent) {
		return nil, err
	}
	if err != nil {
		r = s.failure(ctx, x, err)
	}
	if r.More != nil {
		s.further(ctx, x, r.More, r.Lasting)
	}
	if x.whole {
		return r, nil
	}
	return s.blockwiseOut(x, r)
}

// checkOptions refuses critical options that nobody here understands and drops
// elective ones that must be ignored (RFC 7252, Section 5.4.1).
func (s *Server) checkOptions(req *coap.Request) error {
	known := s.cfg.Critical
	if s.cfg.Forwards(req.Options) {
		// RFC 7252, Section 5.7.1: a proxy forwards an option that it does not
		// know when the number says that this is safe.
		known = slices.Clone(known)
		for _, o := range req.Options {
			if !o.ID.Known() && !o.ID.Unsafe() {
				known = append(known, o.ID)
			}
		}
	}
	if id, bad := req.Options.Unusable(known...); bad {
		return coap.Errorf(coap.BadOption, "option %d", id)
	}
	req.Options.DropUnusable()
	return nil
}

// call runs code of a room and makes a panic an error.
func (s *Server) call(f func() (*coap.Response, error)) (r *coap.Response, err error) {
	defer func() {
		if v := recover(); v != nil {
			s.metrics.panics.Inc()
			r, err = nil, fmt.Errorf("serve: handler panicked: %v\n%s", v, debug.Stack())
		}
	}()
	return f()
}

// reply makes the message, unless the client does not want to have it.
func (s *Server) reply(m *coap.Message, x *exchange, r *coap.Response) *coap.Message {
	if !r.Options.Has(coap.OSCOREOption) { // what is inside is counted
		s.metrics.request(m.Code, r.Code)
	}
	if s.cfg.Failed != nil && !r.Code.IsSuccess() && r.Code != coap.Continue {
		s.cfg.Failed(&coap.Request{Code: m.Code, Options: m.Options, Peer: x.request.Peer}, r)
	}
	if suppressed(noResponse(m.Options), r.Code) {
		return nil
	}
	opts := r.Options
	if x.block1 != nil && !opts.Has(coap.Block1) {
		opts = append(coap.Options(nil), opts...)
		opts.SetBlock(coap.Block1, *x.block1)
	}
	x.response = coap.Message{Code: r.Code, Token: x.token(), Options: opts, Payload: r.Payload}
	return &x.response
}

// noResponse reads the No-Response option: 0 when there is none. That of a
// protected request is for proxies: its own is inside (RFC 8613, Section 4.1.3.6).
func noResponse(o coap.Options) uint8 {
	v, ok := o.Uint(coap.NoResponse)
	if !ok || v > 0xff || o.Has(coap.OSCOREOption) {
		return 0
	}
	return uint8(v)
}

// suppressed says whether a client does not want responses of the class of code
// (RFC 7967, Section 2.1: bit n-1 stands for class n). 2.31 is part of a
// transfer that could not go on without it.
func suppressed(mask uint8, code coap.Code) bool {
	return code != coap.Continue && code.IsResponse() && mask>>(code.Class()-1)&1 != 0
}
