package ace

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/ace/cwt"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

func exporterOf(t *testing.T, fill byte) func(string, []byte, int) ([]byte, error) {
	return func(label string, context []byte, n int) ([]byte, error) {
		if label != "EXPORTER-ACE-Pop-Input-coap-group-oscore-app" || context == nil || len(context) != 0 || n != 32 {
			t.Errorf("exporter asked for %q, %v, %d", label, context, n)
		}
		return bytes.Repeat([]byte{fill}, n), nil
	}
}

func TestPSKOrder(t *testing.T) {
	b := newBench(t)
	if _, err := b.PSK(t.Context(), KIDIdentity(popKID)); !errors.Is(err, ErrIdentity) {
		t.Errorf("unknown kid: %v", err)
	}
	b.mustPost(outside(), b.token())
	key, err := b.PSK(t.Context(), KIDIdentity(popKID))
	if err != nil || !bytes.Equal(key, popKey) {
		t.Errorf("a token posted now does not work now: %v", err)
	}
	if key, err := b.PSK(t.Context(), []byte("clientF")); err != nil || !bytes.Equal(key, popKey) {
		t.Errorf("configured: %v", err)
	}
	if s, conveyed := b.Subject([]byte("clientF")); conveyed || s != (coap.Subject{Kind: coap.SubjectPSK, ID: "clientF"}) {
		t.Errorf("configured: %v, %v", s, conveyed)
	}
	for _, id := range [][]byte{nil, []byte("nobody"), append(KIDIdentity(popKID), 0), {0xa0}} {
		if _, err := b.PSK(t.Context(), id); !errors.Is(err, ErrIdentity) {
			t.Errorf("identity %x: %v", id, err)
		}
	}
	// What a configured peer proved is no right to join.
	if _, err := b.Grant(t.Context(), inside(coap.Subject{Kind: coap.SubjectPSK, ID: "clientF"})); code(err) != coap.Unauthorized {
		t.Errorf("grant: %v", err)
	}
}

