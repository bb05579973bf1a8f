package oscore

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
)

var testSecret = []byte("sixteen secrets!")

// pair makes the two ends of a context.
func pair(t testing.TB, change ...func(client, server *Params)) (client, server *Context) {
	t.Helper()
	cp := Params{MasterSecret: cose.NewSecret(testSecret), MasterSalt: []byte("salt"), SenderID: []byte{1}, RecipientID: []byte{2}}
	sp := cp
	sp.SenderID, sp.RecipientID = cp.RecipientID, cp.SenderID
	for _, f := range change {
		f(&cp, &sp)
	}
	var err error
	if client, err = New(cp); err != nil {
		t.Fatal(err)
	}
	if server, err = New(sp); err != nil {
		t.Fatal(err)
	}
	return client, server
}

func both(f func(p *Params)) func(client, server *Params) {
	return func(client, server *Params) { f(client); f(server) }
}

func observed(m *coap.Message, v uint32) *coap.Message {
	m.Options.SetUint(coap.ObserveOption, v)
	return m
}

// request carries a request over, and fails when it does not arrive.
func request(t testing.TB, client, server *Context, m *coap.Message) (cex, sex Exchange) {
	t.Helper()
	p, cex, err := client.ProtectRequest(t.Context(), nil, m)
	if err != nil {
		t.Fatal(err)
	}
	got, sex, err := server.UnprotectRequest(nil, decode(t, encode(t, p)))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(encode(t, got), encode(t, m)) {
		t.Fatalf("arrived as %+v, sent as %+v", got, m)
	}
	return cex, sex
}

