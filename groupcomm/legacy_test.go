package groupcomm

import (
	"bytes"
	"encoding/hex"
	"reflect"
	"testing"

	"github.com/seed4911071e/groupgate/cose"
)

// in gives the decoder of one dialect.
func in[T any](d Interface, decode func(Interface, []byte) (T, error)) func([]byte) (T, error) {
	return func(b []byte) (T, error) { return decode(d, b) }
}

func policyEncoder(d Interface) func(*Policies) []byte {
	return func(p *Policies) []byte { return EncodeLegacyPolicies(d, p) }
}

// legacyKeys are public keys of the interoperability tests.
func legacyKeys() []LegacyPubKey {
	x := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			panic(err)
		}
		return b
	}
	return []LegacyPubKey{
		{SenderID{}, &cose.Key{Kty: cose.KtyOKP, Crv: cose.CrvEd25519, X: x("CE616F28426EF24EDB51DBCEF7A23305F886F657959D4DF889DDFC0255042159")}},
		{SenderID{0x51}, &cose.Key{Kty: cose.KtyEC2, Crv: cose.CrvP256,
			X: x("1ADB2AB6AF48F17C9877CF77DB4FA39DC0923FBE215E576FE6F790B1FF2CBC96"),
			Y: x("64CE3DD128CC4EFA6DE209BE8ABD111C7272F612C2DB654057B6EC00FBFB0684")}},
	}
}

// legacyCodecs lists the decoders whose messages differ with the dialect.
func legacyCodecs(d Interface) []codec {
	sign := testGroup.LegacySignInfo()
	es := LegacySignInfo{Groups: []string{"a", "b"}, Alg: -7, Kty: 2, Crv: 1}
	all, some := &GetCreds{All: true}, &GetCreds{Inclusion: true, IDs: []SenderID{{}, {1, 2}}}
	info := &LegacyInfo{Dialect: d, Challenge: []byte("8 bytes."), SignInfo: []LegacySignInfo{sign}, PubKeyEnc: 1}
	policies := &Policies{KeyCheck: 3600}
	if d == Draft03 {
		sign.Groups, es.Groups = nil, nil
	} else {
		some.Roles = []Roles{Requester, Requester | Responder}
		info.SignInfo = append(info.SignInfo, es)
		policies.ExpirationDelta = 7
	}
	key := LegacyKey{MasterSecret: []byte{1}, ClientID: SenderID{}, HKDF: 5, Alg: 10, Salt: []byte{}, ContextID: Gid{2}, Sign: es}
	key.Sign.Groups = nil
	keys := &LegacyPubKeys{Dialect: d, PubKeys: legacyKeys()}
	dist := &LegacyKeyDistribution{
		Dialect: d, Key: key, Num: 7, Exp: 1924992000, PubKeys: legacyKeys(), Policies: policies,
	}
	if d != Draft03 {
		keys.PeerRoles = []Roles{2, 6}
		dist.PeerRoles = []Roles{2, 6}
	}
	name := " " + d.String()
	return []codec{
		{"LegacyInfo" + name, []any{
			&LegacyInfo{Dialect: d}, info, &LegacyInfo{Dialect: d, SignInfo: []LegacySignInfo{{Groups: []string{"g"}, Alg: -8}}},
		}, recode(in(d, DecodeLegacyInfo))},
		{"LegacyPolicies" + name, []any{EncodeLegacyPolicies(d, policies)}, recodeWith(DecodeLegacyPolicies, policyEncoder(d))},
		{"LegacyJoinRequest" + name, []any{
			&LegacyJoinRequest{Dialect: d, Scope: []byte{0x80}},
			&LegacyJoinRequest{Dialect: d, Scope: []byte{}, GetPubKeys: all, ClientCred: []byte{}, CNonce: []byte{}, ClientCredVerify: []byte{}},
		}, recode(in(d, DecodeLegacyJoinRequest))},
		{"LegacyPubKeyRequest" + name, []any{EncodeLegacyPubKeyRequest(d, some)},
			recodeWith(in(d, DecodeLegacyPubKeyRequest), func(q *GetCreds) []byte { return EncodeLegacyPubKeyRequest(d, q) })},
		{"LegacyPubKeys" + name, []any{&LegacyPubKeys{Dialect: d}, keys}, recode(in(d, DecodeLegacyPubKeys))},
		{"LegacyKeyDistribution" + name, []any{
			dist, &LegacyKeyDistribution{Dialect: d, Key: LegacyKey{MasterSecret: []byte{1}, ContextID: Gid{2}}, PubKeys: []LegacyPubKey{}},
		}, recode(in(d, DecodeLegacyKeyDistribution))},
	}
}

