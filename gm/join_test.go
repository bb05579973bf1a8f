package gm

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/gm/gmtest"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

func TestJoin(t *testing.T) {
	for alg, crv := range map[int64]int64{
		cose.AlgEdDSA: cose.CrvX25519, cose.AlgES256: cose.CrvP256, cose.AlgES384: cose.CrvP384, cose.AlgES512: cose.CrvP521,
	} {
		t.Run(groupcomm.AlgName(alg), func(t *testing.T) {
			c := groupConfig("g1")
			c.SignAlg, c.ECDHCrv = alg, crv
			f := newFixture(t, c)
			j := f.joinerWith("n1", alg, groupcomm.Scope{{Group: "g1", Roles: both}}, time.Time{})
			msg, err := j.JoinMessage("g1", both)
			if err != nil {
				t.Fatal(err)
			}
			msg.GetCreds = &groupcomm.GetCreds{All: true}
			r := j.Send(t.Context(), f.m, "g1", msg)
			if r.Code != coap.Created {
				t.Fatalf("code %v %x", r.Code, r.Payload)
			}
			d, err := j.Accept(r)
			if err != nil {
				t.Fatal(err)
			}
			if age, ok := r.Options.Uint(coap.MaxAge); !ok || age != 0 {
				t.Error("a response with keys lacks Max-Age 0")
			}
			if f, _ := r.Options.ContentFormat(); f != coap.ACEGroupcomm {
				t.Errorf("content format %d", f)
			}
			if len(j.Path) != 4 || j.Path[0] != "ace-group" || j.Path[1] != "g1" || j.Path[2] != "nodes" || len(j.Path[3]) != 16 {
				t.Errorf("Location-Path %q", j.Path)
			}
			want := c.KeyParams()
			want.MasterSecret, want.Salt = d.Key.MasterSecret, d.Key.Salt
			want.ContextID = groupcomm.Gid{0xb1, 0, 0, 0, 0}
			want.SenderID = groupcomm.SenderID{}
			if got := d.Key; !bytes.Equal(got.Encode(), want.Encode()) {
				t.Errorf("key %x, want %x", got.Encode(), want.Encode())
			}
			if len(d.Key.MasterSecret) != 16 || len(d.Key.Salt) != 8 {
				t.Error("lengths of secret and salt")
			}
			if d.Num != 0 || d.Exp == 0 || d.Exi <= 0 || d.Policies == nil || d.Policies.KeyCheck != 3600 || d.RekeyingScheme != nil {
				t.Error("num, exp, exi, policies or scheme")
			}
			if d.Creds == nil || len(d.Creds) != 0 {
				t.Error("creds of an empty group: an empty array is expected when asked for")
			}
			// A second node gets the next ID and the first's credential.
			j2 := f.joinerWith("n2", alg, groupcomm.Scope{{Group: "g1", Roles: both}}, time.Time{})
			if msg, err = j2.JoinMessage("g1", both); err != nil {
				t.Fatal(err)
			}
			msg.GetCreds = &groupcomm.GetCreds{All: true}
			d, err = j2.Accept(j2.Send(t.Context(), f.m, "g1", msg))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(d.Key.SenderID, []byte{0}) {
				t.Errorf("second Sender ID %x", d.Key.SenderID)
			}
			if len(d.Creds) != 1 || !bytes.Equal(d.Creds[0], j.Cred) || d.PeerRoles[0] != both || len(d.PeerIdentifiers[0]) != 0 {
				t.Error("creds for the second node")
			}
		})
	}
}

