package gm

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/gm/gmtest"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

func legacyConfig(name string, i groupcomm.Interface) groupcomm.GroupConfig {
	c := groupConfig(name)
	c.Interface = i
	return c
}

func (f *fixture) legacy(j *gmtest.Joiner, code coap.Code, body []byte, path ...string) *coap.Response {
	return gmtest.Serve(f.t.Context(), f.m, j.LegacyRequest(code, body, path...))
}

func (f *fixture) legacyJoin(j *gmtest.Joiner, d groupcomm.Interface, group string, roles groupcomm.Roles) *groupcomm.LegacyKeyDistribution {
	f.t.Helper()
	k, err := j.LegacyJoin(f.t.Context(), f.m, d, group, roles)
	if err != nil {
		f.t.Fatal(err)
	}
	return k
}

func TestDraft03Join(t *testing.T) {
	f := newFixture(t, legacyConfig("g1", groupcomm.Draft03))
	first, j := f.joiner("first", "g1", both), f.joiner("n", "g1", both)
	if d := f.legacyJoin(first, groupcomm.Draft03, "g1", both); d.PubKeys == nil || len(d.PubKeys) != 0 {
		t.Errorf("the first member got %v", d.PubKeys)
	}
	d := f.legacyJoin(j, groupcomm.Draft03, "g1", both)
	k := d.Key
	want := groupcomm.LegacySignInfo{Alg: cose.AlgEdDSA, Kty: cose.KtyOKP, Crv: cose.CrvEd25519}
	if len(k.MasterSecret) != 16 || len(k.Salt) != 8 || k.HKDF != cose.AlgHMAC256 || k.Alg != cose.AlgAESCCM16_64_128 ||
		!bytes.Equal(k.ClientID, []byte{0}) || k.Sign.Alg != want.Alg || k.Sign.Kty != want.Kty || k.Sign.Crv != want.Crv {
		t.Error("wrong key")
	}
	if d.Num != 0 || d.Exp <= time.Now().Unix() || d.Policies == nil || d.Policies.KeyCheck != 3600 {
		t.Error("wrong fields")
	}
	if len(d.PubKeys) != 1 || len(d.PubKeys[0].SenderID) != 0 || !d.PubKeys[0].Key.SamePublic(first.Key) {
		t.Error("wrong public keys")
	}
	// One member, whatever is joined again: with the stored key, which needs no
	// proof, and with a new Sender ID.
	msg := &groupcomm.LegacyJoinRequest{
		Dialect: groupcomm.Draft03, Scope: groupcomm.EncodeTextScope(groupcomm.ScopeEntry{Group: "g1", Roles: both}),
	}
	r := f.legacy(j, coap.POST, msg.Encode(), "g1")
	again, err := groupcomm.DecodeLegacyKeyDistribution(groupcomm.Draft03, r.Payload)
	if r.Code != coap.Created || err != nil || !bytes.Equal(again.Key.ClientID, []byte{1}) || again.PubKeys != nil {
		t.Errorf("joined again: %v %v", r.Code, err)
	}
	if age, ok := r.Options.Uint(coap.MaxAge); !ok || age != 0 {
		t.Error("keys may be cached")
	}
	if s := f.status(); s.Members != 2 {
		t.Errorf("%d members", s.Members)
	}
}

