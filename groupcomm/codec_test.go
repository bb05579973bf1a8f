package groupcomm

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math"
	"os"
	"reflect"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func readVectors(t testing.TB, name string, v any) {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
}

func messageVector(t testing.TB, name string) []byte {
	t.Helper()
	var all map[string]any
	readVectors(t, "messages.json", &all)
	s, ok := all[name].(string)
	if !ok {
		t.Fatalf("no vector %s", name)
	}
	return unhex(t, s)
}

// codec is a decoder and what encodes its result again.
type codec struct {
	name    string
	samples []any // values with an Encode method, or encoded bytes
	recode  func([]byte) ([]byte, error)
}

type encoder interface{ Encode() []byte }

func recode[T encoder](decode func([]byte) (T, error)) func([]byte) ([]byte, error) {
	return func(b []byte) ([]byte, error) {
		v, err := decode(b)
		if err != nil {
			return nil, err
		}
		return v.Encode(), nil
	}
}

func recodeWith[T any](decode func([]byte) (T, error), encode func(T) []byte) func([]byte) ([]byte, error) {
	return func(b []byte) ([]byte, error) {
		v, err := decode(b)
		if err != nil {
			return nil, err
		}
		return encode(v), nil
	}
}

var (
	scheme     = SchemeMQTT
	testGroup  = DefaultGroupConfig("g1")
	testKeyMap = KeyMap{
		MasterSecret: []byte("0123456789abcdef"), HKDF: 5, Alg: 10, Salt: []byte{}, ContextID: Gid{0xb1, 0}, SenderID: SenderID{},
		CredFmt: 14, GpEncAlg: 10, SignAlg: -8, SignParams: [][]int64{{1}, {1, 6}}, ECDHAlg: -27, ECDHParams: [][]int64{{1}, {1, 4}},
	}
	testVerifKey = KeyMap{
		HKDF: 5, Alg: 10, ContextID: Gid{0xb1, 0}, CredFmt: 14, GpEncAlg: 10, SignAlg: -8, SignParams: [][]int64{{1}, {1, 6}}, ECDHAlg: -27,
	}
	testInfo = []SignInfoEntry{
		testGroup.SignInfo(),
		{Groups: []string{"a", "b"}, Alg: -7, AlgParams: []int64{2}, KeyParams: []int64{2, 1}},
	}
	testDH = []KDCDHCred{{Groups: []string{"p"}, CredFmt: 14, Cred: []byte{0xa0}}}
)