// TestLegacyMessages compares with messages that another encoder made.
func TestLegacyMessages(t *testing.T) {
	var want map[string]string
	readVectors(t, "legacy-messages.json", &want)
	delete(want, "origin")
	keys := legacyKeys()[:1]
	keys[0].SenderID = SenderID{0x0a}
	for _, d := range []Interface{Draft03, Hackathon109} {
		sign := testGroup.LegacySignInfo()
		enc := PubKeyEncCOSEKey
		var roles []Roles
		if d != Draft03 {
			enc, roles = 0, []Roles{Requester}
		}
		scope := EncodeLegacyScope(d, ScopeEntry{"g1", Requester | Responder})
		cred := keys[0].Key.Encode()
		rekey := &LegacyKeyDistribution{Dialect: d, Num: 1, Exp: 1924992000, Key: LegacyKey{
			MasterSecret: unhex(t, "11223344556677889900aabbccddeeff"), Salt: unhex(t, "1f2e3d4c5b6a7081"), ContextID: unhex(t, "dd11"),
		}}
		joined := *rekey
		joined.Num = 0
		joined.Key.ClientID, joined.Key.HKDF, joined.Key.Alg, joined.Key.Sign = SenderID{0x51}, 5, 10, sign
		joined.PubKeys, joined.PeerRoles, joined.Policies = keys, roles, &Policies{KeyCheck: 3600}
		got := map[string][]byte{
			"token_response": (&LegacyInfo{Dialect: d, Challenge: unhex(t, "018a278f7faab55a"), SignInfo: []LegacySignInfo{sign}, PubKeyEnc: enc}).Encode(),
			"join_request": (&LegacyJoinRequest{Dialect: d, Scope: scope, GetPubKeys: &GetCreds{All: true}, ClientCred: cred,
				CNonce: unhex(t, "25a8991cd700ac01"), ClientCredVerify: bytes.Repeat([]byte{0xab}, 64)}).Encode(),
			"join_response": joined.Encode(),
			"rekey":         rekey.Encode(),
			"pub_keys":      (&LegacyPubKeys{Dialect: d, PubKeys: keys, PeerRoles: roles}).Encode(),
			"pub_key_query": EncodeLegacyPubKeyRequest(d, &GetCreds{Roles: []Roles{}, IDs: []SenderID{{0x0a}, {0x52}}}),
			"policies":      EncodeLegacyPolicies(d, &Policies{KeyCheck: 3600}),
			"renewal":       (&LegacyKeyRenewal{SenderID{0x26}}).Encode(),
			"pop_input":     LegacyPoPInput(d, scope, unhex(t, "018a278f7faab55a"), unhex(t, "25a8991cd700ac01")),
		}
		for name, b := range got {
			name = d.String() + "/" + name
			if hex.EncodeToString(b) != want[name] {
				t.Errorf("%s: %x, want %s", name, b, want[name])
			}
			delete(want, name)
		}
	}
	for name := range want {
		t.Errorf("%s: nothing encodes it", name)
	}
}

func TestLegacyRefused(t *testing.T) {
	for _, tc := range []struct {
		name, hex string
		decode    func([]byte) error
	}{
		{"text scope with the role verifier", "8262673168" + hex.EncodeToString([]byte("verifier")), bad(DecodeTextScope)},
		{"text scope without roles", "8262673180", bad(DecodeTextScope)},
		{"text scope with a role twice", "826267318269" + hex.EncodeToString([]byte("requester")) + "69" + hex.EncodeToString([]byte("requester")), bad(DecodeTextScope)},
		{"text scope with a number", "8262673102", bad(DecodeTextScope)},
		{"join request without scope", "a1182748" + "0000000000000000", bad(in(Draft03, DecodeLegacyJoinRequest))},
		{"credential without proof", "a20941801866" + "4101", bad(in(Draft03, DecodeLegacyJoinRequest))},
		{"credential without nonce", "a3094180186641011867" + "4101", bad(in(Draft03, DecodeLegacyJoinRequest))},
		{"get_pub_keys of a join with Sender IDs", "a2094180186581" + "4101", bad(in(Draft03, DecodeLegacyJoinRequest))},
		{"get_pub_keys null in draft-03", "a20941801865f6", bad(in(Draft03, DecodeLegacyJoinRequest))},
		{"empty get_pub_keys", "a1186580", bad(in(Draft03, DecodeLegacyPubKeyRequest))},
		{"empty filters", "a11865828080", bad(in(Hackathon109, DecodeLegacyPubKeyRequest))},
		{"null filter", "a11865f6", bad(in(Hackathon109, DecodeLegacyPubKeyRequest))},
		{"sign_info of five elements", "a118cb8562673127f6f601", bad(in(Draft03, DecodeLegacyInfo))},
		{"sign_info of three elements", "a118cb818327f6f6", bad(in(Hackathon109, DecodeLegacyInfo))},
		{"sign_info with two curves", "a118cb8327a12001a201022002", bad(in(Draft03, DecodeLegacyInfo))},
		{"another key encoding", "a118cc02", bad(in(Draft03, DecodeLegacyInfo))},
		{"the current dialect", "a0", bad(in(Current, DecodeLegacyInfo))},
		{"a private key in pub_keys", "a103584f" + "81a50101" + "02410a" + "2006" + "215820" + "ce616f28426ef24edb51dbcef7a23305f886f657959d4df889ddfc0255042159" + "235820" + "397ceb5a8d21d74a9258c20c33fc45ab152b02cf479b2e3081285f77454cf347", bad(in(Draft03, DecodeLegacyPubKeys))},
		{"a key without kid", "a1035829" + "81a301012006215820" + "ce616f28426ef24edb51dbcef7a23305f886f657959d4df889ddfc0255042159", bad(in(Draft03, DecodeLegacyPubKeys))},
	} {
		if len(tc.hex)%2 != 0 {
			t.Fatalf("%s: odd number of digits", tc.name)
		}
		if err := tc.decode(unhex(t, tc.hex)); err == nil {
			t.Errorf("%s: accepted", tc.name)
		}
	}
}

