package oscore

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	core "github.com/seed4911071e/groupgate/coap/serve"
)

// protectedLink carries each message of a transfer to a server under OSCORE.
type protectedLink struct {
	t              *testing.T
	client, server *Context
	app            *core.Server
	messages       int
}

func (l *protectedLink) Peer() coap.Peer                        { return coap.Peer{Link: "link", Via: coap.OSCORE} }
func (l *protectedLink) Send(_ *coap.Message, done func(error)) { done(coap.ErrGone) }

func (l *protectedLink) Do(ctx context.Context, m *coap.Message) (*coap.Message, error) {
	l.messages++
	p, cex, err := l.client.ProtectRequest(ctx, nil, m)
	if err != nil {
		return nil, err
	}
	for _, id := range []coap.OptionID{coap.Block1, coap.Block2, coap.Size1} {
		if p.Options.Has(id) {
			l.t.Errorf("option %d is outside", id)
		}
	}
	inner, sex, err := l.server.UnprotectRequest(nil, p)
	if err != nil {
		return nil, err
	}
	if p, err = l.server.ProtectResponse(ctx, nil, sex, l.app.Handle(ctx, l, inner)); err != nil {
		return nil, err
	}
	return l.client.UnprotectResponse(nil, &cex, p)
}

// RFC 8613, Section 4.1.3.4.1: inner blocks are the business of the layer above,
// each message protected by itself.
func TestInnerBlockwise(t *testing.T) {
	client, server := pair(t, both(func(p *Params) { p.MaxUnfragmented = 200 }))
	echo := coap.HandlerFunc(func(_ context.Context, req *coap.Request) (*coap.Response, error) {
		return &coap.Response{Code: coap.Changed, Payload: bytes.Clone(req.Payload)}, nil
	})
	l := &protectedLink{t: t, client: client, server: server, app: core.New(echo, core.Config{})}
	body := bytes.Repeat([]byte("0123456789"), 100)
	if _, _, err := client.ProtectRequest(t.Context(), nil, &coap.Message{Code: coap.POST, Payload: body}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("in one: %v", err)
	}
	req := &coap.Request{Code: coap.POST, Payload: body}
	req.Options.SetBlock(coap.Block2, coap.Block{SZX: 3}) // 128 bytes
	r, err := core.RoundTrip(t.Context(), l, req, 128, 1<<16)
	if err != nil || !bytes.Equal(r.Payload, body) {
		t.Fatalf("%+v, %v", r, err)
	}
	if l.messages < 15 {
		t.Errorf("%d messages", l.messages)
	}
}

// RFC 8613, Section 4.1.3.4.2: outer blocks, which a proxy makes of a protected
// message, are put together before it is unprotected; what is too large is
// discarded.
func TestOuterBlockwise(t *testing.T) {
	client, server := pair(t, func(_, s *Params) { s.MaxUnfragmented = 300 })
	carry := func(size int) error {
		p, _, err := client.ProtectRequest(t.Context(), nil, &coap.Message{Code: coap.POST, Payload: make([]byte, size)})
		if err != nil {
			t.Fatal(err)
		}
		const block = 64
		var whole *coap.Message
		for off := 0; off < len(p.Payload); off += block {
			end := min(off+block, len(p.Payload))
			part := *p
			part.Options = p.Options.Clone()
			part.Options.SetBlock(coap.Block1, coap.Block{Num: uint32(off / block), More: end < len(p.Payload), SZX: 2})
			part.Payload = p.Payload[off:end]
			m := wire(t, &part)
			if whole == nil {
				whole = m
				continue
			}
			// The options of the last block stand for the whole, Block1 included.
			whole.Options = m.Options
			whole.Payload = append(bytes.Clone(whole.Payload), m.Payload...)
		}
		m, _, err := server.UnprotectRequest(nil, whole)
		if err == nil && (len(m.Payload) != size || m.Options.Has(coap.Block1)) {
			t.Errorf("%+v", m)
		}
		return err
	}
	if err := carry(280); err != nil {
		t.Error(err)
	}
	if err := carry(300); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
}
