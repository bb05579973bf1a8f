package node

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// pairwise is testdata/pop.json, pairwise_only_x25519, with its nonces.
type pairwise struct {
	Inputs struct {
		NS   string `json:"N_S"`
		NC   string `json:"N_C"`
		NKDC string `json:"N_KDC"`
	} `json:"inputs"`
	P struct {
		Priv      string `json:"client_priv"`
		Cred      string `json:"client_cred_ccs"`
		KDCCred   string `json:"kdc_cred_ccs"`
		ClientMAC string `json:"client_cred_verify_mac"`
		MAC       string `json:"kdc_cred_verify_mac"`
	} `json:"pairwise_only_x25519"`
}

// pairwiseMember is the client of the vectors in a group g1 with the pairwise
// mode alone, after its token was answered.
func pairwiseMember(t testing.TB) (*Member, *pairwise) {
	t.Helper()
	v := &pairwise{}
	readJSON(t, "pop.json", v)
	key := &cose.Key{Kty: cose.KtyOKP, Crv: cose.CrvX25519, D: unhex(t, v.P.Priv)}
	if pub, err := cose.DecodeCCS(unhex(t, v.P.Cred)); err != nil {
		t.Fatal(err)
	} else {
		key.X = pub.X
	}
	m, err := New(Config{
		Group: "g1", Roles: groupcomm.Requester | groupcomm.Responder, Key: key, Subject: "member-x",
		Transfer: &groupcomm.TokenTransferResponse{
			KDCChallenge: unhex(t, v.Inputs.NS), ECDHInfo: []groupcomm.SignInfoEntry{pairwiseGroup().ECDHInfo()},
			KDCDHCreds: []groupcomm.KDCDHCred{{Groups: []string{"g0", "g1"}, CredFmt: 14, Cred: unhex(t, v.P.KDCCred)}},
		},
		Rand: bytes.NewReader(unhex(t, v.Inputs.NC)),
	}, newFakeGM(t))
	if err != nil {
		t.Fatal(err)
	}
	return m, v
}

func pairwiseGroup() groupcomm.GroupConfig {
	c := groupcomm.DefaultGroupConfig("g1")
	c.SignAlg, c.GpEncAlg = 0, 0
	return c
}

// The evidence of a node whose group uses the pairwise mode only is the MAC of
// the vectors.
func TestPairwiseRequestVector(t *testing.T) {
	t.Parallel()
	m, v := pairwiseMember(t)
	nc, err := m.nonce()
	if err != nil {
		t.Fatal(err)
	}
	r, err := m.joinRequest(nc, false)
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(r.ClientCredVerify); got != v.P.ClientMAC {
		t.Errorf("client_cred_verify %s, want %s", got, v.P.ClientMAC)
	}
	if got := hex.EncodeToString(r.ClientCred); got != v.P.Cred {
		t.Errorf("client_cred %s, want %s", got, v.P.Cred)
	}
}

// pairwiseJoin is the Join Response for the client of the vectors.
func pairwiseJoin(t testing.TB, v *pairwise) *groupcomm.KeyDistribution {
	t.Helper()
	k := pairwiseGroup().KeyParams()
	k.MasterSecret, k.ContextID, k.SenderID = secretOf(5), gidOf(5), groupcomm.SenderID{1}
	return &groupcomm.KeyDistribution{
		Key: k, Num: 5, Profile: 1, Exi: 3600,
		KDCCred: unhex(t, v.P.KDCCred), KDCNonce: unhex(t, v.Inputs.NKDC), KDCCredVerify: unhex(t, v.P.MAC),
	}
}

func (m *Member) expects(nc []byte) *expected {
	return &expected{group: "g1", roles: m.cfg.Roles, params: m.params, key: m.key, nc: nc}
}

