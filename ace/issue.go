package ace

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/seed4911071e/groupgate/ace/cwt"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/oscore"
	"github.com/seed4911071e/groupgate/store"
)

// Sizes of what the embedded Authorization Server makes, in bytes.
const (
	issuedKeySize = 16 // for TLS_PSK_WITH_AES_128_CCM_8 and its kin
	issuedKIDSize = 8
	issuedIDSize  = 8 // cti

	issuedSaltSize = 16 // of OSCORE input material
)

var errUnknownKey = errors.New("ace: no such issued key")

// IssueRequest says what token to make. The caller has decided that it may be
// made: policies are applied by [Server.Token] only.
type IssueRequest struct {
	Client   []byte // for whom; renewals are for the same client. May be empty
	Audience string // "": that of the only entry that can issue
	Scope    groupcomm.Scope
	// TextScope has the scope, of one group, written as draft-03 has it.
	TextScope bool
	Lifetime  time.Duration // at least a second
	CNonce    []byte        // nil: left out

	// KID names an issued key that the token is bound to again; nil: a new key.
	// With Key it is the name of that key, which need not be known.
	KID []byte
	Key cose.Secret

	// PublicKey has the token bound to a public key of the client's, of ES256 or
	// EdDSA, in place of KID and Key; nil: it is not.
	PublicKey *cose.Key

	// Profile of the token; 0: ProfileDTLS. With ProfileOSCORE it is bound to new
	// OSCORE input material, or by KID to material that was issued before; Key is
	// not used.
	Profile int64

	node *nodeRow // the enrolled node that it is for, as the policy was read
}

// Issued is a token with the key that it is bound to.
type Issued struct {
	Token    []byte
	KID      []byte
	Key      cose.Secret // 16 bytes
	Audience string
	Scope    groupcomm.Scope
	Lifetime time.Duration
	Expires  time.Time
	Renewal  bool // the key was issued before

	TextScope bool // the scope in the token is written as draft-03 has it

	// PublicKey is what the token is bound to in place of Key; KID is then the SHA-256
	// of its SubjectPublicKeyInfo. ServerKey is the key of the Resource Server.
	PublicKey, ServerKey *cose.Key

	Profile  int64
	Material *oscore.Material // with ProfileOSCORE, in place of Key; KID is its identifier
}

// tokenScope is a scope as the claim and the parameter have it.
func tokenScope(s groupcomm.Scope, text bool) []byte {
	if text {
		return groupcomm.EncodeTextTokenScope(s[0])
	}
	return groupcomm.EncodeTokenScope(s, false)
}

// confirmation is the cnf that the client is given.
func (i *Issued) confirmation() *cwt.Confirmation {
	if i.Profile == ProfileOSCORE {
		return &cwt.Confirmation{OSCORE: i.Material}
	}
	if i.PublicKey != nil {
		return &cwt.Confirmation{Key: i.PublicKey}
	}
	return &cwt.Confirmation{Key: &cose.Key{Kty: cose.KtySymmetric, KID: i.KID, K: i.Key.Bytes()}}
}

// claim is the cnf of the token. RFC 9203, Section 4.1: one that changes the
// rights of material that client and server have only names it.
func (i *Issued) claim() *cwt.Confirmation {
	if i.Profile == ProfileOSCORE && i.Renewal {
		return &cwt.Confirmation{KID: i.KID}
	}
	return i.confirmation()
}