// A Joining Request that fails is answered with what the next one needs; one that
// is not authorized with 4.01.
func TestDraft03JoinRefused(t *testing.T) {
	t.Parallel()
	es, err := cose.GenerateKey(cose.AlgES256)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		change func(*groupcomm.LegacyJoinRequest)
		want   coap.Code
	}{
		"no proof":            {func(m *groupcomm.LegacyJoinRequest) { m.ClientCredVerify = nil }, coap.BadRequest},
		"no nonce":            {func(m *groupcomm.LegacyJoinRequest) { m.CNonce = nil }, coap.BadRequest},
		"short nonce":         {func(m *groupcomm.LegacyJoinRequest) { m.CNonce = m.CNonce[:7] }, coap.BadRequest},
		"wrong proof":         {func(m *groupcomm.LegacyJoinRequest) { m.ClientCredVerify[3] ^= 1 }, coap.BadRequest},
		"empty proof":         {func(m *groupcomm.LegacyJoinRequest) { m.ClientCredVerify = []byte{} }, coap.BadRequest},
		"key of another kind": {func(m *groupcomm.LegacyJoinRequest) { m.ClientCred = es.Public().Encode() }, coap.BadRequest},
		"private key":         {func(m *groupcomm.LegacyJoinRequest) { m.ClientCred = es.Encode() }, coap.BadRequest},
		"no key":              {func(m *groupcomm.LegacyJoinRequest) { m.ClientCred = []byte{} }, coap.BadRequest},
		"no stored key":       {func(m *groupcomm.LegacyJoinRequest) { m.ClientCred = nil }, coap.BadRequest},
		"integer roles": {func(m *groupcomm.LegacyJoinRequest) {
			m.Scope = groupcomm.ScopeEntry{Group: "g1", Roles: both}.Encode()
		}, coap.BadRequest},
		"another group": {func(m *groupcomm.LegacyJoinRequest) {
			m.Scope = groupcomm.EncodeTextScope(groupcomm.ScopeEntry{Group: "g2", Roles: both})
		}, coap.BadRequest},
		"monitor and responder": {func(m *groupcomm.LegacyJoinRequest) {
			m.Scope = groupcomm.EncodeTextScope(groupcomm.ScopeEntry{Group: "g1", Roles: groupcomm.Monitor | groupcomm.Responder})
		}, coap.BadRequest},
		"roles of others": {func(m *groupcomm.LegacyJoinRequest) {
			m.Scope = groupcomm.EncodeTextScope(groupcomm.ScopeEntry{Group: "g1", Roles: groupcomm.Monitor})
		}, coap.Unauthorized},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, legacyConfig("g1", groupcomm.Draft03))
			j := f.joiner("n", "g1", both)
			msg, err := j.LegacyJoinMessage(groupcomm.Draft03, "g1", both)
			if err != nil {
				t.Fatal(err)
			}
			tc.change(msg)
			before := f.dump()
			r := f.legacy(j, coap.POST, msg.Encode(), "g1")
			if r.Code != tc.want {
				t.Fatalf("%v, want %v", r.Code, tc.want)
			}
			if tc.want == coap.BadRequest {
				i, err := groupcomm.DecodeLegacyInfo(groupcomm.Draft03, r.Payload)
				if err != nil || len(i.SignInfo) != 1 || i.SignInfo[0].Alg != cose.AlgEdDSA || i.PubKeyEnc != 1 || i.Challenge != nil {
					t.Errorf("information %+v, %v", i, err)
				}
			}
			if f.dump() != before {
				t.Error("a refusal changed something")
			}
		})
	}
}

// A node without any N_S is given one with the refusal.
func TestDraft03NewChallenge(t *testing.T) {
	f := newFixture(t, legacyConfig("g1", groupcomm.Draft03))
	j := f.joiner("n", "g1", both)
	f.auth.ForgetChallenges(j.Peer.Subject)
	msg, err := j.LegacyJoinMessage(groupcomm.Draft03, "g1", both)
	if err != nil {
		t.Fatal(err)
	}
	r := f.legacy(j, coap.POST, msg.Encode(), "g1")
	i, err := groupcomm.DecodeLegacyInfo(groupcomm.Draft03, r.Payload)
	if r.Code != coap.BadRequest || err != nil || len(i.Challenge) < 8 {
		t.Fatalf("%v %+v %v", r.Code, i, err)
	}
	j.NS = i.Challenge
	f.legacyJoin(j, groupcomm.Draft03, "g1", both)
}

