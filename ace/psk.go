package ace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/seed4911071e/groupgate/ace/cwt"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// exporterLabel: draft-ietf-ace-key-groupcomm-oscore-21, Section 6.1.1.
const exporterLabel = "EXPORTER-ACE-Pop-Input-coap-group-oscore-app"

// ErrIdentity is a psk_identity for which there is no key: an unknown name or a
// token that is not accepted. RFC 9202, Section 3.3.2, ends the handshake with
// illegal_parameter; pion's server, which asks for the key, makes it
// internal_error.
var ErrIdentity = errors.New("ace: no key for this psk_identity")

// subjectTimeout bounds the store in Subject, which has no context.
const subjectTimeout = 5 * time.Second

// kidIdentity reads the psk_identity that names the key of a stored token: the
// map {8: {1: {1: 4, 2: kid}}} and nothing else (RFC 9202, Section 3.3.2). A
// token is never a map.
func kidIdentity(identity []byte) (kid []byte, ok bool) {
	if len(identity) > 2*cwt.MaxKID {
		return nil, false
	}
	outer, err := cose.DecodeMap(identity)
	if err != nil || !hasKeys(identity, 1) {
		return nil, false
	}
	cnf, present, err := outer.Map(paramCnf)
	if err != nil || !present || !hasKeys(outer[paramCnf], 1) {
		return nil, false
	}
	key, present, err := cnf.Map(1)
	if err != nil || !present || !hasKeys(cnf[1], 2) {
		return nil, false
	}
	kty, present, err := key.Int(1)
	if err != nil || !present || kty != cose.KtySymmetric {
		return nil, false
	}
	kid, present, err = key.Bytes(2)
	if err != nil || !present || len(kid) == 0 || len(kid) > cwt.MaxKID {
		return nil, false
	}
	return kid, true
}

// hasKeys says whether an encoded map has n entries, those with other than
// integer keys too.
func hasKeys(m []byte, n byte) bool { return len(m) > 0 && m[0] == 0xa0|n }

// KIDIdentity makes the psk_identity for the key of a stored token.
func KIDIdentity(kid []byte) []byte {
	return cose.MustMarshal(map[int64]any{paramCnf: map[int64]any{1: map[int64]any{1: cose.KtySymmetric, 2: kid}}})
}

// PSK returns the key for a handshake. The identity is read as, in this order,
// the name of a stored token's key, a configured identity, that of an enrolled
// node, and an access token,
// which is verified here but stored only by [Server.Conveyed]: a handshake that
// fails changes nothing. Errors wrap [ErrIdentity] unless the store failed.
func (s *Server) PSK(ctx context.Context, identity []byte) (key []byte, err error) {
	kind := "token"
	defer func() {
		result := "found"
		if err != nil {
			result = "refused"
		} else {
			s.handshakes.hand(identity, key)
		}
		s.metrics.lookups.WithLabelValues(kind, result).Inc()
	}()
	if kid, ok := kidIdentity(identity); ok {
		kind = "kid"
		return s.storedPSK(ctx, kid)
	}
	if p := s.identities[string(identity)]; p != nil {
		kind = "configured"
		return p.Key.Bytes(), nil
	}
	if key, found, err := s.nodePSK(ctx, string(identity)); found || err != nil {
		kind = "enrolled"
		return key, err
	}
	return s.conveyedPSK(ctx, identity)
}

// storedPSK finds the key of a token that is valid now, in force or waiting.
func (s *Server) storedPSK(ctx context.Context, kid []byte) ([]byte, error) {
	var k *keyRow
	err := s.store.View(ctx, func(tx *store.Tx) (err error) {
		k, err = keyByKID(tx, kid)
		return err
	})
	if errors.Is(err, store.ErrNotFound) || err == nil && (k.newest(time.Now()) == nil || k.subject.Kind != coap.SubjectPoP) {
		return nil, fmt.Errorf("%w: kid is not stored", ErrIdentity)
	}
	if err != nil {
		return nil, fmt.Errorf("ace: read key: %w", err)
	}
	return s.unsealKey(k)
}

// forHandshake says whether a token's key can be the pre-shared key of a
// handshake.
func (v *verified) forHandshake() error {
	switch {
	case v.material != nil:
		return fmt.Errorf("%w: token is for OSCORE", ErrIdentity)
	case v.kid == nil:
		return fmt.Errorf("%w: key is public, or not named for handshakes", ErrIdentity)
	}
	return nil
}

func (s *Server) unsealKey(k *keyRow) ([]byte, error) {
	if k.sealed == nil {
		return nil, fmt.Errorf("%w: key is public", ErrIdentity)
	}
	key, err := s.store.Unseal(sealContext(k.subject), k.sealed)
	if err != nil {
		return nil, fmt.Errorf("ace: stored key: %w", err)
	}
	return key, nil
}

func (s *Server) conveyedPSK(ctx context.Context, token []byte) ([]byte, error) {
	v, err := s.verify(ctx, token, time.Now())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrIdentity, err)
	}
	if err := v.forHandshake(); err != nil {
		return nil, err
	}
	key, err := s.heldKey(ctx, v)
	if err != nil && coap.Deliberate(err) {
		err = fmt.Errorf("%w: %w", ErrIdentity, err)
	}
	return key, err
}