func TestConveyed(t *testing.T) {
	b := newBench(t)
	token := b.token()
	before := b.dump()
	key, err := b.PSK(t.Context(), token)
	if err != nil || !bytes.Equal(key, popKey) {
		t.Fatalf("PSK: %v", err)
	}
	if b.dump() != before {
		t.Error("a handshake that is not finished changed something")
	}
	if _, conveyed := b.Subject(token); !conveyed {
		t.Fatal("identity is a token")
	}
	failing := func(string, []byte, int) ([]byte, error) { return nil, errors.New("no secrets") }
	if _, err := b.Conveyed(t.Context(), token, failing); err == nil || b.dump() != before {
		t.Errorf("without exporter: %v", err)
	}
	s, err := b.Conveyed(t.Context(), token, exporterOf(t, 1))
	if err != nil {
		t.Fatal(err)
	}
	one := bytes.Repeat([]byte{1}, 32)
	if g := b.grant(s); !g.Exported || len(g.Challenges) != 1 || !has(g.Challenges, one) {
		t.Errorf("exported %v, %d challenges", g.Exported, len(g.Challenges))
	}

	// Later sessions by kid keep it, also after a restart.
	b = b.reopen()
	if again := b.handshake(popKID); again != s {
		t.Error("another subject by kid")
	}
	b.mustPost(outside(), token)
	if g := b.grant(s); !g.Exported || !has(g.Challenges, one) {
		t.Error("exporter value is gone")
	}

	// A new handshake with the token has a new value.
	if _, err := b.Conveyed(t.Context(), token, exporterOf(t, 2)); err != nil {
		t.Fatal(err)
	}
	if g := b.grant(s); has(g.Challenges, one) || !has(g.Challenges, bytes.Repeat([]byte{2}, 32)) {
		t.Error("not the value of the newest handshake")
	}

	ns, err := b.NewChallenge(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if g := b.grant(s); g.Exported || len(g.Challenges) != 1 || !has(g.Challenges, ns) {
		t.Errorf("a challenge does not replace the exporter value")
	}
}

func TestConveyedReplaces(t *testing.T) {
	b := newBench(t)
	b.mustPost(outside(), b.token())
	s := b.handshake(popKID)
	later := b.token(func(c *cwt.Claims) {
		c.IssuedAt++
		c.Scope = scopeOf(groupcomm.ScopeEntry{Group: "g2", Roles: 2})
	})
	if again, err := b.Conveyed(t.Context(), later, exporterOf(t, 1)); err != nil || again != s {
		t.Fatalf("%v", err)
	}
	if g := b.grant(s); g.Scope[0].Group != "g2" {
		t.Error("the key was just proved, but its token waits")
	}
	// One issued earlier proves the key and changes nothing else.
	earlier := b.token(func(c *cwt.Claims) { c.IssuedAt -= 100 })
	if again, err := b.Conveyed(t.Context(), earlier, exporterOf(t, 2)); err != nil || again != s {
		t.Fatalf("%v", err)
	}
	if g := b.grant(s); g.Scope[0].Group != "g2" {
		t.Error("an earlier token replaced the one in force")
	}
}

func TestPublicKeyIsNoPSK(t *testing.T) {
	b := newBench(t)
	c := claims(func(c *cwt.Claims) { c.Issuer, c.Cnf = "as3", &cwt.Confirmation{Key: b.signer.Public()} })
	token := b.seal(cose.AlgEdDSA, c)
	b.mustPost(outside(), token)
	if _, err := b.PSK(t.Context(), token); !errors.Is(err, ErrIdentity) {
		t.Errorf("PSK: %v", err)
	}
	if _, err := b.Conveyed(t.Context(), token, exporterOf(t, 1)); err == nil {
		t.Error("conveyed")
	}
	v, err := b.verify(t.Context(), token, time.Now())
	if err != nil || v.subject.Kind != coap.SubjectKeyHash || len(v.subject.ID) != 32 {
		t.Fatalf("subject: %v", err)
	}
	b.grant(v.subject)
}

func TestGrantHints(t *testing.T) {
	b := newBench(t)
	b.mustPost(outside(), b.token())
	s := b.handshake(popKID)
	unknown := coap.Subject{Kind: coap.SubjectPoP, ID: s.ID + "x"}
	plain := inside(s)
	plain.Via = coap.Plain
	for name, c := range map[string]struct {
		peer coap.Peer
		kid  bool
	}{
		"no subject":       {outside(), false},
		"subject by plain": {plain, false},
		"unknown key":      {inside(unknown), true},
	} {
		_, err := b.Grant(t.Context(), c.peer)
		resp := coap.ErrorResponse(err)
		m, mapErr := cose.DecodeMap(resp.Payload)
		format, _ := resp.Options.ContentFormat()
		if resp.Code != coap.Unauthorized || format != coap.ACE || mapErr != nil {
			t.Fatalf("%s: %v in format %d", name, resp.Code, format)
		}
		uri, _, _ := m.Text(1)
		aud, _, _ := m.Text(5)
		if uri != "coaps://as.example.com/token" || aud != "rs2" || m.Has(2) != c.kid {
			t.Errorf("%s: hints %x", name, resp.Payload)
		}
	}
	b = newBench(t, func(c *Config) { c.ASURI = "" })
	if _, err := b.Grant(t.Context(), outside()); code(err) != coap.Unauthorized {
		t.Errorf("without hints: %v", err)
	}
}

// Property: what reads as a kid identity names a kid of a possible length,
// encodes to what reads the same, and never is a token.
func FuzzIdentity(f *testing.F) {
	f.Add(KIDIdentity(popKID))
	f.Add(unhex(f, "a108a101a2024101"+"0104"))
	f.Add(unhex(f, "a108a101a301040241010341"))
	f.Add([]byte("clientF"))
	b := newBench(f)
	f.Add(b.token())
	f.Fuzz(func(t *testing.T, id []byte) {
		kid, ok := kidIdentity(id)
		if ok {
			again, ok := kidIdentity(KIDIdentity(kid))
			if !ok || !bytes.Equal(kid, again) || len(kid) == 0 || len(kid) > cwt.MaxKID {
				t.Fatalf("kid %x", kid)
			}
			if _, err := cwt.Parse(id); err == nil {
				t.Fatal("a token, too")
			}
		}
		key, err := b.PSK(context.Background(), id)
		if (err == nil) != (len(key) > 0) {
			t.Fatalf("%d bytes of key, %v", len(key), err)
		}
	})
}

func BenchmarkGrant(b *testing.B) {
	h := newBench(b)
	h.mustPost(outside(), h.token())
	peer := inside(h.handshake(popKID))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := h.Grant(b.Context(), peer); err != nil {
			b.Fatal(err)
		}
	}
}
