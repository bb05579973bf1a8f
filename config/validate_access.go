package config

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/spell"
)

// Names of token algorithms. Each tokens entry has one, and a key serves one
// algorithm (docs/protocol.md, Section 2).
var tokenAlgs = map[string]int64{
	"AES-CCM-16-64-128": 10,
	"HMAC-256/64":       4,
	"HMAC-256/256":      5,
	"EdDSA":             -8,
	"ES256":             -7,
}

// AlgID returns the COSE algorithm of the tokens; 0 means that the public key
// decides, or that there is no key.
func (t Token) AlgID() int64 {
	if t.keyless() {
		return 0
	}
	if t.Alg == "" && t.PublicKeyFile == "" {
		return tokenAlgs["AES-CCM-16-64-128"]
	}
	return tokenAlgs[t.Alg]
}

// keyless says whether tokens are only asked about at their issuer.
func (t Token) keyless() bool {
	return t.Introspect.URI != "" && t.SymmetricKey.IsZero() && t.SymmetricKeyFile == "" && t.PublicKeyFile == ""
}

func (t Token) symmetric() bool { return t.PublicKeyFile == "" }

func (c *Config) validateTokens(f *faults) {
	for i, t := range c.Tokens {
		key := fmt.Sprintf("tokens[%d]", i)
		required(f, key+".audience", t.Audience, "tokens are accepted for one audience")
		if t.ASURI != "" {
			validateURI(f, key+".as_uri", t.ASURI)
		}
		given := 0
		for _, set := range []bool{inline(f, key+".symmetric_key", t.SymmetricKey, t.SymmetricKeyFile), t.SymmetricKeyFile != "", t.PublicKeyFile != ""} {
			if set {
				given++
			}
		}
		t.validateIntrospect(f, key)
		t.validateRevocation(f, key)
		switch {
		case given == 0 && t.Introspect.URI != "":
			if t.Alg != "" {
				f.add(key+".alg", "is that of a key, and there is none")
			}
			continue
		case given != 1:
			f.add(key, "needs exactly one of symmetric_key, symmetric_key_file and public_key_file, or introspect")
			continue
		}
		if t.Alg != "" {
			if t.symmetric() {
				oneOf(f, key+".alg", t.Alg, "AES-CCM-16-64-128", "HMAC-256/64", "HMAC-256/256")
			} else {
				oneOf(f, key+".alg", t.Alg, "EdDSA", "ES256")
			}
		}
		if !t.SymmetricKey.IsZero() {
			checkTokenKey(f, key+".symmetric_key", t)
		}
	}
}

// inline says whether a key stands in the configuration itself. Bootstrap puts
// keys from files into the same field, so where there is a file only the text
// of the configuration can tell.
func inline(f *faults, key string, s Secret, file string) bool {
	_, written := f.lines[key]
	return written || !s.IsZero() && file == ""
}

// checkTokenKey holds a symmetric key against its algorithm.
func checkTokenKey(f *faults, key string, t Token) {
	n := len(t.SymmetricKey.Bytes())
	switch t.AlgID() {
	case tokenAlgs["AES-CCM-16-64-128"]:
		if n != 16 {
			f.add(key, "AES-CCM-16-64-128 needs a key of 16 bytes, this one has %d", n)
		}
	case tokenAlgs["HMAC-256/64"], tokenAlgs["HMAC-256/256"]:
		if n < 16 || n > 128 {
			f.add(key, "%s needs a key of 16 to 128 bytes, this one has %d", t.Alg, n)
		}
	}
}

// Bounds of pre-shared keys, in bytes, and of DTLS identities (RFC 4279,
// Section 5.3).
const (
	minPSK      = 16
	maxPSK      = 64
	maxIdentity = 128
)

func (c *Config) validatePSK(f *faults) {
	seen := map[string]int{}
	for i, p := range c.PSK {
		key := fmt.Sprintf("psk[%d]", i)
		required(f, key+".identity", p.Identity, "the peer sends it in its handshake")
		if len(p.Identity) > maxIdentity {
			f.add(key+".identity", "must have at most %d bytes", maxIdentity)
		}
		if readsAsKid([]byte(p.Identity)) {
			f.add(key+".identity", "reads as the key id of an access token, which would go first")
		}
		if j, ok := seen[p.Identity]; ok && p.Identity != "" {
			f.add(key+".identity", "%q is taken by psk[%d]", p.Identity, j)
		}
		seen[p.Identity] = i
		if (p.KeyFile != "") == inline(f, key+".key", p.Key, p.KeyFile) {
			f.add(key, "needs one of key_file and key")
		}
		if !p.Key.IsZero() {
			checkPSK(f, key+".key", p.Key)
		}
		for j, may := range p.May {
			k := fmt.Sprintf("%s.may[%d]", key, j)
			oneOf(f, k, may, "token", "introspect", "trl", "proxy")
		}
	}
}

func checkPSK(f *faults, key string, s Secret) {
	if n := len(s.Bytes()); n < minPSK || n > maxPSK {
		f.add(key, "must have %d to %d bytes, this one has %d", minPSK, maxPSK, n)
	}
}