// codecs lists every decoder of the package with samples of what it reads.
func codecs() []codec {
	return append(append(legacyCodecs(Draft03), legacyCodecs(Hackathon109)...), []codec{
		{"ScopeEntry", []any{ScopeEntry{"g1", Requester | Responder}, ScopeEntry{"", 0}}, recode(DecodeScopeEntry)},
		{"Scope", []any{EncodeScope(nil), EncodeScope(Scope{{"g1", Monitor}, {"g2", Verifier}})}, recodeWith(DecodeScope, EncodeScope)},
		{"TokenScope", []any{EncodeTokenScope(Scope{{"g1", 6}}, false)}, recodeWith(DecodeTokenScope, func(s Scope) []byte { return EncodeTokenScope(s, false) })},
		{"SignInfo", []any{EncodeSignInfo(testInfo)}, recodeWith(DecodeSignInfo, EncodeSignInfo)},
		{"GetCreds", []any{
			&GetCreds{All: true}, &GetCreds{Roles: []Roles{Requester, Requester | Responder}, IDs: []SenderID{}},
			&GetCreds{Inclusion: true, Roles: []Roles{}, IDs: []SenderID{{}, {1, 2}}},
		}, recode(DecodeGetCreds)},
		{"JoinRequest", []any{
			&JoinRequest{Scope: []byte{0x80}, CNonce: []byte("12345678")},
			&JoinRequest{Scope: []byte{}, CNonce: []byte{}, ClientCred: []byte{}, ClientCredVerify: []byte{}, GetCreds: &GetCreds{All: true}},
			&JoinRequest{
				Scope: []byte{1}, CNonce: []byte{2}, ClientCred: []byte{3}, ClientCredVerify: []byte{4}, ControlURI: "coap://[2001:db8::1]/x",
				GetCreds: &GetCreds{Inclusion: true, Roles: []Roles{Responder}, IDs: []SenderID{}}, Delivery: &Delivery{Channel: "mqtt"},
			},
		}, recode(DecodeJoinRequest)},
		{"Delivery", []any{&Delivery{Channel: "mqtt"}, &Delivery{}}, recode(DecodeDelivery)},
		{"CredUpdate", []any{&CredUpdate{[]byte{1}, []byte{2}, []byte{}}}, recode(DecodeCredUpdate)},
		{"KeyMap", []any{&KeyMap{}, &testKeyMap}, recode(DecodeKeyMap)},
		{"Policies", []any{&Policies{3600, 0}, &Policies{math.MaxUint64, 1}}, recodePolicies},
		{"KeyDistribution", []any{
			&KeyDistribution{Key: KeyMap{MasterSecret: []byte{1}, ContextID: Gid{}, CredFmt: 14}, Profile: 1},
			&KeyDistribution{
				Key: testKeyMap, Num: 7, Profile: 1, Exp: 1924992000, Exi: 60, Creds: [][]byte{}, PeerRoles: []Roles{}, PeerIdentifiers: []SenderID{},
				Policies: &Policies{3600, 0}, KDCCred: []byte{1}, KDCNonce: []byte{2}, KDCCredVerify: []byte{3},
				RekeyingScheme: &scheme, MgtKeyMaterial: []byte{4},
			},
			&KeyDistribution{
				Key: testKeyMap, Profile: 1, Creds: [][]byte{{1}, {2}}, PeerRoles: []Roles{2, 4}, PeerIdentifiers: []SenderID{{}, {1}},
			},
		}, recode(DecodeKeyDistribution)},
		{"RekeyMessage", []any{
			&RekeyMessage{MasterSecret: []byte{1}, ContextID: Gid{2}, Num: 3},
			&RekeyMessage{MasterSecret: []byte{1}, ContextID: Gid{2}, Salt: []byte{}, Num: 3, Exp: 4, Exi: 5, Stale: []SenderID{{}, {6}}},
			&RekeyMessage{MasterSecret: []byte{1}, ContextID: Gid{2}, Num: 3, Stale: []SenderID{}, ActivateIn: 30},
			&RekeyMessage{MasterSecret: []byte{1}, ContextID: Gid{2}, Num: 3, Stale: []SenderID{},
				Creds: [][]byte{{1}, {2}}, PeerRoles: []Roles{2, 4}, PeerIdentifiers: []SenderID{{}, {1}}},
		}, recode(DecodeRekeyMessage)},
		{"CredsResponse", []any{
			&CredsResponse{},
			&CredsResponse{Num: 1, Creds: [][]byte{{1}}, PeerRoles: []Roles{2}, PeerIdentifiers: []SenderID{{}}},
		}, recode(DecodeCredsResponse)},
		{"MgtKeyMaterial", []any{
			&MgtKeyMaterial{KID: []byte("8 bytes."), Key: make([]byte, 16), Alg: 10, BaseIV: make([]byte, 13), Broker: "mqtt://b", Topic: "t"},
			&MgtKeyMaterial{KID: []byte("8 bytes."), Key: make([]byte, 16), Alg: 10, BaseIV: make([]byte, 13), Broker: "mqtt://b", Topic: "t",
				KDCCred: []byte{1}, KDCNonce: []byte{2}, KDCCredVerify: []byte{3}},
			&MgtKeyMaterial{
				KID: []byte{1}, Key: make([]byte, 32), Alg: 3, BaseIV: make([]byte, 12), Broker: "mqtts://b", Topic: "t",
				User: "u", Password: "p", AckTopic: "a",
			},
		}, recode(DecodeMgtKeyMaterial)},
		{"TokenTransfer", []any{
			&TokenTransfer{AccessToken: []byte{}},
			&TokenTransfer{AccessToken: []byte{1}, WantSignInfo: true, WantECDHInfo: true, WantKDCDH: true, Nonce1: []byte{2}, ID1: []byte{}},
			&TokenTransfer{AccessToken: []byte{1}, WantECDHInfo: true, RISELabels: true},
			&TokenTransfer{AccessToken: []byte{1}, WantLegacySignInfo: true, WantLegacyPubKeyEnc: true},
		}, recode(DecodeTokenTransfer)},
		{"TokenTransferResponse", []any{
			&TokenTransferResponse{},
			&TokenTransferResponse{KDCChallenge: []byte{1}, SignInfo: testInfo, ECDHInfo: testInfo, KDCDHCreds: testDH, Nonce2: []byte{2}, ID2: []byte{}},
			&TokenTransferResponse{ECDHInfo: testInfo, KDCDHCreds: testDH, RISELabels: true},
		}, recode(DecodeTokenTransferResponse)},
		{"InfoBody", []any{&InfoBody{}, &InfoBody{SignInfo: testInfo, KDCChallenge: []byte{1}, ECDHInfo: testInfo, KDCDHCreds: testDH}}, recode(DecodeInfoBody)},
		{"GidRequest", []any{&GidRequest{[]Gid{{1, 2}, {}}}}, recode(DecodeGidRequest)},
		{"GidResponse", []any{&GidResponse{}, &GidResponse{[]Gid{{1}}, []string{"g"}, []string{"/ace-group/g"}}}, recode(DecodeGidResponse)},
		{"Announcement", []any{&Announcement{}, &Announcement{30, 3600, ChannelMQTT}}, recode(DecodeAnnouncement)},
		{"Pending", []any{&Pending{}, &Pending{[]PendingGroup{{"g", 7}, {"h", 0}}}}, recode(DecodePending)},
		{"CredsRequest", []any{EncodeCredsRequest(&GetCreds{Roles: []Roles{}, IDs: []SenderID{{1}}})}, recodeWith(DecodeCredsRequest, EncodeCredsRequest)},
		{"KDCCred", []any{&KDCCred{[]byte{1}, []byte{2}, []byte{3}}}, recode(DecodeKDCCred)},
		{"KDCCredRequest", []any{EncodeKDCCredRequest([]byte("12345678"))}, recodeWith(DecodeKDCCredRequest, EncodeKDCCredRequest)},
		{"VerifData", []any{
			&VerifData{Key: testVerifKey, SignEncKey: []byte("0123456789abcdef")},
			&VerifData{Key: testVerifKey, Num: 3, Exp: 1924992000, Exi: 60, SignEncKey: []byte{1}},
		}, recode(DecodeVerifData)},
		{"KeyRenewal", []any{&KeyRenewal{SenderID{}}, &KeyRenewal{SenderID{1}}}, recode(DecodeKeyRenewal)},
		{"StaleIDs", []any{EncodeStaleIDs(nil), EncodeStaleIDs([]SenderID{{}, {1}})}, recodeWith(DecodeStaleIDs, EncodeStaleIDs)},
		{"Num", []any{EncodeNum(0), EncodeNum(math.MaxUint64)}, recodeWith(DecodeNum, EncodeNum)},
		{"Active", []any{EncodeActive(true), EncodeActive(false)}, recodeWith(DecodeActive, EncodeActive)},
		{"TextScope", []any{
			EncodeTextScope(ScopeEntry{"g1", Requester}), EncodeTextScope(ScopeEntry{"", Requester | Responder | Monitor}),
		}, recodeWith(DecodeTextScope, EncodeTextScope)},
		{"TextTokenScope", []any{EncodeTextTokenScope(ScopeEntry{"g1", Requester | Monitor})}, recodeWith(DecodeTextTokenScope, EncodeTextTokenScope)},
		{"LegacyPubKeyUpdate", []any{EncodeLegacyPubKeyUpdate(&CredUpdate{[]byte{1}, []byte{2}, []byte{}})}, recodeWith(DecodeLegacyPubKeyUpdate, EncodeLegacyPubKeyUpdate)},
		{"LegacyKeyRenewal", []any{&LegacyKeyRenewal{SenderID{}}, &LegacyKeyRenewal{SenderID{1}}}, recode(DecodeLegacyKeyRenewal)},
		{"Event", []any{
			Event{},
			Event{Group: "g", Node: "n", Version: 3, Subject: coap.Subject{Kind: coap.SubjectPoP, ID: "\x00\xff"}, Reason: "leave", Expires: 1, ControlURI: "coap://n/x"},
			Event{Group: "g", SenderID: SenderID{}, Gid: Gid{1, 2}, Roles: 6, Addr: "[2001:db8::1]:5684"},
			Event{Group: "g", SenderID: SenderID{0xab}},
		}, recode(DecodeEvent)},
	}...)
}

