package groupcomm

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
)

// sorted encodes any item again with its map keys in deterministic order: some
// vectors have their keys in the order of a specification's example.
func sorted(t *testing.T, b []byte) []byte {
	t.Helper()
	var v any
	if err := cose.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	return cose.MustMarshal(v)
}

// Byte-exact messages; numbers and labels of RFC 9594, Section 8 and
// draft-ietf-ace-key-groupcomm-oscore-21, Section 12.
func TestMessageVectors(t *testing.T) {
	byName := map[string]codec{}
	for _, c := range codecs() {
		byName[c.name] = c
	}
	for vector, name := range map[string]string{
		"token_transfer_request_cf19":    "TokenTransfer",
		"token_transfer_response_cf19":   "TokenTransferResponse",
		"join_request_cf261":             "JoinRequest",
		"join_response_cf261":            "KeyDistribution",
		"bad_request_info_cf261":         "InfoBody",
		"rekey_ptp_cf261":                "RekeyMessage",
		"key_renewal_response_cf261":     "KeyRenewal",
		"fetch_ace_group_cf261":          "GidRequest",
		"fetch_ace_group_response_cf261": "GidResponse",
		"fetch_creds_by_id_cf261":        "CredsRequest",
		"creds_empty":                    "CredsResponse",
		"stale_sids_request_cf60":        "Num",
		"stale_sids_response_cf60":       "StaleIDs",
		"policies_response_cf261":        "Policies",
		"active_true_cf60":               "Active",
		"num_cf60":                       "Num",
	} {
		b := messageVector(t, vector)
		got, err := byName[name].recode(b)
		if err != nil || !bytes.Equal(got, sorted(t, b)) {
			t.Errorf("%s: %x, want %x, %v", vector, got, b, err)
		}
	}
}

func TestMessageVectorValues(t *testing.T) {
	j, err := DecodeJoinRequest(messageVector(t, "join_request_cf261"))
	if err != nil {
		t.Fatal(err)
	}
	e, err := DecodeScopeEntry(j.Scope)
	if err != nil || e != (ScopeEntry{"g1", Requester | Responder}) {
		t.Errorf("scope %v, %v", e, err)
	}
	if j.GetCreds == nil || !j.GetCreds.All || len(j.CNonce) != 8 || len(j.ClientCredVerify) != 64 || j.ControlURI != "coap://[2001:db8::1]/grp-rek" {
		t.Errorf("%+v", j)
	}
	k, err := DecodeKeyDistribution(messageVector(t, "join_response_cf261"))
	if err != nil {
		t.Fatal(err)
	}
	if k.Key.ContextID.String() != "b100000000" || k.Key.SenderID.String() != "25" || k.Exp != 1924992000 || k.Exi != 2592000 ||
		len(k.Creds) != 1 || k.PeerRoles[0] != Requester|Responder || k.PeerIdentifiers[0].String() != "25" || *k.Policies != (Policies{3600, 0}) {
		t.Error("join response differs")
	}
	params := DefaultGroupConfig("g1").KeyParams()
	params.MasterSecret, params.Salt, params.ContextID, params.SenderID = k.Key.MasterSecret, k.Key.Salt, k.Key.ContextID, k.Key.SenderID
	if !bytes.Equal(params.Encode(), k.Key.Encode()) {
		t.Error("the defaults are not those of the join response")
	}
	i, err := DecodeInfoBody(messageVector(t, "bad_request_info_cf261"))
	if err != nil {
		t.Fatal(err)
	}
	g := DefaultGroupConfig("g1")
	want := InfoBody{SignInfo: []SignInfoEntry{g.SignInfo()}, ECDHInfo: []SignInfoEntry{g.ECDHInfo()}, KDCChallenge: i.KDCChallenge}
	if !bytes.Equal(want.Encode(), i.Encode()) {
		t.Error("the entries of the defaults are not those of the information body")
	}
	var v struct {
		Plaintext string `json:"plaintext_ace_groupcomm_cbor"`
	}
	readVectors(t, "one-to-many-rekey.json", &v)
	r, err := DecodeRekeyMessage(unhex(t, v.Plaintext))
	if err != nil || r.Num != 6 || r.Exp != 0 || r.Exi != 3600 || hex.EncodeToString(r.Encode()) != v.Plaintext {
		t.Error("one-to-many rekey message differs", err)
	}
}

// RFC 9594, Section 9: each row with its identifier and its code.
func TestProblems(t *testing.T) {
	var v struct {
		Problems map[string]string `json:"problem_details_cf257"`
	}
	readVectors(t, "messages.json", &v)
	rows := []*coap.Problem{
		ErrNotMember, ErrRoles, ErrCredential, ErrPoP, ErrNoSenderID, ErrTerminated, ErrGroupDeleted, ErrNoSignatures,
		ErrVerifiersOnly, ErrInactive, ErrActive, ErrNoName, ErrUnsupported,
	}
	codes := []coap.Code{0x83, 0x80, 0x80, 0x80, 0xa3, 0x84, 0x84, 0x80, 0x83, 0xa3, 0x80, 0xa3, 0xa3}
	for id, row := range rows {
		if row.ID != id || row.Code != codes[id] || row.Title == "" {
			t.Errorf("row %d: %+v", id, row)
		}
		r := coap.ErrorResponse(fmt.Errorf("wrapped: %w", row))
		if got := hex.EncodeToString(r.Payload); got != v.Problems[fmt.Sprint(id)] || r.Code != codes[id] {
			t.Errorf("row %d: %v %s", id, r.Code, got)
		}
	}
}

