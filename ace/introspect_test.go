package ace

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/ace/cwt"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// issuerAt is an Authorization Server that knows tokens by reference.
type issuerAt struct {
	mu     sync.Mutex
	tokens map[string]map[int64]any
	code   coap.Code // 0: it answers as it should
	err    error
	wait   chan struct{} // nil: it answers at once
	asked  atomic.Int64
}

func (a *issuerAt) Do(ctx context.Context, req *coap.Request) (*coap.Response, error) {
	a.asked.Add(1)
	if a.wait != nil {
		select {
		case <-a.wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil {
		return nil, a.err
	}
	if a.code != 0 {
		return &coap.Response{Code: a.code}, nil
	}
	raw, err := decodeIntrospectionRequest(req.Payload)
	if err != nil || req.Code != coap.POST || len(req.Path()) != 1 || req.Path()[0] != "introspect" {
		return &coap.Response{Code: coap.BadRequest}, nil
	}
	body := a.tokens[string(raw)]
	if body == nil {
		body = map[int64]any{paramActive: false}
	}
	resp := &coap.Response{Code: coap.Created, Payload: cose.MustMarshal(body)}
	resp.Options.SetContentFormat(coap.ACE)
	return resp, nil
}

// know lets the server answer with these claims for a token.
func (a *issuerAt) know(token string, c *cwt.Claims) {
	m, err := cose.DecodeMap(c.Encode())
	if err != nil {
		panic(err)
	}
	body := map[int64]any{}
	for label, v := range m {
		body[label] = v
	}
	body[paramActive] = true
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.tokens == nil {
		a.tokens = map[string]map[int64]any{}
	}
	a.tokens[token] = body
}

func (a *issuerAt) fail(code coap.Code, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.code, a.err = code, err
}

func asking(as *issuerAt) func(*Config) {
	return func(c *Config) {
		c.Entries = append(c.Entries, TokenEntry{
			Issuer: "as4", Audience: "rs2", DerivationKey: cose.NewSecret(kdkKey),
			Introspect: &Endpoint{Client: as, Path: []string{"introspect"}},
		})
	}
}

// transfer posts a token as the map that can hold a reference.
func (b *bench) transfer(token string) error {
	b.t.Helper()
	req := &coap.Request{Code: coap.POST, Payload: (&groupcomm.TokenTransfer{AccessToken: []byte(token)}).Encode(), Peer: outside()}
	req.Options.SetContentFormat(coap.ACE)
	_, err := b.send(req)
	return err
}

// RFC 9200, Section 5.9: what the server says is judged as the claims of a
// token are, with the same codes.
func TestIntrospection(t *testing.T) {
	as := &issuerAt{}
	b := newBench(t, asking(as))
	for name, c := range map[string]struct {
		edit func(*cwt.Claims)
		want coap.Code
	}{
		"active":             {func(*cwt.Claims) {}, coap.Created},
		"no issuer":          {func(c *cwt.Claims) { c.Issuer = "" }, coap.Created},
		"no audience":        {func(c *cwt.Claims) { c.Audience = nil }, coap.Created},
		"named key, derived": {func(c *cwt.Claims) { c.Cnf.Key.K, c.Cnf.Key.KID = nil, []byte("named") }, coap.Created},
		"profile":            {func(c *cwt.Claims) { c.Profile = 1 }, coap.Created},
		"another issuer":     {func(c *cwt.Claims) { c.Issuer = "as1" }, coap.Unauthorized},
		"expired":            {func(c *cwt.Claims) { c.Expires = c.IssuedAt - 1 }, coap.Unauthorized},
		"not valid yet":      {func(c *cwt.Claims) { c.NotBefore = c.IssuedAt + 600 }, coap.Unauthorized},
		"another audience":   {func(c *cwt.Claims) { c.Audience = []string{"rs9"} }, coap.Forbidden},
		"no scope":           {func(c *cwt.Claims) { c.Scope = nil }, coap.BadRequest},
		"no cnf":             {func(c *cwt.Claims) { c.Cnf = nil }, coap.BadRequest},
		"another profile":    {func(c *cwt.Claims) { c.Profile = 2 }, coap.BadRequest},
		"exi without number": {func(c *cwt.Claims) { c.ExpiresIn = 60 }, coap.BadRequest},
	} {
		as.know(name, claims(func(k *cwt.Claims) {
			k.Issuer, k.Cnf.Key.KID = "as4", []byte("kid of "+name)
			c.edit(k)
		}))
		if got := code(b.transfer(name)); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
	if got := code(b.transfer("unknown")); got != coap.Unauthorized {
		t.Errorf("inactive: %v", got)
	}
	// The key of the answer is that of the handshake, and the rights those of
	// its scope.
	s := b.handshake([]byte("kid of active"))
	if g := b.grant(s); len(g.Scope) != 1 || g.Scope[0].Group != "g1" || g.Expires.IsZero() {
		t.Errorf("grant %+v", g)
	}
	// A token that a key of ours opens is not asked about, whatever it says;
	// neither is one in a handshake.
	before := as.asked.Load()
	b.mustPost(outside(), b.token())
	if _, err := b.post(outside(), b.token(func(c *cwt.Claims) { c.Expires = 1 })); code(err) != coap.Unauthorized {
		t.Error("an expired token of our own is accepted")
	}
	if _, err := b.PSK(t.Context(), []byte("active")); !errors.Is(err, ErrIdentity) {
		t.Errorf("a reference in psk_identity: %v", err)
	}
	if err := b.transfer(string(bytes.Repeat([]byte{1}, cwt.MaxToken+1))); code(err) != coap.RequestEntityTooLarge {
		t.Errorf("a long one: %v", err)
	}
	if n := as.asked.Load(); n != before {
		t.Errorf("asked %d times more", n-before)
	}
}

// While the server is away, nothing is known about the token: 5.03, and the
// next post asks again. Answers are kept, those of valid tokens not beyond
// their end.
func TestIntrospectionAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		as := &issuerAt{}
		b := newBench(t, asking(as))
		until := time.Now().Add(30 * time.Second).Unix()
		as.know("ref", claims(func(c *cwt.Claims) { c.Issuer, c.Expires = "as4", until }))
		for name, f := range map[string]func(){
			"lost":          func() { as.fail(0, errors.New("no response")) },
			"unauthorized":  func() { as.fail(coap.Unauthorized, nil) },
			"unavailable":   func() { as.fail(coap.ServiceUnavailable, nil) },
			"empty success": func() { as.fail(coap.Created, nil) },
		} {
			f()
			err := b.transfer("ref")
			r := coap.ErrorResponse(err)
			if age, _ := r.Options.Uint(coap.MaxAge); r.Code != coap.ServiceUnavailable || age != askAgain {
				t.Errorf("%s: %v, Max-Age %d", name, r.Code, age)
			}
		}
		as.fail(0, nil)
		n := as.asked.Load()
		for range 5 {
			if err := b.transfer("ref"); err != nil {
				t.Fatal(err)
			}
			if code(b.transfer("other")) != coap.Unauthorized {
				t.Error("unknown token accepted")
			}
		}
		if got := as.asked.Load() - n; got != 2 {
			t.Errorf("asked %d times for two tokens", got)
		}
		time.Sleep(31 * time.Second) // beyond the end of the token, which is before keepActive
		if code(b.transfer("ref")) != coap.Unauthorized || as.asked.Load()-n != 3 {
			t.Errorf("an expired answer was used, or not asked anew: %d", as.asked.Load()-n)
		}
	})
}