// TestJoinLayout compares the layout of a Join Response with the vector
// (vectors/messages.json, join_response_cf261): the same labels, byte for byte
// but for the values that are random here.
func TestJoinLayout(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	f.member("first", "g1")
	j := f.joiner("second", "g1", both)
	msg, err := j.JoinMessage("g1", both)
	if err != nil {
		t.Fatal(err)
	}
	msg.GetCreds = &groupcomm.GetCreds{All: true}
	r := j.Send(t.Context(), f.m, "g1", msg)
	m, err := cose.DecodeMap(r.Payload)
	if err != nil {
		t.Fatal(err)
	}
	want, err := cose.DecodeMap(joinResponseVector)
	if err != nil {
		t.Fatal(err)
	}
	for label := range want {
		if !m.Has(label) {
			t.Errorf("label %d is missing", label)
		}
	}
	for label := range m {
		if !want.Has(label) {
			t.Errorf("label %d is not in the vector", label)
		}
	}
	for _, label := range []int64{7, 9, 10, 14, 16} {
		if !bytes.Equal(m[label], want[label]) {
			t.Errorf("label %d: %x, want %x", label, m[label], want[label])
		}
	}
	key, err := cose.DecodeMap(m[8])
	if err != nil {
		t.Fatal(err)
	}
	wantKey, err := cose.DecodeMap(want[8])
	if err != nil {
		t.Fatal(err)
	}
	for label := range wantKey {
		switch label {
		case 2, 5, 7: // secret, salt, Sender ID
			if !key.Has(label) {
				t.Errorf("label %d is missing in key", label)
			}
		default:
			if !bytes.Equal(key[label], wantKey[label]) {
				t.Errorf("key, label %d: %x, want %x", label, key[label], wantKey[label])
			}
		}
	}
	if len(key) != len(wantKey) {
		t.Errorf("key has %d labels, the vector %d", len(key), len(wantKey))
	}
}

