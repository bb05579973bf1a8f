package oscore

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
)

// ownGroups are the three members of the computed set.
func ownGroups(t *testing.T) (ownVectors, map[string]*Group) {
	t.Helper()
	var v ownVectors
	loadVectors(t, "group-oscore-eddsa-own.json", &v)
	creds := newDirectory()
	for id, m := range v.Members {
		creds.set(v.Gid, sid(id), m.Cred)
	}
	groups := map[string]*Group{}
	for id, m := range v.Members {
		g := must(NewGroup(GroupConfig{Creds: creds}))
		err := g.Install(GroupMaterial{
			Gid: v.Gid, Algorithms: GroupAlgorithms(v.Algs), CredFormat: cose.HeaderKCCS, GMCred: v.GMCred,
			MasterSecret: cose.NewSecret(v.MasterSecret), MasterSalt: v.MasterSalt,
		}, &GroupSender{ID: sid(id), Key: ed25519Key(t, m.Seed), Cred: m.Cred}, nil, false)
		if err != nil {
			t.Fatal(err)
		}
		groups[id] = g
	}
	return v, groups
}

// TestGroupVectorsWhole plays the exchanges of the computed set: what leaves is
// byte for byte what the vectors have, and is read on the other side.
func TestGroupVectorsWhole(t *testing.T) {
	v, groups := ownGroups(t)
	client, server, other := groups["25"], groups["52"], groups["77"]
	byName := map[string]ownMessage{}
	for _, m := range v.Messages {
		byName[m.Name] = m
	}
	hello := &coap.Message{Type: coap.NonConfirmable, Code: coap.GET, ID: 1}
	hello.Options.SetPath("helloWorld")
	world := &coap.Message{Type: coap.NonConfirmable, Code: coap.Content, ID: 1, Payload: []byte("Hello World!")}
	check := func(name string, m *coap.Message) {
		t.Helper()
		want := byName[name]
		value, _ := m.Options.Get(coap.OSCOREOption)
		same(t, name+": option", value, want.Option)
		payload := want.Payload5
		if want.Mode == "pairwise" {
			payload = want.Ciphertext
		}
		same(t, name+": payload", m.Payload, payload)
	}
	read := func(x *GroupExchange, m *coap.Message) {
		t.Helper()
		plain, who, err := x.Unprotect(nil, m)
		if err != nil {
			t.Fatal(err)
		}
		if plain.Code != coap.Content || string(plain.Payload) != "Hello World!" || !bytes.Equal(who.KID, sid("52")) {
			t.Errorf("response of %x: %v %q", who.KID, plain.Code, plain.Payload)
		}
	}

	req, x, err := client.ProtectRequest(t.Context(), nil, hello)
	if err != nil {
		t.Fatal(err)
	}
	check("group request 25->*, seq 0", req)
	if req.Code != coap.POST {
		t.Errorf("outer code %v", req.Code)
	}
	plain, sx, err := server.UnprotectRequest(nil, req)
	if err != nil {
		t.Fatal(err)
	}
	if plain.Code != coap.GET || fmt.Sprint(plain.Options.Path()) != "[helloWorld]" {
		t.Errorf("request: %v %v", plain.Code, plain.Options.Path())
	}
	resp := must(sx.Protect(t.Context(), nil, world))
	check("group response 52, no PIV", resp)
	read(x, resp)
	resp = must(sx.Protect(t.Context(), nil, world))
	check("group response 52, own PIV 00", resp)
	read(x, resp)
	// The third member answers the same request in pairwise mode.
	_, ox, err := other.UnprotectRequest(nil, req)
	if err != nil {
		t.Fatal(err)
	}
	if _, who, err := x.Unprotect(nil, must(ox.ProtectIn(t.Context(), nil, PairwiseMode, world))); err != nil || who.Mode != PairwiseMode {
		t.Errorf("pairwise response of the third: %v", err)
	}

	req, x, err = client.ProtectRequestTo(t.Context(), nil, sid("52"), hello)
	if err != nil {
		t.Fatal(err)
	}
	check("pairwise request 25->52, seq 1", req)
	if _, _, err := other.UnprotectRequest(nil, req); err == nil {
		t.Error("a third member read a request in pairwise mode")
	}
	if _, sx, err = server.UnprotectRequest(nil, req); err != nil {
		t.Fatal(err)
	}
	resp = must(sx.Protect(t.Context(), nil, world))
	check("pairwise response 52->25 to pairwise request, no PIV, kid omitted", resp)
	read(x, resp)

	// Fresh members: pairwise responses to the group request.
	_, groups = ownGroups(t)
	client, server = groups["25"], groups["52"]
	if req, x, err = client.ProtectRequest(t.Context(), nil, hello); err != nil {
		t.Fatal(err)
	}
	if _, sx, err = server.UnprotectRequest(nil, req); err != nil {
		t.Fatal(err)
	}
	resp = must(sx.ProtectIn(t.Context(), nil, PairwiseMode, world))
	check("pairwise response 52->25 to the group request, no PIV, kid present", resp)
	read(x, resp)
	for range 5 { // Partial IVs 0 to 4
		read(x, must(sx.Protect(t.Context(), nil, world)))
	}
	resp = must(sx.ProtectIn(t.Context(), nil, PairwiseMode, world))
	check("pairwise response 52->25 to the group request, own PIV 05", resp)
	read(x, resp)
}

