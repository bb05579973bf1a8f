package ace

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/store"
)

// Raw public keys (RFC 9202, Section 3.2). A token confirms the public key of its
// holder; whoever shows in a handshake that it has the private key is the holder.
// The other end of that handshake is the key of this Resource Server, which the
// embedded Authorization Server tells its clients in rs_cnf.

// rawKeyName is the row of ace_keypairs that is the Resource Server's.
const rawKeyName = "resource server"

func keypairContext(name string) string { return "ace_keypairs/" + name }

// setupRawKey reads the key pair of the Resource Server, and makes it when there
// is none. Gateways on one store have one.
func (s *Server) setupRawKey(ctx context.Context) error {
	made, err := cose.GenerateKey(cose.AlgES256) // RFC 7252, Section 9.1.3.2: P-256
	if err != nil {
		return err
	}
	sealed := s.store.Seal(keypairContext(rawKeyName), made.Encode())
	err = s.store.View(ctx, func(tx *store.Tx) error { return readKeypair(tx, &sealed) })
	if errors.Is(err, store.ErrNotFound) {
		err = s.store.Update(ctx, func(tx *store.Tx) error {
			if _, err := tx.Exec(`INSERT INTO ace_keypairs (name, sealed) VALUES (?, ?) ON CONFLICT (name) DO NOTHING`, rawKeyName, sealed); err != nil {
				return err
			}
			return readKeypair(tx, &sealed)
		})
	}
	if err != nil {
		return err
	}
	plain, err := s.store.Unseal(keypairContext(rawKeyName), sealed)
	if err != nil {
		return err
	}
	key, err := cose.DecodeKey(plain)
	clear(plain)
	if err == nil {
		s.rawKey.Store(key)
	}
	return err
}

func readKeypair(tx *store.Tx, sealed *[]byte) error {
	return tx.QueryRow(`SELECT sealed FROM ace_keypairs WHERE name = ?`, rawKeyName).Scan(sealed)
}

// RawKey is the key pair of this Resource Server for handshakes, ECDSA on P-256;
// nil before Setup.
func (s *Server) RawKey() *cose.Key { return s.rawKey.Load() }

// KeySubject is who shows a public key, a SubjectPublicKeyInfo in DER, whether as
// a raw public key or in a certificate.
func KeySubject(spki []byte) coap.Subject {
	sum := sha256.Sum256(spki)
	return coap.Subject{Kind: coap.SubjectKeyHash, ID: string(sum[:])}
}

// thumbprintSubject is who has the key that a thumbprint names (RFC 9679), when a
// token says no more of it.
func thumbprintSubject(sum []byte) coap.Subject {
	return coap.Subject{Kind: coap.SubjectKeyHash, ID: string(sum)}
}

// certificateSubject is the same of the SHA-256 of a certificate. Neither is a hash of
// what the other is one of, nor of a SubjectPublicKeyInfo.
func certificateSubject(sum []byte) coap.Subject { return thumbprintSubject(sum) }

// names are what tokens may call who shows a public key, and a certificate for it
// (DER; nil: none): by the key itself first.
func names(spki, leaf []byte) []coap.Subject {
	all := []coap.Subject{KeySubject(spki)}
	if k, err := cose.KeyFromSPKI(spki); err == nil {
		all = append(all, thumbprintSubject(k.Thumbprint()))
	}
	if leaf != nil {
		sum := sha256.Sum256(leaf)
		all = append(all, certificateSubject(sum[:]))
	}
	return all
}

// Holder says who the owner of a raw public key is, or of that in a certificate (DER;
// nil: none): the holder of a stored token that is valid now, in force or waiting. The
// error wraps [ErrIdentity] when there is none.
func (s *Server) Holder(ctx context.Context, spki, leaf []byte) (coap.Subject, error) {
	k, err := s.heldBy(ctx, spki, leaf)
	if err != nil {
		return coap.Subject{}, err
	}
	return k.subject, nil
}

