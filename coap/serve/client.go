package serve

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/seed4911071e/groupgate/coap"
)

// turn is a request of ours that waits until nothing else is outstanding with
// the peer.
type turn struct {
	ready chan struct{}
	gone  bool // set before ready is closed
}

func (t *turn) run(*Server) { close(t.ready) }
func (t *turn) abandon()    { t.gone = true; close(t.ready) }

// Do sends a request to the peer and waits for its response, blockwise where
// needed. It takes its turn with the notifications to the peer. The error of a
// peer that cannot be asked is a coap.ErrGone.
func (s *Server) Do(ctx context.Context, id coap.LinkID, req *coap.Request) (*coap.Response, error) {
	t := &turn{ready: make(chan struct{})}
	p := s.lookup(id)
	s.mu.Lock()
	if p == nil || p.gone {
		s.mu.Unlock()
		return nil, fmt.Errorf("serve: no such link: %w", coap.ErrGone)
	}
	first := s.enqueueLocked(p, t)
	link := p.link
	s.mu.Unlock()
	coap.Waiting(ctx)
	if !first {
		select {
		case <-t.ready:
		case <-ctx.Done():
			s.mu.Lock()
			i := slices.Index(p.outbox, job(t))
			if i >= 0 {
				p.outbox = slices.Delete(p.outbox, i, i+1) // its own: it is not empty
			}
			s.mu.Unlock()
			if i < 0 {
				<-t.ready // was given the turn at the same moment
				if !t.gone {
					s.release(p)
				}
			}
			return nil, ctx.Err()
		}
		if t.gone {
			return nil, fmt.Errorf("serve: %w", coap.ErrGone)
		}
	}
	defer s.release(p)
	r, ok := link.(coap.Requester)
	if !ok {
		return nil, errLink
	}
	if w, ok := link.(interface{ OwnsBlockwise() bool }); ok && w.OwnsBlockwise() {
		m, err := r.Do(ctx, &coap.Message{Code: req.Code, Options: req.Options, Payload: req.Payload})
		if err != nil {
			return nil, err
		}
		return &coap.Response{Code: m.Code, Options: m.Options, Payload: m.Payload}, nil
	}
	return RoundTrip(ctx, r, req, s.cfg.BlockSize, s.cfg.MaxBody)
}

// ErrBlockwise is the error of a transfer in which the server broke the rules
// of RFC 7959, or sent more than was allowed.
var ErrBlockwise = errors.New("serve: blockwise transfer failed")

// RoundTrip is the client side of blockwise transfer: it sends a request of any
// size in blocks of at most blockSize bytes, and gathers a response of at most
// maxBody bytes. Each message is a request of its own; r chooses its token.
func RoundTrip(ctx context.Context, r coap.Requester, req *coap.Request, blockSize, maxBody int) (*coap.Response, error) {
	m, err := sendBody(ctx, r, req, blockSize)
	if err != nil {
		return nil, err
	}
	return Gather(ctx, r, req, m, maxBody)
}

// sendBody sends the request, in blocks when it is larger than one (RFC 7959,
// Section 2.5), and returns the answer to the last.
func sendBody(ctx context.Context, r coap.Requester, req *coap.Request, blockSize int) (*coap.Message, error) {
	if len(req.Payload) <= blockSize {
		return r.Do(ctx, &coap.Message{Code: req.Code, Options: req.Options, Payload: req.Payload})
	}
	b := coap.Block{SZX: szxOf(blockSize)}
	for off := 0; ; {
		end := min(off+b.Size(), len(req.Payload))
		b.Num, b.More = uint32(off>>(b.SZX+4)), end < len(req.Payload)
		opts := slices.Clone(req.Options)
		opts.SetBlock(coap.Block1, b)
		if off == 0 {
			opts.SetUint(coap.Size1, uint32(len(req.Payload)))
		}
		if b.More { // RFC 7959, Section 2.7: these belong to the last request
			opts.Remove(coap.Block2)
			opts.Remove(coap.ObserveOption)
		}
		m, err := r.Do(ctx, &coap.Message{Code: req.Code, Options: opts, Payload: req.Payload[off:end]})
		if err != nil || !b.More || m.Code != coap.Continue {
			return m, err
		}
		got, err := m.Options.Block(coap.Block1)
		if err != nil || got == nil || got.Num != b.Num || got.SZX > b.SZX {
			return nil, fmt.Errorf("%w: acknowledged block", ErrBlockwise)
		}
		off, b.SZX = end, got.SZX
	}
}

// Gather completes a response of which first is the first block; a response
// that is whole is returned as it is. The options are those of the first block
// without the block options, but for Block1 of a 4.13.
func Gather(ctx context.Context, r coap.Requester, req *coap.Request, first *coap.Message, maxBody int) (*coap.Response, error) {
	out := &coap.Response{Code: first.Code, Options: slices.Clone(first.Options), Payload: first.Payload}
	for _, id := range []coap.OptionID{coap.Block1, coap.Block2, coap.Size2} {
		if id != coap.Block1 || out.Code != coap.RequestEntityTooLarge { // RFC 7959, Section 2.9.3: it says what size would do
			out.Options.Remove(id)
		}
	}
	b, err := first.Options.Block(coap.Block2)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBlockwise, err)
	}
	if b == nil || b.Num == 0 && !b.More {
		return out, nil
	}
	if b.Num != 0 || len(first.Payload) != b.Size() {
		return nil, fmt.Errorf("%w: first block", ErrBlockwise)
	}
	tag, _ := first.Options.Get(coap.ETag)
	body := bytes.Clone(first.Payload)
	opts := slices.Clone(req.Options)
	for _, id := range []coap.OptionID{coap.Block1, coap.ObserveOption, coap.Size1, coap.Size2} {
		opts.Remove(id)
	}
	payload := req.Payload
	if len(payload) > b.Size() {
		payload = nil // RFC 7959, Section 2.7: the body is not sent again
	}
	for b.More {
		if len(body) > maxBody {
			return nil, fmt.Errorf("%w: response of more than %d bytes", ErrBlockwise, maxBody)
		}
		opts.SetBlock(coap.Block2, coap.Block{Num: uint32(len(body) >> (b.SZX + 4)), SZX: b.SZX})
		m, err := r.Do(ctx, &coap.Message{Code: req.Code, Options: opts, Payload: payload})
		if err != nil {
			return nil, err
		}
		if m.Code != first.Code {
			return &coap.Response{Code: m.Code, Options: m.Options, Payload: m.Payload}, nil
		}
		next, err := m.Options.Block(coap.Block2)
		if err != nil || next == nil || next.Offset() != len(body) || next.SZX > b.SZX ||
			next.More && len(m.Payload) != next.Size() || len(m.Payload) > next.Size() {
			return nil, fmt.Errorf("%w: unexpected block", ErrBlockwise)
		}
		if got, _ := m.Options.Get(coap.ETag); !bytes.Equal(got, tag) {
			return nil, fmt.Errorf("%w: the resource changed", ErrBlockwise)
		}
		body = append(body, m.Payload...)
		b = next
	}
	if len(body) > maxBody {
		return nil, fmt.Errorf("%w: response of more than %d bytes", ErrBlockwise, maxBody)
	}
	out.Payload = body
	return out, nil
}
