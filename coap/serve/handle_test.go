package serve_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/coaptest"
	"github.com/seed4911071e/groupgate/coap/serve"
)

func TestErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var log bytes.Buffer
		h := coap.HandlerFunc(func(ctx context.Context, req *coap.Request) (*coap.Response, error) {
			switch req.Path()[0] {
			case "panic":
				panic("secret")
			case "unknown":
				return nil, errors.New("secret")
			case "nothing":
				return nil, nil
			case "slow":
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return nil, coap.Errorf(coap.Conflict, "deliberate")
		})
		s := start(t, h, serve.Config{Log: slog.New(slog.NewTextHandler(&lockedWriter{&mu, &log}, nil))})
		l := link(t, s, coaptest.Options{})
		for path, answer := range map[string]string{
			"/panic": "5.00 ", "/unknown": "5.00 ", "/nothing": "5.00 ", "/slow": "5.03 ", "/x": "4.09 deliberate",
		} {
			r, err := l.Do(t.Context(), get(path))
			if err != nil {
				t.Fatal(err)
			}
			want(t, path, r.Code.String()+" "+string(r.Payload), answer)
		}
		mu.Lock()
		defer mu.Unlock()
		if n := strings.Count(log.String(), "level=ERROR"); n != 3 || !strings.Contains(log.String(), "handle_test.go") {
			t.Errorf("%d errors logged, want 3, one with a stack:\n%s", n, log.String())
		}
	})
}

type lockedWriter struct {
	mu *sync.Mutex
	b  *bytes.Buffer
}

func (w *lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

// RFC 7252, Section 5.4.1.
func TestCriticalOptions(t *testing.T) {
	for _, c := range []struct {
		name string
		opts coap.Options
		code coap.Code
	}{
		{"unknown critical", coap.Options{{ID: 2049}}, coap.BadOption},
		{"configured", coap.Options{{ID: 2051}}, coap.Content},
		{"unknown elective", coap.Options{{ID: 2048}}, coap.Content},
		{"malformed critical", coap.Options{{ID: coap.Accept, Value: make([]byte, 3)}}, coap.BadOption},
		{"repeated critical", coap.Options{{ID: coap.Accept}, {ID: coap.Accept}}, coap.BadOption},
		{"malformed elective", coap.Options{{ID: coap.ObserveOption, Value: make([]byte, 4)}}, coap.Content},
		{"path not in UTF-8", coap.Options{{ID: coap.UriPath, Value: []byte{0xff}}}, coap.BadOption},
		{"proxied, safe to forward", coap.Options{{ID: coap.ProxyScheme, Value: []byte("coap")}, {ID: 2049}}, coap.Content},
		{"proxied, unsafe", coap.Options{{ID: coap.ProxyScheme, Value: []byte("coap")}, {ID: 2055}}, coap.BadOption},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := start(t, echo, serve.Config{Critical: []coap.OptionID{2051}})
				l := link(t, s, coaptest.Options{})
				r, err := l.Do(t.Context(), &coap.Request{Code: coap.GET, Options: c.opts})
				if err != nil || r.Code != c.code {
					t.Errorf("%v, %v", r, err)
				}
			})
		})
	}
}

// mute is a link that says nothing.
type mute struct{}

func (mute) Peer() coap.Peer                        { return coap.Peer{Link: "mute", Via: coap.DTLSPSK} }
func (mute) Send(_ *coap.Message, done func(error)) { done(nil) }

// RFC 7252, Sections 5.4.1 and 4.3: an unknown critical option in a
// non-confirmable request is no matter of a response.
func TestCriticalOptionInNON(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, echo, serve.Config{})
		l := mute{}
		m := &coap.Message{Type: coap.NonConfirmable, Code: coap.GET, Token: []byte{1}, Options: coap.Options{{ID: 2049}}}
		if r := s.Handle(t.Context(), l, m); r != nil {
			t.Errorf("%v, want silence", r.Code)
		}
		m.Options = coap.Options{{ID: 2048}}
		if r := s.Handle(t.Context(), l, m); r == nil || r.Code != coap.Content {
			t.Errorf("an elective one: %v", r)
		}
	})
}

// RFC 8516: 4.29 with the time to wait, from either budget; other peers do not
// notice.
func TestBudgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		h := coap.HandlerFunc(func(_ context.Context, req *coap.Request) (*coap.Response, error) {
			if req.Path()[0] == "wait" {
				<-release
			}
			return &coap.Response{Code: coap.Content}, nil
		})
		reg := prometheus.NewRegistry()
		var told strings.Builder
		s := start(t, h, serve.Config{MaxPeerRequests: 2, PerPeerRPS: 1, PerPeerBurst: 5, Registerer: reg, Log: slog.New(slog.NewTextHandler(&told, nil))})
		l := link(t, s, coaptest.Options{})
		other := namedLink(t, s, "other", coaptest.Options{})
		code := func(l *coaptest.Link, path string) coap.Code {
			r, err := l.Do(t.Context(), get(path))
			if err != nil {
				t.Fatal(err)
			}
			if age, _ := r.Options.Uint(coap.MaxAge); r.Code == coap.TooManyRequests && age == 0 {
				t.Error("4.29 without Max-Age")
			}
			return r.Code
		}
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() { code(l, "/wait") })
		}
		settle(10 * time.Millisecond)
		want(t, "third at a time", code(l, "/x"), "4.29")
		close(release)
		wg.Wait()
		for range 3 {
			want(t, "within the rate", code(l, "/x"), "2.05")
		}
		want(t, "beyond the rate", code(l, "/x"), "4.29")
		want(t, "other peer", code(other, "/x"), "2.05")
		settle(2 * time.Second)
		want(t, "after the wait", code(l, "/x"), "2.05")

		// Which bound it was is counted; the log tells of one, and not of each.
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				if f.GetName() == "groupgate_serve_refused_total" {
					got := fmt.Sprint(m.GetLabel()[0].GetValue(), " ", m.GetCounter().GetValue())
					if !slices.Contains([]string{"rate 1", "outstanding 1", "peers 0", "bodies 0"}, got) {
						t.Errorf("refused: %s", got)
					}
				}
			}
		}
		if n := strings.Count(told.String(), "requests are refused"); n != 1 {
			t.Errorf("told %d times:\n%s", n, told.String())
		}
	})
}

