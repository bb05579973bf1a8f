package ace

import (
	"bytes"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/ace/cwt"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

const both = groupcomm.Requester | groupcomm.Responder

func textScope(group string, roles groupcomm.Roles) func(*cwt.Claims) {
	return func(c *cwt.Claims) {
		c.Scope = groupcomm.EncodeTextTokenScope(groupcomm.ScopeEntry{Group: group, Roles: roles})
	}
}

func aifScope(groups ...string) func(*cwt.Claims) {
	return func(c *cwt.Claims) {
		var s groupcomm.Scope
		for _, g := range groups {
			s = append(s, groupcomm.ScopeEntry{Group: g, Roles: both})
		}
		c.Scope = groupcomm.EncodeTokenScope(s, false)
	}
}

// A token post is answered in the dialect that the client shows to speak, if one
// of its groups does (draft-ietf-ace-key-groupcomm-oscore-03, Section 4.1).
func TestLegacyTokenPost(t *testing.T) {
	const none = groupcomm.Current
	for _, c := range []struct {
		name           string
		scope          func(*cwt.Claims)
		format, accept int // 0: none
		ask            bool
		want           coap.Code
		answer         coap.Format
		dialect        groupcomm.Interface
		groups         []string // of sign_info
	}{
		{"text scope", textScope("2019", both), 19, 0, false, coap.Created, 19, groupcomm.Draft03, nil},
		{"text scope, asking", textScope("2019", both), 65000, 0, true, coap.Created, 65000, groupcomm.Draft03, nil},
		{"text scope, bare", textScope("2019", both), 61, 0, false, coap.Created, 19, groupcomm.Draft03, nil},
		{"text scope, both", textScope("two", both), 19, 0, true, coap.Created, 19, groupcomm.Draft03, nil},
		{"text scope of a current group", textScope("g1", both), 19, 0, true, coap.BadRequest, 0, none, nil},
		{"text scope of hackathon-109", textScope("2020", both), 19, 0, true, coap.BadRequest, 0, none, nil},
		{"text scope of no group", textScope("none", both), 19, 0, true, coap.BadRequest, 0, none, nil},
		{"both, no sign of a dialect", aifScope("two"), 19, 0, false, coap.Created, 19, none, nil},
		{"both, asking", aifScope("two"), 0, 0, true, coap.Created, 19, groupcomm.Draft03, nil},
		{"both, format", aifScope("two"), 65000, 0, false, coap.Created, 65000, groupcomm.Draft03, nil},
		{"both, accept", aifScope("two"), 19, 65000, false, coap.Created, 65000, groupcomm.Draft03, nil},
		{"hackathon-109", aifScope("2020"), 19, 0, true, coap.Created, 19, groupcomm.Hackathon109, []string{"2020"}},
		{"hackathon-109, not asking", aifScope("2020"), 19, 0, false, coap.Created, 19, groupcomm.Hackathon109, nil},
		{"first dialect", aifScope("g1", "2020", "2019"), 65000, 0, true, coap.Created, 65000, groupcomm.Hackathon109, []string{"2020"}},
		{"current", aifScope("g1"), 19, 0, true, coap.Created, 19, none, nil},
		{"current, format", aifScope("g1"), 65000, 0, false, coap.UnsupportedContentFormat, 0, none, nil},
		{"current, accept", aifScope("g1"), 19, 65000, false, coap.NotAcceptable, 0, none, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			token := b.token(c.scope)
			req := &coap.Request{Code: coap.POST, Peer: outside(), Payload: token}
			if c.format != 61 {
				req.Payload = (&groupcomm.TokenTransfer{AccessToken: token, WantLegacySignInfo: c.ask, WantLegacyPubKeyEnc: c.ask}).Encode()
			}
			if c.format != 0 {
				req.Options.SetContentFormat(coap.Format(c.format))
			}
			if c.accept != 0 {
				req.Options.SetUint(coap.Accept, uint32(c.accept))
			}
			before := b.dump()
			resp, err := b.AuthzInfo().ServeCoAP(t.Context(), req)
			if code(err) != c.want {
				t.Fatalf("%v, want %v", err, c.want)
			}
			if err != nil {
				if b.dump() != before {
					t.Error("a refused token was stored")
				}
				return
			}
			if f, _ := resp.Options.ContentFormat(); f != c.answer {
				t.Errorf("format %d", f)
			}
			if c.dialect == none {
				if a, err := groupcomm.DecodeTokenTransferResponse(resp.Payload); err != nil || a.KDCChallenge == nil {
					t.Errorf("%x: %v", resp.Payload, err)
				}
				return
			}
			i, err := groupcomm.DecodeLegacyInfo(c.dialect, resp.Payload)
			if err != nil || len(i.Challenge) < 8 {
				t.Fatalf("%x: %v", resp.Payload, err)
			}
			if (i.SignInfo != nil) != c.ask || (i.PubKeyEnc != 0) != (c.ask && c.dialect == groupcomm.Draft03) {
				t.Errorf("answer %+v", i)
			}
			if c.groups != nil && (len(i.SignInfo) != 1 || i.SignInfo[0].Groups[0] != c.groups[0]) {
				t.Errorf("groups %+v", i.SignInfo)
			}
			// The roles are the same in all forms.
			g := b.grant(b.handshake(popKID))
			if !has(g.Challenges, i.Challenge) {
				t.Error("N_S is not the grant's")
			}
		})
	}
}