// draft-ietf-ace-key-groupcomm-oscore-21, Section 6.4, with a MAC as the Group
// Manager's proof.
func TestPairwiseJoinResponse(t *testing.T) {
	t.Parallel()
	m, v := pairwiseMember(t)
	other, err := cose.GenerateDHKey(cose.CrvX25519)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		spoof func(*groupcomm.KeyDistribution)
		want  error
	}{
		{"as in the vectors", func(*groupcomm.KeyDistribution) {}, nil},
		{"other MAC", func(d *groupcomm.KeyDistribution) { d.KDCCredVerify[7] ^= 1 }, ErrProof},
		{"short MAC", func(d *groupcomm.KeyDistribution) { d.KDCCredVerify = d.KDCCredVerify[:7] }, ErrProof},
		{"no MAC", func(d *groupcomm.KeyDistribution) { d.KDCCredVerify = nil }, ErrProof},
		{"other nonce", func(d *groupcomm.KeyDistribution) { d.KDCNonce[0] ^= 1 }, ErrProof},
		{"another credential", func(d *groupcomm.KeyDistribution) { d.KDCCred = cose.EncodeCCS("gm", other.Public()) }, ErrBadAnswer},
		{"group mode", func(d *groupcomm.KeyDistribution) {
			k := groupcomm.DefaultGroupConfig("g1").KeyParams()
			d.Key.SignAlg, d.Key.SignParams, d.Key.GpEncAlg = k.SignAlg, k.SignParams, k.GpEncAlg
		}, ErrBadAnswer},
		{"no pairwise mode", func(d *groupcomm.KeyDistribution) { d.Key.Alg, d.Key.ECDHAlg = 0, 0 }, ErrBadAnswer},
		{"no alg", func(d *groupcomm.KeyDistribution) { d.Key.Alg = 0 }, ErrBadAnswer},
		{"no curve", func(d *groupcomm.KeyDistribution) { d.Key.ECDHParams = [][]int64{{1}, {1}} }, ErrBadAnswer},
		{"another curve", func(d *groupcomm.KeyDistribution) { d.Key.ECDHParams = [][]int64{{2}, {2, 1}} }, ErrBadAnswer},
		{"another hash", func(d *groupcomm.KeyDistribution) { d.Key.ECDHAlg = cose.AlgECDHSSHKDF512 }, ErrBadAnswer},
		{"a peer with another kind of key", func(d *groupcomm.KeyDistribution) {
			g := newFakeGM(t)
			d.Creds, d.PeerRoles, d.PeerIdentifiers = [][]byte{g.cred}, []groupcomm.Roles{2}, []groupcomm.SenderID{{2}}
		}, ErrBadAnswer},
	} {
		d := pairwiseJoin(t, v)
		tc.spoof(d)
		r := reply(coap.Created, coap.ACEGroupcomm, d.Encode())
		relocate(r, "ace-group", "g1", "nodes", "n")
		if _, _, _, err := readJoin(r, m.expects(unhex(t, v.Inputs.NC))); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
}

