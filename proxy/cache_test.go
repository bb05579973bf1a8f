package proxy

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/coaptest"
)

// memory is an upstream without a network, so that its minutes take no time.
type memory struct {
	mu    sync.Mutex
	asked []*coap.Message
	reply func(m *coap.Message, n int) *coap.Message // n counts from 1
	fns   map[string]func(*coap.Message)
	gone  chan struct{}
	deaf  bool // answers no ping
}

func (l *memory) ping(context.Context, time.Duration) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.deaf {
		return errSilent
	}
	return nil
}

func newMemory(reply func(*coap.Message, int) *coap.Message) *memory {
	return &memory{reply: reply, fns: map[string]func(*coap.Message){}, gone: make(chan struct{})}
}

func (l *memory) Do(ctx context.Context, m *coap.Message) (*coap.Message, error) {
	l.mu.Lock()
	l.asked = append(l.asked, m.Clone())
	n, reply := len(l.asked), l.reply
	l.mu.Unlock()
	time.Sleep(10 * time.Millisecond) // of the bubble
	if r := reply(m, n); r != nil && ctx.Err() == nil {
		return r, nil
	}
	<-ctx.Done()
	return nil, errSilent
}

func (l *memory) observe(ctx context.Context, m *coap.Message, tok string, fn func(*coap.Message)) (*coap.Message, error) {
	l.mu.Lock()
	l.fns[tok] = fn
	l.mu.Unlock()
	return l.Do(ctx, m)
}

func (l *memory) forget(tok string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.fns, tok)
}

func (l *memory) done() <-chan struct{} { return l.gone }
func (l *memory) worn() bool            { return false }
func (l *memory) retire()               {}
func (l *memory) close()                {}

func (l *memory) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.asked)
}

func (l *memory) newest() *coap.Message {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asked[len(l.asked)-1]
}

// observed counts the tokens that are not forgotten.
func (l *memory) observed() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.fns)
}

// at is the n-th request.
func (l *memory) at(n int) *coap.Message {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asked[n]
}

// answers replaces reply.
func (l *memory) answers(reply func(*coap.Message, int) *coap.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reply = reply
}

// notify sends a notification to everybody who observes.
func (l *memory) notify(m *coap.Message) int {
	l.mu.Lock()
	var all []func(*coap.Message)
	for _, fn := range l.fns {
		all = append(all, fn)
	}
	l.mu.Unlock()
	for _, fn := range all {
		fn(m.Clone())
	}
	return len(all)
}

// message is a response of an upstream.
func message(code coap.Code, body string, opts ...coap.Option) *coap.Message {
	m := &coap.Message{Code: code, Payload: []byte(body)}
	for _, o := range opts {
		m.Options.Add(o.ID, o.Value)
	}
	return m
}

func maxAge(seconds uint32) coap.Option {
	var o coap.Options
	o.SetUint(coap.MaxAge, seconds)
	return o[0]
}

func opt(id coap.OptionID, v string) coap.Option { return coap.Option{ID: id, Value: []byte(v)} }

const there = "coap://192.0.2.9:5683"

// bubble is a proxy to one upstream in memory, inside of synctest.
func bubble(t *testing.T, rule Rule, reply func(*coap.Message, int) *coap.Message) (*site, *memory) {
	t.Helper()
	m := newMemory(reply)
	if rule.Host == "" && rule.Name == "" {
		rule.Host, rule.Scheme, rule.Port = "192.0.2.9/32", CoAP, 5683
	}
	s := house(t, Config{Rules: []Rule{rule}}, nil)
	s.p.dialer = func(context.Context, *Rule, Target, int) (link, error) { return m, nil }
	return s, m
}