func recodePolicies(b []byte) ([]byte, error) {
	p, err := DecodePolicies(b)
	if err != nil {
		return nil, err
	}
	if p == nil {
		return []byte{emptyAnswer}, nil
	}
	return p.Encode(), nil
}

func (c codec) encoded() [][]byte {
	var out [][]byte
	for _, s := range c.samples {
		if b, ok := s.([]byte); ok {
			out = append(out, b)
		} else {
			out = append(out, s.(encoder).Encode())
		}
	}
	return out
}

// Labels 92 and 93 are registered for nothing here: only null makes them
// aliases, anything else is an unknown parameter (RFC 9594, Section 4.1.2).
func TestRISELabels(t *testing.T) {
	for in, want := range map[string]TokenTransfer{
		"a2014100185cf6":       {WantECDHInfo: true, RISELabels: true},
		"a2014100185df6":       {WantKDCDH: true, RISELabels: true},
		"a2014100185c01":       {},
		"a3014100182ff6185cf6": {WantECDHInfo: true},
		"a3014100185c01185df6": {WantKDCDH: true, RISELabels: true},
	} {
		got, err := DecodeTokenTransfer(unhex(t, in))
		want.AccessToken = []byte{0}
		if err != nil || !reflect.DeepEqual(*got, want) {
			t.Errorf("%s: %+v, %v", in, got, err)
		}
	}
}

