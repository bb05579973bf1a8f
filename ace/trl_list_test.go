package ace

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/ace/cwt"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
	"github.com/seed4911071e/groupgate/store/storetest"
)

// listPeers are a Resource Server and an administrator besides the clients.
func listPeers(c *Config) {
	c.PSK = append(c.PSK, PSKPeer{Identity: []byte("rs2"), Key: cose.NewSecret(popKey), MayIntrospect: true},
		PSKPeer{Identity: []byte("rs9"), Key: cose.NewSecret(popKey), MayIntrospect: true},
		PSKPeer{Identity: []byte("admin"), Key: cose.NewSecret(popKey), MayList: true, MayToken: true})
}

// give issues a token to a client.
func (b *bench) give(client string, lifetime time.Duration) []byte {
	b.t.Helper()
	r := IssueRequest{Audience: "rs2", Scope: groupcomm.Scope{{Group: "g1", Roles: 6}}, Lifetime: lifetime}
	if client != "" {
		r.Client = []byte(client)
	}
	i, err := b.Issue(b.t.Context(), r)
	if err != nil {
		b.t.Fatal(err)
	}
	return i.Token
}

// listed asks for the list in diagnostic notation: hashes by the names in known.
func (b *bench) listed(who string, known map[string]string, query ...string) string {
	b.t.Helper()
	req := &coap.Request{Code: coap.GET, Peer: clientPeer(who)}
	for _, q := range query {
		req.Options.AddString(coap.UriQuery, q)
	}
	return showTRL(b.t, b.RevokedTokens(), req, known)
}

func showTRL(t testing.TB, h coap.Handler, req *coap.Request, known map[string]string) string {
	t.Helper()
	r, err := h.ServeCoAP(t.Context(), req)
	if err != nil {
		r = coap.ErrorResponse(err)
		if f, _ := r.Options.ContentFormat(); f != coap.ProblemDetails {
			return r.Code.String()
		}
		m, err := cose.DecodeMap(r.Payload)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%v %x", r.Code, []byte(m[problemTRL]))
	}
	return readTRL(t, r, known)
}

func readTRL(t testing.TB, r *coap.Response, known map[string]string) string {
	t.Helper()
	if f, _ := r.Options.ContentFormat(); r.Code != coap.Content || f != coap.ACETRL {
		t.Fatalf("%v in format %d", r.Code, f)
	}
	m, err := cose.DecodeMap(r.Payload)
	if err != nil {
		t.Fatal(err)
	}
	names := func(raw cose.Item) string {
		set, err := cose.DecodeArray(raw)
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, item := range set {
			h, err := cose.AsBytes(item)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, known[string(h)])
		}
		slices.Sort(all)
		return strings.Join(all, "")
	}
	cursor := fmt.Sprintf("%x", []byte(m[trlCursor]))
	if m.Has(trlFullSet) {
		return "full " + names(m[trlFullSet]) + " cursor " + cursor
	}
	entries, err := cose.DecodeArray(m[trlDiffSet])
	if err != nil {
		t.Fatal(err)
	}
	out := "diff"
	for _, e := range entries {
		pair, err := cose.DecodeArray(e)
		if err != nil || len(pair) != 2 {
			t.Fatalf("diff entry %x: %v", []byte(e), err)
		}
		out += " -" + names(pair[0]) + "+" + names(pair[1])
	}
	return fmt.Sprintf("%s cursor %s more %x", out, cursor, []byte(m[trlMore]))
}

