package ace

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/ace/cwt"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

func clientPeer(identity string) coap.Peer {
	return inside(coap.Subject{Kind: coap.SubjectPSK, ID: identity})
}

func tokenReq(fields map[int64]any) *coap.Request {
	req := &coap.Request{Code: coap.POST, Payload: cose.MustMarshal(fields), Peer: clientPeer("clientF")}
	req.Options.SetContentFormat(coap.ACE)
	return req
}

func wanted(entries ...groupcomm.ScopeEntry) cose.Item {
	return cose.Item(groupcomm.EncodeTokenScope(entries, false))
}

// answer is what a client reads from a 2.01.
type answer struct {
	token    []byte
	kid, key []byte
	expires  int64
	scope    groupcomm.Scope // nil: as asked for
}

func (b *bench) ask(req *coap.Request) answer {
	b.t.Helper()
	resp, err := b.Token().ServeCoAP(b.t.Context(), req)
	if err != nil {
		b.t.Fatalf("token request: %v", err)
	}
	format, _ := resp.Options.ContentFormat()
	if age, ok := resp.Options.Uint(coap.MaxAge); !ok || age != 0 || resp.Code != coap.Created || format != coap.ACE {
		b.t.Fatalf("answer is %v in format %d with Max-Age %d", resp.Code, format, age)
	}
	m, err := cose.DecodeMap(resp.Payload)
	if err != nil {
		b.t.Fatal(err)
	}
	var a answer
	a.token, _, _ = m.Bytes(1)
	a.expires, _, _ = m.Int(2)
	cnf, err := cwt.DecodeConfirmation(m[8])
	if err != nil || cnf.Key == nil {
		b.t.Fatalf("cnf: %v", err)
	}
	a.kid, a.key = cnf.Key.KID, cnf.Key.K
	if profile, _, _ := m.Int(38); profile != 1 {
		b.t.Errorf("profile %d", profile)
	}
	if kind, _, _ := m.Int(34); kind != 2 {
		b.t.Errorf("token type %d", kind)
	}
	if m.Has(9) {
		if a.scope, err = groupcomm.DecodeTokenScope(m[9]); err != nil {
			b.t.Fatal(err)
		}
	}
	return a
}

// oauth is the error code in a refusal.
func oauth(err error) (coap.Code, int64) {
	resp := coap.ErrorResponse(err)
	m, _ := cose.DecodeMap(resp.Payload)
	id, _, _ := m.Int(30)
	return resp.Code, id
}