func TestScopeVectors(t *testing.T) {
	var v struct {
		Token []struct {
			Name   string
			CBOR   string `json:"aif_cbor"`
			Bytes  string `json:"scope_as_bstr"`
			Tagged string `json:"extended_scope_claim_tagged"`
		} `json:"token_or_authz_request_scopes"`
		Join []struct {
			Name  string
			CBOR  string `json:"entry_cbor"`
			Value string `json:"value_of_label_3"`
		} `json:"join_request_scope"`
	}
	readVectors(t, "scopes.json", &v)
	want := map[string]Scope{
		"one group requester":             {{"feedca570000", Requester}},
		"requester+responder":             {{"feedca570000", Requester | Responder}},
		"monitor":                         {{"g1", Monitor}},
		"verifier":                        {{"g1", Verifier}},
		"two groups":                      {{"g1", Requester | Responder}, {"g2", Responder}},
		"mixed: user entry + admin entry": {{"g1", Requester | Responder}},
	}
	for _, s := range v.Token {
		for _, b := range []string{s.Bytes, s.Tagged} {
			got, err := DecodeTokenScope(unhex(t, b))
			if err != nil || fmt.Sprint(got) != fmt.Sprint(Scope(want[s.Name])) {
				t.Errorf("%s: %v, %v", s.Name, got, err)
			}
		}
		user, ok := want[s.Name]
		if !ok || len(s.CBOR) != 2*len(EncodeScope(user)) {
			continue // administrative entries are not written
		}
		if hex.EncodeToString(EncodeScope(user)) != s.CBOR || hex.EncodeToString(EncodeTokenScope(user, false)) != s.Bytes ||
			hex.EncodeToString(EncodeTokenScope(user, true)) != s.Tagged {
			t.Errorf("%s: encodes differently", s.Name)
		}
	}
	for _, s := range v.Join {
		e, err := DecodeScopeEntry(unhex(t, s.CBOR))
		if err != nil || hex.EncodeToString(e.Encode()) != s.CBOR || hex.EncodeToString(cose.MustMarshal(e.Encode())) != s.Value {
			t.Errorf("%s: %v, %v", s.Name, e, err)
		}
	}
}

func TestPoPVectors(t *testing.T) {
	var v struct {
		RFC struct {
			Client string `json:"client_pop_input"`
			KDC    string `json:"kdc_pop_input"`
			Update string `json:"cred_update_pop_input"`
		} `json:"rfc9594_examples"`
		Inputs struct {
			Scope  string `json:"scope_entry_cbor"`
			NS     string `json:"N_S"`
			NC     string `json:"N_C"`
			NKDC   string `json:"N_KDC"`
			Client string `json:"client_pop_input"`
			KDC    string `json:"kdc_pop_input"`
		}
		Pairwise struct {
			Secret string `json:"shared_secret"`
			Client string `json:"client_cred_verify_mac"`
			KDC    string `json:"kdc_cred_verify_mac"`
		} `json:"pairwise_only_x25519"`
		Verifier struct {
			NC   string `json:"N_C"`
			NKDC string `json:"N_KDC"`
			Pop  string `json:"pop_input"`
		} `json:"verifier_fetch_kdc_cred"`
	}
	readVectors(t, "pop.json", &v)
	ns, nc, nkdc := unhex(t, v.Inputs.NS), unhex(t, v.Inputs.NC), unhex(t, v.Inputs.NKDC)
	client := ClientPoPInput(unhex(t, v.Inputs.Scope), ns, nc)
	kdc := KDCPoPInput(nc, nkdc)
	example := unhex(t, "826667726f7570316673656e646572")
	for _, tc := range []struct {
		name string
		got  []byte
		want string
	}{
		{"client", client, v.Inputs.Client},
		{"KDC", kdc, v.Inputs.KDC},
		{"client of RFC 9594", ClientPoPInput(example, ns, nc), v.RFC.Client},
		{"KDC of RFC 9594", kdc, v.RFC.KDC},
		{"update of RFC 9594", ClientPoPInput(example, ns, unhex(t, "0446baefc56111bf")), v.RFC.Update},
		{"verifier", KDCPoPInput(unhex(t, v.Verifier.NC), unhex(t, v.Verifier.NKDC)), v.Verifier.Pop},
		{"client MAC", PoPMAC(unhex(t, v.Pairwise.Secret), client), v.Pairwise.Client},
		{"KDC MAC", PoPMAC(unhex(t, v.Pairwise.Secret), kdc), v.Pairwise.KDC},
	} {
		if got := hex.EncodeToString(tc.got); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
}
