package ace

import (
	"context"
	"fmt"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// Clients of the dialects of 2019 and 2020 (groupcomm.Interface) post tokens in
// another Content-Format, ask for group parameters by other labels, and, in
// draft-03, have tokens whose scope names roles in text. All of it is for the
// groups that declare such a dialect only.

// textScope reads a scope claim of draft-03 and checks that its group speaks
// that. The roles are those of AIF-OSCORE-GROUPCOMM then.
func (s *Server) textScope(ctx context.Context, claim []byte) (groupcomm.ScopeEntry, error) {
	e, err := groupcomm.DecodeTextTokenScope(claim)
	if err != nil {
		return e, err
	}
	if s.groups == nil {
		return e, errScope
	}
	configs, err := s.groups.GroupConfigs(ctx, []string{e.Group})
	if err != nil {
		return e, err
	}
	if len(configs) != 1 || configs[0].Interface.Legacy() != groupcomm.Draft03 {
		return e, fmt.Errorf("%w: roles in text are for draft-03", errScope)
	}
	return e, nil
}

// scopeOf reads a scope claim of either form; text says that it is of draft-03.
func (s *Server) scopeOf(ctx context.Context, claim []byte) (scope []byte, text bool, err error) {
	scope, err = usableScope(claim)
	if err == nil || claim == nil {
		return scope, false, err
	}
	if e, textErr := s.textScope(ctx, claim); textErr == nil {
		return groupcomm.EncodeScope(groupcomm.Scope{e}), true, nil
	}
	return nil, false, err
}

// transferFormat is the Content-Format of the answer to a token post: what is
// accepted, else that of the request; 65000 was experimental for 19.
func transferFormat(req *coap.Request) coap.Format {
	if a, ok := req.Options.Uint(coap.Accept); ok {
		return coap.Format(a)
	}
	if f, ok := req.Options.ContentFormat(); ok && f == coap.LegacyACE {
		return f
	}
	return coap.ACE
}

// legacyTransfer decides whether a token post is answered in a legacy dialect, and
// for which groups. It is where the client shows that it speaks one, or where no
// group of the token speaks anything else.
func (s *Server) legacyTransfer(ctx context.Context, req *coap.Request, t *groupcomm.TokenTransfer, v *verified) ([]groupcomm.GroupConfig, error) {
	format, _ := req.Options.ContentFormat()
	private := format == coap.LegacyACE || transferFormat(req) == coap.LegacyACE
	refused := coap.Errorf(coap.UnsupportedContentFormat, "tokens come in Content-Format 19 or 61")
	if format != coap.LegacyACE {
		refused = coap.Errorf(coap.NotAcceptable, "answers have Content-Format 19")
	}
	if s.groups == nil {
		if private {
			return nil, refused
		}
		return nil, nil
	}
	scope, err := groupcomm.DecodeScope(v.scope)
	if err != nil {
		return nil, err
	}
	configs, err := s.groups.GroupConfigs(ctx, scope.Groups())
	if err != nil {
		return nil, err
	}
	var legacy []groupcomm.GroupConfig
	current := false
	for _, g := range configs {
		current = current || g.Interface.SpeaksCurrent()
		// One answer is in one dialect: that of the first group.
		if d := g.Interface.Legacy(); d != groupcomm.Current && (legacy == nil || d == legacy[0].Interface.Legacy()) {
			legacy = append(legacy, g)
		}
	}
	switch {
	case private && legacy == nil:
		return nil, refused
	case private, v.text, t.WantLegacySignInfo, t.WantLegacyPubKeyEnc, !current:
		return legacy, nil
	}
	return nil, nil
}

// withSetup adds nonce2 and ace_server_recipientid to an answer in a legacy
// dialect, which has no labels of its own for them (RFC 9203, Section 4.2).
func withSetup(answer []byte, c *contextRow) ([]byte, error) {
	m, err := cose.DecodeMap(answer)
	if err != nil {
		return nil, err
	}
	m[paramNonce2] = cose.MustMarshal(c.nonce2)
	m[paramServerRecipientID] = cose.MustMarshal(c.id2)
	return cose.MustMarshal(map[int64]cose.Item(m)), nil
}

// legacyTransferResponse answers a token post in the dialect of groups
// (draft-ietf-ace-key-groupcomm-oscore-03, Section 4.1;
// draft-ietf-ace-key-groupcomm-oscore-09, Section 6.1): N_S, and what was asked
// for. draft-03 has room for one group.
func legacyTransferResponse(groups []groupcomm.GroupConfig, t *groupcomm.TokenTransfer, ns []byte) *groupcomm.LegacyInfo {
	i := &groupcomm.LegacyInfo{Dialect: groups[0].Interface.Legacy(), Challenge: ns}
	if i.Dialect == groupcomm.Draft03 {
		groups = groups[:1]
		if t.WantLegacyPubKeyEnc {
			i.PubKeyEnc = groupcomm.PubKeyEncCOSEKey
		}
	}
	if t.WantLegacySignInfo {
		for _, g := range groups {
			i.SignInfo = append(i.SignInfo, g.LegacySignInfo())
		}
	}
	return i
}