func respond(t testing.TB, server *Context, ex Exchange, m *coap.Message) *coap.Message {
	t.Helper()
	p, err := server.ProtectResponse(t.Context(), nil, ex, m)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func optionOf(t testing.TB, m *coap.Message) Option {
	t.Helper()
	o, err := received(m)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

var aeads = []int64{
	cose.AlgAESCCM16_64_128, cose.AlgAESCCM16_128_128, cose.AlgA128GCM, cose.AlgA256GCM, cose.AlgChaCha20Poly1305,
	cose.AlgAESCCM16_64_256, cose.AlgAESCCM64_64_128, cose.AlgAESCCM64_128_256, cose.AlgA192GCM,
}

// anyMessage makes any message that may be protected.
func anyMessage(rng *rand.Rand, codes ...coap.Code) *coap.Message {
	some := func(n int) []byte {
		b := make([]byte, rng.IntN(n+1))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	m := &coap.Message{Code: codes[rng.IntN(len(codes))], Type: coap.Type(rng.IntN(2)), ID: uint16(rng.Uint32())}
	m.Token = some(8)
	for range rng.IntN(12) {
		id := coap.OptionID(rng.IntN(70))
		if rng.IntN(4) == 0 {
			id = coap.OptionID(rng.Uint32())
		}
		switch id {
		case coap.OSCOREOption, coap.ProxyUri, coap.ObserveOption:
			continue
		}
		n := 20
		if rng.IntN(10) == 0 {
			n = 400
		}
		m.Options.Add(id, some(n))
	}
	if rng.IntN(4) > 0 {
		m.Payload = some(1 << rng.IntN(11))
	}
	return m
}

// Whatever is protected comes back as it was, both ways, with every algorithm and
// with roles swapped.
func TestIdentity(t *testing.T) {
	for _, alg := range aeads {
		for _, hash := range []int64{cose.AlgHMAC256, cose.AlgHMAC512} {
			a, b := pair(t, both(func(p *Params) { p.AEAD, p.HKDF, p.IDContext = alg, hash, []byte("ctx") }))
			rng := rand.New(rand.NewPCG(uint64(alg), uint64(hash)))
			var b1, b2, b3, b4 Buffer
			for range 100 {
				client, server := a, b
				if rng.IntN(2) == 0 {
					client, server = b, a
				}
				m := anyMessage(rng, coap.GET, coap.POST, coap.PUT, coap.DELETE, coap.FETCH, coap.PATCH, coap.IPATCH)
				p, cex, err := client.ProtectRequest(t.Context(), &b1, m)
				if err != nil {
					t.Fatal(err)
				}
				wire := encode(t, p)
				got, sex, err := server.UnprotectRequest(&b2, decode(t, wire))
				if err != nil {
					t.Fatalf("%d: %v of %+v", alg, err, m)
				}
				if !bytes.Equal(encode(t, got), encode(t, m)) {
					t.Fatalf("%d: %+v, want %+v", alg, got, m)
				}
				if _, _, err := server.UnprotectRequest(nil, decode(t, wire)); !errors.Is(err, ErrReplay) {
					t.Fatalf("replay: %v", err)
				}
				m = anyMessage(rng, coap.Content, coap.Changed, coap.Valid, coap.NotFound, coap.InternalServerError, coap.Continue)
				p, err = server.ProtectResponse(t.Context(), &b3, sex, m)
				if err != nil {
					t.Fatal(err)
				}
				wire = encode(t, p)
				got, err = client.UnprotectResponse(&b4, &cex, decode(t, wire))
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(encode(t, got), encode(t, m)) {
					t.Fatalf("%d: %+v, want %+v", alg, got, m)
				}
				if _, err := client.UnprotectResponse(nil, &cex, decode(t, wire)); !errors.Is(err, ErrReplay) {
					t.Fatalf("second response: %v", err)
				}
			}
		}
	}
}

// RFC 8613, Section 8.2: failures and what they change, which is nothing.
func TestRequestsRefused(t *testing.T) {
	client, server := pair(t, both(func(p *Params) { p.IDContext = []byte("ctx"); p.MaxUnfragmented = 200 }))
	p, _, err := client.ProtectRequest(t.Context(), nil, get("a"))
	if err != nil {
		t.Fatal(err)
	}
	good := encode(t, p)
	with := func(f func(o *Option)) *coap.Message {
		m := decode(t, bytes.Clone(good))
		o := optionOf(t, m)
		f(&o)
		b, err := o.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		m.Options.Set(coap.OSCOREOption, b)
		return m
	}
	payload := func(b []byte) *coap.Message { m := decode(t, good); m.Payload = b; return m }
	before := server.Window().State()
	for _, c := range []struct {
		name string
		m    *coap.Message
		want error
	}{
		{"unprotected", get("a"), ErrUnprotected},
		{"no Partial IV", with(func(o *Option) { o.PIV = nil }), ErrOption},
		{"no kid", with(func(o *Option) { o.KID = nil }), ErrOption},
		{"Group Flag", with(func(o *Option) { o.Group = true }), ErrOption},
		{"other kid", with(func(o *Option) { o.KID = []byte{9} }), ErrContext},
		{"empty kid", with(func(o *Option) { o.KID = []byte{} }), ErrContext},
		{"other kid context", with(func(o *Option) { o.KIDContext = []byte("x") }), ErrContext},
		{"empty kid context", with(func(o *Option) { o.KIDContext = []byte{} }), ErrContext},
		{"other Partial IV", with(func(o *Option) { o.PIV = []byte{1} }), ErrDecrypt},
		{"no tag", payload([]byte{1}), ErrDecrypt},
		{"no payload", payload(nil), ErrOption},
		{"flipped bit", payload(append([]byte{p.Payload[0] ^ 1}, p.Payload[1:]...)), ErrDecrypt},
		{"cut off", payload(p.Payload[:len(p.Payload)-1]), ErrDecrypt},
		{"too large", payload(make([]byte, 201)), ErrTooLarge},
	} {
		got, ex, err := server.UnprotectRequest(nil, c.m)
		if !errors.Is(err, c.want) || got != nil || ex != (Exchange{}) {
			t.Errorf("%s: %+v, %+v, %v", c.name, got, ex, err)
		}
		if after := server.Window().State(); after != before {
			t.Errorf("%s: the window became %+v", c.name, after)
		}
	}
	// The kid context is a hint: without it the context is known by its kid.
	if _, _, err := server.UnprotectRequest(nil, with(func(o *Option) { o.KIDContext = nil })); err != nil {
		t.Errorf("without kid context: %v", err)
	}
	if _, _, err := server.UnprotectRequest(nil, decode(t, good)); !errors.Is(err, ErrReplay) {
		t.Errorf("replay: %v", err)
	}
	big := get("a")
	big.Payload = make([]byte, 200)
	if _, _, err := client.ProtectRequest(t.Context(), nil, big); !errors.Is(err, ErrTooLarge) {
		t.Errorf("larger than allowed: %v", err)
	}
	if n := client.Sequence().Used(); n != 1 {
		t.Errorf("what was not sent took a number: %d", n)
	}
}

// A plaintext that is no message is refused although it is authentic.
func TestInnerRefused(t *testing.T) {
	client, server := pair(t)
	var b Buffer
	for i, plain := range []string{"45", "00", "01ff", "01b47476", "0190", "01f1"} {
		b.data = append(make([]byte, 0, 200), unhex(t, plain)...)
		n := uint64(i)
		option := Option{PIV: appendPIV(nil, n), KID: client.senderID}
		p, err := client.seal(&b, get(""), &option, client.setNonce(&b, client.senderID, n), client.setAAD(&b, client.senderID, n))
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := server.UnprotectRequest(nil, p); !errors.Is(err, ErrInner) {
			t.Errorf("%s: %v", plain, err)
		}
	}
	if s := server.Window().State(); s.Next != 0 {
		t.Errorf("the window became %+v", s)
	}
}

// RFC 8613, Section 8.4.
func TestResponsesRefused(t *testing.T) {
	client, server := pair(t)
	cex, sex := request(t, client, server, get("a"))
	other, _ := request(t, client, server, get("b"))
	p := respond(t, server, sex, content("x")).Clone()
	with := func(o Option) *coap.Message {
		b, err := o.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		m := p.Clone()
		m.Options.Set(coap.OSCOREOption, b)
		return m
	}
	note := respond(t, server, sex, observed(content("x"), 0))
	for _, c := range []struct {
		name string
		ex   *Exchange
		m    *coap.Message
		want error
	}{
		{"unprotected", &cex, content("x"), ErrUnprotected},
		{"of another request", &other, p, ErrDecrypt},
		{"of the server's side", &sex, p, errExchange},
		{"Partial IV", &cex, with(Option{PIV: []byte{3}}), ErrDecrypt},
		{"Group Flag", &cex, with(Option{Group: true}), ErrOption},
		{"kid of another", &cex, with(Option{KID: []byte{9}}), ErrContext},
		{"kid context", &cex, with(Option{KIDContext: []byte{9}}), ErrContext},
		{"notification", &cex, note, ErrInner},
	} {
		before := *c.ex
		if got, err := client.UnprotectResponse(nil, c.ex, c.m); !errors.Is(err, c.want) || got != nil {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
		if *c.ex != before {
			t.Errorf("%s: the exchange became %+v", c.name, *c.ex)
		}
	}
	if !cex.Open() {
		t.Error("nothing was accepted, and the exchange is over")
	}
	// A kid that says who answers is allowed.
	if _, err := client.UnprotectResponse(nil, &cex, with(Option{KID: []byte{2}})); err != nil {
		t.Error(err)
	}
	if cex.Open() {
		t.Error("a response was accepted, and the exchange goes on")
	}
	if _, err := server.ProtectResponse(t.Context(), nil, cex, content("x")); !errors.Is(err, errExchange) {
		t.Errorf("the client's exchange is answered: %v", err)
	}
	if _, err := server.ProtectResponse(t.Context(), nil, sex, get("")); err == nil {
		t.Error("a request is protected as response")
	}
	if _, _, err := client.ProtectRequest(t.Context(), nil, content("x")); err == nil {
		t.Error("a response is protected as request")
	}
}

func TestExhausted(t *testing.T) {
	client, server := pair(t, func(c, _ *Params) { c.Sequence.Limit = 1 })
	request(t, client, server, get("a"))
	if _, _, err := client.ProtectRequest(t.Context(), nil, get("a")); !errors.Is(err, ErrExhausted) {
		t.Errorf("got %v", err)
	}
}

func TestParams(t *testing.T) {
	good := Params{MasterSecret: cose.NewSecret(testSecret), SenderID: []byte{1}, RecipientID: []byte{}}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func(p *Params){
		"no secret":             func(p *Params) { p.MasterSecret = cose.Secret{} },
		"same identifiers":      func(p *Params) { p.RecipientID = []byte{1} },
		"long Sender ID":        func(p *Params) { p.SenderID = make([]byte, 8) },
		"long Recipient ID":     func(p *Params) { p.RecipientID = make([]byte, 8) },
		"long for the AEAD":     func(p *Params) { p.AEAD, p.SenderID = cose.AlgA128GCM, make([]byte, 7) },
		"unknown AEAD":          func(p *Params) { p.AEAD = cose.AlgA128CTR },
		"unknown HKDF":          func(p *Params) { p.HKDF = cose.AlgHMAC384 },
		"window":                func(p *Params) { p.WindowSize = 65 },
		"limit":                 func(p *Params) { p.Sequence.Limit = 1 << 41 },
		"long ID Context":       func(p *Params) { p.IDContext = make([]byte, 250) },
		"unfragmented messages": func(p *Params) { p.MaxUnfragmented = 1 << 16 },
	} {
		p := good
		f(&p)
		if _, err := New(p); err == nil {
			t.Errorf("%s: taken", name)
		} else if strings.Contains(err.Error(), string(testSecret)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// No key gets out by way of a formatter.
func TestRedacted(t *testing.T) {
	client, _ := pair(t)
	key, err := hkdfKey(cose.AlgHMAC256, testSecret, []byte("salt"), appendInfo(nil, []byte{1}, nil, client.alg, typeKey, 16), 16)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "context", client)
	for _, s := range []string{
		fmt.Sprintf("%v %+v %#v %s %x %d", client, client, client, client, client, client), log.String(),
		fmt.Sprintf("%+v", struct{ C *Context }{client}),
	} {
		for _, form := range []string{string(key), hex.EncodeToString(key), fmt.Sprint(key), hex.EncodeToString(client.commonIV)} {
			if strings.Contains(s, form) {
				t.Errorf("%s shows a key", s)
			}
		}
	}
	if got, want := fmt.Sprint(client), "oscore(01 to 02)"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
