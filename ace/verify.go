package ace

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/ace/cwt"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/oscore"
)

// verified is a token that passed every check that needs no stored state.
type verified struct {
	entry *TokenEntry
	raw   []byte
	clear bool // anybody who has the token can read its claims

	core  []byte
	hash  []byte
	twin  []byte // token hash of the same token in another encoding; nil: none
	scope []byte // the usable entries, encoded
	text  bool   // the claim was one of draft-03

	expires int64 // 0: never; for exi tokens the checks of check.go set it
	issued  int64 // 0: not said
	exi     int64 // lifetime from the first sight, 0: not such a token
	exiSeq  int64

	// The key of proof. subject is empty for a token that only names its key
	// and cannot derive it.
	subject coap.Subject
	kid     []byte
	key     []byte // symmetric; nil when unknown or public
	public  []byte // SubjectPublicKeyInfo; nil when the key is symmetric
	named   bool   // the token only names the key
	// material is the OSCORE input material that the token confirms, which is the
	// key; update says that the token changes the rights of material that is
	// stored, by its identifier (RFC 9203, Section 4.1).
	material *oscore.Material
	update   []byte
	derived  bool // key was derived from the token
}

// verify applies the checks to a token in their order (RFC 9200, Section
// 5.10.1.1); what stored state decides comes after, in check.
//
//	protection and issuer key    4.01
//	claims decodable             4.00
//	iss                          4.01
//	exp, nbf                     4.01
//	aud                          4.03
//	scope understood             4.00
//	cnf usable                   4.00
func (s *Server) verify(ctx context.Context, raw []byte, now time.Time) (*verified, error) {
	token, plain, entries, err := s.unprotect(raw)
	if err != nil {
		return nil, err
	}
	claims, err := cwt.DecodeClaims(plain)
	if err != nil {
		return nil, refuse(coap.BadRequest, "claims are malformed", err)
	}
	core := token.Core()
	v := &verified{raw: raw, clear: token.Kind != cwt.Encrypt0, core: core[:], hash: cwt.Hash(raw)}
	if err := s.judge(ctx, v, claims, entries, now); err != nil {
		return nil, err
	}
	if twin := token.Twin(); twin != nil {
		v.twin = cwt.Hash(twin)
	}
	// RFC 9770, Section 11.1: whoever could give the token another form would
	// give it another hash, under which nobody revoked it.
	if v.entry.Revocation != nil && !token.Canonical() {
		return nil, refuse(coap.BadRequest, "token has a form that cannot be revoked", nil)
	}
	return v, nil
}

// unprotect finds the claims of a token that a key of ours protects, and the
// entries with that key. Errors tell that the token is none, or not ours to
// open.
func (s *Server) unprotect(raw []byte) (*cwt.Token, []byte, []*TokenEntry, error) {
	if len(raw) > cwt.MaxToken {
		return nil, nil, nil, coap.Errorf(coap.RequestEntityTooLarge, "token is longer than %d bytes", cwt.MaxToken)
	}
	token, err := cwt.Parse(raw)
	if err != nil {
		return nil, nil, nil, refuse(coap.BadRequest, "payload is no token", err)
	}
	plain, entries := s.open(token)
	if len(entries) == 0 {
		return nil, nil, nil, refuse(coap.Unauthorized, "token is not protected by a known issuer", cwt.ErrProtection)
	}
	return token, plain, entries, nil
}

// judge applies the checks from iss on, of claims that come from one of the
// entries, and completes v.
func (s *Server) judge(ctx context.Context, v *verified, claims *cwt.Claims, entries []*TokenEntry, now time.Time) (err error) {
	entries = slices.DeleteFunc(entries, func(e *TokenEntry) bool {
		return claims.Issuer != "" && e.Issuer != "" && claims.Issuer != e.Issuer
	})
	if len(entries) == 0 {
		return refuse(coap.Unauthorized, "issuer is another", nil)
	}
	if claims.Expires != 0 && now.Unix() >= claims.Expires {
		return refuse(coap.Unauthorized, "token is expired", nil)
	}
	if claims.NotBefore != 0 && now.Unix() < claims.NotBefore {
		return refuse(coap.Unauthorized, "token is not valid yet", nil)
	}
	entries = slices.DeleteFunc(entries, func(e *TokenEntry) bool {
		return !slices.Contains(claims.Audience, e.Audience)
	})
	if len(entries) == 0 {
		return refuse(coap.Forbidden, "token is for another audience", nil)
	}
	v.entry, v.expires, v.issued = entries[0], claims.Expires, claims.IssuedAt
	if v.scope, v.text, err = s.scopeOf(ctx, claims.Scope); err != nil {
		return refuse(coap.BadRequest, "scope is not understood", err)
	}
	switch claims.Profile {
	case 0, ProfileDTLS, ProfileOSCORE:
	default:
		return refuse(coap.BadRequest, "profile is not supported", nil)
	}
	if err := v.confirm(claims, now); err != nil {
		return refuse(coap.BadRequest, "cnf cannot be used", err)
	}
	if err := v.sequence(claims); err != nil {
		return refuse(coap.BadRequest, "exi needs a cti with a sequence number", err)
	}
	return nil
}

