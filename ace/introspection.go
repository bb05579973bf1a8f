package ace

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/ace/cwt"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/store"
)

// Introspection is the resource /introspect of the embedded Authorization
// Server (RFC 9200, Section 5.9): Resource Servers with a configured key learn
// what a token says that is for them.
func (s *Server) Introspection() coap.Handler {
	return coap.HandlerFunc(func(ctx context.Context, req *coap.Request) (*coap.Response, error) {
		if s.cfg.AS == nil {
			return nil, coap.Errorf(coap.NotFound, "no authorization server here")
		}
		if req.Code != coap.POST {
			return nil, coap.Errorf(coap.MethodNotAllowed, "only POST")
		}
		p := s.identities[req.Peer.Subject.ID]
		if req.Peer.Subject.Kind != coap.SubjectPSK || req.Peer.Via == coap.Plain || p == nil || !p.MayIntrospect {
			return nil, oauthFailure(invalidClient, "peer may not introspect")
		}
		if f, given := req.Options.ContentFormat(); given && f != coap.ACE {
			return nil, coap.Errorf(coap.UnsupportedContentFormat, "requests have Content-Format 19")
		}
		if accept, ok := req.Options.Uint(coap.Accept); ok && accept != uint32(coap.ACE) {
			return nil, coap.Errorf(coap.NotAcceptable, "answers have Content-Format 19")
		}
		raw, err := decodeIntrospectionRequest(req.Payload)
		if err != nil {
			return nil, err
		}
		body, err := s.introspected(ctx, string(p.Identity), raw)
		if err != nil {
			return nil, err
		}
		resp := &coap.Response{Code: coap.Created, Payload: cose.MustMarshal(body)}
		resp.Options.SetContentFormat(coap.ACE)
		resp.Options.SetUint(coap.MaxAge, 0)
		return resp, nil
	})
}

// decodeIntrospectionRequest reads {11: token, ? 33: token_type_hint} (RFC
// 9200, Section 5.9.1). Errors are oauthRefusals.
func decodeIntrospectionRequest(b []byte) ([]byte, error) {
	if len(b) > cwt.MaxToken+64 {
		return nil, coap.Errorf(coap.RequestEntityTooLarge, "token is longer than %d bytes", cwt.MaxToken)
	}
	m, err := cose.DecodeMap(b)
	if err != nil {
		return nil, oauthFailure(invalidRequest, "not a map")
	}
	raw, present, err := m.Bytes(paramToken)
	if err != nil || !present || len(raw) == 0 {
		return nil, oauthFailure(invalidRequest, "no token")
	}
	if m.Has(paramTokenTypeHint) {
		if _, _, err := m.Int(paramTokenTypeHint); err != nil {
			return nil, oauthFailure(invalidRequest, "token_type_hint")
		}
	}
	return raw, nil
}

// introspected is the response about a token that this server issued. One that
// is not valid now says that and nothing else, also where it is none (RFC 9200,
// Section 5.9.2); one for another audience is none of the asker's business.
func (s *Server) introspected(ctx context.Context, audience string, raw []byte) (map[int64]any, error) {
	inactive := map[int64]any{paramActive: false}
	token, plain, entries, err := s.unprotect(raw)
	if err != nil || !slices.ContainsFunc(entries, func(e *TokenEntry) bool { return canIssue(e, s.cfg.AS.Issuer) }) {
		return inactive, nil
	}
	claims, err := cwt.DecodeClaims(plain)
	if err != nil {
		return inactive, nil
	}
	if !slices.Contains(claims.Audience, audience) {
		return nil, coap.Errorf(coap.Forbidden, "token is for another audience")
	}
	now := time.Now().Unix()
	if claims.Expires != 0 && now >= claims.Expires || claims.NotBefore != 0 && now < claims.NotBefore {
		return inactive, nil
	}
	core := token.Core()
	revoked := false
	err = s.store.View(ctx, func(tx *store.Tx) error {
		var one int
		err := tx.QueryRow(`SELECT 1 FROM ace_revoked WHERE digest = ? OR digest = ? LIMIT 1`, cwt.Hash(raw), core[:]).Scan(&one)
		if revoked = err == nil; errors.Is(err, store.ErrNotFound) {
			return nil
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if revoked {
		return inactive, nil
	}
	m, err := cose.DecodeMap(plain)
	if err != nil {
		return inactive, nil
	}
	body := map[int64]any{paramProfile: ProfileDTLS}
	for label, v := range m {
		body[label] = v
	}
	body[paramActive] = true
	return body, nil
}
