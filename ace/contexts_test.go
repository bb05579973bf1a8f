package ace

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/ace/cwt"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/secure"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/oscore"
	"github.com/seed4911071e/groupgate/store"
)

var (
	oscID     = []byte("osc-1")
	oscSecret = bytes.Repeat([]byte{0x05}, 16)
)

func oscMaterial() *oscore.Material {
	return &oscore.Material{ID: oscID, MasterSecret: cose.NewSecret(oscSecret), Salt: []byte("salt")}
}

// forOSCORE makes a token one of the OSCORE profile.
func forOSCORE(c *cwt.Claims) {
	c.Profile = ProfileOSCORE
	c.Cnf = &cwt.Confirmation{OSCORE: oscMaterial()}
}

// forUpdate makes a token one that changes rights.
func forUpdate(c *cwt.Claims) {
	c.Profile = ProfileOSCORE
	c.Cnf = &cwt.Confirmation{KID: oscID}
}

func transfer(peer coap.Peer, t *groupcomm.TokenTransfer) *coap.Request {
	req := &coap.Request{Code: coap.POST, Payload: t.Encode(), Peer: peer}
	req.Options.SetContentFormat(coap.ACE)
	return req
}

// setup posts a token of the profile and returns what the server keeps then.
func (b *bench) setup(token []byte) *secure.Stored {
	b.t.Helper()
	ask := &groupcomm.TokenTransfer{AccessToken: token, Nonce1: []byte("nonce-1!"), ID1: []byte{0x16, 0x45}}
	answer, err := b.send(transfer(outside(), ask))
	if err != nil {
		b.t.Fatal(err)
	}
	if len(answer.Nonce2) != 8 || len(answer.ID2) != 4 || bytes.Equal(answer.ID2, ask.ID1) || len(answer.KDCChallenge) != 8 {
		b.t.Fatalf("answer %+v", answer)
	}
	c := b.context(answer.ID2)
	if !bytes.Equal(c.Nonce2, answer.Nonce2) || !bytes.Equal(c.Nonce1, ask.Nonce1) || !bytes.Equal(c.ID1, ask.ID1) || !bytes.Equal(c.ID2, answer.ID2) || !c.New() {
		b.t.Fatalf("stored %x %x %x %x", c.Nonce1, c.Nonce2, c.ID1, c.ID2)
	}
	return c
}

func (b *bench) context(kid []byte) *secure.Stored {
	b.t.Helper()
	c, err := b.Context(b.t.Context(), kid)
	if err != nil {
		b.t.Fatalf("context %x: %v", kid, err)
	}
	if many, err := b.Many(b.t.Context(), [][]byte{kid, []byte("nobody")}); err != nil || len(many) != 1 || !same(many[string(kid)], c) {
		b.t.Fatalf("context %x among many: %v, %v", kid, many, err)
	}
	return c
}

func same(a, b *secure.Stored) bool {
	return a.Link == b.Link && a.Subject == b.Subject && a.Reserved == b.Reserved && a.Epoch == b.Epoch && bytes.Equal(a.ID1, b.ID1) &&
		bytes.Equal(a.Nonce1, b.Nonce1) && bytes.Equal(a.Nonce2, b.Nonce2) && bytes.Equal(a.MasterSecret.Bytes(), b.MasterSecret.Bytes())
}

func (b *bench) take(c *secure.Stored, held bool) error { return b.Take(b.t.Context(), c, held) }

func (b *bench) none(what string, kid []byte) {
	b.t.Helper()
	if _, err := b.Context(b.t.Context(), kid); !errors.Is(err, secure.ErrNone) {
		b.t.Errorf("%s: %v", what, err)
	}
	if many, err := b.Many(b.t.Context(), [][]byte{kid}); err != nil || len(many) != 0 {
		b.t.Errorf("%s, among many: %v, %v", what, many, err)
	}
}

