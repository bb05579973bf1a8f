package ace

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"time"

	"github.com/seed4911071e/groupgate/ace/cwt"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// Token is the resource /token of the embedded Authorization Server (RFC 9200,
// Section 5.8). It serves DTLS peers with a configured key that may ask for
// tokens, and gives each what the policies name for it.
func (s *Server) Token() coap.Handler {
	return coap.HandlerFunc(func(ctx context.Context, req *coap.Request) (*coap.Response, error) {
		if s.cfg.AS == nil {
			return nil, coap.Errorf(coap.NotFound, "no authorization server here")
		}
		if req.Code != coap.POST {
			return nil, coap.Errorf(coap.MethodNotAllowed, "only POST")
		}
		resp, result, err := s.serveToken(ctx, req)
		s.metrics.issues.WithLabelValues(result).Inc()
		return resp, err
	})
}

func (s *Server) serveToken(ctx context.Context, req *coap.Request) (*coap.Response, string, error) {
	client, err := s.client(ctx, req.Peer)
	if err != nil {
		return nil, "error", err
	}
	if client == nil {
		return nil, invalidClient.String(), oauthFailure(invalidClient, "peer may not ask for tokens")
	}
	format, given := req.Options.ContentFormat()
	if given && format != coap.ACE {
		return nil, "error", coap.Errorf(coap.UnsupportedContentFormat, "requests have Content-Format 19")
	}
	if accept, ok := req.Options.Uint(coap.Accept); ok && accept != uint32(coap.ACE) {
		return nil, "error", coap.Errorf(coap.NotAcceptable, "answers have Content-Format 19")
	}
	r, err := decodeTokenRequest(req.Payload)
	if err == nil && r.clientID != nil && *r.clientID != client.identity {
		err = oauthFailure(invalidClient, "client_id is another")
	}
	var issued *Issued
	var changed bool
	if err == nil {
		issued, changed, err = s.issueByPolicy(ctx, client, r)
	}
	if err != nil {
		if o, ok := errors.AsType[*oauthRefusal](err); ok {
			return nil, o.code.String(), err
		}
		return nil, "error", err
	}
	s.log.InfoContext(ctx, "token issued", "client", client.identity, "audience", issued.Audience,
		"kid", hex.EncodeToString(issued.KID), "renewal", issued.Renewal)

	body := map[int64]any{
		paramAccessToken: issued.Token,
		paramExpiresIn:   int64(issued.Lifetime / time.Second),
		paramTokenType:   tokenPoP,
		paramProfile:     issued.Profile,
	}
	// RFC 9203, Section 3.2: with new rights for material that the client has it
	// is not sent again.
	// RFC 9200, Section 5.8.2: with a public key, which the client has, it is told
	// that of the Resource Server.
	switch {
	case issued.PublicKey != nil:
		if issued.ServerKey != nil {
			body[paramRSCnf] = cose.Item((&cwt.Confirmation{Key: issued.ServerKey}).Encode())
		}
	case issued.Profile != ProfileOSCORE || !issued.Renewal:
		body[paramCnf] = cose.Item(issued.confirmation().Encode())
	}
	if changed {
		body[paramScope] = cose.Item(tokenScope(issued.Scope, issued.TextScope))
	}
	resp := &coap.Response{Code: coap.Created, Payload: cose.MustMarshal(body)}
	resp.Options.SetContentFormat(coap.ACE)
	resp.Options.SetUint(coap.MaxAge, 0)
	return resp, "issued", nil
}

// client is who asks for tokens.
type client struct {
	identity string
	node     *nodeRow // nil: configured
}

// client is the peer behind a request, configured or enrolled, nil when it may
// not ask for tokens.
func (s *Server) client(ctx context.Context, peer coap.Peer) (*client, error) {
	if peer.Subject.Kind != coap.SubjectPSK || peer.Via == coap.Plain {
		return nil, nil
	}
	if p := s.identities[peer.Subject.ID]; p != nil {
		if !p.MayToken {
			return nil, nil
		}
		return &client{identity: peer.Subject.ID}, nil
	}
	n, err := s.enrolledNode(ctx, nodeOf(peer.Subject))
	if err != nil || n == nil || n.disabled != 0 || n.subject() != peer.Subject || s.identities[n.identity] != nil {
		return nil, err
	}
	return &client{identity: n.identity, node: n}, nil
}

// oauthRefusal is an error of RFC 9200, Section 5.8.3.
type oauthRefusal struct {
	code oauthError
	err  error
}

func (o *oauthRefusal) Error() string { return o.err.Error() }
func (o *oauthRefusal) Unwrap() error { return o.err }

