package ace

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/ace/cwt"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// AuthzInfo is the resource /authz-info: POST of an access token (RFC 9200,
// Section 5.10.1), answered as RFC 9594, Section 3.3 says. It is open to
// everybody; a post inside an association of the token's key does more.
func (s *Server) AuthzInfo() coap.Handler {
	return coap.HandlerFunc(func(ctx context.Context, req *coap.Request) (*coap.Response, error) {
		resp, err := s.postToken(ctx, req)
		code := coap.Created
		if err != nil {
			code = coap.ErrorResponse(err).Code
		}
		s.metrics.posts.WithLabelValues(code.String()).Inc()
		return resp, err
	})
}

func (s *Server) postToken(ctx context.Context, req *coap.Request) (*coap.Response, error) {
	if req.Code != coap.POST {
		return nil, coap.Errorf(coap.MethodNotAllowed, "only POST")
	}
	if !s.posts.allow(req.Peer.Addr, time.Now()) {
		return nil, tooMany("too many token posts")
	}
	if accept, ok := req.Options.Uint(coap.Accept); ok && accept != uint32(coap.ACE) && accept != uint32(coap.LegacyACE) {
		return nil, coap.Errorf(coap.NotAcceptable, "answers have Content-Format 19")
	}
	transfer, err := readTransfer(req)
	if err != nil {
		return nil, err
	}
	if transfer.RISELabels && !s.cfg.RISELabels {
		transfer.WantECDHInfo, transfer.WantKDCDH, transfer.RISELabels = false, false, false
	}
	v, err := s.accept(ctx, transfer.AccessToken)
	if req.Peer.Subject.Kind == coap.SubjectOSCORE && req.Peer.Via == coap.OSCORE {
		return s.updateRights(ctx, req, transfer, v, err)
	}
	if err != nil {
		return nil, err
	}
	legacy, err := s.legacyTransfer(ctx, req, transfer, v)
	if err != nil {
		return nil, err
	}
	h := how{challenge: newChallenge()}
	if req.Peer.Via != coap.Plain {
		h.peer = req.Peer.Subject
	}
	if v.material != nil {
		// RFC 9203, Section 4.2: a parameter that is missing is 4.00.
		switch {
		case transfer.Nonce1 == nil:
			return nil, coap.Errorf(coap.BadRequest, "nonce1 is missing")
		case transfer.ID1 == nil:
			return nil, coap.Errorf(coap.BadRequest, "ace_client_recipientid is missing")
		}
		if h.setup, err = newContext(v.material, transfer.Nonce1, transfer.ID1); err != nil {
			return nil, refuse(coap.BadRequest, "nonce1 or ace_client_recipientid has an unusable length", err)
		}
	}
	subject, err := s.place(ctx, v, h)
	if err != nil {
		return nil, s.refused(ctx, v, err)
	}
	s.log.DebugContext(ctx, "token accepted", "kid", logKID(subject), "issuer", v.entry.Issuer, "inside", h.peer == subject)

	resp := &coap.Response{Code: coap.Created}
	if legacy != nil {
		resp.Payload = legacyTransferResponse(legacy, transfer, h.challenge).Encode()
		if h.setup != nil {
			if resp.Payload, err = withSetup(resp.Payload, h.setup); err != nil {
				return nil, err
			}
		}
	} else {
		answer, err := s.transferResponse(ctx, transfer, v, h.challenge)
		if err != nil {
			return nil, err
		}
		if h.setup != nil {
			answer.Nonce2, answer.ID2 = h.setup.nonce2, h.setup.id2
		}
		resp.Payload = answer.Encode()
	}
	resp.Options.SetContentFormat(transferFormat(req))
	// The challenge is for this exchange; nothing of it is to be kept.
	resp.Options.SetUint(coap.MaxAge, 0)
	return resp, nil
}

// updateRights: RFC 9203, Section 4.2: a token that comes over OSCORE changes the
// rights of the peer. It names the input material of the Security Context that
// protects the request; nonces and identifiers are ignored, any failure of the
// token is 4.01. The answer is empty, unless the peer asks for what a join needs to
// know (RFC 9594, Section 3.3).
func (s *Server) updateRights(ctx context.Context, req *coap.Request, t *groupcomm.TokenTransfer, v *verified, failed error) (*coap.Response, error) {
	refused := func(err error) error {
		if coap.Deliberate(err) && coap.ErrorResponse(err).Code.Class() == 4 {
			return refuse(coap.Unauthorized, "token does not change the rights of this security context", err)
		}
		return err
	}
	if failed != nil {
		return nil, refused(failed)
	}
	id := subjectKID(req.Peer.Subject)
	if v.update == nil || !bytes.Equal(v.update, id) {
		return nil, refused(coap.Errorf(coap.Unauthorized, "cnf names other material"))
	}
	// Whatever its kid would mean for a handshake, here it names the material.
	v.kid, v.subject, v.named, v.derived, v.key = materialKID(v.entry.origin(), id), req.Peer.Subject, true, false, nil
	h := how{peer: req.Peer.Subject}
	asks := t.WantSignInfo || t.WantECDHInfo || t.WantKDCDH
	if asks {
		h.challenge = newChallenge()
	}
	if _, err := s.place(ctx, v, h); err != nil {
		return nil, refused(s.refused(ctx, v, err))
	}
	s.log.DebugContext(ctx, "rights changed", "kid", logKID(req.Peer.Subject), "issuer", v.entry.Issuer)
	resp := &coap.Response{Code: coap.Created}
	resp.Options.SetUint(coap.MaxAge, 0)
	if asks {
		answer, err := s.transferResponse(ctx, t, v, h.challenge)
		if err != nil {
			return nil, err
		}
		resp.Payload = answer.Encode()
		resp.Options.SetContentFormat(coap.ACE)
	}
	return resp, nil
}

