package node

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/dtls/v3"
	coapdtls "github.com/plgd-dev/go-coap/v3/dtls"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/mux"
	coapnet "github.com/plgd-dev/go-coap/v3/net"
	"github.com/plgd-dev/go-coap/v3/options"
	"github.com/plgd-dev/go-coap/v3/udp"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/test/ports"
)

// waitFor polls for what real sockets do in their own time.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("waited in vain: %s", what)
}

// peer is a stock go-coap server with a resource for each thing a transport must
// carry.
type peer struct {
	mu       sync.Mutex
	observer mux.Conn
	token    message.Token
	list     map[string]bool // of observers, by token
	got      []byte          // body of the last request to /echo
}

func (p *peer) router() *mux.Router {
	r := mux.NewRouter()
	handle := func(path string, f func(w mux.ResponseWriter, r *mux.Message)) {
		if err := r.Handle(path, mux.HandlerFunc(f)); err != nil {
			panic(err)
		}
	}
	handle("/echo", func(w mux.ResponseWriter, r *mux.Message) {
		body, _ := r.ReadBody()
		p.mu.Lock()
		p.got = bytes.Clone(body)
		p.mu.Unlock()
		_ = w.SetResponse(codes.Changed, message.AppCBOR, bytes.NewReader(body))
	})
	handle("/refuse", func(w mux.ResponseWriter, r *mux.Message) {
		body := (&coap.ProblemBody{ID: 0}).Encode()
		_ = w.SetResponse(codes.Forbidden, message.MediaType(coap.ProblemDetails), bytes.NewReader(body))
	})
	handle("/silent", func(w mux.ResponseWriter, r *mux.Message) {
		if obs, err := r.Options().Observe(); err == nil {
			p.enlist(r.Token(), obs == 0)
		}
		if !r.HasOption(message.OptionID(coap.NoResponse)) {
			_ = w.SetResponse(codes.Content, message.TextPlain, strings.NewReader("not wanted"))
		}
	})
	handle("/state", func(w mux.ResponseWriter, r *mux.Message) {
		obs, err := r.Options().Observe()
		if err == nil {
			p.enlist(r.Token(), obs == 0)
		}
		_ = w.SetResponse(codes.Content, message.TextPlain, strings.NewReader("first"))
		if err == nil && obs == 0 {
			w.Message().SetObserve(1)
			p.mu.Lock()
			p.observer, p.token = w.Conn(), bytes.Clone(r.Token())
			p.mu.Unlock()
		}
	})
	handle("/plain", func(w mux.ResponseWriter, r *mux.Message) {
		_ = w.SetResponse(codes.Content, message.TextPlain, strings.NewReader("not observable"))
	})
	return r
}

func (p *peer) enlist(token message.Token, in bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if delete(p.list, string(token)); in {
		if p.list == nil {
			p.list = map[string]bool{}
		}
		p.list[string(token)] = true
	}
}

func (p *peer) observers() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.list)
}

// notify sends one confirmable notification; the last has no Observe option.
func (p *peer) notify(code codes.Code, seq uint32, body string) error {
	p.mu.Lock()
	c, token := p.observer, p.token
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	m := c.AcquireMessage(ctx)
	defer c.ReleaseMessage(m)
	m.SetCode(code)
	m.SetToken(token)
	if seq != 0 {
		m.SetObserve(seq)
	}
	m.SetBody(strings.NewReader(body))
	return c.WriteMessage(m)
}

func quietErrors(error) {}

func serveUDP(t *testing.T) (*peer, string) {
	t.Helper()
	l, err := coapnet.NewListenUDP("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{}
	s := udp.NewServer(options.WithMux(p.router()), options.WithErrors(quietErrors))
	over := make(chan struct{})
	go func() { defer close(over); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); _ = l.Close(); <-over })
	return p, l.LocalAddr().String()
}

func serveDTLS(t *testing.T, psk func(identity []byte) ([]byte, error), more ...dtls.ServerOption) (*peer, string) {
	t.Helper()
	l, err := coapnet.NewDTLSListener("udp", "127.0.0.1:0", coapnet.NewDTLSServerOptions(append([]dtls.ServerOption{
		dtls.WithPSK(psk), dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_CCM_8), dtls.WithConnectionIDGenerator(dtls.RandomCIDGenerator(8)),
	}, more...)...))
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{}
	s := coapdtls.NewServer(options.WithMux(p.router()), options.WithErrors(quietErrors))
	over := make(chan struct{})
	go func() { defer close(over); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); _ = l.Close(); <-over })
	return p, l.Addr().String()
}

func get(path string) *coap.Request {
	req := &coap.Request{Code: coap.GET}
	req.Options.SetPath(path)
	return req
}