// refuse makes an error whose text alone reaches the peer; cause is for logs.
func refuse(code coap.Code, text string, cause error) error {
	if cause == nil {
		return coap.Errorf(code, "%s", text)
	}
	return &refusal{status: coap.Errorf(code, "%s", text), cause: cause}
}

type refusal struct{ status, cause error }

func (r *refusal) Error() string   { return r.status.Error() + ": " + r.cause.Error() }
func (r *refusal) Unwrap() []error { return []error{r.status, r.cause} }

// open finds the entries under whose key the protection holds. Several entries
// may share a key; the claims then decide between them.
func (s *Server) open(t *cwt.Token) (plain []byte, entries []*TokenEntry) {
	for i := range s.cfg.Entries {
		e := &s.cfg.Entries[i]
		if e.Alg != t.Alg {
			continue
		}
		var p []byte
		var err error
		if t.Kind == cwt.Sign1 {
			p, err = t.Verify(e.PublicKey)
		} else {
			p, err = t.Open(e.Key.Bytes())
		}
		if err == nil {
			plain, entries = p, append(entries, e)
		}
	}
	return plain, entries
}

// knownRoles are the roles of draft-ietf-ace-key-groupcomm-oscore-21, Section 3.
const knownRoles = groupcomm.Requester | groupcomm.Responder | groupcomm.Monitor | groupcomm.Verifier

// usable says whether a scope entry gives a user roles that we know: bit 0
// marks entries of administrators.
func usable(e groupcomm.ScopeEntry) bool { return e.Roles&1 == 0 && e.Roles&knownRoles != 0 }

var errScope = errors.New("no usable entry")

// usableScope reads a scope claim and keeps the entries that say something
// here. RFC 9594, Section 7: an unknown tag is no scope of ours.
func usableScope(claim []byte) ([]byte, error) {
	if claim == nil {
		return nil, errScope
	}
	scope, err := groupcomm.DecodeTokenScope(claim)
	if err != nil {
		return nil, err
	}
	if len(scope) > maxScopeEntries {
		return nil, fmt.Errorf("more than %d entries", maxScopeEntries)
	}
	scope = slices.DeleteFunc(scope, func(e groupcomm.ScopeEntry) bool { return !usable(e) })
	if len(scope) == 0 {
		return nil, errScope
	}
	for i := range scope {
		scope[i].Roles &= knownRoles
	}
	return groupcomm.EncodeScope(scope), nil
}

// confirm reads the key of proof. A COSE_Encrypt0 token carries any key; the
// others, which everybody can read, no symmetric key in clear.
func (v *verified) confirm(claims *cwt.Claims, now time.Time) error {
	cnf := claims.Cnf
	if cnf == nil {
		return errors.New("no cnf")
	}
	if done, err := v.confirmCredential(cnf, now); done {
		return err
	}
	key := cnf.Key
	clear := v.clear
	if cnf.Key == nil && cnf.Encrypted == nil && cnf.OSCORE == nil {
		v.update = cnf.KID
	}
	switch {
	case cnf.OSCORE != nil:
		return v.confirmMaterial(claims)
	case v.update != nil && claims.Profile == ProfileOSCORE:
		v.named = true
		return nil // whether that is known, check decides
	case cnf.Encrypted != nil:
		k, err := cwt.OpenKey(cnf.Encrypted, v.entry.encryptionKey())
		if err != nil {
			return err
		}
		key, clear = k, false
	case key == nil && cnf.KID != nil:
		key = &cose.Key{Kty: cose.KtySymmetric, KID: cnf.KID}
	case key == nil:
		return errors.New("no key")
	}
	if cnf.KID != nil && key.KID != nil && !bytes.Equal(cnf.KID, key.KID) {
		return errors.New("two key identifiers")
	}
	if key.Kty != cose.KtySymmetric {
		return v.confirmPublic(key)
	}
	if len(key.KID) == 0 {
		// RFC 9202, Section 3.3.1: the kid is what the handshake names.
		return errors.New("symmetric key without kid")
	}
	if claims.Profile == ProfileOSCORE {
		return errors.New("no OSCORE input material")
	}
	v.kid = key.KID
	switch {
	case key.K == nil && cnf.Encrypted != nil:
		return errors.New("encrypted key without key value")
	case key.K == nil:
		v.named = true
		if v.entry.DerivationKey.IsZero() {
			return nil // it has to be stored already: check decides
		}
		k, err := deriveKey(v.entry.DerivationKey.Bytes(), v.raw)
		if err != nil {
			return err
		}
		v.key, v.derived = k, true
	case clear:
		return errors.New("symmetric key in a token that anybody can read")
	case len(key.K) < minPSK || len(key.K) > maxPSK:
		return errors.New("symmetric key of an unusable length")
	default:
		v.key = key.K
	}
	v.subject = popSubject(v.entry.origin(), v.kid, v.key)
	return nil
}

// Lengths of a key of proof, in bytes; our choice.
const (
	minPSK = 16
	maxPSK = 64
)

