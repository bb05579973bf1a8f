package plugin

import (
	"errors"
	"strings"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/message/pool"
	"github.com/plgd-dev/go-coap/v3/mux"

	"github.com/seed4911071e/groupgate/coap"
)

// TestCrowd: one key of proof keeps its newest associations, others are not
// touched, and nothing is left of what ended.
func TestCrowd(t *testing.T) {
	var c crowd
	pop := coap.Subject{Kind: coap.SubjectPoP, ID: "k"}
	var links []*hostLink
	for i := range maxAssociations + 3 {
		l := &hostLink{subject: pop}
		links = append(links, l)
		var want association
		if i >= maxAssociations {
			want = links[i-maxAssociations]
		}
		if got := c.enter(l); got != want {
			t.Fatalf("association %d: another one than the oldest is to go", i)
		}
	}
	for range 3 * maxAssociations {
		if c.enter(&hostLink{subject: coap.Subject{Kind: coap.SubjectPSK, ID: "k"}}) != nil {
			t.Fatal("a configured key was counted")
		}
	}
	for _, l := range links {
		c.leave(l)
		c.leave(l)
	}
	if len(c.of) != 0 {
		t.Errorf("%d keys are left", len(c.of))
	}
}

// response is where a handler writes to.
type response struct {
	mux.ResponseWriter
	conn mux.Conn
	m    *pool.Message
}

func (r *response) Conn() mux.Conn         { return r.conn }
func (r *response) Message() *pool.Message { return r.m }

// TestServedAfterClose: go-coap tells once that a connection is closed. A
// request of its last moments that is served after that leaves nothing behind.
func TestServedAfterClose(t *testing.T) {
	h := host(t, "own blockwise and monitor")
	r := h.raw(t)
	r.send(&coap.Message{Type: coap.Confirmable, Code: coap.GET, ID: 1, Token: []byte{1}})
	r.receive()
	conn := <-h.conns
	link, ok := h.g.known(conn)
	if !ok {
		t.Fatal("no link after a request")
	}
	_ = conn.Close()
	eventually(t, "the end of the connection", func() bool { _, ok := h.g.known(conn); return !ok })

	ctx := t.Context()
	for name, late := range map[string]func(){
		"request": func() {
			m := pool.NewMessage(ctx)
			m.SetCode(codes.GET)
			h.g.serve(&response{conn: conn, m: pool.NewMessage(ctx)}, &mux.Message{Message: m})
		},
		"connection": func() { h.g.Connected(conn) },
	} {
		late()
		if _, ok := h.g.links.Load(connKey(conn)); ok {
			t.Errorf("%s: the link of a closed connection stays", name)
		}
		if _, err := h.g.server.Do(ctx, link.id, &coap.Request{Code: coap.GET}); !errors.Is(err, coap.ErrGone) {
			t.Errorf("%s: the server core still knows the peer: %v", name, err)
		}
	}
}

// TestServedDuringClose: the same when the end comes while the request is
// worked on: its link was made before.
func TestServedDuringClose(t *testing.T) {
	h := host(t, "own blockwise and monitor")
	r := h.raw(t)
	r.send(&coap.Message{Type: coap.Confirmable, Code: coap.GET, ID: 1, Token: []byte{1}})
	r.receive()
	conn := <-h.conns
	link, _ := h.g.known(conn)
	_ = conn.Close()
	eventually(t, "the end of the connection", func() bool { _, ok := h.g.known(conn); return !ok })
	e := &linkEntry{}
	e.once.Do(func() { e.link.Store(link) })
	h.g.links.Store(connKey(conn), e) // as the request found it
	m := pool.NewMessage(t.Context())
	m.SetCode(codes.GET)
	h.g.serve(&response{conn: conn, m: pool.NewMessage(t.Context())}, &mux.Message{Message: m})
	if _, err := h.g.server.Do(t.Context(), link.id, &coap.Request{Code: coap.GET}); !errors.Is(err, coap.ErrGone) || !strings.Contains(err.Error(), "no such link") {
		t.Errorf("the server core still knows the peer: %v", err)
	}
}