// TestCacheRules is RFC 7252, Sections 5.6 and 5.9, as a table: after one request,
// does an upstream see the other?
func TestCacheRules(t *testing.T) {
	get := func(opts ...coap.Option) *coap.Request {
		r := proxied(coap.GET, there+"/a?q=1", nil)
		for _, o := range opts {
			r.Options.Add(o.ID, o.Value)
		}
		return r
	}
	fetch := func(body string) *coap.Request { return proxied(coap.FETCH, there+"/a", []byte(body)) }
	cases := []struct {
		name   string
		answer *coap.Message
		first  *coap.Request
		pause  time.Duration
		then   *coap.Request
		peers  [2]string
		hit    bool
	}{
		{name: "2.05 without Max-Age is fresh for 60 s", answer: message(coap.Content, "x"), pause: 59 * time.Second, hit: true},
		{name: "and not for longer (5.10.5)", answer: message(coap.Content, "x"), pause: 61 * time.Second},
		{name: "Max-Age decides", answer: message(coap.Content, "x", maxAge(600)), pause: 590 * time.Second, hit: true},
		{name: "Max-Age 0 is never fresh", answer: message(coap.Content, "x", maxAge(0))},
		{name: "for every client (5.6)", answer: message(coap.Content, "x"), peers: [2]string{"a", "b"}, hit: true},
		{name: "another query is another resource", answer: message(coap.Content, "x"), then: proxied(coap.GET, there+"/a?q=2", nil)},
		{name: "no query is another resource", answer: message(coap.Content, "x"), then: proxied(coap.GET, there+"/a", nil)},
		{name: "another path", answer: message(coap.Content, "x"), then: proxied(coap.GET, there+"/A?q=1", nil)},
		{name: "a path is not its segments joined", answer: message(coap.Content, "x"), first: proxied(coap.GET, there+"/a/b", nil), then: proxied(coap.GET, there+"/a%2fb", nil)},
		{name: "another method", answer: message(coap.Content, "x"), then: proxied(coap.FETCH, there+"/a?q=1", []byte("b"))},
		{name: "Accept belongs to the key", answer: message(coap.Content, "x"), then: get(opt(coap.Accept, "\x32"))},
		{name: "the same Accept", answer: message(coap.Content, "x"), first: get(opt(coap.Accept, "\x32")), then: get(opt(coap.Accept, "\x32")), hit: true},
		{name: "an unknown option that is safe belongs to the key", answer: message(coap.Content, "x"), then: get(opt(2048, "v"))},
		{name: "NoCacheKey does not (5.4.2)", answer: message(coap.Content, "x"), then: get(opt(2044, "v")), hit: true}, // 2044 & 0x1e = 0x1c
		{name: "Hop-Limit does not: it says nothing about the response", answer: message(coap.Content, "x"), then: get(opt(coap.HopLimit, "\x05")), hit: true},
		{name: "No-Response does not", answer: message(coap.Content, "x"), then: get(opt(coap.NoResponse, "\x08")), hit: true},
		{name: "addressed by Proxy-Scheme it is the same", answer: message(coap.Content, "x"), then: scheme("a", "q=1"), hit: true},
		{name: "FETCH: the same body (RFC 8132, 2.1)", answer: message(coap.Content, "x"), first: fetch("b"), then: fetch("b"), hit: true},
		{name: "FETCH: another body", answer: message(coap.Content, "x"), first: fetch("b"), then: fetch("c")},
		{name: "4.04 is cacheable (5.9.2)", answer: message(coap.NotFound, "no"), hit: true},
		{name: "5.03 for its Max-Age (5.9.3.4)", answer: message(coap.ServiceUnavailable, "", maxAge(5)), pause: 4 * time.Second, hit: true},
		{name: "5.03 not for longer", answer: message(coap.ServiceUnavailable, "", maxAge(5)), pause: 6 * time.Second},
		{name: "4.01 is a conversation", answer: message(coap.Unauthorized, "")},
		{name: "so is what has an Echo (RFC 9175, 2.3)", answer: message(coap.Content, "x", opt(coap.Echo, "abcdefgh"))},
		{name: "an Echo of the client goes to the server", answer: message(coap.Content, "x"), then: get(opt(coap.Echo, "abcdefgh"))},
		{name: "2.04 to a GET is nothing to keep", answer: message(coap.Changed, "x")},
		{name: "POST: never", answer: message(coap.Content, "x"), first: proxied(coap.POST, there+"/a", nil), then: proxied(coap.POST, there+"/a", nil)},
		{name: "PUT: never", answer: message(coap.Changed, ""), first: proxied(coap.PUT, there+"/a", nil), then: proxied(coap.PUT, there+"/a", nil)},
		{name: "errors to POST: never", answer: message(coap.NotFound, ""), first: proxied(coap.POST, there+"/a", nil), then: proxied(coap.POST, there+"/a", nil)},
		{name: "what OSCORE protects: never", answer: message(coap.Content, "x", opt(coap.OSCOREOption, "")), first: oscoreRequest(), then: oscoreRequest()},
		{name: "a protected answer to a plain request: never", answer: message(coap.Content, "x", opt(coap.OSCOREOption, ""))},
		{name: "paths of groups and tokens: never", answer: message(coap.Content, "x"), first: proxied(coap.GET, there+"/ace-group/g/num", nil), then: proxied(coap.GET, there+"/ace-group/g/num", nil)},
		{name: "however they are written", answer: message(coap.Content, "x"), first: proxied(coap.GET, there+"/%61uthz-info", nil), then: proxied(coap.GET, there+"/authz-info", nil)},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, up := bubble(t, Rule{}, func(*coap.Message, int) *coap.Message { return c.answer })
				if c.peers[0] == "" {
					c.peers = [2]string{"a", "a"}
				}
				if c.first == nil {
					c.first = get()
				}
				if c.then == nil {
					c.then = get()
				}
				one, two := s.client(c.peers[0], coaptest.Options{}), s.client(c.peers[1], coaptest.Options{})
				a := do(t, one, c.first)
				time.Sleep(c.pause)
				before := up.count()
				b := do(t, two, c.then)
				if hit := up.count() == before; hit != c.hit {
					t.Fatalf("hit %v, want %v: %v %q, then %v %q", hit, c.hit, a.Code, a.Payload, b.Code, b.Payload)
				}
				if c.hit && b.Code != a.Code {
					t.Errorf("%v from the cache of %v", b.Code, a.Code)
				}
				if left, ok := b.Options.Uint(coap.MaxAge); c.hit && (!ok || time.Duration(left)*time.Second > maxAgeOf(response(c.answer))-c.pause) {
					t.Errorf("Max-Age %d after %v", left, c.pause) // Section 5.7.1
				}
				one.Close()
				two.Close()
				s.stop()
			})
		})
	}
}

