package gm

import (
	"crypto/sha256"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/gm/gmtest"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// shown makes a node one that showed a key in its handshake.
func (f *fixture) shown(j *gmtest.Joiner, key *cose.Key, via coap.Security) {
	f.t.Helper()
	spki, err := key.SPKI()
	if err != nil {
		f.t.Fatal(err)
	}
	sum := sha256.Sum256(spki)
	j.Peer.Via, j.Peer.Subject = via, coap.Subject{Kind: coap.SubjectKeyHash, ID: string(sum[:])}
	f.auth.Allow(j.Peer.Subject, groupcomm.Scope{{Group: "g1", Roles: both}}, time.Time{})
}

// draft-ietf-ace-key-groupcomm-oscore-21, Sections 6.1 and 6.2: a newcomer that
// showed the key of its credential in the handshake may leave its proof empty;
// nobody else may.
func TestProofOfTheHandshake(t *testing.T) {
	for name, c := range map[string]struct {
		via    coap.Security
		edit   func(f *fixture, j *gmtest.Joiner)
		member bool // it joined before
		code   coap.Code
		id     int
	}{
		"raw public key": {via: coap.DTLSRPK, code: coap.Created},
		"certificate":    {via: coap.DTLSCert, code: coap.Created},
		"another key": {via: coap.DTLSRPK, code: coap.BadRequest, id: groupcomm.ErrPoP.ID, edit: func(f *fixture, j *gmtest.Joiner) {
			other, err := cose.GenerateKey(cose.AlgEdDSA)
			if err != nil {
				f.t.Fatal(err)
			}
			f.shown(j, other, coap.DTLSRPK)
		}},
		"pre-shared key": {via: coap.DTLSPSK, code: coap.BadRequest, id: groupcomm.ErrPoP.ID},
		"OSCORE":         {via: coap.OSCORE, code: coap.BadRequest, id: groupcomm.ErrPoP.ID},
		"member":         {via: coap.DTLSRPK, member: true, code: coap.BadRequest, id: groupcomm.ErrPoP.ID},
		"other algorithm": {via: coap.DTLSRPK, code: coap.BadRequest, id: groupcomm.ErrCredential.ID, edit: func(f *fixture, j *gmtest.Joiner) {
			k, err := cose.GenerateKey(cose.AlgES256)
			if err != nil {
				f.t.Fatal(err)
			}
			j.Key, j.Cred = k, cose.EncodeCCS("n", k.Public())
			f.shown(j, k, coap.DTLSRPK)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, groupConfig("g1"))
			j := f.joiner("n", "g1", both)
			f.shown(j, j.Key, c.via)
			if c.edit != nil {
				c.edit(f, j)
			}
			if c.member {
				f.shown(j, j.Key, c.via)
				var err error
				if j.NS, err = f.auth.NewChallenge(t.Context(), j.Peer.Subject); err != nil {
					t.Fatal(err)
				}
				f.join(j, "g1", both)
			}
			msg, err := j.JoinMessage("g1", both)
			if err != nil {
				t.Fatal(err)
			}
			msg.ClientCredVerify = []byte{}
			r := j.Send(t.Context(), f.m, "g1", msg)
			if r.Code != c.code {
				t.Fatalf("code %v %x", r.Code, r.Payload)
			}
			if c.code == coap.BadRequest {
				if p, err := coap.DecodeProblem(r.Payload); err != nil || p.ID != c.id {
					t.Errorf("%+v, %v", p, err)
				}
				return
			}
			if _, err := j.Accept(r); err != nil {
				t.Error(err)
			}
			// It may join again as every member does.
			again, err := j.JoinMessage("g1", both)
			if err != nil {
				t.Fatal(err)
			}
			again.ClientCred, again.ClientCredVerify = []byte{}, nil
			if r := j.Send(t.Context(), f.m, "g1", again); r.Code != coap.Changed {
				t.Errorf("joining again: %v %x", r.Code, r.Payload)
			}
		})
	}
}