// readsAsKid says whether a DTLS identity is exactly the CBOR map
// {8: {1: {1: 4, 2: kid}}} that names a stored token (RFC 9202, Section 3.3.2;
// docs/protocol.md, Section 1). Only shortest-form CBOR is read that way.
func readsAsKid(identity []byte) bool {
	for _, form := range [][2]string{{"\xa1\x08\xa1\x01\xa2\x01\x04\x02", ""}, {"\xa1\x08\xa1\x01\xa2\x02", "\x01\x04"}} {
		rest, ok := cutAround(string(identity), form[0], form[1])
		if ok && isByteString(rest) {
			return true
		}
	}
	return false
}

func cutAround(s, prefix, suffix string) (string, bool) {
	if len(s) < len(prefix)+len(suffix) || s[:len(prefix)] != prefix || s[len(s)-len(suffix):] != suffix {
		return "", false
	}
	return s[len(prefix) : len(s)-len(suffix)], true
}

// isByteString says whether s is one CBOR byte string of at most 255 bytes.
func isByteString(s string) bool {
	switch {
	case s == "":
		return false
	case s[0] >= 0x40 && s[0] < 0x58:
		return len(s) == 1+int(s[0]-0x40)
	case s[0] == 0x58 && len(s) > 1:
		return len(s) == 2+int(s[1])
	}
	return false
}

var roleNames = []string{"requester", "responder", "monitor", "verifier"}

func (c *Config) validateAS(f *faults) {
	as := c.AuthorizationServer
	if !as.Enabled {
		return
	}
	required(f, "authorization_server.issuer", as.Issuer, "tokens name their issuer")
	for i, p := range as.Policies {
		key := fmt.Sprintf("authorization_server.policies[%d]", i)
		c.validatePolicy(f, key, p)
	}
}

func (c *Config) validatePolicy(f *faults, key string, p Policy) {
	required(f, key+".client", p.Client, "the identity of a psk entry")
	at := slices.IndexFunc(c.PSK, func(k PSK) bool { return k.Identity == p.Client })
	switch {
	case p.Client == "" || c.embedded && p.Client == embeddedClient:
	case at < 0:
		f.add(key+".client", "no psk entry has the identity %q", p.Client)
	case !slices.Contains(c.PSK[at].May, "token"):
		f.add(key+".client", "psk[%d] lacks `may: [token]`", at)
	}
	required(f, key+".audience", p.Audience, "the audience of a tokens entry")
	if p.Audience != "" && c.IssuerToken(p.Audience) == nil {
		f.add(key+".audience", "no tokens entry has the audience %q, the issuer %q and an AES-CCM-16-64-128 key to issue with",
			p.Audience, c.AuthorizationServer.Issuer)
	}
	if len(p.Scope) == 0 {
		f.add(key+".scope", "must list groups: a policy without scope grants nothing")
	}
	for j, s := range p.Scope {
		k := fmt.Sprintf("%s.scope[%d]", key, j)
		if !groupcomm.ValidGroupName(s.Group) {
			f.add(k+".group", nameRule)
		}
		c.suspect(k+".group", s.Group)
		if len(s.Roles) == 0 {
			f.add(k+".roles", "must list roles")
		}
		for l, r := range s.Roles {
			oneOf(f, fmt.Sprintf("%s.roles[%d]", k, l), r, roleNames...)
		}
	}
	inRange(f, key+".lifetime", p.Lifetime, time.Second, maxLifetime)
	if p.Profile != "" {
		oneOf(f, key+".profile", p.Profile, profileDTLS, profileOSCORE)
	}
	for i, o := range c.AuthorizationServer.Policies {
		if o.Client == p.Client && o.Audience == p.Audience && o.Profile != p.Profile && p.Client != "" {
			f.add(key+".profile", "policies[%d] of the same client and audience has another: a token has one profile", i)
			break
		}
	}
}

// suspect warns of a name that is almost that of a declared group: a group may be
// created later, and groups are often told apart by a number.
func (c *Config) suspect(key, name string) {
	if len(c.Groups) > 100 || c.Group(name) != nil {
		return
	}
	var names []string
	for _, g := range c.Groups {
		names = append(names, g.Name)
	}
	const count = "0123456789._~-"
	near := spell.Suggest(name, names)
	if near == "" || strings.Trim(near, count) == strings.Trim(name, count) {
		return
	}
	c.warn("%s: there is no group %q in groups; did you mean %q?", key, name, near)
}

// Names of the ACE Profiles registry.
const (
	profileDTLS   = "coap_dtls"
	profileOSCORE = "coap_oscore"
)

// ProfileID returns the number of the profile in the ACE Profiles registry; 0: the
// client decides.
func (p Policy) ProfileID() int64 {
	switch p.Profile {
	case profileDTLS:
		return 1
	case profileOSCORE:
		return 2
	}
	return 0
}

// IssuerToken returns the tokens entry with whose key the embedded AS protects
// tokens for an audience, nil when there is none. It issues COSE_Encrypt0 only:
// its tokens carry the keys that it makes (docs/protocol.md, Section 2).
func (c *Config) IssuerToken(audience string) *Token {
	for i := range c.Tokens {
		t := &c.Tokens[i]
		if t.Audience == audience && t.AlgID() == tokenAlgs["AES-CCM-16-64-128"] && (t.Issuer == "" || t.Issuer == c.AuthorizationServer.Issuer) {
			return t
		}
	}
	return nil
}