func response(m *coap.Message) *coap.Response {
	return &coap.Response{Code: m.Code, Options: m.Options, Payload: m.Payload}
}

func scheme(path, query string) *coap.Request {
	r := &coap.Request{Code: coap.GET}
	r.Options.AddString(coap.UriHost, "192.0.2.9")
	r.Options.AddString(coap.ProxyScheme, "coap")
	r.Options.AddString(coap.UriPath, path)
	r.Options.AddString(coap.UriQuery, query)
	return r
}

func oscoreRequest() *coap.Request {
	r := proxied(coap.FETCH, there, []byte("ciphertext"))
	r.Options.Add(coap.OSCOREOption, []byte{0x09, 0x01, 0x02})
	return r
}

// TestValidation: stale responses with an ETag are validated (RFC 7252, Section
// 5.6.2), for the proxy itself and for clients.
func TestValidation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tagged := func(tag string) func(*coap.Message, int) *coap.Message {
			return func(m *coap.Message, _ int) *coap.Message {
				if slices.Contains(m.Options.Strings(coap.ETag), tag) {
					return message(coap.Valid, "", opt(coap.ETag, tag), maxAge(30))
				}
				return message(coap.Content, "body "+tag, opt(coap.ETag, tag), maxAge(10))
			}
		}
		s, up := bubble(t, Rule{}, tagged("v1"))
		l := s.client("a", coaptest.Options{})
		ask := func(tags ...string) string {
			req := proxied(coap.GET, there+"/a", nil)
			for _, x := range tags {
				req.Options.AddString(coap.ETag, x)
			}
			r := do(t, l, req)
			age, _ := r.Options.Uint(coap.MaxAge)
			return fmt.Sprintf("%v %s %v %d", r.Code, r.Payload, r.Options.Strings(coap.ETag), age)
		}
		expect := func(what, got, want string, asked int) {
			t.Helper()
			if got != want || up.count() != asked {
				t.Errorf("%s: %s after %d requests, want %s after %d", what, got, up.count(), want, asked)
			}
		}
		expect("first", ask(), "2.05 body v1 [v1] 10", 1)
		expect("fresh, and the client has it", ask("v0", "v1"), "2.03  [v1] 9", 1)
		time.Sleep(11 * time.Second)
		expect("stale: validated, whole to the client", ask(), "2.05 body v1 [v1] 30", 2)
		expect("fresh again, for as long as the 2.03 said", ask(), "2.05 body v1 [v1] 29", 2)
		time.Sleep(31 * time.Second)
		up.answers(tagged("v2"))
		expect("stale and changed", ask("v1"), "2.05 body v2 [v2] 10", 3)
		expect("the client has the old one", ask("v1"), "2.05 body v2 [v2] 9", 3)
		time.Sleep(11 * time.Second)
		expect("stale, and both have it", ask("v2"), "2.03  [v2] 30", 4)
		// One that the cache lacks.
		s.p.cache = newCache(1 << 20)
		s.p.cache.count = func(string) {}
		expect("only the client has it", ask("v2"), "2.03  [v2] 30", 5)
		expect("which is nothing to keep", ask(), "2.05 body v2 [v2] 10", 6)
		l.Close()
		s.stop()
	})
}