// TestGroupCTRWhole makes the vector under AES-CTR through the whole of protection.
func TestGroupCTRWhole(t *testing.T) {
	var own ownVectors
	loadVectors(t, "group-oscore-eddsa-own.json", &own)
	var v struct {
		groupVectors
		Option   hexBytes `json:"oscore_option"`
		Payload5 hexBytes `json:"payload_5elem"`
	}
	loadVectors(t, "group-oscore-a128ctr-own.json", &v)
	creds := newDirectory()
	creds.set(v.Gid, sid("25"), own.Members["25"].Cred)
	creds.set(v.Gid, sid("52"), own.Members["52"].Cred)
	make := func(id string) *Group {
		g := must(NewGroup(GroupConfig{Creds: creds}))
		m := own.Members[id]
		err := g.Install(GroupMaterial{
			Gid: v.Gid, Algorithms: GroupAlgorithms(v.Algs), CredFormat: cose.HeaderKCCS, GMCred: own.GMCred,
			MasterSecret: cose.NewSecret(v.MasterSecret), MasterSalt: v.MasterSalt,
		}, &GroupSender{ID: sid(id), Key: ed25519Key(t, m.Seed), Cred: m.Cred}, nil, false)
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	hello := &coap.Message{Code: coap.GET}
	hello.Options.SetPath("helloWorld")
	req, _, err := make("25").ProtectRequest(t.Context(), nil, hello)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "payload", req.Payload, v.Payload5)
	if _, _, err := make("52").UnprotectRequest(nil, req); err != nil {
		t.Error(err)
	}
}

// TestGroupModes goes through the four combinations of modes with every pair of
// algorithms that implementations were seen to share, and some more.
func TestGroupModes(t *testing.T) {
	ccm, chacha := cose.AlgAESCCM16_64_128, cose.AlgChaCha20Poly1305
	for _, algs := range []GroupAlgorithms{
		{GroupEnc: ccm, AEAD: ccm, Sign: cose.AlgEdDSA, KeyAgreement: cose.AlgECDHSSHKDF256},
		{GroupEnc: chacha, AEAD: chacha, Sign: cose.AlgEdDSA, KeyAgreement: cose.AlgECDHSSHKDF256},
		{GroupEnc: ccm, AEAD: chacha, Sign: cose.AlgEdDSA, KeyAgreement: cose.AlgECDHSSHKDF256},
		{GroupEnc: chacha, AEAD: ccm, Sign: cose.AlgEdDSA, KeyAgreement: cose.AlgECDHSSHKDF256},
		{GroupEnc: cose.AlgA128CTR, AEAD: ccm, Sign: cose.AlgES256, KeyAgreement: cose.AlgECDHSSHKDF256},
		{GroupEnc: cose.AlgA192CTR, AEAD: cose.AlgA192GCM, Sign: cose.AlgES384, KeyAgreement: cose.AlgECDHSSHKDF256},
		{GroupEnc: cose.AlgA256CTR, AEAD: cose.AlgA256GCM, Sign: cose.AlgES512, KeyAgreement: cose.AlgECDHSSHKDF512, HKDF: cose.AlgHMAC512},
		{GroupEnc: cose.AlgAESCCM64_128_256, AEAD: cose.AlgA128GCM, Sign: cose.AlgES256, KeyAgreement: cose.AlgECDHSSHKDF256},
	} {
		s := newSite(t, algs)
		client, server := s.member("a", GroupConfig{}), s.member("b", GroupConfig{})
		for _, reqMode := range []Mode{GroupMode, PairwiseMode} {
			for _, respMode := range []Mode{GroupMode, PairwiseMode} {
				t.Run(fmt.Sprintf("%d,%d/%v,%v", algs.GroupEnc, algs.AEAD, reqMode, respMode), func(t *testing.T) {
					req, x := ask(t, client, reqMode, "b", get("/temperature"))
					inner, sx, err := server.UnprotectRequest(nil, req)
					if err != nil {
						t.Fatal(err)
					}
					if sx.Mode() != reqMode || string(sx.Sender()) != "a" || fmt.Sprint(inner.Options.Path()) != "[temperature]" {
						t.Errorf("read %v of %q for %v", sx.Mode(), sx.Sender(), inner.Options.Path())
					}
					resp := wire(t, must(sx.ProtectIn(t.Context(), nil, respMode, content("21.5"))))
					plain, who, err := x.Unprotect(nil, resp)
					if err != nil {
						t.Fatal(err)
					}
					if string(plain.Payload) != "21.5" || who.Mode != respMode || string(who.KID) != "b" || who.Numbered {
						t.Errorf("response %q by %+v", plain.Payload, who)
					}
					if _, _, err := x.Unprotect(nil, resp); err == nil {
						t.Error("the response is taken twice")
					}
					if _, _, err := server.UnprotectRequest(nil, req); err == nil {
						t.Error("the request is taken twice")
					} else {
						wantErr(t, "replay", err, ErrReplay)
					}
				})
			}
		}
	}
}