// TestRoundTrip: what is encoded reads back and encodes to the same bytes, no
// strict prefix of it parses, nothing may follow it, and an unknown label is
// ignored (RFC 9594, Section 4.1.2).
func TestRoundTrip(t *testing.T) {
	for _, c := range codecs() {
		for _, b := range c.encoded() {
			again, err := c.recode(b)
			if err != nil || !bytes.Equal(again, b) {
				t.Errorf("%s: %x gives %x, %v", c.name, b, again, err)
			}
			for i := range b {
				if _, err := c.recode(b[:i]); err == nil {
					t.Errorf("%s: prefix of %d of %d bytes parses", c.name, i, len(b))
				}
			}
			if _, err := c.recode(append(bytes.Clone(b), 0)); err == nil {
				t.Errorf("%s: a trailing byte parses", c.name)
			}
			if b[0]>>5 != 5 {
				continue
			}
			var m map[int64]cose.Item
			if err := cose.Unmarshal(b, &m); err != nil {
				t.Fatal(err)
			}
			m[12345] = cose.Item{0xf6}
			if again, err := c.recode(cose.MustMarshal(m)); err != nil || !bytes.Equal(again, b) {
				t.Errorf("%s: with an unknown label: %x, %v", c.name, again, err)
			}
			// A known label with a value of no accepted type.
			delete(m, 12345)
			for label, v := range m {
				if cose.IsNull(v) {
					continue
				}
				m[label] = cose.Item{0xfa, 0, 0, 0, 0}
				if _, err := c.recode(cose.MustMarshal(m)); err == nil {
					t.Errorf("%s: label %d with a float parses", c.name, label)
				}
				m[label] = v
			}
		}
	}
}