// tooMany: RFC 8516: Max-Age says when to come again.
func tooMany(text string) error {
	r := &coap.Response{Code: coap.TooManyRequests, Payload: []byte(text)}
	r.Options.SetUint(coap.MaxAge, 5)
	return coap.Respond(r, errors.New(text))
}

// readTransfer reads the payload: a map in Content-Format 19, with groups of a
// legacy dialect 65000, or a bare token in 61. Without Content-Format a map is a map: no token is one.
func readTransfer(req *coap.Request) (*groupcomm.TokenTransfer, error) {
	const rest = 512 // of the map, besides the token
	if len(req.Payload) > cwt.MaxToken+rest {
		return nil, coap.Errorf(coap.RequestEntityTooLarge, "token is longer than %d bytes", cwt.MaxToken)
	}
	if len(req.Payload) == 0 {
		return nil, coap.Errorf(coap.BadRequest, "no token")
	}
	format, given := req.Options.ContentFormat()
	isMap := req.Payload[0]>>5 == 5
	switch {
	case given && format == coap.CWT, !given && !isMap:
		return &groupcomm.TokenTransfer{AccessToken: req.Payload}, nil
	case given && format != coap.ACE && format != coap.LegacyACE:
		return nil, coap.Errorf(coap.UnsupportedContentFormat, "tokens come in Content-Format 19 or 61")
	}
	transfer, err := groupcomm.DecodeTokenTransfer(req.Payload)
	if err != nil {
		return nil, refuse(coap.BadRequest, "malformed token post", err)
	}
	if len(transfer.AccessToken) == 0 {
		return nil, coap.Errorf(coap.BadRequest, "no token")
	}
	return transfer, nil
}

// transferResponse: RFC 9594, Section 3.3, and
// draft-ietf-ace-key-groupcomm-oscore-21, Section 5.3: what was asked for about
// those groups of the scope that it applies to. N_S is always there; it may be
// left out where nobody will join, which is no reason to.
func (s *Server) transferResponse(ctx context.Context, t *groupcomm.TokenTransfer, v *verified, ns []byte) (*groupcomm.TokenTransferResponse, error) {
	answer := &groupcomm.TokenTransferResponse{KDCChallenge: ns, RISELabels: t.RISELabels}
	if s.groups == nil || !t.WantSignInfo && !t.WantECDHInfo && !t.WantKDCDH {
		return answer, nil
	}
	scope, err := groupcomm.DecodeScope(v.scope)
	if err != nil {
		return nil, err
	}
	configs, err := s.groups.GroupConfigs(ctx, scope.Groups())
	if err != nil {
		return nil, err
	}
	for _, g := range configs {
		// Pairwise-only groups have no signatures, signature-only groups no
		// Diffie-Hellman: such entries are left out.
		if t.WantSignInfo && g.SignAlg != 0 {
			answer.SignInfo = merge(answer.SignInfo, g.SignInfo())
		}
		if t.WantECDHInfo && g.ECDHAlg != 0 {
			answer.ECDHInfo = merge(answer.ECDHInfo, g.ECDHInfo())
		}
	}
	if t.WantKDCDH {
		if answer.KDCDHCreds, err = s.groups.KDCDHCreds(ctx, scope.Groups()); err != nil {
			return nil, err
		}
	}
	return answer, nil
}

// merge adds an entry, to an equal one of other groups where there is one: RFC
// 9594, Section 3.3.1 lets 'id' name several groups.
func merge(list []groupcomm.SignInfoEntry, e groupcomm.SignInfoEntry) []groupcomm.SignInfoEntry {
	for i := range list {
		l := &list[i]
		if l.Alg == e.Alg && l.CredFmt == e.CredFmt && slices.Equal(l.AlgParams, e.AlgParams) && slices.Equal(l.KeyParams, e.KeyParams) {
			l.Groups = append(l.Groups, e.Groups...)
			return list
		}
	}
	e.Groups = slices.Clone(e.Groups)
	return append(list, e)
}