// Issue makes an encrypted access token under the key of the entry for its
// audience. With a store the key is remembered, sealed, for renewals.
func (s *Server) Issue(ctx context.Context, r IssueRequest) (*Issued, error) {
	entry, err := s.issuer(r.Audience)
	if err != nil {
		return nil, err
	}
	if len(r.Scope) == 0 {
		return nil, errors.New("ace: issue: scope is empty")
	}
	for _, e := range r.Scope {
		if e.Group == "" || !usable(e) {
			return nil, fmt.Errorf("ace: issue: group %q has no usable roles", e.Group)
		}
	}
	if r.TextScope && len(r.Scope) != 1 {
		return nil, errors.New("ace: issue: a scope in text is for one group")
	}
	if r.Lifetime < time.Second {
		return nil, errors.New("ace: issue: lifetime is less than a second")
	}
	now := time.Now()
	out := &Issued{
		Audience: entry.Audience, Scope: r.Scope, TextScope: r.TextScope, Lifetime: r.Lifetime.Truncate(time.Second),
		Expires: time.Unix(now.Unix(), 0).Add(r.Lifetime.Truncate(time.Second)),
		Profile: r.Profile,
	}
	if out.Profile == 0 {
		out.Profile = ProfileDTLS
	}
	choose := s.chooseKey
	switch {
	case r.PublicKey != nil:
		choose = s.choosePublic
	case out.Profile == ProfileOSCORE:
		choose = s.chooseMaterial
	}
	if err := choose(ctx, r, entry, out); err != nil {
		return nil, err
	}
	claims := &cwt.Claims{
		Issuer:   s.issuerName(entry),
		Audience: []string{entry.Audience},
		Expires:  out.Expires.Unix(),
		IssuedAt: now.Unix(),
		ID:       random(issuedIDSize),
		Cnf:      out.claim(),
		Scope:    tokenScope(r.Scope, r.TextScope),
		CNonce:   r.CNonce,
	}
	if out.Profile == ProfileOSCORE {
		// A token that only names its key would else be taken for one of the
		// other profile.
		claims.Profile = ProfileOSCORE
	}
	out.Token, err = cwt.Seal(cwt.Protection{Alg: entry.Alg, Key: entry.Key.Bytes()}, claims.Encode())
	if err != nil {
		return nil, fmt.Errorf("ace: issue: %w", err)
	}
	if len(out.Token) > cwt.MaxToken {
		return nil, fmt.Errorf("ace: issue: token is longer than %d bytes", cwt.MaxToken)
	}
	return out, s.rememberIssued(ctx, r, entry, out)
}

// issuer finds the entry that protects tokens for an audience.
func (s *Server) issuer(audience string) (*TokenEntry, error) {
	name := "" // without an AS these are the operator's own tokens
	if s.cfg.AS != nil {
		name = s.cfg.AS.Issuer
	}
	var found *TokenEntry
	for i := range s.cfg.Entries {
		e := &s.cfg.Entries[i]
		switch {
		case !canIssue(e, name) || audience != "" && e.Audience != audience:
		case found == nil:
			found = e
		case found.Audience != e.Audience:
			return nil, errors.New("ace: issue: there are several audiences, name one")
		}
	}
	if found == nil {
		if audience == "" {
			return nil, errors.New("ace: issue: no entry of tokens has a symmetric key, as it takes to issue any (tokens[].symmetric_key_file)")
		}
		return nil, fmt.Errorf("ace: issue: no COSE_Encrypt0 key for audience %q", audience)
	}
	return found, nil
}

// canIssue says whether an entry's key protects tokens of the embedded AS: only
// encrypted tokens carry the keys that it makes. An AS without a name issues
// under any issuer's.
func canIssue(e *TokenEntry, issuer string) bool {
	return cwt.KindOf(e.Alg) == cwt.Encrypt0 && (e.Issuer == "" || issuer == "" || e.Issuer == issuer)
}

func (s *Server) issuerName(e *TokenEntry) string {
	if s.cfg.AS != nil && s.cfg.AS.Issuer != "" {
		return s.cfg.AS.Issuer
	}
	return e.Issuer
}

// chooseKey sets KID and Key of out.
func (s *Server) chooseKey(ctx context.Context, r IssueRequest, _ *TokenEntry, out *Issued) error {
	switch {
	case !r.Key.IsZero():
		if n := len(r.Key.Bytes()); len(r.KID) == 0 || len(r.KID) > cwt.MaxKID || n < minPSK || n > maxPSK {
			return fmt.Errorf("ace: issue: a key has a kid and %d to %d bytes", minPSK, maxPSK)
		}
		out.KID, out.Key = r.KID, r.Key
		return nil
	case r.KID == nil:
		out.KID, out.Key = random(issuedKIDSize), cose.NewSecret(random(issuedKeySize))
		return nil
	}
	key, err := s.issuedKey(ctx, r, r.KID, out)
	if err != nil {
		return err
	}
	out.KID, out.Key, out.Renewal = r.KID, cose.NewSecret(key), true
	return nil
}

