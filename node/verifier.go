package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// Verification is what a signature verifier needs to check the countersignatures
// of one version of a group. It decrypts nothing.
type Verification struct {
	Group      string
	Gid        groupcomm.Gid
	Version    groupcomm.Version
	Expires    time.Time        // of the keying material
	SignEncKey cose.Secret      // Signature Encryption Key
	Params     groupcomm.KeyMap // algorithms; its secrets are empty
	KDCCred    []byte           // credential of the Group Manager, verified
	Peers      []Peer           // the members that sign
}

// Verifier is an external signature verifier of one group: its token has the
// role verifier, and it never joins
// (draft-ietf-ace-key-groupcomm-oscore-21, Section 8.5).
type Verifier struct {
	group string
	t     Transport
	rand  io.Reader
}

// NewVerifier makes a verifier that speaks over t, which stays the caller's.
// Nothing is sent.
func NewVerifier(group string, t Transport) (*Verifier, error) {
	if t == nil {
		return nil, errors.New("node: no transport")
	}
	if n := len(group); n == 0 || n > maxName {
		return nil, fmt.Errorf("node: group name of %d bytes, 1 to %d are usable", n, maxName)
	}
	return &Verifier{group: group, t: t, rand: rand.Reader}, nil
}

// Format prints a verifier without what it knows.
func (v *Verifier) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "verifier of %q", v.group) }

// Fetch asks for all that a verifier needs, of one version: GET verif-data,
// FETCH kdc-cred, GET creds. After a rekey, of which a verifier learns by a Gid
// that it does not know, it is to be called again.
//
// draft-ietf-ace-key-groupcomm-oscore-21, Sections 9.3, 9.5.2 and 9.6.
func (v *Verifier) Fetch(ctx context.Context) (*Verification, error) {
	for range maxRounds {
		data, err := v.data(ctx)
		if err != nil {
			return nil, err
		}
		kdc, err := v.kdcCred(ctx, &data.Key)
		if err != nil {
			return nil, err
		}
		num, peers, err := v.creds(ctx, &data.Key)
		if err != nil {
			return nil, err
		}
		if num != nil && *num != data.Num {
			continue // a rekey came between
		}
		out := &Verification{
			Group: v.group, Gid: data.Key.ContextID, Version: data.Num,
			Expires:    time.Now().Add(time.Duration(data.Exi) * time.Second),
			SignEncKey: cose.NewSecret(data.SignEncKey), Params: data.Key, KDCCred: kdc, Peers: peers,
		}
		out.Params.ContextID = nil
		return out, nil
	}
	return nil, badAnswer("verify", "the version grew %d times within one procedure", maxRounds)
}

// do sends a request of a verifier and wants 2.05 with application/ace-groupcomm+cbor.
func (v *Verifier) do(ctx context.Context, op string, code coap.Code, name string, body []byte) ([]byte, error) {
	req := &coap.Request{Code: code, Payload: body}
	req.Options.SetPath("ace-group", v.group, name)
	if body != nil {
		req.Options.SetContentFormat(coap.ACEGroupcomm)
	}
	resp, err := v.t.Do(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	if resp.Code != coap.Content {
		return nil, refused(op, resp)
	}
	return resp.Payload, nil
}

func (v *Verifier) data(ctx context.Context) (*groupcomm.VerifData, error) {
	const op = "get verif-data"
	body, err := v.do(ctx, op, coap.GET, "verif-data", nil)
	if err != nil {
		return nil, err
	}
	d, err := groupcomm.DecodeVerifData(body)
	switch {
	case err != nil:
		return nil, badAnswer(op, "%v", err)
	case checkFormat(d.Key.CredFmt) != nil:
		return nil, checkFormat(d.Key.CredFmt)
	case len(d.SignEncKey) < minSecret || len(d.SignEncKey) > maxSecret:
		return nil, badAnswer(op, "a Signature Encryption Key of %d bytes", len(d.SignEncKey))
	case len(d.Key.ContextID) == 0 || len(d.Key.ContextID) > maxName:
		return nil, badAnswer(op, "a Gid of %d bytes", len(d.Key.ContextID))
	}
	return d, nil
}

// kdcCred fetches the Group Manager's credential and returns it when the proof
// verifies.
func (v *Verifier) kdcCred(ctx context.Context, group *groupcomm.KeyMap) ([]byte, error) {
	const op = "fetch kdc-cred"
	nc := make([]byte, ownNonce)
	if _, err := io.ReadFull(v.rand, nc); err != nil {
		return nil, fmt.Errorf("node: nonce: %w", err)
	}
	body, err := v.do(ctx, op, coap.FETCH, "kdc-cred", groupcomm.EncodeKDCCredRequest(nc))
	if err != nil {
		return nil, err
	}
	k, err := groupcomm.DecodeKDCCred(body)
	if err != nil {
		return nil, badAnswer(op, "%v", err)
	}
	if len(k.Nonce) < minNonce || len(k.Nonce) > maxNonce {
		return nil, badAnswer(op, "kdc_nonce of %d bytes", len(k.Nonce))
	}
	key, err := cose.DecodeCredential(group.CredFmt, k.Cred)
	if err == nil {
		err = key.CheckAlg(group.SignAlg)
	}
	if err != nil {
		return nil, badAnswer(op, "kdc_cred: %v", err)
	}
	if key.Verify(groupcomm.KDCPoPInput(nc, k.Nonce), k.Verify) != nil {
		return nil, ErrProof
	}
	return k.Cred, nil
}

// creds lists the members' credentials and their version, nil when there are
// none.
func (v *Verifier) creds(ctx context.Context, k *groupcomm.KeyMap) (*groupcomm.Version, []Peer, error) {
	const op = "get creds"
	body, err := v.do(ctx, op, coap.GET, "creds", nil)
	if err != nil {
		return nil, nil, err
	}
	c, err := groupcomm.DecodeCredsResponse(body)
	if err != nil {
		return nil, nil, badAnswer(op, "%v", err)
	}
	if len(c.Creds) == 0 {
		return nil, nil, nil
	}
	peers, err := readPeers(c.Creds, c.PeerRoles, c.PeerIdentifiers, k, nil)
	if err != nil {
		return nil, nil, badAnswer(op, "%v", err)
	}
	return &c.Num, peers, nil
}