// A requester may be a monitor in draft-03; where the group speaks the current
// interface as well, what that forbids is refused.
func TestDraft03RequesterMonitor(t *testing.T) {
	roles := groupcomm.Requester | groupcomm.Monitor
	f := newFixture(t, legacyConfig("g1", groupcomm.Draft03))
	if d := f.legacyJoin(f.joiner("n", "g1", roles), groupcomm.Draft03, "g1", roles); d.Key.ClientID == nil {
		t.Error("a requester without Sender ID")
	}
	if d := f.legacyJoin(f.joiner("m", "g1", roles), groupcomm.Draft03, "g1", groupcomm.Monitor); d.Key.ClientID != nil {
		t.Error("a monitor with a Sender ID")
	}
	f = newFixture(t, legacyConfig("g1", groupcomm.Both))
	if _, err := f.joiner("n", "g1", roles).LegacyJoin(t.Context(), f.m, groupcomm.Draft03, "g1", roles); err == nil {
		t.Error("both: a requester became a monitor")
	}
}

// A node may leave out client_cred when exactly one public key of it is stored;
// a key goes with the last membership that uses it.
func TestDraft03StoredKey(t *testing.T) {
	a, b, c := legacyConfig("a", groupcomm.Draft03), legacyConfig("b", groupcomm.Draft03), legacyConfig("c", groupcomm.Draft03)
	a.GidPrefix, b.GidPrefix, c.GidPrefix = []byte{1}, []byte{2}, []byte{3}
	f := newFixture(t, a, b, c)
	j := f.joinerWith("n", cose.AlgEdDSA, groupcomm.Scope{{Group: "a", Roles: both}, {Group: "b", Roles: both}, {Group: "c", Roles: both}}, time.Time{})
	bare := func(group string) coap.Code {
		msg := &groupcomm.LegacyJoinRequest{
			Dialect: groupcomm.Draft03, Scope: groupcomm.EncodeTextScope(groupcomm.ScopeEntry{Group: group, Roles: both}),
		}
		return f.legacy(j, coap.POST, msg.Encode(), group).Code
	}
	if got := bare("a"); got != coap.BadRequest {
		t.Errorf("without any key: %v", got)
	}
	f.legacyJoin(j, groupcomm.Draft03, "a", both)
	if got := bare("b"); got != coap.Created {
		t.Errorf("with one key: %v", got)
	}
	stored := func() (n int) {
		err := f.st.View(t.Context(), func(tx *store.Tx) error {
			return tx.QueryRow(`SELECT COUNT(*) FROM gm_members WHERE cred IS NOT NULL`).Scan(&n)
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if r := f.legacy(j, coap.POST, []byte{0xa0}, "a", "node"); r.Code != coap.Content || len(r.Payload) != 0 {
		t.Errorf("leave: %v", r.Code)
	}
	if stored() != 1 {
		t.Error("the key that another group uses is gone")
	}
	other, err := gmtest.NewJoiner("n", cose.AlgEdDSA)
	if err != nil {
		t.Fatal(err)
	}
	other.NS = j.NS
	f.legacyJoin(other, groupcomm.Draft03, "a", both)
	if got := bare("c"); got != coap.BadRequest {
		t.Errorf("with two keys: %v", got)
	}
	for _, g := range []string{"a", "b"} {
		f.legacy(j, coap.POST, []byte{0xa0}, g, "node")
	}
	if stored() != 0 {
		t.Error("the keys stayed")
	}
	if got := bare("c"); got != coap.BadRequest {
		t.Errorf("with deleted keys: %v", got)
	}
}

// The public key that the token confirms, and that the handshake has proven,
// counts as one that the Group Manager has (Sections 4.3 and 5).
func TestDraft03ShownKey(t *testing.T) {
	f := newFixture(t, legacyConfig("g1", groupcomm.Draft03))
	ed, other := f.joiner("n", "g1", both), f.joiner("o", "g1", both)
	p256, err := cose.GenerateKey(cose.AlgES256)
	if err != nil {
		t.Fatal(err)
	}
	bare := func() *coap.Response {
		msg := &groupcomm.LegacyJoinRequest{
			Dialect: groupcomm.Draft03, Scope: groupcomm.EncodeTextScope(groupcomm.ScopeEntry{Group: "g1", Roles: both}),
		}
		return f.legacy(ed, coap.POST, msg.Encode(), "g1")
	}
	f.auth.Confirm(ed.Peer.Subject, p256.Public())
	if r := bare(); r.Code != coap.BadRequest {
		t.Errorf("with a key of another algorithm: %v", r.Code)
	}
	f.auth.Confirm(ed.Peer.Subject, ed.Key.Public())
	if r := bare(); r.Code != coap.Created {
		t.Fatalf("with the key of the token: %v", r.Code)
	}
	r := f.legacy(ed, coap.GET, nil, "g1", "pub-key")
	keys, err := groupcomm.DecodeLegacyPubKeys(groupcomm.Draft03, r.Payload)
	if err != nil || len(keys.PubKeys) != 1 || !keys.PubKeys[0].Key.SamePublic(ed.Key) {
		t.Errorf("pub-key: %v, %v", r.Code, err)
	}
	if r := bare(); r.Code != coap.Created {
		t.Errorf("the same key from the join and from the token: %v", r.Code)
	}
	f.auth.Confirm(ed.Peer.Subject, other.Key.Public())
	if r := bare(); r.Code != coap.BadRequest {
		t.Errorf("with one key from the join and another from the token: %v", r.Code)
	}
}

func TestDraft03PubKeys(t *testing.T) {
	f := newFixture(t, legacyConfig("g1", groupcomm.Draft03))
	var nodes []*gmtest.Joiner
	for _, n := range []string{"a", "b", "c"} {
		nodes = append(nodes, f.joiner(n, "g1", both))
		f.legacyJoin(nodes[len(nodes)-1], groupcomm.Draft03, "g1", both)
	}
	ask := func(ids ...groupcomm.SenderID) *coap.Response {
		if ids == nil {
			return f.legacy(nodes[0], coap.GET, nil, "g1", "pub-key")
		}
		return f.legacy(nodes[0], coap.POST, groupcomm.EncodeLegacyPubKeyRequest(groupcomm.Draft03, &groupcomm.GetCreds{IDs: ids}), "g1", "pub-key")
	}
	for _, tc := range []struct {
		ids  []groupcomm.SenderID
		want []string // Sender IDs
	}{
		{nil, []string{"", "00", "01"}},
		{[]groupcomm.SenderID{{1}, {}}, []string{"", "01"}},
		{[]groupcomm.SenderID{{1}, {0x77}, make([]byte, 30)}, []string{"01"}},
		{[]groupcomm.SenderID{{0x77}}, nil},
	} {
		r := ask(tc.ids...)
		p, err := groupcomm.DecodeLegacyPubKeys(groupcomm.Draft03, r.Payload)
		if r.Code != coap.Content || err != nil {
			t.Fatalf("%v: %v %v", tc.ids, r.Code, err)
		}
		var got []string
		for _, k := range p.PubKeys {
			got = append(got, k.SenderID.String())
			if !k.Key.SamePublic(nodes[len(got)-1].Key) && tc.ids == nil {
				t.Errorf("%v: another key", k.SenderID)
			}
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%v: %q, want %q", tc.ids, got, tc.want)
		}
		if tc.want == nil && !bytes.Equal(r.Payload, []byte{0x40}) {
			t.Errorf("nothing is answered with %x", r.Payload)
		}
	}
	for _, body := range []string{"\xa1\x18\x65\x80", "\xa0", "", "\x80"} {
		if r := f.legacy(nodes[0], coap.POST, []byte(body), "g1", "pub-key"); r.Code != coap.BadRequest || len(r.Payload) != 0 {
			t.Errorf("%x: %v %x", body, r.Code, r.Payload)
		}
	}
}

func TestDraft03Renewal(t *testing.T) {
	f := newFixture(t, legacyConfig("g1", groupcomm.Draft03))
	j := f.joiner("n", "g1", both)
	f.legacyJoin(j, groupcomm.Draft03, "g1", both)
	r := f.legacy(j, coap.GET, nil, "g1", "node")
	k, err := groupcomm.DecodeLegacyKeyRenewal(r.Payload)
	if r.Code != coap.Content || err != nil || !bytes.Equal(k.SenderID, []byte{0}) {
		t.Errorf("renewal: %v %v", r.Code, err)
	}
	// A member that leaves makes a rekey due: then that is the answer.
	gone := f.joiner("gone", "g1", both)
	f.legacyJoin(gone, groupcomm.Draft03, "g1", both)
	f.legacy(gone, coap.POST, []byte{0xa0}, "g1", "node")
	if r := f.legacy(j, coap.GET, nil, "g1", "node"); r.Code != coap.NotAcceptable || len(r.Payload) != 0 {
		t.Errorf("renewal while a rekey is due: %v", r.Code)
	}
}

func TestDraft03RenewalRekeys(t *testing.T) {
	c := legacyConfig("g1", groupcomm.Draft03)
	c.RekeyOnRenewal = true
	f := newFixture(t, c)
	j := f.joiner("n", "g1", both)
	before := f.legacyJoin(j, groupcomm.Draft03, "g1", both)
	if r := f.legacy(j, coap.GET, nil, "g1", "node"); r.Code != coap.NotAcceptable {
		t.Fatalf("renewal: %v", r.Code)
	}
	if !f.status().Due {
		t.Fatal("the rekey is not durable")
	}
	f.reopen(f.st) // as after a crash
	g, _ := f.m.group("g1")
	f.m.workOff(t.Context(), g)
	if num, body, err := f.m.LegacyRekey(t.Context(), "g1"); err != nil || num != 1 {
		t.Errorf("version %d, %v", num, err)
	} else if d, err := groupcomm.DecodeLegacyKeyDistribution(groupcomm.Draft03, body); err != nil || d.Num != 1 ||
		bytes.Equal(d.Key.MasterSecret, before.Key.MasterSecret) || bytes.Equal(d.Key.ContextID, before.Key.ContextID) ||
		d.Key.Sign.Alg != 0 || d.Key.ClientID != nil || d.Policies != nil || d.PubKeys != nil {
		t.Errorf("rekey message: %v", err)
	}
	// docs/protocol.md, Section 4: Sender IDs are preserved.
	if ms, err := f.m.Members(t.Context(), "g1"); err != nil || !bytes.Equal(ms[0].SenderID, before.Key.ClientID) {
		t.Error("the Sender ID changed")
	}
}

// Every leave rekeys, and no Sender ID is given out twice under one Gid.
func TestDraft03Leave(t *testing.T) {
	f := newFixture(t, legacyConfig("g1", groupcomm.Draft03))
	a, b := f.joiner("a", "g1", both), f.joiner("b", "g1", both)
	first := f.legacyJoin(a, groupcomm.Draft03, "g1", both)
	for _, body := range []string{"", "\x80", "\xa0\xa0", "\xa1\x09\x41\x80"} {
		if r := f.legacy(a, coap.POST, []byte(body), "g1", "node"); r.Code != coap.BadRequest {
			t.Errorf("leave with %x: %v", body, r.Code)
		}
	}
	if r := f.legacy(a, coap.POST, []byte{0xa0}, "g1", "node"); r.Code != coap.Content || len(r.Payload) != 0 {
		t.Errorf("leave: %v", r.Code)
	}
	if !f.status().Due {
		t.Error("no rekey is due")
	}
	if r := f.legacy(a, coap.GET, nil, "g1"); r.Code != coap.Unauthorized {
		t.Errorf("who left reads: %v", r.Code)
	}
	d := f.legacyJoin(b, groupcomm.Draft03, "g1", both)
	if d.Num != 1 || bytes.Equal(d.Key.ContextID, first.Key.ContextID) {
		t.Error("a newcomer got material that who left holds")
	}
	sids := map[string]bool{}
	for range 3 {
		f.legacyJoin(b, groupcomm.Draft03, "g1", both)
		ms, err := f.m.Members(t.Context(), "g1")
		if err != nil || sids[ms[0].SenderID.String()] {
			t.Fatalf("Sender ID %v again, %v", ms[0].SenderID, err)
		}
		sids[ms[0].SenderID.String()] = true
	}
}

func TestLegacyReads(t *testing.T) {
	for d, num := range map[groupcomm.Interface]string{groupcomm.Draft03: "ctx-num", groupcomm.Hackathon109: "num"} {
		f := newFixture(t, legacyConfig("g1", d))
		j := f.joiner("n", "g1", both)
		joined := f.legacyJoin(j, d, "g1", both)
		f.rekey("g1")
		for _, format := range []coap.Format{coap.CBOR, coap.LegacyACEGroupcomm} {
			req := j.LegacyRequest(coap.GET, nil, "g1")
			req.Options.SetUint(coap.Accept, uint32(format))
			r := gmtest.Serve(t.Context(), f.m, req)
			k, err := groupcomm.DecodeLegacyKeyDistribution(d, r.Payload)
			if err != nil || k.Num != 1 || k.Key.ClientID != nil || k.Key.Sign.Alg != joined.Key.Sign.Alg || k.Policies != nil {
				t.Errorf("%v: keys %v", d, err)
			}
			if got, _ := r.Options.ContentFormat(); got != format || r.Observe == nil || r.Observe.Topic != groupcomm.LegacyTopic("g1", format) {
				t.Errorf("%v: format %d, observation %v", d, got, r.Observe)
			}
		}
		if r := f.legacy(j, coap.GET, nil, "g1", num); !bytes.Equal(r.Payload, []byte{1}) {
			t.Errorf("%v: version %x", d, r.Payload)
		}
		if p, err := groupcomm.DecodeLegacyPolicies(f.legacy(j, coap.GET, nil, "g1", "policies").Payload); err != nil || p.KeyCheck != 3600 {
			t.Errorf("%v: policies %v", d, err)
		}
	}
}

// The answer has the Content-Format of the request, 60 when it has none; others
// are refused.
func TestLegacyFormats(t *testing.T) {
	f := newFixture(t, legacyConfig("g1", groupcomm.Draft03))
	for name, tc := range map[string]struct {
		given, accept int // -1: none
		want          coap.Format
		code          coap.Code
	}{
		"none":               {-1, -1, coap.CBOR, coap.Created},
		"cbor":               {60, -1, coap.CBOR, coap.Created},
		"experimental":       {65501, -1, coap.LegacyACEGroupcomm, coap.Created},
		"accepted":           {60, 65501, coap.LegacyACEGroupcomm, coap.Created},
		"current":            {261, -1, 0, coap.UnsupportedContentFormat},
		"accepted is no one": {60, 261, 0, coap.NotAcceptable},
		"accepted too large": {60, 65536 + 60, 0, coap.NotAcceptable},
	} {
		j := f.joiner(name, "g1", both)
		msg, err := j.LegacyJoinMessage(groupcomm.Draft03, "g1", both)
		if err != nil {
			t.Fatal(err)
		}
		req := j.LegacyRequest(coap.POST, msg.Encode(), "g1")
		req.Options.Remove(coap.ContentFormatOption)
		if tc.given >= 0 {
			req.Options.SetUint(coap.ContentFormatOption, uint32(tc.given))
		}
		if tc.accept >= 0 {
			req.Options.SetUint(coap.Accept, uint32(tc.accept))
		}
		r := gmtest.Serve(t.Context(), f.m, req)
		if got, _ := r.Options.ContentFormat(); r.Code != tc.code || got != tc.want {
			t.Errorf("%s: %v, format %d", name, r.Code, got)
		}
	}
}

// A group is served where it says, and nowhere else.
func TestInterfaces(t *testing.T) {
	for i, want := range map[groupcomm.Interface][2]bool{ // current, legacy
		groupcomm.Current: {true, false}, groupcomm.Draft03: {false, true}, groupcomm.Hackathon109: {false, true}, groupcomm.Both: {true, true},
	} {
		f := newFixture(t, legacyConfig("g1", i))
		j := f.joiner("n", "g1", both)
		for k, root := range []string{"ace-group", "group-oscore"} {
			r := f.do(j, coap.POST, []byte{0xa0}, root, "g1")
			if found := r.Code != coap.NotFound; found != want[k] {
				t.Errorf("%v: %s answers %v", i, root, r.Code)
			}
			// Who has no token for a group is not told whether it exists.
			if r := f.do(j, coap.GET, nil, root, "g2"); r.Code != coap.Forbidden && r.Code != coap.Unauthorized {
				t.Errorf("%v: %s tells of another group: %v", i, root, r.Code)
			}
		}
		var links []string
		for _, l := range f.m.Links(t.Context()) {
			links = append(links, l.Target)
		}
		if slices.Contains(links, "/ace-group/g1") != want[0] || slices.Contains(links, "/group-oscore/g1") != want[1] || slices.Contains(links, "/ace-group") != want[0] {
			t.Errorf("%v: links %q", i, links)
		}
	}
}

// In a group with both interfaces there is one membership, and one list of keys.
func TestBothInterfaces(t *testing.T) {
	f := newFixture(t, legacyConfig("g1", groupcomm.Both))
	old, now := f.joiner("old", "g1", both), f.joiner("now", "g1", both)
	f.legacyJoin(old, groupcomm.Draft03, "g1", both)
	d, err := now.JoinMessage("g1", both)
	if err != nil {
		t.Fatal(err)
	}
	d.GetCreds = &groupcomm.GetCreds{All: true}
	kd, err := now.Accept(now.Send(t.Context(), f.m, "g1", d))
	if err != nil {
		t.Fatal(err)
	}
	cred, err := groupcomm.CredOfKey(old.Key.Public().Encode())
	if err != nil {
		t.Fatal(err)
	}
	if len(kd.Creds) != 1 || !bytes.Equal(kd.Creds[0], cred) || len(kd.PeerIdentifiers[0]) != 0 {
		t.Error("the current member does not see the other")
	}
	p, err := groupcomm.DecodeLegacyPubKeys(groupcomm.Draft03, f.legacy(old, coap.GET, nil, "g1", "pub-key").Payload)
	if err != nil || len(p.PubKeys) != 2 || !p.PubKeys[1].Key.SamePublic(now.Key) {
		t.Errorf("the other does not see the current member: %v", err)
	}
	// The same node in the other dialect: one member with a new Sender ID.
	again := f.legacyJoin(now, groupcomm.Draft03, "g1", both)
	if s := f.status(); s.Members != 2 || !bytes.Equal(again.Key.ClientID, []byte{1}) || !bytes.Equal(again.Key.MasterSecret, kd.Key.MasterSecret) {
		t.Errorf("%d members", s.Members)
	}
	f.leave(now)
	if r := f.legacy(now, coap.GET, nil, "g1"); r.Code != coap.Unauthorized {
		t.Errorf("who left reads: %v", r.Code)
	}
}

func TestHackathon109(t *testing.T) {
	f := newFixture(t, legacyConfig("g1", groupcomm.Hackathon109))
	d := groupcomm.Hackathon109
	first, j := f.joiner("first", "g1", both), f.joiner("n", "g1", both)
	f.legacyJoin(first, d, "g1", groupcomm.Responder)
	kd := f.legacyJoin(j, d, "g1", both)
	if len(kd.PubKeys) != 1 || !slices.Equal(kd.PeerRoles, []groupcomm.Roles{groupcomm.Responder}) {
		t.Errorf("public keys %d, roles %v", len(kd.PubKeys), kd.PeerRoles)
	}
	if len(j.Path) != 4 || j.Path[0] != "group-oscore" || j.Path[1] != "g1" || j.Path[2] != "nodes" {
		t.Fatalf("Location-Path %q", j.Path)
	}
	node := j.Path[1:]
	if k, err := groupcomm.DecodeLegacyKeyDistribution(d, f.legacy(j, coap.GET, nil, node...).Payload); err != nil || !bytes.Equal(k.Key.ClientID, kd.Key.ClientID) {
		t.Errorf("node resource: %v", err)
	}
	if r := f.legacy(first, coap.GET, nil, node...); r.Code != coap.Unauthorized {
		t.Errorf("node resource of another: %v", r.Code)
	}
	r := f.legacy(j, coap.FETCH, groupcomm.EncodeLegacyPubKeyRequest(d, &groupcomm.GetCreds{Roles: []groupcomm.Roles{groupcomm.Requester}, IDs: []groupcomm.SenderID{{}}}), "g1", "pub-key")
	if p, err := groupcomm.DecodeLegacyPubKeys(d, r.Payload); err != nil || len(p.PubKeys) != 2 || !slices.Equal(p.PeerRoles, []groupcomm.Roles{groupcomm.Responder, both}) {
		t.Errorf("public keys: %v %v", r.Code, err)
	}
	// Another public key, under the same Sender ID.
	update := func(by *gmtest.Joiner, edit func(*groupcomm.CredUpdate)) *coap.Response {
		msg, err := by.LegacyJoinMessage(d, "g1", both)
		if err != nil {
			t.Fatal(err)
		}
		u := &groupcomm.CredUpdate{ClientCred: msg.ClientCred, CNonce: msg.CNonce, ClientCredVerify: msg.ClientCredVerify}
		edit(u)
		return f.legacy(j, coap.POST, groupcomm.EncodeLegacyPubKeyUpdate(u), append(slices.Clone(node), "pub-key")...)
	}
	next := f.joiner("next", "g1", both)
	next.NS = j.NS
	for name, edit := range map[string]func(*groupcomm.CredUpdate){
		"another proof": func(u *groupcomm.CredUpdate) { u.ClientCredVerify[0] ^= 1 },
		"no key":        func(u *groupcomm.CredUpdate) { u.ClientCred = []byte{0xa0} },
		"short cnonce":  func(u *groupcomm.CredUpdate) { u.CNonce = []byte{1} },
		"nothing":       func(u *groupcomm.CredUpdate) { *u = groupcomm.CredUpdate{} },
	} {
		r := update(next, edit)
		if i, err := groupcomm.DecodeLegacyInfo(d, r.Payload); r.Code != coap.BadRequest || err != nil || len(i.SignInfo) != 1 {
			t.Errorf("%s: %v, %v", name, r.Code, err)
		}
	}
	f.auth.ForgetChallenges(j.Peer.Subject)
	r = update(next, func(*groupcomm.CredUpdate) {})
	if i, err := groupcomm.DecodeLegacyInfo(d, r.Payload); r.Code != coap.BadRequest || err != nil || i.Challenge == nil {
		t.Fatalf("without N_S: %v, %v", r.Code, err)
	} else {
		next.NS, j.NS = i.Challenge, i.Challenge
	}
	if r := update(next, func(*groupcomm.CredUpdate) {}); r.Code != coap.Changed || len(r.Payload) != 0 {
		t.Errorf("another public key: %v", r.Code)
	}
	if p, err := groupcomm.DecodeLegacyPubKeys(d, f.legacy(first, coap.GET, nil, "g1", "pub-key").Payload); err != nil ||
		!slices.ContainsFunc(p.PubKeys, func(k groupcomm.LegacyPubKey) bool {
			return bytes.Equal(k.SenderID, kd.Key.ClientID) && k.Key.SamePublic(next.Key)
		}) {
		t.Errorf("the public key is not the new one: %v", err)
	}
	k, err := groupcomm.DecodeLegacyKeyRenewal(f.legacy(j, coap.PUT, nil, node...).Payload)
	if err != nil || !bytes.Equal(k.SenderID, []byte{1}) {
		t.Errorf("renewal: %v", err)
	}
	if r := f.legacy(first, coap.DELETE, nil, first.Path[1:]...); r.Code != coap.Deleted {
		t.Errorf("leave: %v", r.Code)
	}
	// The rekey that is due is the answer to a renewal.
	msg, err := groupcomm.DecodeLegacyKeyDistribution(d, f.legacy(j, coap.PUT, nil, node...).Payload)
	if err != nil || msg.Num != 1 {
		t.Errorf("renewal while a rekey is due: %v", err)
	}
	// A 4.00 tells five elements.
	i, err := groupcomm.DecodeLegacyInfo(d, f.legacy(first, coap.POST, nil, "g1").Payload)
	if err != nil || len(i.SignInfo) != 1 || !slices.Equal(i.SignInfo[0].Groups, []string{"g1"}) {
		t.Errorf("information: %v", err)
	}
}
