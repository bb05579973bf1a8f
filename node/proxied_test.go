package node

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/oscore"
)

// TestAskGroup: every response to a request is told once, in whatever message it comes
// and whatever overtakes what; one of the proxy itself is the last; silence after an
// acknowledgement is an answer.
func TestAskGroup(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		say     func(m *coap.Message) []coap.Message // in answer to the request
		want    []string
		acks    int // at least
		lost    bool
		through time.Duration
	}{
		{"first in the acknowledgement, others by themselves", func(m *coap.Message) []coap.Message {
			return []coap.Message{
				{Type: coap.Acknowledgement, ID: m.ID, Payload: []byte("a")},
				{Type: coap.Confirmable, ID: 7, Payload: []byte("b")}, {Type: coap.Confirmable, ID: 7, Payload: []byte("b")},
				{Type: coap.NonConfirmable, ID: 8, Payload: []byte("c")}, {Type: coap.NonConfirmable, ID: 8, Payload: []byte("c")},
			}
		}, []string{"a", "b", "c"}, 1, false, time.Second},
		{"overtaken", func(m *coap.Message) []coap.Message {
			return []coap.Message{
				{Type: coap.NonConfirmable, ID: 8, Payload: []byte("c")},
				{Type: coap.Acknowledgement, ID: m.ID, Payload: []byte("a")}, {Type: coap.Acknowledgement, ID: m.ID, Payload: []byte("a")},
			}
		}, []string{"a", "c"}, 0, false, time.Second},
		{"refused", func(m *coap.Message) []coap.Message {
			return []coap.Message{{Type: coap.Acknowledgement, ID: m.ID, Code: coap.ProxyingNotSupported, Payload: []byte("no")}}
		}, []string{"no"}, 0, false, time.Hour},
		{"nobody", func(m *coap.Message) []coap.Message {
			return []coap.Message{{Type: coap.Acknowledgement, ID: m.ID, Code: coap.Empty}}
		}, nil, 0, false, time.Second},
		{"no proxy", func(*coap.Message) []coap.Message { return nil }, nil, 0, true, time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			pc, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan int)
			go func() {
				acks, asked := 0, false
				defer func() { done <- acks }()
				buf := make([]byte, 2048)
				for {
					n, from, err := pc.ReadFromUDPAddrPort(buf)
					if err != nil {
						return
					}
					m, err := coap.DecodeMessage(buf[:n])
					switch {
					case err != nil:
						t.Error(err)
					case m.Type == coap.Acknowledgement:
						acks++
					case !asked:
						asked = true
						if v, ok := m.Options.Uint(oscore.MulticastTimeout); !ok || v != uint32(tt.through/time.Second) {
							t.Errorf("Multicast-Timeout %d", v)
						}
						for _, r := range tt.say(m) {
							if r.Code == coap.Empty && len(r.Payload) > 0 {
								r.Code = coap.Content
								r.Options.Add(oscore.ReplyFrom, []byte{0x82, 0x20, 0x81, 0x44, 192, 0, 2, r.Payload[0]})
							}
							if r.Code != coap.Empty {
								r.Token = m.Token
							}
							b, err := r.MarshalBinary()
							if err == nil {
								_, err = pc.WriteToUDPAddrPort(b, from)
							}
							if err != nil {
								t.Error(err)
							}
						}
					}
				}
			}()
			tr, err := DialUDP(t.Context(), pc.LocalAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			err = AskGroup(t.Context(), tr, &coap.Request{Code: coap.GET}, tt.through, func(r *coap.Response) { got = append(got, string(r.Payload)) })
			if tt.lost != errors.Is(err, ErrLost) || !tt.lost && err != nil {
				t.Errorf("%v", err)
			}
			slices.Sort(got)
			if !slices.Equal(got, tt.want) {
				t.Errorf("%q, want %q", got, tt.want)
			}
			if err := errors.Join(tr.Close(), pc.Close()); err != nil {
				t.Error(err)
			}
			if acks := <-done; acks < tt.acks {
				t.Errorf("%d acknowledgements, want at least %d", acks, tt.acks)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	tr, err := DialUDP(t.Context(), netip.MustParseAddrPort("127.0.0.1:9").String())
	if err != nil {
		t.Fatal(err)
	}
	if err := AskGroup(ctx, tr, &coap.Request{Code: coap.GET}, time.Hour, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	if err := tr.Close(); err != nil {
		t.Error(err)
	}
}

// TestResponder: what Reply-From says for people (draft-ietf-core-href: a CRI).
func TestResponder(t *testing.T) {
	for cri, want := range map[string]string{
		"\x82\x20\x81\x44\xc0\x00\x02\x01":                                                         "192.0.2.1:5683",
		"\x82\x20\x82\x44\xc0\x00\x02\x01\x19\x16\x33":                                             "192.0.2.1:5683",
		"\x82\x20\x82\x44\xc0\x00\x02\x01\x05":                                                     "192.0.2.1:5",
		"\x82\x20\x81\x50\xfd\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01":         "[fd00::1]:5683",
		"\x82\x20\x82\x44\xc0\x00\x02\x01\x1a\x00\x01\x00\x00":                                     "82208244c00002011a00010000", // no port
		"\x82\x21\x81\x44\xc0\x00\x02\x01":                                                         "82218144c0000201",           // coaps
		"\x82\x21\x82\x44\xc0\x00\x02\x09\x19\x16\x34\x82\xf6\x82\x44\xc0\x00\x02\x01\x19\x16\x33": "192.0.2.1:5683",             // through the proxy at 192.0.2.9
		"\x82\x20\x82\x44\x82\xf6\x82\xf6\x05":                                                     "130.246.130.246:5",
		"\x82\x20\x80":                                                                             "822080",
		"\x82\x20\x81\x42\x01\x02":                                                                 "822081420102",
		"\xff":                                                                                     "ff",
		"":                                                                                         "",
	} {
		r := &coap.Response{Code: coap.Content}
		if _, ok := Responder(r); ok {
			t.Fatal("without the option")
		}
		r.Options.Add(oscore.ReplyFrom, []byte(cri))
		if got, ok := Responder(r); got != want || !ok {
			t.Errorf("%x: %q, %v, want %q", cri, got, ok, want)
		}
	}
}