// TestJoinDecisions goes through the decision table of
// draft-ietf-ace-key-groupcomm-oscore-21, Section 6.2, row by row. A refused
// join changes nothing.
func TestJoinDecisions(t *testing.T) {
	t.Parallel()
	type env struct {
		*fixture
		newcomer *gmtest.Joiner // token for requester, responder, monitor
		member   *gmtest.Joiner // member with requester and responder
		monitor  *gmtest.Joiner // member, monitor only
	}
	edit := func(fn func(*env, *groupcomm.JoinRequest)) func(*env) *coap.Request {
		return func(e *env) *coap.Request {
			msg, err := e.newcomer.JoinMessage("g1", both)
			if err != nil {
				e.t.Fatal(err)
			}
			fn(e, msg)
			return e.newcomer.Request(coap.POST, msg.Encode(), "ace-group", "g1")
		}
	}
	rejoin := func(roles groupcomm.Roles, fn func(*env, *groupcomm.JoinRequest)) func(*env) *coap.Request {
		return func(e *env) *coap.Request {
			msg, err := e.member.JoinMessage("g1", roles)
			if err != nil {
				e.t.Fatal(err)
			}
			fn(e, msg)
			return e.member.Request(coap.POST, msg.Encode(), "ace-group", "g1")
		}
	}
	raw := func(body []byte) func(*env) *coap.Request {
		return func(e *env) *coap.Request { return e.newcomer.Request(coap.POST, body, "ace-group", "g1") }
	}
	noPoint := cose.EncodeCCS("x", &cose.Key{Kty: cose.KtyOKP, Crv: cose.CrvEd25519, X: append([]byte{2}, make([]byte, 31)...)})
	scope := func(group string, roles groupcomm.Roles) func(*env) *coap.Request {
		return edit(func(e *env, m *groupcomm.JoinRequest) {
			m.Scope = groupcomm.ScopeEntry{Group: group, Roles: roles}.Encode()
			if err := e.newcomer.Prove(m); err != nil {
				e.t.Fatal(err)
			}
		})
	}
	uri := func(s string) func(*env) *coap.Request {
		return edit(func(_ *env, m *groupcomm.JoinRequest) { m.ControlURI = s })
	}
	const none, info = -1, -2
	for _, tc := range []struct {
		name string
		req  func(*env) *coap.Request
		code coap.Code
		id   int // error identifier, none, or info for the INFO body
		ns   bool
	}{
		{"1 no token", func(e *env) *coap.Request {
			e.auth.Revoke(e.newcomer.Peer.Subject)
			return raw([]byte{0xa0})(e)
		}, coap.Unauthorized, none, false},
		{"1 group not in scope", func(e *env) *coap.Request {
			return e.newcomer.Request(coap.POST, []byte{0xa0}, "ace-group", "elsewhere")
		}, coap.Forbidden, none, false},
		{"2 no payload", raw(nil), coap.BadRequest, info, false},
		{"2 not a map", raw([]byte{0x80}), coap.BadRequest, info, false},
		{"2 trailing byte", raw([]byte{0xa0, 0}), coap.BadRequest, info, false},
		{"2 wrong type", raw([]byte{0xa1, 3, 4}), coap.BadRequest, info, false},
		{"2 no scope", edit(func(_ *env, m *groupcomm.JoinRequest) { m.Scope = nil }), coap.BadRequest, info, false},
		{"2 no cnonce", edit(func(_ *env, m *groupcomm.JoinRequest) { m.CNonce = nil }), coap.BadRequest, info, false},
		{"2 short cnonce", edit(func(_ *env, m *groupcomm.JoinRequest) { m.CNonce = m.CNonce[:7] }), coap.BadRequest, info, false},
		{"2 long cnonce", edit(func(_ *env, m *groupcomm.JoinRequest) { m.CNonce = make([]byte, 65) }), coap.BadRequest, info, false},
		{"2 get_creds by id", edit(func(_ *env, m *groupcomm.JoinRequest) {
			m.GetCreds = &groupcomm.GetCreds{Inclusion: true, Roles: []groupcomm.Roles{both}, IDs: []groupcomm.SenderID{{1}}}
		}), coap.BadRequest, info, false},
		{"2 get_creds by exclusion", edit(func(_ *env, m *groupcomm.JoinRequest) {
			m.GetCreds = &groupcomm.GetCreds{Roles: []groupcomm.Roles{both}}
		}), coap.BadRequest, info, false},
		{"2 control_uri multicast", uri("coap://[ff02::fd]/rekey"), coap.BadRequest, info, false},
		{"2 control_uri multicast v4", uri("coap://224.0.1.187/rekey"), coap.BadRequest, info, false},
		{"2 control_uri fragment", uri("coap://[2001:db8::1]/rekey#x"), coap.BadRequest, info, false},
		{"2 control_uri too long", uri("coap://[2001:db8::1]/" + strings.Repeat("x", 255)), coap.BadRequest, info, false},
		{"2 control_uri of the group", uri("coap://[2001:db8::1]/ace-group/g1"), coap.BadRequest, info, false},
		{"2 control_uri no uri", uri("/rekey"), coap.BadRequest, info, false},
		{"content format", func(e *env) *coap.Request {
			r := raw([]byte{0xa0})(e)
			r.Options.SetContentFormat(coap.CBOR)
			return r
		}, coap.UnsupportedContentFormat, none, false},
		{"accept", func(e *env) *coap.Request {
			r := raw([]byte{0xa0})(e)
			r.Options.SetUint(coap.Accept, uint32(coap.CBOR))
			return r
		}, coap.NotAcceptable, none, false},
		{"3 other group", scope("g2", both), coap.BadRequest, info, false},
		{"3 no role", scope("g1", 0), coap.BadRequest, info, false},
		{"3 odd roles", scope("g1", 3), coap.BadRequest, info, false},
		{"3 unknown role", scope("g1", 1<<7), coap.BadRequest, info, false},
		{"3 requester and monitor", scope("g1", groupcomm.Requester|groupcomm.Monitor), coap.BadRequest, info, false},
		{"3 verifier", scope("g1", groupcomm.Verifier), coap.BadRequest, info, false},
		{"4 roles beyond the token", func(e *env) *coap.Request {
			e.auth.Allow(e.newcomer.Peer.Subject, groupcomm.Scope{{Group: "g1", Roles: groupcomm.Requester}}, time.Time{})
			return scope("g1", both)(e)
		}, coap.Forbidden, none, false},
		{"4 token for a verifier only", func(e *env) *coap.Request {
			e.auth.Allow(e.newcomer.Peer.Subject, groupcomm.Scope{{Group: "g1", Roles: groupcomm.Verifier}}, time.Time{})
			return raw(nil)(e)
		}, coap.Forbidden, none, false},
		{"7 credential missing", edit(func(_ *env, m *groupcomm.JoinRequest) { m.ClientCred = nil }), coap.BadRequest, info, false},
		{"7 proof missing", edit(func(_ *env, m *groupcomm.JoinRequest) { m.ClientCredVerify = nil }), coap.BadRequest, info, false},
		{"8 member without stored credential", func(e *env) *coap.Request {
			msg, err := e.monitor.JoinMessage("g1", groupcomm.Requester)
			if err != nil {
				e.t.Fatal(err)
			}
			msg.ClientCred, msg.ClientCredVerify = []byte{}, nil
			return e.monitor.Request(coap.POST, msg.Encode(), "ace-group", "g1")
		}, coap.BadRequest, info, false},
		{"9 other credential without proof", rejoin(both, func(e *env, m *groupcomm.JoinRequest) {
			m.ClientCred, m.ClientCredVerify = e.newcomer.Cred, nil
		}), coap.BadRequest, info, false},
		{"10 no N_S", func(e *env) *coap.Request {
			e.auth.ForgetChallenges(e.newcomer.Peer.Subject)
			return edit(func(*env, *groupcomm.JoinRequest) {})(e)
		}, coap.BadRequest, info, true},
		{"11 not a credential", edit(func(_ *env, m *groupcomm.JoinRequest) { m.ClientCred = []byte{1, 2, 3} }), coap.BadRequest, 2, false},
		{"11 empty credential", edit(func(_ *env, m *groupcomm.JoinRequest) { m.ClientCred = []byte{} }), coap.BadRequest, 2, false},
		{"11 other algorithm", edit(func(e *env, m *groupcomm.JoinRequest) {
			k, err := cose.GenerateKey(cose.AlgES256)
			if err != nil {
				e.t.Fatal(err)
			}
			m.ClientCred = cose.EncodeCCS("x", k.Public())
		}), coap.BadRequest, 2, false},
		{"11 not a point", edit(func(_ *env, m *groupcomm.JoinRequest) { m.ClientCred = noPoint }), coap.BadRequest, 2, false},
		{"11 not a point, empty proof", edit(func(_ *env, m *groupcomm.JoinRequest) {
			m.ClientCred, m.ClientCredVerify = noPoint, []byte{}
		}), coap.BadRequest, 2, false},
		{"12 degenerate key", edit(func(_ *env, m *groupcomm.JoinRequest) {
			k := &cose.Key{Kty: cose.KtyOKP, Crv: cose.CrvEd25519, X: append([]byte{1}, make([]byte, 31)...)}
			m.ClientCred = cose.EncodeCCS("x", k)
		}), coap.BadRequest, 2, false},
		{"13 empty proof", edit(func(_ *env, m *groupcomm.JoinRequest) { m.ClientCredVerify = []byte{} }), coap.BadRequest, 3, false},
		{"13 empty proof of a member", rejoin(both, func(_ *env, m *groupcomm.JoinRequest) { m.ClientCredVerify = []byte{} }), coap.BadRequest, 3, false},
		{"14 proof over another scope", edit(func(_ *env, m *groupcomm.JoinRequest) {
			m.Scope = groupcomm.ScopeEntry{Group: "g1", Roles: groupcomm.Requester}.Encode()
		}), coap.BadRequest, 3, false},
		{"14 proof over another N_C", edit(func(_ *env, m *groupcomm.JoinRequest) { m.CNonce = bytes.Repeat([]byte{7}, 8) }), coap.BadRequest, 3, false},
		{"14 proof by another key", edit(func(e *env, m *groupcomm.JoinRequest) { m.ClientCred = e.member.Cred }), coap.BadRequest, 3, false},
		{"14 proof cut", edit(func(_ *env, m *groupcomm.JoinRequest) { m.ClientCredVerify = m.ClientCredVerify[:63] }), coap.BadRequest, 3, false},
	} {
		// A refusal is the same whether or not membership was guessed before it.
		decide := func(t *testing.T, forget bool) {
			t.Parallel()
			f := newFixture(t, groupConfig("g1"))
			e := &env{fixture: f}
			e.newcomer = f.joiner("newcomer", "g1", both|groupcomm.Monitor)
			e.member = f.member("member", "g1")
			e.monitor = f.joiner("monitor", "g1", groupcomm.Requester|groupcomm.Monitor)
			f.join(e.monitor, "g1", groupcomm.Monitor)
			req := tc.req(e)
			before := f.dump()
			if forget {
				f.forget("g1")
			}
			r := gmtest.Serve(t.Context(), f.m, req)
			if r.Code != tc.code {
				t.Fatalf("code %v, want %v (%x)", r.Code, tc.code, r.Payload)
			}
			checkRefusal(t, r, tc.id, tc.ns)
			if after := f.dump(); after != before {
				t.Errorf("a refused join changed the state\nbefore:\n%s\nafter:\n%s", before, after)
			}
		}
		t.Run(tc.name, func(t *testing.T) { decide(t, false) })
		t.Run(tc.name+", forgotten", func(t *testing.T) { decide(t, true) })
	}
}