// heldKey is the key of a token in a handshake: the one in it, or the stored one
// that it names.
func (s *Server) heldKey(ctx context.Context, v *verified) ([]byte, error) {
	var k *keyRow
	err := s.store.View(ctx, func(tx *store.Tx) (err error) {
		k, err = s.check(tx, v, time.Now())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ace: check token: %w", err)
	}
	if k != nil && v.named {
		return s.unsealKey(k)
	}
	return bytes.Clone(v.key), nil
}

// Subject says what a handshake that finished with this identity proved; ask
// once per handshake, after the peer's Finished. A token that waited for its
// key to be proved comes in force. conveyed means that the identity was a
// token: [Server.Conveyed] then stores it and says the subject. A handshake that
// may have been with an earlier key of the identity proved nothing.
func (s *Server) Subject(identity []byte) (subject coap.Subject, conveyed bool) {
	ctx, cancel := context.WithTimeout(context.Background(), subjectTimeout)
	defer cancel()
	kid, ok := kidIdentity(identity)
	if !ok {
		if s.identities[string(identity)] != nil {
			return coap.Subject{Kind: coap.SubjectPSK, ID: string(identity)}, false
		}
		n, err := s.enrolledNode(ctx, string(identity))
		if err != nil {
			s.log.Warn("node of a finished handshake is not readable", "err", err)
			return coap.Subject{}, false
		}
		if n == nil {
			return coap.Subject{}, true
		}
		key, err := s.store.Unseal(nodeContext(n.identity), n.sealed)
		if err != nil || !s.handshakes.certain(identity, key, time.Unix(0, n.keyed)) {
			s.log.Info("handshake may have been with an earlier key of the node", "err", err)
			return coap.Subject{}, false
		}
		return n.subject(), false
	}
	var k *keyRow
	err := s.store.View(ctx, func(tx *store.Tx) (err error) {
		k, err = keyByKID(tx, kid)
		return err
	})
	if err != nil {
		// Without a subject every request is answered 4.01.
		s.log.Warn("key of a finished handshake is not readable", "err", err)
		return coap.Subject{}, false
	}
	if k.subject.Kind != coap.SubjectPoP {
		return coap.Subject{}, false // there was no such handshake
	}
	if key, err := s.unsealKey(k); err != nil || !s.handshakes.certain(identity, key, time.Time{}) {
		s.log.Info("handshake may have been with an earlier key of that identifier", "kid", logKID(k.subject), "err", err)
		return coap.Subject{}, false
	}
	if !k.used {
		s.touch(k.subject)
	}
	if k.tokens[waiting].validAt(time.Now()) {
		if err := s.proved(ctx, k.subject); err != nil {
			s.log.Warn("waiting token stays waiting", "kid", logKID(k.subject), "err", err)
		}
	}
	return k.subject, false
}

// proved puts the waiting token of a key in force.
func (s *Server) proved(ctx context.Context, subject coap.Subject) error {
	return s.store.Update(ctx, func(tx *store.Tx) error {
		k, err := keyBySubject(tx, subject)
		if err != nil {
			return err
		}
		if !k.tokens[waiting].validAt(time.Now()) {
			return nil
		}
		k.used = true
		if err := s.updateKey(tx, k); err != nil {
			return err
		}
		return s.promote(tx, k)
	})
}

// Conveyed stores a token that came in psk_identity, once the peer's Finished
// has verified, and returns what the peer proved. exporter is that of the
// handshake: N_S is its value with an empty context that is present (RFC 5705,
// Section 4).
func (s *Server) Conveyed(ctx context.Context, token []byte, exporter func(label string, context []byte, n int) ([]byte, error)) (coap.Subject, error) {
	v, err := s.verify(ctx, token, time.Now())
	if err != nil {
		return coap.Subject{}, err
	}
	if err := v.forHandshake(); err != nil {
		return coap.Subject{}, err
	}
	if exporter == nil {
		return coap.Subject{}, errors.New("ace: conveyed token without exporter")
	}
	if key, err := s.heldKey(ctx, v); err != nil {
		return coap.Subject{}, err
	} else if !s.handshakes.certain(token, key, time.Time{}) {
		return coap.Subject{}, coap.Errorf(coap.Unauthorized, "handshake was with another key")
	}
	ns, err := exporter(exporterLabel, []byte{}, exporterSize)
	if err != nil {
		return coap.Subject{}, fmt.Errorf("ace: export challenge: %w", err)
	}
	if len(ns) != exporterSize {
		return coap.Subject{}, errors.New("ace: exporter gave another length")
	}
	subject, err := s.place(ctx, v, how{conveyed: true, challenge: ns})
	if err != nil {
		return coap.Subject{}, err
	}
	s.log.DebugContext(ctx, "token conveyed", "kid", logKID(subject), "issuer", v.entry.Issuer)
	return subject, nil
}

var _ interface {
	Grant(context.Context, coap.Peer) (*groupcomm.Grant, error)
	NewChallenge(context.Context, coap.Subject) ([]byte, error)
	UsedChallenge(*store.Tx, coap.Subject, []byte) error
} = (*Server)(nil)
