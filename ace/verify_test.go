package ace

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"

	"github.com/seed4911071e/groupgate/ace/cwt"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// RFC 9200, Section 5.10.1.1, in the order and with the codes decided for this
// project; nothing that is refused leaves a trace.
func TestVerification(t *testing.T) {
	b := newBench(t)
	pub, err := cose.GenerateKey(cose.AlgES256)
	if err != nil {
		t.Fatal(err)
	}
	x25519, err := cose.GenerateDHKey(cose.CrvX25519)
	if err != nil {
		t.Fatal(err)
	}
	sealedKey, err := cwt.SealKey(&cose.Key{Kty: cose.KtySymmetric, KID: []byte("sealed"), K: popKey}, kekKey)
	if err != nil {
		t.Fatal(err)
	}
	good := b.token()
	tampered := bytes.Clone(good)
	tampered[len(tampered)-1] ^= 1
	forged, err := cwt.Seal(cwt.Protection{Alg: 10, Key: bytes.Repeat([]byte{1}, 16)}, claims().Encode())
	if err != nil {
		t.Fatal(err)
	}
	// A token MACed with a key of ours that serves encryption.
	crossed, err := cwt.Seal(cwt.Protection{Alg: cose.AlgHMAC256, Key: encKey}, claims().Encode())
	if err != nil {
		t.Fatal(err)
	}
	raw := func(claims []byte) []byte {
		token, err := cwt.Seal(cwt.Protection{Alg: 10, Key: encKey}, claims)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	mac := func(change ...func(*cwt.Claims)) []byte {
		c := claims(change...)
		c.Issuer = "as2"
		return b.seal(cose.AlgHMAC256, c)
	}
	sign := func(change ...func(*cwt.Claims)) []byte {
		c := claims(change...)
		c.Issuer = "as3"
		return b.seal(cose.AlgEdDSA, c)
	}
	cnf := func(c *cwt.Confirmation) func(*cwt.Claims) { return func(x *cwt.Claims) { x.Cnf = c } }
	scope := func(h string) func(*cwt.Claims) { return func(x *cwt.Claims) { x.Scope = unhex(t, h) } }
	named := func(kid string) *cwt.Confirmation {
		return &cwt.Confirmation{Key: &cose.Key{Kty: cose.KtySymmetric, KID: []byte(kid)}}
	}

	for _, c := range []struct {
		name  string
		token []byte
		want  coap.Code
	}{
		{"garbage", []byte("garbage"), coap.BadRequest},
		{"truncated", good[:len(good)-1], coap.BadRequest},
		{"oversized", make([]byte, cwt.MaxToken+1), coap.RequestEntityTooLarge},
		{"tampered", tampered, coap.Unauthorized},
		{"forged", forged, coap.Unauthorized},
		{"key of another algorithm", crossed, coap.Unauthorized},
		{"unknown algorithm", unhex(t, "8343a10101a1054c0000000000000000000000004100"), coap.Unauthorized},
		{"claims are no map", raw([]byte{0x80}), coap.BadRequest},
		{"claim of a wrong type", raw(unhex(t, "a10105")), coap.BadRequest},
		{"other issuer", b.token(func(c *cwt.Claims) { c.Issuer = "as2" }), coap.Unauthorized},
		{"issuer before expiry", b.token(func(c *cwt.Claims) { c.Issuer, c.Audience = "as2", nil }), coap.Unauthorized},
		{"expired", b.token(func(c *cwt.Claims) { c.Expires = c.IssuedAt }), coap.Unauthorized},
		{"not valid yet", b.token(func(c *cwt.Claims) { c.NotBefore = c.IssuedAt + 60 }), coap.Unauthorized},
		{"expiry before audience", b.token(func(c *cwt.Claims) { c.Expires, c.Audience = 1, nil }), coap.Unauthorized},
		{"other audience", b.token(func(c *cwt.Claims) { c.Audience = []string{"rs1"} }), coap.Forbidden},
		{"no audience", b.token(func(c *cwt.Claims) { c.Audience = nil }), coap.Forbidden},
		{"audience before scope", b.token(func(c *cwt.Claims) { c.Audience, c.Scope = nil, nil }), coap.Forbidden},
		{"no scope", b.token(func(c *cwt.Claims) { c.Scope = nil }), coap.BadRequest},
		{"textual scope", b.token(scope("62" + "6731")), coap.BadRequest},
		{"unknown tag", b.token(scope("da6374022c46818262673108")), coap.BadRequest},
		{"only admin entries", b.token(scope("458182f5181f")), coap.BadRequest},
		{"only unknown roles", b.token(scope("4781826267311820")), coap.BadRequest},
		{"empty scope", b.token(scope("4180")), coap.BadRequest},
		{"other profile", b.token(func(c *cwt.Claims) { c.Profile = 2 }), coap.BadRequest},
		{"no cnf", b.token(cnf(nil)), coap.BadRequest},
		{"empty cnf", b.token(cnf(&cwt.Confirmation{KID: []byte{}})), coap.BadRequest},
		{"key without kid", b.token(cnf(&cwt.Confirmation{Key: &cose.Key{Kty: 4, K: popKey}})), coap.BadRequest},
		{"short key", b.token(cnf(&cwt.Confirmation{Key: &cose.Key{Kty: 4, KID: popKID, K: popKey[:8]}})), coap.BadRequest},
		{"key that cannot sign", b.token(cnf(&cwt.Confirmation{Key: x25519.Public()})), coap.BadRequest},
		{"private key", b.token(cnf(&cwt.Confirmation{Key: pub})), coap.BadRequest},
		{"encrypted under another key", b.token(cnf(&cwt.Confirmation{Encrypted: sealedKey})), coap.BadRequest},
		{"clear key in Mac0", mac(), coap.BadRequest},
		{"clear key in Sign1", sign(), coap.BadRequest},
		{"named key, nothing to derive it from", mac(cnf(named("x"))), coap.BadRequest},
		{"exi without cti", b.token(func(c *cwt.Claims) { c.ExpiresIn = 60 }), coap.BadRequest},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := b.dump()
			_, err := b.post(outside(), c.token)
			if code(err) != c.want {
				t.Errorf("%v, want %v", err, c.want)
			}
			if b.dump() != before {
				t.Error("state changed")
			}
			if _, err := b.PSK(t.Context(), c.token); err == nil {
				t.Error("accepted as psk_identity")
			}
		})
	}

	for _, c := range []struct {
		name  string
		token []byte
	}{
		{"all in Encrypt0", good},
		{"without issuer and expiry", b.token(func(c *cwt.Claims) { c.Issuer, c.Expires = "", 0 })},
		{"several audiences", b.token(func(c *cwt.Claims) { c.Audience = []string{"x", "rs2"} })},
		{"tagged scope", b.token(scope("da6374022b46818262673108"))},
		{"user and admin entries", b.token(scope("4b8282626731068262673105"))},
		{"encrypted key in Encrypt0", b.token(func(c *cwt.Claims) {
			enc, err := cwt.SealKey(&cose.Key{Kty: 4, KID: []byte("sealed0"), K: popKey}, encKey)
			if err != nil {
				t.Fatal(err)
			}
			c.Cnf = &cwt.Confirmation{Encrypted: enc}
		})},
		{"encrypted key in Mac0", mac(cnf(&cwt.Confirmation{Encrypted: sealedKey}))},
		{"derived key in Sign1", sign(cnf(named("derived1")))},
		{"derived key by cnf kid", sign(cnf(&cwt.Confirmation{KID: []byte("derived2")}))},
		{"public key in Sign1", sign(cnf(&cwt.Confirmation{Key: pub.Public()}))},
		{"public key in Mac0", mac(cnf(&cwt.Confirmation{Key: b.signer.Public()}))},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := b.post(outside(), c.token); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestScopeVectors(t *testing.T) {
	raw, err := os.ReadFile("testdata/scopes.json")
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		Scopes []struct {
			Name   string `json:"name"`
			AIF    string `json:"aif_cbor"`
			Plain  string `json:"scope_as_bstr"`
			Tagged string `json:"extended_scope_claim_tagged"`
		} `json:"token_or_authz_request_scopes"`
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{ // where not all entries are ours
		"admin List+Create+Read+Write+Delete on any group": "",
		"admin List+Read+Write on literal g1":              "",
		"admin all on I-Regexp pattern":                    "",
		"mixed: user entry + admin entry":                  "818262673106",
	}
	for _, s := range v.Scopes {
		kept, special := want[s.Name]
		if !special {
			kept = s.AIF
		}
		for _, form := range []string{s.Plain, s.Tagged} {
			got, err := usableScope(unhex(t, form))
			if hex.EncodeToString(got) != kept || (err != nil) != (kept == "") {
				t.Errorf("%s: kept %x, %v", s.Name, got, err)
			}
		}
	}
}

// RFC 9202, Section 3.3.1.
func TestDerivedKeyVector(t *testing.T) {
	v := vector(t, "rfc9202-psk.json")
	got, err := deriveKey(unhex(t, v["kdk"]), unhex(t, v["access_token"]))
	if err != nil || hex.EncodeToString(got) != v["derived_psk"] {
		t.Errorf("derived %x, %v", got, err)
	}
	kid, ok := kidIdentity(unhex(t, v["psk_identity_kid_form"]))
	if !ok || hex.EncodeToString(kid) != v["kid"] {
		t.Errorf("kid %x", kid)
	}
	if got := hex.EncodeToString(KIDIdentity(kid)); got != v["psk_identity_kid_form"] {
		t.Errorf("identity %s", got)
	}
	if _, ok := kidIdentity(unhex(t, v["psk_identity_token_form"])); ok {
		t.Error("a token reads as kid")
	}
}

func TestDerivedKey(t *testing.T) {
	b := newBench(t)
	c := claims()
	c.Issuer, c.Cnf = "as3", &cwt.Confirmation{KID: popKID}
	token := b.seal(cose.AlgEdDSA, c)
	altered := token[2:] // without the CWT tag: other bytes, other key
	b.mustPost(outside(), altered)
	b.mustPost(outside(), token)
	want, err := deriveKey(kdkKey, token)
	if err != nil {
		t.Fatal(err)
	}
	got, err := b.PSK(t.Context(), KIDIdentity(popKID))
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("another key than the owner's: %v", err)
	}
	subject := b.handshake(popKID)
	b.mustPost(outside(), altered)
	if got, err := b.PSK(t.Context(), KIDIdentity(popKID)); err != nil || !bytes.Equal(got, want) {
		t.Errorf("a proved key was exchanged: %v", err)
	}
	// RFC 9202, Section 4: a token for the same kid keeps the key.
	c.IssuedAt++
	c.Scope = scopeOf(groupcomm.ScopeEntry{Group: "g2", Roles: 2})
	b.mustPost(inside(subject), b.seal(cose.AlgEdDSA, c))
	if got, err := b.PSK(t.Context(), KIDIdentity(popKID)); err != nil || !bytes.Equal(got, want) {
		t.Errorf("renewal exchanged the key: %v", err)
	}
	if g := b.grant(subject); g.Scope[0].Group != "g2" {
		t.Errorf("scope %v", g.Scope)
	}
}

