package oscore

import (
	"fmt"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
)

func (s *site) verifier(creds CredentialSource) *GroupVerifier {
	s.t.Helper()
	suite := must(newGroupSuite(s.material.Algorithms))
	key := must(suite.signatureEncryptionKey(s.material.MasterSecret.Bytes(), s.material.MasterSalt, s.material.Gid))
	return must(NewGroupVerifier(VerifierMaterial{
		Gid: s.material.Gid, Algorithms: s.material.Algorithms, CredFormat: s.material.CredFormat,
		GMCred: s.material.GMCred, SignatureEncryptionKey: cose.NewSecret(key),
	}, creds))
}

// TestGroupVerifier checks requests and responses in group mode, with and without a
// Partial IV and a kid of their own, across a rekey, and refuses what was changed.
//
// draft-ietf-core-oscore-groupcomm-28, Section 7.5.
func TestGroupVerifier(t *testing.T) {
	s := newSite(t, bothModes)
	client, server := s.member("a", GroupConfig{}), s.member("b", GroupConfig{})
	v := s.verifier(s.creds)
	req, _ := ask(t, client, GroupMode, "", get("/x"))
	seen, err := v.VerifyRequest(req)
	if err != nil || string(seen.Sender()) != "a" || seen.Pairwise() {
		t.Fatalf("request: %v", err)
	}
	_, sx, err := server.UnprotectRequest(nil, req)
	if err != nil {
		t.Fatal(err)
	}
	var responses []*coap.Message
	for range 2 {
		m := wire(t, must(sx.Protect(t.Context(), nil, content("x"))))
		responses = append(responses, m)
		if err := v.VerifyResponse(seen, m, nil); err != nil {
			t.Error(err)
		}
	}
	pairwiseResp := wire(t, must(sx.ProtectIn(t.Context(), nil, PairwiseMode, content("x"))))
	wantErr(t, "pairwise response", v.VerifyResponse(seen, pairwiseResp, nil), ErrMode)
	spoiled := responses[0].Clone()
	spoiled.Payload[0] ^= 1
	wantErr(t, "spoiled response", v.VerifyResponse(seen, spoiled, nil), ErrDecrypt)
	other := seen
	other.piv[0] = 9
	for _, m := range responses {
		wantErr(t, "response to another request", v.VerifyResponse(other, m, nil), ErrDecrypt)
	}
	spoiled = req.Clone()
	spoiled.Payload[len(spoiled.Payload)-1] ^= 1
	_, err = v.VerifyRequest(spoiled)
	wantErr(t, "spoiled request", err, ErrDecrypt)
	spoiled.Payload = spoiled.Payload[:10]
	_, err = v.VerifyRequest(spoiled)
	wantErr(t, "short request", err, ErrDecrypt)

	// A request in pairwise mode is remembered; its response in group mode does not
	// say whose it is.
	req, _ = ask(t, client, PairwiseMode, "b", get("/x"))
	seen, err = v.VerifyRequest(req)
	wantErr(t, "pairwise request", err, ErrMode)
	if !seen.Pairwise() {
		t.Error("pairwise request")
	}
	resp := serve(t, server, req, GroupMode, "x")
	wantErr(t, "nameless response", v.VerifyResponse(seen, resp, nil), ErrOption)
	if err := v.VerifyResponse(seen, resp, []byte("b")); err != nil {
		t.Error(err)
	}

	// After a rekey the verifier of the new material checks responses to requests
	// under the old.
	req, _ = ask(t, client, GroupMode, "", observeGet("/x"))
	if seen, err = v.VerifyRequest(req); err != nil {
		t.Fatal(err)
	}
	if _, sx, err = server.UnprotectRequest(nil, req); err != nil {
		t.Fatal(err)
	}
	s.rekey(map[string]*Group{"a": client, "b": server})
	resp = wire(t, must(sx.Protect(t.Context(), nil, notification(1, "x"))))
	wantErr(t, "old verifier", v.VerifyResponse(seen, resp, nil), ErrContext)
	if err := s.verifier(s.creds).VerifyResponse(seen, resp, nil); err != nil {
		t.Error(err)
	}
	_, err = s.verifier(s.creds).VerifyRequest(req)
	wantErr(t, "old request", err, ErrContext)
	s.creds.forget(s.material.Gid, "b")
	wantErr(t, "unknown server", s.verifier(s.creds).VerifyResponse(seen, resp, nil), ErrUnknownPeer)
	if out := fmt.Sprintf("%+v", v); out != "verifier of group dd11" {
		t.Errorf("prints %q", out)
	}
}
