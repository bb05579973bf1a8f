package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/secure"
	"github.com/seed4911071e/groupgate/coap/serve"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/oscore"
)

// gmServer is a server over UDP whose requests OSCORE protects, but for
// /authz-info. It has one client at a time.
type gmServer struct {
	t     *testing.T
	conn  net.PacketConn
	core  *serve.Server
	layer atomic.Pointer[secure.Layer]
	inner func(req *coap.Request) *coap.Response

	mu      sync.Mutex
	stored  *secure.Stored                         // guarded by mu
	client  net.Addr                               // guarded by mu
	info    func(*groupcomm.TokenTransferResponse) // guarded by mu
	id      uint16                                 // guarded by mu
	plain   *coap.Response                         // in place of an answer to what is protected; guarded by mu
	clear   int                                    // unprotected requests but posts; guarded by mu
	waiting map[string]chan *coap.Message
}

func newGMServer(t *testing.T, inner func(*coap.Request) *coap.Response) *gmServer {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &gmServer{t: t, conn: conn, inner: inner, waiting: map[string]chan *coap.Message{}}
	s.core = serve.New(s, serve.Config{})
	s.restart()
	over := make(chan struct{})
	go func() { defer close(over); s.run() }()
	t.Cleanup(func() { _ = conn.Close(); <-over })
	return s
}

// restart forgets what was in memory.
func (s *gmServer) restart() {
	s.layer.Store(secure.New(secure.Config{Server: s.core, Contexts: s}))
}

func (s *gmServer) Context(context.Context, []byte) (*secure.Stored, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stored == nil {
		return nil, secure.ErrNone
	}
	c := *s.stored
	return &c, nil
}

// Many is for a start with what was kept, which is nothing here.
func (*gmServer) Many(context.Context, [][]byte) (map[string]*secure.Stored, error) {
	return map[string]*secure.Stored{}, nil
}

func (s *gmServer) Take(_ context.Context, c *secure.Stored, held bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !held {
		c.Epoch++
		s.stored.Epoch = c.Epoch
	}
	return nil
}

func (s *gmServer) Reserve(_ context.Context, _ *secure.Stored, upTo uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stored.Reserved = upTo
	return nil
}

// ServeCoAP is under the server core.
func (s *gmServer) ServeCoAP(ctx context.Context, req *coap.Request) (*coap.Response, error) {
	s.mu.Lock()
	plain := s.plain
	s.mu.Unlock()
	switch {
	case req.Options.Has(coap.OSCOREOption) && plain != nil:
		return plain, nil
	case req.Options.Has(coap.OSCOREOption):
		return s.layer.Load().ServeCoAP(ctx, req)
	case req.Peer.Via == coap.OSCORE:
		return s.inner(req), nil
	case len(req.Path()) == 1 && req.Path()[0] == "authz-info":
		return s.post(req)
	}
	s.mu.Lock()
	s.clear++
	s.mu.Unlock()
	return nil, coap.Errorf(coap.Unauthorized, "")
}

func (s *gmServer) post(req *coap.Request) (*coap.Response, error) {
	tr, err := groupcomm.DecodeTokenTransfer(req.Payload)
	if err != nil {
		return nil, coap.Errorf(coap.BadRequest, "%v", err)
	}
	answer := &groupcomm.TokenTransferResponse{Nonce2: []byte("nonce 22"), ID2: []byte{0x22, 0x22}, KDCChallenge: []byte("N_S of 8")}
	s.mu.Lock()
	s.stored = &secure.Stored{
		Setup: oscore.Setup{Material: *testMaterial(), Nonce1: tr.Nonce1, ID1: tr.ID1, Nonce2: answer.Nonce2, ID2: answer.ID2},
		Link:  "oscore", Subject: coap.Subject{Kind: coap.SubjectOSCORE, ID: "x"},
	}
	if s.info != nil {
		s.info(answer)
	}
	s.mu.Unlock()
	r := &coap.Response{Code: coap.Created, Payload: answer.Encode()}
	r.Options.SetContentFormat(coap.ACE)
	return r, nil
}