// TestInvalidation: what changes a resource makes what is stored of it stale (RFC
// 7252, Sections 5.9.1.1 to 5.9.1.4), also what is on its way.
func TestInvalidation(t *testing.T) {
	for _, c := range []struct {
		name   string
		method coap.Code
		uri    string
		answer *coap.Message
		stale  bool
	}{
		{"PUT 2.04", coap.PUT, "/a", message(coap.Changed, ""), true},
		{"DELETE 2.02", coap.DELETE, "/a", message(coap.Deleted, ""), true},
		{"POST 2.04", coap.POST, "/a", message(coap.Changed, ""), true},
		{"PATCH 2.04", coap.PATCH, "/a", message(coap.Changed, ""), true},
		{"POST 2.01 that made it", coap.POST, "/", message(coap.Created, "", opt(coap.LocationPath, "a")), true},
		{"POST 2.01 that made another", coap.POST, "/", message(coap.Created, "", opt(coap.LocationPath, "b")), false},
		{"PUT elsewhere", coap.PUT, "/b", message(coap.Changed, ""), false},
		{"PUT that failed", coap.PUT, "/a", message(coap.Forbidden, ""), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, up := bubble(t, Rule{}, func(m *coap.Message, _ int) *coap.Message {
					if m.Code == coap.GET {
						return message(coap.Content, "x", maxAge(600))
					}
					return c.answer
				})
				l := s.client("a", coaptest.Options{})
				do(t, l, proxied(coap.GET, there+"/a", nil))
				do(t, l, proxied(c.method, there+c.uri, []byte("new")))
				do(t, l, proxied(coap.GET, there+"/a", nil))
				if stale := up.count() == 3; stale != c.stale {
					t.Errorf("stale %v, want %v", stale, c.stale)
				}
				l.Close()
				s.stop()
			})
		})
	}
	t.Run("while a GET is on its way", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, up := bubble(t, Rule{}, func(m *coap.Message, _ int) *coap.Message {
				if m.Code == coap.GET {
					time.Sleep(time.Second)
					return message(coap.Content, "old", maxAge(600))
				}
				return message(coap.Changed, "")
			})
			l, other := s.client("a", coaptest.Options{}), s.client("b", coaptest.Options{})
			var wg sync.WaitGroup
			wg.Go(func() { do(t, l, proxied(coap.GET, there+"/a", nil)) })
			time.Sleep(500 * time.Millisecond)
			do(t, other, proxied(coap.PUT, there+"/a", nil))
			wg.Wait()
			do(t, l, proxied(coap.GET, there+"/a", nil))
			if up.count() != 3 {
				t.Errorf("%d requests: the old state was kept", up.count())
			}
			l.Close()
			other.Close()
			s.stop()
		})
	})
}

// TestShared: who asks at the same time shares one request, but for responses
// that must not be used again.
func TestShared(t *testing.T) {
	for _, age := range []uint32{60, 0} {
		synctest.Test(t, func(t *testing.T) {
			s, up := bubble(t, Rule{}, func(_ *coap.Message, n int) *coap.Message {
				time.Sleep(time.Second)
				return message(coap.Content, fmt.Sprint(n), maxAge(age))
			})
			var wg sync.WaitGroup
			for i := range 10 {
				l := s.client(fmt.Sprint(i), coaptest.Options{})
				wg.Go(func() {
					defer l.Close()
					do(t, l, proxied(coap.GET, there+"/a", nil))
				})
			}
			wg.Wait()
			if want := map[uint32]int{60: 1, 0: 10}[age]; up.count() != want {
				t.Errorf("Max-Age %d: %d requests, want %d", age, up.count(), want)
			}
			s.stop()
		})
	}
}

