package node

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/oscore"
)

// scripted is a server, or a proxy, on plain UDP: say makes what it sends for each
// request, with the token and, where it is an acknowledgement, the identifier of that.
// It keeps the requests.
func scripted(t *testing.T, say func(n int, m *coap.Message) []coap.Message) (Transport, func() []*coap.Message) {
	t.Helper()
	pc, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var asked []*coap.Message
	over := make(chan struct{})
	go func() {
		defer close(over)
		buf := make([]byte, 4096)
		for {
			n, from, err := pc.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			m, err := coap.DecodeMessage(slices.Clone(buf[:n]))
			if err != nil || !m.Code.IsRequest() {
				continue
			}
			asked = append(asked, m)
			for _, r := range say(len(asked), m) {
				if r.Type == coap.Acknowledgement {
					r.ID = m.ID
				}
				if r.Code != coap.Empty {
					r.Token = m.Token
				}
				if b, err := r.MarshalBinary(); err == nil {
					_, _ = pc.WriteToUDPAddrPort(b, from)
				}
			}
		}
	}()
	tr, err := DialUDP(t.Context(), pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	end := func() []*coap.Message {
		if err := errors.Join(tr.Close(), pc.Close()); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		<-over
		return asked
	}
	t.Cleanup(func() { end() })
	return tr, end
}

// notice is a response with a number; below 0: without.
func notice(kind coap.Type, id uint16, number int, payload string) coap.Message {
	m := coap.Message{Type: kind, ID: id, Code: coap.Content, Payload: []byte(payload)}
	if number >= 0 {
		m.Options.SetUint(coap.ObserveOption, uint32(number))
	}
	return m
}

// TestWatch: every state is told, until there is enough; the end has token and options
// of the registration, also beyond the path, or a proxy does not know what is over.
func TestWatch(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		method coap.Code
		uri    coap.OptionID
	}{{coap.GET, coap.ProxyUri}, {coap.FETCH, coap.UriQuery}} {
		tr, end := scripted(t, func(n int, _ *coap.Message) []coap.Message {
			if n > 1 {
				return []coap.Message{notice(coap.Acknowledgement, 0, -1, "the end")}
			}
			return []coap.Message{notice(coap.Acknowledgement, 0, 1, "a"), notice(coap.NonConfirmable, 7, 2, "b"), notice(coap.Confirmable, 8, 3, "c")}
		})
		req := &coap.Request{Code: tt.method}
		req.Options.AddString(tt.uri, "coap://192.0.2.1/x")
		req.Options.SetUint(coap.ObserveOption, 0)
		if tt.method == coap.FETCH {
			req.Payload = []byte("what")
		}
		ctx, enough := context.WithCancel(t.Context())
		var got []string
		err := Watch(ctx, tr, req, func(r *coap.Response) {
			if got = append(got, string(r.Payload)); len(got) == 3 {
				enough()
			}
		})
		if err != nil || strings.Join(got, " ") != "a b c" {
			t.Errorf("%v: %q, %v", tt.method, got, err)
		}
		asked := end()
		if len(asked) != 2 {
			t.Fatalf("%v: %d requests", tt.method, len(asked))
		}
		last := asked[1]
		if v, _ := last.Options.Uint(coap.ObserveOption); v != 1 || last.Code != tt.method || string(last.Token) != string(asked[0].Token) ||
			!slices.Equal(last.Options.Strings(tt.uri), asked[0].Options.Strings(tt.uri)) || string(last.Payload) != string(req.Payload) {
			t.Errorf("%v: ended with %+v", tt.method, last)
		}
	}

	// What cannot be observed, a refusal, and an end that the server makes.
	for _, say := range [][]coap.Message{
		{notice(coap.Acknowledgement, 0, -1, "last")},
		{{Type: coap.Acknowledgement, Code: coap.NotFound, Payload: []byte("last")}},
		{notice(coap.Acknowledgement, 0, 1, "first"), {Type: coap.Confirmable, ID: 9, Code: coap.BadGateway, Payload: []byte("last")}},
	} {
		tr, end := scripted(t, func(int, *coap.Message) []coap.Message { return say })
		req := &coap.Request{Code: coap.GET}
		req.Options.SetPath("x")
		req.Options.SetUint(coap.ObserveOption, 0)
		last := ""
		if err := Watch(t.Context(), tr, req, func(r *coap.Response) { last = string(r.Payload) }); err != nil || last != "last" {
			t.Errorf("%q, %v", last, err)
		}
		if asked := end(); len(asked) != 1 {
			t.Errorf("%d requests", len(asked))
		}
	}
}

