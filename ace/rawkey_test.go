package ace

import (
	"bytes"
	"errors"
	"testing"

	"github.com/seed4911071e/groupgate/ace/cwt"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// rawPair is a key pair of a client.
func rawPair(t testing.TB, alg int64) (key *cose.Key, spki []byte) {
	t.Helper()
	key, err := cose.GenerateKey(alg)
	if err != nil {
		t.Fatal(err)
	}
	if spki, err = key.SPKI(); err != nil {
		t.Fatal(err)
	}
	return key, spki
}

// askPublic asks for a token for a public key, and reads rs_cnf.
func (b *bench) askPublic(peer coap.Peer, key *cose.Key, more map[int64]any) (token []byte, server *cose.Key) {
	b.t.Helper()
	fields := map[int64]any{4: map[int64]any{1: cose.Item(key.Public().Encode())}}
	for k, v := range more {
		fields[k] = v
	}
	resp, err := b.Token().ServeCoAP(b.t.Context(), askAs(peer, fields))
	if err != nil {
		b.t.Fatalf("token request: %v", err)
	}
	m, err := cose.DecodeMap(resp.Payload)
	if err != nil || m.Has(8) {
		b.t.Fatalf("the client has its key: %v", err)
	}
	token, _, _ = m.Bytes(1)
	cnf, err := cwt.DecodeConfirmation(m[41])
	if err != nil || cnf.Key == nil || cnf.Key.IsPrivate() {
		b.t.Fatalf("rs_cnf: %v", err)
	}
	return token, cnf.Key
}

// RFC 9202, Section 3.2: a token for a client's public key: who shows it in a
// handshake is the holder, with every right that the newest token gives.
func TestRawPublicKey(t *testing.T) {
	for _, alg := range []int64{cose.AlgES256, cose.AlgEdDSA} {
		b := newBench(t)
		key, spki := rawPair(t, alg)
		token, server := b.askPublic(clientPeer("clientF"), key, nil)
		if own := b.RawKey(); own == nil || !own.SamePublic(server) || server.CheckAlg(cose.AlgES256) != nil {
			t.Error("rs_cnf is another key than that of the handshake")
		}
		if _, err := b.Holder(t.Context(), spki, nil); !errors.Is(err, ErrIdentity) {
			t.Errorf("before its token is there: %v", err)
		}
		b.mustPost(outside(), token)
		subject, err := b.Holder(t.Context(), spki, nil)
		if err != nil || subject != KeySubject(spki) {
			t.Fatalf("%v, %v", subject, err)
		}
		if subject, err = b.Proved(t.Context(), spki, nil); err != nil {
			t.Fatal(err)
		}
		peer := coap.Peer{Via: coap.DTLSRPK, Subject: subject}
		g, err := b.Grant(t.Context(), peer)
		if err != nil || len(g.Scope) != 2 || len(g.Challenges) != 1 {
			t.Fatalf("%+v, %v", g, err)
		}
		if g.PublicKey == nil || !g.PublicKey.SamePublic(key) || g.PublicKey.IsPrivate() {
			t.Error("the grant does not tell the key")
		}
		// A row from before keys were kept whole learns its own from the next token.
		if err := b.store.Update(t.Context(), func(tx *store.Tx) error {
			_, err := tx.Exec(`UPDATE ace_keys SET public = NULL`)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		// A narrower token, posted outside, waits for the next handshake.
		next, _ := b.askPublic(clientPeer("clientF"), key, map[int64]any{9: wanted(groupcomm.ScopeEntry{Group: "g1", Roles: 2})})
		b.mustPost(outside(), next)
		if g, err := b.Grant(t.Context(), peer); err != nil || len(g.Scope) != 2 {
			t.Errorf("a stranger's post takes effect: %+v, %v", g, err)
		}
		if _, err := b.Proved(t.Context(), spki, nil); err != nil {
			t.Fatal(err)
		}
		if g, err := b.Grant(t.Context(), peer); err != nil || len(g.Scope) != 1 || g.Scope[0].Roles != 2 || g.PublicKey == nil {
			t.Errorf("after the handshake: %+v, %v", g, err)
		}
		// Inside the association the next takes effect at once.
		wide, _ := b.askPublic(clientPeer("clientF"), key, nil)
		b.mustPost(peer, wide)
		if g, err := b.Grant(t.Context(), peer); err != nil || len(g.Scope) != 2 {
			t.Errorf("posted inside: %+v, %v", g, err)
		}
		if _, err := b.RevokeTokens(t.Context(), wide); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Holder(t.Context(), spki, nil); !errors.Is(err, ErrIdentity) {
			t.Errorf("after the token was revoked: %v", err)
		}
		_, other := rawPair(t, alg)
		if _, err := b.Holder(t.Context(), other, nil); !errors.Is(err, ErrIdentity) {
			t.Errorf("of a stranger: %v", err)
		}
	}
}

// A public key belongs to the client that asked for it first: nobody else has
// its rights changed.
func TestPublicKeyHasOneOwner(t *testing.T) {
	b := newBench(t)
	n := nodeNamed("node 1")
	b.enroll(dayLong, n)
	peer := b.mustAssociate(n)
	key, spki := rawPair(t, cose.AlgES256)
	token, _ := b.askPublic(clientPeer("clientF"), key, nil)
	_, err := b.Token().ServeCoAP(t.Context(), askAs(peer, map[int64]any{4: map[int64]any{1: cose.Item(key.Public().Encode())}}))
	if code, id := oauth(err); code != coap.BadRequest || oauthError(id) != unsupportedPoPKey {
		t.Errorf("another client: %v %d, %v", code, id, err)
	}
	_, err = b.Token().ServeCoAP(t.Context(), askAs(peer, map[int64]any{38: 2, 4: map[int64]any{1: cose.Item(key.Public().Encode())}}))
	if code, id := oauth(err); code != coap.BadRequest || oauthError(id) != unsupportedPoPKey {
		t.Errorf("for OSCORE: %v %d, %v", code, id, err)
	}
	b.mustPost(outside(), token)
	if _, err := b.Holder(t.Context(), spki, nil); err != nil {
		t.Error(err)
	}
}

// A node that is disabled loses its tokens, also those that it has not posted
// yet; enabled again it has new ones for the same key.
func TestDisabledPublicKey(t *testing.T) {
	b := newBench(t)
	n := nodeNamed("node 1")
	b.enroll(dayLong, n)
	peer := b.mustAssociate(n)
	key, spki := rawPair(t, cose.AlgES256)
	token, _ := b.askPublic(peer, key, nil)
	kept, _ := b.askPublic(peer, key, nil)
	b.mustPost(outside(), token)
	if _, err := b.Proved(t.Context(), spki, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := b.DisableNodes(t.Context(), []string{n.Identity}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Holder(t.Context(), spki, nil); !errors.Is(err, ErrIdentity) {
		t.Errorf("of a disabled node: %v", err)
	}
	if _, err := b.EnableNodes(t.Context(), []string{n.Identity}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.post(outside(), kept); err == nil {
		t.Error("a token of before is taken")
	}
	// A second later.
	err := b.store.Update(t.Context(), func(tx *store.Tx) error {
		_, err := tx.Exec(`UPDATE ace_issued SET blocked = blocked - 2`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	peer = b.mustAssociate(n)
	again, _ := b.askPublic(peer, key, nil)
	b.mustPost(outside(), again)
	if _, err := b.Proved(t.Context(), spki, nil); err != nil {
		t.Errorf("enabled again: %v", err)
	}
	if _, err := b.DisableNodes(t.Context(), []string{n.Identity}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Holder(t.Context(), spki, nil); !errors.Is(err, ErrIdentity) {
		t.Errorf("disabled a second time: %v", err)
	}
}

// The key pair is one for ever, on every gateway of a store, and nothing of it is
// in clear.
func TestRawKeyLasts(t *testing.T) {
	b := newBench(t)
	first := b.RawKey()
	again := New(testConfig(b.signer), Deps{Store: b.store, Groups: testGroups()})
	if again.RawKey() != nil {
		t.Error("a key before Setup")
	}
	if err := again.Setup(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !again.RawKey().SamePublic(first) {
		t.Error("another key")
	}
	var sealed []byte
	if err := b.store.View(t.Context(), func(tx *store.Tx) error { return readKeypair(tx, &sealed) }); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(sealed, first.D) {
		t.Error("the private key is stored in clear")
	}
}