// TestConditional: conditional requests are the upstream's to judge (RFC 7252,
// Section 5.10.8). What they change is stale, what they do not is not, and a GET with
// a condition has a key of its own.
func TestConditional(t *testing.T) {
	for _, c := range []struct {
		name   string
		then   coap.Code
		opt    coap.Option
		answer *coap.Message
		stale  bool // the plain GET after it asks the upstream
	}{
		{"PUT that met If-Match", coap.PUT, opt(coap.IfMatch, "v1"), message(coap.Changed, ""), true},
		{"PUT that did not", coap.PUT, opt(coap.IfMatch, "v0"), message(coap.PreconditionFailed, ""), false},
		{"PUT with If-None-Match that made it", coap.PUT, opt(coap.IfNoneMatch, ""), message(coap.Created, ""), true},
		{"PUT with If-None-Match that did not", coap.PUT, opt(coap.IfNoneMatch, ""), message(coap.PreconditionFailed, ""), false},
		{"GET that did not meet If-Match", coap.GET, opt(coap.IfMatch, "v0"), message(coap.PreconditionFailed, ""), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, up := bubble(t, Rule{}, func(m *coap.Message, _ int) *coap.Message {
					if m.Options.Has(coap.IfMatch) || m.Options.Has(coap.IfNoneMatch) {
						return c.answer
					}
					return message(coap.Content, "x", maxAge(600))
				})
				l := s.client("a", coaptest.Options{})
				do(t, l, proxied(coap.GET, there+"/a", nil))
				req := proxied(c.then, there+"/a", nil)
				req.Options.Add(c.opt.ID, c.opt.Value)
				if r := do(t, l, req); r.Code != c.answer.Code || up.count() != 2 {
					t.Errorf("%v after %d requests", r.Code, up.count())
				}
				if v, ok := up.newest().Options.Get(c.opt.ID); !ok || string(v) != string(c.opt.Value) {
					t.Errorf("the upstream sees %q, %v", v, ok)
				}
				if r := do(t, l, proxied(coap.GET, there+"/a", nil)); r.Code != coap.Content || (up.count() == 3) != c.stale {
					t.Errorf("%v after %d requests", r.Code, up.count())
				}
				l.Close()
				s.stop()
			})
		})
	}
}

// TestFirstGone: the client that asked first goes; the others, who wait for its
// request, get the response.
func TestFirstGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, up := bubble(t, Rule{}, func(*coap.Message, int) *coap.Message {
			time.Sleep(5 * time.Second)
			return message(coap.Content, "x", maxAge(60))
		})
		var wg sync.WaitGroup
		first, cancel := context.WithCancel(t.Context())
		defer cancel()
		for i := range 3 {
			ctx := t.Context()
			if i == 0 {
				ctx = first
			}
			req := proxied(coap.GET, there+"/a", nil)
			req.Peer = coap.Peer{Link: coap.LinkID(fmt.Sprint(i)), Via: coap.DTLSPSK}
			wg.Go(func() {
				if r, err := s.p.ServeCoAP(ctx, req); i > 0 && (err != nil || r.Code != coap.Content) {
					t.Errorf("%+v: %v", r, err)
				}
			})
			synctest.Wait()
			cancel()
		}
		wg.Wait()
		if up.count() != 1 {
			t.Errorf("%d requests", up.count())
		}
		s.stop()
	})
}

// TestAuthority: with a credential of the gateway's own what one peer got is for
// that peer, unless the rule says that it is public (docs/protocol.md, Section 8).
func TestAuthority(t *testing.T) {
	for _, public := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			rule := Rule{Host: "192.0.2.9/32", Scheme: CoAPS, Port: 5684, Public: public, Credential: &Credential{Identity: []byte("edge")}}
			s, up := bubble(t, rule, func(m *coap.Message, _ int) *coap.Message {
				r := message(coap.Content, "x", maxAge(600))
				if m.Options.Has(coap.ObserveOption) {
					r.Options.Add(coap.ObserveOption, []byte{1})
				}
				return r
			})
			a, b := s.client("a", coaptest.Options{}), s.client("b", coaptest.Options{})
			get := proxied(coap.GET, "coaps://192.0.2.9/a", nil)
			do(t, a, get)
			do(t, a, get)
			do(t, b, get)
			if want := map[bool]int{false: 2, true: 1}[public]; up.count() != want {
				t.Errorf("public %v: %d requests, want %d", public, up.count(), want)
			}
			for _, l := range []*coaptest.Link{a, b} {
				if _, err := l.Observe(t.Context(), get, func(*coap.Response) {}); err != nil {
					t.Error(err)
				}
			}
			if got, want := up.notify(message(coap.Content, "y", opt(coap.ObserveOption, "\x02"))), map[bool]int{false: 2, true: 1}[public]; got != want {
				t.Errorf("public %v: %d observations, want %d", public, got, want)
			}
			a.Close()
			b.Close()
			s.stop()
		})
	}
}

