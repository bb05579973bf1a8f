package gm

import (
	"bytes"
	"context"
	"encoding/hex"
	"slices"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
	"github.com/seed4911071e/groupgate/store/storetest"
)

func TestGetKeys(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	f.member("first", "g1")
	j := f.joiner("n", "g1", both)
	joined := f.join(j, "g1", both)
	mon := f.joiner("mon", "g1", groupcomm.Monitor)
	if d := f.join(mon, "g1", groupcomm.Monitor); d.Key.SenderID != nil {
		t.Error("a monitor got a Sender ID")
	}
	for _, tc := range []struct {
		path  []string
		sid   []byte
		topic string
	}{
		{[]string{"ace-group", "g1"}, nil, "gm/g1"},
		{j.Path, []byte{0}, "gm/g1/nodes/" + j.Path[3]},
	} {
		r := f.do(j, coap.GET, nil, tc.path...)
		if r.Code != coap.Content {
			t.Fatalf("GET %v: %v", tc.path, r.Code)
		}
		d, err := groupcomm.DecodeKeyDistribution(r.Payload)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(d.Key.MasterSecret, joined.Key.MasterSecret) || !bytes.Equal(d.Key.SenderID, tc.sid) || (d.Key.SenderID == nil) != (tc.sid == nil) {
			t.Errorf("GET %v: wrong key", tc.path)
		}
		if d.Exi <= 0 || d.KDCCred != nil || d.Creds != nil || d.Policies != nil {
			t.Errorf("GET %v: wrong fields", tc.path)
		}
		if r.Observe == nil || r.Observe.Topic != tc.topic || r.Observe.Version != 0 {
			t.Errorf("GET %v: observation %+v", tc.path, r.Observe)
		}
		if tag, _ := r.Options.Get(coap.ETag); !bytes.Equal(tag, []byte{0}) {
			t.Errorf("GET %v: ETag %x", tc.path, tag)
		}
		if age, ok := r.Options.Uint(coap.MaxAge); !ok || age != 0 {
			t.Errorf("GET %v: Max-Age", tc.path)
		}
	}
	r := f.do(mon, coap.GET, nil, mon.Path...)
	if d, err := groupcomm.DecodeKeyDistribution(r.Payload); err != nil || d.Key.SenderID != nil {
		t.Errorf("node resource of a monitor: %v", err)
	}
}

// held records what a Delivery is told; it delivers nothing.
type held struct {
	got       []string
	observing bool
	reached   []string
}

func (*held) Enroll(context.Context, string, string, *groupcomm.Delivery) (func() []byte, func(*store.Tx) error, error) {
	return nil, nil, nil
}
func (*held) Enrolled(context.Context, string, string) ([]byte, error) { return nil, nil }
func (*held) Prepare(context.Context, groupcomm.RekeyPlan) (func(*store.Tx) error, error) {
	return nil, nil
}
func (*held) Remove(*store.Tx, string, string) error      { return nil }
func (*held) RemoveAll(*store.Tx, string, []string) error { return nil }
func (h *held) Held(_ context.Context, group, node string, version uint64) {
	h.got = append(h.got, group+"/"+node+"/"+string(rune('0'+version)))
}
func (h *held) Reached(group, node string, _ coap.Peer, controlURI string, _ bool) {
	h.reached = append(h.reached, group+"/"+node+" "+controlURI)
}
func (h *held) Seen(_ context.Context, _, _ string, _ coap.Peer, observing bool) {
	h.observing = observing
}