// BenchmarkContexts reads contexts as a start with many in use does, µs for each: one
// by one, and together.
func BenchmarkContexts(bb *testing.B) {
	b := newBench(bb)
	kids := make([][]byte, 4*contextsAtOnce)
	for i := range kids {
		c := b.setup(b.token(forOSCORE, func(c *cwt.Claims) {
			m := oscMaterial()
			m.ID = fmt.Appendf(nil, "material %d", i)
			c.Cnf = &cwt.Confirmation{OSCORE: m}
		}))
		if err := b.take(c, false); err != nil {
			bb.Fatal(err)
		}
		kids[i] = c.ID2
	}
	each := func(bb *testing.B, read func() int) {
		for bb.Loop() {
			if n := read(); n != len(kids) {
				bb.Fatalf("%d contexts of %d", n, len(kids))
			}
		}
		bb.ReportMetric(float64(bb.Elapsed().Microseconds())/float64(bb.N)/float64(len(kids)), "µs/context")
	}
	bb.Run("one by one", func(bb *testing.B) {
		each(bb, func() (n int) {
			for _, kid := range kids {
				if _, err := b.Context(bb.Context(), kid); err == nil {
					n++
				}
			}
			return n
		})
	})
	bb.Run("together", func(bb *testing.B) {
		each(bb, func() int {
			many, err := b.Many(bb.Context(), kids)
			if err != nil {
				bb.Fatal(err)
			}
			return len(many)
		})
	})
}

func over(c *secure.Stored) coap.Peer {
	return coap.Peer{Link: c.Link, Via: coap.OSCORE, Subject: c.Subject}
}

