package coaptest

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/serve"
)

func slow(d time.Duration, calls *int) coap.Handler {
	return coap.HandlerFunc(func(ctx context.Context, req *coap.Request) (*coap.Response, error) {
		*calls++
		time.Sleep(d)
		return &coap.Response{Code: coap.Content, Payload: []byte("x")}, nil
	})
}

// RFC 7252, Sections 4.2 and 4.5: a lost reply is had again by retransmission,
// and the handler runs once.
func TestRetransmission(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls, lost := 0, 0
		l := NewLink(serve.New(slow(0, &calls), serve.Config{}), coap.Peer{}, Options{Lose: func(toServer bool, m *coap.Message) bool {
			if toServer || lost == 3 {
				return false
			}
			lost++
			return true
		}})
		defer l.Close()
		r, err := l.Do(t.Context(), NewRequest(coap.GET, "/x", nil))
		if err != nil || string(r.Payload) != "x" || calls != 1 || lost != 3 {
			t.Errorf("%v, %v, %d calls, %d lost", r, err, calls, lost)
		}
	})
}

// RFC 7252, Section 5.2.2: a slow answer comes in a message of its own, which
// is confirmable and survives loss.
func TestSeparateResponse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		var types []string
		lost := false
		l := NewLink(serve.New(slow(30*time.Second, &calls), serve.Config{}), coap.Peer{}, Options{
			Lose: func(toServer bool, m *coap.Message) bool {
				if !toServer && m.Code == coap.Content && !lost {
					lost = true
					return true
				}
				return false
			},
			Trace: func(toServer bool, m *coap.Message) { types = append(types, m.Type.String()) },
		})
		defer l.Close()
		r, err := l.Do(t.Context(), NewRequest(coap.GET, "/x", nil))
		if err != nil || string(r.Payload) != "x" || calls != 1 {
			t.Fatalf("%v, %v, %d calls", r, err, calls)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if len(types) != 4 || types[0] != "CON" || types[1] != "ACK" || types[2] != "CON" || types[3] != "ACK" {
			t.Errorf("messages %v", types)
		}
	})
}

func TestTimeoutAndClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		l := NewLink(serve.New(slow(0, &calls), serve.Config{}), coap.Peer{}, Options{Drop: 1})
		begin := time.Now()
		if _, err := l.Do(t.Context(), NewRequest(coap.GET, "/x", nil)); !errors.Is(err, coap.ErrTimeout) {
			t.Error(err)
		}
		// RFC 7252, Section 4.8.2: MAX_TRANSMIT_WAIT.
		if d := time.Since(begin); d < 62*time.Second || d > 93*time.Second {
			t.Errorf("gave up after %v", d)
		}
		go func() {
			time.Sleep(time.Second)
			l.Close()
		}()
		if _, err := l.Do(t.Context(), NewRequest(coap.GET, "/x", nil)); !errors.Is(err, coap.ErrGone) {
			t.Error(err)
		}
		synctest.Wait()
	})
}

// RFC 7252, Sections 4.2 and 4.3: pings and malformed confirmable messages are
// reset, noise is ignored.
func TestRejections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		var got []uint16
		l := NewLink(serve.New(slow(0, &calls), serve.Config{}), coap.Peer{}, Options{Trace: func(toServer bool, m *coap.Message) {
			if !toServer && m.Type == coap.Reset {
				got = append(got, m.ID)
			}
		}})
		defer l.Close()
		for _, b := range [][]byte{{0x40, 0, 0, 1}, {0x4f, 1, 0, 2}, {0x5f, 1, 0, 3}, {0xff}, {}} {
			l.Inject(true, b)
			time.Sleep(10 * time.Millisecond)
		}
		if len(got) != 2 || got[0] != 1 || got[1] != 2 || calls != 0 {
			t.Errorf("resets %v, %d calls", got, calls)
		}
	})
}

func TestRecorder(t *testing.T) {
	h := coap.HandlerFunc(func(_ context.Context, req *coap.Request) (*coap.Response, error) {
		if req.Peer.Link != "me" {
			return nil, coap.Errorf(coap.Unauthorized, "who")
		}
		return nil, nil
	})
	r := Recorder{Handler: h, Peer: coap.Peer{Link: "me"}}
	if resp := r.Do(t.Context(), NewRequest(coap.GET, "/a/b", nil)); resp.Code != coap.InternalServerError {
		t.Error(resp)
	}
	req := NewRequest(coap.GET, "/a/b", nil)
	req.Peer.Link = "other"
	if resp, err := r.Try(t.Context(), req); err == nil || resp.Code != coap.Unauthorized {
		t.Error(resp, err)
	}
}