// RFC 9200, Section 5.8: what policies permit, and the error of everything else.
func TestTokenPolicies(t *testing.T) {
	b := newBench(t)
	g1 := func(r groupcomm.Roles) groupcomm.ScopeEntry { return groupcomm.ScopeEntry{Group: "g1", Roles: r} }
	dh, err := cose.GenerateDHKey(cose.CrvX25519)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		req   *coap.Request
		scope groupcomm.Scope // told; nil: as asked for
	}{
		{"as asked for", tokenReq(map[int64]any{5: "rs2", 9: wanted(g1(6))}), nil},
		{"less", tokenReq(map[int64]any{5: "rs2", 9: wanted(g1(2)), 33: 2, 38: nil, 24: "clientF"}), nil},
		{"too many roles", tokenReq(map[int64]any{5: "rs2", 9: wanted(g1(14))}), groupcomm.Scope{g1(6)}},
		{"too many groups", tokenReq(map[int64]any{5: "rs2", 9: wanted(g1(6), groupcomm.ScopeEntry{Group: "gx", Roles: 2})}), groupcomm.Scope{g1(6)}},
		{"with an admin entry", tokenReq(map[int64]any{5: "rs2", 9: cose.Item(unhex(t, "4b8282626731068262673105"))}), groupcomm.Scope{g1(6)}},
		{"nothing in particular", tokenReq(map[int64]any{}), groupcomm.Scope{g1(6), {Group: "g2", Roles: 8}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := b.ask(c.req)
			if len(a.kid) != 8 || len(a.key) != 16 || a.expires != 3600 {
				t.Errorf("kid of %d, key of %d bytes, expires in %d", len(a.kid), len(a.key), a.expires)
			}
			if !bytes.Equal(groupcomm.EncodeScope(a.scope), groupcomm.EncodeScope(c.scope)) {
				t.Errorf("scope told: %v, want %v", a.scope, c.scope)
			}
			b.mustPost(outside(), a.token)
			if key, err := b.PSK(t.Context(), KIDIdentity(a.kid)); err != nil || !bytes.Equal(key, a.key) {
				t.Errorf("token is for another key: %v", err)
			}
		})
	}

	as := func(identity string, via coap.Security) *coap.Request {
		req := tokenReq(map[int64]any{5: "rs2"})
		req.Peer = clientPeer(identity)
		req.Peer.Via = via
		return req
	}
	for _, c := range []struct {
		name string
		req  *coap.Request
		code coap.Code
		id   int64
	}{
		{"not configured", as("nobody", coap.DTLSPSK), coap.Unauthorized, 2},
		{"may not", as("proxied", coap.DTLSPSK), coap.Unauthorized, 2},
		{"plain", as("clientF", coap.Plain), coap.Unauthorized, 2},
		{"client_id of another", tokenReq(map[int64]any{24: "clientG"}), coap.Unauthorized, 2},
		{"no policy", as("clientG", coap.DTLSPSK), coap.BadRequest, 4},
		{"no policy for audience", tokenReq(map[int64]any{5: "rs9"}), coap.BadRequest, 4},
		{"grant type", tokenReq(map[int64]any{33: 1}), coap.BadRequest, 5},
		{"grant type is text", tokenReq(map[int64]any{33: "x"}), coap.BadRequest, 1},
		{"audience is bytes", tokenReq(map[int64]any{5: []byte{1}}), coap.BadRequest, 1},
		{"profile is text", tokenReq(map[int64]any{38: "x"}), coap.BadRequest, 1},
		{"profile of MQTT", tokenReq(map[int64]any{38: 3}), coap.BadRequest, 8},
		{"cnonce is text", tokenReq(map[int64]any{39: "x"}), coap.BadRequest, 1},
		{"scope not permitted", tokenReq(map[int64]any{9: wanted(groupcomm.ScopeEntry{Group: "g1", Roles: 16})}), coap.BadRequest, 6},
		{"scope empty", tokenReq(map[int64]any{9: wanted()}), coap.BadRequest, 6},
		{"scope is text", tokenReq(map[int64]any{9: "g1"}), coap.BadRequest, 6},
		{"own key", tokenReq(map[int64]any{4: map[int64]any{1: map[int64]any{1: 4, 2: []byte{1}, -1: popKey}}}), coap.BadRequest, 7},
		{"key that cannot sign", tokenReq(map[int64]any{4: map[int64]any{1: cose.Item(dh.Public().Encode())}}), coap.BadRequest, 7},
		{"private key", tokenReq(map[int64]any{4: map[int64]any{1: cose.Item(b.signer.Encode())}}), coap.BadRequest, 7},
		{"unknown kid", tokenReq(map[int64]any{4: map[int64]any{3: []byte("12345678")}}), coap.BadRequest, 7},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := b.dump()
			_, err := b.Token().ServeCoAP(t.Context(), c.req)
			if code, id := oauth(err); code != c.code || id != c.id {
				t.Errorf("%v {30: %d}, want %v {30: %d}", code, id, c.code, c.id)
			}
			if b.dump() != before {
				t.Error("state changed")
			}
		})
	}

	get := tokenReq(nil)
	get.Code = coap.GET
	if _, err := b.Token().ServeCoAP(t.Context(), get); code(err) != coap.MethodNotAllowed {
		t.Errorf("GET: %v", err)
	}
	for name, change := range map[string]func(*Config){
		"no AS":     func(c *Config) { c.AS = nil },
		"no policy": func(c *Config) { c.AS.Policies = nil },
	} {
		if _, err := newBench(t, change).Token().ServeCoAP(t.Context(), tokenReq(map[int64]any{})); err == nil {
			t.Errorf("%s: issued", name)
		}
	}
}

// RFC 9202, Section 4: the same key again, across a restart, for its client
// only.
func TestTokenRenewal(t *testing.T) {
	b := newBench(t, func(c *Config) {
		p := c.AS.Policies[0]
		p.Client = "clientG"
		c.AS.Policies = append(c.AS.Policies, p)
	})
	first := b.ask(tokenReq(map[int64]any{}))
	b.mustPost(outside(), first.token)
	s := b.handshake(first.kid)
	b = b.reopen()
	for _, cnf := range []map[int64]any{{3: first.kid}, {1: map[int64]any{1: 4, 2: first.kid}}} {
		again := b.ask(tokenReq(map[int64]any{4: cnf, 9: wanted(groupcomm.ScopeEntry{Group: "g2", Roles: 8})}))
		if !bytes.Equal(again.kid, first.kid) || !bytes.Equal(again.key, first.key) {
			t.Error("another key")
		}
		b.mustPost(inside(s), again.token)
		if g := b.grant(s); g.Scope[0].Group != "g2" {
			t.Errorf("scope %v", g.Scope)
		}
	}
	stolen := tokenReq(map[int64]any{4: map[int64]any{3: first.kid}})
	stolen.Peer = clientPeer("clientG")
	if _, id := oauth(func() error { _, err := b.Token().ServeCoAP(t.Context(), stolen); return err }()); id != 7 {
		t.Errorf("key of another client: {30: %d}", id)
	}
	if n := b.issued.Load(); n != 1 {
		t.Errorf("%d keys counted", n)
	}
}