// RFC 9203, Section 4.2: what is refused.
func TestSetupRefused(t *testing.T) {
	good := groupcomm.TokenTransfer{Nonce1: []byte("nonce-1!"), ID1: []byte{1}}
	b := newBench(t)
	for i, c := range []struct {
		name  string
		token func(*cwt.Claims)
		alg   int64
		post  func(*groupcomm.TokenTransfer)
		want  coap.Code
	}{
		{name: "good", want: coap.Created},
		{name: "no identifier needed to be long", post: func(p *groupcomm.TokenTransfer) { p.ID1 = []byte{} }, want: coap.Created},
		{name: "no nonce1", post: func(p *groupcomm.TokenTransfer) { p.Nonce1 = nil }, want: coap.BadRequest},
		{name: "empty nonce1", post: func(p *groupcomm.TokenTransfer) { p.Nonce1 = []byte{} }, want: coap.BadRequest},
		{name: "long nonce1", post: func(p *groupcomm.TokenTransfer) { p.Nonce1 = make([]byte, 65) }, want: coap.BadRequest},
		{name: "no identifier", post: func(p *groupcomm.TokenTransfer) { p.ID1 = nil }, want: coap.BadRequest},
		{name: "long identifier", post: func(p *groupcomm.TokenTransfer) { p.ID1 = make([]byte, 8) }, want: coap.BadRequest},
		{name: "anybody can read it", alg: cose.AlgHMAC256, token: func(c *cwt.Claims) { c.Issuer = "as2" }, want: coap.BadRequest},
		{name: "signed", alg: cose.AlgEdDSA, token: func(c *cwt.Claims) { c.Issuer = "as3" }, want: coap.BadRequest},
		{name: "DTLS profile", token: func(c *cwt.Claims) { c.Profile = ProfileDTLS }, want: coap.BadRequest},
		{name: "profile not said", token: func(c *cwt.Claims) { c.Profile = 0 }, want: coap.Created},
		{name: "profile unknown", token: func(c *cwt.Claims) { c.Profile = 3 }, want: coap.BadRequest},
		{name: "key of the DTLS profile", token: func(c *cwt.Claims) { c.Cnf = claims().Cnf }, want: coap.BadRequest},
		{name: "other kid", token: func(c *cwt.Claims) { c.Cnf.KID = []byte("x") }, want: coap.BadRequest},
		{name: "material unknown", token: forUpdate, want: coap.BadRequest},
		{name: "expired", token: func(c *cwt.Claims) { c.Expires = 1 }, want: coap.Unauthorized},
		{name: "other audience", token: func(c *cwt.Claims) { c.Audience = []string{"x"} }, want: coap.Forbidden},
		{name: "no scope", token: func(c *cwt.Claims) { c.Scope = nil }, want: coap.BadRequest},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.alg == 0 {
				c.alg = cose.AlgAESCCM16_64_128
			}
			change := []func(*cwt.Claims){forOSCORE, func(c *cwt.Claims) { c.Cnf.OSCORE.ID = []byte{byte(i + 1)} }}
			if c.token != nil {
				change = append(change, c.token)
			}
			post := good
			post.AccessToken = b.seal(c.alg, claims(change...))
			if c.post != nil {
				c.post(&post)
			}
			before := b.dump()
			_, err := b.send(transfer(outside(), &post))
			if code(err) != c.want {
				t.Errorf("%v, want %v", err, c.want)
			}
			if (err != nil) != (b.dump() == before) {
				t.Error("state changed, or not")
			}
		})
	}
	t.Run("unknown parameter of osc", func(t *testing.T) {
		m, err := cose.DecodeMap(oscMaterial().Encode())
		if err != nil {
			t.Fatal(err)
		}
		m[7] = cose.MustMarshal(1)
		c, err := cose.DecodeMap(claims(forOSCORE).Encode())
		if err != nil {
			t.Fatal(err)
		}
		c[8] = cose.MustMarshal(map[int64]any{4: map[int64]cose.Item(m)})
		post := good
		post.AccessToken, err = cwt.Seal(cwt.Protection{Alg: cose.AlgAESCCM16_64_128, Key: encKey}, cose.MustMarshal(map[int64]cose.Item(c)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.send(transfer(outside(), &post)); code(err) != coap.BadRequest {
			t.Error(err)
		}
	})
}

// A token of the profile is of no use in a handshake, nor is the name under which
// its material is stored.
func TestSetupIsNoHandshake(t *testing.T) {
	b := newBench(t)
	token := b.token(forOSCORE)
	c := b.setup(token)
	for _, identity := range [][]byte{token, KIDIdentity(oscID), KIDIdentity(materialKID("as1"+originSeparator+"rs2", oscID))} {
		if key, err := b.PSK(t.Context(), identity); !errors.Is(err, ErrIdentity) || key != nil {
			t.Errorf("%x: %v", identity, err)
		}
		if subject, conveyed := b.Subject(identity); subject != (coap.Subject{}) && !conveyed {
			t.Errorf("%x: subject %v", identity, subject)
		}
	}
	if _, err := b.Conveyed(t.Context(), token, func(string, []byte, int) ([]byte, error) { return make([]byte, 32), nil }); !errors.Is(err, ErrIdentity) {
		t.Error(err)
	}
	// A token for handshakes that names the stored material does not get it.
	named := b.token(func(c *cwt.Claims) { c.Cnf = &cwt.Confirmation{KID: materialKID("as1"+originSeparator+"rs2", oscID)} })
	if _, err := b.post(outside(), named); code(err) != coap.BadRequest {
		t.Error(err)
	}
	// The kid of a pre-shared key may be the same as an identifier.
	b.mustPost(outside(), b.token(func(c *cwt.Claims) { c.Cnf.Key.KID = oscID }))
	if key, err := b.PSK(t.Context(), KIDIdentity(oscID)); err != nil || !bytes.Equal(key, popKey) {
		t.Error(err)
	}
	b.context(c.ID2)
}

// Posting a token again, by whomever, harms nobody: the context in use stays until
// a request with a newer one came.
func TestSetupAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		var dropped []coap.LinkID
		b.dropped = func(l []coap.LinkID) { dropped = append(dropped, l...) }
		token := b.token(forOSCORE, func(c *cwt.Claims) { c.Expires += 86400 })
		first := b.setup(token)
		if err := b.take(first, false); err != nil || first.Epoch != 1 {
			t.Fatal(first.Epoch, err)
		}
		var open []*secure.Stored
		for range 6 {
			time.Sleep(time.Second)
			open = append(open, b.setup(token))
		}
		for i, c := range open {
			if c.Link == first.Link || i > 0 && c.Link == open[i-1].Link {
				t.Error("two contexts have one link")
			}
			if i < 2 {
				b.none("pushed out", c.ID2)
			} else {
				b.context(c.ID2)
			}
		}
		if err := b.take(first, true); err != nil {
			t.Errorf("the context in use: %v", err)
		}
		// Ten minutes on only the newest is left.
		time.Sleep(11 * time.Minute)
		for _, c := range open[2:5] {
			b.none("timed out", c.ID2)
		}
		b.context(open[5].ID2)
		later := b.setup(token)
		b.none("not the newest any more", open[5].ID2)
		b.context(later.ID2)
		if dropped != nil {
			t.Errorf("dropped %v, and nobody used them", dropped)
		}
	})
}

