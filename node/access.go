package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/oscore"
)

// Limits of what a token endpoint may hand out.
const (
	maxToken    = 16 << 10 // psk_identity carries at most 65,535 bytes
	maxLifetime = 10 * 365 * 24 * time.Hour
)

// TokenRequest is what a client asks an Authorization Server for.
type TokenRequest struct {
	Audience string          // the Group Manager, as the Authorization Server calls it
	Scope    groupcomm.Scope // groups and roles
	// TextScope has the scope, of one group, written with roles in text, as
	// draft-03 has it.
	TextScope bool
	// OSCORE asks for a token of the OSCORE profile (RFC 9203).
	OSCORE bool
	// Key has the token bound to a key of our own, of ES256 or EdDSA, for
	// associations with raw public keys; nil: to a symmetric key that the
	// Authorization Server makes.
	Key *cose.Key
	// Update asks for other rights for the key that an earlier token confirms, in
	// the same profile; nil: a new key.
	Update *Access
}

// Access is an access token with the proof-of-possession key that it confirms. It prints without either.
type Access struct {
	Token     []byte          // opaque to the client
	KID       []byte          // key identifier of the proof-of-possession key
	Key       cose.Secret     // the key itself, prints as [redacted]
	Scope     groupcomm.Scope // granted, which may be less than was asked for
	ExpiresAt time.Time       // zero: the Authorization Server did not say

	// Material is what the token confirms in the OSCORE profile, in place of KID
	// and Key; nil in the DTLS profile.
	Material *oscore.Material

	// PrivateKey is what the token confirms when it was asked for with a key of our
	// own, in place of KID and Key, and ServerKey what the Group Manager has to show
	// (rs_cnf); nil otherwise.
	PrivateKey, ServerKey *cose.Key
}

// String tells what may be told.
func (a Access) String() string {
	if a.PrivateKey != nil {
		return fmt.Sprintf("access token of %d bytes, public key", len(a.Token))
	}
	if a.Material != nil {
		return fmt.Sprintf("access token of %d bytes, OSCORE input material %x", len(a.Token), a.Material.ID)
	}
	return fmt.Sprintf("access token of %d bytes, key %x", len(a.Token), a.KID)
}

// Format prints [Access.String] under every verb.
func (a Access) Format(f fmt.State, _ rune) { fmt.Fprint(f, a.String()) }

// LogValue is [Access.String] for slog.
func (a Access) LogValue() slog.Value { return slog.StringValue(a.String()) }

// Identity is the psk_identity that names the key of a token posted before:
// {8: {1: {1: 4, 2: kid}}}.
//
// RFC 9202, Section 3.3.1.
func (a *Access) Identity() []byte {
	return cose.MustMarshal(map[int64]any{labelCnf: map[int64]any{cnfKey: map[int64]any{keyKty: cose.KtySymmetric, keyKID: a.KID}}})
}

// Labels of requests to and answers of a token endpoint (RFC 9200, Section
// 5.8.5), and of the key inside cnf (RFC 9052, Section 7.1).
const (
	labelToken     = 1
	labelExpiresIn = 2
	labelReqCnf    = 4
	labelAudience  = 5
	labelCnf       = 8
	labelScope     = 9
	labelError     = 30
	labelErrorText = 31
	labelProfile   = 38
	labelRSCnf     = 41
	cnfKey         = 1
	cnfKID         = 3
	cnfOSCORE      = 4
	keyKty         = 1
	keyKID         = 2
	keyK           = -1
)

// Values of ace_profile: coap_dtls (RFC 9202, Section 8) and coap_oscore (RFC
// 9203, Section 9.1).
const (
	profileDTLS   = 1
	profileOSCORE = 2
)

