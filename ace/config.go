package ace

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/seed4911071e/groupgate/ace/cwt"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// Config says whose tokens are accepted and what the embedded Authorization
// Server gives out.
type Config struct {
	Entries []TokenEntry
	PSK     []PSKPeer
	AS      *ASConfig // nil: no embedded Authorization Server

	// RISELabels takes the labels 92 and 93 in a token post for ecdh_info and
	// kdc_dh_creds, as clients of before their registration have them, and
	// answers in kind. Without it they are unknown parameters.
	RISELabels bool

	// ASURI is the token endpoint that peers without a valid token are told of,
	// for example "coaps://as.example.com/token"; "" tells nothing.
	ASURI string

	Limits Limits
}

// Limits bounds what peers can make the room hold or do; zero values take the
// defaults of limits.go.
type Limits struct {
	MaxTokens   int           // stored tokens
	MaxIssued   int           // keys that the embedded AS remembers
	MaxNodes    int           // enrolled nodes
	UnusedAfter time.Duration // after which a token that nobody proved is dropped
	PostRate    float64       // POST /authz-info per second, all peers
	PeerRate    float64       // POST /authz-info per second, one address
}

// TokenEntry is one Authorization Server key. The algorithm decides which key
// field is used; a key serves one algorithm.
type TokenEntry struct {
	Issuer   string // compared when the token carries iss; "": not compared
	Audience string // this gateway's name at that AS; required

	Alg       int64       // 10 (COSE_Encrypt0), 5 or 4 (COSE_Mac0), -8 or -7 (COSE_Sign1)
	Key       cose.Secret // of COSE_Encrypt0 and COSE_Mac0
	PublicKey *cose.Key   // of COSE_Sign1

	// EncryptionKey opens an Encrypted_COSE_Key in a signed or MACed token; in
	// a COSE_Encrypt0 token that is Key. Empty: such tokens are refused.
	EncryptionKey cose.Secret
	// DerivationKey derives keys for tokens that only name one (RFC 9202,
	// Section 3.3.1). Empty: a key that is only named has to be stored already.
	DerivationKey cose.Secret

	// Introspect is where this Authorization Server tells what a token means
	// that no key opens (RFC 9200, Section 5.9); nil: nowhere. An entry with it
	// needs no key of its own: Alg is 0 then.
	Introspect *Endpoint

	// Revocation is where this Authorization Server lists the tokens that it
	// revoked (RFC 9770); nil: nowhere. Its tokens have to have the form that
	// makes their hash the only one then.
	Revocation *Revocation
}

// Revocation is a Token Revocation List.
type Revocation struct {
	Client Observer
	Path   []string
	// Interval is the time between full queries, besides the notifications of
	// the server. Zero: 5 min.
	Interval time.Duration
}

// Observer is a [Client] that can observe resources (RFC 7641).
type Observer interface {
	Client
	// Observe registers, and calls fn for the first response, before it
	// returns, and for every later one; fn does not block. A response without
	// an Observe option is the last. done is closed when the association, and
	// the registration with it, has ended.
	Observe(ctx context.Context, req *coap.Request, fn func(*coap.Response)) (cancel func(context.Context) error, done <-chan struct{}, err error)
}

// Endpoint is a resource of a CoAP server elsewhere.
type Endpoint struct {
	Client Client
	Path   []string
}

// Client carries requests to a server elsewhere, over an association that both
// ends authenticated: a protected one.
type Client interface {
	// Do returns the response, whatever its code; an error says that none came.
	Do(ctx context.Context, req *coap.Request) (*coap.Response, error)
}

// opens says whether the entry has a key that opens tokens.
func (e *TokenEntry) opens() bool { return e.Alg != 0 || e.Introspect == nil }

// origin is the Authorization Server of an entry: key identifiers and sequence
// numbers of exi tokens are its own. Several entries can be one origin, so that
// an AS key can be exchanged.
func (e *TokenEntry) origin() string { return e.Issuer + originSeparator + e.Audience }

