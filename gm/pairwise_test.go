package gm

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/gm/gmtest"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// pairwiseConfig is the group g1 with the pairwise mode alone.
func pairwiseConfig(crv int64) groupcomm.GroupConfig {
	c := groupConfig("g1")
	c.SignAlg, c.GpEncAlg, c.ECDHCrv = 0, 0, crv
	return c
}

// dhJoiner is a node that may join g1 and has learnt the Group Manager's key.
func (f *fixture) dhJoiner(name string, crv int64, roles groupcomm.Roles) *gmtest.Joiner {
	f.t.Helper()
	j, err := gmtest.NewDHJoiner(name, crv)
	if err != nil {
		f.t.Fatal(err)
	}
	f.auth.Allow(j.Peer.Subject, groupcomm.Scope{{Group: "g1", Roles: roles}}, time.Time{})
	if j.NS, err = f.auth.NewChallenge(f.t.Context(), j.Peer.Subject); err != nil {
		f.t.Fatal(err)
	}
	info, err := groupcomm.DecodeInfoBody(f.do(j, coap.POST, nil, "ace-group", "g1").Payload)
	if err != nil {
		f.t.Fatal(err)
	}
	if info.SignInfo != nil || len(info.ECDHInfo) != 1 || len(info.KDCDHCreds) != 1 || info.KDCDHCreds[0].Groups[0] != "g1" {
		f.t.Fatalf("INFO body %+v", info)
	}
	if j.KDC, err = cose.DecodeCCS(info.KDCDHCreds[0].Cred); err != nil {
		f.t.Fatal(err)
	}
	return j
}