// A token without an end is asked about again after an hour.
func TestIntrospectionWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		as := &issuerAt{}
		b := newBench(t, asking(as))
		as.know("ref", claims(func(c *cwt.Claims) { c.Issuer, c.Expires = "as4", 0 }))
		if err := b.transfer("ref"); err != nil {
			t.Fatal(err)
		}
		s := b.handshake(popKID)
		if left := time.Until(b.grant(s).Expires); left <= 0 || left > introspectedLife {
			t.Errorf("ends in %v", left)
		}
		time.Sleep(introspectedLife)
		if _, err := b.Grant(t.Context(), inside(s)); code(err) != coap.Unauthorized {
			t.Errorf("after that: %v", err)
		}
		if err := b.transfer("ref"); err != nil {
			t.Error(err)
		}
		b.grant(b.handshake(popKID))
	})
}

// Questions are bounded in number and time.
func TestIntrospectionBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		as := &issuerAt{wait: make(chan struct{})}
		b := newBench(t, asking(as))
		const posts = 4 * maxAsking
		results := make(chan coap.Code, posts)
		for i := range posts {
			token := string(rune('A' + i))
			req := &coap.Request{Code: coap.POST, Payload: (&groupcomm.TokenTransfer{AccessToken: []byte(token)}).Encode(), Peer: outside()}
			req.Options.SetContentFormat(coap.ACE)
			go func() {
				_, err := b.AuthzInfo().ServeCoAP(t.Context(), req)
				results <- code(err)
			}()
		}
		synctest.Wait()
		if n := as.asked.Load(); n != maxAsking {
			t.Errorf("%d questions at one time", n)
		}
		begun := time.Now()
		for range posts {
			if c := <-results; c != coap.ServiceUnavailable {
				t.Errorf("answered %v", c)
			}
		}
		if took := time.Since(begun); took > 2*askTimeout {
			t.Errorf("took %v", took)
		}
		if len(b.asking) != 0 {
			t.Error("slots are kept")
		}
	})
}

