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

// RFC 7959, Sections 2.4 to 2.7: both directions, all sizes, with and without
// loss.
func TestBlockwiseRoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, echo, serve.Config{PerPeerRPS: 1e6, BlockSize: 256})
		for _, size := range []int{0, 1, 15, 16, 17, 63, 64, 65, 255, 256, 257, 1024, 5000} {
			for _, block := range []int{16, 64, 256, 1024} {
				l := coaptest.NewLink(s, coap.Peer{}, coaptest.Options{BlockSize: block})
				body := pattern(size, 'a')
				r, err := l.Do(t.Context(), coaptest.NewRequest(coap.POST, "/e", body))
				l.Close()
				if err != nil || !bytes.Equal(r.Payload, body) {
					t.Fatalf("%d bytes in blocks of %d: %v, %v", size, block, r, err)
				}
			}
		}
		done := 0
		for seed := range uint64(20) {
			l := coaptest.NewLink(s, coap.Peer{}, coaptest.Options{Seed: seed, BlockSize: 64, Drop: 0.15, Duplicate: 0.15, Reorder: 0.2})
			body := pattern(1500, 'b')
			r, err := l.Do(t.Context(), coaptest.NewRequest(coap.FETCH, "/e", body))
			l.Close()
			if err != nil {
				continue // one of fifty messages was lost five times
			}
			done++
			if !bytes.Equal(r.Payload, body) {
				t.Fatalf("seed %d: %v", seed, r)
			}
		}
		if done < 15 {
			t.Errorf("only %d of 20 transfers came to an end", done)
		}
	})
}

// Later blocks come from the response that the first came from, although two
// requests that differ in their payloads alone run at the same time, and the
// resource changes.
func TestConcurrentFetches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		calls := 0
		h := coap.HandlerFunc(func(_ context.Context, req *coap.Request) (*coap.Response, error) {
			mu.Lock()
			defer mu.Unlock()
			calls++
			return &coap.Response{Code: coap.Content, Payload: pattern(3000+calls, req.Payload[0])}, nil
		})
		s := start(t, h, serve.Config{BlockSize: 64, PerPeerRPS: 1e6})
		l := link(t, s, coaptest.Options{Reorder: 0.3})
		var wg sync.WaitGroup
		for _, filter := range []string{"a", "b", "c"} {
			wg.Go(func() {
				r, err := l.Do(t.Context(), coaptest.NewRequest(coap.FETCH, "/f", []byte(filter)))
				if err != nil || !bytes.Equal(r.Payload, pattern(len(r.Payload), filter[0])) {
					t.Errorf("filter %s: %v", filter, err)
				}
			})
		}
		wg.Wait()
		want(t, "calls of the handler", calls, "3")
	})
}

// RFC 7959, Section 2.6: the first block comes with the notification, the rest
// is fetched, of the version notified.
func TestLargeNotification(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &room{version: 1}
		s := start(t, r, serve.Config{BlockSize: 64, PerPeerRPS: 1e6})
		l := link(t, s, coaptest.Options{Drop: 0.05, Seed: 3})
		box, _ := observe(t, l, get("/t"))
		n := r.set(2)
		n.Body.Payload = pattern(1000, 'n')
		s.Publish("t", n)
		settle(time.Minute)
		want(t, "inbox", box, "[2.05 v1 2.05 1000 bytes of n]")
	})
}

type step struct {
	num   uint32
	more  bool
	szx   uint8
	size  int
	code  coap.Code
	block string // the Block1 option of the answer
}

func TestBlock1(t *testing.T) {
	for name, steps := range map[string][]step{
		"in order":             {{0, true, 2, 64, coap.Continue, "0 true 2"}, {1, true, 2, 64, coap.Continue, "1 true 2"}, {2, false, 2, 10, coap.Content, "2 false 2"}},
		"smaller size asked":   {{0, true, 6, 1024, coap.Continue, "0 true 4"}, {4, false, 4, 10, coap.Content, "4 false 4"}},
		"repeated block":       {{0, true, 2, 64, coap.Continue, "0 true 2"}, {0, true, 2, 64, coap.Continue, "0 true 2"}, {1, true, 2, 64, coap.Continue, "1 true 2"}, {1, true, 2, 64, coap.Continue, "1 true 2"}, {2, false, 2, 1, coap.Content, "2 false 2"}},
		"no first block":       {{1, true, 2, 64, coap.RequestEntityIncomplete, ""}},
		"gap":                  {{0, true, 2, 64, coap.Continue, "0 true 2"}, {2, true, 2, 64, coap.RequestEntityIncomplete, ""}},
		"short block":          {{0, true, 2, 63, coap.BadRequest, ""}},
		"long block":           {{0, false, 2, 65, coap.BadRequest, ""}},
		"reserved exponent":    {{0, true, 7, 64, coap.BadRequest, ""}},
		"too large":            {{0, true, 6, 1024, coap.Continue, "0 true 4"}, {1, true, 6, 1024, coap.Continue, "1 true 6"}, {2, true, 6, 1024, coap.RequestEntityTooLarge, ""}},
		"last block too large": {{0, true, 6, 1024, coap.Continue, "0 true 4"}, {1, true, 6, 1024, coap.Continue, "1 true 6"}, {2, false, 6, 1, coap.RequestEntityTooLarge, ""}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := start(t, echo, serve.Config{BlockSize: 256, MaxBody: 2048})
				l := link(t, s, coaptest.Options{})
				for i, st := range steps {
					m := &coap.Message{Code: coap.PUT, Payload: make([]byte, st.size)}
					m.Options.SetPath("x")
					m.Options.SetBlock(coap.Block1, coap.Block{Num: st.num, More: st.more, SZX: st.szx})
					r, err := l.Exchange(t.Context(), m)
					if err != nil {
						t.Fatal(err)
					}
					block := ""
					if b, _ := r.Options.Block(coap.Block1); b != nil {
						block = fmt.Sprint(b.Num, b.More, b.SZX)
					}
					if r.Code != st.code || block != st.block {
						t.Errorf("step %d: %v %q, want %v %q", i, r.Code, block, st.code, st.block)
					}
				}
			})
		})
	}
}