func TestKIDCollision(t *testing.T) {
	b := newBench(t)
	b.mustPost(outside(), b.token())
	before := b.dump()
	other := b.token(func(c *cwt.Claims) { c.Cnf.Key.K = bytes.Repeat([]byte{7}, 16) })
	if _, err := b.post(outside(), other); code(err) != coap.BadRequest {
		t.Errorf("another key: %v", err)
	}
	c := claims()
	c.Issuer, c.Cnf = "as3", &cwt.Confirmation{KID: popKID}
	if _, err := b.post(outside(), b.seal(cose.AlgEdDSA, c)); code(err) != coap.BadRequest {
		t.Errorf("another issuer: %v", err)
	}
	if b.dump() != before {
		t.Error("state changed")
	}
}

func TestRevoked(t *testing.T) {
	b := newBench(t)
	token := b.token()
	b.mustPost(outside(), token)
	subject := b.handshake(popKID)
	b.grant(subject)
	if err := b.Revoke(t.Context(), cwt.Hash(token)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Grant(t.Context(), inside(subject)); code(err) != coap.Unauthorized {
		t.Errorf("grant of a revoked token: %v", err)
	}
	b = b.reopen()
	for _, form := range [][]byte{token, token[2:]} {
		if _, err := b.post(outside(), form); code(err) != coap.Unauthorized {
			t.Errorf("revoked token: %v", err)
		}
	}
}