// Contexts of before the clock was set back push out none that is made since, and give way
// to it.
func TestSetupClockSetBack(t *testing.T) {
	b := newBench(t)
	var dropped []coap.LinkID
	b.dropped = func(l []coap.LinkID) { dropped = append(dropped, l...) }
	token := b.token(forOSCORE)
	first := b.setup(token)
	if err := b.take(first, false); err != nil {
		t.Fatal(err)
	}
	for range openContexts {
		b.setup(token)
	}
	if err := b.store.Update(t.Context(), func(tx *store.Tx) error {
		_, err := tx.Exec(`UPDATE ace_contexts SET made = made + ?`, int64(365*24*time.Hour))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	next := b.setup(token)
	b.context(next.ID2)
	if err := b.take(next, false); err != nil {
		t.Fatal(err)
	}
	b.none("replaced", first.ID2)
	if !slices.Contains(dropped, first.Link) {
		t.Errorf("dropped %v, and not the one before", dropped)
	}
}

func TestSetupReplaces(t *testing.T) {
	b := newBench(t)
	var dropped []coap.LinkID
	b.dropped = func(l []coap.LinkID) { dropped = append(dropped, l...) }
	token := b.token(forOSCORE)
	first := b.setup(token)
	if err := b.take(first, false); err != nil {
		t.Fatal(err)
	}
	second, third := b.setup(token), b.setup(token)
	if err := b.take(second, false); err != nil {
		t.Fatal(err)
	}
	// The newer is proved: the older ones are gone, the one made since is not.
	if !slices.Equal(dropped, []coap.LinkID{first.Link}) {
		t.Errorf("dropped %v, want %v", dropped, first.Link)
	}
	b.none("replaced", first.ID2)
	if err := b.take(first, false); !errors.Is(err, secure.ErrTaken) {
		t.Errorf("take of what is gone: %v", err)
	}
	b.context(third.ID2)
	if b.grant(second.Subject).Subject != second.Subject {
		t.Error("grant of another")
	}
}

// Clients of the older dialects are told N2 and ID2 by the same labels.
func TestSetupLegacy(t *testing.T) {
	b := newBench(t)
	token := b.token(forOSCORE, func(c *cwt.Claims) { c.Scope = scopeOf(groupcomm.ScopeEntry{Group: "2020", Roles: 6}) })
	req := &coap.Request{Code: coap.POST, Peer: outside(), Payload: (&groupcomm.TokenTransfer{
		AccessToken: token, Nonce1: []byte("nonce-1!"), ID1: []byte{1}, WantLegacySignInfo: true,
	}).Encode()}
	req.Options.SetContentFormat(coap.LegacyACE)
	resp, err := b.AuthzInfo().ServeCoAP(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	m, err := cose.DecodeMap(resp.Payload)
	if err != nil {
		t.Fatal(err)
	}
	n2, _, err1 := m.Bytes(42)
	id2, _, err2 := m.Bytes(44)
	if err := errors.Join(err1, err2); err != nil || len(n2) != 8 || len(m) < 3 {
		t.Fatalf("%x: %v", resp.Payload, err)
	}
	if c := b.context(id2); !bytes.Equal(c.Nonce2, n2) {
		t.Error("another nonce is stored")
	}
}

// What is taken as it was read is taken by one.
func TestTakeContext(t *testing.T) {
	b := newBench(t)
	c := b.setup(b.token(forOSCORE))
	other := b.context(c.ID2)
	if err := b.take(c, false); err != nil {
		t.Fatal(err)
	}
	if err := b.take(other, false); !errors.Is(err, secure.ErrTaken) {
		t.Errorf("taken twice: %v", err)
	}
	if err := b.Reserve(t.Context(), c, 256); err != nil {
		t.Fatal(err)
	}
	if err := b.Reserve(t.Context(), other, 512); !errors.Is(err, secure.ErrTaken) {
		t.Errorf("reserve of another: %v", err)
	}
	after := b.reopen()
	next := after.context(c.ID2)
	if next.Reserved != 256 || next.Epoch != 1 || next.New() || next.Link != c.Link {
		t.Errorf("after a crash: reserved %d, epoch %d", next.Reserved, next.Epoch)
	}
	if err := after.take(next, false); err != nil || next.Epoch != 2 {
		t.Errorf("%d, %v", next.Epoch, err)
	}
	if err := after.Reserve(t.Context(), c, 512); !errors.Is(err, secure.ErrTaken) {
		t.Errorf("the one before reserves: %v", err)
	}
	if err := after.Reserve(t.Context(), next, 512); err != nil {
		t.Error(err)
	}
}

// RFC 9203, Section 4.2: new rights inside of OSCORE.
func TestUpdateRights(t *testing.T) {
	b := newBench(t)
	c := b.setup(b.token(forOSCORE))
	if err := b.take(c, false); err != nil {
		t.Fatal(err)
	}
	more := func(c *cwt.Claims) {
		c.IssuedAt++
		c.Scope = scopeOf(groupcomm.ScopeEntry{Group: "g2", Roles: 8})
	}
	other := *c
	other.Subject.ID = "other" + c.Subject.ID[5:]
	for _, r := range []struct {
		name  string
		peer  coap.Peer
		token []byte
	}{
		{"other identifier", over(c), b.token(forUpdate, more, func(c *cwt.Claims) { c.Cnf.KID = []byte("x") })},
		{"material again", over(c), b.token(forOSCORE, more)},
		{"key of the DTLS profile", over(c), b.token(more)},
		{"peer with other material", over(&other), b.token(forUpdate, more)},
		{"expired", over(c), b.token(forUpdate, more, func(c *cwt.Claims) { c.Expires = 1 })},
		{"other audience", over(c), b.token(forUpdate, more, func(c *cwt.Claims) { c.Audience = []string{"x"} })},
		{"other issuer", over(c), b.seal(cose.AlgHMAC256, claims(forUpdate, more, func(c *cwt.Claims) { c.Issuer = "as2" }))},
		{"no token", over(c), []byte{1}},
	} {
		before := b.dump()
		if _, err := b.send(transfer(r.peer, &groupcomm.TokenTransfer{AccessToken: r.token})); code(err) != coap.Unauthorized {
			t.Errorf("%s: %v", r.name, err)
		}
		if b.dump() != before {
			t.Errorf("%s: state changed", r.name)
		}
	}
	// Outside nobody knows whose that is.
	if _, err := b.post(outside(), b.token(forUpdate, more)); code(err) != coap.BadRequest {
		t.Errorf("outside: %v", err)
	}

	for i, update := range []func(*cwt.Claims){forUpdate, func(c *cwt.Claims) { c.Cnf = &cwt.Confirmation{KID: oscID} }} {
		token := b.token(more, update, func(c *cwt.Claims) {
			c.IssuedAt += int64(i)
			c.Scope = scopeOf(groupcomm.ScopeEntry{Group: "g2", Roles: groupcomm.Roles(8 << i)})
		})
		// Nonces and identifiers are ignored.
		req := transfer(over(c), &groupcomm.TokenTransfer{AccessToken: token, Nonce1: []byte{1}, ID1: make([]byte, 99)})
		resp, err := b.AuthzInfo().ServeCoAP(t.Context(), req)
		if err != nil || resp.Code != coap.Created || len(resp.Payload) != 0 {
			t.Fatalf("%v, %v", resp, err)
		}
		if g := b.grant(c.Subject); len(g.Scope) != 1 || g.Scope[0].Group != "g2" || g.Scope[0].Roles != groupcomm.Roles(8<<i) {
			t.Errorf("scope %v", g.Scope)
		}
	}
	if err := b.take(c, true); err != nil {
		t.Errorf("context after the update: %v", err)
	}
	// What a join needs to know is told when it is asked for.
	answer, err := b.send(transfer(over(c), &groupcomm.TokenTransfer{
		AccessToken: b.token(forUpdate, func(c *cwt.Claims) { c.IssuedAt += 9 }), WantSignInfo: true,
	}))
	if err != nil || len(answer.SignInfo) != 1 || answer.Nonce2 != nil || answer.ID2 != nil {
		t.Fatalf("%+v, %v", answer, err)
	}
	if !has(b.grant(c.Subject).Challenges, answer.KDCChallenge) {
		t.Error("challenge is not valid")
	}
}

// The context ends with its token.
func TestContextEnds(t *testing.T) {
	for name, end := range map[string]func(b *bench, token []byte){
		"expired": func(b *bench, _ []byte) { time.Sleep(time.Hour + time.Second); synctest.Wait() },
		"revoked": func(b *bench, token []byte) {
			if err := b.Revoke(b.t.Context(), cwt.Hash(token)); err != nil {
				b.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				var dropped []coap.LinkID
				b.dropped = func(l []coap.LinkID) { dropped = append(dropped, l...) }
				r := run(t, b)
				token := b.token(forOSCORE)
				c, open := b.setup(token), (*secure.Stored)(nil)
				if err := b.take(c, false); err != nil {
					t.Fatal(err)
				}
				open = b.setup(token)
				end(b, token)
				b.none("in use", c.ID2)
				b.none("open", open.ID2)
				if err := b.take(c, true); !errors.Is(err, secure.ErrNone) {
					t.Errorf("held: %v", err)
				}
				if !slices.Contains(dropped, c.Link) || !slices.Contains(dropped, open.Link) {
					t.Errorf("dropped %v", dropped)
				}
				if seen := r.seen(); len(seen) < 2 {
					t.Errorf("events %v", seen)
				}
			})
		})
	}
}

// A token that was posted by who knows whom comes in force with the first request
// of the context that was made with it.
func TestWaitingTokenOfMaterial(t *testing.T) {
	b := newBench(t)
	c := b.setup(b.token(forOSCORE))
	if err := b.take(c, false); err != nil {
		t.Fatal(err)
	}
	newer := b.setup(b.token(forOSCORE, func(c *cwt.Claims) {
		c.IssuedAt++
		c.Scope = scopeOf(groupcomm.ScopeEntry{Group: "g2", Roles: 8})
	}))
	if g := b.grant(c.Subject); g.Scope[0].Group != "g1" {
		t.Errorf("in force too early: %v", g.Scope)
	}
	if err := b.take(newer, false); err != nil {
		t.Fatal(err)
	}
	if g := b.grant(c.Subject); g.Scope[0].Group != "g2" {
		t.Errorf("not in force: %v", g.Scope)
	}
}

// The embedded Authorization Server and its OSCORE profile.
func TestTokenOSCORE(t *testing.T) {
	b := newBench(t)
	ask := func(fields map[int64]any) (token []byte, m *oscore.Material, err error) {
		t.Helper()
		resp, err := b.Token().ServeCoAP(t.Context(), tokenReq(fields))
		if err != nil {
			return nil, nil, err
		}
		body, err := cose.DecodeMap(resp.Payload)
		if err != nil {
			t.Fatal(err)
		}
		if p, _, _ := body.Int(38); p != ProfileOSCORE {
			t.Errorf("profile %d", p)
		}
		token, _, _ = body.Bytes(1)
		if body.Has(8) {
			cnf, err := cwt.DecodeConfirmation(body[8])
			if err != nil || cnf.OSCORE == nil {
				t.Fatalf("cnf: %v", err)
			}
			m = cnf.OSCORE
		}
		return token, m, nil
	}
	token, m, err := ask(map[int64]any{38: ProfileOSCORE})
	if err != nil {
		t.Fatal(err)
	}
	if len(m.ID) != 8 || len(m.MasterSecret.Bytes()) != 16 || len(m.Salt) != 16 {
		t.Errorf("id of %d, salt of %d bytes", len(m.ID), len(m.Salt))
	}
	c := b.setup(token)
	if !bytes.Equal(c.Material.Encode(), m.Encode()) {
		t.Error("client and server have different material")
	}
	if err := b.take(c, false); err != nil {
		t.Fatal(err)
	}
	// Other rights for the same material: it is named, not sent.
	update, none, err := ask(map[int64]any{38: ProfileOSCORE, 4: map[int64]any{3: m.ID}, 9: wanted(groupcomm.ScopeEntry{Group: "g2", Roles: 8})})
	if err != nil || none != nil {
		t.Fatal(none, err)
	}
	resp, err := b.AuthzInfo().ServeCoAP(t.Context(), transfer(over(c), &groupcomm.TokenTransfer{AccessToken: update}))
	if err != nil || resp.Code != coap.Created {
		t.Fatal(resp, err)
	}
	if g := b.grant(c.Subject); len(g.Scope) != 1 || g.Scope[0].Group != "g2" {
		t.Errorf("scope %v", g.Scope)
	}
	// Material of one profile is no key of the other.
	dtls := b.ask(tokenReq(map[int64]any{38: ProfileDTLS}))
	for _, fields := range []map[int64]any{
		{38: ProfileOSCORE, 4: map[int64]any{3: dtls.kid}},
		{4: map[int64]any{3: m.ID}},
	} {
		if _, _, err := ask(fields); err == nil {
			t.Errorf("%v: issued", fields)
		} else if code, id := oauth(err); code != coap.BadRequest || id != int64(unsupportedPoPKey) {
			t.Errorf("%v: %v", fields, err)
		}
	}
	for what, want := range map[int64]int64{0: 0, ProfileDTLS: int64(incompatibleProfiles), ProfileOSCORE: 0} {
		b := newBench(t, func(c *Config) { c.AS.Policies[0].Profile = ProfileOSCORE })
		fields := map[int64]any{}
		if what != 0 {
			fields[38] = what
		}
		_, err := b.Token().ServeCoAP(t.Context(), tokenReq(fields))
		if _, id := oauth(err); err != nil && id != want || err == nil && want != 0 {
			t.Errorf("policy for OSCORE, asked for %d: %v", what, err)
		}
	}
}

func TestProfileFaults(t *testing.T) {
	cfg := testConfig(testSigner(t))
	p := cfg.AS.Policies[0]
	p.Profile = ProfileOSCORE
	cfg.AS.Policies = append(cfg.AS.Policies, p)
	if err := cfg.Validate(); err == nil {
		t.Error("two profiles for one client and audience")
	}
	cfg.AS.Policies = cfg.AS.Policies[1:]
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
	cfg.AS.Policies[0].Profile = 3
	if err := cfg.Validate(); err == nil {
		t.Error("profile 3")
	}
}

// A disabled node loses its contexts.
func TestDisabledNodeOSCORE(t *testing.T) {
	b := newBench(t)
	_, err := b.Enroll(t.Context(), []Node{{Identity: "meter", Key: cose.NewSecret(popKey), Scope: groupcomm.Scope{{Group: "g1", Roles: 6}}}},
		EnrollOptions{Audience: "rs2", Lifetime: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	n, err := b.enrolledNode(t.Context(), "meter")
	if err != nil {
		t.Fatal(err)
	}
	req := tokenReq(map[int64]any{38: ProfileOSCORE})
	req.Peer = inside(n.subject())
	resp, err := b.Token().ServeCoAP(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := cose.DecodeMap(resp.Payload)
	if err != nil {
		t.Fatal(err)
	}
	token, _, _ := body.Bytes(1)
	c := b.setup(token)
	if err := b.take(c, false); err != nil {
		t.Fatal(err)
	}
	if n, err := b.DisableNodes(t.Context(), []string{"meter"}); err != nil || n != 1 {
		t.Fatal(err)
	}
	b.none("disabled", c.ID2)
	again := &groupcomm.TokenTransfer{AccessToken: token, Nonce1: []byte("nonce-1!"), ID1: []byte{1}}
	if _, err := b.send(transfer(outside(), again)); code(err) != coap.Unauthorized {
		t.Errorf("token of a disabled node: %v", err)
	}
}

// The hints for a peer of the profile name its material.
func TestUnauthorizedNamesMaterial(t *testing.T) {
	s := popSubject("x", oscID, oscSecret)
	s.Kind = coap.SubjectOSCORE
	if got := subjectKID(s); !bytes.Equal(got, oscID) {
		t.Errorf("%x", got)
	}
	if got := logKID(s); got != fmt.Sprintf("%x", oscID) {
		t.Error(got)
	}
}