func (e *TokenEntry) encryptionKey() []byte {
	if e.EncryptionKey.IsZero() && cwt.KindOf(e.Alg) == cwt.Encrypt0 {
		return e.Key.Bytes()
	}
	return e.EncryptionKey.Bytes()
}

// confirmPublic accepts a public key that can authenticate a handshake. Its
// subject is the SHA-256 of the SubjectPublicKeyInfo, whatever carries it then:
// a raw public key (RFC 7250) or a certificate.
func (v *verified) confirmPublic(k *cose.Key) error {
	if k.IsPrivate() {
		return errors.New("private key")
	}
	spki, err := k.SPKI()
	if err != nil {
		return err
	}
	v.subject, v.public = KeySubject(spki), spki
	return nil
}

// confirmCredential accepts a public key in a credential, or one that a hash names,
// of which a handshake shows whose it is; false: cnf holds neither. That a certificate
// or claims set is genuine the issuer of the token answers for.
//
// draft-ietf-ace-authcred-dtls-profile-04, Sections 2 and 3.
func (v *verified) confirmCredential(cnf *cwt.Confirmation, now time.Time) (done bool, err error) {
	var key *cose.Key
	switch {
	case cnf.CCS != nil:
		key, err = cose.ParseCCS(cnf.CCS)
	case cnf.Chain != nil:
		if key, err = cose.ParseX5Chain(cnf.Chain); err == nil {
			err = cose.CheckX5Time(cnf.Chain, now)
		}
	case cnf.Thumbprint != nil:
		v.subject = thumbprintSubject(cnf.Thumbprint)
		return true, nil
	case cnf.CertHash != nil:
		v.subject = certificateSubject(cnf.CertHash)
		return true, nil
	default:
		return false, nil
	}
	if err != nil {
		return true, err
	}
	return true, v.confirmPublic(key)
}

// confirmMaterial accepts OSCORE input material. RFC 9203, Section 3.2: the token
// is encrypted, because it holds the key.
func (v *verified) confirmMaterial(claims *cwt.Claims) error {
	m := claims.Cnf.OSCORE
	switch {
	case v.clear:
		return errors.New("OSCORE input material in a token that anybody can read")
	case claims.Profile == ProfileDTLS:
		return errors.New("OSCORE input material for another profile")
	case claims.Cnf.KID != nil && !bytes.Equal(claims.Cnf.KID, m.ID):
		return errors.New("two key identifiers")
	case m.MaxID() == 0:
		return errors.New("an algorithm that leaves no room for identifiers")
	}
	v.material, v.key, v.kid = m, m.Encode(), materialKID(v.entry.origin(), m.ID)
	v.subject = popSubject(v.entry.origin(), m.ID, v.key)
	v.subject.Kind = coap.SubjectOSCORE
	return nil
}

// materialKID is the key identifier under which OSCORE input material is stored.
// Its identifiers are no kids of pre-shared keys, and each Authorization Server
// has its own.
func materialKID(origin string, id []byte) []byte {
	sum := sha256.Sum256(cose.MustMarshal([]any{"groupgate OSCORE input material", origin, id}))
	return append([]byte("osc"), sum[:subjectDigest]...)
}

// popSubject identifies a symmetric key of proof: its kid, and a digest that
// binds issuer and key, so that a kid given out anew is somebody else.
func popSubject(origin string, kid, key []byte) coap.Subject {
	sum := sha256.Sum256(cose.MustMarshal([]any{"groupgate key of proof", origin, kid, key}))
	return coap.Subject{Kind: coap.SubjectPoP, ID: string(kid) + string(sum[:subjectDigest])}
}

const subjectDigest = 16

// subjectKID is the kid inside the identifier of a subject, of OSCORE input
// material its identifier; nil: none.
func subjectKID(s coap.Subject) []byte {
	if s.Kind != coap.SubjectPoP && s.Kind != coap.SubjectOSCORE || len(s.ID) <= subjectDigest {
		return nil
	}
	return []byte(s.ID[:len(s.ID)-subjectDigest])
}

// deriveKey: RFC 9202, Section 3.3.1.
func deriveKey(kdk, token []byte) ([]byte, error) {
	info := cose.MustMarshal([]any{"ACE-CoAP-DTLS-key-derivation", derivedKeySize, token})
	return cose.HKDF256(kdk, nil, info, derivedKeySize)
}

// sequence reads the sequence number of an exi token. RFC 9200, Section
// 5.10.3: cti is the name of the resource server followed by the number; we
// read the name as our audience and the number as big-endian.
func (v *verified) sequence(claims *cwt.Claims) error {
	if claims.ExpiresIn == 0 {
		return nil
	}
	number, ok := bytes.CutPrefix(claims.ID, []byte(v.entry.Audience))
	if !ok || len(number) == 0 || len(number) > 8 || number[0]&0x80 != 0 && len(number) == 8 {
		return errors.New("no sequence number")
	}
	v.exi = claims.ExpiresIn
	for _, b := range number {
		v.exiSeq = v.exiSeq<<8 | int64(b)
	}
	return nil
}