// TestGroupOneMode: what a group has no algorithms for is refused, on both sides.
func TestGroupOneMode(t *testing.T) {
	signed := newSite(t, GroupAlgorithms{GroupEnc: cose.AlgAESCCM16_64_128, Sign: cose.AlgEdDSA})
	a, b := signed.member("a", GroupConfig{}), signed.member("b", GroupConfig{})
	if a.HasPairwise() || !a.HasGroupMode() {
		t.Error("modes of a group with signatures alone")
	}
	_, _, err := a.ProtectRequestTo(t.Context(), nil, []byte("b"), get("/"))
	wantErr(t, "pairwise request", err, ErrMode)
	req, x := ask(t, a, GroupMode, "", get("/x"))
	_, sx, err := b.UnprotectRequest(nil, req)
	if err != nil {
		t.Fatal(err)
	}
	_, err = sx.ProtectIn(t.Context(), nil, PairwiseMode, content("x"))
	wantErr(t, "pairwise response", err, ErrMode)
	if _, _, err := x.Unprotect(nil, must(sx.Protect(t.Context(), nil, content("x")))); err != nil {
		t.Error(err)
	}
	value, _ := req.Options.Get(coap.OSCOREOption)
	req.Options.Set(coap.OSCOREOption, append([]byte{value[0] &^ flagGroup}, value[1:]...))
	_, _, err = b.UnprotectRequest(nil, req)
	wantErr(t, "Group Flag taken off", err, ErrMode)

	pairwise := newSite(t, GroupAlgorithms{AEAD: cose.AlgAESCCM16_64_128, KeyAgreement: cose.AlgECDHSSHKDF256})
	a, b = pairwise.member("a", GroupConfig{}), pairwise.member("b", GroupConfig{})
	_, _, err = a.ProtectRequest(t.Context(), nil, get("/"))
	wantErr(t, "group request", err, ErrMode)
	req, x = ask(t, a, PairwiseMode, "b", get("/x"))
	if _, _, err := x.Unprotect(nil, serve(t, b, req, PairwiseMode, "x")); err != nil {
		t.Error(err)
	}
}