// RequestToken gets an access token from the token endpoint of the
// Authorization Server at the other end of t: POST /token. The association of t
// must be protected, since the key comes over it.
//
// RFC 9200, Section 5.8.
func RequestToken(ctx context.Context, t Transport, r TokenRequest) (*Access, error) {
	const op = "request a token"
	ask := map[int64]any{labelScope: groupcomm.EncodeScope(r.Scope)}
	if r.TextScope {
		if len(r.Scope) != 1 {
			return nil, fmt.Errorf("node: %s: a scope in text is for one group", op)
		}
		ask[labelScope] = groupcomm.EncodeTextScope(r.Scope[0])
	}
	if r.Audience != "" {
		ask[labelAudience] = r.Audience
	}
	if u := r.Update; u != nil {
		kid := u.KID
		if r.OSCORE = u.Material != nil; r.OSCORE {
			kid = u.Material.ID
		}
		ask[labelReqCnf] = map[int64]any{cnfKID: kid}
	}
	if r.Key != nil {
		ask[labelReqCnf] = map[int64]any{cnfKey: cose.Item(r.Key.Public().Encode())}
	}
	if r.OSCORE {
		ask[labelProfile] = profileOSCORE
	}
	req := &coap.Request{Code: coap.POST, Payload: cose.MustMarshal(ask)}
	req.Options.SetPath("token")
	req.Options.SetContentFormat(coap.ACE)
	req.Options.SetUint(coap.Accept, uint32(coap.ACE))
	sent := time.Now()
	resp, err := t.Do(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	if resp.Code != coap.Created {
		return nil, refused(op, resp)
	}
	if f, ok := resp.Options.ContentFormat(); !ok || f != coap.ACE {
		return nil, badAnswer(op, "Content-Format %d", f)
	}
	var known *oscore.Material
	if r.Update != nil {
		known = r.Update.Material
	}
	a, err := decodeAccess(resp.Payload, r.Scope, known, r.Key, sent)
	if err == nil && r.OSCORE && a.Material == nil {
		return nil, fmt.Errorf("%w: a token of another profile than the one asked for, coap_oscore (2)", ErrUnsupported)
	}
	return a, err
}

// decodeAccess reads the body of a 2.01 of the token endpoint.
//
// RFC 9200, Section 5.8.2, RFC 9202, Section 3.3.1, and RFC 9203, Section 3.2: the
// key is in cnf. Material that is known already is not sent again, nor is a key of
// our own.
func decodeAccess(body []byte, asked groupcomm.Scope, known *oscore.Material, own *cose.Key, now time.Time) (*Access, error) {
	const op = "request a token"
	m, err := cose.DecodeMap(body)
	if err != nil {
		return nil, badAnswer(op, "%v", err)
	}
	token, _, err1 := m.Bytes(labelToken)
	expires, expiring, err2 := m.Uint(labelExpiresIn)
	scope, scoped, err3 := m.Bytes(labelScope)
	profile, profiled, err4 := m.Int(labelProfile)
	cnf, _, err5 := m.Map(labelCnf)
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return nil, badAnswer(op, "%v", err)
	}
	a := &Access{Token: token, Scope: asked}
	switch {
	case len(token) == 0 || len(token) > maxToken:
		return nil, badAnswer(op, "an access token of %d bytes", len(token))
	case profiled && profile == profileOSCORE && known != nil && !cnf.Has(cnfOSCORE):
		a.Material = known
	case profiled && profile == profileOSCORE:
		a.Material, err = oscore.DecodeMaterial(cnf[cnfOSCORE])
		if err != nil {
			return nil, badAnswer(op, "cnf: %v", err)
		}
	case profiled && profile != profileDTLS:
		return nil, fmt.Errorf("%w: ace_profile %d, only coap_dtls (1) and coap_oscore (2) are known here", ErrUnsupported, profile)
	case own != nil:
		if err := a.decodeServerKey(m, own); err != nil {
			return nil, err
		}
	default:
		if err := a.decodeKey(cnf); err != nil {
			return nil, err
		}
	}
	if scoped {
		if a.Scope, err = groupcomm.DecodeScope(scope); err != nil {
			e, textErr := groupcomm.DecodeTextScope(scope)
			if textErr != nil {
				return nil, badAnswer(op, "scope: %v", err)
			}
			a.Scope = groupcomm.Scope{e}
		}
	}
	if expiring {
		life := maxLifetime // longer is as good as never, and does not overflow
		if expires < uint64(maxLifetime/time.Second) {
			life = time.Duration(expires) * time.Second
		}
		a.ExpiresAt = now.Add(life)
	}
	return a, nil
}