// oauthFailure is 4.00 with the error code, 4.01 for invalid_client.
func oauthFailure(code oauthError, cause string) error {
	r := &coap.Response{Code: coap.BadRequest, Payload: cose.MustMarshal(map[int64]any{paramError: int64(code)})}
	if code == invalidClient {
		r.Code = coap.Unauthorized
	}
	r.Options.SetContentFormat(coap.ACE)
	r.Options.SetUint(coap.MaxAge, 0)
	return &oauthRefusal{code: code, err: coap.Respond(r, errors.New("ace: "+code.String()+": "+cause))}
}

// tokenRequest is the body of POST /token.
type tokenRequest struct {
	audience string          // "": not given
	scope    groupcomm.Scope // nil: not given
	rawScope []byte          // as given
	text     bool            // as draft-03 has it
	renew    []byte          // kid of the key to use again; nil: a new one
	public   *cose.Key       // of the client, to be used; nil: none
	cnonce   []byte
	clientID *string
	profile  int64 // the one that is asked for; 0: none
}

// decodeTokenRequest reads {? 33, ? 5, ? 9, ? 4, ? 38, ? 39, ? 24} (RFC 9200,
// Section 5.8.1); further parameters are ignored. Errors are oauthRefusals.
func decodeTokenRequest(b []byte) (*tokenRequest, error) {
	malformed := func(what string) error { return oauthFailure(invalidRequest, what) }
	m, err := cose.DecodeMap(b)
	if err != nil {
		return nil, malformed("not a map")
	}
	grant, present, err := m.Int(paramGrantType)
	if err != nil {
		return nil, malformed("grant_type")
	}
	if present && grant != grantClientCredentials {
		return nil, oauthFailure(unsupportedGrantType, "only client_credentials")
	}
	r := &tokenRequest{}
	if r.audience, present, err = m.Text(paramAudience); err != nil || present && (r.audience == "" || len(r.audience) > cwt.MaxText) {
		return nil, malformed("audience")
	}
	if id, present, err := m.Text(paramClientID); err != nil {
		return nil, malformed("client_id")
	} else if present {
		r.clientID = &id
	}
	// RFC 9200, Section 5.8.4.3: the client asks with null to be told the profile,
	// which it always is. That it may ask for one by its number is of our own.
	if m.Has(paramProfile) && !m.IsNull(paramProfile) {
		if r.profile, _, err = m.Int(paramProfile); err != nil {
			return nil, malformed("ace_profile is neither null nor a number")
		}
		if r.profile != ProfileDTLS && r.profile != ProfileOSCORE {
			return nil, oauthFailure(incompatibleProfiles, "profile is not supported")
		}
	}
	if r.cnonce, _, err = m.Bytes(paramCNonce); err != nil || len(r.cnonce) > cwt.MaxCNonce {
		return nil, malformed("cnonce")
	}
	if m.Has(paramScope) {
		scope, err := groupcomm.DecodeTokenScope(m[paramScope])
		if e, textErr := groupcomm.DecodeTextTokenScope(m[paramScope]); textErr == nil {
			scope, err, r.text = groupcomm.Scope{e}, nil, true
		}
		if err != nil || len(scope) > maxScopeEntries {
			return nil, oauthFailure(invalidScope, "scope is not understood")
		}
		r.rawScope = m[paramScope]
		if r.scope = scope; scope == nil {
			r.scope = groupcomm.Scope{}
		}
	}
	if m.Has(paramReqCnf) {
		if r.renew, r.public, err = decodeReqCnf(m[paramReqCnf]); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// decodeReqCnf reads req_cnf. RFC 9202, Section 3.2.1: a client gives its public
// key, each time anew; Section 4: one that wants other rights for a session with a
// symmetric key names that. Symmetric keys are not of a client's making.
func decodeReqCnf(b []byte) (kid []byte, public *cose.Key, err error) {
	cnf, err := cwt.DecodeConfirmation(b)
	if err != nil {
		return nil, nil, oauthFailure(invalidRequest, "req_cnf")
	}
	kid = cnf.KID
	if k := cnf.Key; k != nil && k.Kty != cose.KtySymmetric {
		if public, err = handshakeKey(k); err != nil {
			return nil, nil, oauthFailure(unsupportedPoPKey, err.Error())
		}
		return nil, public, nil
	}
	if k := cnf.Key; k != nil {
		if k.Kty != cose.KtySymmetric || k.K != nil || kid != nil && !bytes.Equal(kid, k.KID) {
			return nil, nil, oauthFailure(unsupportedPoPKey, "req_cnf holds a symmetric key")
		}
		kid = k.KID
	}
	if len(kid) == 0 {
		return nil, nil, oauthFailure(unsupportedPoPKey, "req_cnf names no key")
	}
	return kid, nil, nil
}

// issueByPolicy gives the client what policies and request have in common;
// changed says that this is not what it asked for.
func (s *Server) issueByPolicy(ctx context.Context, client *client, r *tokenRequest) (issued *Issued, changed bool, err error) {
	audience, permitted, lifetime, err := s.permitted(client, r.audience)
	if err != nil {
		return nil, false, err
	}
	profile, err := s.profile(client, audience, r.profile)
	if err != nil {
		return nil, false, err
	}
	scope := intersect(r.scope, permitted)
	if len(scope) == 0 {
		return nil, false, oauthFailure(invalidScope, "nothing of the scope is permitted")
	}
	if r.text {
		if _, err := s.textScope(ctx, r.rawScope); err != nil {
			return nil, false, oauthFailure(invalidScope, "roles in text are for groups that speak draft-03")
		}
	}
	req := IssueRequest{
		Client: []byte(client.identity), Audience: audience, Scope: scope, TextScope: r.text, Lifetime: lifetime, CNonce: r.cnonce, KID: r.renew,
		PublicKey: r.public, node: client.node, Profile: profile,
	}
	if r.public != nil && profile != ProfileDTLS {
		return nil, false, oauthFailure(unsupportedPoPKey, "public keys are for the profile coap_dtls")
	}
	issued, err = s.Issue(ctx, req)
	if errors.Is(err, errUnknownKey) {
		err = oauthFailure(unsupportedPoPKey, "key is not one of the client's")
	}
	// RFC 9200, Section 5.8.2: the scope is told where it is not the one that
	// was asked for.
	changed = !bytes.Equal(r.rawScope, groupcomm.EncodeTokenScope(scope, false)) &&
		!bytes.Equal(r.rawScope, groupcomm.EncodeTokenScope(scope, true))
	if r.text {
		changed = r.scope[0] != scope[0]
	}
	return issued, changed, err
}

// profile is that of a token: what the policies of the client name, else what it
// asks for, else coap_dtls.
func (s *Server) profile(c *client, audience string, asked int64) (int64, error) {
	var named int64
	if c.node == nil {
		for _, p := range s.cfg.AS.Policies {
			if p.Client == c.identity && p.Audience == audience && p.Profile != 0 {
				named = p.Profile
			}
		}
	}
	switch {
	case named != 0 && asked != 0 && named != asked:
		return 0, oauthFailure(incompatibleProfiles, "the policy names another profile")
	case named != 0:
		return named, nil
	case asked != 0:
		return asked, nil
	}
	return ProfileDTLS, nil
}

// permitted joins the policies of a client for an audience: their scopes
// together, for the shortest of their lifetimes. Without audience in the
// request it is the one that the client has policies for.
func (s *Server) permitted(c *client, audience string) (_ string, scope groupcomm.Scope, lifetime time.Duration, err error) {
	if n := c.node; n != nil {
		if audience != "" && audience != n.audience {
			return "", nil, 0, oauthFailure(unauthorizedClient, "node is enrolled for another audience")
		}
		return n.audience, n.scope, n.lifetime, nil
	}
	if audience == "" {
		for _, p := range s.cfg.AS.Policies {
			if p.Client != c.identity {
				continue
			}
			if audience != "" && audience != p.Audience {
				return "", nil, 0, oauthFailure(invalidRequest, "client has several audiences and names none")
			}
			audience = p.Audience
		}
	}
	for _, p := range s.cfg.AS.Policies {
		if p.Client != c.identity || p.Audience != audience {
			continue
		}
		for _, e := range p.Scope {
			scope = addEntry(scope, e)
		}
		if lifetime == 0 || p.Lifetime < lifetime {
			lifetime = p.Lifetime
		}
	}
	if len(scope) == 0 {
		return "", nil, 0, oauthFailure(unauthorizedClient, "no policy for client and audience")
	}
	return audience, scope, lifetime, nil
}

func addEntry(scope groupcomm.Scope, e groupcomm.ScopeEntry) groupcomm.Scope {
	for i := range scope {
		if scope[i].Group == e.Group {
			scope[i].Roles |= e.Roles
			return scope
		}
	}
	return append(scope, e)
}

// intersect keeps what is both wanted and permitted; wanting nothing in
// particular is wanting all that is permitted.
func intersect(wanted, permitted groupcomm.Scope) (given groupcomm.Scope) {
	if wanted == nil {
		return permitted
	}
	var merged groupcomm.Scope
	for _, e := range wanted {
		merged = addEntry(merged, e)
	}
	for _, e := range merged {
		if e.Roles &= permitted.RolesFor(e.Group); e.Roles != 0 {
			given = append(given, e)
		}
	}
	return given
}