// What a Group Manager announces decides about the kind of the group.
func TestAnnounced(t *testing.T) {
	t.Parallel()
	_, v := pairwiseMember(t)
	both, pairs := groupcomm.DefaultGroupConfig("g1"), pairwiseGroup()
	dh := groupcomm.KDCDHCred{Groups: []string{"g1"}, CredFmt: 14, Cred: unhex(t, v.P.KDCCred)}
	ed := dh
	ed.Cred = newFakeGM(t).cred
	zero := dh
	zero.Cred = cose.EncodeCCS("gm", &cose.Key{Kty: cose.KtyOKP, Crv: cose.CrvP256, X: make([]byte, 32)})
	crvless := pairs.ECDHInfo()
	crvless.KeyParams = []int64{1}
	sign := func(c groupcomm.GroupConfig) []groupcomm.SignInfoEntry {
		return []groupcomm.SignInfoEntry{c.SignInfo()}
	}
	ecdh := func(e ...groupcomm.SignInfoEntry) []groupcomm.SignInfoEntry { return e }
	for name, tc := range map[string]struct {
		sign, ecdh []groupcomm.SignInfoEntry
		dh         []groupcomm.KDCDHCred
		want       error
	}{
		"both modes":             {sign(both), ecdh(both.ECDHInfo()), nil, nil},
		"signature-only":         {sign(both), nil, nil, nil},
		"pairwise-only":          {nil, ecdh(pairs.ECDHInfo()), []groupcomm.KDCDHCred{dh}, nil},
		"nothing":                {nil, nil, nil, ErrUnsupported},
		"no DH credential":       {nil, ecdh(pairs.ECDHInfo()), nil, errNoDHCred},
		"an Ed25519 credential":  {nil, ecdh(pairs.ECDHInfo()), []groupcomm.KDCDHCred{ed}, ErrUnsupported},
		"a malformed credential": {nil, ecdh(pairs.ECDHInfo()), []groupcomm.KDCDHCred{zero}, ErrUnsupported},
		"no curve":               {nil, ecdh(crvless), []groupcomm.KDCDHCred{dh}, ErrUnsupported},
	} {
		if _, err := announced("g1", tc.sign, tc.ecdh, tc.dh); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := announced("g2", sign(both), nil, nil); !errors.Is(err, ErrUnsupported) {
		t.Errorf("another group: %v", err)
	}
	// What the answer to the token post lacks is asked for later.
	if _, err := New(Config{Group: "g1", Roles: groupcomm.Requester, Transfer: &groupcomm.TokenTransferResponse{
		ECDHInfo: ecdh(pairs.ECDHInfo()),
	}}, newFakeGM(t)); err != nil {
		t.Error(err)
	}
}

// docs/protocol.md, Section 5: who countersigns rekeys over MQTT in such a group has
// proven possession over the N_C of the join.
func TestCourier(t *testing.T) {
	t.Parallel()
	g := newFakeGM(t)
	nc := []byte("nonce of client")
	good := func() *groupcomm.MgtKeyMaterial {
		k := mgtOf("mqtt://127.0.0.1:1")
		k.KDCCred, k.KDCNonce = g.cred, []byte("nonce of kdc")
		var err error
		if k.KDCCredVerify, err = g.key.Sign(groupcomm.KDCPoPInput(nc, k.KDCNonce)); err != nil {
			t.Fatal(err)
		}
		return k
	}
	if key, err := courier(good(), nc); err != nil || !key.SamePublic(g.key) {
		t.Error(err)
	}
	for name, edit := range map[string]func(*groupcomm.MgtKeyMaterial){
		"nothing":        func(k *groupcomm.MgtKeyMaterial) { k.KDCCred, k.KDCNonce, k.KDCCredVerify = nil, nil, nil },
		"another proof":  func(k *groupcomm.MgtKeyMaterial) { k.KDCCredVerify[0] ^= 1 },
		"another nonce":  func(k *groupcomm.MgtKeyMaterial) { k.KDCNonce = []byte("another nonce") },
		"short nonce":    func(k *groupcomm.MgtKeyMaterial) { k.KDCNonce = []byte("short") },
		"no credential":  func(k *groupcomm.MgtKeyMaterial) { k.KDCCred = []byte{0xa0} },
		"another signer": func(k *groupcomm.MgtKeyMaterial) { k.KDCCred = newFakeGM(t).cred },
	} {
		k := good()
		edit(k)
		if _, err := courier(k, nc); !errors.Is(err, ErrBadAnswer) && !errors.Is(err, ErrProof) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzPairwiseJoinResponse(f *testing.F) {
	m, v := pairwiseMember(f)
	f.Add(pairwiseJoin(f, v).Encode())
	nc := unhex(f, v.Inputs.NC)
	f.Fuzz(func(t *testing.T, body []byte) {
		r := reply(coap.Created, coap.ACEGroupcomm, body)
		relocate(r, "ace-group", "g1", "nodes", "n")
		s, _, kdc, err := readJoin(r, m.expects(nc))
		if err == nil && (kdc == nil || !s.Installed || s.SenderID == nil || s.Params.SignAlg != 0) {
			t.Fatal("accepted an incomplete Join Response")
		}
	})
}