// RFC 9770, Sections 5 to 9: everybody sees what is its own, what was revoked, has
// not expired, and how that came about; also after a crash.
func TestListOfRevoked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, listPeers)
		known := map[string]string{}
		tokens := map[string][]byte{}
		give := func(name, client string, lifetime time.Duration) {
			tokens[name] = b.give(client, lifetime)
			known[string(cwt.Hash(tokens[name]))] = name
		}
		give("a", "clientF", time.Hour)
		give("b", "clientF", 2*time.Hour)
		give("c", "clientG", 2*time.Hour)
		give("o", "", 2*time.Hour)
		want := func(who, want string, query ...string) {
			t.Helper()
			if got := b.listed(who, known, query...); got != want {
				t.Errorf("%s %v:\n got %s\nwant %s", who, query, got, want)
			}
		}
		for _, who := range []string{"clientF", "rs2", "admin"} {
			want(who, "full  cursor f6")
			want(who, "diff cursor f6 more f4", "diff=3")
			want(who, "diff cursor f6 more f4", "diff=3", "cursor=7")
		}
		want("proxied", "4.03")
		want("nobody", "4.03")
		revoke := func(names ...string) {
			t.Helper()
			var list [][]byte
			for _, n := range names {
				list = append(list, tokens[n])
			}
			if _, err := b.RevokeTokens(t.Context(), list...); err != nil {
				t.Fatal(err)
			}
		}
		revoke("a", "c")
		revoke("a") // is on the list already
		revoke("o")
		want("clientF", "full a cursor 00")
		want("clientG", "full c cursor 00")
		want("rs2", "full aco cursor 01")
		want("rs9", "full  cursor f6")
		want("admin", "full aco cursor 01")
		want("rs2", "diff -+o -+ac cursor 01 more f4", "diff=0")
		want("rs2", "diff -+o cursor 01 more f4", "diff=1", "unknown=1")
		want("rs2", "diff -+o cursor 01 more f4", "diff=9", "cursor=0")
		want("rs2", "diff cursor 01 more f4", "diff=9", "cursor=1")
		for query, entry := range map[string]string{
			"diff=x": "a10000", "diff=-1": "a10000", "diff=": "a10000", "diff=1&diff=2": "a10000", "diff=x&cursor=0": "a10000",
			"cursor=0": "a10001", "diff=1&cursor=-53": "a200000101", "diff=1&cursor=9223372036854775808": "a200000101", "diff=1&cursor=2": "a10002",
		} {
			want("rs2", "4.00 "+entry, strings.Split(query, "&")...)
		}
		want("rs9", "4.00 a2000001f6", "diff=1", "cursor=x")

		b = b.reopen()
		time.Sleep(time.Hour)
		want("clientF", "full  cursor 00") // at once, whenever it is worked off
		if _, err := b.purge(t.Context()); err != nil {
			t.Fatal(err)
		}
		want("clientF", "diff -a+ -+a cursor 01 more f4", "diff=0")
		want("rs2", "full co cursor 02")
		want("rs2", "diff -a+ -+o cursor 02 more f4", "diff=0", "cursor=0")

		// More than one answer holds, then more than is kept.
		for i := range trlChanges - 3 {
			give("x", "clientG", time.Hour)
			if revoke("x"); i == 7 {
				want("rs2", "diff -+x -+x -+x -+x -+x -a+ -+o -+ac cursor 07 more f5", "diff=0")
				want("rs2", "diff -+x -+x -+x cursor 0a more f4", "diff=0", "cursor=7")
			}
		}
		want("rs2", "diff -+x -+x cursor 0f more f4", "diff=2", "cursor=0")
		give("y", "clientG", time.Hour)
		revoke("y")
		give("z", "clientG", time.Hour)
		revoke("z")
		want("rs2", "diff -+z -+y cursor 11 more f4", "diff=2")
		want("rs2", "diff cursor f6 more f5", "diff=2", "cursor=0") // the change after it is gone
		want("rs2", "diff -+x -+x -+x -+x -+x -+x -+x -a+ cursor 09 more f5", "diff=0", "cursor=1")
	})
}

// What the operator takes from an enrolled node is listed, too.
func TestListOfDisabledNode(t *testing.T) {
	b := newBench(t, listPeers)
	n := nodeNamed("meter")
	b.enroll(EnrollOptions{Audience: "rs2", Lifetime: time.Hour}, n)
	token := b.give("meter", time.Hour)
	known := map[string]string{string(cwt.Hash(token)): "m"}
	if got := b.listed("rs2", known); got != "full  cursor f6" {
		t.Error(got)
	}
	if _, err := b.DisableNodes(t.Context(), []string{"meter"}); err != nil {
		t.Fatal(err)
	}
	if got := b.listed("rs2", known); got != "full m cursor 00" {
		t.Error(got)
	}
}