func (s *gmServer) run() {
	buf := make([]byte, 4096)
	var work sync.WaitGroup
	defer work.Wait()
	for {
		n, from, err := s.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		m, err := coap.DecodeMessage(buf[:n])
		if err != nil {
			s.t.Errorf("malformed message: %v", err)
			continue
		}
		m = m.Clone()
		if !m.Code.IsRequest() {
			s.mu.Lock()
			if ch := s.waiting[string(m.Token)]; ch != nil && m.Code.IsResponse() {
				delete(s.waiting, string(m.Token))
				ch <- m
			}
			s.mu.Unlock()
			continue
		}
		s.mu.Lock()
		s.client = from
		s.mu.Unlock()
		work.Go(func() {
			reply := s.core.Handle(context.Background(), gmLink{s}, m)
			if reply == nil {
				reply = &coap.Message{}
			}
			out := *reply
			out.Type, out.ID = coap.Acknowledgement, m.ID
			s.write(&out, from)
		})
	}
}

func (s *gmServer) write(m *coap.Message, to net.Addr) {
	b, err := m.MarshalBinary()
	if err != nil {
		s.t.Error(err)
		return
	}
	_, _ = s.conn.WriteTo(b, to) // the test may be over
}

// gmLink is the link to whoever was heard last.
type gmLink struct{ s *gmServer }

func (l gmLink) Peer() coap.Peer {
	return coap.Peer{Link: "udp", Via: coap.Plain, Addr: netip.MustParseAddrPort("127.0.0.1:1")}
}

func (l gmLink) Send(m *coap.Message, done func(error)) {
	l.s.mu.Lock()
	l.s.id++
	out, to := *m, l.s.client
	out.ID = l.s.id
	l.s.mu.Unlock()
	l.s.write(&out, to)
	done(nil)
}

