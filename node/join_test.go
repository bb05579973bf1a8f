package node

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

type popVectors struct {
	Inputs struct {
		NS string `json:"N_S"`
		NC string `json:"N_C"`
	} `json:"inputs"`
	Ed struct {
		Seed string `json:"client_seed"`
		Cred string `json:"client_cred_ccs"`
	} `json:"group_mode_ed25519"`
}

// vectorMember is the client of testdata/pop.json.
func vectorMember(t *testing.T) *Member {
	t.Helper()
	var v popVectors
	readJSON(t, "pop.json", &v)
	pub, err := cose.DecodeCCS(unhex(t, v.Ed.Cred))
	if err != nil {
		t.Fatal(err)
	}
	key := *pub
	key.D = unhex(t, v.Ed.Seed)
	m, err := New(Config{
		Group: "g1", Roles: groupcomm.Requester | groupcomm.Responder,
		Transfer: &groupcomm.TokenTransferResponse{
			KDCChallenge: unhex(t, v.Inputs.NS),
			SignInfo:     []groupcomm.SignInfoEntry{{Groups: []string{"g1"}, Alg: -8, AlgParams: []int64{1}, KeyParams: []int64{1, 6}, CredFmt: 14}},
		},
		Key: &key, Subject: "member-25", ControlURI: "coap://[2001:db8::1]/grp-rek", WantCreds: true,
		Rand: bytes.NewReader(unhex(t, v.Inputs.NC)),
	}, newFakeGM(t))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// The bytes of a Join Request, of which every member is given, against the
// computed vectors.
func TestJoinRequestVector(t *testing.T) {
	t.Parallel()
	var v struct {
		Request  string `json:"join_request_cf261"`
		Transfer string `json:"token_transfer_request_cf19"`
	}
	readJSON(t, "messages.json", &v)
	m := vectorMember(t)
	nc, err := m.nonce()
	if err != nil {
		t.Fatal(err)
	}
	r, err := m.joinRequest(nc, false)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := r.Encode(), unhex(t, v.Request); !bytes.Equal(got, want) {
		t.Errorf("got  %x\nwant %x", got, want)
	}
}

// The Join Response of the vectors is read, its proof verifies against the
// nonce of the request, and against no other.
func TestJoinResponseVector(t *testing.T) {
	t.Parallel()
	var v struct {
		Response string `json:"join_response_cf261"`
	}
	readJSON(t, "messages.json", &v)
	var p popVectors
	readJSON(t, "pop.json", &p)
	m := vectorMember(t)
	r := reply(coap.Created, coap.ACEGroupcomm, unhex(t, v.Response))
	for _, s := range []string{"ace-group", "g1", "nodes", "25"} {
		r.Options.AddString(coap.LocationPath, s)
	}
	nc := unhex(t, p.Inputs.NC)
	want := &expected{group: "g1", roles: m.cfg.Roles, params: m.params, nc: nc}
	s, _, kdc, err := readJoin(r, want)
	if err != nil {
		t.Fatal(err)
	}
	if s.Gid.String() != "b100000000" || s.SenderID.String() != "25" || s.Version != 0 || s.Node != "25" ||
		!slices.Equal(s.MasterSecret.Bytes(), unhex(t, "0102030405060708090a0b0c0d0e0f10")) ||
		len(s.Peers) != 1 || s.Policies.KeyCheck != 3600 || kdc == nil {
		t.Errorf("state %+v", s)
	}
	nc[0] ^= 1
	if _, _, _, err := readJoin(r, want); !errors.Is(err, ErrProof) {
		t.Errorf("another nonce: %v", err)
	}
	// No strict prefix is a Join Response.
	whole := r.Payload
	for i := range whole {
		r.Payload = whole[:i]
		if _, _, _, err := readJoin(r, want); err == nil {
			t.Fatalf("prefix of %d bytes accepted", i)
		}
	}
}

func TestJoin(t *testing.T) {
	t.Parallel()
	g := newFakeGM(t)
	g.peer(0x52, groupcomm.Requester|groupcomm.Responder)
	m, events := joinedMember(t, g, nil)
	s := state(t, m)
	if s.Version != 5 || !bytes.Equal(s.Gid, gidOf(5)) || s.SenderID.String() != "25" || s.Node != "n7" || !s.Installed ||
		!bytes.Equal(s.MasterSecret.Bytes(), secretOf(5)) || string(s.MasterSalt) != "salt" || s.Params.SignAlg != -8 ||
		len(s.Peers) != 1 || s.Peers[0].SenderID.String() != "52" || !bytes.Equal(s.KDCCred, g.cred) {
		t.Errorf("state %+v", s)
	}
	if m.Key() == nil {
		t.Error("no key was generated")
	}
	if len(*events) != 1 || (*events)[0].Kind != Joined || (*events)[0].Version != 5 {
		t.Errorf("events %+v", *events)
	}
}

// Every signature algorithm of a group: the node makes a key that fits.
func TestJoinAlgorithms(t *testing.T) {
	t.Parallel()
	for _, alg := range []int64{cose.AlgEdDSA, cose.AlgES256, cose.AlgES384, cose.AlgES512} {
		g := newFakeGM(t)
		key, err := cose.GenerateKey(alg)
		if err != nil {
			t.Fatal(err)
		}
		g.key, g.cred, g.cfg.SignAlg = key, cose.EncodeCCS("gm", key.Public()), alg
		g.cfg.Alg, g.cfg.ECDHAlg = 0, 0 // signature-only
		m, _ := joinedMember(t, g, nil)
		if s := state(t, m); s.Params.SignAlg != alg {
			t.Errorf("sign_alg %d, want %d", s.Params.SignAlg, alg)
		}
	}
}

// draft-ietf-ace-key-groupcomm-oscore-21, Section 6.1: a monitor gives no
// credential and gets no Sender ID.
func TestJoinMonitor(t *testing.T) {
	t.Parallel()
	g := newFakeGM(t)
	m, _ := joinedMember(t, g, func(c *Config) { c.Roles = groupcomm.Monitor })
	if s := state(t, m); s.SenderID != nil {
		t.Errorf("Sender ID %v", s.SenderID)
	}
	j, err := groupcomm.DecodeJoinRequest(g.requests[0].Payload)
	if err != nil || j.ClientCred != nil || j.ClientCredVerify != nil {
		t.Errorf("request %+v, %v", j, err)
	}
}

// draft-ietf-ace-key-groupcomm-oscore-21, Section 6.2: a 4.00 with the group's
// parameters and a new challenge is answered by a second request, with a fresh
// N_C.
func TestJoinNewChallenge(t *testing.T) {
	t.Parallel()
	g := newFakeGM(t)
	refused := false
	g.spoil = func(req *coap.Request, resp *coap.Response) {
		if !refused {
			refused = true
			g.ns, g.member = []byte("new challenge"), false
			*resp = *g.info(g.ns)
		}
	}
	m, _ := joinedMember(t, g, nil)
	if s := state(t, m); s.Version != 5 {
		t.Errorf("version %d", s.Version)
	}
	var nonces []string
	for _, r := range g.requests {
		j, err := groupcomm.DecodeJoinRequest(r.Payload)
		if err != nil {
			t.Fatal(err)
		}
		nonces = append(nonces, string(j.CNonce))
	}
	if len(nonces) != 2 || nonces[0] == nonces[1] {
		t.Errorf("N_C %x", nonces)
	}
}

// Twice is enough: no loop with a Group Manager that never has what it wants.
func TestJoinGivesUp(t *testing.T) {
	t.Parallel()
	g := newFakeGM(t)
	g.spoil = func(_ *coap.Request, resp *coap.Response) { *resp = *g.info([]byte("challenge")) }
	m, err := New(Config{Group: "g1", Roles: groupcomm.Requester, Transfer: g.transfer()}, g)
	if err != nil {
		t.Fatal(err)
	}
	var e *Error
	if err := m.Join(t.Context()); !errors.As(err, &e) || e.Code != coap.BadRequest {
		t.Errorf("error %v", err)
	}
	if len(g.requests) != 2 {
		t.Errorf("%d requests", len(g.requests))
	}
}

// With the token in psk_identity the parameters are asked for by an empty Join
// Request, and N_S comes from the association.
func TestJoinExported(t *testing.T) {
	t.Parallel()
	g := newFakeGM(t)
	x := &exporting{fakeGM: g, label: make(chan string, 1)}
	m, err := New(Config{Group: "g1", Roles: groupcomm.Responder}, x)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Join(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := <-x.label; got != ExporterLabel+"/32" {
		t.Errorf("exporter asked for %q", got)
	}
	if len(g.requests) != 2 || len(g.requests[0].Payload) != 0 {
		t.Errorf("%d requests", len(g.requests))
	}
}

type exporting struct {
	*fakeGM
	label chan string
}

func (x *exporting) ExportEmptyContext(label string, n int) ([]byte, error) {
	x.label <- fmt.Sprintf("%s/%d", label, n)
	return x.ns, nil
}

func TestRejoin(t *testing.T) {
	t.Parallel()
	g := newFakeGM(t)
	m, _ := joinedMember(t, g, nil)
	g.num = 9
	g.peer(0x77, groupcomm.Responder)
	if err := m.Rejoin(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := state(t, m)
	if s.Version != 9 || s.SenderID.String() != "26" || len(s.Peers) != 1 {
		t.Errorf("state %+v", s)
	}
	j, err := groupcomm.DecodeJoinRequest(g.requests[1].Payload)
	if err != nil || j.ClientCred == nil || len(j.ClientCred) != 0 || j.ClientCredVerify != nil || j.GetCreds == nil {
		t.Errorf("request %+v, %v", j, err)
	}
}

// A Group Manager that forgot the credential of a member gets all anew.
func TestRejoinForgotten(t *testing.T) {
	t.Parallel()
	g := newFakeGM(t)
	m, _ := joinedMember(t, g, nil)
	g.member = false
	refused := false
	g.spoil = func(req *coap.Request, resp *coap.Response) {
		if !refused {
			refused = true
			*resp = *g.info(nil)
		}
	}
	g.t = quiet{t} // the fake complains of the empty credential
	if err := m.Rejoin(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := state(t, m); s.SenderID == nil {
		t.Error("no Sender ID")
	}
}

type quiet struct{ testing.TB }

func (quiet) Errorf(string, ...any) {}

// badJoins spoil a Join Response. Each must be refused with the state as it was.
var badJoins = []struct {
	name  string
	want  error
	spoof func(*fakeGM, *groupcomm.KeyDistribution)
	spoil func(*coap.Response)
}{
	{name: "proof by another key", want: ErrProof, spoof: func(g *fakeGM, kd *groupcomm.KeyDistribution) {
		other, err := cose.GenerateKey(cose.AlgEdDSA)
		if err != nil {
			g.t.Fatal(err)
		}
		kd.KDCCred = cose.EncodeCCS("gm", other.Public())
	}},
	{name: "flipped bit in the proof", want: ErrProof, spoof: func(_ *fakeGM, kd *groupcomm.KeyDistribution) { kd.KDCCredVerify[7] ^= 1 }},
	{name: "short proof", want: ErrProof, spoof: func(_ *fakeGM, kd *groupcomm.KeyDistribution) { kd.KDCCredVerify = kd.KDCCredVerify[:63] }},
	{name: "empty proof", want: ErrProof, spoof: func(_ *fakeGM, kd *groupcomm.KeyDistribution) { kd.KDCCredVerify = []byte{} }},
	{name: "no proof", want: ErrProof, spoof: func(_ *fakeGM, kd *groupcomm.KeyDistribution) { kd.KDCCredVerify = nil }},
	{name: "another nonce", want: ErrProof, spoof: func(_ *fakeGM, kd *groupcomm.KeyDistribution) { kd.KDCNonce = []byte("nonce of KDC") }},
	{name: "short nonce", spoof: func(g *fakeGM, kd *groupcomm.KeyDistribution) { kd.KDCNonce = []byte("1234567") }},
	{name: "no credential", spoof: func(_ *fakeGM, kd *groupcomm.KeyDistribution) { kd.KDCCred = nil }},
	{name: "malformed credential", spoof: func(_ *fakeGM, kd *groupcomm.KeyDistribution) { kd.KDCCred = kd.KDCCred[:20] }},
	{name: "credential of another algorithm", spoof: func(g *fakeGM, kd *groupcomm.KeyDistribution) {
		other, err := cose.GenerateKey(cose.AlgES256)
		if err != nil {
			g.t.Fatal(err)
		}
		kd.KDCCred = cose.EncodeCCS("gm", other.Public())
	}},
	{name: "other sign_alg", spoof: func(_ *fakeGM, kd *groupcomm.KeyDistribution) { kd.Key.SignAlg = -7 }},
	{name: "other sign_params", spoof: func(_ *fakeGM, kd *groupcomm.KeyDistribution) { kd.Key.SignParams = [][]int64{{1}, {1, 7}} }},
	{name: "other cred_fmt", spoof: func(_ *fakeGM, kd *groupcomm.KeyDistribution) { kd.Key.CredFmt = 33 }},
	{name: "no gp_enc_alg", spoof: func(_ *fakeGM, kd *groupcomm.KeyDistribution) { kd.Key.GpEncAlg = 0 }},
	{name: "half a pairwise mode", spoof: func(_ *fakeGM, kd *groupcomm.KeyDistribution) { kd.Key.ECDHAlg = 0 }},
	{name: "no Sender ID", spoof: func(_ *fakeGM, kd *groupcomm.KeyDistribution) { kd.Key.SenderID = nil }},
	{name: "short Master Secret", spoof: func(_ *fakeGM, kd *groupcomm.KeyDistribution) { kd.Key.MasterSecret = []byte("short") }},
	{name: "huge Master Secret", spoof: func(_ *fakeGM, kd *groupcomm.KeyDistribution) { kd.Key.MasterSecret = make([]byte, 1<<12) }},
	{name: "empty Gid", spoof: func(_ *fakeGM, kd *groupcomm.KeyDistribution) { kd.Key.ContextID = groupcomm.Gid{} }},
	{name: "other profile", spoof: func(_ *fakeGM, kd *groupcomm.KeyDistribution) { kd.Profile = 2 }},
	{name: "fewer identifiers than credentials", spoof: func(_ *fakeGM, kd *groupcomm.KeyDistribution) { kd.PeerIdentifiers = nil }},
	{name: "malformed credential of a peer", spoof: func(_ *fakeGM, kd *groupcomm.KeyDistribution) { kd.Creds[0] = []byte{0xa0} }},
	{name: "other group in Location-Path", spoil: func(r *coap.Response) { relocate(r, "ace-group", "g2", "nodes", "n7") }},
	{name: "no node in Location-Path", spoil: func(r *coap.Response) { relocate(r, "ace-group", "g1", "nodes") }},
	{name: "empty node in Location-Path", spoil: func(r *coap.Response) { relocate(r, "ace-group", "g1", "nodes", "") }},
	{name: "no Location-Path", spoil: func(r *coap.Response) { relocate(r) }},
	{name: "no Content-Format", spoil: func(r *coap.Response) { r.Options.Remove(coap.ContentFormatOption) }},
	{name: "other Content-Format", spoil: func(r *coap.Response) { r.Options.SetContentFormat(coap.CBOR) }},
	{name: "2.05", spoil: func(r *coap.Response) { r.Code = coap.Content }},
	{name: "truncated", spoil: func(r *coap.Response) { r.Payload = r.Payload[:len(r.Payload)-1] }},
	{name: "trailing byte", spoil: func(r *coap.Response) { r.Payload = append(r.Payload, 0) }},
	{name: "empty body", spoil: func(r *coap.Response) { r.Payload = nil }},
	{name: "an array", spoil: func(r *coap.Response) { r.Payload = []byte{0x80} }},
}

func relocate(r *coap.Response, segments ...string) {
	r.Options.Remove(coap.LocationPath)
	for _, s := range segments {
		r.Options.AddString(coap.LocationPath, s)
	}
}

// draft-ietf-ace-key-groupcomm-oscore-21, Section 6.4: a Join Response that is
// not proven, and one that is malformed, is dropped.
func TestJoinRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range badJoins {
		t.Run(c.name, func(t *testing.T) {
			g := newFakeGM(t)
			g.peer(0x52, groupcomm.Requester)
			spoof := func(kd *groupcomm.KeyDistribution) {
				if c.spoof != nil {
					c.spoof(g, kd)
				}
			}
			spoil := func(_ *coap.Request, r *coap.Response) {
				if c.spoil != nil {
					c.spoil(r)
				}
			}
			want := c.want
			if want == nil {
				want = ErrBadAnswer
			}

			// As the first join: no state. As a later one: the state before.
			g.spoof, g.spoil = spoof, spoil
			m, err := New(Config{Group: "g1", Roles: groupcomm.Requester, Transfer: g.transfer(), WantCreds: true}, g)
			if err != nil {
				t.Fatal(err)
			}
			if err := m.Join(t.Context()); !errors.Is(err, want) {
				t.Fatalf("error %v, want %v", err, want)
			}
			if _, ok := m.State(); ok {
				t.Error("a state was installed")
			}

			g.spoof, g.spoil = nil, nil
			m, _ = joinedMember(t, g, nil)
			before := state(t, m)
			g.num++
			g.spoof, g.spoil = spoof, spoil
			if err := m.Join(t.Context()); err == nil {
				t.Fatal("no error at the second join")
			}
			after := state(t, m)
			if !before.MasterSecret.Equal(after.MasterSecret) {
				t.Error("the Master Secret changed")
			}
			before.MasterSecret, after.MasterSecret = cose.Secret{}, cose.Secret{}
			if !reflect.DeepEqual(before, after) {
				t.Errorf("the state changed: %+v, %+v", before, after)
			}
		})
	}
}

// The credential of the first join is expected at the later ones.
func TestJoinPins(t *testing.T) {
	t.Parallel()
	g := newFakeGM(t)
	m, _ := joinedMember(t, g, nil)
	other := newFakeGM(t)
	g.key, g.cred = other.key, other.cred
	if err := m.Join(t.Context()); !errors.Is(err, ErrProof) {
		t.Errorf("error %v", err)
	}
	if _, err := New(Config{Group: "g1", Roles: groupcomm.Requester, Transfer: g.transfer(), KDCCred: []byte("x")}, g); err != nil {
		t.Fatal(err)
	}
}

func TestJoinErrors(t *testing.T) {
	t.Parallel()
	for _, row := range []*coap.Problem{groupcomm.ErrPoP, groupcomm.ErrCredential, groupcomm.ErrInactive, groupcomm.ErrNoSenderID} {
		g := newFakeGM(t)
		g.spoil = func(_ *coap.Request, r *coap.Response) {
			*r = *coap.ErrorResponse(coap.Detail(row, "told \x1b[31mon purpose"))
		}
		m, err := New(Config{Group: "g1", Roles: groupcomm.Requester, Transfer: g.transfer()}, g)
		if err != nil {
			t.Fatal(err)
		}
		err = m.Join(t.Context())
		var e *Error
		if !errors.As(err, &e) || !errors.Is(err, row) || e.ID != row.ID || e.Code != row.Code {
			t.Errorf("%v: error %v", row, err)
		}
		if !strings.Contains(e.Detail, "told ?[31mon purpose") {
			t.Errorf("detail %q", e.Detail)
		}
		if errors.Is(err, groupcomm.ErrRoles) {
			t.Error("matches another row")
		}
	}
}
