package serve

import (
	"bytes"
	"context"
	"log/slog"
	"slices"

	"github.com/seed4911071e/groupgate/coap"
)

// further runs the production of responses after the first, each in a
// non-confirmable message of its own with the token of the request. It ends
// with the link, with Run, or after moreLifetime.
func (s *Server) further(ctx context.Context, x *exchange, produce func(context.Context, func(*coap.Response) error) error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), moreLifetime)
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
		p.more = make(map[uint64]context.CancelFunc)
	}
	p.more[id] = cancel
	s.work.Add(1)
	s.mu.Unlock()
	unhook := context.AfterFunc(s.stopped, cancel)

	out := &exchange{peer: p, link: x.link, token: x.token, whole: x.whole, key: x.cacheKey(), keyed: true, req: &coap.Request{}}
	mask := noResponse(x.req.Options)
	if x.block2 != nil {
		out.block2 = &coap.Block{SZX: x.block2.SZX}
	}
	go func() {
		defer s.work.Done()
		defer func() {
			unhook()
			cancel()
			s.mu.Lock()
			delete(p.more, id)
			s.mu.Unlock()
		}()
		_, err := s.call(func() (*coap.Response, error) {
			return nil, produce(ctx, func(r *coap.Response) error { return s.sendFurther(ctx, out, mask, r) })
		})
		if err != nil && ctx.Err() == nil {
			s.cfg.Log.DebugContext(ctx, "further responses ended", slog.Any("err", err))
		}
	}()
}

func (s *Server) sendFurther(ctx context.Context, x *exchange, mask uint8, r *coap.Response) error {
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
		Type: coap.NonConfirmable, Code: r.Code, Token: bytes.Clone(x.token),
		Options: slices.Clone(r.Options), Payload: r.Payload,
	}, func(err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