// RFC 7252, Section 5.10.6.2: a GET with the ETag of the current version is
// answered with 2.03 and shows that the member has it.
func TestHeldVersion(t *testing.T) {
	h := &held{}
	f := newFixtureWith(t, storetest.Open(t, Migrations()), h, groupConfig("g1"))
	j := f.member("n", "g1")
	f.rekey("g1")
	for _, path := range [][]string{{"ace-group", "g1"}, {"ace-group", "g1", "num"}, j.Path} {
		h.got = nil
		req := j.Request(coap.GET, nil, path...)
		req.Options.Add(coap.ETag, []byte{0})
		if r, err := f.m.ServeCoAP(t.Context(), req); err != nil || r.Code != coap.Content || h.got != nil {
			t.Errorf("GET %v with an old ETag: %v %v", path, r, err)
		}
		req.Options.Add(coap.ETag, []byte{1})
		r, err := f.m.ServeCoAP(t.Context(), req)
		if err != nil || r.Code != coap.Valid || len(r.Payload) != 0 {
			t.Errorf("GET %v with the ETag: %v %v", path, r, err)
		}
		if !slices.Equal(h.got, []string{"g1/" + j.Path[3] + "/1"}) {
			t.Errorf("GET %v: held %q", path, h.got)
		}
		// A registration always gets the full map, and shows the version too.
		h.got, h.observing = nil, false
		req.Options.SetUint(coap.ObserveOption, 0)
		if r, err := f.m.ServeCoAP(t.Context(), req); err != nil || r.Code != coap.Content {
			t.Errorf("registration on %v: %v %v", path, r, err)
		}
		// Who observes num is not told the keys.
		if !slices.Equal(h.got, []string{"g1/" + j.Path[3] + "/1"}) || h.observing != (path[len(path)-1] != "num") {
			t.Errorf("registration on %v: held %q, observing %v", path, h.got, h.observing)
		}
	}
}

func TestVersionTag(t *testing.T) {
	for num, want := range map[uint64]string{0: "00", 1: "01", 255: "ff", 256: "0100", 1 << 16: "010000"} {
		if got := hex.EncodeToString(versionTag(num)); got != want {
			t.Errorf("%d: %s, want %s", num, got, want)
		}
	}
}

func TestSmallResources(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	j := f.member("n", "g1")
	for range 3 {
		f.rekey("g1")
	}
	for name, want := range map[string]string{
		"num":      "03",                 // vectors/messages.json: num_cf60
		"active":   "f5",                 // active_true_cf60
		"policies": "a110a201190e100200", // policies_response_cf261
	} {
		r := f.do(j, coap.GET, nil, "ace-group", "g1", name)
		if r.Code != coap.Content || hex.EncodeToString(r.Payload) != want {
			t.Errorf("%s: %v %x, want %s", name, r.Code, r.Payload, want)
		}
		format := coap.CBOR
		if name == "policies" {
			format = coap.ACEGroupcomm
		}
		if got, _ := r.Options.ContentFormat(); got != format {
			t.Errorf("%s: content format %d", name, got)
		}
	}
}

// RFC 9594, Section 4.2.1: only current Gids are known, to anybody with a
// token.
func TestFetchGroups(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	f.rekey("g1")
	j := f.joiner("n", "elsewhere", both)
	r := f.do(j, coap.FETCH, (&groupcomm.GidRequest{Gids: []groupcomm.Gid{{9}, {0xb1, 0, 0, 0, 1}, {0xb1, 0, 0, 0, 0}}}).Encode(), "ace-group")
	// vectors/messages.json: fetch_ace_group_response_cf261
	if got, want := hex.EncodeToString(r.Payload), "a3008145b100000001018162673102816d2f6163652d67726f75702f6731"; got != want {
		t.Errorf("%v %s, want %s", r.Code, got, want)
	}
	r = f.do(j, coap.FETCH, (&groupcomm.GidRequest{Gids: []groupcomm.Gid{{9}}}).Encode(), "ace-group")
	if r.Code != coap.Content || !bytes.Equal(r.Payload, []byte{0x40}) {
		t.Errorf("unknown Gid: %v %x", r.Code, r.Payload)
	}
	for _, body := range [][]byte{nil, {0xa0}, {0xa1, 0, 0x80}, {0xa1, 0, 0x01}} {
		if r := f.do(j, coap.FETCH, body, "ace-group"); r.Code != coap.BadRequest {
			t.Errorf("body %x: %v", body, r.Code)
		}
	}
}