func TestIssueWithoutStore(t *testing.T) {
	cfg := testConfig(testSigner(t))
	s := New(cfg, Deps{})
	req := IssueRequest{Audience: "rs2", Scope: groupcomm.Scope{{Group: "g1", Roles: 2}}, Lifetime: time.Hour}
	i, err := s.Issue(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(t)
	b.mustPost(outside(), i.Token)
	b.handshake(i.KID)

	for name, change := range map[string]func(*IssueRequest){
		"unknown audience": func(r *IssueRequest) { r.Audience = "x" },
		"no scope":         func(r *IssueRequest) { r.Scope = nil },
		"admin role":       func(r *IssueRequest) { r.Scope = groupcomm.Scope{{Group: "g1", Roles: 3}} },
		"no lifetime":      func(r *IssueRequest) { r.Lifetime = 0 },
		"unknown kid":      func(r *IssueRequest) { r.KID = popKID },
		"short key":        func(r *IssueRequest) { r.KID, r.Key = popKID, cose.NewSecret([]byte{1}) },
	} {
		r := req
		change(&r)
		if _, err := s.Issue(t.Context(), r); err == nil {
			t.Errorf("%s: issued", name)
		}
	}
	r := req
	r.KID, r.Key = popKID, cose.NewSecret(popKey)
	if i, err := s.Issue(t.Context(), r); err != nil || !i.Key.Equal(cose.NewSecret(popKey)) {
		t.Errorf("given key: %v", err)
	}
}

func TestIssuedKeysAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, func(c *Config) { c.Limits.MaxIssued = 1 })
		first := b.ask(tokenReq(map[int64]any{}))
		if _, err := b.Token().ServeCoAP(t.Context(), tokenReq(map[int64]any{})); code(err) != coap.ServiceUnavailable {
			t.Errorf("no room: %v", err)
		}
		time.Sleep(time.Hour + issuedLinger - time.Second)
		b.ask(tokenReq(map[int64]any{4: map[int64]any{3: first.kid}}))
		time.Sleep(time.Hour + issuedLinger)
		if _, err := b.purge(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.ask(tokenReq(map[int64]any{}))
	})
}

func TestKeysAreSealed(t *testing.T) {
	b := newBench(t)
	a := b.ask(tokenReq(map[int64]any{}))
	b.mustPost(outside(), a.token)
	for _, q := range []string{`SELECT hex(sealed) FROM ace_keys`, `SELECT hex(sealed) FROM ace_issued`} {
		var h string
		if err := b.store.View(t.Context(), func(tx *store.Tx) error { return tx.QueryRow(q).Scan(&h) }); err != nil {
			t.Fatal(err)
		}
		if sealed := unhex(t, h); len(sealed) == 0 || bytes.Contains(sealed, a.key) {
			t.Errorf("%s: key in clear", q)
		}
	}
}

// Property: whatever comes, the answer is a token for the client or an error of
// RFC 9200, never a failure of ours; and a request that reads keeps its limits.
func FuzzTokenRequest(f *testing.F) {
	f.Add(tokenReq(map[int64]any{5: "rs2", 9: wanted(groupcomm.ScopeEntry{Group: "g1", Roles: 6}), 38: nil}).Payload)
	f.Add(tokenReq(map[int64]any{4: map[int64]any{3: []byte("12345678")}}).Payload)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeTokenRequest(b)
		if err != nil {
			if code, id := oauth(err); code.Class() != 4 || id == 0 {
				t.Fatalf("%v {30: %d}", code, id)
			}
			return
		}
		if len(r.audience) > cwt.MaxText || len(r.cnonce) > cwt.MaxCNonce || len(r.renew) > cwt.MaxKID || len(r.scope) > maxScopeEntries {
			t.Fatal("over a limit")
		}
	})
}
