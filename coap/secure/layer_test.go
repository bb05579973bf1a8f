package secure_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/coaptest"
	"github.com/seed4911071e/groupgate/coap/serve"
	"github.com/seed4911071e/groupgate/oscore"
)

func TestServe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(1, 2)
		g := start(t, s, hello)
		l := g.over("plain", coaptest.Options{})
		for id, want := range map[byte]string{1: "[x y] oscore-1 3", 2: "[x y] oscore-2 3"} {
			c := newClient(t, s, id)
			for range 3 {
				if r := c.ask(l, get("x", "y")); r.Code != coap.Content || string(r.Payload) != want {
					t.Errorf("%v %s, want %s", r.Code, r.Payload, want)
				}
			}
		}
		if !g.layer.Uses("plain") || g.layer.Uses("other") {
			t.Error("the outer link is not known as one in use")
		}
	})
}

// RFC 8613, Section 8.2.
func TestRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(1, 2)
		g := start(t, s, hello)
		l := g.over("plain", coaptest.Options{})
		c := newClient(t, s, 1)
		p, ex := c.protect(get("x"))
		with := func(change func(*coap.Message)) *coap.Message {
			m := p.Clone()
			change(m)
			return m
		}
		option := func(o oscore.Option) func(*coap.Message) {
			return func(m *coap.Message) {
				v, err := o.Append(nil)
				if err != nil {
					t.Fatal(err)
				}
				m.Options.Set(coap.OSCOREOption, v)
			}
		}
		for _, x := range []struct {
			name string
			m    *coap.Message
			want coap.Code
		}{
			{"no kid", with(option(oscore.Option{PIV: []byte{0}})), coap.BadOption},
			{"no Partial IV", with(option(oscore.Option{KID: []byte{1}})), coap.BadOption},
			{"empty option", with(option(oscore.Option{})), coap.BadOption},
			{"reserved bit", with(func(m *coap.Message) { m.Options.Set(coap.OSCOREOption, []byte{0x89, 0, 1}) }), coap.BadOption},
			{"no payload", with(func(m *coap.Message) { m.Payload = nil }), coap.BadOption},
			{"unknown kid", with(option(oscore.Option{PIV: []byte{0}, KID: []byte{9}})), coap.Unauthorized},
			{"kid context", with(option(oscore.Option{PIV: []byte{0}, KID: []byte{1}, KIDContext: []byte{7}})), coap.Unauthorized},
			{"of another", with(option(oscore.Option{PIV: []byte{0}, KID: []byte{2}})), coap.BadRequest},
			{"altered", with(func(m *coap.Message) { m.Payload[0] ^= 1 }), coap.BadRequest},
		} {
			simple(t, x.name, send(t, l, x.m), x.want)
		}
		// Nothing of that changed anything: the message itself is served.
		if r := c.open(ex, send(t, l, p)); r.Code != coap.Content {
			t.Errorf("%v", r.Code)
		}
		simple(t, "again", send(t, l, p), coap.Unauthorized)
		for id, row := range s.rows {
			if row.Epoch != 0 && id != "\x01" {
				t.Errorf("context %x was taken", id)
			}
		}
		// RFC 9203, Section 4.3: a context is not used after its token has ended.
		s.end(1)
		p, _ = c.protect(get("x"))
		simple(t, "token ended", send(t, l, p), coap.Unauthorized)
	})
}

// What a handler answers goes back protected, errors too; what a client does not
// want to have does not go back at all.
func TestAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(1)
		var got []byte
		g := start(t, s, func(_ context.Context, req *coap.Request) (*coap.Response, error) {
			got = bytes.Clone(req.Payload)
			switch req.Path()[0] {
			case "no":
				return nil, coap.Errorf(coap.Forbidden, "not you")
			case "large":
				return &coap.Response{Code: coap.Content, Payload: bytes.Repeat([]byte("0123456789"), 500)}, nil
			}
			return &coap.Response{Code: coap.Changed}, nil
		})
		largest, sent := 0, 0
		l := g.over("plain", coaptest.Options{Trace: func(toServer bool, m *coap.Message) {
			if !toServer && m.Code != coap.Empty {
				sent++
				largest = max(largest, len(m.Payload))
				if m.Options.Has(coap.Block2) || m.Options.Has(coap.ETag) || m.Code == coap.Content {
					t.Errorf("shows outside: %v %v", m.Code, m.Options)
				}
			}
		}})
		c := newClient(t, s, 1)
		if r := c.ask(l, get("no")); r.Code != coap.Forbidden || string(r.Payload) != "not you" {
			t.Errorf("%v %s", r.Code, r.Payload)
		}
		resp, err := serve.RoundTrip(t.Context(), requester{c, l}, &coap.Request{Code: coap.GET, Options: get("large").Options}, 1024, 1<<16)
		if err != nil || len(resp.Payload) != 5000 {
			t.Fatalf("%v, %v", resp, err)
		}
		if largest <= 1024 || largest > 1152 {
			t.Errorf("the largest message has %d bytes", largest)
		}
		body := bytes.Repeat([]byte("abcdefgh"), 400)
		post := &coap.Request{Code: coap.POST, Options: get("post").Options, Payload: body}
		if resp, err := serve.RoundTrip(t.Context(), requester{c, l}, post, 512, 1<<16); err != nil || resp.Code != coap.Changed || !bytes.Equal(got, body) {
			t.Errorf("%v, %v", resp, err)
		}
		sent = 0
		quiet := get("quiet")
		quiet.Options.SetUint(coap.NoResponse, 2)
		p, _ := c.protect(quiet)
		p.Options.SetUint(coap.NoResponse, 26) // of the outside: for proxies
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if r, err := l.Exchange(ctx, p); !errors.Is(err, context.DeadlineExceeded) || sent != 0 {
			t.Errorf("%v, %v", r, err)
		}
		refused := get("no")
		refused.Options.SetUint(coap.NoResponse, 2)
		p, ex := c.protect(refused)
		p.Options.SetUint(coap.NoResponse, 26)
		if r := c.open(ex, send(t, l, p)); r.Code != coap.Forbidden {
			t.Errorf("%v", r.Code)
		}
	})
}

