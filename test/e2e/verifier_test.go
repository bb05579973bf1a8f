package e2e

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// verifier is a node whose token has the role verifier.
func (g *gateway) verifier() *node.Verifier {
	g.t.Helper()
	tok, err := g.admin.IssueToken(soon(g.t), admin.TokenAsk{
		Audience: g.client.Audience, Lifetime: "1h", Scope: []admin.ScopeEntry{{Group: group, Roles: []string{"verifier"}}},
	})
	if err != nil {
		g.t.Fatal(err)
	}
	a := &node.Access{Token: unhex(g.t, tok.AccessToken), KID: unhex(g.t, tok.KID), Key: cose.NewSecret(unhex(g.t, tok.Key))}
	g.post(a)
	v, err := node.NewVerifier(group, g.as(a))
	if err != nil {
		g.t.Fatal(err)
	}
	return v
}

// TestVerifier: a signature verifier has what it needs to check the group's
// signatures, follows a new credential and a rekey, and has nothing more.
func TestVerifier(t *testing.T) {
	t.Parallel()
	g := serve(t)
	m, v := g.join(), g.verifier()
	got, err := v.Fetch(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	s := m.state()
	want, err := groupcomm.SignEncKey(s.Params.HKDF, s.Params.GpEncAlg, s.MasterSecret.Bytes(), s.MasterSalt, s.Gid)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.SignEncKey.Bytes(), want.Bytes()) || !bytes.Equal(got.KDCCred, s.KDCCred) || !bytes.Equal(got.Gid, s.Gid) ||
		len(got.Peers) != 1 || !bytes.Equal(got.Peers[0].Key.X, m.Key().X) {
		t.Error("the verifier has something else than the member")
	}

	key, err := cose.GenerateKey(s.Params.SignAlg)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.ReplaceCred(soon(t), key); err != nil {
		t.Fatal(err)
	}
	version := g.rekey()
	again, err := v.Fetch(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	if again.Version != version || bytes.Equal(again.SignEncKey.Bytes(), got.SignEncKey.Bytes()) || !bytes.Equal(again.Peers[0].Key.X, key.X) {
		t.Error("the verifier does not follow")
	}
	// Members are no verifiers (draft-ietf-ace-key-groupcomm-oscore-21, Section
	// 8.5.1), whatever else they may.
	outsider, err := node.NewVerifier(group, m.wire)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := outsider.Fetch(soon(t)); !errors.Is(err, groupcomm.ErrVerifiersOnly) {
		t.Errorf("a member as a verifier: %v", err)
	}
}