func TestAnswerCacheIsBounded(t *testing.T) {
	c, now := newAnswerCache(), time.Now()
	for i := range 2 * maxAnswers {
		id := [32]byte{byte(i), byte(i >> 8)}
		c.put(id, verdict{until: now.Add(time.Minute)}, now)
		if _, ok := c.get(id, now); !ok {
			t.Fatal("not kept")
		}
	}
	if len(c.m) > maxAnswers {
		t.Errorf("%d answers", len(c.m))
	}
}

// RFC 9200, Section 5.9: the embedded server answers Resource Servers, about
// tokens of its own for them only.
func TestIntrospectionServed(t *testing.T) {
	b := newBench(t, func(c *Config) {
		c.PSK = append(c.PSK, PSKPeer{Identity: []byte("rs2"), Key: cose.NewSecret(popKey), MayIntrospect: true},
			PSKPeer{Identity: []byte("rs9"), Key: cose.NewSecret(popKey), MayIntrospect: true})
	})
	psk := func(id string) coap.Peer {
		return coap.Peer{Via: coap.DTLSPSK, Subject: coap.Subject{Kind: coap.SubjectPSK, ID: id}}
	}
	ask := func(peer coap.Peer, payload []byte) (*cwt.Claims, coap.Code) {
		t.Helper()
		req := &coap.Request{Code: coap.POST, Payload: payload, Peer: peer}
		req.Options.SetContentFormat(coap.ACE)
		resp, err := b.Introspection().ServeCoAP(t.Context(), req)
		if err != nil {
			return nil, coap.ErrorResponse(err).Code
		}
		got, err := decodeIntrospection(resp.Payload)
		if err != nil {
			t.Errorf("%x: %v", resp.Payload, err)
		}
		return got, resp.Code
	}
	body := func(token []byte) []byte {
		return cose.MustMarshal(map[int64]any{paramToken: token, paramTokenTypeHint: 2})
	}
	token := b.token()
	got, c := ask(psk("rs2"), body(token))
	if c != coap.Created || got == nil || got.Issuer != "as1" || got.Expires == 0 || got.Profile != ProfileDTLS || !bytes.Equal(got.Cnf.Key.K, popKey) {
		t.Errorf("%v %+v", c, got)
	}
	for name, x := range map[string]struct {
		peer    coap.Peer
		payload []byte
		want    coap.Code
	}{
		"a client":             {psk("clientF"), body(token), coap.Unauthorized},
		"plain":                {outside(), body(token), coap.Unauthorized},
		"a token's holder":     {inside(coap.Subject{Kind: coap.SubjectPoP, ID: "rs2"}), body(token), coap.Unauthorized},
		"of another audience":  {psk("rs9"), body(token), coap.Forbidden},
		"no map":               {psk("rs2"), []byte{0x80}, coap.BadRequest},
		"no token":             {psk("rs2"), []byte{0xa0}, coap.BadRequest},
		"a hint that is a map": {psk("rs2"), cose.MustMarshal(map[int64]any{paramToken: token, paramTokenTypeHint: []byte{}}), coap.BadRequest},
		"far too long":         {psk("rs2"), body(make([]byte, 2*cwt.MaxToken)), coap.RequestEntityTooLarge},
		"garbage is inactive":  {psk("rs2"), body([]byte("x")), coap.Created},
		"expired":              {psk("rs2"), body(b.token(func(c *cwt.Claims) { c.Expires = 1 })), coap.Created},
		"issued by another":    {psk("rs2"), body(b.seal(cose.AlgHMAC256, claims(func(c *cwt.Claims) { c.Issuer = "as2" }))), coap.Created},
	} {
		if got, c := ask(x.peer, x.payload); c != x.want || got != nil {
			t.Errorf("%s: %v %+v", name, c, got)
		}
	}
	if err := b.Revoke(t.Context(), cwt.Hash(token)); err != nil {
		t.Fatal(err)
	}
	if got, c := ask(psk("rs2"), body(token)); c != coap.Created || got != nil {
		t.Errorf("revoked: %v %+v", c, got)
	}
}