// A transfer in blocks outside, as a proxy makes it, is undone before.
func TestOuterBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(1)
		g := start(t, s, func(_ context.Context, req *coap.Request) (*coap.Response, error) {
			return &coap.Response{Code: coap.Changed, Payload: req.Payload}, nil
		})
		l := g.over("plain", coaptest.Options{BlockSize: 64})
		c := newClient(t, s, 1)
		m := get("echo")
		m.Code, m.Payload = coap.POST, bytes.Repeat([]byte("x"), 300)
		p, ex := c.protect(m)
		p.Options.SetBlock(coap.Block2, coap.Block{SZX: 2})
		r, err := l.Do(t.Context(), &coap.Request{Code: p.Code, Options: p.Options, Payload: p.Payload})
		if err != nil {
			t.Fatal(err)
		}
		inner := c.open(ex, &coap.Message{Code: r.Code, Options: r.Options, Payload: r.Payload})
		if inner.Code != coap.Changed || !bytes.Equal(inner.Payload, m.Payload) {
			t.Errorf("%v, %d bytes", inner.Code, len(inner.Payload))
		}
	})
}

// requester is a client for transfers in inner blocks.
type requester struct {
	c *client
	l *coaptest.Link
}

func (r requester) Do(_ context.Context, m *coap.Message) (*coap.Message, error) {
	return r.c.ask(r.l, m), nil
}

// topic is a resource that can be observed.
func topic(version *uint64) coap.HandlerFunc {
	return func(_ context.Context, req *coap.Request) (*coap.Response, error) {
		return &coap.Response{
			Code: coap.Content, Payload: fmt.Appendf(nil, "v%d", *version), Observe: &coap.Observation{Topic: "t", Version: *version},
		}, nil
	}
}

// outcomes collects what Done reports.
type outcomes struct {
	mu  sync.Mutex
	got []error
}

func (o *outcomes) note(version uint64, text string) coap.Notification {
	return coap.Notification{
		Version: version, Confirm: true, Body: &coap.Response{Code: coap.Content, Payload: []byte(text)},
		Done: func(_ coap.LinkID, _ uint64, err error) {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.got = append(o.got, err)
		},
	}
}

func (o *outcomes) take() []error {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := o.got
	o.got = nil
	return out
}

// observer is a client that registered, over one link.
type observer struct {
	c   *client
	ex  *oscore.Exchange
	mu  sync.Mutex
	got []string
}

func (o *observer) add(r *coap.Response) {
	o.mu.Lock()
	defer o.mu.Unlock()
	inner, err := o.c.ctx.UnprotectResponse(nil, o.ex, &coap.Message{Code: r.Code, Options: r.Options, Payload: r.Payload})
	if err != nil {
		o.got = append(o.got, err.Error())
		return
	}
	o.got = append(o.got, fmt.Sprintf("%v %s %v", inner.Code, inner.Payload, r.Code))
}

func (o *observer) take() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := fmt.Sprint(o.got)
	o.got = nil
	return out
}

func (c *client) observe(l *coaptest.Link) (*observer, func(context.Context) error) {
	c.t.Helper()
	m := get("t")
	m.Options.SetUint(coap.ObserveOption, 0)
	p, ex := c.protect(m)
	o := &observer{c: c, ex: ex}
	cancel, err := l.Observe(c.t.Context(), &coap.Request{Code: p.Code, Options: p.Options, Payload: p.Payload}, o.add)
	if err != nil {
		c.t.Fatal(err)
	}
	return o, cancel
}

