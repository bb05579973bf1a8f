package gm

import (
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// keyed makes a response that carries keys, Sender IDs or proofs: it must not
// be served again from a cache (RFC 7252, Section 5.6.1), hence Max-Age 0.
func keyed(code coap.Code, body []byte) *coap.Response {
	r := &coap.Response{Code: code, Payload: body}
	r.Options.SetContentFormat(coap.ACEGroupcomm)
	r.Options.SetUint(coap.MaxAge, 0)
	return r
}

// plain makes a 2.05 of the given format.
func plain(f coap.Format, body []byte) *coap.Response {
	r := &coap.Response{Code: coap.Content, Payload: body}
	r.Options.SetContentFormat(f)
	return r
}

// Failures without an error identifier that need more than a code.
var (
	errTooMany = coap.Errorf(coap.TooManyRequests, "too many Sender IDs asked for")
	errExpired = coap.Errorf(coap.Unauthorized, "")
)

// unavailable is a plain 5.03 with a hint when to try again (RFC 7252, Section
// 5.9.3.4).
func unavailable(cause string) error {
	r := &coap.Response{Code: coap.ServiceUnavailable}
	r.Options.SetUint(coap.MaxAge, retryAfter)
	return coap.Respond(r, errors.New("gm: "+cause))
}

// soon makes the problem p with a short Max-Age.
func soon(p *coap.Problem, seconds uint32) error {
	r := coap.ErrorResponse(p)
	r.Options.SetUint(coap.MaxAge, seconds)
	return coap.Respond(r, p)
}

// info makes the 4.00 that tells a joining node the parameters of the group
// (draft-ietf-ace-key-groupcomm-oscore-21, Section 6.2), with a new N_S when
// ns is given.
func (m *Manager) info(g *group, ns []byte, cause error) error {
	b := groupcomm.InfoBody{KDCChallenge: ns}
	if g.cfg.GroupMode() {
		b.SignInfo = []groupcomm.SignInfoEntry{g.cfg.SignInfo()}
	}
	if g.cfg.PairwiseMode() {
		b.ECDHInfo = []groupcomm.SignInfoEntry{g.cfg.ECDHInfo()}
	}
	if e, ok := g.dhCred(); ok {
		b.KDCDHCreds = []groupcomm.KDCDHCred{e}
	}
	r := keyed(coap.BadRequest, b.Encode())
	return coap.Respond(r, fmt.Errorf("gm: join: %w", cause))
}

// checkFormats refuses a body of another Content-Format than 261 with 4.15,
// and a client that does not accept 261 with 4.06. A body without
// Content-Format is taken for 261.
func checkFormats(req *coap.Request) error {
	if f, ok := req.Options.ContentFormat(); ok && len(req.Payload) > 0 && f != coap.ACEGroupcomm {
		return coap.Errorf(coap.UnsupportedContentFormat, "")
	}
	return checkAccept(req, coap.ACEGroupcomm)
}

// checkAccept answers 4.06 when the client wants another format than f
// (RFC 7252, Section 5.10.4).
func checkAccept(req *coap.Request, f coap.Format) error {
	if a, ok := req.Options.Uint(coap.Accept); ok && coap.Format(a) != f {
		return coap.Errorf(coap.NotAcceptable, "")
	}
	return nil
}

// versionTag is the ETag of resources whose state is the version number:
// big-endian without leading zeros, at least one byte.
func versionTag(num uint64) []byte {
	n := max(1, (bits.Len64(num)+7)/8)
	tag := make([]byte, n)
	for i := n - 1; i >= 0; i-- {
		tag[i] = byte(num)
		num >>= 8
	}
	return tag
}

// keyDistribution is the part that all answers with keying material share. exi
// counts from now (draft-ietf-ace-key-groupcomm-oscore-21, Section 6.3).
func keyDistribution(g *group, mat *material) *groupcomm.KeyDistribution {
	d := &groupcomm.KeyDistribution{
		Key:     g.cfg.KeyParams(),
		Num:     mat.num,
		Profile: 1,
		Exp:     mat.exp,
		Exi:     max(0, mat.exp-time.Now().Unix()),
	}
	d.Key.MasterSecret = mat.secret.Bytes()
	d.Key.Salt = mat.salt.Bytes()
	d.Key.ContextID = mat.gid
	return d
}

func policies(g *group) *groupcomm.Policies {
	return &groupcomm.Policies{KeyCheck: g.cfg.KeyCheck, ExpirationDelta: g.cfg.ExpirationDelta}
}

// parseCred reads a credential and checks that it fits the group. Whether its
// key is a point of the curve is open until a proof verifies: see
// [cose.ParseCredential].
func parseCred(c *groupcomm.GroupConfig, cred []byte) (*cose.Key, error) {
	key, err := cose.ParseCredential(c.CredFmt, cred)
	if err != nil {
		return nil, err
	}
	if c.PairwiseOnly() {
		return key, key.CheckDH(c.ECDHCrv)
	}
	if err := key.CheckAlg(c.SignAlg); err != nil {
		return nil, err
	}
	// draft-ietf-core-oscore-groupcomm-28, Section 2.5.1: such a key gives no
	// pairwise keys.
	if c.PairwiseMode() && key.Degenerate() {
		return nil, errors.New("the public key is degenerate")
	}
	return key, nil
}

// unsuitable is error 2 with a hint what would suit.
func unsuitable(c *groupcomm.GroupConfig, err error) error {
	return fmt.Errorf("gm: %w: %w", coap.Detail(groupcomm.ErrCredential, "%s", credHint(c)), err)
}

func credHint(c *groupcomm.GroupConfig) string {
	if c.PairwiseOnly() {
		return fmt.Sprintf("credential format %d with a key for Diffie-Hellman on curve %d expected", c.CredFmt, c.ECDHCrv)
	}
	return fmt.Sprintf("credential format %d with a key for signature algorithm %d expected", c.CredFmt, c.SignAlg)
}

// checkGetCreds: null, or [true, [+ roles], []]
// (draft-ietf-ace-key-groupcomm-oscore-21, Section 6.1).
func checkGetCreds(q *groupcomm.GetCreds) error {
	switch {
	case q == nil || q.All:
		return nil
	case !q.Inclusion || len(q.Roles) == 0 || len(q.IDs) != 0:
		return errors.New("get_creds is not [true, [+ roles], []]")
	case len(q.Roles) > maxFilter:
		return errors.New("get_creds is too long")
	}
	return nil
}

// checkControlURI: docs/protocol.md, Section 3. Only path and query are ever used;
// the rest is checked so that nobody takes it for a destination.
func checkControlURI(s, groupName string) error {
	if s == "" {
		return nil
	}
	if len(s) > controlURI {
		return fmt.Errorf("control_uri of %d bytes", len(s))
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || u.Opaque != "" || !strings.HasPrefix(u.Scheme, "coap") {
		return errors.New("control_uri is not the URI of a CoAP resource")
	}
	if u.Fragment != "" || strings.Contains(s, "#") {
		return errors.New("control_uri has a fragment")
	}
	if a, err := netip.ParseAddr(u.Hostname()); err == nil && (a.IsMulticast() || a.Unmap().IsMulticast()) {
		return errors.New("control_uri is multicast")
	}
	if u.Path == "/ace-group/"+groupName {
		return errors.New("control_uri is the path of the group")
	}
	return nil
}

// nullable passes a nil slice as NULL.
func nullable(b []byte) any {
	if b == nil {
		return nil
	}
	return b
}