func (s *Server) heldBy(ctx context.Context, spki, leaf []byte) (k *keyRow, err error) {
	defer func() {
		result := "found"
		if err != nil {
			result = "refused"
		}
		s.metrics.lookups.WithLabelValues("raw", result).Inc()
	}()
	err = s.store.View(ctx, func(tx *store.Tx) (err error) {
		for _, name := range names(spki, leaf) {
			if k, err = keyBySubject(tx, name); err == nil && k.newest(time.Now()) != nil {
				return nil
			}
			if k = nil; err != nil && !errors.Is(err, store.ErrNotFound) {
				return err
			}
		}
		return nil
	})
	if err == nil && k == nil {
		return nil, fmt.Errorf("%w: no valid token confirms the public key", ErrIdentity)
	}
	if err != nil {
		return nil, fmt.Errorf("ace: read key: %w", err)
	}
	return k, nil
}

// Proved says who the peer of a finished handshake is that showed a public key, raw or
// in a certificate. A token that waited for its key to be proved comes in force.
func (s *Server) Proved(ctx context.Context, spki, leaf []byte) (coap.Subject, error) {
	k, err := s.heldBy(ctx, spki, leaf)
	if err != nil {
		return coap.Subject{}, err
	}
	if !k.used {
		s.touch(k.subject)
	}
	if k.tokens[waiting].validAt(time.Now()) {
		if err := s.proved(ctx, k.subject); err != nil {
			return coap.Subject{}, fmt.Errorf("ace: token of a proven key: %w", err)
		}
	}
	return k.subject, nil
}

// handshakeKey reads a public key that a client wants its token bound to: one
// that package dtls12 can verify.
func handshakeKey(k *cose.Key) (*cose.Key, error) {
	if k.IsPrivate() || k.Degenerate() || k.CheckAlg(cose.AlgES256) != nil && k.CheckAlg(cose.AlgEdDSA) != nil {
		return nil, errors.New("neither a public key of ES256 nor of EdDSA")
	}
	return &cose.Key{Kty: k.Kty, Crv: k.Crv, X: bytes.Clone(k.X), Y: bytes.Clone(k.Y)}, nil
}

// publicKID is the name of a public key among the issued keys, of its hash: it is
// one of an audience.
func publicKID(hash, audience string) []byte { return []byte(publicPrefix + hash + audience) }

const publicPrefix = "rpk"

// publicSubject reads such a name; false when the key is a symmetric one.
func publicSubject(kid []byte) (coap.Subject, bool) {
	rest, ok := bytes.CutPrefix(kid, []byte(publicPrefix))
	if !ok || len(rest) <= sha256.Size {
		return coap.Subject{}, false
	}
	return coap.Subject{Kind: coap.SubjectKeyHash, ID: string(rest[:sha256.Size])}, true
}

// issuedName is the name of a token's key among the issued keys; nil: it has none.
func (v *verified) issuedName() []byte {
	if v.kid == nil && v.subject.Kind == coap.SubjectKeyHash {
		return publicKID(v.subject.ID, v.entry.Audience)
	}
	return v.kid
}

// choosePublic binds a token to a public key of the client's. RFC 9200, Section
// 5.8.2: it is told the key of the Resource Server.
func (s *Server) choosePublic(_ context.Context, r IssueRequest, _ *TokenEntry, out *Issued) error {
	if out.Profile != ProfileDTLS {
		return errors.New("ace: issue: public keys are for the profile coap_dtls")
	}
	key, err := handshakeKey(r.PublicKey)
	if err != nil {
		return fmt.Errorf("ace: issue: %w", err)
	}
	spki, err := key.SPKI()
	if err != nil {
		return fmt.Errorf("ace: issue: %w", err)
	}
	out.PublicKey, out.KID = key, []byte(KeySubject(spki).ID)
	if own := s.RawKey(); own != nil {
		out.ServerKey = own.Public()
	}
	return nil
}

// rememberPublic keeps whose a public key is. It belongs to the client that asked
// for it first: another could else change the rights of its owner.
func (s *Server) rememberPublic(tx *store.Tx, kid, client []byte, i *Issued) (known bool, err error) {
	var owner []byte
	err = tx.QueryRow(`SELECT client FROM ace_issued WHERE kid = ?`, kid).Scan(&owner)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return false, nil
	case err != nil:
		return false, err
	case !bytes.Equal(owner, client):
		return false, errUnknownKey
	}
	_, err = tx.Exec(`UPDATE ace_issued SET expires = ? WHERE kid = ?`, i.Expires.Unix(), kid)
	return true, err
}
