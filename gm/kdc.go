package gm

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// kdcSubject is the subject of the credential that the Group Manager has in
// each group.
const kdcSubject = "gm"

// kdc is who the Group Manager is in one group. Keys are held as functions, so
// that nothing prints them.
type kdc struct {
	cred []byte // its credential

	// sign makes a raw COSE signature with the algorithm signAlg, and rekeys over
	// MQTT are countersigned with it. In a group with the group mode it is by the
	// key of cred; in one that uses the pairwise mode only, where that key cannot
	// sign, it is by the key of courier.
	sign    func(message []byte) ([]byte, error)
	signAlg int64
	courier []byte // nil with the group mode

	// agree gives the Diffie-Hellman secret of the key of cred and a member's;
	// nil with the group mode.
	agree func(member *cose.Key) ([]byte, error)
}

// makeKDCKey makes a key pair for the Group Manager of a group.
func makeKDCKey(c *groupcomm.GroupConfig) (*cose.Key, error) {
	if c.PairwiseOnly() {
		return cose.GenerateDHKey(c.ECDHCrv)
	}
	return cose.GenerateKey(c.SignAlg)
}

// newKDC is the Group Manager with a key pair and the credential for it.
func newKDC(c *groupcomm.GroupConfig, key *cose.Key, cred []byte) (kdc, error) {
	if !c.PairwiseOnly() {
		return kdc{cred: cred, sign: key.Signer(), signAlg: c.SignAlg}, nil
	}
	courier, err := courierKey(key)
	if err != nil {
		return kdc{}, err
	}
	return kdc{
		cred: cred, agree: key.ECDH,
		sign: courier.Signer(), signAlg: cose.AlgEdDSA, courier: cose.EncodeCCS(kdcSubject, courier.Public()),
	}, nil
}

// courierKey derives the key that countersigns rekeys over MQTT in a group that
// uses the pairwise mode only. What was rendered before a restart verifies after
// it, so the key lives as long as the group's.
func courierKey(dh *cose.Key) (*cose.Key, error) {
	seed, err := cose.HKDF256(dh.D, nil, []byte("groupgate courier key"), ed25519.SeedSize)
	if err != nil {
		return nil, fmt.Errorf("gm: derive a signing key: %w", err)
	}
	pub := ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
	return &cose.Key{Kty: cose.KtyOKP, Crv: cose.CrvEd25519, X: pub, D: seed}, nil
}

// verifier gives what checks the proofs of possession of a member's key: a
// signature, or where the group uses the pairwise mode only a MAC
// (draft-ietf-ace-key-groupcomm-oscore-21, Section 6.1). The error is about the
// key: it does not give a secret.
func (k *kdc) verifier(member *cose.Key) (func(input, proof []byte) bool, error) {
	if k.agree == nil {
		return func(input, proof []byte) bool { return member.Verify(input, proof) == nil }, nil
	}
	z, err := k.agree(member)
	if err != nil {
		return nil, err
	}
	return func(input, proof []byte) bool { return groupcomm.CheckPoPMAC(z, input, proof) }, nil
}

// prove makes kdc_cred_verify for the member with a credential that was
// accepted (draft-ietf-ace-key-groupcomm-oscore-21, Section 6.3).
func (g *group) prove(memberCred, input []byte) ([]byte, error) {
	if g.kdc.agree == nil {
		return g.kdc.sign(input)
	}
	key, err := parseCred(g.cfg, memberCred)
	if err != nil {
		return nil, err
	}
	z, err := g.kdc.agree(key)
	if err != nil {
		return nil, err
	}
	return groupcomm.PoPMAC(z, input), nil
}

// proveKDC adds the Group Manager's credential and a fresh proof that it holds
// the key, over the client's nonce (draft-ietf-ace-key-groupcomm-oscore-21,
// Section 6.3). memberCred is looked at in groups that use the pairwise mode
// only: the proof is for that member alone.
func (m *Manager) proveKDC(g *group, memberCred, cnonce []byte, d *groupcomm.KeyDistribution) error {
	nonce := newKDCNonce()
	proof, err := g.prove(memberCred, groupcomm.KDCPoPInput(cnonce, nonce))
	if err != nil {
		return fmt.Errorf("gm: prove possession for %q: %w", g.cfg.Name, err)
	}
	d.KDCCred, d.KDCNonce, d.KDCCredVerify = g.kdc.cred, nonce, proof
	return nil
}

// introduceCourier adds to mgt_key_material the credential that countersigns
// rekeys, with its proof over the client's nonce, where it is another than
// kdc_cred (docs/protocol.md, Section 5). Without a nonce, in the answer to a GET, it
// is the credential alone: the proof was in the Join Response.
func (g *group) introduceCourier(mgt, cnonce []byte) ([]byte, error) {
	if g.kdc.courier == nil {
		return mgt, nil
	}
	k, err := groupcomm.DecodeMgtKeyMaterial(mgt)
	if err != nil {
		return nil, fmt.Errorf("gm: %w", err)
	}
	k.KDCCred = g.kdc.courier
	if cnonce == nil {
		return k.Encode(), nil
	}
	k.KDCNonce = newKDCNonce()
	if k.KDCCredVerify, err = g.kdc.sign(groupcomm.KDCPoPInput(cnonce, k.KDCNonce)); err != nil {
		return nil, fmt.Errorf("gm: sign for %q: %w", g.cfg.Name, err)
	}
	return k.Encode(), nil
}

// tellChannel puts rekeying_scheme and mgt_key_material into d, when there are
// any, and where a key tree is multicast. What a member in a key tree is given is
// for it alone; notifications, which are shared, are rekey messages (docs/protocol.md,
// Section 6).
func (g *group) tellChannel(d *groupcomm.KeyDistribution, mgt, cnonce []byte) error {
	if mgt == nil {
		return nil
	}
	mgt, err := g.introduceCourier(mgt, cnonce)
	if err != nil {
		return err
	}
	k, err := groupcomm.DecodeMgtKeyMaterial(mgt)
	if err != nil {
		return fmt.Errorf("gm: %w", err)
	}
	scheme := groupcomm.SchemeMQTT
	if k.Tree != nil {
		scheme, d.ControlGroupURI = groupcomm.SchemeKeyTree, g.cfg.ControlGroupURI
	}
	d.RekeyingScheme, d.MgtKeyMaterial = &scheme, mgt
	return nil
}

// tellChannel is that of the group for one that just joined.
func (j *joinCall) tellChannel(d *groupcomm.KeyDistribution) error {
	if j.mgt == nil {
		return nil
	}
	return j.g.tellChannel(d, j.mgt(), j.msg.CNonce)
}

func newKDCNonce() []byte {
	nonce := make([]byte, kdcNonceLen)
	rand.Read(nonce)
	return nonce
}

// dhCred is the group's entry of kdc_dh_creds; ok is false where the group has
// the group mode (draft-ietf-ace-key-groupcomm-oscore-21, Section 5.3.2).
func (g *group) dhCred() (e groupcomm.KDCDHCred, ok bool) {
	if !g.cfg.PairwiseOnly() {
		return e, false
	}
	return groupcomm.KDCDHCred{Groups: []string{g.cfg.Name}, CredFmt: g.cfg.CredFmt, Cred: g.kdc.cred}, true
}