// forget has the group take everybody for a newcomer.
func (f *fixture) forget(group string) {
	g, _ := f.m.group(group)
	g.known.mu.Lock()
	defer g.known.mu.Unlock()
	g.known.set = nil
}

// checkRefusal checks the body of an error: id is an error identifier, -1 for a
// plain code, -2 for the INFO body.
func checkRefusal(t *testing.T, r *coap.Response, id int, ns bool) {
	t.Helper()
	format, formatted := r.Options.ContentFormat()
	switch id {
	case -1:
		if formatted && format == coap.ProblemDetails {
			t.Errorf("problem details %x where a plain code is expected", r.Payload)
		}
	case -2:
		if format != coap.ACEGroupcomm {
			t.Fatalf("content format %d, want 261", format)
		}
		b, err := groupcomm.DecodeInfoBody(r.Payload)
		if err != nil {
			t.Fatal(err)
		}
		if len(b.SignInfo) != 1 || b.SignInfo[0].Groups[0] != "g1" || len(b.ECDHInfo) != 1 || b.KDCDHCreds != nil {
			t.Errorf("INFO body %+v", b)
		}
		if ns != (len(b.KDCChallenge) >= 8) {
			t.Errorf("kdcchallenge of %d bytes", len(b.KDCChallenge))
		}
	default:
		if format != coap.ProblemDetails {
			t.Fatalf("content format %d, want 257", format)
		}
		p, err := coap.DecodeProblem(r.Payload)
		if err != nil {
			t.Fatal(err)
		}
		if p.ID != id {
			t.Errorf("error identifier %d, want %d", p.ID, id)
		}
	}
}