// decodeServerKey reads rs_cnf. RFC 9200, Section 5.8.2: cnf, if it is there, is
// the key that the token confirms.
func (a *Access) decodeServerKey(m cose.Map, own *cose.Key) error {
	const op = "request a token"
	if cnf, _, err := m.Map(labelCnf); err != nil {
		return badAnswer(op, "%v", err)
	} else if cnf != nil {
		if k, err := cose.DecodeKey(cnf[cnfKey]); err != nil || !k.SamePublic(own) {
			return fmt.Errorf("%w: a token for another key than the one given", ErrUnsupported)
		}
	}
	rs, present, err := m.Map(labelRSCnf)
	if err != nil {
		return badAnswer(op, "%v", err)
	}
	if !present || !rs.Has(cnfKey) {
		return fmt.Errorf("%w: no rs_cnf: the Authorization Server does not name the key of the Group Manager", ErrUnsupported)
	}
	if a.ServerKey, err = cose.DecodeKey(rs[cnfKey]); err != nil || a.ServerKey.IsPrivate() {
		return badAnswer(op, "rs_cnf holds no public key")
	}
	a.PrivateKey = own
	return nil
}

// decodeKey reads a symmetric proof-of-possession key.
func (a *Access) decodeKey(cnf cose.Map) error {
	const op = "request a token"
	key, _, err1 := cnf.Map(cnfKey)
	kty, _, err2 := key.Int(keyKty)
	kid, _, err3 := key.Bytes(keyKID)
	k, _, err4 := key.Bytes(keyK)
	if err := errors.Join(err1, err2, err3); err != nil {
		return badAnswer(op, "%v", err)
	}
	switch {
	case kty != cose.KtySymmetric:
		return fmt.Errorf("%w: a proof-of-possession key of type %d, only symmetric keys (4) are known here", ErrUnsupported, kty)
	case err4 != nil || len(k) == 0 || len(k) > 64:
		return badAnswer(op, "no key of 1 to 64 bytes") // err4 is not told: it is about the key
	case len(kid) == 0 || len(kid) > 64:
		return badAnswer(op, "a key identifier of %d bytes", len(kid))
	}
	a.KID, a.Key = kid, cose.NewSecret(k)
	return nil
}

// PostToken transfers the access token to the Group Manager at the other end
// of t and asks for the parameters that a join needs: POST /authz-info. The
// association need not be protected.
//
// RFC 9594, Section 3.3.
func PostToken(ctx context.Context, t Transport, a *Access) (*groupcomm.TokenTransferResponse, error) {
	if a == nil || len(a.Token) == 0 {
		return nil, errors.New("node: post the token: there is none")
	}
	return postToken(ctx, t, &groupcomm.TokenTransfer{AccessToken: bytes.Clone(a.Token), WantSignInfo: true, WantECDHInfo: true, WantKDCDH: true})
}

func postToken(ctx context.Context, t Transport, transfer *groupcomm.TokenTransfer) (*groupcomm.TokenTransferResponse, error) {
	const op = "post the token"
	req := &coap.Request{Code: coap.POST, Payload: transfer.Encode()}
	req.Options.SetPath("authz-info")
	req.Options.SetContentFormat(coap.ACE)
	resp, err := t.Do(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	if resp.Code != coap.Created {
		return nil, refused(op, resp)
	}
	if f, ok := resp.Options.ContentFormat(); !ok || f != coap.ACE {
		return nil, badAnswer(op, "Content-Format %d", f)
	}
	info, err := groupcomm.DecodeTokenTransferResponse(resp.Payload)
	if err != nil {
		return nil, badAnswer(op, "%v", err)
	}
	if n := len(info.KDCChallenge); info.KDCChallenge != nil && (n < minNonce || n > maxNonce) {
		return nil, badAnswer(op, "kdcchallenge of %d bytes", n)
	}
	return info, nil
}