// A client cannot make the server remember tokens without end.
func TestGrantedIsBounded(t *testing.T) {
	b := newBench(t, listPeers)
	var last []byte
	for i := range grantedTokens + 5 {
		last = b.give("clientF", time.Hour+time.Duration(i)*time.Second)
	}
	if _, err := b.RevokeTokens(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	if got := b.listed("clientF", map[string]string{string(cwt.Hash(last)): "n"}); got != "full n cursor 00" {
		t.Error(got)
	}
	var n int
	if err := b.store.View(t.Context(), func(tx *store.Tx) error {
		return tx.QueryRow(`SELECT COUNT(*) FROM ace_granted`).Scan(&n)
	}); err != nil || n != grantedTokens {
		t.Errorf("%d tokens are remembered, %v", n, err)
	}
}

// publications is a hub that keeps what it is told.
type publications struct {
	mu  sync.Mutex
	all map[string]coap.Notification
}

func (p *publications) Publish(topic string, n coap.Notification) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all[topic] = n
}
func (*publications) Drop(string, coap.LinkID, *coap.Response) {}
func (*publications) Do(context.Context, coap.LinkID, *coap.Request) (*coap.Response, error) {
	return nil, coap.ErrGone
}

// Observers are told in the form in which they asked, as long as they may know.
func TestListIsPublished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig(testSigner(t))
		listPeers(&cfg)
		hub := &publications{all: map[string]coap.Notification{}}
		s := New(cfg, Deps{Store: storetest.Open(t, Migrations()), Groups: testGroups(), Hub: hub})
		if err := s.Setup(t.Context()); err != nil {
			t.Fatal(err)
		}
		b := &bench{Server: s, t: t}
		ctx, cancel := context.WithCancel(t.Context())
		over := make(chan error, 1)
		go func() { over <- s.Run(ctx) }()
		token := b.give("clientF", time.Minute)
		known := map[string]string{string(cwt.Hash(token)): "a"}
		topics := map[string]string{}
		for _, query := range []string{"", "diff=1", "diff=0"} {
			req := &coap.Request{Code: coap.GET, Peer: clientPeer("rs2")}
			if query != "" {
				req.Options.AddString(coap.UriQuery, query)
			}
			r, err := s.RevokedTokens().ServeCoAP(ctx, req)
			if err != nil || r.Observe == nil || r.Observe.Version != 0 {
				t.Fatalf("%q: %v", query, err)
			}
			topics[query] = r.Observe.Topic
		}
		req := &coap.Request{Code: coap.GET, Peer: clientPeer("rs2")}
		req.Options.AddString(coap.UriQuery, "diff=1")
		req.Options.AddString(coap.UriQuery, "cursor=0")
		if r, err := s.RevokedTokens().ServeCoAP(ctx, req); err != nil || r.Observe != nil {
			t.Errorf("an observation with a cursor: %v", err)
		}
		wants := func(version uint64, want map[string]string) {
			t.Helper()
			synctest.Wait()
			hub.mu.Lock()
			defer hub.mu.Unlock()
			for query, body := range want {
				n := hub.all[topics[query]]
				if n.Version != version || n.Body == nil || readTRL(t, n.Body, known) != body {
					t.Fatalf("%q: version %d, want %d with %s", query, n.Version, version, body)
				}
				if _, ok := n.Allow(clientPeer("rs2")); !ok {
					t.Error("the Resource Server is not told")
				}
				if r, ok := n.Allow(clientPeer("clientF")); ok || r.Code != coap.Forbidden {
					t.Error("somebody else is told")
				}
			}
		}
		if _, err := s.RevokeTokens(ctx, token); err != nil {
			t.Fatal(err)
		}
		wants(1, map[string]string{"": "full a cursor 00", "diff=1": "diff -+a cursor 00 more f4", "diff=0": "diff -+a cursor 00 more f4"})
		time.Sleep(2 * time.Minute)
		wants(2, map[string]string{"": "full  cursor 01", "diff=1": "diff -a+ cursor 01 more f4", "diff=0": "diff -a+ -+a cursor 01 more f4"})
		cancel()
		if err := <-over; err != nil {
			t.Error(err)
		}
	})
}
