package delegate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/store/storetest"
)

// nowhere is a gateway with neither Authorization Server nor Group Manager.
type nowhere struct{}

func (nowhere) AS(string) node.Transport { return lost{} }
func (nowhere) GM(context.Context, *node.Access) (node.Transport, *groupcomm.TokenTransferResponse, error) {
	return nil, nil, node.ErrLost
}
func (nowhere) Do(context.Context, coap.LinkID, *coap.Request) (*coap.Response, error) {
	return nil, coap.ErrGone
}

var multicast = netip.MustParseAddrPort("239.1.2.3:5683")

func newRoom(t *testing.T, nodes ...Node) *Room {
	t.Helper()
	r, err := New(Config{
		Nodes:  nodes,
		Groups: map[string]Group{"g": {Name: "g", Multicast: multicast}, "far": Group{Name: "far"}.At("coaps://gm.example")},
	}, Deps{Store: storetest.Open(t, Migrations()), Hub: nowhere{}, Home: nowhere{}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func legacyOf(name string) Node {
	return Node{
		Name: name, Subject: coap.Subject{Kind: coap.SubjectPSK, ID: name}, RPS: 100, Awake: time.Second,
		Groups: []Membership{{Group: "g", Roles: groupcomm.Requester | groupcomm.Responder, SendPath: []string{"to", "g"}}},
	}
}

// request makes one of a legacy node; options in pairs.
func request(path string, more ...coap.Option) *coap.Request {
	req := &coap.Request{Code: coap.GET, Peer: coap.Peer{Via: coap.DTLSPSK, Subject: coap.Subject{Kind: coap.SubjectPSK, ID: "a"}}}
	if path != "" {
		req.Options.SetPath(coap.PathOf(path)...)
	}
	for _, o := range more {
		req.Options.Add(o.ID, o.Value)
	}
	return req
}

func text(id coap.OptionID, s string) coap.Option { return coap.Option{ID: id, Value: []byte(s)} }

// TestTargets: a legacy node reaches its groups, members that were heard there, and
// nothing else; whoever is no legacy node reaches nothing.
func TestTargets(t *testing.T) {
	r := newRoom(t, legacyOf("a"))
	member := netip.MustParseAddrPort("192.0.2.7:5700")
	r.nodes[0].memberships[0].seen.note(member, []byte{7})
	port := coap.Option{ID: coap.UriPort, Value: []byte{0x16, 0x44}} // 5700
	for _, c := range []struct {
		name string
		req  *coap.Request
		dst  string // "": not for this room
		path string
	}{
		{"send path", request("/to/g/t"), multicast.String(), "t"},
		{"send path alone", request("/to/g"), multicast.String(), ""},
		{"half of it", request("/to"), "", ""},
		{"other path", request("/to/h/t"), "", ""},
		{"proxied to the group", request("", text(coap.ProxyUri, "coap://239.1.2.3/t/u")), multicast.String(), "t/u"},
		{"by scheme", request("/t", text(coap.ProxyScheme, "coap"), text(coap.UriHost, "239.1.2.3")), multicast.String(), "t"},
		{"to a member", request("/t", text(coap.ProxyScheme, "coap"), text(coap.UriHost, "192.0.2.7"), port), member.String(), "t"},
		{"to a member, by URI", request("", text(coap.ProxyUri, "coap://192.0.2.7:5700/t")), member.String(), "t"},
		{"to the same host, other port", request("", text(coap.ProxyUri, "coap://192.0.2.7/t")), "", ""},
		{"to a stranger", request("", text(coap.ProxyUri, "coap://192.0.2.8:5700/t")), "", ""},
		{"to this machine", request("", text(coap.ProxyUri, "coap://127.0.0.1:8080/v1")), "", ""},
		{"by name", request("", text(coap.ProxyUri, "coap://example.com/t")), "", ""},
		{"with DTLS", request("", text(coap.ProxyUri, "coaps://239.1.2.3/t")), "", ""},
		{"with user", request("", text(coap.ProxyUri, "coap://u@239.1.2.3/t")), "", ""},
		{"both forms", request("/x", text(coap.ProxyUri, "coap://239.1.2.3/t"), text(coap.ProxyScheme, "coaps"), text(coap.UriHost, "192.0.2.8")), multicast.String(), "t"},
		{"with a query", request("", text(coap.ProxyUri, "coap://239.1.2.3/t?x=1")), multicast.String(), "t"},
		{"percent-encoded", request("", text(coap.ProxyUri, "coap://239.1.2.3/%74")), multicast.String(), "t"},
		{"in capitals", request("", text(coap.ProxyUri, "COAP://239.1.2.3:5683/t")), multicast.String(), "t"},
		{"by scheme in capitals", request("/t", text(coap.ProxyScheme, "CoAP"), text(coap.UriHost, "239.1.2.3")), multicast.String(), "t"},
		{"as IPv6", request("", text(coap.ProxyUri, "coap://[::ffff:239.1.2.3]/t")), multicast.String(), "t"},
		{"with a fragment", request("", text(coap.ProxyUri, "coap://239.1.2.3/t#f")), "", ""},
		{"with dots", request("", text(coap.ProxyUri, "coap://239.1.2.3/t/../u")), "", ""},
		{"port 0", request("", text(coap.ProxyUri, "coap://239.1.2.3:0/t")), "", ""},
	} {
		m, dst, path := r.nodes[0].target(c.req)
		switch {
		case m == nil && c.dst == "":
		case m == nil || dst.String() != c.dst || strings.Join(path, "/") != c.path:
			t.Errorf("%s: %v %q", c.name, dst, path)
		}
		if got := r.Takes(c.req); got != (c.dst != "") {
			t.Errorf("%s: taken %v", c.name, got)
		}
		c.req.Peer.Subject.ID = "b"
		if r.Takes(c.req) {
			t.Errorf("%s: taken of another peer", c.name)
		}
		c.req.Peer = coap.Peer{Via: coap.Plain, Subject: coap.Subject{Kind: coap.SubjectPSK, ID: "a"}}
		if r.Takes(c.req) {
			t.Errorf("%s: taken in clear", c.name)
		}
	}
}

// TestUnfolded: a query of a Proxy-Uri reaches the group, and what Proxy-Uri goes over
// does not (RFC 7252, Section 5.10.2).
func TestUnfolded(t *testing.T) {
	req := unfolded(request("/x", text(coap.ProxyUri, "coap://239.1.2.3/t?a=%26&b"), text(coap.UriQuery, "c"), text(coap.Accept, "\x32")))
	if got := strings.Join(req.Options.Queries(), " "); got != "a=& b" || !req.Options.Has(coap.Accept) || strings.Join(req.Path(), "/") != "t" {
		t.Errorf("%v", req.Options)
	}
}

// TestNotJoined: what a node asks before there are keys is answered with when to come
// again, and bodies that are no single message are refused.
func TestNotJoined(t *testing.T) {
	r := newRoom(t, legacyOf("a"))
	code := func(req *coap.Request) coap.Code {
		resp, err := r.ServeCoAP(t.Context(), req)
		if err != nil {
			return coap.ErrorResponse(err).Code
		}
		return resp.Code
	}
	if got := code(request("/to/g/t")); got != coap.ServiceUnavailable {
		t.Errorf("not joined: %v", got)
	}
	large := request("/to/g/t")
	large.Payload = make([]byte, maxGroupBody+1)
	if got := code(large); got != coap.RequestEntityTooLarge {
		t.Errorf("a large body: %v", got)
	}
	if got := code(request("/gw/groups")); got != coap.Content {
		t.Errorf("/gw/groups: %v", got)
	}
	once := request("/gw/groups") // RFC 7252, Section 5.10.8
	once.Options.Add(coap.IfNoneMatch, nil)
	if got := code(once); got != coap.PreconditionFailed {
		t.Errorf("/gw/groups, If-None-Match: %v", got)
	}
	put := request("/gw/groups")
	put.Code = coap.PUT
	if got := code(put); got != coap.MethodNotAllowed {
		t.Errorf("PUT /gw/groups: %v", got)
	}
	stranger := request("/gw/groups")
	stranger.Peer.Subject.ID = "b"
	if got := code(stranger); got != coap.Unauthorized {
		t.Errorf("a stranger: %v", got)
	}
}

// TestKeeper: what is kept comes back; sequence numbers only grow, and a name that was
// opened is never new again; the first credential of a Group Manager stays until an
// operator says otherwise.
func TestKeeper(t *testing.T) {
	r := newRoom(t, legacyOf("a"))
	ctx := t.Context()
	a := &node.Access{Token: []byte("token"), KID: []byte("kid"), Key: cose.NewSecret([]byte("0123456789abcdef")), ExpiresAt: time.Unix(2e9, 0)}
	in := row{node: "a", group: "g", roles: groupcomm.Requester, access: a, issued: time.Unix(1.9e9, 0), saved: []byte("saved"), evicted: time.Unix(1.95e9, 0)}
	if err := r.keep.write(ctx, in); err != nil {
		t.Fatal(err)
	}
	rows, err := r.keep.load(ctx)
	if err != nil || len(rows) != 1 {
		t.Fatalf("%v, %v", rows, err)
	}
	got := rows[0]
	if !got.access.Key.Equal(a.Key) || string(got.access.Token) != "token" || !got.access.ExpiresAt.Equal(a.ExpiresAt) ||
		!got.issued.Equal(in.issued) || string(got.saved) != "saved" || !got.evicted.Equal(in.evicted) || got.roles != in.roles {
		t.Errorf("%+v", got)
	}
	if err := r.keep.remove(ctx, in); err != nil {
		t.Fatal(err)
	}
	if rows, err = r.keep.load(ctx); err != nil || len(rows) != 0 {
		t.Errorf("%v, %v", rows, err)
	}

	s := sequences{r.keep, "a", "g"}
	for i, want := range []uint64{0, 1, 256, 512} {
		upTo, reserve, err := s.Open("name")
		if err != nil || upTo != want {
			t.Fatalf("opened at %d, %v, want %d", upTo, err, want)
		}
		if i == 0 {
			continue // a crash before anything was reserved
		}
		if err := reserve.Reserve(ctx, uint64(i)*256); err != nil {
			t.Fatal(err)
		}
		if err := reserve.Reserve(ctx, uint64(i)*256); err != nil {
			t.Errorf("once more: %v", err) // the outcome of the first may be in doubt
		}
		if err := reserve.Reserve(ctx, 2); err == nil {
			t.Error("fewer are reserved than were")
		}
	}

	if err := r.keep.pin(ctx, "gm", "g", []byte("first")); err != nil {
		t.Fatal(err)
	}
	if err := r.keep.pin(ctx, "gm", "g", []byte("second")); !errors.Is(err, node.ErrProof) {
		t.Errorf("another credential: %v", err)
	}
	if err := r.keep.unpin(ctx, "gm", "g"); err != nil {
		t.Fatal(err)
	}
	if err := r.keep.pin(ctx, "gm", "g", []byte("second")); err != nil {
		t.Errorf("after the operator's word: %v", err)
	}
}

// TestRecover: after a rollback of the database nothing of a membership is used again.
func TestRecover(t *testing.T) {
	r := newRoom(t, legacyOf("a"))
	ctx := t.Context()
	if err := r.keep.write(ctx, row{node: "a", group: "g", roles: groupcomm.Requester | groupcomm.Responder, saved: []byte("saved")}); err != nil {
		t.Fatal(err)
	}
	if err := r.Setup(ctx); err != nil {
		t.Fatal(err)
	}
	if err := r.Recover(ctx); err != nil {
		t.Fatal(err)
	}
	rows, err := r.keep.load(ctx)
	if err != nil || len(rows) != 1 || rows[0].saved != nil {
		t.Errorf("%+v, %v", rows, err)
	}
}

// TestFailing: the log says of what fails whether the node is in the group meanwhile; and
// how soon a token is asked for again, when its server is away for long.
func TestFailing(t *testing.T) {
	r := newRoom(t, legacyOf("a"))
	for _, inside := range []bool{false, true} {
		m := newMembership(r, r.nodes[0], Group{Name: "g"}, Membership{})
		var log bytes.Buffer
		m.log = slog.New(slog.NewTextHandler(&log, nil))
		if inside {
			m.live = &live{}
		}
		m.note(errors.New("timed out"))
		if got := log.String(); strings.Contains(got, "in the group still") != inside || strings.Contains(got, "not in the group") == inside {
			t.Errorf("inside %v: %s", inside, got)
		}
	}
	for left, want := range map[time.Duration]time.Duration{
		24 * time.Hour: renewAgain, 2 * time.Minute: 30 * time.Second, time.Second: time.Second, 0: renewAgain, -time.Hour: renewAgain,
	} {
		if got := pauseBefore(left); got != want {
			t.Errorf("a token that ends in %v: again in %v, want %v", left, got, want)
		}
	}
}

// TestReading: the newest message of a sensor is what members read; of one that is too
// large the log warns, once, and of a topic of nobody nothing comes.
func TestReading(t *testing.T) {
	r := newRoom(t, Node{Name: "s", Topic: "plant/s", RPS: 100, Groups: []Membership{{Group: "g", Roles: groupcomm.Responder}}})
	n := r.byTopic["plant/s"]
	var log bytes.Buffer
	n.log = slog.New(slog.NewTextHandler(&log, nil))
	read := func(want string) {
		t.Helper()
		got, err := n.lastReading()
		if err != nil {
			got = coap.ErrorResponse(err)
		}
		if s := fmt.Sprintf("%v %s", got.Code, got.Payload); s != want {
			t.Errorf("%.40q, want %.40q", s, want)
		}
	}
	read("5.03 ")
	r.Reading("plant/s", []byte("21.5"))
	r.Reading("plant/x", []byte("bad"))
	read("2.05 21.5")
	for range 3 {
		r.Reading("plant/s", make([]byte, maxReading+1))
	}
	read("2.05 21.5")
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "bytes=4097") {
		t.Errorf("%s", got)
	}
	r.Reading("plant/s", bytes.Repeat([]byte("x"), maxReading))
	read("2.05 " + strings.Repeat("x", maxReading))
}

// asking is a gateway whose Group Manager is away; it notes who is asked.
type asking struct {
	nowhere
	gm, as chan struct{}
}

func (a asking) AS(client string) node.Transport {
	a.as <- struct{}{}
	return a.nowhere.AS(client)
}

func (a asking) GM(ctx context.Context, x *node.Access) (node.Transport, *groupcomm.TokenTransferResponse, error) {
	a.gm <- struct{}{}
	return a.nowhere.GM(ctx, x)
}

// TestOtherRoles: a node whose roles are others than before leaves first, for both
// memberships have one place on disk; of the new one nothing is begun meanwhile.
func TestOtherRoles(t *testing.T) {
	t.Parallel()
	r := newRoom(t, legacyOf("a"))
	home := asking{gm: make(chan struct{}, 9), as: make(chan struct{}, 9)}
	r.home = home
	before := row{node: "a", group: "g", roles: groupcomm.Requester, saved: []byte("saved"), access: &node.Access{Token: []byte("token"), KID: []byte("kid"), Key: cose.NewSecret([]byte("key"))}}
	if err := r.keep.write(t.Context(), before); err != nil {
		t.Fatal(err)
	}
	if err := r.Setup(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- r.Run(ctx) }()
	for range 2 { // tries to leave
		<-home.gm
	}
	if len(home.as) > 0 {
		t.Error("a token for the new membership was asked for before the one before was over")
	}
	cancel()
	if err := <-over; err != nil {
		t.Error(err)
	}
	rows, err := r.keep.load(t.Context())
	if err != nil || len(rows) != 1 || string(rows[0].saved) != "saved" || rows[0].roles != before.roles {
		t.Errorf("%+v, %v", rows, err)
	}
}

// TestHeld: what is held for a node is there for the next life of its membership alone,
// with whether the node may have been asked, until it is over, the membership is, or the
// database was rolled back.
func TestHeld(t *testing.T) {
	r := newRoom(t, legacyOf("a"), legacyOf("b"))
	ctx := t.Context()
	of := func(name string) (out []string) {
		t.Helper()
		all, err := r.membership(name, "g").leftBehind(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range all {
			m, err := coap.DecodeMessage(l.message)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, fmt.Sprintf("%s %s %v", l.from, m.Token, l.asked))
			if age := time.Since(l.at); age < 0 || age > time.Minute {
				t.Errorf("held for %v", age)
			}
		}
		return out
	}
	want := func(what string, a, b []string) {
		t.Helper()
		if gotA, gotB := of("a"), of("b"); !slices.Equal(gotA, a) || !slices.Equal(gotB, b) {
			t.Errorf("%s: %q and %q, want %q and %q", what, gotA, gotB, a, b)
		}
	}
	hold := func(name, token string) *held {
		t.Helper()
		h, err := r.membership(name, "g").hold(ctx, &node.Incoming{
			Protected: &coap.Message{Code: coap.POST, Token: []byte(token)}, From: netip.MustParseAddrPort("[2001:db8::1]:5683"),
		})
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	first := hold("a", "1")
	second := hold("a", "2")
	hold("b", "1")
	if err := second.asking(ctx); err != nil {
		t.Fatal(err)
	}
	other := []string{"[2001:db8::1]:5683 1 false"}
	want("held", []string{"[2001:db8::1]:5683 1 false", "[2001:db8::1]:5683 2 true"}, other)
	if err := first.over(); err != nil {
		t.Fatal(err)
	}
	want("one over", []string{"[2001:db8::1]:5683 2 true"}, other)
	if err := r.keep.remove(ctx, row{node: "a", group: "g"}); err != nil {
		t.Fatal(err)
	}
	want("left", nil, other)
	if err := r.Recover(ctx); err != nil {
		t.Fatal(err)
	}
	want("rolled back", nil, nil)
}

// FuzzProxyTarget: whatever a node names, only an IP address and a port come of it.
func FuzzProxyTarget(f *testing.F) {
	f.Add("coap://239.1.2.3:5683/t", "coap", "[ff02::1]")
	f.Add("", "coap", "192.0.2.1")
	f.Fuzz(func(t *testing.T, uri, scheme, host string) {
		req := &coap.Request{}
		if uri != "" {
			req.Options.Add(coap.ProxyUri, []byte(uri))
		}
		req.Options.Add(coap.ProxyScheme, []byte(scheme))
		req.Options.Add(coap.UriHost, []byte(host))
		if at, _, ok := proxyTarget(req); ok && (!at.IsValid() || at.Port() == 0) {
			t.Errorf("%q %q %q: %v", uri, scheme, host, at)
		}
	})
}

// FuzzAccess: what lies in the store does no harm.
func FuzzAccess(f *testing.F) {
	f.Add(encodeAccess(&node.Access{Token: []byte("t"), KID: []byte("k"), Key: cose.NewSecret([]byte("key"))}, time.Unix(1, 0)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, _, err := decodeAccess(b); err == nil && (len(a.Token) == 0 || a.Material == nil && a.Key.IsZero()) {
			t.Errorf("%x is half a token", b)
		}
	})
}