// TestAskGroupObserved: notifications come after the time of the request as well; when
// there is enough the proxy is told by an Early Stop, when it says itself that it is over
// it is not.
func TestAskGroupObserved(t *testing.T) {
	t.Parallel()
	from := func(m coap.Message) coap.Message {
		m.Options.Add(oscore.ReplyFrom, []byte{0x82, 0x20, 0x81, 0x44, 192, 0, 2, 1})
		return m
	}
	for _, stopped := range []bool{true, false} {
		tr, end := scripted(t, func(n int, m *coap.Message) []coap.Message {
			if v, _ := m.Options.Get(oscore.MulticastTimeout); n > 1 && len(v) == 0 {
				return []coap.Message{{Type: coap.Acknowledgement}}
			}
			say := []coap.Message{from(notice(coap.Acknowledgement, 0, 1, "a")), from(notice(coap.NonConfirmable, 7, 2, "b"))}
			if !stopped {
				say = append(say, coap.Message{Type: coap.NonConfirmable, ID: 8, Code: coap.BadGateway, Payload: []byte("over")})
			}
			return say
		})
		req := &coap.Request{Code: coap.GET}
		req.Options.SetUint(coap.ObserveOption, 0)
		ctx, enough := context.WithCancel(t.Context())
		defer enough()
		var got []string
		err := AskGroup(ctx, tr, req, time.Second, func(r *coap.Response) {
			if got = append(got, string(r.Payload)); stopped && len(got) == 2 {
				enough()
			}
		})
		asked := end()
		if stopped {
			if !errors.Is(err, context.Canceled) || len(got) != 2 || len(asked) != 2 {
				t.Fatalf("%q, %v, %d requests", got, err, len(asked))
			}
			stop := asked[1]
			if v, ok := stop.Options.Get(oscore.MulticastTimeout); !ok || len(v) != 0 || stop.Code != coap.GET || len(stop.Options) != 1 || string(stop.Token) != string(asked[0].Token) {
				t.Errorf("ended with %+v", stop)
			}
		} else if err != nil || strings.Join(got, " ") != "a b over" || len(asked) != 1 {
			t.Errorf("%q, %v, %d requests", got, err, len(asked))
		}
	}
}

// TestAskVia: a member asks another through a proxy, in either mode: what the proxy sees
// is where it goes, not what is asked; a server that wants to know whether the request is
// new is shown it; an observation ends with a request of its own; what comes in clear is
// nobody's answer.
func TestAskVia(t *testing.T) {
	t.Parallel()
	b := newBand(t, "asks", "answers")
	asks, answers := b.members[0], b.members[1]
	who := state(t, answers.m).SenderID
	for _, to := range []*groupcomm.SenderID{nil, &who} {
		challenged, ended := false, false
		tr, end := scripted(t, func(_ int, m *coap.Message) []coap.Message {
			if got := m.Options.Strings(coap.ProxyUri); len(got) != 1 || got[0] != "coap://192.0.2.1" || m.Options.Has(coap.UriPath) {
				t.Errorf("the proxy sees %v", m.Options)
			}
			inner, x, err := answers.t.ReadRequest(t.Context(), m)
			if err != nil {
				t.Error(err)
				return nil
			}
			r := &coap.Message{Code: coap.Content, Payload: []byte(inner.Options.Path()[0])}
			if v, ok := inner.Options.Uint(coap.ObserveOption); ok && v == 0 {
				r.Options.SetUint(coap.ObserveOption, 1)
			} else if ok {
				ended = true
			} else if !inner.Options.Has(coap.Echo) {
				r = &coap.Message{Code: coap.Unauthorized}
				r.Options.Add(coap.Echo, []byte("new?"))
			} else {
				challenged = true
			}
			p, err := x.Protect(t.Context(), nil, r)
			if err != nil {
				t.Error(err)
				return nil
			}
			out := *p.Clone()
			out.Type = coap.Acknowledgement
			return []coap.Message{out}
		})
		var got []Answer
		if err := asks.t.AskVia(t.Context(), tr, "coap://192.0.2.1", to, request("x"), 0, func(a Answer) { got = append(got, a) }); err != nil {
			t.Fatal(err)
		}
		if len(got) != 1 || got[0].Err != nil || string(got[0].Message.Payload) != "x" || !slices.Equal(got[0].Who.KID, who) {
			t.Errorf("%+v", got)
		}
		watch := request("y")
		watch.Options.SetUint(coap.ObserveOption, 0)
		ctx, enough := context.WithCancel(t.Context())
		err := asks.t.AskVia(ctx, tr, "coap://192.0.2.1", to, watch, 0, func(a Answer) {
			if a.Err != nil || string(a.Message.Payload) != "y" {
				t.Errorf("%+v", a)
			}
			enough()
		})
		if err != nil {
			t.Error(err)
		}
		asked := end()
		if v, _ := asked[len(asked)-1].Options.Uint(coap.ObserveOption); !challenged || !ended || v != 1 || len(asked) != 4 || string(asked[2].Token) != string(asked[3].Token) {
			t.Errorf("%d requests, challenged %v, ended %v with %+v", len(asked), challenged, ended, asked[len(asked)-1])
		}
	}

	tr, _ := scripted(t, func(int, *coap.Message) []coap.Message {
		return []coap.Message{{Type: coap.Acknowledgement, Code: coap.ProxyingNotSupported, Payload: []byte("no rule")}}
	})
	err := asks.t.AskVia(t.Context(), tr, "coap://192.0.2.1", nil, request("x"), 0, func(a Answer) {
		if !errors.Is(a.Err, oscore.ErrUnprotected) || !strings.Contains(a.Err.Error(), "no rule") || a.From.IsValid() {
			t.Errorf("%+v", a)
		}
	})
	if err != nil {
		t.Error(err)
	}
}
