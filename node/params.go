package node

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

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
	if err := checkFormat(p.credFmt()); err != nil {
		return nil, err
	}
	if p.sign != nil {
		return p, nil
	}
	i := slices.IndexFunc(dh, func(e groupcomm.KDCDHCred) bool { return slices.Contains(e.Groups, group) })
	if i < 0 {
		return nil, errNoDHCred
	}
	p.kdc = dh[i].Cred
	key, err := cose.DecodeCredential(p.credFmt(), p.kdc)
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

// checkFormat says whether credentials of a format are known here.
func checkFormat(format int64) error {
	switch format {
	case cose.HeaderKCCS, cose.HeaderKCWT, cose.HeaderX5Chain:
		return nil
	}
	return fmt.Errorf("%w: credential format %d, known are CCS, CWT and x5chain", ErrUnsupported, format)
}

// credential makes the node's credential of the format that the group uses: from
// its key alone, but for certificates, which others issue.
func (p *params) credential(subject string, key *cose.Key) ([]byte, error) {
	switch f := p.credFmt(); f {
	case cose.HeaderKCCS:
		return cose.EncodeCCS(subject, key), nil
	case cose.HeaderKCWT:
		return cose.EncodeCWT(subject, key)
	default:
		return nil, fmt.Errorf("%w: the group wants credentials of format %d (x5chain is %d), and the node has none", ErrUnsupported, f, cose.HeaderX5Chain)
	}
}

// trust says whether a credential is worth belief: a certificate whose path leads
// to the roots, where there are some.
func trust(format int64, cred []byte, roots *x509.CertPool, pairwiseOnly bool) error {
	if format != cose.HeaderX5Chain || roots == nil {
		return nil
	}
	usage := x509.KeyUsageDigitalSignature
	if pairwiseOnly {
		usage = x509.KeyUsageKeyAgreement
	}
	return cose.VerifyX5Chain(cred, roots, time.Now(), usage)
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
	key, err := cose.ParseCredential(p.credFmt(), cred)
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