// Row 5: draft-ietf-ace-key-groupcomm-oscore-21, Section 13, error 9.
func TestJoinInactive(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	member, j := f.member("member", "g1"), f.joiner("n", "g1", both)
	if err := f.m.SetActive(t.Context(), "g1", false); err != nil {
		t.Fatal(err)
	}
	msg, err := j.JoinMessage("g1", both)
	if err != nil {
		t.Fatal(err)
	}
	before := f.dump()
	r := j.Send(t.Context(), f.m, "g1", msg)
	if r.Code != coap.ServiceUnavailable {
		t.Fatalf("code %v", r.Code)
	}
	checkRefusal(t, r, 9, false)
	// Members may still read.
	if r := f.do(member, coap.GET, nil, "ace-group", "g1"); r.Code != coap.Content {
		t.Errorf("GET answered with %v", r.Code)
	}
	if r := f.do(member, coap.GET, nil, "ace-group", "g1", "active"); !bytes.Equal(r.Payload, []byte{0xf4}) {
		t.Errorf("active %x", r.Payload)
	}
	if r := f.do(member, coap.POST, nil, member.Path...); r.Code != coap.ServiceUnavailable {
		t.Errorf("renewal answered with %v", r.Code)
	} else {
		checkRefusal(t, r, 9, false)
	}
	if f.dump() != before {
		t.Error("the state changed")
	}
	if err := f.m.SetActive(t.Context(), "g1", true); err != nil {
		t.Fatal(err)
	}
	f.join(j, "g1", both)
}