// Both transports: requests, refusals, bodies of several blocks, observations.
func TestTransports(t *testing.T) {
	t.Parallel()
	t.Run("udp", func(t *testing.T) {
		p, addr := serveUDP(t)
		tr, err := DialUDP(t.Context(), addr)
		if err != nil {
			t.Fatal(err)
		}
		exercise(t, p, tr)
	})
	t.Run("dtls", func(t *testing.T) {
		access := &Access{Token: []byte("t"), KID: []byte{0x3d, 2, 0x78, 0x33, 0xfc, 0x62, 0x67, 0xce}}
		var v struct {
			Identity string `json:"psk_identity_kid_form"`
		}
		readJSON(t, "rfc9202-psk.json", &v)
		if !bytes.Equal(access.Identity(), unhex(t, v.Identity)) {
			t.Fatalf("identity %x", access.Identity())
		}
		key := []byte("0123456789abcdef")
		p, addr := serveDTLS(t, func(identity []byte) ([]byte, error) {
			if !bytes.Equal(identity, access.Identity()) {
				return nil, errors.New("unknown identity")
			}
			return key, nil
		})
		tr, err := DialDTLS(t.Context(), addr, access.Identity(), key)
		if err != nil {
			t.Fatal(err)
		}
		ns, err := Challenge(tr)
		if err != nil || len(ns) != 32 {
			t.Errorf("challenge %x, %v", ns, err)
		}
		exercise(t, p, tr)
		if _, err := tr.Do(t.Context(), get("echo")); !errors.Is(err, ErrLost) {
			t.Errorf("after Close: %v", err)
		}
	})
}