const originSeparator = "\x1f"

// PSKPeer is a DTLS peer with a configured key.
type PSKPeer struct {
	Identity []byte
	Key      cose.Secret
	MayToken bool // may ask the embedded AS for tokens
	MayProxy bool

	// MayIntrospect lets a Resource Server ask the embedded AS about tokens for
	// the audience that is its identity.
	MayIntrospect bool

	// MayList makes it an administrator of RFC 9770: it reads the whole list of
	// revoked tokens.
	MayList bool
}

// ASConfig is the embedded Authorization Server. It protects tokens with the
// COSE_Encrypt0 entry that has its issuer and the audience of the policy.
type ASConfig struct {
	Issuer   string
	Policies []Policy // none: it issues nothing
}

// Policy lets one client have tokens for one audience, up to Scope.
type Policy struct {
	Client   string // identity of a PSKPeer
	Audience string
	Scope    groupcomm.Scope
	Lifetime time.Duration

	// Profile of the tokens: ProfileDTLS, ProfileOSCORE, or 0 for what the client
	// asks for, coap_dtls when it does not. All policies of a client for one
	// audience name the same.
	Profile int64
}

// withDefaults returns a copy with zero values filled in.
func (c Config) withDefaults() Config {
	l := &c.Limits
	if l.MaxTokens <= 0 {
		l.MaxTokens = defaultMaxTokens
	}
	if l.MaxIssued <= 0 {
		l.MaxIssued = defaultMaxIssued
	}
	if l.MaxNodes <= 0 {
		l.MaxNodes = defaultMaxNodes
	}
	if l.UnusedAfter <= 0 {
		l.UnusedAfter = defaultUnusedAfter
	}
	if l.PostRate <= 0 {
		l.PostRate = defaultPostRate
	}
	if l.PeerRate <= 0 {
		l.PeerRate = defaultPeerRate
	}
	return c
}

// Validate reports every fault of the configuration, joined.
func (c Config) Validate() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }

	keys := map[string]int64{} // key bytes → its one algorithm
	for i := range c.Entries {
		e := &c.Entries[i]
		for _, err := range e.faults(keys) {
			fault("tokens[%d]: %w", i, err)
		}
	}
	identities := map[string]*PSKPeer{}
	for i := range c.PSK {
		p := &c.PSK[i]
		switch _, isKID := kidIdentity(p.Identity); {
		case len(p.Identity) == 0:
			fault("psk[%d]: identity is empty", i)
		case len(p.Identity) > cwt.MaxToken:
			fault("psk[%d]: identity is longer than %d bytes", i, cwt.MaxToken)
		case isKID:
			// It would never be found: such an identity names a token's key.
			fault("psk[%d]: identity reads as the key identifier of an access token", i)
		case identities[string(p.Identity)] != nil:
			fault("psk[%d]: identity is given twice", i)
		}
		if p.Key.IsZero() {
			fault("psk[%d]: no key", i)
		}
		identities[string(p.Identity)] = p
	}
	if c.AS != nil {
		for i := range c.AS.Policies {
			for _, err := range c.policyFaults(&c.AS.Policies[i], identities) {
				fault("authorization_server.policies[%d]: %w", i, err)
			}
		}
	}
	return errors.Join(faults...)
}