// Row 10: the client goes on with the new N_S.
func TestJoinWithNewChallenge(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	j := f.joiner("n", "g1", both)
	f.auth.ForgetChallenges(j.Peer.Subject)
	msg, err := j.JoinMessage("g1", both)
	if err != nil {
		t.Fatal(err)
	}
	b, err := groupcomm.DecodeInfoBody(j.Send(t.Context(), f.m, "g1", msg).Payload)
	if err != nil {
		t.Fatal(err)
	}
	j.NS = b.KDCChallenge
	f.join(j, "g1", both)
}

// docs/protocol.md, Section 2: of the last four challenges any may be used.
func TestJoinWithOlderChallenge(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	j := f.joiner("n", "g1", both)
	for range 3 {
		if _, err := f.auth.NewChallenge(t.Context(), j.Peer.Subject); err != nil {
			t.Fatal(err)
		}
	}
	f.join(j, "g1", both)
	g, err := f.auth.Grant(t.Context(), j.Peer)
	if err != nil {
		t.Fatal(err)
	}
	if len(g.Challenges) != 1 || !bytes.Equal(g.Challenges[0], j.NS) {
		t.Error("the used challenge is not the only one left")
	}
}

// draft-ietf-ace-key-groupcomm-oscore-21, Section 6.3: a member that joins
// again gets another Sender ID, and the old one becomes stale.
func TestRejoin(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	j := f.member("n", "g1")
	path := j.Path
	for i, edit := range []func(*groupcomm.JoinRequest){
		func(*groupcomm.JoinRequest) {},
		func(m *groupcomm.JoinRequest) { m.ClientCredVerify = nil },
		func(m *groupcomm.JoinRequest) { m.ClientCred, m.ClientCredVerify = []byte{}, nil },
		func(m *groupcomm.JoinRequest) { m.ClientCred, m.ClientCredVerify = nil, nil },
		// The same, not remembered to be a member.
		func(*groupcomm.JoinRequest) { f.forget("g1") },
		func(m *groupcomm.JoinRequest) { f.forget("g1"); m.ClientCredVerify = nil },
		func(m *groupcomm.JoinRequest) { f.forget("g1"); m.ClientCred, m.ClientCredVerify = []byte{}, nil },
	} {
		msg, err := j.JoinMessage("g1", both)
		if err != nil {
			t.Fatal(err)
		}
		edit(msg)
		r := j.Send(t.Context(), f.m, "g1", msg)
		if r.Code != coap.Changed {
			t.Fatalf("form %d answered with %v %x", i, r.Code, r.Payload)
		}
		d, err := j.Accept(r)
		if err != nil {
			t.Fatal(err)
		}
		if want := sidPlace(i + 1).id(); !bytes.Equal(d.Key.SenderID, want) {
			t.Errorf("form %d: Sender ID %x, want %x", i, d.Key.SenderID, want)
		}
		if strings.Join(j.Path, "/") != strings.Join(path, "/") {
			t.Errorf("the node resource moved to %q", j.Path)
		}
	}
	// As a monitor the member has no Sender ID and no credential any more.
	f.auth.Allow(j.Peer.Subject, groupcomm.Scope{{Group: "g1", Roles: both | groupcomm.Monitor}}, time.Time{})
	if d := f.join(j, "g1", groupcomm.Monitor); d.Key.SenderID != nil {
		t.Error("a monitor has a Sender ID")
	}
	f.rekey("g1")
	_, body, err := f.m.RekeyMessage(t.Context(), "g1")
	if err != nil {
		t.Fatal(err)
	}
	msg, err := groupcomm.DecodeRekeyMessage(body)
	if err != nil {
		t.Fatal(err)
	}
	if len(msg.Stale) != 8 {
		t.Errorf("%d stale Sender IDs, want 8", len(msg.Stale))
	}
}