// vectors/pop.json, pairwise_only_x25519: both proofs, made and checked by the
// Group Manager's code.
func TestPairwiseVectors(t *testing.T) {
	var v struct {
		Inputs struct {
			Client string `json:"client_pop_input"`
			KDC    string `json:"kdc_pop_input"`
		} `json:"inputs"`
		P struct {
			ClientPriv string `json:"client_priv"`
			ClientCred string `json:"client_cred_ccs"`
			Priv       string `json:"gm_priv"`
			Cred       string `json:"kdc_cred_ccs"`
			ClientMAC  string `json:"client_cred_verify_mac"`
			MAC        string `json:"kdc_cred_verify_mac"`
		} `json:"pairwise_only_x25519"`
	}
	b, err := os.ReadFile("testdata/pop.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	c := pairwiseConfig(cose.CrvX25519)
	key := &cose.Key{Kty: cose.KtyOKP, Crv: cose.CrvX25519, D: unhex(v.P.Priv)}
	self, err := newKDC(&c, key, unhex(v.P.Cred))
	if err != nil {
		t.Fatal(err)
	}
	g := &group{cfg: &c, kdc: self}
	mac, err := g.prove(unhex(v.P.ClientCred), unhex(v.Inputs.KDC))
	if err != nil || hex.EncodeToString(mac) != v.P.MAC {
		t.Errorf("kdc_cred_verify %x, %v, want %s", mac, err, v.P.MAC)
	}
	member, err := parseCred(&c, unhex(v.P.ClientCred))
	if err != nil {
		t.Fatal(err)
	}
	verify, err := self.verifier(member)
	if err != nil {
		t.Fatal(err)
	}
	if !verify(unhex(v.Inputs.Client), unhex(v.P.ClientMAC)) {
		t.Error("client_cred_verify of the vectors is refused")
	}
	if verify(unhex(v.Inputs.KDC), unhex(v.P.ClientMAC)) || verify(unhex(v.Inputs.Client), unhex(v.P.ClientMAC)[:7]) {
		t.Error("accepts what is not the proof")
	}
}

// draft-ietf-ace-key-groupcomm-oscore-21, Section 6.2, in a group that uses the
// pairwise mode only.
func TestPairwiseDecisions(t *testing.T) {
	f := newFixture(t, pairwiseConfig(cose.CrvX25519))
	foreign := func(alg int64) []byte {
		k, err := cose.GenerateKey(alg)
		if err != nil {
			t.Fatal(err)
		}
		return cose.EncodeCCS("n", k.Public())
	}
	point := func(x string) []byte {
		return cose.EncodeCCS("n", &cose.Key{Kty: cose.KtyOKP, Crv: cose.CrvX25519, X: unhex(x)})
	}
	const zeros = "0000000000000000000000000000000000000000000000000000000000000000"
	for name, tc := range map[string]struct {
		edit func(*groupcomm.JoinRequest)
		id   int
	}{
		"other MAC":   {func(r *groupcomm.JoinRequest) { r.ClientCredVerify[0] ^= 1 }, 3},
		"short MAC":   {func(r *groupcomm.JoinRequest) { r.ClientCredVerify = r.ClientCredVerify[:7] }, 3},
		"long MAC":    {func(r *groupcomm.JoinRequest) { r.ClientCredVerify = append(r.ClientCredVerify, 0) }, 3},
		"empty MAC":   {func(r *groupcomm.JoinRequest) { r.ClientCredVerify = []byte{} }, 3},
		"no MAC":      {func(r *groupcomm.JoinRequest) { r.ClientCredVerify = nil }, -2},
		"Ed25519 key": {func(r *groupcomm.JoinRequest) { r.ClientCred = foreign(cose.AlgEdDSA) }, 2},
		"P-256 key":   {func(r *groupcomm.JoinRequest) { r.ClientCred = foreign(cose.AlgES256) }, 2},
		"no key":      {func(r *groupcomm.JoinRequest) { r.ClientCred = []byte{0xa0} }, 2},
		"point 0":     {func(r *groupcomm.JoinRequest) { r.ClientCred = point(zeros) }, 2},
		"point 1":     {func(r *groupcomm.JoinRequest) { r.ClientCred = point("01" + zeros[2:]) }, 2},
		"order 8": {func(r *groupcomm.JoinRequest) {
			r.ClientCred = point("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")
		}, 2},
		"point p": {func(r *groupcomm.JoinRequest) {
			r.ClientCred = point("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f")
		}, 2},
		"monitor":        {func(r *groupcomm.JoinRequest) { r.Scope = groupcomm.ScopeEntry{Group: "g1", Roles: 8}.Encode() }, -2},
		"another's role": {func(r *groupcomm.JoinRequest) { r.Scope = groupcomm.ScopeEntry{Group: "g1", Roles: 6}.Encode() }, -1},
	} {
		t.Run(name, func(t *testing.T) {
			before := f.dump()
			j := f.dhJoiner("n/"+name, cose.CrvX25519, groupcomm.Requester|groupcomm.Monitor)
			msg, err := j.JoinMessage("g1", groupcomm.Requester)
			if err != nil {
				t.Fatal(err)
			}
			tc.edit(msg)
			r := j.Send(t.Context(), f.m, "g1", msg)
			if tc.id == -2 {
				info, err := groupcomm.DecodeInfoBody(r.Payload)
				if err != nil || r.Code != coap.BadRequest || info.SignInfo != nil || len(info.ECDHInfo) != 1 || len(info.KDCDHCreds) != 1 {
					t.Errorf("%v %x, %v", r.Code, r.Payload, err)
				}
			} else {
				checkRefusal(t, r, tc.id, false)
			}
			if f.dump() != before {
				t.Error("something was written")
			}
		})
	}
}

// A membership with MACs: join, the Group Manager's proof on request, another
// join by each way, and all of it after a restart.
func TestPairwiseMembership(t *testing.T) {
	t.Parallel()
	for _, crv := range []int64{cose.CrvX25519, cose.CrvP256, cose.CrvP384, cose.CrvP521} {
		t.Run(groupcomm.CurveName(crv), func(t *testing.T) {
			f := newFixture(t, pairwiseConfig(crv))
			j := f.dhJoiner("n", crv, both)
			d := f.join(j, "g1", both)
			if k := d.Key; k.SignAlg != 0 || k.SignParams != nil || k.GpEncAlg != 0 || k.Alg == 0 || k.ECDHParams[1][1] != crv {
				t.Errorf("key %x", k.Encode())
			}
			if len(d.KDCCredVerify) != 8 {
				t.Errorf("kdc_cred_verify of %d bytes", len(d.KDCCredVerify))
			}
			f.reopen(f.st)
			r := f.do(j, coap.GET, nil, "ace-group", "g1", "kdc-cred")
			kc, err := groupcomm.DecodeKDCCred(r.Payload)
			if err != nil {
				t.Fatal(err)
			}
			z, err := j.Key.ECDH(j.KDC)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(kc.Cred, d.KDCCred) || !groupcomm.CheckPoPMAC(z, groupcomm.KDCPoPInput(j.CNonce, kc.Nonce), kc.Verify) {
				t.Error("GET kdc-cred proves nothing")
			}
			msg, err := j.JoinMessage("g1", both)
			if err != nil {
				t.Fatal(err)
			}
			msg.ClientCred, msg.ClientCredVerify = []byte{}, nil
			if _, err := j.Accept(j.Send(t.Context(), f.m, "g1", msg)); err != nil {
				t.Error(err)
			}
			f.join(j, "g1", both)
		})
	}
}
