package serve

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// further runs the production of responses after the first, each in a
// non-confirmable message of its own with the token of the request. It ends
// with the link, with Run, with a Reset of the client or, unless it is lasting,
// after moreLifetime.
func (s *Server) further(ctx context.Context, x *exchange, produce func(context.Context, func(*coap.Response) error) error, lasting bool) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	if !lasting {
		end := time.AfterFunc(moreLifetime, cancel)
		all := cancel
		cancel = func() { end.Stop(); all() }
	}
	p := x.peer
	s.mu.Lock()
	if s.closing || p.gone || len(p.more) >= maxPeerMore {
		s.mu.Unlock()
		cancel()
		s.cfg.Log.DebugContext(ctx, "further responses refused", slog.String("peer", x.req.Peer.Addr.String()))
		return
	}
	p.transfer()
	p.moreID++
	id := p.moreID
	if p.more == nil {
		p.more = make(map[uint64]production)
	}
	p.more[id] = production{string(x.token()), cancel}
	s.work.Add(1)
	s.mu.Unlock()
	unhook := context.AfterFunc(s.stopped, cancel)

	link, done := x.link, func() {}
	if a, ok := link.(coap.Answerer); ok {
		link, done = a.Answers(ctx)
	}
	out := &exchange{peer: p, link: link, room: x.room, size: x.size, whole: x.whole, key: x.cacheKey(), keyed: true, req: &coap.Request{}}
	proven := time.Now()
	mask := noResponse(x.req.Options)
	if x.block2 != nil {
		out.block2 = &coap.Block{SZX: x.block2.SZX}
	}
	go func() {
		defer s.work.Done()
		defer func() {
			unhook()
			cancel()
			done()
			s.mu.Lock()
			delete(p.more, id)
			s.mu.Unlock()
		}()
		_, err := s.call(func() (*coap.Response, error) {
			return nil, produce(ctx, func(r *coap.Response) error {
				t := coap.NonConfirmable
				if time.Since(proven) > confirmEvery {
					t, proven = coap.Confirmable, time.Now()
				}
				return s.sendFurther(ctx, out, t, mask, r)
			})
		})
		if err != nil && ctx.Err() == nil {
			s.cfg.Log.DebugContext(ctx, "further responses ended", slog.Any("err", err))
		}
	}()
}

// production is that of further responses to the request with a token.
type production struct {
	token string
	end   context.CancelFunc
}

func (s *Server) sendFurther(ctx context.Context, x *exchange, t coap.Type, mask uint8, r *coap.Response) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if suppressed(mask, r.Code) {
		return nil
	}
	if !x.whole {
		var err error
		if r, err = s.blockwiseOut(x, r); err != nil {
			return err
		}
	}
	done := make(chan error, 1)
	x.link.Send(&coap.Message{
		Type: t, Code: r.Code, Token: bytes.Clone(x.token()),
		Options: slices.Clone(r.Options), Payload: r.Payload,
	}, func(err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