func (l gmLink) Do(ctx context.Context, m *coap.Message) (*coap.Message, error) {
	ch := make(chan *coap.Message, 1)
	l.s.mu.Lock()
	l.s.id++
	out, to := *m, l.s.client
	out.ID, out.Token = l.s.id, fmt.Appendf(nil, "t%d", l.s.id)
	l.s.waiting[string(out.Token)] = ch
	l.s.mu.Unlock()
	l.s.write(&out, to)
	select {
	case r := <-ch:
		return r, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func testMaterial() *oscore.Material {
	return &oscore.Material{ID: []byte{1}, MasterSecret: cose.NewSecret(bytes.Repeat([]byte{3}, 16)), Salt: []byte("salt")}
}

// tell changes the answers to token posts.
func (s *gmServer) tell(change func(*groupcomm.TokenTransferResponse)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.info = change
}

func (s *gmServer) dial() *oscoreConn {
	s.t.Helper()
	tr, info, err := DialOSCORE(s.t.Context(), s.conn.LocalAddr().String(), &Access{Token: []byte("token"), Material: testMaterial()})
	if err != nil {
		s.t.Fatal(err)
	}
	if string(info.KDCChallenge) != "N_S of 8" {
		s.t.Errorf("challenge %q", info.KDCChallenge)
	}
	s.t.Cleanup(func() { _ = tr.Close() })
	return tr.(*oscoreConn)
}

func getting(path ...string) *coap.Request {
	req := &coap.Request{Code: coap.GET}
	req.Options.SetPath(path...)
	return req
}

func TestOSCORETransport(t *testing.T) {
	t.Parallel()
	large := bytes.Repeat([]byte("0123456789abcdef"), 200)
	s := newGMServer(t, func(req *coap.Request) *coap.Response {
		switch req.Path()[0] {
		case "large":
			return &coap.Response{Code: coap.Content, Payload: large}
		case "no":
			return &coap.Response{Code: coap.Forbidden, Payload: []byte("not you")}
		}
		return &coap.Response{Code: coap.Changed, Payload: req.Payload}
	})
	c := s.dial()
	if got := fmt.Sprintf("%v %+v %s", c, c, c.LogValue()); bytes.Contains([]byte(got), []byte{3, 3, 3}) || len(got) > 200 {
		t.Errorf("prints %s", got)
	}
	if r, err := c.Do(t.Context(), getting("large")); err != nil || !bytes.Equal(r.Payload, large) || r.Options.Has(coap.Block2) {
		t.Errorf("%v, %v", r, err)
	}
	post := getting("post")
	post.Code, post.Payload = coap.POST, large
	if r, err := c.Do(t.Context(), post); err != nil || r.Code != coap.Changed || !bytes.Equal(r.Payload, large) {
		t.Errorf("%v, %v", r, err)
	}
	if r, err := c.Do(t.Context(), getting("no")); err != nil || r.Code != coap.Forbidden || string(r.Payload) != "not you" {
		t.Errorf("%v, %v", r, err)
	}
	// What is not protected is nobody's word.
	for _, code := range []coap.Code{coap.Content, coap.NotFound, coap.Unauthorized, coap.ServiceUnavailable} {
		s.mu.Lock()
		s.plain = &coap.Response{Code: code}
		s.mu.Unlock()
		if r, err := c.Do(t.Context(), getting("x")); !errors.Is(err, ErrLost) {
			t.Errorf("unprotected %v: %v, %v", code, r, err)
		}
		if _, err := c.Observe(t.Context(), getting("x"), func(r *coap.Response) { t.Errorf("unprotected %v observed", r.Code) }); !errors.Is(err, ErrLost) {
			t.Errorf("unprotected %v: %v", code, err)
		}
	}
	s.mu.Lock()
	s.plain = nil
	s.mu.Unlock()
	if r, err := c.Do(t.Context(), getting("no")); err != nil || r.Code != coap.Forbidden {
		t.Errorf("afterwards: %v, %v", r, err)
	}
	select {
	case <-c.Restarted():
		t.Error("restarted")
	default:
	}
	// The server lost its memory: it asks for freshness, and is told.
	s.restart()
	if r, err := c.Do(t.Context(), getting("no")); err != nil || r.Code != coap.Forbidden {
		t.Errorf("%v, %v", r, err)
	}
	select {
	case <-c.Restarted():
	default:
		t.Error("nobody says that it was restarted")
	}
}

func TestOSCOREObserve(t *testing.T) {
	t.Parallel()
	body := []byte("first")
	version := uint64(1)
	var mu sync.Mutex
	s := newGMServer(t, func(req *coap.Request) *coap.Response {
		mu.Lock()
		defer mu.Unlock()
		return &coap.Response{Code: coap.Content, Payload: body, Observe: &coap.Observation{Topic: "t", Version: version}}
	})
	c := s.dial()
	got := make(chan *coap.Response, 8)
	observe := func() func(context.Context) error {
		t.Helper()
		cancel, err := c.Observe(t.Context(), getting("t"), func(r *coap.Response) { got <- r })
		if err != nil {
			t.Fatal(err)
		}
		return cancel
	}
	next := func() *coap.Response {
		t.Helper()
		select {
		case r := <-got:
			return r
		case <-time.After(20 * time.Second):
			t.Fatal("no notification")
			return nil
		}
	}
	cancel := observe()
	if r := next(); string(r.Payload) != "first" || !r.Options.Has(coap.ObserveOption) {
		t.Errorf("%v %s", r.Code, r.Payload)
	}
	for _, text := range [][]byte{[]byte("second"), bytes.Repeat([]byte("third "), 500)} {
		mu.Lock()
		version++
		body = text
		n := coap.Notification{Version: version, Body: &coap.Response{Code: coap.Content, Payload: text}}
		mu.Unlock()
		s.core.Publish("t", n)
		if r := next(); !bytes.Equal(r.Payload, text) {
			t.Errorf("%v, %d bytes", r.Code, len(r.Payload))
		}
	}
	if err := cancel(t.Context()); err != nil {
		t.Error(err)
	}
	if err := cancel(t.Context()); err != nil {
		t.Error(err)
	}
	if n := len(s.core.Observers("t")); n != 0 {
		t.Errorf("%d observers", n)
	}
	// Asked for freshness, it registers again with that.
	s.restart()
	cancel = observe()
	next()
	if n := len(s.core.Observers("t")); n != 1 {
		t.Errorf("%d observers", n)
	}
	if err := cancel(t.Context()); err != nil {
		t.Error(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.clear != 0 {
		t.Errorf("%d requests in clear", s.clear)
	}
}

func TestOSCORETake(t *testing.T) {
	t.Parallel()
	s := newGMServer(t, func(*coap.Request) *coap.Response { return &coap.Response{Code: coap.Changed} })
	c := s.dial()
	large := bytes.Repeat([]byte("rekey "), 400)
	var got atomic.Pointer[[]byte]
	c.Take(func(req *coap.Request) *coap.Response {
		body := bytes.Clone(req.Payload)
		got.Store(&body)
		return &coap.Response{Code: coap.Changed, Payload: []byte("taken")}
	})
	if _, err := c.Do(t.Context(), getting("x")); err != nil {
		t.Fatal(err)
	}
	req := getting("node")
	req.Code, req.Payload = coap.POST, large
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r, err := s.core.Do(ctx, "oscore", req)
	if err != nil || r.Code != coap.Changed || string(r.Payload) != "taken" || !bytes.Equal(*got.Load(), large) {
		t.Errorf("%v, %v", r, err)
	}
	// In clear nobody may ask.
	m, err := (gmLink{s}).Do(ctx, &coap.Message{Code: coap.DELETE, Options: getting("node").Options})
	if err != nil || m.Code != coap.Unauthorized {
		t.Errorf("%v, %v", m, err)
	}
	c.Take(nil)
	if m, err := (gmLink{s}).Do(ctx, &coap.Message{Code: coap.DELETE, Options: getting("node").Options}); err != nil || m.Code != coap.NotFound {
		t.Errorf("%v, %v", m, err)
	}
}

// RFC 9203, Section 4.3: what the client stops at.
func TestOSCORESetup(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*groupcomm.TokenTransferResponse){
		"no nonce2":      func(r *groupcomm.TokenTransferResponse) { r.Nonce2 = nil },
		"empty nonce2":   func(r *groupcomm.TokenTransferResponse) { r.Nonce2 = []byte{} },
		"long nonce2":    func(r *groupcomm.TokenTransferResponse) { r.Nonce2 = make([]byte, 65) },
		"no identifier":  func(r *groupcomm.TokenTransferResponse) { r.ID2 = nil },
		"long":           func(r *groupcomm.TokenTransferResponse) { r.ID2 = make([]byte, 8) },
		"long challenge": func(r *groupcomm.TokenTransferResponse) { r.KDCChallenge = make([]byte, 65) },
	} {
		s := newGMServer(t, nil)
		s.tell(change)
		_, _, err := DialOSCORE(t.Context(), s.conn.LocalAddr().String(), &Access{Token: []byte("token"), Material: testMaterial()})
		if !errors.Is(err, ErrBadAnswer) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s := newGMServer(t, nil)
	s.tell(func(r *groupcomm.TokenTransferResponse) { r.ID2 = s.stored.ID1 }) // called with mu held
	if _, _, err := DialOSCORE(t.Context(), s.conn.LocalAddr().String(), &Access{Token: []byte("token"), Material: testMaterial()}); !errors.Is(err, ErrBadAnswer) {
		t.Errorf("both identifiers the same: %v", err)
	}
	if _, _, err := DialOSCORE(t.Context(), s.conn.LocalAddr().String(), &Access{Token: []byte("token")}); err == nil {
		t.Error("a token of the DTLS profile")
	}
}

func TestRequestOSCOREToken(t *testing.T) {
	t.Parallel()
	scope := groupcomm.Scope{{Group: "g", Roles: groupcomm.Requester}}
	ask := func(r TokenRequest, body map[int64]any) (*Access, cose.Map, error) {
		var m cose.Map
		a, err := RequestToken(t.Context(), answering(func(q *coap.Request) *coap.Response {
			var err error
			if m, err = cose.DecodeMap(q.Payload); err != nil {
				t.Error(err)
			}
			return reply(coap.Created, coap.ACE, cose.MustMarshal(body))
		}), r)
		return a, m, err
	}
	osc := map[int64]any{4: cose.Item(testMaterial().Encode())}
	a, req, err := ask(TokenRequest{Scope: scope, OSCORE: true}, map[int64]any{1: []byte("token"), 38: 2, 8: osc})
	if err != nil || !bytes.Equal(a.Material.Encode(), testMaterial().Encode()) {
		t.Fatalf("%v, %v", a, err)
	}
	if p, _, err := req.Int(38); err != nil || p != 2 {
		t.Errorf("asked for profile %d", p)
	}
	update, req, err := ask(TokenRequest{Scope: scope, Update: a}, map[int64]any{1: []byte("token 2"), 38: 2})
	if err != nil || update.Material != a.Material {
		t.Errorf("%v, %v", update, err)
	}
	cnf, _, err := req.Map(4)
	if kid, _, _ := cnf.Bytes(3); err != nil || !bytes.Equal(kid, a.Material.ID) {
		t.Errorf("asked for rights of %x", kid)
	}
	for name, body := range map[string]map[int64]any{
		"no cnf":        {1: []byte("token"), 38: 2},
		"no material":   {1: []byte("token"), 38: 2, 8: map[int64]any{3: []byte{1}}},
		"bad material":  {1: []byte("token"), 38: 2, 8: map[int64]any{4: map[int64]any{0: []byte{1}}}},
		"other profile": {1: []byte("token"), 38: 1, 8: map[int64]any{1: map[int64]any{1: 4, 2: []byte("k"), -1: make([]byte, 16)}}},
	} {
		if _, _, err := ask(TokenRequest{Scope: scope, OSCORE: true}, body); !errors.Is(err, ErrBadAnswer) && !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