// RFC 9594, Section 4.4.1: the filters of creds.
func TestCreds(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	roles := []groupcomm.Roles{groupcomm.Requester, groupcomm.Responder, both}
	for i, r := range roles {
		j := f.joiner(string(rune('a'+i)), "g1", r)
		f.join(j, "g1", r) // Sender IDs: empty, 00, 01
	}
	mon := f.joiner("mon", "g1", groupcomm.Monitor)
	f.join(mon, "g1", groupcomm.Monitor)
	ver := f.joiner("ver", "g1", groupcomm.Verifier)
	for _, tc := range []struct {
		name string
		q    *groupcomm.GetCreds
		want []string
	}{
		{"all", nil, []string{"", "00", "01"}},
		{"id", &groupcomm.GetCreds{Inclusion: true, IDs: []groupcomm.SenderID{{0}, {7}}}, []string{"00"}},
		{"empty id", &groupcomm.GetCreds{Inclusion: true, IDs: []groupcomm.SenderID{{}}}, []string{""}},
		{"not id", &groupcomm.GetCreds{IDs: []groupcomm.SenderID{{0}}}, []string{"", "01"}},
		{"role", &groupcomm.GetCreds{Roles: []groupcomm.Roles{groupcomm.Requester}}, []string{"", "01"}},
		{"both roles", &groupcomm.GetCreds{Inclusion: true, Roles: []groupcomm.Roles{both}}, []string{"01"}},
		{"role or id", &groupcomm.GetCreds{Inclusion: true, Roles: []groupcomm.Roles{both}, IDs: []groupcomm.SenderID{{}}}, []string{"", "01"}},
		{"role and not id", &groupcomm.GetCreds{Roles: []groupcomm.Roles{groupcomm.Responder}, IDs: []groupcomm.SenderID{{0}}}, []string{"01"}},
		{"nobody", &groupcomm.GetCreds{Inclusion: true, IDs: []groupcomm.SenderID{{9, 9, 9, 9, 9, 9, 9, 9}}}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, j := range []*struct{ r *coap.Response }{
				{f.credsOf(mon, tc.q)}, {f.credsOf(ver, tc.q)},
			} {
				if j.r.Code != coap.Content {
					t.Fatalf("%v", j.r.Code)
				}
				if tc.want == nil && !bytes.Equal(j.r.Payload, []byte{0x40}) {
					t.Errorf("nobody: %x", j.r.Payload)
				}
				d, err := groupcomm.DecodeCredsResponse(j.r.Payload)
				if err != nil {
					t.Fatal(err)
				}
				var got []string
				for i, id := range d.PeerIdentifiers {
					got = append(got, id.String())
					if d.PeerRoles[i] == 0 || len(d.Creds[i]) == 0 {
						t.Error("roles or credential missing")
					}
				}
				if !slices.Equal(got, tc.want) {
					t.Errorf("got %q, want %q", got, tc.want)
				}
			}
		})
	}
	for _, body := range [][]byte{nil, {0xa0}, {0xa1, 4, 0xf6}, {0xa1, 4, 0x83, 0xf5, 0x80, 0x80}, {0xa1, 4, 0x82, 0xf5, 0x80}} {
		if r := f.do(mon, coap.FETCH, body, "ace-group", "g1", "creds"); r.Code != coap.BadRequest {
			t.Errorf("body %x: %v, want 4.00", body, r.Code)
		}
	}
}

// draft-ietf-ace-key-groupcomm-oscore-21, Section 9.5.1: the proof covers the
// nonce of the latest Join Request.
func TestKDCCred(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	j := f.member("n", "g1")
	f.join(j, "g1", both)
	var last []byte
	for range 2 {
		r := f.do(j, coap.GET, nil, "ace-group", "g1", "kdc-cred")
		k, err := groupcomm.DecodeKDCCred(r.Payload)
		if err != nil {
			t.Fatal(err)
		}
		pub, err := cose.DecodeCCS(k.Cred)
		if err != nil {
			t.Fatal(err)
		}
		if err := pub.Verify(groupcomm.KDCPoPInput(j.CNonce, k.Nonce), k.Verify); err != nil {
			t.Error(err)
		}
		if len(k.Nonce) < 8 || bytes.Equal(k.Nonce, last) {
			t.Error("the nonce is not fresh")
		}
		last = k.Nonce
	}
}

// draft-ietf-ace-key-groupcomm-oscore-21, Section 9.2.
func TestKeyRenewal(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	j := f.member("n", "g1")
	r := f.do(j, coap.POST, nil, j.Path...)
	if got := hex.EncodeToString(r.Payload); r.Code != coap.Changed || got != "a1154100" {
		t.Errorf("%v %s", r.Code, got)
	}
	if r := f.do(j, coap.POST, []byte{0xa0}, j.Path...); r.Code != coap.BadRequest {
		t.Errorf("with a body: %v", r.Code)
	}
	// A rekey that is due answers, with the rekey message.
	f.leave(f.member("leaver", "g1"))
	r = f.do(j, coap.POST, nil, j.Path...)
	msg, err := groupcomm.DecodeRekeyMessage(r.Payload)
	if err != nil || r.Code != coap.Changed {
		t.Fatalf("%v %v", r.Code, err)
	}
	if msg.Num != 1 || len(msg.Stale) != 2 || f.status().Due {
		t.Errorf("num %d, %d stale", msg.Num, len(msg.Stale))
	}
}