// TestValuesSurvive compares values, so that nil and empty stay apart.
func TestValuesSurvive(t *testing.T) {
	for _, c := range codecs() {
		for _, s := range c.samples {
			want, ok := s.(*JoinRequest)
			if !ok {
				continue
			}
			got, err := DecodeJoinRequest(want.Encode())
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%+v, want %+v, %v", got, want, err)
			}
		}
	}
	k := &KeyDistribution{Key: testKeyMap, Profile: 1, Creds: [][]byte{}, PeerRoles: []Roles{}, PeerIdentifiers: []SenderID{}}
	if got, err := DecodeKeyDistribution(k.Encode()); err != nil || !reflect.DeepEqual(got, k) {
		t.Errorf("key distribution differs: %v", err)
	}
	k.Key.SenderID, k.Key.Salt, k.Creds, k.PeerRoles, k.PeerIdentifiers = nil, nil, nil, nil, nil
	if got, err := DecodeKeyDistribution(k.Encode()); err != nil || !reflect.DeepEqual(got, k) {
		t.Errorf("key distribution of a monitor differs: %v", err)
	}
}

// A nil element inside an array is a Sender ID of length zero, never null.
func TestNilElement(t *testing.T) {
	if got := EncodeStaleIDs([]SenderID{nil}); !bytes.Equal(got, []byte{0x81, 0x40}) {
		t.Errorf("%x", got)
	}
	if got := (&RekeyMessage{}).Encode(); !bytes.Contains(got, []byte{0x18, 0x22, 0x80}) {
		t.Errorf("stale_node_ids must be there: %x", got)
	}
}

// An expired lifetime is sent as zero seconds.
func TestNegativeLifetime(t *testing.T) {
	k := KeyDistribution{Key: testKeyMap, Profile: 1, Exi: -5}
	if got, err := DecodeKeyDistribution(k.Encode()); err != nil || got.Exi != 0 {
		t.Error(err)
	}
	r := RekeyMessage{MasterSecret: []byte{1}, ContextID: Gid{1}, Exi: -5}
	if got, err := DecodeRekeyMessage(r.Encode()); err != nil || got.Exi != 0 {
		t.Error(err)
	}
}

