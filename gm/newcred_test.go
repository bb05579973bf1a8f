package gm

import (
	"bytes"
	"crypto/rand"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/gm/gmtest"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// update makes a complete request body for a new credential of j.
func update(t *testing.T, j *gmtest.Joiner, scope []byte, key *cose.Key) *groupcomm.CredUpdate {
	t.Helper()
	u := &groupcomm.CredUpdate{ClientCred: cose.EncodeCCS("new", key.Public()), CNonce: make([]byte, 8)}
	rand.Read(u.CNonce)
	var err error
	if u.ClientCredVerify, err = key.Sign(groupcomm.ClientPoPInput(scope, j.NS, u.CNonce)); err != nil {
		t.Fatal(err)
	}
	return u
}

func newKey(t *testing.T, alg int64) *cose.Key {
	t.Helper()
	k, err := cose.GenerateKey(alg)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// RFC 9594, Section 4.9.1; draft-ietf-ace-key-groupcomm-oscore-21, Section 9.4:
// the conditions one by one, each with only what comes after it wrong too.
func TestNewCred(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	j := f.member("n", "g1")
	other := f.member("other", "g1")
	path := append(append([]string{}, j.Path...), "cred")
	scope := groupcomm.ScopeEntry{Group: "g1", Roles: both}.Encode()
	key := newKey(t, cose.AlgEdDSA)
	good := update(t, j, scope, key)
	post := func(u *groupcomm.CredUpdate) *coap.Response { return f.do(j, coap.POST, u.Encode(), path...) }
	refused := func(what string, r *coap.Response, code coap.Code, id int) {
		t.Helper()
		if r.Code != code {
			t.Fatalf("%s: %v, want %v", what, r.Code, code)
		}
		checkRefusal(t, r, id, false)
	}
	before := f.dump()

	if err := f.m.SetActive(t.Context(), "g1", false); err != nil {
		t.Fatal(err)
	}
	refused("inactive", f.do(j, coap.POST, nil, path...), coap.ServiceUnavailable, 9)
	if err := f.m.SetActive(t.Context(), "g1", true); err != nil {
		t.Fatal(err)
	}
	for _, body := range [][]byte{
		nil, {0xa0}, {0x80}, good.Encode()[1:],
		(&groupcomm.CredUpdate{ClientCred: good.ClientCred, CNonce: make([]byte, 7), ClientCredVerify: good.ClientCredVerify}).Encode(),
		(&groupcomm.CredUpdate{ClientCred: make([]byte, maxCred+1), CNonce: good.CNonce, ClientCredVerify: good.ClientCredVerify}).Encode(),
	} {
		refused("malformed", f.do(j, coap.POST, body, path...), coap.BadRequest, -1)
	}
	unfit := update(t, j, scope, newKey(t, cose.AlgES256))
	unfit.ClientCredVerify = []byte{}
	f.auth.ForgetChallenges(j.Peer.Subject)
	r := post(unfit)
	cf, _ := r.Options.ContentFormat()
	info, err := groupcomm.DecodeInfoBody(r.Payload)
	if r.Code != coap.BadRequest || cf != coap.ACEGroupcomm || err != nil || len(info.KDCChallenge) < 8 || info.SignInfo != nil || info.ECDHInfo != nil {
		t.Fatalf("N_S lost: %v, format %d, %+v, %v", r.Code, cf, info, err)
	}
	if got := f.do(j, coap.POST, good.Encode(), path...); got.Code != coap.BadRequest {
		t.Errorf("a proof over the lost N_S: %v", got.Code)
	}
	j.NS = info.KDCChallenge
	refused("another algorithm", post(unfit), coap.BadRequest, 2)
	weak := cose.EncodeCCS("weak", &cose.Key{Kty: cose.KtyOKP, Crv: cose.CrvEd25519, X: append([]byte{1}, make([]byte, 31)...)})
	refused("y = 1", post(&groupcomm.CredUpdate{ClientCred: weak, CNonce: good.CNonce, ClientCredVerify: []byte{}}), coap.BadRequest, 2)
	empty := update(t, j, scope, key)
	empty.ClientCredVerify = []byte{}
	refused("empty proof", post(empty), coap.BadRequest, 3)
	same := &groupcomm.CredUpdate{ClientCred: j.Cred, CNonce: good.CNonce, ClientCredVerify: []byte{}}
	refused("empty proof for the credential that it has", post(same), coap.BadRequest, 3)
	foreign := update(t, j, groupcomm.ScopeEntry{Group: "g1", Roles: groupcomm.Requester}.Encode(), key)
	refused("proof over another scope", post(foreign), coap.BadRequest, 3)
	if got := f.dump(); got != before {
		t.Errorf("a refused credential changed the state:\n%s\nwas\n%s", got, before)
	}

	good = update(t, j, scope, key)
	if r := post(good); r.Code != coap.Changed || len(r.Payload) != 0 {
		t.Fatalf("%v %x", r.Code, r.Payload)
	}
	cr, err := groupcomm.DecodeCredsResponse(f.credsOf(other, nil).Payload)
	if err != nil {
		t.Fatal(err)
	}
	if cr.Num != 0 || len(cr.Creds) != 2 || !bytes.Equal(cr.Creds[0], good.ClientCred) || len(cr.PeerIdentifiers[0]) != 0 {
		t.Error("the credential was not replaced under the same Sender ID, or a rekey followed")
	}
	if f.status().Due {
		t.Error("a rekey is due")
	}
	// A later join with neither proof nor credential means the new one.
	again, err := j.JoinMessage("g1", both)
	if err != nil {
		t.Fatal(err)
	}
	again.ClientCred, again.ClientCredVerify = []byte{}, nil
	if r := j.Send(t.Context(), f.m, "g1", again); r.Code != coap.Changed {
		t.Errorf("join again: %v", r.Code)
	}
}