func TestRenewalLimit(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	f.cfg.RenewalInterval = 0
	f.reopen(f.st)
	j := f.member("n", "g1")
	for i := range renewalBurst {
		if r := f.do(j, coap.POST, nil, j.Path...); r.Code != coap.Changed {
			t.Fatalf("renewal %d: %v", i, r.Code)
		}
	}
	before := f.dump()
	if r := f.do(j, coap.POST, nil, j.Path...); r.Code != coap.TooManyRequests {
		t.Errorf("%v, want 4.29", r.Code)
	}
	if f.dump() != before {
		t.Error("the state changed")
	}
}

// draft-ietf-ace-key-groupcomm-oscore-21, Section 9.9; RFC 9594, Section 4.7.1:
// num and active can be observed, by a version that grows with each change.
func TestObservableSmallResources(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	j := f.member("n", "g1")
	f.rekey("g1")
	for changes, active := range []bool{true, false, true} {
		if err := f.m.SetActive(t.Context(), "g1", active); err != nil {
			t.Fatal(err)
		}
		r := f.do(j, coap.GET, nil, "ace-group", "g1", "active")
		if r.Observe == nil || *r.Observe != (coap.Observation{Topic: "gm/g1/active", Version: uint64(changes)}) ||
			!bytes.Equal(r.Payload, groupcomm.EncodeActive(active)) {
			t.Errorf("active after %d changes: %+v %x", changes, r.Observe, r.Payload)
		}
	}
	if r := f.do(j, coap.GET, nil, "ace-group", "g1", "num"); r.Observe == nil || *r.Observe != (coap.Observation{Topic: "gm/g1/num", Version: 1}) {
		t.Errorf("num: %+v", r.Observe)
	}
}

// The delivery learns over which association members with a control_uri, and
// those that observe, are there; and of an evicted one the control_uri.
func TestReached(t *testing.T) {
	h := &held{}
	f := newFixtureWith(t, storetest.Open(t, Migrations()), h, groupConfig("g1"))
	quiet := f.member("quiet", "g1")
	f.do(quiet, coap.GET, nil, "ace-group", "g1", "num")
	if h.reached != nil {
		t.Errorf("told of %q", h.reached)
	}
	req := quiet.Request(coap.GET, nil, "ace-group", "g1", "active")
	req.Options.SetUint(coap.ObserveOption, 0)
	if _, err := f.m.ServeCoAP(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	j := f.joiner("n", "g1", both)
	msg, err := j.JoinMessage("g1", both)
	if err != nil {
		t.Fatal(err)
	}
	msg.ControlURI = "coap://n/x"
	if _, err := j.Accept(j.Send(t.Context(), f.m, "g1", msg)); err != nil {
		t.Fatal(err)
	}
	f.do(j, coap.GET, nil, "ace-group", "g1", "policies")
	own := "g1/" + j.Path[3] + " coap://n/x"
	if want := []string{"g1/" + quiet.Path[3] + " ", own, own}; !slices.Equal(h.reached, want) {
		t.Errorf("told of %q, want %q", h.reached, want)
	}
	if _, err := f.m.Evict(t.Context(), "g1", []string{j.Path[3]}, nil); err != nil {
		t.Fatal(err)
	}
	uri := ""
	err = f.st.View(t.Context(), func(tx *store.Tx) error {
		var data []byte
		if err := tx.QueryRow(`SELECT data FROM store_events WHERE kind = ? ORDER BY id DESC LIMIT 1`, groupcomm.EventEvicted).Scan(&data); err != nil {
			return err
		}
		e, err := groupcomm.DecodeEvent(data)
		if err == nil {
			uri = e.ControlURI
		}
		return err
	})
	if err != nil || uri != msg.ControlURI {
		t.Errorf("the event names %q, %v", uri, err)
	}
}
