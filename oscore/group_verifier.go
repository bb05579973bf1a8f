package oscore

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"sync"

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
	keystream   keystreamKey

	mu    sync.Mutex
	peers map[string]*verifierPeer // by Sender ID; guarded by mu
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
		credFormat: m.CredFormat, keystream: keystreamKey{suite, bytes.Clone(key)}, peers: map[string]*verifierPeer{},
	}, nil
}

// Format prints a verifier without its key.
func (v *GroupVerifier) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "verifier of group %x", v.gid) }

// LogValue keeps the key out of logs.
func (v *GroupVerifier) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(v)) }

// VerifiedRequest is what a verifier remembers of a request, by its token, to check
// the responses: a small value, to be copied and kept.
type VerifiedRequest struct {
	kid, piv       [maxNonce]byte
	kidLen, pivLen uint8
	gid            []byte
	pairwise       bool
}

// Sender is the Sender ID of the client.
func (r VerifiedRequest) Sender() []byte { return bytes.Clone(r.kid[:r.kidLen]) }

// Pairwise says that the request was in pairwise mode, so nothing of it was
// verified.
func (r VerifiedRequest) Pairwise() bool { return r.pairwise }

// aad is what the request is to the Additional Authenticated Data of an exchange.
func (r *VerifiedRequest) aad() groupAAD {
	return groupAAD{requestKID: r.kid[:r.kidLen], requestPIV: r.piv[:r.pivLen], requestGid: r.gid}
}

// VerifyRequest checks the countersignature of a request. A request in pairwise mode
// cannot be checked: what it returns, beside [ErrMode], is for responses in group
// mode.
func (v *GroupVerifier) VerifyRequest(req *coap.Message) (VerifiedRequest, error) {
	if !req.Code.IsRequest() {
		return VerifiedRequest{}, errNoRequest
	}
	opt, err := received(req)
	switch {
	case err != nil:
		return VerifiedRequest{}, err
	case opt.KID == nil || opt.KIDContext == nil || opt.PIV == nil:
		return VerifiedRequest{}, ErrOption
	case !bytes.Equal(opt.KIDContext, v.gid):
		return VerifiedRequest{}, ErrContext
	case len(opt.KID) > v.suite.maxID:
		return VerifiedRequest{}, ErrUnknownPeer
	}
	r := VerifiedRequest{
		kidLen: uint8(len(opt.KID)), pivLen: uint8(len(opt.PIV)), gid: v.gid, pairwise: !opt.Group,
	}
	copy(r.kid[:], opt.KID)
	copy(r.piv[:], opt.PIV)
	if r.pairwise {
		return r, ErrMode
	}
	w := groupScratches.Get().(*groupScratch)
	defer w.release()
	w.request = r
	w.message = groupMessage{aad: w.request.aad(), gid: v.gid, pivID: opt.KID, piv: opt.PIV, request: true}
	return r, v.verify(w, req, opt.KID)
}

// VerifyResponse checks the countersignature of a response. from is the Sender ID of
// the server, known by other means, for responses that do not say it; nil: none is.
func (v *GroupVerifier) VerifyResponse(req VerifiedRequest, resp *coap.Message, from []byte) error {
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
	w := groupScratches.Get().(*groupScratch)
	defer w.release()
	w.request = req
	aad := w.request.aad()
	w.message = groupMessage{aad: aad, gid: v.gid, pivID: aad.requestKID, piv: aad.requestPIV}
	if opt.PIV != nil {
		w.message.pivID, w.message.piv = from, opt.PIV
	}
	return v.verify(w, resp, from)
}

// verifierPeer is a credential that was read.
type verifierPeer struct {
	cred   []byte // as the source gave it
	own    []byte // what counts of it
	verify func(msg, sig []byte) error
}

// peer is the member kid: its credential is read again when it is another.
func (v *GroupVerifier) peer(kid []byte) (*verifierPeer, error) {
	cred, ok := v.creds.Credential(v.gid, kid)
	if !ok || len(cred) > maxGroupCred {
		return nil, ErrUnknownPeer
	}
	v.mu.Lock()
	p := v.peers[string(kid)]
	v.mu.Unlock()
	if p != nil && bytes.Equal(p.cred, cred) {
		return p, nil
	}
	cred = bytes.Clone(cred)
	own, key, err := v.suite.memberCredential(v.credFormat, cred)
	if err != nil {
		return nil, ErrUnknownPeer
	}
	p = &verifierPeer{cred: cred, own: own, verify: key.Verifier()}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.peers) >= defaultMaxRecipients {
		clear(v.peers)
	}
	v.peers[string(kid)] = p
	return p, nil
}

// verify checks the message w.message of the member kid.
func (v *GroupVerifier) verify(w *groupScratch, msg *coap.Message, kid []byte) error {
	p, err := v.peer(kid)
	if err != nil {
		return err
	}
	if len(msg.Payload) < v.suite.sigLen || len(msg.Payload) > maxPlaintext+v.suite.sigLen+maxTag {
		return ErrDecrypt
	}
	m := &w.message
	m.aad.option, _ = msg.Options.Get(coap.OSCOREOption)
	m.aad.senderCred, m.aad.gmCred = p.own, v.gmCred
	w.frame.set(&m.aad, v.suite)
	if err := v.keystream.verify(w, p.verify, m, msg.Payload); err != nil {
		return ErrDecrypt
	}
	return nil
}