func TestTextScopeRoles(t *testing.T) {
	b := newBench(t)
	roles := groupcomm.Requester | groupcomm.Monitor
	b.mustPostLegacy(b.token(textScope("2019", roles)))
	if got := b.grant(b.handshake(popKID)).Scope.RolesFor("2019"); got != roles {
		t.Errorf("roles %v", got)
	}
	// Also in psk_identity.
	token := b.token(textScope("2019", both), func(c *cwt.Claims) { c.Cnf.Key.KID = []byte("kid-0002") })
	if _, err := b.PSK(t.Context(), token); err != nil {
		t.Error(err)
	}
	if _, err := b.PSK(t.Context(), b.token(textScope("g1", both), func(c *cwt.Claims) { c.Cnf.Key.KID = []byte("kid-0003") })); err == nil {
		t.Error("a text scope of a current group")
	}
}

func (b *bench) mustPostLegacy(token []byte) {
	b.t.Helper()
	req := &coap.Request{Code: coap.POST, Peer: outside(), Payload: token}
	req.Options.SetContentFormat(coap.CWT)
	if _, err := b.AuthzInfo().ServeCoAP(b.t.Context(), req); err != nil {
		b.t.Fatal(err)
	}
}

// The embedded Authorization Server issues what is asked for in the same form.
func TestTextScopeIssued(t *testing.T) {
	b := newBench(t, func(c *Config) {
		c.AS.Policies = append(c.AS.Policies, Policy{
			Client: "clientF", Audience: "rs2", Lifetime: time.Hour,
			Scope: groupcomm.Scope{{Group: "2019", Roles: both}},
		})
	})
	ask := func(group string, roles groupcomm.Roles) (*coap.Response, error) {
		scope := groupcomm.EncodeTextTokenScope(groupcomm.ScopeEntry{Group: group, Roles: roles})
		return b.Token().ServeCoAP(t.Context(), tokenReq(map[int64]any{5: "rs2", 9: cose.Item(scope)}))
	}
	for roles, told := range map[groupcomm.Roles]bool{both: false, groupcomm.Requester: false, groupcomm.Requester | groupcomm.Monitor: true} {
		resp, err := ask("2019", roles)
		if err != nil {
			t.Fatal(err)
		}
		m, err := cose.DecodeMap(resp.Payload)
		if err != nil {
			t.Fatal(err)
		}
		if m.Has(9) != told {
			t.Errorf("%v: scope told: %v", roles, m.Has(9))
		}
		if told {
			if e, err := groupcomm.DecodeTextTokenScope(m[9]); err != nil || e.Roles != groupcomm.Requester {
				t.Errorf("%v: scope %v, %v", roles, e, err)
			}
		}
		token, _, _ := m.Bytes(1)
		parsed, err := cwt.Parse(token)
		if err != nil {
			t.Fatal(err)
		}
		plain, err := parsed.Open(encKey)
		if err != nil {
			t.Fatal(err)
		}
		claims, err := cwt.DecodeClaims(plain)
		if err != nil {
			t.Fatal(err)
		}
		want := groupcomm.EncodeTextTokenScope(groupcomm.ScopeEntry{Group: "2019", Roles: roles & both})
		if !bytes.Equal(claims.Scope, want) {
			t.Errorf("%v: claim %x, want %x", roles, claims.Scope, want)
		}
		b.mustPostLegacy(token)
	}
	for _, group := range []string{"g1", "2020", "none"} {
		if _, err := ask(group, both); code(err) != coap.BadRequest {
			t.Errorf("%s: %v", group, err)
		}
	}
}