// RFC 7967, Section 2.1.
func TestNoResponse(t *testing.T) {
	for _, c := range []struct {
		mask  uint32
		path  string
		heard bool
	}{
		{2, "/ok", false}, {2, "/bad", true}, {8, "/bad", false}, {8, "/ok", true},
		{16, "/fail", false}, {26, "/fail", false}, {0, "/ok", true},
	} {
		synctest.Test(t, func(t *testing.T) {
			h := coap.HandlerFunc(func(_ context.Context, req *coap.Request) (*coap.Response, error) {
				switch req.Path()[0] {
				case "bad":
					return nil, coap.Errorf(coap.BadRequest, "")
				case "fail":
					return nil, coap.Errorf(coap.NotImplemented, "")
				}
				return &coap.Response{Code: coap.Changed}, nil
			})
			s := start(t, h, serve.Config{})
			l := link(t, s, coaptest.Options{})
			req := coaptest.NewRequest(coap.PUT, c.path, nil)
			req.Options.SetUint(coap.NoResponse, c.mask)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if _, err := l.Do(ctx, req); (err == nil) != c.heard {
				t.Errorf("mask %d, %s: %v", c.mask, c.path, err)
			}
		})
	}
}

func TestMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan error, 1)
		h := coap.HandlerFunc(func(context.Context, *coap.Request) (*coap.Response, error) {
			return &coap.Response{Code: coap.Content, Payload: []byte("0"), More: func(ctx context.Context, send func(*coap.Response) error) error {
				for _, p := range []string{"1", "2"} {
					if err := send(&coap.Response{Code: coap.Content, Payload: []byte(p)}); err != nil {
						return err
					}
				}
				<-ctx.Done()
				ended <- ctx.Err()
				return ctx.Err()
			}}, nil
		})
		s := start(t, h, serve.Config{})
		var got []string
		l := link(t, s, coaptest.Options{Lose: func(toServer bool, m *coap.Message) bool { // sees them as they are sent
			if !toServer && m.Code == coap.Content {
				got = append(got, m.Type.String()+" "+string(m.Token)+string(m.Payload))
			}
			return false
		}})
		m := &coap.Message{Code: coap.GET, Token: []byte("t")}
		if _, err := l.Exchange(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		if strings.Join(got, ", ") != "ACK t0, NON t1, NON t2" { // the first first
			t.Errorf("got %v", got)
		}
		l.Close()
		<-ended
	})
}

// Do reaches the client, blockwise in both directions, and takes its turn.
func TestDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, echo, serve.Config{BlockSize: 64})
		l := link(t, s, coaptest.Options{Handler: echo, BlockSize: 32, Drop: 0.05})
		if _, err := s.Do(t.Context(), "client", get("/x")); !errors.Is(err, coap.ErrGone) {
			t.Fatalf("unknown link: %v", err)
		}
		if _, err := l.Do(t.Context(), get("/x")); err != nil {
			t.Fatal(err)
		}
		body := pattern(1000, 'd')
		r, err := s.Do(t.Context(), "client", coaptest.NewRequest(coap.POST, "/x", body))
		if err != nil || !bytes.Equal(r.Payload, body) {
			t.Fatal(r, err)
		}
		l.Cut(true, true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := s.Do(ctx, "client", get("/x")); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		l.Cut(false, false)
		if _, err := s.Do(t.Context(), "client", get("/x")); err != nil {
			t.Fatalf("the turn was not given back: %v", err)
		}
	})
}

// A link that has not been heard is found by Config.Link.
func TestDoUnheard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l *coaptest.Link
		s := start(t, echo, serve.Config{Link: func(id coap.LinkID) coap.Link {
			if id != "client" {
				return nil
			}
			return l.Port()
		}})
		l = link(t, s, coaptest.Options{Handler: echo})
		if r, err := s.Do(t.Context(), "client", coaptest.NewRequest(coap.POST, "/x", []byte("hi"))); err != nil || string(r.Payload) != "hi" {
			t.Fatal(r, err)
		}
	})
}

// Servers that share a registry share the metrics.
func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		start(t, echo, serve.Config{Registerer: reg})
		s := start(t, echo, serve.Config{Registerer: reg})
		l := link(t, s, coaptest.Options{})
		if _, err := l.Do(t.Context(), get("/x")); err != nil {
			t.Fatal(err)
		}
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "groupgate_serve_requests_total" {
				want(t, "requests", f.GetMetric()[0].GetCounter().GetValue(), "1")
				return
			}
		}
		t.Error("no request counter")
	})
}
