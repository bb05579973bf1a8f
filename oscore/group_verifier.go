package oscore

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
)

// VerifierMaterial is what the Group Manager gives an external signature checker:
// no keys to decrypt with, but the Signature Encryption Key.
//
// draft-ietf-core-oscore-groupcomm-28, Section 12.3.
type VerifierMaterial struct {
	Gid                    []byte
	Algorithms             GroupAlgorithms // all four, as the aad_array has them
	CredFormat             int64           // COSE header label of the kind of credentials
	GMCred                 []byte
	SignatureEncryptionKey cose.Secret
}

// GroupVerifier checks the countersignatures of messages in group mode without being
// a member: it reads nothing and changes nothing. Replays look genuine to it. Its
// methods may be called from several goroutines.
//
// draft-ietf-core-oscore-groupcomm-28, Section 7.5.
type GroupVerifier struct {
	creds       CredentialSource
	suite       *groupSuite
	gid, gmCred []byte
	credFormat  int64
	keystream   func(*groupMessage) ([]byte, error)
}

// NewGroupVerifier makes a verifier for the messages under one Gid.
func NewGroupVerifier(m VerifierMaterial, creds CredentialSource) (*GroupVerifier, error) {
	if creds == nil {
		return nil, errors.New("oscore: a verifier needs a source of credentials")
	}
	suite, err := newGroupSuite(m.Algorithms)
	if err != nil {
		return nil, err
	}
	if !suite.group {
		return nil, ErrMode
	}
	key := m.SignatureEncryptionKey.Bytes()
	if len(key) != suite.encKeyLen {
		return nil, fmt.Errorf("oscore: Signature Encryption Key of %d bytes, not %d", len(key), suite.encKeyLen)
	}
	if len(m.Gid) > maxGid || len(m.GMCred) == 0 || len(m.GMCred) > maxGroupCred {
		return nil, errors.New("oscore: Gid or credential of the Group Manager of an unusable length")
	}
	gmCred, err := endEntity(m.CredFormat, m.GMCred)
	if err != nil {
		return nil, fmt.Errorf("oscore: credential of the Group Manager: %w", err)
	}
	return &GroupVerifier{
		creds: creds, suite: suite, gid: append([]byte{}, m.Gid...), gmCred: bytes.Clone(gmCred),
		credFormat: m.CredFormat, keystream: suite.keystreamer(key),
	}, nil
}

// Format prints a verifier without its key.
func (v *GroupVerifier) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "verifier of group %x", v.gid) }

// LogValue keeps the key out of logs.
func (v *GroupVerifier) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(v)) }

// VerifiedRequest is what a verifier remembers of a request, by its token, to check
// the responses. It may be used from several goroutines.
type VerifiedRequest struct {
	kid, piv, gid []byte
	pairwise      bool
}

// Sender is the Sender ID of the client.
func (r *VerifiedRequest) Sender() []byte { return bytes.Clone(r.kid) }

// Pairwise says that the request was in pairwise mode, so nothing of it was
// verified.
func (r *VerifiedRequest) Pairwise() bool { return r.pairwise }

// VerifyRequest checks the countersignature of a request. A request in pairwise mode
// cannot be checked: what it returns, beside [ErrMode], is for responses in group
// mode.
func (v *GroupVerifier) VerifyRequest(req *coap.Message) (*VerifiedRequest, error) {
	if !req.Code.IsRequest() {
		return nil, errNoRequest
	}
	opt, err := received(req)
	if err != nil {
		return nil, err
	}
	if opt.KID == nil || opt.KIDContext == nil || opt.PIV == nil {
		return nil, ErrOption
	}
	if !bytes.Equal(opt.KIDContext, v.gid) {
		return nil, ErrContext
	}
	r := &VerifiedRequest{
		kid: bytes.Clone(opt.KID), piv: bytes.Clone(opt.PIV), gid: bytes.Clone(opt.KIDContext), pairwise: !opt.Group,
	}
	if r.pairwise {
		return r, ErrMode
	}
	m := &groupMessage{
		aad: groupAAD{requestKID: r.kid, requestPIV: r.piv, requestGid: r.gid},
		gid: v.gid, pivID: r.kid, piv: r.piv, request: true,
	}
	return r, v.verify(req, r.kid, m)
}

// VerifyResponse checks the countersignature of a response. from is the Sender ID of
// the server, known by other means, for responses that do not say it; nil: none is.
func (v *GroupVerifier) VerifyResponse(req *VerifiedRequest, resp *coap.Message, from []byte) error {
	if !resp.Code.IsResponse() {
		return errNoResponse
	}
	opt, err := received(resp)
	switch {
	case err != nil:
		return err
	case !opt.Group:
		return ErrMode
	case opt.KID == nil && from == nil:
		return ErrOption
	}
	if opt.KID != nil {
		from = opt.KID
	}
	if opt.KIDContext != nil && !bytes.Equal(opt.KIDContext, v.gid) ||
		opt.KIDContext == nil && opt.PIV == nil && !bytes.Equal(req.gid, v.gid) {
		return ErrContext
	}
	m := &groupMessage{
		aad: groupAAD{requestKID: req.kid, requestPIV: req.piv, requestGid: req.gid},
		gid: v.gid, pivID: req.kid, piv: req.piv,
	}
	if opt.PIV != nil {
		m.pivID, m.piv = from, opt.PIV
	}
	return v.verify(resp, from, m)
}

// verify checks a message of the member kid.
func (v *GroupVerifier) verify(msg *coap.Message, kid []byte, m *groupMessage) error {
	cred, ok := v.creds.Credential(bytes.Clone(v.gid), bytes.Clone(kid))
	if !ok || len(cred) > maxGroupCred {
		return ErrUnknownPeer
	}
	own, key, err := v.suite.memberCredential(v.credFormat, cred)
	if err != nil {
		return ErrUnknownPeer
	}
	if len(msg.Payload) < v.suite.sigLen || len(msg.Payload) > maxPlaintext+v.suite.sigLen+maxTag {
		return ErrDecrypt
	}
	m.aad.option, _ = msg.Options.Get(coap.OSCOREOption)
	m.aad.senderCred, m.aad.gmCred = own, v.gmCred
	w := groupScratches.Get().(*groupScratch)
	defer w.release()
	w.frame.set(&m.aad, v.suite)
	if err := verifyCountersignature(w, v.suite.sigLen, v.keystream, key.Verify, m, msg.Payload); err != nil {
		return ErrDecrypt
	}
	return nil
}
