package coap

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

var errRow = &Problem{Code: Forbidden, ID: 0, Title: "Operation permitted only to group members"}

func TestErrorResponse(t *testing.T) {
	own := &Response{Code: Unauthorized, Payload: []byte{1}}
	for _, c := range []struct {
		name    string
		err     error
		code    Code
		payload string // hex
	}{
		{"nil", nil, InternalServerError, ""},
		{"unknown", errors.New("secret"), InternalServerError, ""},
		{"detail on unknown", Detail(io.EOF, "text"), InternalServerError, ""},
		{"row", errRow, Forbidden, "a100a10000"},
		{"row wrapped", fmt.Errorf("gm: leave: %w", errRow), Forbidden, "a100a10000"},
		{"row with detail", fmt.Errorf("gm: %w", Detail(fmt.Errorf("x: %w", errRow), "no")), Forbidden, "a200a1000021626e6f"},
		{"status", Errorf(NotFound, "no %s", "x"), NotFound, hex.EncodeToString([]byte("no x"))},
		{"status without text", Errorf(NotFound, ""), NotFound, ""},
		{"status with detail", Detail(Errorf(NotFound, "a"), "b"), NotFound, hex.EncodeToString([]byte("a: b"))},
		{"own response", fmt.Errorf("ace: %w", Respond(own, io.EOF)), Unauthorized, "01"},
		{"outermost decides", Respond(own, errRow), Unauthorized, "01"},
		{"outermost decides, joined", errors.Join(io.EOF, errRow), Forbidden, "a100a10000"},
		{"deadline", fmt.Errorf("x: %w", context.DeadlineExceeded), ServiceUnavailable, ""},
		{"row in a deadline", fmt.Errorf("%w: %w", context.DeadlineExceeded, errRow), Forbidden, "a100a10000"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := ErrorResponse(c.err)
			if r.Code != c.code || hex.EncodeToString(r.Payload) != c.payload {
				t.Errorf("%v %x", r.Code, r.Payload)
			}
			if f, ok := r.Options.ContentFormat(); ok != (strings.HasPrefix(c.payload, "a")) || ok && f != ProblemDetails {
				t.Errorf("Content-Format %v, %v", f, ok)
			}
		})
	}
}

func TestErrorChains(t *testing.T) {
	err := fmt.Errorf("gm: %w", Detail(errRow, "x"))
	if !errors.Is(err, errRow) {
		t.Error("Detail hides the row")
	}
	if !errors.Is(Respond(&Response{}, io.EOF), io.EOF) || !errors.Is(Errorf(BadRequest, "x: %w", io.EOF), io.EOF) {
		t.Error("the cause is hidden")
	}
	if s, ok := errors.AsType[*StatusError](fmt.Errorf("y: %w", Errorf(BadRequest, "x"))); !ok || s.Code != BadRequest {
		t.Error("the status is hidden")
	}
	if Detail(nil, "x") != nil {
		t.Error("an error out of nothing")
	}
	if !Deliberate(err) || Deliberate(io.EOF) || Deliberate(nil) {
		t.Error("Deliberate")
	}
}

// Two answers made of one error do not share their options.
func TestRespondCopies(t *testing.T) {
	err := Respond(&Response{Code: BadRequest}, nil)
	a := ErrorResponse(err)
	a.Options.SetUint(MaxAge, 1)
	if b := ErrorResponse(err); len(b.Options) != 0 {
		t.Errorf("options %v", b.Options)
	}
}

func TestDiagnosticBounds(t *testing.T) {
	r := ErrorResponse(Errorf(BadRequest, "%s\xff", strings.Repeat("ä", 1000)))
	if len(r.Payload) > maxDiagnostic || !utf8.Valid(r.Payload) {
		t.Errorf("%d bytes", len(r.Payload))
	}
	r = ErrorResponse(Errorf(BadRequest, "a\xffb"))
	if string(r.Payload) != "a\uFFFDb" {
		t.Errorf("%q", r.Payload)
	}
}

func TestChain(t *testing.T) {
	var order []string
	mw := func(name string) func(Handler) Handler {
		return func(h Handler) Handler {
			return HandlerFunc(func(ctx context.Context, r *Request) (*Response, error) {
				order = append(order, name)
				return h.ServeCoAP(ctx, r)
			})
		}
	}
	h := Chain(HandlerFunc(func(context.Context, *Request) (*Response, error) { return &Response{Code: Content}, nil }), mw("a"), mw("b"))
	if r, err := h.ServeCoAP(t.Context(), &Request{}); err != nil || r.Code != Content || !reflect.DeepEqual(order, []string{"a", "b"}) {
		t.Error(r, err, order)
	}
}

func TestProblemGolden(t *testing.T) {
	for id := range 13 {
		if got, want := hex.EncodeToString((&ProblemBody{ID: id}).Encode()), fmt.Sprintf("a100a100%02x", id); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	for _, c := range []struct {
		p   ProblemBody
		hex string
	}{
		{ProblemBody{ID: -1}, "a0"},
		{ProblemBody{ID: 24, Detail: "d"}, "a200a1001818216164"},
		{ProblemBody{ID: 300, Title: "t", Detail: "d"}, "a300a10019012c206174216164"},
	} {
		b := c.p.Encode()
		if hex.EncodeToString(b) != c.hex {
			t.Errorf("%+v: %x", c.p, b)
		}
		got, err := DecodeProblem(b)
		if err != nil || *got != c.p {
			t.Errorf("%x: %+v, %v", b, got, err)
		}
		for n := range b {
			if got, err := DecodeProblem(b[:n]); err == nil {
				t.Errorf("prefix %x: %+v", b[:n], got)
			}
		}
	}
}

func TestDecodeProblem(t *testing.T) {
	for s, want := range map[string]ProblemBody{ // ID -2: an error
		"a220d8268262656e616121616c": {ID: -1, Title: "a", Detail: "l"}, // tag 38 on the title
		"a301f623188518f6":           {ID: -2},                          // an item is missing
		"a201a100050017":             {ID: -2},                          // 0 is not a map
		"a100a0":                     {ID: -1},
		"a100a101f6":                 {ID: -1},
		"a2616101206174":             {ID: -1, Title: "t"}, // a key that is a URI
		"a100a10020":                 {ID: -2},             // negative
		"a100a1001a00010000":         {ID: -2},             // beyond 16 bits
		"a12061ff":                   {ID: -2},             // not UTF-8
		"a12001":                     {ID: -2},
		"a2206174206174":             {ID: -2}, // twice
		"bf00a10000ff":               {ID: -2}, // indefinite
		"a100a1000000":               {ID: -2}, // trailing
		"80":                         {ID: -2},
		"":                           {ID: -2},
		"f6":                         {ID: -2},
	} {
		got, err := DecodeProblem(unhex(t, s))
		if want.ID == -2 {
			if err == nil {
				t.Errorf("%s: %+v", s, got)
			}
		} else if err != nil || *got != want {
			t.Errorf("%s: %+v, %v", s, got, err)
		}
	}
}

func FuzzProblem(f *testing.F) {
	f.Add(unhex(f, "a300a10019012c206174216164"))
	f.Add(unhex(f, "a220d8268262656e616121616c"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := DecodeProblem(b)
		if err != nil {
			return
		}
		again, err := DecodeProblem(p.Encode())
		if err != nil || *again != *p {
			t.Fatalf("%+v becomes %+v, %v", p, again, err)
		}
	})
}