// TestCredentialsApart: of two rules for one target that show one identity with different
// keys, or certificates with different ones, neither is served what the other got, nor
// shares its observation.
func TestCredentialsApart(t *testing.T) {
	key := func(k string) func() []byte { return func() []byte { return []byte(k) } }
	cert := func(k string) func() ([]byte, []byte) {
		return func() ([]byte, []byte) { return []byte("cert"), []byte(k) }
	}
	for name, two := range map[string][2]Credential{
		"keys":         {{Identity: []byte("edge"), Key: key("one")}, {Identity: []byte("edge"), Key: key("two")}},
		"certificates": {{Cert: cert("one")}, {Cert: cert("two")}},
		"the same":     {{Identity: []byte("edge"), Key: key("one")}, {Identity: []byte("edge"), Key: key("one")}},
	} {
		synctest.Test(t, func(t *testing.T) {
			rule := Rule{Host: "192.0.2.9/32", Scheme: CoAPS, Port: 5684, Public: true, Peers: []string{"psk:a"}, Credential: &two[0]}
			s, up := bubble(t, rule, func(m *coap.Message, _ int) *coap.Message {
				r := message(coap.Content, "x", maxAge(600))
				if m.Options.Has(coap.ObserveOption) {
					r.Options.Add(coap.ObserveOption, []byte{1})
				}
				return r
			})
			other := rule.withDefaults()
			other.Peers, other.Credential = []string{"psk:b"}, &two[1]
			other.owner = other.account(s.p.secret[:])
			s.p.rules = append(s.p.rules, &other)
			want := 2
			if name == "the same" {
				want = 1
			}
			get := proxied(coap.GET, "coaps://192.0.2.9/a", nil)
			a, b := s.client("a", coaptest.Options{}), s.client("b", coaptest.Options{})
			do(t, a, get)
			do(t, b, get)
			if up.count() != want {
				t.Errorf("%s: %d requests, want %d", name, up.count(), want)
			}
			for _, l := range []*coaptest.Link{a, b} {
				if _, err := l.Observe(t.Context(), get, func(*coap.Response) {}); err != nil {
					t.Error(err)
				}
			}
			if got := s.relays(); got != want {
				t.Errorf("%s: %d observations, want %d", name, got, want)
			}
			a.Close()
			b.Close()
			s.stop()
		})
	}
}

// TestCacheMemory: 10,000 keys stay within the memory that was given, and the
// newest are there.
func TestCacheMemory(t *testing.T) {
	c := newCache(64 << 10)
	evicted := 0
	c.count = func(what string) {
		if what == "evicted" {
			evicted++
		}
	}
	now := time.Now()
	key := func(i int) cacheKey { return keyOf("", coap.GET, coap.Options{opt(coap.UriPath, fmt.Sprint(i))}, nil) }
	for i := range 10_000 {
		r := text(strings.Repeat("x", i%1000), 60)
		c.put(key(i), resourceOf("", coap.Options{opt(coap.UriPath, fmt.Sprint(i))}), r, now)
		if c.bytes() > 64<<10 {
			t.Fatalf("%d bytes after %d", c.bytes(), i)
		}
	}
	if _, fresh, _ := c.get(key(9999), now); !fresh {
		t.Error("the newest is gone")
	}
	if _, _, found := c.get(key(0), now); found || evicted < 9000 {
		t.Errorf("the oldest is there; %d evicted", evicted)
	}
	if len(c.m) != c.lru.Len() || len(c.of) != len(c.m) {
		t.Errorf("%d keys, %d entries, %d resources", len(c.m), c.lru.Len(), len(c.of))
	}
	c.put(key(1), resourceKey{}, text(strings.Repeat("x", 32<<10), 60), now)
	if _, _, found := c.get(key(1), now); found {
		t.Error("one response takes half of the cache")
	}
}
