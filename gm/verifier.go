package gm

import (
	"fmt"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// A signature verifier is no member: it checks the countersignatures of a
// group's messages and cannot read them
// (draft-ietf-ace-key-groupcomm-oscore-21, Sections 9.5.2 and 9.6). In a group
// that does not sign there is nothing for it: error 7.

// fetchKDCCred answers FETCH kdc-cred
// (draft-ietf-ace-key-groupcomm-oscore-21, Section 9.5.2): the proof is over the
// verifier's nonce and a new one of ours, and always a signature.
func (m *Manager) fetchKDCCred(c *call) (*coap.Response, error) {
	if !c.g.cfg.GroupMode() {
		return nil, groupcomm.ErrNoSignatures
	}
	if err := checkFormats(c.req); err != nil {
		return nil, err
	}
	if len(c.req.Payload) > maxBody {
		return nil, coap.Errorf(coap.RequestEntityTooLarge, "")
	}
	cnonce, err := groupcomm.DecodeKDCCredRequest(c.req.Payload)
	if err != nil || len(cnonce) < nonceMin || len(cnonce) > nonceMax {
		return nil, coap.Errorf(coap.BadRequest, "a cnonce of %d to %d bytes is expected", nonceMin, nonceMax)
	}
	return m.kdcCred(c, nil, cnonce)
}

// kdcCred is the answer of kdc-cred with a fresh proof over cnonce, for the
// member with memberCred where the proof is for one alone.
func (m *Manager) kdcCred(c *call, memberCred, cnonce []byte) (*coap.Response, error) {
	d := &groupcomm.KeyDistribution{}
	if err := m.proveKDC(c.g, memberCred, cnonce, d); err != nil {
		return nil, err
	}
	body := groupcomm.KDCCred{Cred: d.KDCCred, Nonce: d.KDCNonce, Verify: d.KDCCredVerify}
	return keyed(coap.Content, body.Encode()), nil
}

// verifData answers GET verif-data (draft-ietf-ace-key-groupcomm-oscore-21,
// Section 9.6): the parameters of the group's signatures and the Signature
// Encryption Key; no Master Secret, no salt, no Sender ID.
func (m *Manager) verifData(c *call) (*coap.Response, error) {
	if !c.g.cfg.GroupMode() {
		return nil, groupcomm.ErrNoSignatures
	}
	if err := checkAccept(c.req, coap.ACEGroupcomm); err != nil {
		return nil, err
	}
	key, err := groupcomm.SignEncKey(c.g.cfg.HKDF, c.g.cfg.GpEncAlg, c.mat.secret.Bytes(), c.mat.salt.Bytes(), c.mat.gid)
	if err != nil {
		return nil, fmt.Errorf("gm: verif-data of %q: %w", c.g.cfg.Name, err)
	}
	v := &groupcomm.VerifData{
		Key:        c.g.cfg.VerifParams(),
		Num:        c.mat.num,
		Exp:        c.mat.exp,
		Exi:        max(0, c.mat.exp-time.Now().Unix()),
		SignEncKey: key.Bytes(),
	}
	v.Key.ContextID = c.mat.gid
	return keyed(coap.Content, v.Encode()), nil
}