func exercise(t *testing.T, p *peer, tr Transport) {
	t.Helper()
	ctx := t.Context()
	body := bytes.Repeat([]byte("0123456789"), 500) // five blocks
	req := &coap.Request{Code: coap.POST, Payload: body}
	req.Options.SetPath("echo")
	req.Options.SetContentFormat(coap.CBOR)
	resp, err := tr.Do(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	if f, ok := resp.Options.ContentFormat(); resp.Code != coap.Changed || !ok || f != coap.CBOR || !bytes.Equal(resp.Payload, body) || !bytes.Equal(p.got, body) {
		t.Errorf("echo: %v, %d bytes there and %d back", resp.Code, len(p.got), len(resp.Payload))
	}
	if _, blocks := resp.Options.Get(coap.Block2); blocks {
		t.Error("block options are left in a whole response")
	}
	if resp, err := tr.Do(ctx, get("absent")); err != nil || resp.Code != coap.NotFound {
		t.Errorf("absent: %v, %v", resp, err)
	}

	// An observation: the first response, notifications, the end.
	got := make(chan *coap.Response, 8)
	cancel, err := tr.Observe(ctx, get("state"), func(r *coap.Response) { got <- r })
	if err != nil {
		t.Fatal(err)
	}
	if r := <-got; string(r.Payload) != "first" || r.Code != coap.Content {
		t.Errorf("first %v %q", r.Code, r.Payload)
	}
	for i, text := range []string{"second", "third"} {
		if err := p.notify(codes.Content, uint32(i+2), text); err != nil { // returns when it was acknowledged
			t.Fatal(err)
		}
		if r := <-got; string(r.Payload) != text {
			t.Errorf("notification %q, want %q", r.Payload, text)
		}
	}
	if err := p.notify(codes.NotFound, 0, ""); err != nil {
		t.Fatal(err)
	}
	if r := <-got; r.Code != coap.NotFound {
		t.Errorf("end %v", r.Code)
	}
	if err := cancel(ctx); err != nil {
		t.Errorf("cancel after the end: %v", err)
	}

	// A refusal is a response, too.
	cancel, err = tr.Observe(ctx, get("refuse"), func(r *coap.Response) { got <- r })
	if err != nil {
		t.Fatal(err)
	}
	if r := <-got; !errors.Is(refused("x", r), ErrNotMember) {
		t.Errorf("refusal %v", r.Code)
	}
	_ = cancel(ctx)

	cancel, err = tr.Observe(ctx, get("plain"), func(r *coap.Response) { got <- r })
	if err != nil {
		t.Fatal(err)
	}
	if r := <-got; r.Code != coap.Content || r.Options.Has(coap.ObserveOption) {
		t.Errorf("not observable: %v", r)
	}
	_ = cancel(ctx)

	// With No-Response the registration does not wait.
	quiet := get("state")
	quiet.Options.SetUint(coap.NoResponse, 2)
	cancel, err = tr.Observe(ctx, quiet, func(r *coap.Response) { got <- r })
	if err != nil {
		t.Fatal(err)
	}
	<-got // this server does not know the option
	if err := cancel(ctx); err != nil {
		t.Errorf("cancel: %v", err)
	}

	// Whoever ends an observation is off the list, also when go-coap did not get to
	// know that it was registered: at once, or with No-Response never.
	before := p.observers()
	for _, path := range []string{"state", "silent"} {
		for range 50 {
			req := get(path)
			if path == "silent" {
				req.Options.SetUint(coap.NoResponse, 2)
			}
			cancel, err := tr.Observe(ctx, req, func(*coap.Response) {})
			if err != nil {
				t.Fatal(err)
			}
			if err := cancel(ctx); err != nil {
				t.Fatalf("cancel %s: %v", path, err)
			}
		}
		if n := p.observers(); n != before {
			t.Errorf("%s: %d observers stay", path, n-before)
		}
	}

	// A caller that gives up.
	gone, stop := context.WithCancel(ctx)
	stop()
	if _, err := tr.Do(gone, get("echo")); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := tr.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if err := tr.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	select {
	case <-tr.(Doner).Done():
	default:
		t.Error("not done after Close")
	}
}

// RFC 9202, Section 3.3: a server that does not know the identity, or another
// key, is not talked to.
func TestDialDTLSRefused(t *testing.T) {
	t.Parallel()
	key := []byte("0123456789abcdef")
	_, addr := serveDTLS(t, func(identity []byte) ([]byte, error) {
		if string(identity) != "known" {
			return nil, errors.New("unknown identity")
		}
		return key, nil
	})
	if _, err := DialDTLS(t.Context(), addr, []byte("unknown"), key); err == nil {
		t.Error("unknown identity: dialled")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	_, err := DialDTLS(ctx, addr, []byte("known"), []byte("fedcba9876543210"))
	if err == nil || strings.Contains(err.Error(), "fedcba") {
		t.Errorf("wrong key: %v", err)
	}
	if _, err := DialDTLS(t.Context(), addr, []byte("known"), nil); err == nil {
		t.Error("no key: dialled")
	}
	// RFC 7627: without the extended master secret an exporter proves nothing.
	_, old := serveDTLS(t, func([]byte) ([]byte, error) { return key, nil }, dtls.WithExtendedMasterSecret(dtls.DisableExtendedMasterSecret))
	if _, err := DialDTLS(t.Context(), old, []byte("known"), key); err == nil {
		t.Error("no extended master secret: dialled")
	}
}

// Nobody there: an error, not a wait.
func TestNobody(t *testing.T) {
	t.Parallel()
	addr := ports.Addr(t)
	tr, err := DialUDP(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := tr.Do(ctx, get("x")); !errors.Is(err, ErrLost) {
		t.Errorf("Do: %v", err)
	}
	_ = tr.Close()
	start := time.Now()
	if _, err := DialDTLS(ctx, addr, []byte("n"), []byte("0123456789abcdef")); err == nil {
		t.Error("DialDTLS: dialled")
	}
	if d := time.Since(start); d > 6*time.Second {
		t.Errorf("took %v", d)
	}
	if _, err := DialUDP(t.Context(), "no port"); err == nil {
		t.Error("malformed address accepted")
	}
}

// The end of the peer is noticed.
func TestDone(t *testing.T) {
	t.Parallel()
	key := []byte("0123456789abcdef")
	p, addr := serveDTLS(t, func([]byte) ([]byte, error) { return key, nil })
	tr, err := DialDTLS(t.Context(), addr, []byte("n"), key)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan *coap.Response, 1)
	if _, err := tr.Observe(t.Context(), get("state"), func(r *coap.Response) { got <- r }); err != nil {
		t.Fatal(err)
	}
	<-got
	p.mu.Lock()
	c := p.observer
	p.mu.Unlock()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-tr.(Doner).Done():
	case <-time.After(10 * time.Second):
		t.Error("close_notify was not noticed")
	}
	if _, err := tr.Do(t.Context(), get("state")); !errors.Is(err, ErrLost) {
		t.Errorf("Do: %v", err)
	}
	_ = tr.Close()
}

// No goroutine outlives Close.
func TestCloseLeavesNothing(t *testing.T) {
	key := []byte("0123456789abcdef")
	_, addr := serveDTLS(t, func([]byte) ([]byte, error) { return key, nil })
	mine := func() int {
		buf := make([]byte, 1<<20)
		return strings.Count(string(buf[:runtime.Stack(buf, true)]), "groupgate/node.(*conn)")
	}
	for range 3 {
		tr, err := DialDTLS(t.Context(), addr, []byte("n"), key)
		if err != nil {
			t.Fatal(err)
		}
		quiet := get("state")
		quiet.Options.SetUint(coap.NoResponse, 2)
		if _, err := tr.Observe(t.Context(), quiet, func(*coap.Response) {}); err != nil {
			t.Fatal(err)
		}
		if err := tr.Close(); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "goroutines of closed transports to be gone", func() bool { return mine() == 0 })
}
