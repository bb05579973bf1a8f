package gm

import (
	"crypto/sha256"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// provenByAssociation says whether a peer has shown in its handshake that it
// holds the private key of a credential.
//
// draft-ietf-ace-key-groupcomm-oscore-21, Section 6.1: then one that is not a
// member may leave its proof empty; a raw public key, or that of a certificate,
// is the same key as that in the credential.
func provenByAssociation(g *group, cred []byte, peer coap.Peer) bool {
	if peer.Via != coap.DTLSRPK && peer.Via != coap.DTLSCert || peer.Subject.Kind != coap.SubjectKeyHash {
		return false
	}
	key, err := parseCred(g.cfg, cred)
	if err != nil {
		return false
	}
	spki, err := key.SPKI()
	sum := sha256.Sum256(spki)
	return err == nil && peer.Subject.ID == string(sum[:])
}

// suitable says whether a credential is one for the group: error 2 when not.
func suitable(g *group, cred []byte) error {
	key, err := parseCred(g.cfg, cred)
	if err == nil {
		err = g.trust(cred)
	}
	if err == nil {
		_, err = g.kdc.verifier(key)
	}
	if err == nil {
		err = key.Check()
	}
	if err != nil {
		return unsuitable(g.cfg, err)
	}
	return nil
}

// provenBy judges a credential and the proof that its owner holds the key: error
// 2 when it does not suit the group, error 3 when the proof covers none of the
// challenges (draft-ietf-ace-key-groupcomm-oscore-21, Sections 6.2 and 9.4). It
// returns the N_S that the proof covers. input is what is proven with an N_S.
func provenBy(g *group, cred []byte, challenges [][]byte, input func(ns []byte) []byte, proof []byte) (ns []byte, err error) {
	key, err := parseCred(g.cfg, cred)
	if err != nil {
		return nil, unsuitable(g.cfg, err)
	}
	if err := g.trust(cred); err != nil {
		return nil, unsuitable(g.cfg, err)
	}
	verify, err := g.kdc.verifier(key)
	if err != nil {
		return nil, unsuitable(g.cfg, err)
	}
	for i, ns := range challenges {
		if i == maxPoPTries || len(proof) == 0 {
			break
		}
		if verify(input(ns), proof) {
			return ns, nil
		}
	}
	if err := key.Check(); err != nil {
		return nil, unsuitable(g.cfg, err)
	}
	return nil, groupcomm.ErrPoP
}
