//go:build interop

package interop

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/serve"
	"github.com/seed4911071e/groupgate/oscore"
	"github.com/seed4911071e/groupgate/test/ports"
)

var bigBody = strings.Repeat("0123456789", 500)

// site is what both servers serve.
type site struct {
	mu    sync.Mutex
	count uint64
	hub   atomic.Pointer[serve.Server]
}

func (s *site) ServeCoAP(_ context.Context, req *coap.Request) (*coap.Response, error) {
	text := func(code coap.Code, body string) (*coap.Response, error) {
		return &coap.Response{Code: code, Payload: []byte(body)}, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch path := strings.Join(req.Path(), "/"); {
	case req.Code == coap.GET && path == "hello":
		return text(coap.Content, "hello?"+strings.Join(req.Options.Queries(), "&")+" over OSCORE")
	case req.Code == coap.POST && path == "upper":
		return text(coap.Changed, strings.ToUpper(string(req.Payload)))
	case req.Code == coap.GET && path == "big":
		return text(coap.Content, bigBody)
	case req.Code == coap.GET && path == "counter":
		r, _ := text(coap.Content, fmt.Sprint(s.count))
		r.Observe = &coap.Observation{Topic: "counter", Version: s.count + 1}
		return r, nil
	case req.Code == coap.POST && path == "counter":
		s.count++
		body, _ := text(coap.Content, fmt.Sprint(s.count))
		s.hub.Load().Publish("counter", coap.Notification{Version: s.count + 1, Body: body, Confirm: true})
		return text(coap.Changed, "")
	}
	return nil, coap.Errorf(coap.NotFound, "nothing here")
}

// aiocoap as client: requests, errors, blocks in both directions and observation,
// with every algorithm; and after we lost our Replay Window.
func TestAiocoapClient(t *testing.T) {
	py := python(t)
	for _, s := range suites {
		for _, lost := range []bool{false, true} {
			name := s.name
			if lost {
				if s.name != suites[0].name {
					continue
				}
				name += ", Echo"
			}
			t.Run(name, func(t *testing.T) {
				app := &site{}
				server := startServerIn(t, s.context(t, func(p *oscore.Params) {
					if lost {
						p.Window = &oscore.WindowState{}
					}
				}), app)
				app.hub.Store(server.core)
				out := start(t, py, "testdata/aiocoap_client.py", fmt.Sprint("coap://", server.conn.LocalAddr()), s.folder(t, false))
				for _, want := range []struct{ Step, Code, Payload string }{
					{"get", "2.05", "hello?x=1 over OSCORE"},
					{"post", "2.04", "SMALL"},
					{"put missing", "4.04", "nothing here"},
					{"block1", "2.04", strings.Repeat("ABCDEFGH", 400)},
					{"block2", "2.05", bigBody},
					{"registered", "2.05", "0"},
					{"count", "2.04", ""}, {"notified", "2.05", "1"},
					{"count", "2.04", ""}, {"notified", "2.05", "2"},
					{"count", "2.04", ""}, {"notified", "2.05", "3"},
				} {
					if !out.Scan() {
						t.Fatalf("the client ended before %s", want.Step)
					}
					var got struct{ Step, Code, Payload string }
					if err := json.Unmarshal(out.Bytes(), &got); err != nil {
						t.Fatalf("%s: %v", out.Text(), err)
					}
					if got != want {
						t.Errorf("got %+v, want %+v", got, want)
					}
				}
				server.mu.Lock()
				defer server.mu.Unlock()
				if (server.challenge > 0) != lost {
					t.Errorf("%d challenges", server.challenge)
				}
			})
		}
	}
}

// aiocoap as server, the same way; and after it lost its Replay Window.
func TestAiocoapServer(t *testing.T) {
	py := python(t)
	for _, s := range suites {
		for _, lost := range []bool{false, true} {
			name := s.name
			if lost {
				if s.name != suites[0].name {
					continue
				}
				name += ", Echo"
			}
			t.Run(name, func(t *testing.T) {
				n := ports.Free(t)
				await(t, start(t, py, "testdata/aiocoap_server.py", fmt.Sprint(n), s.folder(t, lost)), "ready")
				c := newClientIn(t, fmt.Sprint("127.0.0.1:", n), s.context(t, nil))
				useServer(t, c)
				if (c.echoed > 0) != lost {
					t.Errorf("%d requests with Echo", c.echoed)
				}
			})
		}
	}
}

// useServer asks a server of the other implementation for everything.
func useServer(t *testing.T, c *client) {
	t.Helper()
	for _, x := range []struct {
		code          coap.Code
		path, payload string
		want          coap.Code
		body          string
	}{
		{coap.GET, "hello", "", coap.Content, "hello over OSCORE"},
		{coap.POST, "upper", "small", coap.Changed, "SMALL"},
		{coap.POST, "upper", strings.Repeat("abcdefgh", 400), coap.Changed, strings.Repeat("ABCDEFGH", 400)},
		{coap.GET, "big", "", coap.Content, bigBody},
		{coap.PUT, "missing", "x", coap.NotFound, ""},
	} {
		if r := c.ask(x.code, x.path, []byte(x.payload)); r.Code != x.want || x.body != "" && string(r.Payload) != x.body {
			t.Errorf("%v %s: %v %.60q", x.code, x.path, r.Code, r.Payload)
		}
	}
	register := &coap.Message{Code: coap.GET}
	register.Options.SetUint(coap.ObserveOption, 0)
	register.Options.SetPath("counter")
	ex, token, err := c.send(t.Context(), register)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 4 {
		r, err := c.next(ex, token)
		if err != nil {
			t.Fatal(err)
		}
		if string(r.Payload) != fmt.Sprint(n) || r.Code != coap.Content || !r.Options.Has(coap.ObserveOption) {
			t.Errorf("notification %d: %+v", n, r)
		}
		if n < 3 {
			post := &coap.Message{Code: coap.POST}
			post.Options.SetPath("counter")
			if _, _, err := c.send(t.Context(), post); err != nil {
				t.Fatal(err)
			}
		}
	}
}