func TestRefused(t *testing.T) {
	for _, tc := range []struct {
		name, hex string
		decode    func([]byte) error
	}{
		{"join request without scope", "a10641aa", bad(DecodeJoinRequest)},
		{"join request without cnonce", "a1034180", bad(DecodeJoinRequest)},
		{"join request with a null credential", "a3034180064180" + "05f6", bad(DecodeJoinRequest)},
		{"join request with a text scope", "a2036161064180", bad(DecodeJoinRequest)},
		{"join request with an empty control_uri", "a3034180064180" + "181a60", bad(DecodeJoinRequest)},
		{"join request twice the scope", "a3034180064180" + "034180", bad(DecodeJoinRequest)},
		{"join request in an array", "80", bad(DecodeJoinRequest)},
		{"get_creds of two elements", "82f580", bad(DecodeGetCreds)},
		{"get_creds with a text role", "83f5816172" + "80", bad(DecodeGetCreds)},
		{"get_creds with a negative role", "83f5812080", bad(DecodeGetCreds)},
		{"get_creds with a null flag", "83f68080", bad(DecodeGetCreds)},
		{"get_creds with roles beyond 32 bits", "83f5811b000000010000000080", bad(DecodeGetCreds)},
		{"creds request null", "a104f6", bad(DecodeCredsRequest)},
		{"creds request with empty filters", "a10483f58080", bad(DecodeCredsRequest)},
		{"scope entry of an administrator", "82616705", bad(DecodeScopeEntry)},
		{"scope entry in an array", "8182616706", bad(DecodeScopeEntry)},
		{"scope with a group that is not text", "818241670" + "6", bad(DecodeScope)},
		{"scope with negative roles", "8182616720", bad(DecodeScope)},
		{"token scope without byte string", "8182616706", bad(DecodeTokenScope)},
		{"token scope with another tag", "da6374022c4581826167" + "06", bad(DecodeTokenScope)},
		{"sign_info entry of four elements", "81846167278101820106", bad(DecodeSignInfo)},
		{"sign_info with a text algorithm", "8185616761618101820106" + "0e", bad(DecodeSignInfo)},
		{"sign_info without a name", "81858027810182010" + "60e", bad(DecodeSignInfo)},
		{"token transfer without token", "a1182df6", bad(DecodeTokenTransfer)},
		{"token transfer with sign_info not null", "a2014101182d80", bad(DecodeTokenTransfer)},
		{"rekey message without stale_node_ids", "a5070108a2024101064102" + "09010a010c01", bad(DecodeRekeyMessage)},
		{"rekey message with a null list", "a6070108a2024101064102" + "09010a010c011822f6", bad(DecodeRekeyMessage)},
		{"rekey message of another key type", "a6070208a2024101064102" + "09010a010c01182280", bad(DecodeRekeyMessage)},
		{"rekey message without secret", "a6070108a1064102" + "09010a010c01182280", bad(DecodeRekeyMessage)},
		{"creds of different lengths", "a309010d8141010f80", bad(DecodeCredsResponse)},
		{"gid request without gid", "a10080", bad(DecodeGidRequest)},
		{"gid response of different lengths", "a3008141010180" + "0280", bad(DecodeGidResponse)},
		{"announcement without the next wake", "a1001e", bad(DecodeAnnouncement)},
		{"announcement of a century", "a2001e011abbf81e00", bad(DecodeAnnouncement)},
		{"announcement of a channel that is none", "a3001e010a026161", bad(DecodeAnnouncement)},
		{"announcement of an empty channel", "a3001e010a0260", bad(DecodeAnnouncement)},
		{"pending that counts wrongly", "a200020181826167" + "07", bad(DecodePending)},
		{"pending without version", "a2000101818161" + "67", bad(DecodePending)},
		{"negative version", "20", bad(DecodeNum)},
		{"active as a number", "01", bad(DecodeActive)},
		{"mgt_key_material with a short key", "a6004101014101020a034d00000000000000000000000000046162056174", bad(DecodeMgtKeyMaterial)},
	} {
		if err := tc.decode(unhex(t, tc.hex)); err == nil {
			t.Errorf("%s: accepted", tc.name)
		}
	}
}

func bad[T any](decode func([]byte) (T, error)) func([]byte) error {
	return func(b []byte) error { _, err := decode(b); return err }
}

// fuzzCodec checks that what parses encodes to something that parses to the same
// again: the first encoding is canonical, so the second equals it.
func fuzzCodec(f *testing.F, name string) {
	for _, c := range codecs() {
		if c.name != name {
			continue
		}
		for _, b := range c.encoded() {
			f.Add(b)
		}
		f.Fuzz(func(t *testing.T, b []byte) {
			first, err := c.recode(b)
			if err != nil {
				return
			}
			second, err := c.recode(first)
			if err != nil || !bytes.Equal(first, second) {
				t.Errorf("%x gives %x, then %x, %v", b, first, second, err)
			}
		})
		return
	}
	f.Fatal(errors.New("no codec " + name))
}