// RFC 8613, Section 4.1.3.5: notifications have Partial IVs of their own, and show
// outside that they are some. That they arrived nobody has said who could know.
func TestObserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(1)
		version := uint64(1)
		g := start(t, s, topic(&version))
		l := g.over("plain", coaptest.Options{})
		c := newClient(t, s, 1)
		o, _ := c.observe(l)
		if got := o.take(); got != "[2.05 v1 2.05]" {
			t.Fatal(got)
		}
		var done outcomes
		for v := uint64(2); v < 5; v++ {
			g.srv.Publish("t", done.note(v, fmt.Sprintf("v%d", v)))
			settle(time.Second)
			if got := o.take(); got != fmt.Sprintf("[2.05 v%d 2.05]", v) {
				t.Errorf("notification: %s", got)
			}
			if got := done.take(); len(got) != 1 || !errors.Is(got[0], coap.ErrRelayed) {
				t.Errorf("outcome %v", got)
			}
		}
		// From another address: what follows goes there.
		other := g.over("plain 2", coaptest.Options{})
		if r := c.ask(other, get("t")); r.Code != coap.Content {
			t.Fatal(r.Code)
		}
		if g.layer.Uses("plain") || !g.layer.Uses("plain 2") {
			t.Error("the link in use is the one before")
		}
		g.srv.Publish("t", done.note(5, "v5"))
		settle(200 * time.Second)
		if got := o.take(); got != "[]" {
			t.Errorf("over the link of before: %s", got)
		}
		// The other end has no such observation: it rejects.
		if got := done.take(); len(got) != 1 || !errors.Is(got[0], coap.ErrReset) {
			t.Errorf("outcome %v", got)
		}
		if n := len(g.srv.Observers("t")); n != 0 {
			t.Errorf("%d observers", n)
		}
	})
}

// TestRejected: a Reset of a notification that was not confirmable ends the observation
// (RFC 7641, Section 3.6) where DTLS shows who sent it; over plain UDP the next
// notification is confirmable, and tells.
func TestRejected(t *testing.T) {
	for _, c := range []struct {
		via       coap.Security
		observers int
		next      error
	}{
		{coap.DTLSPSK, 0, nil},
		{coap.Plain, 1, coap.ErrReset}, // the client knows of no observation
	} {
		synctest.Test(t, func(t *testing.T) {
			s := newShelf(1)
			version := uint64(1)
			g := start(t, s, topic(&version))
			l := coaptest.NewLink(g.srv, coap.Peer{Link: "below", Via: c.via}, coaptest.Options{})
			t.Cleanup(l.Close)
			m := get("t")
			m.Options.SetUint(coap.ObserveOption, 0)
			p, _ := newClient(t, s, 1).protect(m)
			token := []byte{7}
			p.Token = token
			send(t, l, p)
			say := func(v uint64) error {
				var done outcomes
				n := done.note(v, fmt.Sprint("v", v))
				n.Confirm = false
				g.srv.Publish("t", n)
				settle(time.Second)
				if got := done.take(); len(got) == 1 {
					return got[0]
				}
				return nil
			}
			if err := say(2); err != nil {
				t.Error(err)
			}
			g.layer.Cancel("else", token)
			g.layer.Cancel("below", []byte("none"))
			if n := len(g.srv.Observers("t")); n != 1 || say(3) != nil {
				t.Errorf("via %v: a Reset of nothing leaves %d observers", c.via, n)
			}
			g.layer.Cancel("below", token)
			if n := len(g.srv.Observers("t")); n != c.observers {
				t.Errorf("via %v: %d observers", c.via, n)
			}
			if err := say(4); !errors.Is(err, c.next) {
				t.Errorf("via %v: the next notification: %v", c.via, err)
			}
			if n := len(g.srv.Observers("t")); n != 0 {
				t.Errorf("via %v: %d observers at the end", c.via, n)
			}
		})
	}
}

func TestDeregister(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(1)
		version := uint64(1)
		g := start(t, s, topic(&version))
		l := g.over("plain", coaptest.Options{})
		c := newClient(t, s, 1)
		m := get("t")
		m.Options.SetUint(coap.ObserveOption, 0)
		p, ex := c.protect(m)
		p.Token = []byte{7}
		if r := c.open(ex, send(t, l, p)); !r.Options.Has(coap.ObserveOption) {
			t.Fatal("not registered")
		}
		m.Options.SetUint(coap.ObserveOption, 1)
		p, ex = c.protect(m)
		p.Token = []byte{7}
		if r := c.open(ex, send(t, l, p)); r.Options.Has(coap.ObserveOption) || len(g.srv.Observers("t")) != 0 {
			t.Error("still registered")
		}
	})
}

