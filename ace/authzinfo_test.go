package ace

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/ace/cwt"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

func TestAuthzInfoRequest(t *testing.T) {
	b := newBench(t)
	token := b.token()
	asMap := (&groupcomm.TokenTransfer{AccessToken: token}).Encode()
	for _, c := range []struct {
		name    string
		code    coap.Code
		format  int // -1: none
		accept  int // -1: none
		payload []byte
		want    coap.Code
	}{
		{"map", coap.POST, 19, -1, asMap, coap.Created},
		{"map without format", coap.POST, -1, -1, asMap, coap.Created},
		{"bare", coap.POST, 61, -1, token, coap.Created},
		{"bare without format", coap.POST, -1, 19, token, coap.Created},
		{"untagged", coap.POST, 61, -1, token[3:], coap.Created},
		{"GET", coap.GET, -1, -1, nil, coap.MethodNotAllowed},
		{"PUT", coap.PUT, 19, -1, asMap, coap.MethodNotAllowed},
		{"DELETE", coap.DELETE, -1, -1, nil, coap.MethodNotAllowed},
		{"FETCH", coap.FETCH, 19, -1, asMap, coap.MethodNotAllowed},
		{"empty", coap.POST, 19, -1, nil, coap.BadRequest},
		{"map in 61", coap.POST, 61, -1, asMap, coap.BadRequest},
		{"bare in 19", coap.POST, 19, -1, token, coap.BadRequest},
		{"other format", coap.POST, 60, -1, asMap, coap.UnsupportedContentFormat},
		{"other accept", coap.POST, 19, 60, asMap, coap.NotAcceptable},
		{"no token", coap.POST, 19, -1, unhex(t, "a1182df6"), coap.BadRequest},
		{"empty token", coap.POST, 19, -1, unhex(t, "a10140"), coap.BadRequest},
		{"token is text", coap.POST, 19, -1, unhex(t, "a1016161"), coap.BadRequest},
		{"sign_info is no null", coap.POST, 19, -1, append(unhex(t, "a2182d0001"), asMap[2:]...), coap.BadRequest},
		{"trailing byte", coap.POST, 19, -1, append(asMap[:len(asMap):len(asMap)], 0), coap.BadRequest},
		{"oversized", coap.POST, 61, -1, make([]byte, 5000), coap.RequestEntityTooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			req := &coap.Request{Code: c.code, Payload: c.payload, Peer: outside()}
			if c.format >= 0 {
				req.Options.SetContentFormat(coap.Format(c.format))
			}
			if c.accept >= 0 {
				req.Options.SetUint(coap.Accept, uint32(c.accept))
			}
			if _, err := b.send(req); code(err) != c.want {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
}

// RFC 9594, Section 3.3: what was asked for, about the groups it applies to.
func TestTransferResponse(t *testing.T) {
	b := newBench(t)
	token := b.token(func(c *cwt.Claims) {
		c.Scope = scopeOf(
			groupcomm.ScopeEntry{Group: "g1", Roles: 6}, groupcomm.ScopeEntry{Group: "g2", Roles: 2},
			groupcomm.ScopeEntry{Group: "signed", Roles: 8}, groupcomm.ScopeEntry{Group: "pairs", Roles: 4},
			groupcomm.ScopeEntry{Group: "absent", Roles: 4})
	})
	send := func(tr groupcomm.TokenTransfer) *groupcomm.TokenTransferResponse {
		t.Helper()
		tr.AccessToken = token
		req := &coap.Request{Code: coap.POST, Payload: tr.Encode(), Peer: outside()}
		req.Options.SetContentFormat(coap.ACE)
		answer, err := b.send(req)
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	if a := send(groupcomm.TokenTransfer{}); len(a.KDCChallenge) != 8 || a.SignInfo != nil || a.ECDHInfo != nil {
		t.Errorf("unasked: %+v", a)
	}
	groups := func(list []groupcomm.SignInfoEntry) (names []string) {
		for _, e := range list {
			names = append(names, e.Groups...)
		}
		return names
	}
	a := send(groupcomm.TokenTransfer{WantSignInfo: true, WantECDHInfo: true, WantKDCDH: true})
	if got := groups(a.SignInfo); len(got) != 3 || len(a.SignInfo) != 1 {
		t.Errorf("sign_info is about %v in %d entries", got, len(a.SignInfo))
	}
	if got := groups(a.ECDHInfo); len(got) != 3 || a.RISELabels {
		t.Errorf("ecdh_info is about %v", got)
	}
	// KGO 5.3.2: the groups that use the pairwise mode only.
	if d := a.KDCDHCreds; len(d) != 1 || d[0].Groups[0] != "pairs" || d[0].CredFmt != 14 || string(d[0].Cred) != "dh credential of pairs" {
		t.Errorf("kdc_dh_creds %+v", d)
	}
	if a := send(groupcomm.TokenTransfer{WantKDCDH: true}); len(a.KDCDHCreds) != 1 || a.SignInfo != nil || a.ECDHInfo != nil {
		t.Errorf("only kdc_dh_creds asked for: %+v", a)
	}
	// docs/protocol.md, Section 3: the labels 92 and 93 are aliases, answered in kind;
	// where they are not wanted they are parameters that nobody knows.
	rise := groupcomm.TokenTransfer{WantSignInfo: true, WantECDHInfo: true, WantKDCDH: true, RISELabels: true}
	a = send(rise)
	if got := groups(a.ECDHInfo); len(got) != 3 || !a.RISELabels || len(a.SignInfo) != 1 || len(a.KDCDHCreds) != 1 {
		t.Errorf("under label 92 ecdh_info is about %v", got)
	}
	b.cfg.RISELabels = false
	a = send(rise)
	if a.ECDHInfo != nil || a.RISELabels || len(a.SignInfo) != 1 || len(a.KDCChallenge) != 8 {
		t.Errorf("with the labels switched off: %+v", a)
	}
}

func TestStrangerHarmsNobody(t *testing.T) {
	b := newBench(t)
	old := b.token(func(c *cwt.Claims) {
		c.IssuedAt -= 60
		c.Scope = scopeOf(groupcomm.ScopeEntry{Group: "g2", Roles: 8})
	})
	token := b.token()
	mine := b.mustPost(outside(), token)
	owner := b.handshake(popKID)

	// Caught tokens come again: the owner keeps rights and challenge.
	for range 3 {
		if again := b.mustPost(outside(), token); has([][]byte{mine}, again) {
			t.Error("challenge is not new")
		}
	}
	g := b.grant(owner)
	if !has(g.Challenges, mine) || len(g.Challenges) != 4 {
		t.Errorf("owner's challenge is gone: %d valid", len(g.Challenges))
	}
	b.mustPost(outside(), old)
	if g := b.grant(owner); g.Scope[0].Group != "g1" {
		t.Error("an earlier token replaced the one in force")
	}

	// However many: a challenge given over the association outlives them.
	inner, err := b.NewChallenge(t.Context(), owner)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		b.mustPost(outside(), token)
	}
	if g := b.grant(owner); !has(g.Challenges, inner) || len(g.Challenges) > 5 {
		t.Errorf("inner challenge is gone, %d valid", len(g.Challenges))
	}
	b.use(owner, inner)
	if g := b.grant(owner); len(g.Challenges) != 1 || !has(g.Challenges, inner) {
		t.Error("the challenge in use is not the one left")
	}
	b.mustPost(outside(), token)
	if g := b.grant(owner); !has(g.Challenges, inner) {
		t.Error("challenge in use was pushed out")
	}
}

func TestNewTokenTakesEffect(t *testing.T) {
	newer := func(b *bench) []byte {
		return b.token(func(c *cwt.Claims) {
			c.IssuedAt += 5
			c.Scope = scopeOf(groupcomm.ScopeEntry{Group: "g2", Roles: 2})
		})
	}
	group := func(b *bench, s coap.Subject) string { return b.grant(s).Scope[0].Group }

	t.Run("before any proof", func(t *testing.T) {
		b := newBench(t)
		b.mustPost(outside(), b.token())
		b.mustPost(outside(), newer(b))
		if got := group(b, b.handshake(popKID)); got != "g2" {
			t.Error("not in force:", got)
		}
	})
	t.Run("inside", func(t *testing.T) {
		b := newBench(t)
		b.mustPost(outside(), b.token())
		s := b.handshake(popKID)
		group(b, s)
		b.mustPost(inside(s), newer(b))
		if got := group(b, s); got != "g2" {
			t.Error("not in force:", got)
		}
	})
	t.Run("outside waits for a handshake", func(t *testing.T) {
		b := newBench(t)
		b.mustPost(outside(), b.token())
		s := b.handshake(popKID)
		b.mustPost(outside(), newer(b))
		if got := group(b, s); got != "g1" {
			t.Error("in force at once:", got)
		}
		b = b.reopen()
		if got := group(b, s); got != "g1" {
			t.Error("in force after a restart:", got)
		}
		if got := group(b, b.handshake(popKID)); got != "g2" {
			t.Error("not in force after the handshake:", got)
		}
	})
	t.Run("outside, then the same inside", func(t *testing.T) {
		b := newBench(t)
		b.mustPost(outside(), b.token())
		s := b.handshake(popKID)
		token := newer(b)
		b.mustPost(outside(), token)
		b.mustPost(inside(s), token)
		if got := group(b, s); got != "g2" {
			t.Error("not in force:", got)
		}
	})
	t.Run("inside another's association", func(t *testing.T) {
		b := newBench(t)
		b.mustPost(outside(), b.token())
		s := b.handshake(popKID)
		stranger := coap.Subject{Kind: coap.SubjectPoP, ID: "stranger-0123456789abcdef"}
		b.mustPost(inside(stranger), newer(b))
		if got := group(b, s); got != "g1" {
			t.Error("in force at once:", got)
		}
	})
	t.Run("named key, inside", func(t *testing.T) {
		b := newBench(t, func(c *Config) { c.Entries[0].DerivationKey = cose.Secret{} })
		b.mustPost(outside(), b.token())
		s := b.handshake(popKID)
		b.mustPost(inside(s), b.token(func(c *cwt.Claims) {
			c.Cnf = &cwt.Confirmation{KID: popKID}
			c.Scope = scopeOf(groupcomm.ScopeEntry{Group: "g2", Roles: 2})
		}))
		if got := group(b, s); got != "g2" {
			t.Error("not in force:", got)
		}
	})
}

// The last four challenges are valid for ten minutes, the newest for longer.
func TestChallengesAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		token := b.token()
		first := b.mustPost(outside(), token)
		time.Sleep(time.Minute)
		second := b.mustPost(outside(), token)
		s := b.handshake(popKID)
		if g := b.grant(s); !has(g.Challenges, first) || !has(g.Challenges[:1], second) {
			t.Error("two challenges expected, newest first")
		}
		time.Sleep(9*time.Minute - time.Second)
		if g := b.grant(s); !has(g.Challenges, first) {
			t.Error("gone too early")
		}
		time.Sleep(time.Second)
		if g := b.grant(s); has(g.Challenges, first) || !has(g.Challenges, second) {
			t.Error("the older one is valid for too long")
		}
		time.Sleep(20 * time.Minute)
		if g := b.grant(s); !has(g.Challenges, second) {
			t.Error("the newest is gone")
		}
		var last []byte
		for range 5 {
			last = b.mustPost(outside(), token)
		}
		if g := b.grant(s); len(g.Challenges) != 4 || has(g.Challenges, second) || !has(g.Challenges, last) {
			t.Errorf("%d challenges valid", len(g.Challenges))
		}
	})
}

func TestPostRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, func(c *Config) { c.Limits.PeerRate = 1 })
		token := b.token()
		for range 4 {
			b.mustPost(outside(), token)
		}
		if _, err := b.post(outside(), token); code(err) != coap.TooManyRequests {
			t.Errorf("fifth post: %v", err)
		}
		if _, err := b.post(inside(coap.Subject{}), token); err != nil {
			t.Errorf("another address: %v", err)
		}
		time.Sleep(time.Second)
		b.mustPost(outside(), token)
	})
}

// RFC 9200, Section 5.10.3.
func TestExi(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		token := func(seq byte, kid string) []byte {
			return b.token(func(c *cwt.Claims) {
				c.Expires, c.ExpiresIn, c.ID = 0, 60, append([]byte("rs2"), seq)
				c.Cnf.Key.KID = []byte(kid)
			})
		}
		one := token(1, "kid-1")
		time.Sleep(time.Hour) // the token's time has not begun
		b.mustPost(outside(), one)
		s := b.handshake([]byte("kid-1"))
		time.Sleep(59 * time.Second)
		b.mustPost(outside(), one) // does not begin anew
		b.grant(s)
		if _, err := b.post(outside(), token(1, "kid-2")); code(err) != coap.Unauthorized {
			t.Errorf("sequence number of another token: %v", err)
		}
		time.Sleep(time.Second)
		if _, err := b.Grant(t.Context(), inside(s)); code(err) != coap.Unauthorized {
			t.Errorf("grant after exi: %v", err)
		}
		for range 2 { // before and after the purge
			if _, err := b.post(outside(), one); code(err) != coap.Unauthorized {
				t.Errorf("expired token: %v", err)
			}
			if _, err := b.purge(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		b.mustPost(outside(), token(3, "kid-3"))
		time.Sleep(time.Minute)
		b = b.reopen()
		if _, err := b.post(outside(), token(2, "kid-2")); code(err) != coap.Unauthorized {
			t.Errorf("number below the highest expired: %v", err)
		}
		b.mustPost(outside(), token(4, "kid-4"))
	})
}

func TestStoreIsBounded(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Limits.MaxTokens = 2 })
	token := func(kid string) []byte {
		return b.token(func(c *cwt.Claims) { c.Cnf.Key.KID = []byte(kid) })
	}
	b.mustPost(outside(), token("one"))
	b.handshake([]byte("one"))
	b.mustPost(outside(), token("two"))
	b.mustPost(outside(), token("three")) // takes the place of two
	if _, err := b.PSK(t.Context(), KIDIdentity([]byte("two"))); err == nil {
		t.Error("two is still there")
	}
	b.handshake([]byte("three"))
	if _, err := b.post(outside(), token("four")); code(err) != coap.ServiceUnavailable {
		t.Errorf("no room: %v", err)
	}
	if n := b.stored.Load(); n != 2 {
		t.Errorf("%d keys counted", n)
	}
}
