package ace

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/ace/cwt"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
)

// accept verifies a posted token. One that no key of ours opens, for instance
// a reference that means nothing to anybody but its issuer, is asked about at
// the Authorization Servers that can be asked (RFC 9200, Section 5.9). That is
// done for posts only: a handshake does not wait for another server.
func (s *Server) accept(ctx context.Context, raw []byte) (*verified, error) {
	v, own := s.verify(ctx, raw, time.Now())
	if own == nil || len(raw) > cwt.MaxToken {
		return v, own
	}
	if _, _, _, err := s.unprotect(raw); err == nil {
		return nil, own // it was opened, and refused for what it says
	}
	var away, refused error
	for i := range s.cfg.Entries {
		e := &s.cfg.Entries[i]
		if e.Introspect == nil {
			continue
		}
		v, err := s.introspect(ctx, e, raw)
		switch {
		case err == nil:
			return v, nil
		case errors.Is(err, errAway):
			away = err
		case refused == nil || !errors.Is(err, errInactive):
			refused = err // what says most of the token
		}
	}
	switch {
	case away != nil && (refused == nil || errors.Is(refused, errInactive)):
		return nil, away // it might have been that one's
	case refused != nil:
		return nil, refused
	}
	return nil, own
}

var (
	errAway     = errors.New("ace: the authorization server cannot be asked")
	errInactive = errors.New("ace: the authorization server does not know the token as valid")
)

// introspect asks the server of one entry and judges its answer as the claims
// of a token.
func (s *Server) introspect(ctx context.Context, e *TokenEntry, raw []byte) (*verified, error) {
	body, err := s.ask(ctx, e, raw)
	if err != nil {
		s.log.WarnContext(ctx, "token cannot be asked about", "issuer", e.Issuer, "err", err)
		r := &coap.Response{Code: coap.ServiceUnavailable}
		r.Options.SetUint(coap.MaxAge, askAgain)
		return nil, coap.Respond(r, fmt.Errorf("%w: %w", errAway, err))
	}
	claims, err := decodeIntrospection(body)
	if err != nil {
		return nil, err // ask has decoded it before
	}
	if claims == nil {
		return nil, refuse(coap.Unauthorized, "token is not valid", errInactive)
	}
	now := time.Now()
	if claims.Expires == 0 && claims.ExpiresIn == 0 {
		claims.Expires = now.Add(introspectedLife).Unix()
	}
	if claims.Audience == nil {
		// RFC 9200, Section 5.9.2: 'aud' may be missing; the server knows who
		// asks, and answers for tokens for that one.
		claims.Audience = []string{e.Audience}
	}
	core := sha256.Sum256(cose.MustMarshal([]any{"groupgate token by reference", raw}))
	v := &verified{raw: raw, core: core[:], hash: cwt.Hash(raw)}
	if err := s.judge(ctx, v, claims, []*TokenEntry{e}, now); err != nil {
		return nil, err
	}
	return v, nil
}

// ask returns the body of an introspection response that is well-formed: one
// that is remembered, or a new one. Errors say that there is none.
func (s *Server) ask(ctx context.Context, e *TokenEntry, raw []byte) (_ []byte, err error) {
	id := answerID(e, raw)
	if body, ok := s.answers.get(id, time.Now()); ok {
		return body, nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	coap.Waiting(ctx)
	result := "away"
	defer func() { s.metrics.asked.WithLabelValues(result).Inc() }()
	select {
	case s.asking <- struct{}{}:
		defer func() { <-s.asking }()
	case <-ctx.Done():
		return nil, errors.New("too many questions under way")
	}
	req := &coap.Request{Code: coap.POST, Payload: cose.MustMarshal(map[int64]any{
		paramToken: raw, paramTokenTypeHint: tokenPoP,
	})}
	req.Options.SetPath(e.Introspect.Path...)
	req.Options.SetContentFormat(coap.ACE)
	req.Options.SetUint(coap.Accept, uint32(coap.ACE))
	resp, err := e.Introspect.Client.Do(ctx, req)
	if err != nil {
		return nil, err
	}
	result = "refused"
	if !resp.Code.IsSuccess() {
		// RFC 9200, Section 5.9.3: we may not ask, or not like this. That is
		// between the two servers, and no fault of the token.
		return nil, fmt.Errorf("answered %v", resp.Code)
	}
	if f, given := resp.Options.ContentFormat(); given && f != coap.ACE {
		return nil, fmt.Errorf("answered in Content-Format %d", f)
	}
	claims, err := decodeIntrospection(resp.Payload)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	until := now.Add(keepActive)
	if result = "active"; claims == nil {
		result, until = "inactive", now.Add(keepInactive)
	} else if claims.Expires != 0 && claims.Expires < until.Unix() {
		until = time.Unix(claims.Expires, 0)
	}
	s.answers.put(id, verdict{body: cose.NewSecret(resp.Payload), until: until}, now)
	return resp.Payload, nil
}

// decodeIntrospection reads an introspection response (RFC 9200, Section
// 5.9.2): {10: active, ? 1 iss, ? 3 aud, ? 4 exp, … ? 8 cnf, ? 9 scope, ? 38, ?
// 39, ? 40}, with the labels of the claims. nil: the token is not active.
func decodeIntrospection(b []byte) (*cwt.Claims, error) {
	if len(b) > cwt.MaxToken {
		return nil, fmt.Errorf("ace: introspection: %d bytes", len(b))
	}
	m, err := cose.DecodeMap(b)
	if err != nil {
		return nil, fmt.Errorf("ace: introspection: %w", err)
	}
	active, present, err := m.Bool(paramActive)
	if err != nil || !present {
		return nil, errors.New("ace: introspection: does not say whether the token is active")
	}
	if !active {
		return nil, nil
	}
	claims, err := cwt.DecodeClaims(b)
	if err != nil {
		return nil, fmt.Errorf("ace: introspection: %w", err)
	}
	return claims, nil
}

// verdict is what a server said of a token; it may hold the key of proof.
type verdict struct {
	body  cose.Secret
	until time.Time
}

// answerCache keeps answers for a short time.
type answerCache struct {
	mu sync.Mutex
	m  map[[sha256.Size]byte]verdict // guarded by mu
}

func newAnswerCache() *answerCache { return &answerCache{m: map[[sha256.Size]byte]verdict{}} }

// answerID names a question without keeping the token.
func answerID(e *TokenEntry, raw []byte) [sha256.Size]byte {
	return sha256.Sum256(cose.MustMarshal([]any{e.origin(), e.Introspect.Path, raw}))
}

func (c *answerCache) get(id [sha256.Size]byte, now time.Time) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, ok := c.m[id]
	if !ok || !now.Before(a.until) {
		delete(c.m, id)
		return nil, false
	}
	return a.body.Bytes(), true
}

func (c *answerCache) put(id [sha256.Size]byte, a verdict, now time.Time) {
	if !now.Before(a.until) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.m) >= maxAnswers {
		for k, old := range c.m {
			if !now.Before(old.until) {
				delete(c.m, k)
			}
		}
	}
	for k := range c.m {
		if len(c.m) < maxAnswers {
			break
		}
		delete(c.m, k) // any: it can be asked again
	}
	c.m[id] = a
}