// TestGroupErrors: codes of draft-ietf-core-oscore-groupcomm-28, Sections 6, 7.2
// and 8.4, and silence on multicast.
func TestGroupErrors(t *testing.T) {
	s := newSite(t, bothModes)
	client, server := s.member("a", GroupConfig{}), s.member("b", GroupConfig{MaxAge: 7})
	req, _ := ask(t, client, GroupMode, "", get("/x"))
	pair, _ := ask(t, client, PairwiseMode, "b", get("/x"))
	spoil := func(m *coap.Message, at int) *coap.Message {
		c := m.Clone()
		if at < 0 {
			at += len(c.Payload)
		}
		c.Payload[at] ^= 1
		return c
	}
	option := func(m *coap.Message, o Option) *coap.Message {
		c := m.Clone()
		c.Options.Set(coap.OSCOREOption, must(o.Append(nil)))
		return c
	}
	unknown := newSite(t, bothModes)
	unknown.creds = s.creds
	stranger := unknown.member("z", GroupConfig{})
	s.creds.forget(s.material.Gid, "z")
	strange, _ := ask(t, stranger, GroupMode, "", get("/x"))
	for name, c := range map[string]struct {
		m    *coap.Message
		want error
		code coap.Code
		text string
	}{
		"other Gid":         {option(req, Option{PIV: []byte{0}, KID: []byte("a"), KIDContext: []byte{1}, Group: true}), ErrContext, coap.Unauthorized, "Security context not found"},
		"no kid context":    {option(req, Option{PIV: []byte{0}, KID: []byte("a"), Group: true}), ErrOption, coap.BadOption, "Failed to decode COSE"},
		"no kid":            {option(req, Option{PIV: []byte{0}, KIDContext: s.material.Gid, Group: true}), ErrOption, coap.BadOption, "Failed to decode COSE"},
		"no Partial IV":     {option(req, Option{KID: []byte("a"), KIDContext: s.material.Gid, Group: true}), ErrOption, coap.BadOption, "Failed to decode COSE"},
		"own Sender ID":     {option(req, Option{PIV: []byte{0}, KID: []byte("b"), KIDContext: s.material.Gid, Group: true}), ErrOwnMessage, coap.Unauthorized, "Security context not found"},
		"unknown sender":    {strange, ErrUnknownPeer, coap.ServiceUnavailable, ""},
		"ciphertext":        {spoil(req, 0), ErrDecrypt, coap.BadRequest, "Decryption failed"},
		"signature":         {spoil(req, -1), ErrDecrypt, coap.BadRequest, "Decryption failed"},
		"pairwise":          {spoil(pair, 3), ErrDecrypt, coap.BadRequest, "Decryption failed"},
		"cut off":           {&coap.Message{Code: coap.POST, Options: req.Options, Payload: req.Payload[:40]}, ErrDecrypt, coap.BadRequest, "Decryption failed"},
		"pairwise as group": {&coap.Message{Code: coap.POST, Options: req.Options, Payload: pair.Payload}, ErrDecrypt, coap.BadRequest, "Decryption failed"},
	} {
		_, x, err := server.UnprotectRequest(nil, c.m)
		if x != nil {
			t.Errorf("%s: accepted", name)
		}
		wantErr(t, name, err, c.want)
		r := server.ErrorResponse(err, false)
		if r == nil || r.Code != c.code || string(r.Payload) != c.text {
			t.Errorf("%s: response %+v", name, r)
		} else if age, ok := r.Options.Uint(coap.MaxAge); !ok || (age == 7) != (c.code == coap.ServiceUnavailable) {
			t.Errorf("%s: Max-Age %d", name, age)
		}
		if server.ErrorResponse(err, true) != nil {
			t.Errorf("%s: answered on multicast", name)
		}
	}
	// Nothing of that changed anything: the messages are read as they are.
	for _, m := range []*coap.Message{pair, req} {
		if _, _, err := server.UnprotectRequest(nil, m); err != nil {
			t.Error(err)
		}
	}
	_, _, err := server.UnprotectRequest(nil, get("/x"))
	wantErr(t, "unprotected", err, ErrUnprotected)
}

// TestGroupUnknownThenKnown: the same message is read once the credential came.
func TestGroupUnknownThenKnown(t *testing.T) {
	s := newSite(t, bothModes)
	client, server := s.member("a", GroupConfig{}), s.member("b", GroupConfig{})
	s.creds.forget(s.material.Gid, "a")
	req, _ := ask(t, client, GroupMode, "", get("/x"))
	_, _, err := server.UnprotectRequest(nil, req)
	wantErr(t, "unknown", err, ErrUnknownPeer)
	s.sender("a")
	if _, _, err := server.UnprotectRequest(nil, req); err != nil {
		t.Error(err)
	}
}

// TestGroupSilent: a member without a Sender ID reads group mode and protects
// nothing.
func TestGroupSilent(t *testing.T) {
	s := newSite(t, bothModes)
	client := s.member("a", GroupConfig{})
	monitor := must(NewGroup(GroupConfig{Creds: s.creds}))
	_, _, err := monitor.ProtectRequest(t.Context(), nil, get("/"))
	wantErr(t, "nothing installed", err, ErrNoMaterial)
	if err := monitor.Install(s.material, nil, nil, false); err != nil {
		t.Fatal(err)
	}
	req, _ := ask(t, client, GroupMode, "", get("/x"))
	_, x, err := monitor.UnprotectRequest(nil, req)
	if err != nil {
		t.Fatal(err)
	}
	_, err = x.Protect(t.Context(), nil, content("x"))
	wantErr(t, "response", err, ErrSilent)
	s.sender("b")
	req, _ = ask(t, client, PairwiseMode, "b", get("/x"))
	_, _, err = monitor.UnprotectRequest(nil, req)
	wantErr(t, "pairwise", err, ErrMode)
}

// TestGroupPrintsNoKeys: no verb shows a key, nor what a sender is made of.
func TestGroupPrintsNoKeys(t *testing.T) {
	s := newSite(t, bothModes)
	g := s.member("a", GroupConfig{})
	sender := s.sender("a")
	for _, v := range []any{g, *sender, sender, s.material} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q"} {
			out := fmt.Sprintf(verb, v)
			for _, secret := range []string{"master secret", fmt.Sprintf("%x", "master secret"), fmt.Sprintf("%x", sender.Key.D), fmt.Sprint([]byte("master secret"))} {
				if bytes.Contains([]byte(out), []byte(secret)) {
					t.Errorf("%T under %s: %s", v, verb, out)
				}
			}
		}
	}
}
