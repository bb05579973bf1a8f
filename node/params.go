package node

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// credCCS is the COSE header label kccs: the format of credentials spoken here.
const credCCS = cose.HeaderKCCS

// params are what the Group Manager announced about a group. They are not
// modified once made.
type params struct {
	sign *groupcomm.SignInfoEntry // nil: the group uses the pairwise mode only
	ecdh *groupcomm.SignInfoEntry // nil: signature-only, or not told
	// kdc is the Group Manager's Diffie-Hellman credential: in a group that uses
	// the pairwise mode only, a proof of possession needs it.
	kdc    []byte
	kdcKey *cose.Key
}

var (
	errNotAnnounced = fmt.Errorf("%w: the Group Manager announces no parameters", ErrUnsupported)
	errNoDHCred     = fmt.Errorf("%w: the Group Manager sent no Diffie-Hellman credential (kdc_dh_creds)", ErrUnsupported)
)

// announced finds the parameters of a group among those told: sign_info,
// ecdh_info and kdc_dh_creds. A group without sign_info entry has no group mode,
// and then the third is needed.
//
// RFC 9594, Section 3.3.1, where one entry may cover several groups;
// draft-ietf-ace-key-groupcomm-oscore-21, Sections 5.3 and 6.2.
func announced(group string, sign, ecdh []groupcomm.SignInfoEntry, dh []groupcomm.KDCDHCred) (*params, error) {
	find := func(entries []groupcomm.SignInfoEntry) *groupcomm.SignInfoEntry {
		i := slices.IndexFunc(entries, func(e groupcomm.SignInfoEntry) bool { return slices.Contains(e.Groups, group) })
		if i < 0 {
			return nil
		}
		e := entries[i]
		return &e
	}
	p := &params{sign: find(sign), ecdh: find(ecdh)}
	if p.sign == nil && p.ecdh == nil {
		return nil, fmt.Errorf("%w for %q: the access token does not cover the group", errNotAnnounced, group)
	}
	if p.ecdh != nil && len(p.ecdh.KeyParams) != 2 {
		return nil, fmt.Errorf("%w: ecdh_info without a curve", ErrUnsupported)
	}
	if f := p.credFmt(); f != credCCS {
		return nil, fmt.Errorf("%w: credential format %d, only CCS (%d) is known here", ErrUnsupported, f, credCCS)
	}
	if p.sign != nil {
		return p, nil
	}
	i := slices.IndexFunc(dh, func(e groupcomm.KDCDHCred) bool { return slices.Contains(e.Groups, group) })
	if i < 0 {
		return nil, errNoDHCred
	}
	p.kdc = dh[i].Cred
	key, err := cose.DecodeCCS(p.kdc)
	if err == nil {
		err = key.CheckDH(p.curve())
	}
	if err != nil {
		return nil, fmt.Errorf("%w: kdc_dh_creds: %w", ErrUnsupported, err)
	}
	p.kdcKey = key
	return p, nil
}

func (p *params) credFmt() int64 {
	if p.sign != nil {
		return p.sign.CredFmt
	}
	return p.ecdh.CredFmt
}

func (p *params) curve() int64 { return p.ecdh.KeyParams[1] }

// checkKey says whether a key serves the group.
func (p *params) checkKey(k *cose.Key) error {
	if p.sign != nil {
		return k.CheckAlg(p.sign.Alg)
	}
	return k.CheckDH(p.curve())
}

// generate makes a key pair that serves the group.
func (p *params) generate() (*cose.Key, error) {
	if p.sign != nil {
		return cose.GenerateKey(p.sign.Alg)
	}
	return cose.GenerateDHKey(p.curve())
}

// checkJoin says whether the algorithms of a Join Response are those announced,
// and those of one mode at least.
//
// draft-ietf-ace-key-groupcomm-oscore-21, Section 6.3.
func (p *params) checkJoin(k *groupcomm.KeyMap) error {
	same := func(have [][]int64, want *groupcomm.SignInfoEntry) bool {
		return slices.EqualFunc(have, [][]int64{want.AlgParams, want.KeyParams}, slices.Equal)
	}
	switch {
	case (k.Alg == 0) != (k.ECDHAlg == 0):
		return errors.New("pairwise mode needs alg and ecdh_alg")
	case k.ECDHAlg != 0 && (len(k.ECDHParams) != 2 || len(k.ECDHParams[1]) != 2):
		return errors.New("pairwise mode without a curve")
	case p.sign == nil && (k.SignAlg != 0 || k.SignParams != nil || k.GpEncAlg != 0):
		return errors.New("group mode, announced was pairwise mode only")
	case p.sign != nil && k.SignAlg != p.sign.Alg:
		return fmt.Errorf("sign_alg %d, announced was %d", k.SignAlg, p.sign.Alg)
	case p.sign != nil && !same(k.SignParams, p.sign):
		return errors.New("sign_params differ from those announced")
	case p.sign != nil && k.GpEncAlg == 0:
		return errors.New("group mode without gp_enc_alg")
	case p.ecdh != nil && k.ECDHAlg != p.ecdh.Alg:
		return fmt.Errorf("ecdh_alg %d, announced was %d", k.ECDHAlg, p.ecdh.Alg)
	case p.ecdh != nil && !same(k.ECDHParams, p.ecdh):
		return errors.New("ecdh_params differ from those announced")
	case k.CredFmt != p.credFmt():
		return fmt.Errorf("cred_fmt %d, announced was %d", k.CredFmt, p.credFmt())
	}
	return nil
}

// checkPeer says whether the key of another member serves a group with the
// parameters k, which checkJoin accepted.
func checkPeer(k *groupcomm.KeyMap, key *cose.Key) error {
	if k.SignAlg != 0 {
		return key.CheckAlg(k.SignAlg)
	}
	return key.CheckDH(k.ECDHParams[1][1])
}

// evidence proves possession of the node's key: by a signature, or in a group
// that uses the pairwise mode only by a MAC under the secret that the key shares
// with the Group Manager's.
//
// draft-ietf-ace-key-groupcomm-oscore-21, Section 6.1.
func (p *params) evidence(own *cose.Key, sign func([]byte) ([]byte, error), input []byte) ([]byte, error) {
	if p.sign != nil {
		return sign(input)
	}
	z, err := own.ECDH(p.kdcKey)
	if err != nil {
		return nil, err
	}
	return groupcomm.PoPMAC(z, input), nil
}

// checkKDC verifies the Group Manager's proof and returns its public key. The
// errors are [ErrProof], and any other for a credential of no use.
//
// draft-ietf-ace-key-groupcomm-oscore-21, Section 6.4.
func (p *params) checkKDC(own *cose.Key, cred, input, proof []byte) (*cose.Key, error) {
	if p.sign == nil {
		if !bytes.Equal(cred, p.kdc) {
			return nil, errors.New("not the one in kdc_dh_creds")
		}
		if own == nil {
			return nil, errors.New("no own key that its proof could be for")
		}
		z, err := own.ECDH(p.kdcKey)
		if err != nil {
			return nil, err
		}
		if !groupcomm.CheckPoPMAC(z, input, proof) {
			return nil, ErrProof
		}
		return p.kdcKey, nil
	}
	key, err := cose.ParseCCS(cred)
	if err != nil {
		return nil, err
	}
	if err := key.CheckAlg(p.sign.Alg); err != nil {
		return nil, err
	}
	if key.Verify(input, proof) != nil {
		if err := key.Check(); err != nil {
			return nil, err
		}
		return nil, ErrProof
	}
	return key, nil
}
