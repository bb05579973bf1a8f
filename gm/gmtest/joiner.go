package gmtest

import (
	"context"
	"crypto/rand"
	"fmt"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// Joiner is a node with a key pair of its own. Set NS to the N_S of its token
// before it proves possession.
type Joiner struct {
	Peer coap.Peer
	Key  *cose.Key
	Cred []byte // CCS with the public key
	NS   []byte
	// KDC is the Group Manager's Diffie-Hellman key, for a group that uses the
	// pairwise mode only: proofs are MACs then. nil: they are signatures.
	KDC *cose.Key

	Path   []string // of its node resource, from the latest Join Response
	CNonce []byte   // of its latest Join Request
}

// NewJoiner makes a node of that name with a key for the signature algorithm.
func NewJoiner(name string, signAlg int64) (*Joiner, error) {
	key, err := cose.GenerateKey(signAlg)
	if err != nil {
		return nil, err
	}
	return newJoiner(name, key), nil
}

// NewDHJoiner makes a node of that name with a key for Diffie-Hellman on the
// curve. Set KDC before it proves possession.
func NewDHJoiner(name string, crv int64) (*Joiner, error) {
	key, err := cose.GenerateDHKey(crv)
	if err != nil {
		return nil, err
	}
	return newJoiner(name, key), nil
}

func newJoiner(name string, key *cose.Key) *Joiner {
	return &Joiner{
		Peer: coap.Peer{
			Link:    coap.LinkID("test/" + name),
			Via:     coap.DTLSPSK,
			Subject: coap.Subject{Kind: coap.SubjectPoP, ID: name},
		},
		Key:  key,
		Cred: cose.EncodeCCS(name, key.Public()),
	}
}

// Request makes a request of the node. A body gets Content-Format 261.
func (j *Joiner) Request(code coap.Code, body []byte, path ...string) *coap.Request {
	r := &coap.Request{Code: code, Payload: body, Peer: j.Peer}
	r.Options.SetPath(path...)
	if body != nil {
		r.Options.SetContentFormat(coap.ACEGroupcomm)
	}
	return r
}

// JoinMessage makes a complete Join Request with a fresh N_C: a proof over NS
// unless the only role is monitor.
func (j *Joiner) JoinMessage(group string, roles groupcomm.Roles) (*groupcomm.JoinRequest, error) {
	j.CNonce = make([]byte, 8)
	rand.Read(j.CNonce)
	msg := &groupcomm.JoinRequest{
		Scope:  groupcomm.ScopeEntry{Group: group, Roles: roles}.Encode(),
		CNonce: j.CNonce,
	}
	if roles.MonitorOnly() {
		return msg, nil
	}
	msg.ClientCred = j.Cred
	return msg, j.Prove(msg)
}

// Prove sets the proof of possession of msg for its scope and N_C.
func (j *Joiner) Prove(msg *groupcomm.JoinRequest) error {
	input := groupcomm.ClientPoPInput(msg.Scope, j.NS, msg.CNonce)
	if j.KDC == nil {
		sig, err := j.Key.Sign(input)
		msg.ClientCredVerify = sig
		return err
	}
	z, err := j.Key.ECDH(j.KDC)
	if err == nil {
		msg.ClientCredVerify = groupcomm.PoPMAC(z, input)
	}
	return err
}

// Send puts a Join Request before h and returns whatever it answers, an error
// made into a response as on the wire.
func (j *Joiner) Send(ctx context.Context, h coap.Handler, group string, msg *groupcomm.JoinRequest) *coap.Response {
	return Serve(ctx, h, j.Request(coap.POST, msg.Encode(), "ace-group", group))
}

// Join joins a group and returns the verified Join Response. Any other answer
// is an error.
func (j *Joiner) Join(ctx context.Context, h coap.Handler, group string, roles groupcomm.Roles) (*groupcomm.KeyDistribution, error) {
	msg, err := j.JoinMessage(group, roles)
	if err != nil {
		return nil, err
	}
	r := j.Send(ctx, h, group, msg)
	if r.Code != coap.Created && r.Code != coap.Changed {
		return nil, fmt.Errorf("join answered with %v %x", r.Code, r.Payload)
	}
	return j.Accept(r)
}

// Accept reads a Join Response and verifies the Group Manager's proof.
func (j *Joiner) Accept(r *coap.Response) (*groupcomm.KeyDistribution, error) {
	d, err := groupcomm.DecodeKeyDistribution(r.Payload)
	if err != nil {
		return nil, err
	}
	kdc, err := cose.DecodeCCS(d.KDCCred)
	if err != nil {
		return nil, err
	}
	if err := j.checkKDC(kdc, groupcomm.KDCPoPInput(j.CNonce, d.KDCNonce), d.KDCCredVerify); err != nil {
		return nil, fmt.Errorf("kdc_cred_verify: %w", err)
	}
	j.Path = r.Options.Strings(coap.LocationPath)
	return d, nil
}

// checkKDC verifies kdc_cred_verify by the key of the Group Manager's credential.
func (j *Joiner) checkKDC(kdc *cose.Key, input, proof []byte) error {
	if j.KDC == nil {
		return kdc.Verify(input, proof)
	}
	z, err := j.Key.ECDH(kdc)
	if err == nil && !groupcomm.CheckPoPMAC(z, input, proof) {
		err = cose.ErrSignature
	}
	return err
}

// Serve calls a handler as the server core does: an error becomes a response.
func Serve(ctx context.Context, h coap.Handler, req *coap.Request) *coap.Response {
	r, err := h.ServeCoAP(ctx, req)
	if err != nil {
		return coap.ErrorResponse(err)
	}
	return r
}