// chooseMaterial sets KID and Material of out.
func (s *Server) chooseMaterial(ctx context.Context, r IssueRequest, entry *TokenEntry, out *Issued) error {
	if r.KID == nil {
		out.KID = random(issuedKIDSize)
		out.Material = &oscore.Material{
			ID: out.KID, MasterSecret: cose.NewSecret(random(issuedKeySize)),
			// Peers differ in what stands for a salt that is absent.
			Salt: random(issuedSaltSize),
		}
		return nil
	}
	key, err := s.issuedKey(ctx, r, materialKID(entry.origin(), r.KID), out)
	if err != nil {
		return err
	}
	if out.Material, err = oscore.DecodeMaterial(key); err != nil {
		return fmt.Errorf("ace: issued material: %w", err)
	}
	out.KID, out.Renewal = r.KID, true
	return nil
}

// issuedKey reads what was issued to the client under a name.
func (s *Server) issuedKey(ctx context.Context, r IssueRequest, kid []byte, out *Issued) ([]byte, error) {
	if s.store == nil {
		return nil, errUnknownKey
	}
	// RFC 9202, Section 4: only the client that a key was made for may have it
	// bound to another token.
	var client, sealed []byte
	var audience string
	err := s.store.View(ctx, func(tx *store.Tx) error {
		return tx.QueryRow(`SELECT client, audience, sealed FROM ace_issued WHERE kid = ? AND blocked = 0`, kid).Scan(&client, &audience, &sealed)
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil, errUnknownKey
	}
	if err != nil {
		return nil, fmt.Errorf("ace: read issued key: %w", err)
	}
	if !bytes.Equal(client, r.Client) || audience != out.Audience {
		return nil, errUnknownKey
	}
	key, err := s.store.Unseal(issuedContext(kid), sealed)
	if err != nil {
		return nil, fmt.Errorf("ace: issued key: %w", err)
	}
	return key, nil
}

// rememberIssued keeps the key for renewals; the token leaves after that.
func (s *Server) rememberIssued(ctx context.Context, r IssueRequest, entry *TokenEntry, i *Issued) error {
	if s.store == nil {
		return nil
	}
	kid, key := i.KID, i.Key.Bytes()
	if i.PublicKey != nil {
		kid, key = publicKID(string(i.KID), i.Audience), i.PublicKey.Encode()
	}
	if i.Profile == ProfileOSCORE {
		kid, key = materialKID(entry.origin(), i.KID), i.Material.Encode()
	}
	client := r.Client
	if client == nil {
		client = []byte{}
	}
	sealed, hash := s.store.Seal(issuedContext(kid), key), cwt.Hash(i.Token)
	err := s.store.Update(ctx, func(tx *store.Tx) error {
		if err := s.noteGranted(tx, client, i, hash); err != nil {
			return err
		}
		if r.node != nil {
			if err := stillEnrolled(tx, r.node); err != nil {
				return err
			}
		}
		if i.PublicKey != nil {
			if known, err := s.rememberPublic(tx, kid, client, i); known || err != nil {
				return err
			}
		}
		n, err := tx.Exec(`UPDATE ace_issued SET expires = ? WHERE kid = ? AND client = ? AND audience = ? AND blocked = 0`,
			i.Expires.Unix(), kid, client, i.Audience)
		if err != nil || n > 0 {
			return err
		}
		if s.issued.Load() >= int64(s.cfg.Limits.MaxIssued) {
			return coap.Errorf(coap.ServiceUnavailable, "too many issued keys")
		}
		_, err = tx.Exec(`INSERT INTO ace_issued (kid, client, audience, sealed, expires) VALUES (?, ?, ?, ?, ?)`,
			kid, client, i.Audience, sealed, i.Expires.Unix())
		if err == nil {
			tx.AfterCommit(func() { s.issued.Add(1) })
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("ace: remember issued key: %w", err)
	}
	return nil
}

func issuedContext(kid []byte) string { return "ace_issued/" + hex.EncodeToString(kid) }

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}