func (e *TokenEntry) faults(keys map[string]int64) (faults []error) {
	if e.Audience == "" {
		faults = append(faults, errors.New("audience is empty"))
	}
	if len(e.Audience) > cwt.MaxText || len(e.Issuer) > cwt.MaxText {
		faults = append(faults, fmt.Errorf("issuer or audience is longer than %d bytes", cwt.MaxText))
	}
	if strings.Contains(e.Issuer+e.Audience, originSeparator) {
		faults = append(faults, errors.New("issuer or audience contains a control character"))
	}
	once := func(key []byte, use int64, name string) {
		if prev, ok := keys[string(key)]; ok && prev != use {
			faults = append(faults, fmt.Errorf("%s serves another algorithm already", name))
		}
		keys[string(key)] = use
	}
	switch kind := cwt.KindOf(e.Alg); {
	case !e.opens():
		if !e.Key.IsZero() || e.PublicKey != nil {
			faults = append(faults, errors.New("a key without an algorithm"))
		}
	case kind == cwt.Encrypt0 || kind == cwt.Mac0:
		if e.PublicKey != nil {
			faults = append(faults, fmt.Errorf("algorithm %d uses no public key", e.Alg))
		}
		switch n := len(e.Key.Bytes()); {
		case e.Key.IsZero():
			faults = append(faults, errors.New("no symmetric key"))
		case e.Alg == cose.AlgAESCCM16_64_128 && n != 16:
			faults = append(faults, errors.New("symmetric key is not 16 bytes"))
		case n < 16:
			faults = append(faults, errors.New("symmetric key is shorter than 16 bytes"))
		default:
			once(e.Key.Bytes(), e.Alg, "symmetric key")
		}
	case kind == cwt.Sign1:
		if !e.Key.IsZero() {
			faults = append(faults, fmt.Errorf("algorithm %d uses no symmetric key", e.Alg))
		}
		if e.PublicKey == nil {
			faults = append(faults, errors.New("no public key"))
		} else if err := e.PublicKey.CheckAlg(e.Alg); err != nil {
			faults = append(faults, fmt.Errorf("public key: %w", err))
		}
	default:
		faults = append(faults, fmt.Errorf("algorithm %d protects no token", e.Alg))
	}
	if !e.EncryptionKey.IsZero() {
		if len(e.EncryptionKey.Bytes()) != 16 {
			faults = append(faults, errors.New("encryption key is not 16 bytes"))
		}
		once(e.EncryptionKey.Bytes(), cose.AlgAESCCM16_64_128, "encryption key")
	}
	if !e.DerivationKey.IsZero() {
		if len(e.DerivationKey.Bytes()) < 16 {
			faults = append(faults, errors.New("derivation key is shorter than 16 bytes"))
		}
		once(e.DerivationKey.Bytes(), useDerivation, "derivation key")
	}
	return faults
}

// useDerivation stands for HKDF among algorithm numbers.
const useDerivation = -1 << 40

func (c Config) policyFaults(p *Policy, identities map[string]*PSKPeer) (faults []error) {
	if peer := identities[p.Client]; peer == nil || !peer.MayToken {
		faults = append(faults, fmt.Errorf("client %q is no psk peer that may ask for tokens", p.Client))
	}
	if !slices.ContainsFunc(c.Entries, func(e TokenEntry) bool { return e.Audience == p.Audience && canIssue(&e, c.AS.Issuer) }) {
		faults = append(faults, fmt.Errorf("no tokens entry with a COSE_Encrypt0 key for issuer %q and audience %q", c.AS.Issuer, p.Audience))
	}
	if p.Profile != 0 && p.Profile != ProfileDTLS && p.Profile != ProfileOSCORE {
		faults = append(faults, fmt.Errorf("profile %d is not supported", p.Profile))
	}
	for _, o := range c.AS.Policies {
		if o.Client == p.Client && o.Audience == p.Audience && o.Profile != p.Profile {
			faults = append(faults, fmt.Errorf("policies of client %q for audience %q name different profiles", p.Client, p.Audience))
			break
		}
	}
	if p.Lifetime < time.Second {
		faults = append(faults, errors.New("lifetime is less than a second"))
	}
	if len(p.Scope) == 0 {
		faults = append(faults, errors.New("scope is empty"))
	}
	for _, e := range p.Scope {
		if e.Group == "" || !usable(e) {
			faults = append(faults, fmt.Errorf("scope: group %q has no usable roles", e.Group))
		}
	}
	return faults
}