func FuzzScopeEntry(f *testing.F)            { fuzzCodec(f, "ScopeEntry") }
func FuzzScope(f *testing.F)                 { fuzzCodec(f, "Scope") }
func FuzzTokenScope(f *testing.F)            { fuzzCodec(f, "TokenScope") }
func FuzzSignInfo(f *testing.F)              { fuzzCodec(f, "SignInfo") }
func FuzzGetCreds(f *testing.F)              { fuzzCodec(f, "GetCreds") }
func FuzzJoinRequest(f *testing.F)           { fuzzCodec(f, "JoinRequest") }
func FuzzDelivery(f *testing.F)              { fuzzCodec(f, "Delivery") }
func FuzzCredUpdate(f *testing.F)            { fuzzCodec(f, "CredUpdate") }
func FuzzKeyMap(f *testing.F)                { fuzzCodec(f, "KeyMap") }
func FuzzPolicies(f *testing.F)              { fuzzCodec(f, "Policies") }
func FuzzKeyDistribution(f *testing.F)       { fuzzCodec(f, "KeyDistribution") }
func FuzzRekeyMessage(f *testing.F)          { fuzzCodec(f, "RekeyMessage") }
func FuzzCredsResponse(f *testing.F)         { fuzzCodec(f, "CredsResponse") }
func FuzzMgtKeyMaterial(f *testing.F)        { fuzzCodec(f, "MgtKeyMaterial") }
func FuzzTokenTransfer(f *testing.F)         { fuzzCodec(f, "TokenTransfer") }
func FuzzTokenTransferResponse(f *testing.F) { fuzzCodec(f, "TokenTransferResponse") }
func FuzzInfoBody(f *testing.F)              { fuzzCodec(f, "InfoBody") }
func FuzzGidRequest(f *testing.F)            { fuzzCodec(f, "GidRequest") }
func FuzzGidResponse(f *testing.F)           { fuzzCodec(f, "GidResponse") }
func FuzzCredsRequest(f *testing.F)          { fuzzCodec(f, "CredsRequest") }
func FuzzKDCCred(f *testing.F)               { fuzzCodec(f, "KDCCred") }
func FuzzKDCCredRequest(f *testing.F)        { fuzzCodec(f, "KDCCredRequest") }
func FuzzVerifData(f *testing.F)             { fuzzCodec(f, "VerifData") }
func FuzzKeyRenewal(f *testing.F)            { fuzzCodec(f, "KeyRenewal") }
func FuzzStaleIDs(f *testing.F)              { fuzzCodec(f, "StaleIDs") }
func FuzzAnnouncement(f *testing.F)          { fuzzCodec(f, "Announcement") }
func FuzzPending(f *testing.F)               { fuzzCodec(f, "Pending") }
func FuzzNum(f *testing.F)                   { fuzzCodec(f, "Num") }
func FuzzActive(f *testing.F)                { fuzzCodec(f, "Active") }
func FuzzEvent(f *testing.F)                 { fuzzCodec(f, "Event") }

func TestDeletionNotice(t *testing.T) {
	n := EncodeDeletionNotice()
	if !bytes.Equal(n, []byte{0xa3, 7, 1, 8, 0xa0, 10, 1}) || !IsDeletionNotice(n) {
		t.Errorf("%x", n)
	}
	for _, b := range [][]byte{
		nil, {0xa0}, {0xa2, 7, 1, 10, 1}, {0xa2, 7, 1, 8, 0xa0}, {0xa3, 7, 2, 8, 0xa0, 10, 1}, {0xa3, 7, 1, 8, 0xa1, 2, 0x41, 1, 10, 1},
		{0xa4, 7, 1, 8, 0xa0, 9, 1, 10, 1}, (&RekeyMessage{MasterSecret: []byte{1}, ContextID: Gid{2}, Num: 3}).Encode(), n[:6], append(n, 0),
	} {
		if IsDeletionNotice(b) {
			t.Errorf("%x is taken for one", b)
		}
	}
}
