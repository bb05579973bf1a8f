package node

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

func TestRequestToken(t *testing.T) {
	t.Parallel()
	scope := groupcomm.Scope{{Group: "feedca570000", Roles: groupcomm.Requester}}
	answer := map[int64]any{
		1: []byte("the token"), 2: 3600, 38: 1,
		8: map[int64]any{1: map[int64]any{1: 4, 2: []byte("kid"), -1: []byte("0123456789abcdef")}},
	}
	with := func(label int64, v any) []byte {
		m := map[int64]any{}
		for k, x := range answer {
			m[k] = x
		}
		m[label] = v
		if v == nil {
			delete(m, label)
		}
		return cose.MustMarshal(m)
	}
	run := func(r *coap.Response) (*Access, *coap.Request, error) {
		var req *coap.Request
		a, err := RequestToken(t.Context(), answering(func(q *coap.Request) *coap.Response { req = q; return r }), TokenRequest{Audience: "rs2", Scope: scope})
		return a, req, err
	}
	good := reply(coap.Created, coap.ACE, cose.MustMarshal(answer))
	a, req, err := run(good)
	if err != nil {
		t.Fatal(err)
	}
	// RFC 9200, Section 5.8.1: {5: audience, 9: scope}, here with the scope of
	// testdata: [["feedca570000", 2]].
	if want := "a2056372733209" + "5081826c66656564636135373030303002"; !bytes.Equal(req.Payload, unhex(t, want)) {
		t.Errorf("request %x", req.Payload)
	}
	if string(a.Token) != "the token" || string(a.KID) != "kid" || string(a.Key.Bytes()) != "0123456789abcdef" || len(a.Scope) != 1 ||
		time.Until(a.ExpiresAt) > time.Hour || time.Until(a.ExpiresAt) < 59*time.Minute {
		t.Errorf("access %v", a)
	}
	if a, _, err := run(reply(coap.Created, coap.ACE, with(2, nil))); err != nil || !a.ExpiresAt.IsZero() {
		t.Errorf("no expires_in: %v, %v", a, err)
	}
	if a, _, err := run(reply(coap.Created, coap.ACE, with(2, ^uint64(0)))); err != nil || !a.ExpiresAt.After(time.Now()) {
		t.Errorf("huge expires_in: %v, %v", a, err)
	}
	for name, body := range map[string][]byte{
		"no token": with(1, nil), "token is text": with(1, "x"), "empty token": with(1, []byte{}), "no cnf": with(8, nil), "cnf is text": with(8, "x"),
		"no key id":     with(8, map[int64]any{1: map[int64]any{1: 4, -1: []byte("0123456789abcdef")}}),
		"no key":        with(8, map[int64]any{1: map[int64]any{1: 4, 2: []byte("kid")}}),
		"key is text":   with(8, map[int64]any{1: map[int64]any{1: 4, 2: []byte("kid"), -1: "0123456789abcdef"}}),
		"key of a pair": with(8, map[int64]any{1: map[int64]any{1: 1, 2: []byte("kid"), -1: 6}}),
		"other profile": with(38, 2), "bad scope": with(9, []byte{0x81, 0x01}), "negative life": with(2, -1), "empty": {}, "null": {0xf6},
	} {
		if _, _, err := run(reply(coap.Created, coap.ACE, body)); !errors.Is(err, ErrBadAnswer) && !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		} else if strings.Contains(err.Error(), "0123456789abcdef") {
			t.Errorf("%s: the error shows the key", name)
		}
	}
	whole := good.Payload
	for i := range whole {
		if _, _, err := run(reply(coap.Created, coap.ACE, whole[:i])); err == nil {
			t.Fatalf("prefix of %d bytes accepted", i)
		}
	}
	_, _, err = run(reply(coap.BadRequest, coap.ACE, cose.MustMarshal(map[int64]any{30: 6, 31: "no such group"})))
	var e *Error
	if !errors.As(err, &e) || e.Detail != "invalid_scope: no such group" {
		t.Errorf("refusal: %v", err)
	}
}

// answering is a transport whose every request is answered by a function.
type answering func(*coap.Request) *coap.Response

func (f answering) Do(_ context.Context, r *coap.Request) (*coap.Response, error) { return f(r), nil }
func (f answering) Observe(_ context.Context, r *coap.Request, fn func(*coap.Response)) (func(context.Context) error, error) {
	fn(f(r))
	return func(context.Context) error { return nil }, nil
}
func (answering) Close() error { return nil }

func TestPostToken(t *testing.T) {
	t.Parallel()
	var v struct {
		Request  string `json:"token_transfer_request_cf19"`
		Response string `json:"token_transfer_response_cf19"`
	}
	readJSON(t, "messages.json", &v)
	var p struct {
		Token string `json:"access_token"`
	}
	readJSON(t, "rfc9202-psk.json", &p)
	a := &Access{Token: unhex(t, p.Token)}
	var req *coap.Request
	tr, err := PostToken(t.Context(), answering(func(q *coap.Request) *coap.Response {
		req = q
		return reply(coap.Created, coap.ACE, unhex(t, v.Response))
	}), a)
	if err != nil {
		t.Fatal(err)
	}
	// The vector asks for all but kdc_dh_creds.
	asked, err := groupcomm.DecodeTokenTransfer(req.Payload)
	if err != nil || !asked.WantKDCDH {
		t.Fatalf("request %x, %v", req.Payload, err)
	}
	if asked.WantKDCDH = false; !bytes.Equal(asked.Encode(), unhex(t, v.Request)) || strings.Join(req.Path(), "/") != "authz-info" {
		t.Errorf("request %x", req.Payload)
	}
	if len(tr.KDCChallenge) != 8 || len(tr.SignInfo) != 1 {
		t.Errorf("response %+v", tr)
	}
	for name, r := range map[string]*coap.Response{
		"short challenge":   reply(coap.Created, coap.ACE, (&groupcomm.TokenTransferResponse{KDCChallenge: []byte("short")}).Encode()),
		"huge challenge":    reply(coap.Created, coap.ACE, (&groupcomm.TokenTransferResponse{KDCChallenge: make([]byte, 65)}).Encode()),
		"no Content-Format": {Code: coap.Created, Payload: unhex(t, v.Response)},
		"empty":             reply(coap.Created, coap.ACE, nil),
	} {
		if _, err := PostToken(t.Context(), answering(func(*coap.Request) *coap.Response { return r }), a); !errors.Is(err, ErrBadAnswer) {
			t.Errorf("%s: %v", name, err)
		}
	}
	hint := reply(coap.Unauthorized, coap.ACE, cose.MustMarshal(map[int64]any{1: "coaps://as/token"}))
	_, err = PostToken(t.Context(), answering(func(*coap.Request) *coap.Response { return hint }), a)
	if !errors.Is(err, ErrUnauthorized) || !strings.Contains(err.Error(), "coaps://as/token") {
		t.Errorf("4.01: %v", err)
	}
	if _, err := PostToken(t.Context(), answering(nil), nil); err == nil {
		t.Error("no token accepted")
	}
}