// Row 15: error 4, and the rekey that frees Sender IDs is started.
func TestNoSenderID(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	f.member("a", "g1")
	b := f.member("b", "g1")
	g, _ := f.m.group("g1")
	g.sids = 2 // a space of two, as if the algorithms allowed no more
	j := f.joiner("n", "g1", both)
	msg, err := j.JoinMessage("g1", both)
	if err != nil {
		t.Fatal(err)
	}
	before := f.dump()
	r := j.Send(t.Context(), f.m, "g1", msg)
	checkRefusal(t, r, 4, false)
	if f.dump() != before {
		t.Error("the state changed")
	}
	if f.status().Due {
		t.Error("a rekey would free nothing and is due nevertheless")
	}
	// A monitor needs no Sender ID.
	mon := f.joiner("m", "g1", groupcomm.Monitor)
	f.join(mon, "g1", groupcomm.Monitor)
	// b's ID would be free under a new Gid. A re-join needs an ID at once, too.
	f.setRoles(b, groupcomm.Monitor)
	if r := j.Send(t.Context(), f.m, "g1", msg); r.Code != coap.ServiceUnavailable {
		t.Fatalf("code %v", r.Code)
	} else if age, ok := r.Options.Uint(coap.MaxAge); !ok || age == 0 || age > 60 {
		t.Errorf("Max-Age %d %v", age, ok)
	} else {
		checkRefusal(t, r, 4, false)
	}
	if !f.status().Due {
		t.Error("no rekey is due")
	}
	f.m.workOff(t.Context(), g)
	if d := f.join(j, "g1", both); !bytes.Equal(d.Key.SenderID, []byte{0}) {
		t.Errorf("Sender ID %x, want 00", d.Key.SenderID)
	}
}

// setRoles has a member join again with other roles.
func (f *fixture) setRoles(j *gmtest.Joiner, roles groupcomm.Roles) {
	f.t.Helper()
	f.auth.Allow(j.Peer.Subject, groupcomm.Scope{{Group: "g1", Roles: both | groupcomm.Monitor}}, time.Time{})
	f.join(j, "g1", roles)
}

// A join whose token expires before it is written is refused.
func TestJoinExpiresMeanwhile(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	j := f.joiner("n", "g1", both)
	msg, err := j.JoinMessage("g1", both)
	if err != nil {
		t.Fatal(err)
	}
	before := f.dump()
	f.deps.Authority = expired{f.auth}
	f.reopen(f.st)
	if r := j.Send(t.Context(), f.m, "g1", msg); r.Code != coap.Unauthorized {
		t.Errorf("code %v", r.Code)
	}
	if f.dump() != before {
		t.Error("the state changed")
	}
}

// expired grants with a token that expired a moment ago.
type expired struct{ *gmtest.Authority }

func (a expired) Grant(ctx context.Context, p coap.Peer) (*groupcomm.Grant, error) {
	g, err := a.Authority.Grant(ctx, p)
	if err == nil {
		g.Expires = time.Now().Add(-time.Millisecond)
	}
	return g, err
}

// TestMonitorIgnoresCredential: draft-ietf-ace-key-groupcomm-oscore-21, Section
// 6.1: what a monitor says of a credential is ignored, however wrong it is.
func TestMonitorIgnoresCredential(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	j := f.joiner("m", "g1", groupcomm.Monitor)
	msg, err := j.JoinMessage("g1", groupcomm.Monitor)
	if err != nil {
		t.Fatal(err)
	}
	msg.ClientCred, msg.ClientCredVerify = []byte{1, 2, 3}, []byte("no proof")
	r := gmtest.Serve(t.Context(), f.m, j.Request(coap.POST, msg.Encode(), "ace-group", "g1"))
	if r.Code != coap.Created {
		t.Fatalf("%v (%x)", r.Code, r.Payload)
	}
	d, err := groupcomm.DecodeKeyDistribution(r.Payload)
	if err != nil {
		t.Fatal(err)
	}
	if d.Key.SenderID != nil {
		t.Error("a monitor has a Sender ID")
	}
	if got := f.creds(t, "g1"); got != 0 {
		t.Errorf("%d credentials are stored", got)
	}
}

// creds counts the credentials that the group holds of its members.
func (f *fixture) creds(t *testing.T, group string) (n int) {
	t.Helper()
	err := f.st.View(t.Context(), func(tx *store.Tx) error {
		return tx.QueryRow(`SELECT COUNT(m.cred) FROM gm_members m JOIN gm_groups g ON g.id = m.group_id
			WHERE g.name = ?`, group).Scan(&n)
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