func goodIntrospection() []byte {
	m, err := cose.DecodeMap(claims().Encode())
	if err != nil {
		panic(err)
	}
	body := map[int64]any{paramActive: true, paramProfile: 1}
	for label, v := range m {
		body[label] = v
	}
	return cose.MustMarshal(body)
}

func TestIntrospectionPrefixes(t *testing.T) {
	for _, b := range [][]byte{goodIntrospection(), {0xa1, 0x0a, 0xf4}} {
		if _, err := decodeIntrospection(b); err != nil {
			t.Fatal(err)
		}
		for n := range b {
			if _, err := decodeIntrospection(b[:n]); err == nil {
				t.Errorf("%x reads", b[:n])
			}
		}
		if _, err := decodeIntrospection(append(bytes.Clone(b), 0)); err == nil {
			t.Error("reads with a byte behind it")
		}
	}
	for _, s := range []string{"a0", "a10a01", "a10af6", "a2" + "0af5" + "0101", "a2" + "0af5" + "08a0" + "00"} {
		if c, err := decodeIntrospection(unhex(t, s)); err == nil && c != nil && c.Cnf == nil {
			t.Errorf("%s reads as %+v", s, c)
		}
	}
}

func FuzzDecodeIntrospection(f *testing.F) {
	f.Add(goodIntrospection())
	f.Add([]byte{0xa1, 0x0a, 0xf4})
	b := newBench(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := decodeIntrospection(raw)
		if err != nil || c == nil {
			return
		}
		v := &verified{raw: []byte("ref")}
		_ = b.judge(t.Context(), v, c, []*TokenEntry{{Audience: "rs2"}}, time.Now())
	})
}

func FuzzDecodeIntrospectionRequest(f *testing.F) {
	f.Add(cose.MustMarshal(map[int64]any{paramToken: []byte("ref"), paramTokenTypeHint: 2}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if raw, err := decodeIntrospectionRequest(b); err == nil && len(raw) == 0 {
			t.Error("an empty token")
		}
	})
}