// RFC 7959, Section 2.9.3: refused by its announced size, with the one allowed.
func TestSize1TooLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, echo, serve.Config{MaxBody: 2048})
		l := link(t, s, coaptest.Options{})
		r, err := l.Do(t.Context(), coaptest.NewRequest(coap.POST, "/x", make([]byte, 2049)))
		if err != nil || r.Code != coap.RequestEntityTooLarge {
			t.Fatal(r, err)
		}
		if size, _ := r.Options.Uint(coap.Size1); size != 2048 {
			t.Errorf("Size1 %d", size)
		}
	})
}

// RFC 9175, Section 3.3: Request-Tag keeps bodies apart.
func TestRequestTag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, echo, serve.Config{})
		l := link(t, s, coaptest.Options{})
		send := func(tag byte, num uint32, more bool, payload []byte) *coap.Message {
			m := &coap.Message{Code: coap.POST, Payload: payload}
			m.Options.SetPath("x")
			m.Options.Add(coap.RequestTag, []byte{tag})
			m.Options.SetBlock(coap.Block1, coap.Block{Num: num, More: more})
			r, err := l.Exchange(t.Context(), m)
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		a, b := pattern(20, 'a'), pattern(20, 'b')
		send(1, 0, true, a[:16])
		send(2, 0, true, b[:16])
		if r := send(1, 1, false, a[16:]); !bytes.Equal(r.Payload, a) {
			t.Errorf("first body: %q", r.Payload)
		}
		if r := send(2, 1, false, b[16:]); !bytes.Equal(r.Payload, b) {
			t.Errorf("second body: %q", r.Payload)
		}
	})
}

// What is not continued is forgotten after EXCHANGE_LIFETIME, and each peer has
// a bounded number of transfers.
func TestTransfersForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, echo, serve.Config{})
		l := link(t, s, coaptest.Options{})
		send := func(path string, num uint32) coap.Code {
			m := &coap.Message{Code: coap.POST, Payload: make([]byte, 16)}
			m.Options.SetPath(path)
			m.Options.SetBlock(coap.Block1, coap.Block{Num: num, More: true})
			r, err := l.Exchange(t.Context(), m)
			if err != nil {
				t.Fatal(err)
			}
			return r.Code
		}
		for i := range 5 {
			want(t, "first block", send(fmt.Sprint(i), 0), "2.31")
		}
		want(t, "pushed out", send("0", 1), "4.08")
		want(t, "kept", send("4", 1), "2.31")
		settle(5 * time.Minute)
		want(t, "expired", send("4", 2), "4.08")
	})
}

func TestBlock2Edges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := coap.HandlerFunc(func(_ context.Context, req *coap.Request) (*coap.Response, error) {
			return &coap.Response{Code: coap.Content, Payload: pattern(100, 'p')}, nil
		})
		s := start(t, h, serve.Config{BlockSize: 64})
		l := link(t, s, coaptest.Options{})
		ask := func(code coap.Code, b coap.Block) *coap.Message {
			m := &coap.Message{Code: code}
			m.Options.SetPath("x")
			m.Options.SetBlock(coap.Block2, b)
			r, err := l.Exchange(t.Context(), m)
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		body := pattern(100, 'p')
		// Random access runs the handler when nothing is kept.
		if r := ask(coap.GET, coap.Block{Num: 2, SZX: 1}); !bytes.Equal(r.Payload, body[64:96]) {
			t.Errorf("third block: %v %q", r.Code, r.Payload)
		}
		// A larger block than ours: the same place in ours.
		if r := ask(coap.GET, coap.Block{Num: 0, SZX: 6}); !bytes.Equal(r.Payload, body[:64]) {
			t.Errorf("early negotiation: %v %q", r.Code, r.Payload)
		} else if size, _ := r.Options.Uint(coap.Size2); size != 100 || !r.Options.Has(coap.ETag) {
			t.Errorf("options %v", r.Options)
		}
		if r := ask(coap.GET, coap.Block{Num: 7, SZX: 1}); r.Code != coap.BadRequest {
			t.Errorf("beyond the end: %v", r.Code)
		}
		if r := ask(coap.POST, coap.Block{Num: 1, SZX: 1}); r.Code != coap.RequestEntityIncomplete {
			t.Errorf("POST that is not kept: %v", r.Code)
		}
	})
}

// A host that does blockwise transfer itself gets and gives whole bodies.
func TestOwnsBlockwise(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, echo, serve.Config{BlockSize: 64})
		l := link(t, s, coaptest.Options{Whole: true})
		body := pattern(5000, 'w')
		r, err := l.Do(t.Context(), coaptest.NewRequest(coap.POST, "/x", body))
		if err != nil || !bytes.Equal(r.Payload, body) || r.Options.Has(coap.Block2) {
			t.Fatal(r, err)
		}
	})
}