// One key gives one credential, whatever kid a client put in, and comes back as
// the key that it was.
func TestCredOfKey(t *testing.T) {
	for _, k := range legacyKeys() {
		with := *k.Key
		with.KID = []byte{9}
		a, err := CredOfKey(with.Encode())
		if err != nil {
			t.Fatal(err)
		}
		b, err := CredOfKey(k.Key.Encode())
		if err != nil || !bytes.Equal(a, b) {
			t.Errorf("credentials %x and %x, %v", a, b, err)
		}
		if want := append([]byte{0xa1, 0x08, 0xa1, 0x01}, k.Key.Encode()...); !bytes.Equal(a, want) {
			t.Errorf("credential %x, want %x", a, want)
		}
		back, err := KeyOfCred(a, k.SenderID)
		if err != nil || !reflect.DeepEqual(back, k) {
			t.Errorf("key %x, %v", back.Key.Encode(), err)
		}
	}
	key, err := cose.GenerateKey(cose.AlgEdDSA)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := CredOfKey(key.Encode()); err == nil {
		t.Error("a private key became a credential")
	}
}

func TestInterface(t *testing.T) {
	for _, i := range []Interface{Current, Draft03, Hackathon109, Both} {
		if got, ok := InterfaceByName(i.String()); !ok || got != i {
			t.Errorf("%v: %v %v", i, got, ok)
		}
	}
	if _, ok := InterfaceByName("draft-04"); ok || Interface(9).String() != "unknown" {
		t.Error("an unknown interface has a name")
	}
	both := Requester | Monitor
	if Draft03.ValidLegacyJoin(both) != nil || Both.ValidLegacyJoin(both) == nil || Hackathon109.ValidLegacyJoin(both) == nil {
		t.Error("requester and monitor")
	}
	if Draft03.ValidLegacyJoin(Responder|Monitor) == nil {
		t.Error("responder and monitor")
	}
}

func FuzzTextScope(f *testing.F)             { fuzzCodec(f, "TextScope") }
func FuzzTextTokenScope(f *testing.F)        { fuzzCodec(f, "TextTokenScope") }
func FuzzLegacyInfo(f *testing.F)            { fuzzLegacy(f, "LegacyInfo") }
func FuzzLegacyPolicies(f *testing.F)        { fuzzLegacy(f, "LegacyPolicies") }
func FuzzLegacyJoinRequest(f *testing.F)     { fuzzLegacy(f, "LegacyJoinRequest") }
func FuzzLegacyPubKeyRequest(f *testing.F)   { fuzzLegacy(f, "LegacyPubKeyRequest") }
func FuzzLegacyPubKeys(f *testing.F)         { fuzzLegacy(f, "LegacyPubKeys") }
func FuzzLegacyKeyDistribution(f *testing.F) { fuzzLegacy(f, "LegacyKeyDistribution") }
func FuzzLegacyPubKeyUpdate(f *testing.F)    { fuzzCodec(f, "LegacyPubKeyUpdate") }
func FuzzLegacyKeyRenewal(f *testing.F)      { fuzzCodec(f, "LegacyKeyRenewal") }

// fuzzLegacy is fuzzCodec for both dialects at once.
func fuzzLegacy(f *testing.F, name string) {
	var of []codec
	for _, c := range codecs() {
		if c.name == name+" "+Draft03.String() || c.name == name+" "+Hackathon109.String() {
			of = append(of, c)
			for _, b := range c.encoded() {
				f.Add(b)
			}
		}
	}
	if len(of) != 2 {
		f.Fatalf("%d codecs %s", len(of), name)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, c := range of {
			first, err := c.recode(b)
			if err != nil {
				continue
			}
			second, err := c.recode(first)
			if err != nil || !bytes.Equal(first, second) {
				t.Errorf("%s: %x gives %x, then %x, %v", c.name, b, first, second, err)
			}
		}
	})
}