// A link that is gone is no end of the observation: who was heard elsewhere gets
// what it missed.
func TestLinkGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(1)
		version := uint64(1)
		g := start(t, s, topic(&version))
		first := g.over("plain", coaptest.Options{})
		c := newClient(t, s, 1)
		_, _ = c.observe(first)
		first.Close()
		var done outcomes
		g.srv.Publish("t", done.note(2, "v2"))
		settle(time.Second)
		if got := done.take(); len(got) != 1 || !errors.Is(got[0], coap.ErrTimeout) {
			t.Fatalf("outcome %v", got)
		}
		if n := len(g.srv.Observers("t")); n != 1 {
			t.Errorf("%d observers", n)
		}
	})
}

// The last word to observers comes after the end of their token.
func TestDrop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(1)
		version := uint64(1)
		g := start(t, s, topic(&version))
		l := g.over("plain", coaptest.Options{})
		c := newClient(t, s, 1)
		o, _ := c.observe(l)
		o.take()
		s.end(1)
		g.layer.Drop([]coap.LinkID{"oscore-1", "oscore-9"})
		p, _ := c.protect(get("t"))
		simple(t, "dropped", send(t, l, p), coap.Unauthorized)
		g.srv.Drop("t", "oscore-1", &coap.Response{Code: coap.Unauthorized})
		settle(time.Second)
		if got := o.take(); got != "[4.01  2.04]" {
			t.Errorf("the last word: %s", got)
		}
		if !g.layer.Uses("plain") {
			t.Error("the outer link may be closed before the last word")
		}
		settle(time.Minute)
		if n := len(g.srv.Observers("t")); n != 0 || g.layer.Uses("plain") {
			t.Errorf("%d observers, outer link in use %v", n, g.layer.Uses("plain"))
		}
	})
}

// RFC 9203, Section 6.6 of the gateway's own requests: the roles are swapped, the
// context is the same.
func TestDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(1)
		g := start(t, s, hello)
		c := newClient(t, s, 1)
		var got []byte
		back := serve.New(coap.HandlerFunc(func(_ context.Context, req *coap.Request) (*coap.Response, error) {
			got = bytes.Clone(req.Payload)
			return &coap.Response{Code: coap.Changed, Payload: []byte("ok")}, nil
		}), serve.Config{})
		l := g.over("plain", coaptest.Options{Handler: coap.HandlerFunc(func(ctx context.Context, req *coap.Request) (*coap.Response, error) {
			x, _ := coap.ExchangeOf(ctx)
			inner, ex, err := c.ctx.UnprotectRequest(nil, &coap.Message{Code: req.Code, Options: req.Options, Payload: req.Payload})
			if err != nil {
				return nil, err
			}
			p, err := c.ctx.ProtectResponse(ctx, nil, ex, back.Handle(ctx, x.Link, inner))
			if err != nil {
				return nil, err
			}
			return &coap.Response{Code: p.Code, Options: p.Options, Payload: p.Payload}, nil
		})})
		req := &coap.Request{Code: coap.POST, Options: get("node").Options, Payload: bytes.Repeat([]byte("k"), 3000)}
		if _, err := g.srv.Do(t.Context(), "oscore-1", req); !errors.Is(err, coap.ErrGone) {
			t.Errorf("before it was heard: %v", err)
		}
		c.ask(l, get("x"))
		resp, err := g.srv.Do(t.Context(), "oscore-1", req)
		if err != nil || resp.Code != coap.Changed || string(resp.Payload) != "ok" || !bytes.Equal(got, req.Payload) {
			t.Errorf("%v, %v", resp, err)
		}
	})
}

// The least recently used context leaves memory, and comes back.
func TestMaxContexts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(1, 2, 3, 4, 5, 6)
		g := start(t, s, hello)
		l := g.over("plain", coaptest.Options{})
		var clients []*client
		for id := byte(1); id <= 6; id++ {
			clients = append(clients, newClient(t, s, id))
			if _, challenged := clients[id-1].askFresh(l, get("x")); challenged {
				t.Errorf("new context %d was challenged", id)
			}
			settle(time.Second)
		}
		if r, challenged := clients[0].askFresh(l, get("x")); !challenged || r.Code != coap.Content {
			t.Errorf("%v, challenged %v", r.Code, challenged)
		}
		if r, challenged := clients[5].askFresh(l, get("x")); challenged || r.Code != coap.Content {
			t.Errorf("%v, challenged %v", r.Code, challenged)
		}
		// A day without a word.
		settle(25 * time.Hour)
		if r, challenged := clients[5].askFresh(l, get("x")); !challenged || r.Code != coap.Content {
			t.Errorf("%v, challenged %v", r.Code, challenged)
		}
	})
}
