package plugin

import (
	"bytes"
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/serve"
)

// plainLink is an address on plain UDP.
type plainLink struct{ addr netip.AddrPort }

func (l plainLink) Peer() coap.Peer {
	return coap.Peer{Link: coap.LinkID(l.addr.String()), Addr: l.addr, Via: coap.Plain}
}
func (l plainLink) Send(*coap.Message, func(error)) {}

// TestAmplification: an address that has not shown that it receives is sent no
// more than 136 bytes for a request; all of a large answer comes to who asks for
// its blocks, and in large ones to who returns Echo.
func TestAmplification(t *testing.T) {
	r := newReceives()
	body := bytes.Repeat([]byte("</ace-group/g>,"), 100)
	now := time.Now()
	core := serve.New(coap.HandlerFunc(func(_ context.Context, req *coap.Request) (*coap.Response, error) {
		resp := &coap.Response{Code: coap.Content, Payload: body}
		resp.Options.SetContentFormat(coap.LinkFormat)
		r.bound(req, resp, now)
		return resp, nil
	}), serve.Config{})
	one, other := plainLink{netip.MustParseAddrPort("192.0.2.1:5683")}, plainLink{netip.MustParseAddrPort("192.0.2.2:5683")}
	ask := func(l plainLink, echo []byte, block *coap.Block) *coap.Message {
		t.Helper()
		m := &coap.Message{Type: coap.Confirmable, Code: coap.GET, Token: []byte("12345678")}
		m.Options.SetPath(".well-known", "core")
		if echo != nil {
			m.Options.Set(coap.Echo, echo)
		}
		if block != nil {
			m.Options.SetBlock(coap.Block2, *block)
		}
		return core.Handle(t.Context(), l, m)
	}
	size := func(m *coap.Message) int {
		b, err := m.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		return len(b)
	}
	var echo, got []byte
	for block := (*coap.Block)(nil); ; {
		// A client may ask for larger ones, and gets them as little.
		m := ask(one, nil, block)
		if m.Code != coap.Content || size(m) > 136 {
			t.Fatalf("%v, %d bytes", m.Code, size(m))
		}
		if v, ok := m.Options.Get(coap.Echo); ok {
			echo = v
		}
		got = append(got, m.Payload...)
		b, err := m.Options.Block(coap.Block2)
		if err != nil || b == nil {
			t.Fatal(b, err)
		}
		if !b.More {
			break
		}
		block = &coap.Block{Num: uint32(len(got)) >> 6, SZX: 2}
	}
	if !bytes.Equal(got, body) {
		t.Errorf("%d bytes of %d", len(got), len(body))
	}
	if m := ask(other, nil, &coap.Block{SZX: 6}); size(m) > 136 {
		t.Errorf("%d bytes for a large block", size(m))
	}
	if m := ask(one, echo, nil); len(m.Payload) != 1024 || m.Options.Has(coap.Echo) {
		t.Errorf("with Echo: %d bytes", len(m.Payload))
	}
	if m := ask(other, echo, nil); size(m) > 136 {
		t.Errorf("with another's Echo: %d bytes", size(m))
	}
	now = now.Add(echoLives)
	if m := ask(one, echo, nil); len(m.Payload) != 1024 {
		t.Errorf("later: %d bytes", len(m.Payload))
	}
	now = now.Add(2 * echoLives)
	if m := ask(one, echo, nil); size(m) > 136 {
		t.Errorf("much later: %d bytes", size(m))
	}
}
