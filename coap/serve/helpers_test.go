package serve_test

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/coaptest"
	"github.com/seed4911071e/groupgate/coap/serve"
)

// room is a resource with a version that is observed.
type room struct {
	mu      sync.Mutex
	version uint64
	body    []byte
	hold    chan struct{} // when not nil, a handler waits after reading its state
	reading chan struct{}
	calls   int
}

func (r *room) ServeCoAP(ctx context.Context, req *coap.Request) (*coap.Response, error) {
	r.mu.Lock()
	r.calls++
	v, body, hold, reading := r.version, r.body, r.hold, r.reading
	r.mu.Unlock()
	if hold != nil {
		close(reading)
		<-hold
	}
	resp := &coap.Response{Code: coap.Content, Payload: body, Observe: &coap.Observation{Topic: "t", Version: v}}
	if body == nil {
		resp.Payload = fmt.Appendf(nil, "v%d", v)
	}
	return resp, nil
}

func (r *room) set(v uint64) coap.Notification {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.version = v
	return coap.Notification{Version: v, Confirm: true, Body: &coap.Response{Code: coap.Content, Payload: fmt.Appendf(nil, "v%d", v)}}
}

// outcomes collects what Done reports.
type outcomes struct {
	mu  sync.Mutex
	got []string
}

func (o *outcomes) done(link coap.LinkID, version uint64, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.got = append(o.got, fmt.Sprintf("%s %d %v", link, version, err))
}

func (o *outcomes) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return fmt.Sprint(o.got)
}

// inbox collects what an observer gets.
type inbox struct {
	mu  sync.Mutex
	got []string
}

func (b *inbox) add(r *coap.Response) {
	b.mu.Lock()
	defer b.mu.Unlock()
	text := string(r.Payload)
	if len(text) > 32 {
		text = fmt.Sprintf("%d bytes of %c", len(text), text[0])
	}
	b.got = append(b.got, r.Code.String()+" "+text)
}

func (b *inbox) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return fmt.Sprint(b.got)
}

// start runs a server for the time of the test; call it in a bubble.
func start(t *testing.T, h coap.Handler, cfg serve.Config) *serve.Server {
	t.Helper()
	s := serve.New(h, cfg)
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-over; err != nil {
			t.Error(err)
		}
	})
	return s
}

func link(t *testing.T, s *serve.Server, opts coaptest.Options) *coaptest.Link {
	t.Helper()
	return namedLink(t, s, "client", opts)
}

func namedLink(t *testing.T, s *serve.Server, name coap.LinkID, opts coaptest.Options) *coaptest.Link {
	t.Helper()
	l := coaptest.NewLink(s, coap.Peer{Link: name, Via: coap.DTLSPSK}, opts)
	t.Cleanup(l.Close)
	return l
}

func get(path string) *coap.Request { return coaptest.NewRequest(coap.GET, path, nil) }

func observe(t *testing.T, l *coaptest.Link, req *coap.Request) (*inbox, func(context.Context) error) {
	t.Helper()
	b := new(inbox)
	cancel, err := l.Observe(t.Context(), req, b.add)
	if err != nil {
		t.Fatal(err)
	}
	return b, cancel
}

func want(t *testing.T, what string, got any, want string) {
	t.Helper()
	if s := fmt.Sprint(got); s != want {
		t.Errorf("%s: got %s, want %s", what, s, want)
	}
}

// settle lets all be done that takes no more than d.
func settle(d time.Duration) {
	time.Sleep(d) // the clock of the bubble
	synctest.Wait()
}

// pattern is a body of n bytes in which no two blocks are equal.
func pattern(n int, seed byte) []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "%c%06d.", seed, i)
	}
	return b.Bytes()[:n]
}

// echo answers with the payload.
var echo = coap.HandlerFunc(func(_ context.Context, req *coap.Request) (*coap.Response, error) {
	return &coap.Response{Code: coap.Content, Payload: bytes.Clone(req.Payload)}, nil
})
